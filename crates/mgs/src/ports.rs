//! On which ports of the first node an instance's MGS may be found.
//!
//! Server and clients compute the same sequence from the instance's name, so nothing has to be told. A port that another
//! instance holds answers the hello with "another instance", and both sides go on to the next.

use burstfs_types::InstanceId;
use xxhash_rust::xxh3::xxh3_64;

/// How many ports of the site's range one instance tries.
pub const TRIES: u16 = 16;

/// The ports to try, in order: `TRIES` of the `count` ports from `base` on, or all of them when there are fewer. The
/// caller has checked that the range lies within the port numbers.
pub fn sequence(instance: &InstanceId, base: u16, count: u16) -> impl Iterator<Item = u16> {
    let count = u64::from(count.max(1));
    let start = xxh3_64(instance.to_string().as_bytes()) % count;
    (0..u64::from(TRIES).min(count)).map(move |step| base.saturating_add(((start + step) % count) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_the_range_and_repeats_nothing() {
        let instance = InstanceId::new("vc", 42, 0).unwrap();
        for count in [1, 3, 16, 512] {
            let ports: Vec<u16> = sequence(&instance, 27_400, count).collect();
            let mut unique = ports.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), ports.len());
            assert_eq!(ports.len(), usize::from(TRIES.min(count)));
            assert!(ports.iter().all(|port| (27_400..27_400 + count).contains(port)));
        }
    }

    #[test]
    fn instances_differ() {
        let first = |job| sequence(&InstanceId::new("vc", job, 0).unwrap(), 27_400, 512).next();
        assert_ne!(first(1), first(2));
    }
}

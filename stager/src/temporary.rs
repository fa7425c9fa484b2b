//! Names of files that are not whole yet: `.<name>.burstfs-<job>-<attempt><node><number>`, beside the name that they get.

use crate::engine::Context;

/// Of an attempt, a node and a number, in hexadecimal.
const SUFFIX_DIGITS: usize = 8 + 4 + 8;
const NAME_MAX: usize = 255;

/// A name that nobody has used, for what will be `target`.
pub(crate) fn name_for(context: &Context, attempt: u32, target: &[u8]) -> Vec<u8> {
    let config = &context.config;
    let number = context.temporary_number();
    let suffix = format!(".burstfs-{}-{attempt:08x}{:04x}{number:08x}", config.job_id, config.node.get());
    let room = NAME_MAX - 1 - suffix.len();
    [b".", &target[..target.len().min(room)], suffix.as_bytes()].concat()
}

/// Whether `name` is a temporary of this job, and of which attempt and node.
pub(crate) fn parse(name: &[u8], job_id: u32) -> Option<(u32, u16)> {
    let digits_at = name.len().checked_sub(SUFFIX_DIGITS)?;
    let (head, digits) = name.split_at(digits_at);
    if !head.starts_with(b".") || !head.ends_with(format!(".burstfs-{job_id}-").as_bytes()) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    let attempt = u32::from_str_radix(digits.get(..8)?, 16).ok()?;
    let node = u16::from_str_radix(digits.get(8..12)?, 16).ok()?;
    Some((attempt, node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporaries_of_this_job_only() {
        let name = b".x.burstfs-42-0000000700030000000a";
        assert_eq!(parse(name, 42), Some((7, 3)));
        assert_eq!(parse(name, 4), None);
        assert_eq!(parse(b".x.burstfs-42-short", 42), None);
        assert_eq!(parse(b"x.burstfs-42-0000000700030000000a", 42), None);
    }
}

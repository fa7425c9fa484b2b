//! Files of the node that uses them, and the same on the bare file system.

use anyhow::Result;
use burstfs_tests::bench::{Aim, Row, median};
use burstfs_tests::fio::{Load, Outcome};

use crate::instance::{Instance, raw};
use crate::{RUNS, SLICE};

const NODE: &str = "node1";
const BLOCKS: [u64; 2] = [1 << 20, 4 << 10];
const KINDS: [&str; 4] = ["read", "write", "randread", "randwrite"];
const RATE: Aim = Aim::AtLeast(0.9);
const CPU: Aim = Aim::AtMost(1.1);

fn loads() -> impl Iterator<Item = Load> {
    let each = |is_direct| BLOCKS.into_iter().flat_map(move |block| KINDS.map(|kind| Load { kind, block, is_direct }));
    [false, true].into_iter().flat_map(each)
}

fn rate_name(load: Load) -> String {
    format!("local: {}", load.name())
}

fn cpu_name(load: Load) -> String {
    format!("local: {}: CPU per byte", load.name())
}

pub(crate) fn names() -> Vec<(String, &'static str, Aim)> {
    loads().flat_map(|load| [(rate_name(load), "x", RATE), (cpu_name(load), "x", CPU)]).collect()
}

pub(crate) fn measure(instance: &Instance<'_>, rows: &mut Vec<Row>) -> Result<()> {
    loads().try_for_each(|load| pair(instance, load, rows))
}

fn pair(instance: &Instance<'_>, load: Load, rows: &mut Vec<Row>) -> Result<()> {
    let dir = instance.own(NODE);
    let ours = instance.place(NODE, &dir);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first of each warms up what there is to be warm.
    for run in 0..=RUNS {
        let pair = (load.run(instance.cluster, &raw(NODE), SLICE)?, load.run(instance.cluster, &ours, SLICE)?);
        if run > 0 {
            without.push(pair.0);
            with.push(pair.1);
        }
    }
    let quotients = |pick: fn(&Outcome) -> f64| with.iter().zip(&without).map(|(a, b)| pick(a) / pick(b)).collect();
    let middle = |of: &[Outcome], pick: fn(&Outcome) -> f64| {
        median(&of.iter().map(pick).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let (rate, cpu) = ((|outcome| outcome.rate) as fn(&Outcome) -> f64, (|outcome| outcome.cpu) as fn(&Outcome) -> f64);
    let against = format!("raw {:.0} MiB/s, burstfs {:.0} MiB/s", middle(&without, rate), middle(&with, rate));
    rows.push(Row::new(rate_name(load), "x", quotients(rate), against, RATE));
    let against = format!("raw {:.2} s/GiB, burstfs {:.2} s/GiB", middle(&without, cpu), middle(&with, cpu));
    rows.push(Row::new(cpu_name(load), "x", quotients(cpu), against, CPU));
    Ok(())
}

//! `burstfs check`: has a job's instance look whether all its targets are consistent.

use std::time::Duration;

use burstfs_config::SiteConfig;
use burstfs_proto::mgs::{Check, Checked};
use burstfs_types::Code;

use crate::ask::{self, Place};
use crate::slurm::{self, Filter};
use crate::{Ending, Exit};

/// Millions of files take a while.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Prints what the walk over the targets of `job`'s instance finds. Ends with [`Exit::Partial`] if that is something, or if a
/// target did not answer.
pub(crate) fn run(job: u32, config: &SiteConfig) -> Result<(), Ending> {
    let failure = |error: &dyn std::fmt::Display| Ending::new(Exit::Failure, error);
    let none = || Ending::new(Exit::NoInstance, format!("job {job} has no instance now"));
    let filter = Filter { jobs: vec![job], ..Filter::default() };
    let jobs = slurm::jobs(&filter).map_err(|error| failure(&error))?;
    let cluster = slurm::cluster_name().map_err(|error| failure(&error))?;
    let place = jobs.first().map(|job| Place::of(job, &cluster)).transpose()?.flatten().ok_or_else(none)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failure(&error))?;
    let answer = runtime.block_on(ask::ask(&place, &Check, TIMEOUT, config));
    let checked = answer.map_err(|error| Ending::new(error.exit(), error))?.ok_or_else(none)?;
    print(&checked);
    match (checked.findings_count, checked.missing.is_empty()) {
        (0, true) => Ok(()),
        (0, false) => Err(Ending::new(Exit::Partial, "not all targets answered")),
        (count, _) => {
            let code = Code::Inconsistent;
            Err(Ending::new(
                Exit::Partial,
                format!("{code}: {}: {count} findings; see `burstfs explain {code}`", code.title()),
            ))
        }
    }
}

fn print(checked: &Checked) {
    let Checked { findings, inodes, objects, missing, .. } = checked;
    for finding in findings {
        println!("{finding}");
    }
    for node in missing {
        println!("{node} does not answer: its targets were not checked");
    }
    println!("{inodes} inodes and {objects} objects checked");
}

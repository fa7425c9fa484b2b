//! `burstfs-node prolog` and `burstfs-node epilog`: what Slurm runs on every node of every job, by `Prolog=` and `Epilog=` of
//! slurm.conf or through the plugin `spank_burstfs_prolog.so`.
//!
//! Nothing here fails: Slurm drains a node whose prolog or epilog does. What goes wrong is in the instance's log, and, for the
//! job's tasks to find, in its outcome.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use burstfs_config::{REQUEST_IN_PROLOG, SiteConfig, SlurmConf};
use burstfs_types::{Code, Failure};

use crate::error::NodeError;
use crate::request::{JobKey, Variables};
use crate::settings::Settings;
use crate::{log, start, stop, takeover};

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Script {
    Prolog,
    Epilog,
}

/// What the request is called for [`start`] and [`stop`].
const REQUEST: &str = "BURSTFS_SPEC";
const RESTART_COUNT: &str = "SLURM_JOB_RESTART_COUNT";

/// Where it is written what cannot be said of an instance.
const LOG: &str = "burstfs-node.log";

/// Does what is to be done for the job in `variables`, which is nothing if it does not ask for burstfs.
pub(crate) fn run(script: Script, config: &Path, variables: Variables<'_>) {
    if variables(REQUEST_IN_PROLOG).is_none() {
        return;
    }
    let done = catch_unwind(AssertUnwindSafe(|| hand_over(script, config, variables)));
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("{error}"),
        Err(_) => log::error!("{}: a bug in burstfs-node; please report it", Code::Internal),
    }
}

fn hand_over(script: Script, config: &Path, variables: Variables<'_>) -> Result<(), NodeError> {
    let variables = |name: &str| variable(script, variables, name);
    let settings = Settings::load(config).inspect_err(|_| keep_log(&SiteConfig::default().log_dir, LOG))?;
    let instance = JobKey::read(&variables).and_then(|key| key.instance());
    keep_log(&settings.log_dir, &instance.map_or_else(|_| LOG.to_owned(), |instance| takeover::log_name(&instance)));
    match script {
        Script::Prolog => match check(&variables) {
            Ok(()) => start::run(&settings, &variables),
            Err(failure) => start::refuse(&settings, &variables, failure),
        },
        Script::Epilog => stop::run(&settings, &variables),
    }
}

/// A variable of the job for [`start`] and [`stop`].
fn variable(script: Script, variables: Variables<'_>, name: &str) -> Option<String> {
    match (name, script) {
        (REQUEST, _) => variables(REQUEST_IN_PROLOG),
        // When a job is requeued, the epilog of the run that ends already has the count of the next one (seen on 22.05.8).
        // Without a count every instance that the job has on this node is ended.
        (RESTART_COUNT, Script::Epilog) => None,
        _ => variables(name),
    }
}

fn keep_log(log_dir: &Path, name: &str) {
    log::copy_to(File::from(takeover::open_log(log_dir, name)));
}

/// What must hold of Slurm, and of the job, for a start to make sense.
fn check(variables: Variables<'_>) -> Result<(), Failure> {
    SlurmConf::load().map_or(Ok(()), |conf| conf.check_flags(slurm_release))?;
    check_het(variables("SLURM_HET_JOB_ID").as_deref())
}

/// Components of a heterogeneous job are jobs of their own, and would get a file system each. `het` is the id of the
/// first component.
fn check_het(het: Option<&str>) -> Result<(), Failure> {
    match het {
        None | Some("" | "0") => Ok(()),
        Some(_) => Err(Failure::new(Code::NotBuiltYet, "heterogeneous jobs are not in this version of burstfs")),
    }
}

/// The release of this node's Slurm, as `SLURM_VERSION_NUMBER` has it.
fn slurm_release() -> Option<u32> {
    let output = Command::new("scontrol").arg("--version").output().ok()?;
    release_in(std::str::from_utf8(&output.stdout).ok()?)
}

/// The number in `slurm 25.11.7` or `slurm-wlm 22.05.8`.
fn release_in(said: &str) -> Option<u32> {
    let mut parts = said.split_whitespace().nth(1)?.split(['.', '-']).map(str::parse::<u8>);
    let mut part = || parts.next()?.ok();
    Some(u32::from_be_bytes([0, part()?, part()?, part().unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(script: Script, name: &str) -> Option<String> {
        let job = |name: &str| match name {
            "SPANK_BURSTFS_SPEC" => Some("{}".to_owned()),
            "BURSTFS_SPEC" => Some("forged".to_owned()),
            "SLURM_JOB_RESTART_COUNT" => Some("1".to_owned()),
            "SLURM_JOB_ID" => Some("42".to_owned()),
            _ => None,
        };
        variable(script, &job, name)
    }

    #[test]
    fn a_job_without_a_request_is_left_alone() {
        run(Script::Prolog, Path::new("/nowhere/burstfs.toml"), &|name| {
            assert_eq!(name, REQUEST_IN_PROLOG);
            None
        });
    }

    #[test]
    fn the_request_is_slurms() {
        assert_eq!(seen(Script::Prolog, "BURSTFS_SPEC").as_deref(), Some("{}"));
        assert_eq!(seen(Script::Prolog, "SLURM_JOB_ID").as_deref(), Some("42"));
    }

    #[test]
    fn the_epilog_of_a_requeued_job_does_not_name_the_next_run() {
        assert_eq!(seen(Script::Prolog, RESTART_COUNT).as_deref(), Some("1"));
        assert_eq!(seen(Script::Epilog, RESTART_COUNT), None);
    }

    #[test]
    fn heterogeneous_jobs_are_refused() {
        assert_eq!(check_het(None), Ok(()));
        assert_eq!(check_het(Some("0")), Ok(()));
        assert_eq!(check_het(Some("41")).unwrap_err().code, Code::NotBuiltYet);
    }

    #[test]
    fn releases() {
        assert_eq!(release_in("slurm-wlm 22.05.8\n"), Some(0x16_05_08));
        assert_eq!(release_in("slurm 25.11.7"), Some(0x19_0b_07));
        assert_eq!(release_in("slurm 26.05-rc1"), Some(0x1a_05_00));
        for unknown in ["", "slurm", "slurm x.y", "slurm 22"] {
            assert_eq!(release_in(unknown), None, "{unknown}");
        }
    }
}

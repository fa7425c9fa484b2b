//! `burstfs-node recover`: finishes or undoes what a crash or a reboot left, at boot and on demand.
//!
//! An instance in use whose daemon still serves is left alone although its supervisor is gone: its job works, and would
//! lose its open files. The job's end takes it over. One whose daemon is gone as well is brought back. One whose job is over
//! for Slurm, or forgotten, is ended: no epilog will come. What could not be drained, or was not yet when the node was switched
//! off, is held, and drained as soon as the other nodes are there.

use std::time::Duration;

use burstfs_node::journal::Standing;
use burstfs_node::outcome::Verdict;
use burstfs_types::InstanceId;

use crate::error::NodeError;
use crate::job_watch;
use crate::log;
use crate::node_socket::{Connection, Reply, Request};
use crate::settings::Settings;
use crate::stop;
use crate::store::{InstanceDir, RunBase, Storage};
use crate::supervise::Mode;
use crate::takeover;

/// How long a supervisor may take to answer: it may be busy unmounting.
const PATIENCE: Duration = Duration::from_secs(2);

/// Goes through all instances; one that cannot be recovered does not keep the others from it.
pub(crate) fn run(settings: &Settings) -> Result<(), NodeError> {
    let run_base = RunBase::open(&settings.run_dir)?;
    let mut result = Ok(());
    for instance in stop::known(settings, &run_base)? {
        match recover(settings, &run_base, &instance) {
            Ok(what) => log::info!("{instance}: {what}"),
            Err(error) => {
                log::error!("{instance}: {error}");
                result = Err(error);
            }
        }
    }
    result
}

fn recover(settings: &Settings, run_base: &RunBase, instance: &InstanceId) -> Result<&'static str, NodeError> {
    let standing = standing(settings, instance)?;
    if let Some(run) = run_base.find(instance)? {
        if let Some(mut supervisor) = Connection::open(run.dir()) {
            if let Some(said) = resume(&mut supervisor)? {
                return Ok(said);
            }
            let Some(state) = job_watch::state_if_over(instance.job_id()) else { return Ok("has its supervisor") };
            log::warning!("{instance}: the job is {state}, and no epilog came");
            return ask_to_end(supervisor);
        }
        let launch = takeover::launch_of_this_boot(&run);
        let failed = matches!(run.outcome()?.map(|outcome| outcome.verdict), Some(Verdict::Failed { .. }));
        if launch.is_none() && failed && standing.is_none() {
            return Ok("could not be started; the job's end removes the rest");
        }
        if launch.is_some() && standing == Some(Standing::InUse) {
            if run.daemon()?.is_some_and(|daemon| daemon.is_alive()) {
                return Ok("serves without a supervisor; the job's end takes it over");
            }
            takeover::take(settings, run_base, instance, Mode::ResumeToServe)?;
            return Ok("is brought back");
        }
    }
    if takeover::keep(settings, run_base, instance)?.is_some() {
        return Ok("is held, and drained as soon as that can be");
    }
    if matches!(standing, Some(Standing::Held(_))) && run_base.find(instance)?.is_none() {
        return Ok("is held");
    }
    let report = takeover::end(settings, run_base, instance)?;
    for warning in &report.warnings {
        log::warning!("{instance}: {warning}");
    }
    Ok(if report.held.is_some() { "is held" } else { "is removed" })
}

/// Has what is held drained now; `None` when nothing is.
fn resume(supervisor: &mut Connection) -> Result<Option<&'static str>, NodeError> {
    supervisor.send(&Request::Resume)?;
    Ok(match supervisor.wait::<Reply>(Some(PATIENCE)) {
        Some(Reply::Heard { is_held: true, .. }) => Some("is held, and drained as soon as that can be"),
        Some(_) => None,
        None => Some("has a supervisor that does not answer"),
    })
}

/// The end itself is not waited for: it needs the other nodes, too.
fn ask_to_end(mut supervisor: Connection) -> Result<&'static str, NodeError> {
    supervisor.send(&Request::Stop)?;
    Ok(match supervisor.wait::<Reply>(Some(PATIENCE)) {
        Some(_) => "is being ended",
        None => "has a supervisor that does not answer",
    })
}

/// What is known about the instance's data; `None` when there is none.
pub(crate) fn standing(settings: &Settings, instance: &InstanceId) -> Result<Option<Standing>, NodeError> {
    let Ok(storage) = Storage::open(&settings.nvme) else { return Ok(None) };
    storage.find(instance)?.as_ref().map(InstanceDir::standing).transpose()
}

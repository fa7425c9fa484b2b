//! `burstfs-node start`: a job's prolog on this node.
//!
//! Whatever happens is recorded as the instance's outcome, for the job's tasks to find; the prolog itself never fails, as
//! that would take the node out of service. Only what cannot be recorded is an error.

use std::time::Duration;

use burstfs_node::outcome::Outcome;
use burstfs_types::{Code, Failure, InstanceId};

use crate::announce::{self, Place};
use crate::error::NodeError;
use crate::log;
use crate::node_socket::{Connection, Reply, Request};
use crate::request::{self, JobKey, Variables};
use crate::settings::Settings;
use crate::store::{Launch, RunBase, Storage};
use crate::supervise::Mode;
use crate::takeover;

/// How long another instance's supervisor may take to say how much it uses.
const STATUS_PATIENCE: Duration = Duration::from_millis(200);

/// Starts the instance of the job, or records why not.
pub(crate) fn run(settings: &Settings, variables: Variables<'_>) -> Result<(), NodeError> {
    let key = JobKey::read(variables)?;
    let instance = key.instance()?;
    let run_base = RunBase::open(&settings.run_dir)?;
    let started = start(settings, variables, &key, &run_base);
    let recorded = run_base.find(&instance)?.map(|run| run.outcome()).transpose()?.flatten();
    if recorded.is_some() && started.is_ok() {
        return Ok(());
    }
    let failure = match started {
        // The outcome that is there is the other job's.
        Err(error @ NodeError::OtherJob(_)) => return Err(error),
        Ok(()) => NodeError::SupervisorGone(instance.to_string()).into_failure(Code::DaemonFailed),
        Err(error) => error.into_failure(Code::DaemonFailed),
    };
    record_failure(&run_base, &instance, variables, failure)
}

/// Records that the job gets no instance, and why, without trying.
pub(crate) fn refuse(settings: &Settings, variables: Variables<'_>, why: Failure) -> Result<(), NodeError> {
    let instance = JobKey::read(variables)?.instance()?;
    record_failure(&RunBase::open(&settings.run_dir)?, &instance, variables, why)
}

fn record_failure(
    run_base: &RunBase,
    instance: &InstanceId,
    variables: Variables<'_>,
    failure: Failure,
) -> Result<(), NodeError> {
    log::error!("{instance}: {failure}");
    let node = variables("SLURMD_NODENAME").unwrap_or_else(|| "a node".to_owned());
    let announcement = announce::failure(Place { instance: instance.clone(), node }, failure.clone());
    let recorded = run_base.make(instance)?.write_outcome(&Outcome::failed(instance.clone(), failure));
    if let Some(announcement) = announcement {
        announcement.wait(Duration::ZERO);
    }
    recorded
}

fn start(settings: &Settings, variables: Variables<'_>, key: &JobKey, run_base: &RunBase) -> Result<(), NodeError> {
    let instance = key.instance()?;
    let launch = request::launch(variables, key, settings)?;
    end_stale(settings, run_base, key)?;
    let mut connection = {
        let _lock = run_base.lock()?;
        match run_base.find(&instance)?.and_then(|run| Connection::open(run.dir()).map(|connection| (run, connection)))
        {
            Some((run, connection)) => {
                require_same_job(&run.launch()?, &launch)?;
                connection
            }
            None => start_new(settings, run_base, &launch)?,
        }
    };
    connection.send(&Request::Outcome)?;
    // The supervisor bounds every step of a start; it answers, or it is gone.
    let _: Option<Reply> = connection.wait(None);
    Ok(())
}

/// Ends what an earlier run of the job left here without a supervisor.
fn end_stale(settings: &Settings, run_base: &RunBase, key: &JobKey) -> Result<(), NodeError> {
    let storage = Storage::open(&settings.nvme)?;
    let mut stale = run_base.instances()?;
    stale.extend(storage.instances()?);
    stale.retain(|instance| key.is_same_job(instance));
    stale.sort();
    stale.dedup();
    for instance in stale {
        let is_live = run_base.find(&instance)?.is_some_and(|run| Connection::open(run.dir()).is_some());
        if is_live {
            continue;
        }
        let report = takeover::end(settings, run_base, &instance)?;
        if report.held.is_some() && instance == key.instance()? {
            let message = format!(
                "an earlier job of this number left data on this node; an administrator can remove it with: \
                 burstfs-node gc {instance}"
            );
            return Err(Failure::new(Code::Held, message).into());
        }
    }
    Ok(())
}

/// Slurm may run a prolog twice; somebody else's instance is not this job's.
fn require_same_job(running: &Option<Launch>, wanted: &Launch) -> Result<(), NodeError> {
    let is_same = running.as_ref().is_some_and(|running| {
        let (running, wanted) = (&running.description, &wanted.description);
        running.uid == wanted.uid && running.nodes == wanted.nodes && running.spec == wanted.spec
    });
    if is_same {
        return Ok(());
    }
    let instance = &wanted.description.instance;
    Err(NodeError::OtherJob(instance.to_string()))
}

fn start_new(settings: &Settings, run_base: &RunBase, launch: &Launch) -> Result<Connection, NodeError> {
    let instance = &launch.description.instance;
    let storage = Storage::open(&settings.nvme)?;
    require_space(run_base, &storage, launch)?;
    let run = run_base.make(instance)?;
    run.write_launch(launch)?;
    takeover::start_supervisor(settings, run_base, &run, instance, Mode::Fresh)
}

/// The share must be there, next to what the other instances on the node may still write.
fn require_space(run_base: &RunBase, storage: &Storage, launch: &Launch) -> Result<(), NodeError> {
    let wanted = launch.description.capacity_bytes;
    let available = storage.available_bytes()?;
    let mut promised = 0_u64;
    for instance in run_base.instances()? {
        if instance != launch.description.instance {
            promised = promised.saturating_add(promised_to(run_base, &instance)?);
        }
    }
    if wanted <= available.saturating_sub(promised) {
        return Ok(());
    }
    let message = format!(
        "{wanted} bytes wanted in {}; {available} are free, of which {promised} are promised to other instances",
        launch.nvme.display()
    );
    Err(Failure::new(Code::NvmeFull, message).into())
}

/// What `instance` may still write here. One that drains writes no more; one that does not answer may write it all.
fn promised_to(run_base: &RunBase, instance: &InstanceId) -> Result<u64, NodeError> {
    let Some(run) = run_base.find(instance)? else { return Ok(0) };
    let Some(launch) = takeover::launch_of_this_boot(&run) else { return Ok(0) };
    let status = Connection::open(run.dir()).and_then(|mut connection| {
        connection.send(&Request::Status).ok()?;
        connection.wait::<Reply>(Some(STATUS_PATIENCE))
    });
    let capacity = launch.description.capacity_bytes;
    Ok(match status {
        Some(Reply::Status(status)) if matches!(status.state.as_str(), "DRAINING" | "ENDING") => 0,
        Some(Reply::Status(status)) => capacity.saturating_sub(status.progress.used_bytes),
        _ => capacity,
    })
}

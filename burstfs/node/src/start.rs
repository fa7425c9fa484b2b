//! `burstfs-node start`: a job's prolog on this node.
//!
//! Whatever happens is recorded as the instance's outcome, for the job's tasks to find; the prolog itself never fails, as
//! that would take the node out of service. Only what cannot be recorded is an error.

use std::time::Duration;

use burstfs_node::journal::Standing;
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
            Some((run, mut connection)) => {
                require_not_over(&mut connection, &instance)?;
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
            return Err(left_by_earlier(&instance).into());
        }
    }
    Ok(())
}

/// What goes on without a job is none that a job could use.
fn require_not_over(supervisor: &mut Connection, instance: &InstanceId) -> Result<(), NodeError> {
    supervisor.send(&Request::Status)?;
    match supervisor.wait(Some(STATUS_PATIENCE)) {
        Some(Reply::Status(status)) if status.held.is_some() => Err(left_by_earlier(instance).into()),
        _ => Ok(()),
    }
}

fn left_by_earlier(instance: &InstanceId) -> Failure {
    let message = format!(
        "an earlier job of this number left data on this node; an administrator can remove it with: burstfs-node gc \
         {instance}"
    );
    Failure::new(Code::Held, message)
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
    let free = storage.available_bytes()?;
    let mut promised = 0_u64;
    let mut held = Vec::new();
    let mut others = run_base.instances()?;
    others.extend(storage.instances()?);
    others.sort();
    others.dedup();
    for instance in others.iter().filter(|instance| **instance != launch.description.instance) {
        match claim_of(run_base, storage, instance)? {
            Claim::Promised(bytes) => promised = promised.saturating_add(bytes),
            Claim::Held(share) => held.push(share),
        }
    }
    let available = free.saturating_sub(promised);
    if wanted <= available {
        return Ok(());
    }
    Err(no_room(launch, free, promised, &held).into())
}

/// What another instance means for the room on the node.
enum Claim {
    /// It may still write so many bytes.
    Promised(u64),
    /// It writes no more, but what it has is not free.
    Held(HeldShare),
}

/// What held data takes.
struct HeldShare {
    job_id: u32,
    user: String,
    bytes: u64,
    kept_until: Option<u64>,
}

/// One that drains writes no more; one that does not answer may write all that it was promised.
fn claim_of(run_base: &RunBase, storage: &Storage, instance: &InstanceId) -> Result<Claim, NodeError> {
    let run = run_base.find(instance)?;
    let launch = run.as_ref().and_then(takeover::launch_of_this_boot);
    let status = run.as_ref().and_then(|run| {
        let mut connection = Connection::open(run.dir())?;
        connection.send(&Request::Status).ok()?;
        connection.wait::<Reply>(Some(STATUS_PATIENCE))
    });
    let (held, used) = match (&status, storage.find(instance)?) {
        (Some(Reply::Status(status)), _) => (status.held.clone(), status.progress.used_bytes),
        (_, Some(dir)) => match dir.standing()? {
            Standing::Held(held) => (Some(held), 0),
            Standing::Unused | Standing::InUse | Standing::Draining | Standing::Disposable => (None, 0),
        },
        (_, None) => (None, 0),
    };
    if let Some(held) = held {
        let described = launch.map(|launch| launch.description.user);
        let on_disk = || storage.find(instance).ok()??.description().ok()?.map(|description| description.user);
        let user = described.or_else(on_disk).unwrap_or_else(|| "?".to_owned());
        let kept_until = held.kept_until;
        return Ok(Claim::Held(HeldShare { job_id: instance.job_id(), user, bytes: used, kept_until }));
    }
    let capacity = launch.map_or(0, |launch| launch.description.capacity_bytes);
    Ok(Claim::Promised(match status {
        Some(Reply::Status(status)) if matches!(status.state.as_str(), "DRAINING" | "ENDING") => 0,
        Some(Reply::Status(status)) => capacity.saturating_sub(status.progress.used_bytes),
        _ => capacity,
    }))
}

fn no_room(launch: &Launch, free: u64, promised: u64, held: &[HeldShare]) -> Failure {
    let (wanted, nvme) = (launch.description.capacity_bytes, launch.nvme.display());
    let available = free.saturating_sub(promised);
    let room = format!(
        "{wanted} bytes wanted in {nvme}; {free} are free, of which {promised} are promised to other instances"
    );
    let held_bytes = held.iter().map(|share| share.bytes).fold(0, u64::saturating_add);
    if held.is_empty() || wanted > available.saturating_add(held_bytes) {
        return Failure::new(Code::NvmeFull, room);
    }
    let shares: Vec<String> = held
        .iter()
        .map(|share| {
            let HeldShare { job_id, user, bytes, kept_until } = share;
            format!("{bytes} by job {job_id} of {user} {}", log::until(*kept_until))
        })
        .collect();
    let message = format!(
        "{room}, and {held_bytes} are taken by what could not be drained ({}); ask for at most {available} bytes on this \
         node, or make room: burstfs resume JOBID, burstfs-node gc",
        shares.join(", ")
    );
    Failure::new(Code::NvmeHeld, message)
}

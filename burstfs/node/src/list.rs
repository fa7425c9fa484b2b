//! `burstfs-node list` and `burstfs-node gc`: what is on this node, and removing what was kept.

use std::time::Duration;

use burstfs_node::held::Held;
use burstfs_node::journal::{Standing, Step};
use burstfs_types::{Failure, InstanceId};
use serde::Serialize;

use crate::error::NodeError;
use crate::log;
use crate::node_socket::{Connection, Reply, Request, Status};
use crate::recover;
use crate::settings::Settings;
use crate::stop;
use crate::store::{RunBase, Storage};
use crate::takeover;

/// The state of an instance that nobody looks after.
const LOST: &str = "LOST";

/// How long a supervisor may take: it may be busy unmounting.
const PATIENCE: Duration = Duration::from_secs(2);

/// One line of the list.
#[derive(Serialize)]
struct Row {
    instance: InstanceId,
    user: Option<String>,
    state: String,
    capacity_bytes: Option<u64>,
    used_bytes: Option<u64>,
    supervisor_pid: Option<i32>,
    daemon_pid: Option<i32>,
    restarts: Option<u32>,
    /// Seconds since the epoch, for what is held.
    kept_until: Option<u64>,
    reason: Option<String>,
}

/// Prints the instances on this node, as a table or as JSON. A node whose NVMe is not there is an error, after what is known
/// without it: nobody can say what is kept on it.
pub(crate) fn run(settings: &Settings, json: bool) -> Result<(), NodeError> {
    let run_base = RunBase::open(&settings.run_dir)?;
    let storage = Storage::open(&settings.nvme);
    let instances = stop::known_in(&run_base, storage.as_ref().ok())?;
    let rows: Result<Vec<Row>, NodeError> =
        instances.into_iter().map(|instance| row(settings, &run_base, instance)).collect();
    let rows = rows?;
    if json {
        let text = serde_json::to_string(&rows);
        println!("{}", text.map_err(|source| NodeError::Damaged { path: "the list".to_owned(), source })?);
    } else if storage.is_ok() || !rows.is_empty() {
        print!("{}", table(rows));
    }
    storage.map(drop).map_err(|failure| {
        let message = format!(
            "{}; either this machine is no compute node of burstfs, or its NVMe is not mounted (`nvme` in the configuration \
             says where it should be)",
            failure.message
        );
        Failure::new(failure.code, message).into()
    })
}

fn table(rows: Vec<Row>) -> String {
    let mut out = format!("{:<24} {:<12} {:<12} {:>16} {}\n", "INSTANCE", "USER", "STATE", "CAPACITY", "REASON");
    for row in rows {
        let capacity = row.capacity_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        let (user, reason) = (row.user.unwrap_or_else(|| "-".to_owned()), row.reason.unwrap_or_default());
        let instance = row.instance.to_string();
        out.push_str(&format!("{instance:<24} {user:<12} {:<12} {capacity:>16} {reason}\n", row.state));
    }
    out
}

fn row(settings: &Settings, run_base: &RunBase, instance: InstanceId) -> Result<Row, NodeError> {
    let run = run_base.find(&instance)?;
    let status = run.as_ref().and_then(|run| status(Connection::open(run.dir())?));
    let on_disk = match Storage::open(&settings.nvme) {
        Ok(storage) => storage.find(&instance)?.and_then(|dir| dir.description().ok().flatten()),
        Err(_) => None,
    };
    let launched = run.as_ref().and_then(|run| run.launch().ok().flatten()).map(|launch| launch.description);
    let description = launched.or(on_disk);
    let (state, held) = match &status {
        Some(status) => (status.state.clone(), status.held.clone()),
        None => unattended(settings, &instance)?,
    };
    Ok(Row {
        user: description.as_ref().map(|description| description.user.clone()),
        capacity_bytes: description.as_ref().map(|description| description.capacity_bytes),
        used_bytes: status.as_ref().map(|status| status.progress.used_bytes),
        supervisor_pid: status.as_ref().map(|status| status.supervisor_pid),
        daemon_pid: status.as_ref().and_then(|status| status.daemon_pid),
        restarts: status.as_ref().map(|status| status.restarts),
        instance,
        reason: match state.as_str() {
            LOST => Some("its supervisor is gone; burstfs-node recover takes care of it".to_owned()),
            _ => held.as_ref().map(|held| format!("{}: {}", log::until(held.kept_until), held.failure)),
        },
        kept_until: held.and_then(|held| held.kept_until),
        state,
    })
}

fn status(mut connection: Connection) -> Option<Status> {
    connection.send(&Request::Status).ok()?;
    match connection.wait(Some(PATIENCE))? {
        Reply::Status(status) => Some(status),
        Reply::Recorded | Reply::Stopping { .. } | Reply::Stopped(_) | Reply::Heard { .. } => None,
    }
}

/// The state of an instance without a supervisor.
fn unattended(settings: &Settings, instance: &InstanceId) -> Result<(String, Option<Held>), NodeError> {
    Ok(match recover::standing(settings, instance)? {
        Some(Standing::Held(held)) => ("HELD".to_owned(), Some(held)),
        Some(_) => (LOST.to_owned(), None),
        None => ("FAILED".to_owned(), None),
    })
}

/// Removes the held data of an instance.
pub(crate) fn collect(settings: &Settings, instance: &InstanceId) -> Result<(), NodeError> {
    let run_base = RunBase::open(&settings.run_dir)?;
    let lock = run_base.lock()?;
    let storage = Storage::open(&settings.nvme)?;
    let not_held = || NodeError::Usage(format!("{instance} is not held on this node; see burstfs-node list"));
    let is_held = matches!(recover::standing(settings, instance)?, Some(Standing::Held(_)));
    let dir = storage.find(instance)?.filter(|_| is_held).ok_or_else(not_held)?;
    let run = run_base.find(instance)?;
    if let Some(supervisor) = run.as_ref().and_then(|run| Connection::open(run.dir())) {
        drop(lock);
        return discard(supervisor, instance);
    }
    // A journal that cannot be read is no reason to keep what an administrator wants gone.
    if let Ok(mut journal) = dir.journal() {
        journal.record(Step::Remove)?;
    }
    storage.remove(instance)?;
    run_base.remove(instance)
}

/// Has the supervisor remove what it holds.
fn discard(mut supervisor: Connection, instance: &InstanceId) -> Result<(), NodeError> {
    supervisor.send(&Request::Discard)?;
    let mut process = None;
    loop {
        match supervisor.wait::<Reply>(None) {
            Some(Reply::Recorded | Reply::Status(_) | Reply::Stopping { .. }) => {}
            Some(Reply::Heard { is_held: true, pid }) => process = takeover::process_of(pid),
            Some(Reply::Heard { is_held: false, .. }) => {
                let message = format!("{instance} is not held any more on this node; see burstfs-node list");
                return Err(NodeError::Usage(message));
            }
            Some(Reply::Stopped(report)) => {
                takeover::wait_for_exit(process);
                return report.warnings.into_iter().next().map_or(Ok(()), |failure| Err(failure.into()));
            }
            None => return Err(NodeError::SupervisorGone(instance.to_string())),
        }
    }
}

//! `burstfs-node list` and `burstfs-node gc`: what is on this node, and removing what was kept.

use std::time::Duration;

use burstfs_node::journal::{Standing, Step};
use burstfs_types::{Failure, InstanceId};
use serde::Serialize;

use crate::error::NodeError;
use crate::node_socket::{Connection, Reply, Request, Status};
use crate::recover;
use crate::settings::Settings;
use crate::stop;
use crate::store::{RunBase, Storage};

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
    let (state, reason) = match &status {
        Some(status) => (status.state.clone(), None),
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
        state,
        reason,
    })
}

fn status(mut connection: Connection) -> Option<Status> {
    connection.send(&Request::Status).ok()?;
    match connection.wait(Some(PATIENCE))? {
        Reply::Status(status) => Some(status),
        Reply::Recorded | Reply::Stopping { .. } | Reply::Stopped(_) => None,
    }
}

/// The state of an instance without a supervisor.
fn unattended(settings: &Settings, instance: &InstanceId) -> Result<(String, Option<String>), NodeError> {
    let lost = "its supervisor is gone; burstfs-node recover takes care of it";
    Ok(match recover::standing(settings, instance)? {
        Some(Standing::Held(failure)) => ("HELD".to_owned(), Some(failure.to_string())),
        Some(_) => ("LOST".to_owned(), Some(lost.to_owned())),
        None => ("FAILED".to_owned(), None),
    })
}

/// Removes the held data of an instance.
pub(crate) fn collect(settings: &Settings, instance: &InstanceId) -> Result<(), NodeError> {
    let run_base = RunBase::open(&settings.run_dir)?;
    let _lock = run_base.lock()?;
    let storage = Storage::open(&settings.nvme)?;
    let is_held = matches!(recover::standing(settings, instance)?, Some(Standing::Held(_)));
    let (Some(dir), true, None) = (storage.find(instance)?, is_held, run_base.find(instance)?) else {
        return Err(NodeError::Usage(format!("{instance} is not held on this node; see burstfs-node list")));
    };
    // A journal that cannot be read is no reason to keep what an administrator wants gone.
    if let Ok(mut journal) = dir.journal() {
        journal.record(Step::Remove)?;
    }
    storage.remove(instance)
}

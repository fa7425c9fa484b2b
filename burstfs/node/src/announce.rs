//! Tells the other nodes, through Slurm, that an instance cannot start on this one, when no daemon can: the job's
//! AdminComment, which the MGS's node watches while it waits.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use burstfs_node::description::InstanceDescription;
use burstfs_types::{Failure, InstanceId};
use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

/// How long Slurm may take to note it. Nobody waits for this but the end of a start that has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// An `scontrol` at work.
pub(crate) struct Announcement(Child);

/// What failed where.
pub(crate) struct Place {
    pub(crate) instance: InstanceId,
    pub(crate) node: String,
}

impl Place {
    pub(crate) fn of(description: &InstanceDescription) -> Place {
        Place { instance: description.instance.clone(), node: description.node_name().to_owned() }
    }
}

/// Starts telling. `scontrol` finds Slurm's configuration as this process does, in its environment.
pub(crate) fn failure(place: &Place, failure: &Failure) -> Option<Announcement> {
    let text = log::printable(&comment(place, failure), 1024);
    let mut command = Command::new("scontrol");
    command.arg("update").arg(format!("jobid={}", place.instance.job_id())).arg(format!("admincomment={text}"));
    match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
        Ok(child) => Some(Announcement(child)),
        Err(error) => {
            log::warning!("cannot run scontrol to tell the other nodes: {error}");
            None
        }
    }
}

/// With the run of the job that it is about: the comment outlives a requeue.
fn comment(place: &Place, failure: &Failure) -> String {
    format!("burstfs: {}: {}: {}: {}", place.instance.restart_count(), failure.code, place.node, failure.message)
}

impl Announcement {
    /// Waits until Slurm has noted it, or does not answer.
    pub(crate) fn wait(mut self) {
        let pidfd = Pid::from_raw(self.0.id().cast_signed())
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let ended = pidfd.is_some_and(|pidfd| {
            let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
            matches!(process::wait_readable(pidfd, Some(PATIENCE)), Ok(true))
        });
        if !ended {
            log::warning!("scontrol does not answer");
            let _ = self.0.kill();
        }
        match self.0.wait() {
            Ok(status) if !status.success() && ended => log::warning!("scontrol: {status}"),
            Ok(_) => {}
            Err(error) => log::warning!("scontrol: {error}"),
        }
    }
}

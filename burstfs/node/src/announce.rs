//! Tells the other nodes, through Slurm, that an instance cannot start on this one, when no daemon can: the job's
//! AdminComment, which the MGS's node watches while it waits.
//!
//! What keeps the node from starting may keep `scontrol` from telling (munged is down, slurmctld is restarted): it is tried
//! again for as long as the others wait for this node.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use burstfs_node::description::InstanceDescription;
use burstfs_types::{Failure, InstanceId};
use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

/// How long one `scontrol` may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between one that failed and the next.
const PAUSE: Duration = Duration::from_secs(1);

/// A word to the others on its way.
pub(crate) struct Announcement {
    place: Place,
    failure: Failure,
    scontrol: Child,
}

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
pub(crate) fn failure(place: Place, failure: Failure) -> Option<Announcement> {
    let scontrol = tell(&place, &failure)?;
    Some(Announcement { place, failure, scontrol })
}

fn tell(place: &Place, failure: &Failure) -> Option<Child> {
    let text = log::printable(&comment(place, failure), 1024);
    let mut command = Command::new("scontrol");
    command.arg("update").arg(format!("jobid={}", place.instance.job_id())).arg(format!("admincomment={text}"));
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    started.map_err(|error| log::warning!("cannot run scontrol to tell the other nodes: {error}")).ok()
}

/// With the run of the job that it is about: the comment outlives a requeue.
fn comment(place: &Place, failure: &Failure) -> String {
    format!("burstfs: {}: {}: {}: {}", place.instance.restart_count(), failure.code, place.node, failure.message)
}

impl Announcement {
    /// Waits until Slurm has noted it, at most for `patience` and one `scontrol`. Nobody waits for this but the end of a start
    /// that has failed.
    pub(crate) fn wait(mut self, patience: Duration) {
        let begun = Instant::now();
        while !is_done(&mut self.scontrol) && begun.elapsed() < patience {
            std::thread::sleep(PAUSE);
            match tell(&self.place, &self.failure) {
                Some(again) => self.scontrol = again,
                None => return,
            }
        }
    }
}

/// Whether Slurm has noted it, or will not however often it is asked.
fn is_done(scontrol: &mut Child) -> bool {
    let pidfd = Pid::from_raw(scontrol.id().cast_signed())
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let ended = pidfd.is_some_and(|pidfd| {
        let pidfd = std::os::fd::AsFd::as_fd(&pidfd);
        matches!(process::wait_readable(pidfd, Some(PATIENCE)), Ok(true))
    });
    if !ended {
        log::warning!("scontrol does not answer");
        let _ = scontrol.kill();
    }
    match scontrol.wait() {
        Ok(status) if ended && !status.success() => {
            log::warning!("scontrol: {status}; it is tried again");
            false
        }
        Ok(_) => true,
        Err(error) => {
            log::warning!("scontrol: {error}");
            true
        }
    }
}

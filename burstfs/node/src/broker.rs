//! The process that registers files with the kernel for `burstfsd`, as its supervisor sees it and as it runs.
//!
//! It is a program run of its own (`burstfs-node backing`): it looks at descriptors that a process of the user's sent, and
//! a file system of the user's can make that last. What the kernel later does with a registered file it does with this
//! process's credentials: so those are the job's user's for all that concerns files, and CAP_SYS_ADMIN, which registering
//! needs, is the only capability.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use burstfs_node::backing::{self, Broker};
use burstfs_node::control::{BACKING_FD, CONTROL_FD, FUSE_FD};

use crate::error::{Context, NodeError};
use crate::process::Child;
use crate::spawn;

/// A broker's process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct BrokerProcess(Child);

/// What a broker works on.
pub(crate) struct Place<'a> {
    /// The device of the instance's mount.
    pub(crate) fuse: BorrowedFd<'a>,
    /// The user's directory on the NVMe.
    pub(crate) data: BorrowedFd<'a>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Files to write `0` to: whatever ends the daemon's group ends the broker.
    pub(crate) cgroup_files: Vec<PathBuf>,
}

impl BrokerProcess {
    /// Starts one; returns it with the socket for the daemon.
    pub(crate) fn start(place: &Place<'_>) -> Result<(BrokerProcess, OwnedFd), NodeError> {
        let (ours, theirs) = backing::socket_pair().context(|| "make a socket".to_owned())?;
        let log = std::io::stderr().as_fd().try_clone_to_owned().context(|| "use the log".to_owned())?;
        let descriptors = [
            (log.as_fd(), 1),
            (log.as_fd(), 2),
            (ours.as_fd(), CONTROL_FD),
            (place.fuse, FUSE_FD),
            (place.data, BACKING_FD),
        ];
        let (uid, gid) = (place.uid.to_string(), place.gid.to_string());
        let child = spawn::broker(&["backing", &uid, &gid], &descriptors, &place.cgroup_files)?;
        Ok((BrokerProcess(child), theirs))
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.0.kill();
        let _ = self.0.wait_for(std::time::Duration::from_secs(1));
    }
}

/// `burstfs-node backing UID GID`: serves until the daemon closes its end.
pub(crate) fn run(uid: u32, gid: u32) -> Result<(), NodeError> {
    // SAFETY: the supervisor put these descriptors there, and nothing else here uses the numbers.
    let [socket, fuse, data] = [CONTROL_FD, FUSE_FD, BACKING_FD].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // So that nobody takes it for a supervisor. Fails for no name that fits.
    let _ = rustix::thread::set_name(c"burstfs-backing");
    spawn::become_broker(uid, gid).context(|| "give up privileges".to_owned())?;
    let broker =
        Broker::new(fuse, File::from(data).as_fd(), uid).context(|| "look at the data directory".to_owned())?;
    broker.serve(socket.as_fd()).context(|| "serve burstfsd".to_owned())
}

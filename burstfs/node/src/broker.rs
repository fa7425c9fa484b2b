//! The process that registers files with the kernel for `burstfsd`, as its supervisor sees it and as it runs.
//!
//! It is a program run of its own (`burstfs-node backing`): it looks at descriptors that a process of the user's sent, and
//! a file system of the user's can make that last. What the kernel later does with a registered file it does with this
//! process's credentials: so those are the job's user's for all that concerns files, and CAP_SYS_ADMIN, which registering
//! needs, is the only capability.
//!
//! A broker that is killed (the system is short of memory, for one) is started again at the same end of the daemon's socket: what
//! the daemon asks meanwhile waits there. One that ends by itself has heard nonsense, or the daemon's end: that is not mended.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use burstfs_node::backing::{self, Broker};
use burstfs_node::control::{BACKING_FD, CONTROL_FD, FUSE_FD};
use rustix::io::Errno;

use crate::error::{Context, NodeError};
use crate::process::{Child, End};
use crate::{log, spawn};

/// So often a broker is started again; more deaths have a cause that starting does not mend.
const REVIVALS_MAX: u32 = 10;

/// A broker's process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct BrokerProcess {
    child: Child,
    seat: Option<Seat>,
}

/// The broker's end of a daemon's socket, which one broker after the other may have.
#[derive(Debug)]
pub(crate) struct Seat {
    socket: OwnedFd,
    revivals: u32,
}

impl Seat {
    /// A new one, and the daemon's end.
    pub(crate) fn new() -> Result<(Seat, OwnedFd), NodeError> {
        let (socket, theirs) = backing::socket_pair().context(|| "make a socket".to_owned())?;
        Ok((Seat { socket, revivals: 0 }, theirs))
    }
}

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
    /// Starts one.
    pub(crate) fn start(place: &Place<'_>, seat: Seat) -> Result<BrokerProcess, NodeError> {
        let log = std::io::stderr().as_fd().try_clone_to_owned().context(|| "use the log".to_owned())?;
        let descriptors = [
            (log.as_fd(), 1),
            (log.as_fd(), 2),
            (seat.socket.as_fd(), CONTROL_FD),
            (place.fuse, FUSE_FD),
            (place.data, BACKING_FD),
        ];
        let (uid, gid) = (place.uid.to_string(), place.gid.to_string());
        let child = spawn::broker(&["backing", &uid, &gid], &descriptors, &place.cgroup_files)?;
        Ok(BrokerProcess { child, seat: Some(seat) })
    }

    /// Readable when it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        self.child.try_wait().ok().flatten()
    }

    /// The seat for the next one, behind a broker that ended so; `None` where there shall be none.
    pub(crate) fn vacate(mut self, end: End) -> Option<Seat> {
        let mut seat = self.seat.take()?;
        seat.revivals += 1;
        (matches!(end, End::Killed(_)) && seat.revivals <= REVIVALS_MAX).then_some(seat)
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.child.kill();
        let _ = self.child.wait_for(std::time::Duration::from_secs(1));
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
    match broker.serve(socket.as_fd()) {
        // The supervisor says that burstfsd was killed.
        Err(Errno::CONNRESET | Errno::PIPE) => {
            log::warning!("burstfsd ended without having heard of all files that it had registered");
            Ok(())
        }
        served => served.context(|| "serve burstfsd".to_owned()),
    }
}

//! `burstfsd`: one node of one instance.
//!
//! Started by `burstfs-node` as the job's user, with the control socket at descriptor 3 and, where it serves a mount,
//! `/dev/fuse` at 4 and the broker of backing ids at 5. Wires the roles of this node together and takes them through the instance's life ([`life`]). Takes no
//! arguments and reads no configuration: the supervisor's first message says everything.

mod arrivals;
mod backing;
mod check;
mod control;
mod directory;
mod durable;
#[cfg(test)]
mod fixture;
mod held;
mod job;
mod life;
mod limit;
mod links;
mod lost;
mod mgs;
mod node;
mod note;
mod rendezvous;
mod roles;
mod rounds;
mod staging;
mod succession;
mod tree;
mod turns;

use std::io::IsTerminal;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use burstfs_node::control::{BACKING_FD, CONTROL_FD, FUSE_FD};

/// Threads of the runtime: enough that one blocked on a disk does not hold up the others, few enough to cost nothing idle.
const WORKERS_MIN: usize = 2;
const WORKERS_MAX: usize = 8;

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    let result = run();
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    leave(result.is_ok())
}

/// Ends the process at once: no thread that is stuck in a system call on the persistent file system holds it up, and none
/// that still works on an abandoned step finds the runtime gone, or the libraries' globals destroyed.
fn leave(is_success: bool) -> ! {
    // SAFETY: ends this process and returns to nobody.
    unsafe { libc::_exit(i32::from(!is_success)) }
}

fn run() -> anyhow::Result<()> {
    if std::env::args_os().len() > 1 || std::io::stdin().is_terminal() {
        bail!("burstfsd is started by burstfs-node, not by hand");
    }
    let control = UnixStream::from(inherited(CONTROL_FD).context("no control socket at descriptor 3")?);
    let mount = inherited(FUSE_FD).map(|device| node::MountDevice { device, backing: inherited(BACKING_FD) });
    let cores = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(WORKERS_MIN, WORKERS_MAX))
        .enable_all()
        .build()
        .context("runtime")?;
    // The runtime ends with the process: see `leave`.
    let runtime = std::mem::ManuallyDrop::new(runtime);
    runtime.block_on(life::run(control, mount))
}

/// Takes over a descriptor that the supervisor left open; `None` where there is none.
fn inherited(fd: i32) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only looks at the descriptor table.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and this function is called once for each number before anything else in this
    // process opens one, so nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

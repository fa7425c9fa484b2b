//! One session: from a mounted `/dev/fuse` to the end of the mount.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{io, thread};

use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::adapter::{Adapter, Core};
use super::arrivals::Arrivals;
use super::notify::Notifier;
use super::passthrough::Passthrough;
use crate::fs::ClientFs;

/// How a session runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FuseConfig {
    /// Threads that read requests. Local I/O blocks the thread that does it, so there are several. They share the
    /// descriptor: cloning it would mean to open `/dev/fuse` again, which is the site's to allow.
    pub threads: usize,
    /// Operations under way that wait for another node.
    pub operations_max: u32,
    /// Bulk memory of those, bytes.
    pub bulk_bytes_max: usize,
}

impl Default for FuseConfig {
    fn default() -> FuseConfig {
        FuseConfig { threads: 4, operations_max: 1024, bulk_bytes_max: 64 << 20 }
    }
}

/// Why a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The mount is gone, or its connection was aborted: the kernel does not say which.
    Unmounted,
    /// The device failed, or sent what is not a request.
    Failed(io::Error),
}

/// A session under way.
pub struct FuseSession {
    ended: oneshot::Receiver<SessionEnd>,
}

impl FuseSession {
    /// Waits for the end of the session; all its open files are closed by then.
    pub async fn ended(self) -> SessionEnd {
        self.ended.await.unwrap_or_else(|_| SessionEnd::Failed(io::Error::other("the session's thread panicked")))
    }
}

/// Serves `device`, which is mounted already, with `fs`. Returns when the kernel and the session have agreed on how they
/// talk. Operations that wait run on `runtime`, which must have threads of its own. Without `passthrough`, or where the
/// kernel cannot, all I/O is done here. `arrivals` is the input that still comes, where some does.
pub fn serve(
    fs: Arc<ClientFs>,
    device: OwnedFd,
    config: FuseConfig,
    passthrough: Option<Passthrough>,
    arrivals: Option<Arc<Arrivals>>,
    runtime: Handle,
) -> io::Result<FuseSession> {
    let core = Arc::new(Core::new(fs, config, passthrough, arrivals, runtime.clone()));
    let mut fuser_config = Config::default();
    fuser_config.n_threads = Some(config.threads.max(1));
    let notifications = device.try_clone()?;
    let session = Session::from_fd(Adapter(Arc::clone(&core)), device, SessionACL::All, fuser_config)?;
    core.leases().attach(Arc::new(Notifier::new(notifications)));
    let (tell, ended) = oneshot::channel();
    thread::Builder::new().name("fuse-session".into()).spawn(move || {
        let end = match session.run() {
            Ok(()) => SessionEnd::Unmounted,
            Err(error) => SessionEnd::Failed(error),
        };
        runtime.block_on(core.finish());
        match &end {
            SessionEnd::Unmounted => info!("the FUSE session has ended"),
            SessionEnd::Failed(error) => warn!(%error, "the FUSE session has failed"),
        }
        // Nobody may be waiting any more.
        let _ = tell.send(end);
    })?;
    Ok(FuseSession { ended })
}

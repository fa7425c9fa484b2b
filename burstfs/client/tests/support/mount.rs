//! Real FUSE mounts in a mount namespace of the calling thread.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burstfs_client::fs::ClientFs;
use burstfs_client::fuse::{FuseConfig, FuseSession, SessionEnd, serve};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::runtime::Handle;

/// Gives the calling thread, and the threads and processes that it starts from now on, a mount namespace of their own.
pub(crate) fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
}

/// A mounted file system; unmounts when dropped, and then waits for the end of its session.
pub(crate) struct Mounted {
    directory: TempDir,
    session: Option<FuseSession>,
    runtime: Handle,
}

impl Mounted {
    /// Mounts `fs` for all users, as the supervisor does.
    pub(crate) fn new(fs: Arc<ClientFs>, runtime: &Handle) -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        let device: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap().into();
        let options =
            format!("fd={},rootmode=40700,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("burstfs"), directory.path(), Some("fuse.burstfs"), flags, Some(options.as_str())).unwrap();
        let session = serve(fs, device, FuseConfig::default(), runtime.clone()).unwrap();
        Mounted { directory, session: Some(session), runtime: runtime.clone() }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub(crate) fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    /// Unmounts, whatever is open; how the session ended.
    pub(crate) fn unmount(mut self, flags: MntFlags) -> SessionEnd {
        umount2(self.path(), flags).unwrap();
        let session = self.session.take().unwrap();
        self.runtime.block_on(session.ended())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // A test that fails leaves files open; the session then ends when they are closed.
        if umount2(self.path(), MntFlags::empty()).is_ok() {
            self.runtime.block_on(session.ended());
        } else {
            let _ = umount2(self.path(), MntFlags::MNT_DETACH);
        }
    }
}

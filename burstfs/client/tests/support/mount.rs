//! Real FUSE mounts in a mount namespace of the calling thread.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use burstfs_client::fs::ClientFs;
use burstfs_client::fuse::{BackingIds, FuseConfig, FuseSession, Passthrough, SessionEnd, serve};
use burstfs_node::backing::Broker;
use burstfs_oss::Ost;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::cluster::Cluster;

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

/// Mounts of all nodes of a new instance, and the instance.
pub(crate) fn mounts<const NODES: usize>() -> ([Mounted; NODES], Cluster) {
    own_namespace();
    let cluster = Cluster::new(NODES);
    let local = |node: usize| LocalFiles { ost: cluster.osts()[node].clone(), data: cluster.directory() };
    let mounts = std::array::from_fn(|node| Mounted::new(cluster.client(node), Some(local(node)), cluster.runtime()));
    (mounts, cluster)
}

/// A file system of its own, of so many bytes, in the mount namespace of the calling thread.
pub(crate) struct SmallDevice {
    directory: TempDir,
}

impl SmallDevice {
    pub(crate) fn new(bytes: u64) -> SmallDevice {
        let device = SmallDevice { directory: tempfile::tempdir().unwrap() };
        let image = device.directory.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(device.path()).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), device.path().as_ref()]);
        device
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("device")
    }
}

impl Drop for SmallDevice {
    fn drop(&mut self) {
        // What a failed test has open keeps it; the namespace takes it along in the end.
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, arguments: &[&OsStr]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
}

/// Root's part of passthrough, without a process of its own.
struct OwnBroker(Mutex<Broker>);

#[async_trait]
impl BackingIds for OwnBroker {
    async fn open(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        Ok(self.0.lock().unwrap().open(file)?)
    }

    fn close(&self, id: u32) {
        self.0.lock().unwrap().close(id);
    }
}

/// What lets the kernel do the I/O on the files of this node's OST, which lie in `data`.
pub(crate) struct LocalFiles<'a> {
    pub(crate) ost: Arc<Ost>,
    pub(crate) data: &'a Path,
}

impl Mounted {
    /// Mounts `fs` for all users, as the supervisor does; with passthrough of `local` files.
    pub(crate) fn new(fs: Arc<ClientFs>, local: Option<LocalFiles<'_>>, runtime: &Handle) -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        let device: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap().into();
        let options =
            format!("fd={},rootmode=40700,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("burstfs"), directory.path(), Some("fuse.burstfs"), flags, Some(options.as_str())).unwrap();
        let passthrough = local.map(|local| {
            let data = File::open(local.data).unwrap();
            let broker = Broker::new(device.try_clone().unwrap(), data.as_fd(), 0).unwrap();
            Passthrough { files: local.ost, ids: Arc::new(OwnBroker(Mutex::new(broker))) }
        });
        let session = serve(fs, device, FuseConfig::default(), passthrough, None, runtime.clone()).unwrap();
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

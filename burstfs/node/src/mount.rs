//! The FUSE mount of an instance.
//!
//! Owns mount(2), umount2(2) and the supervisor's descriptor of `/dev/fuse`. Does not own serving it.
//!
//! Failure: an unmount may wait for whoever serves the file system. So it is done by a child with a deadline; when that
//! passes, or the mount is busy, the connection is aborted (all waiting requests answer ECONNABORTED) and the mount
//! detached, which cannot wait for anybody.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burstfs_types::{Code, Failure, InstanceId};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::dirs::TrustedDir;
use crate::error::{Context, NodeError};
use crate::log;
use crate::process;

const FUSE_DEVICE: &str = "/dev/fuse";
const FS_TYPE: &str = "fuse.burstfs";
/// How long an unmount may take by itself: the daemon only has to answer one request.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// A mount that this process made. Dropping it unmounts nothing.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
    instance: InstanceId,
    device: OwnedFd,
    /// The connection's number under `/sys/fs/fuse/connections`.
    connection: Option<String>,
}

impl Mount {
    /// Mounts `instance` at `<base>/<job id>`, which is made.
    pub(crate) fn new(base: &TrustedDir, instance: &InstanceId, uid: u32, gid: u32) -> Result<Mount, NodeError> {
        let name = instance.job_id().to_string();
        let path = base.path().join(&name);
        base.make(name.as_ref(), 0o700)?;
        let device = rustix::fs::open(FUSE_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {FUSE_DEVICE}"))?;
        // The mode and the owner of the root directory until the daemon answers for it: nobody else gets in.
        let options = format!(
            "fd={},rootmode=40700,user_id={uid},group_id={gid},allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).map_err(std::io::Error::from).context(|| "mount".to_owned())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(source(instance), &path, FS_TYPE, flags, Some(options.as_c_str()))
            .context(|| format!("mount {}", path.display()))?;
        let connection = find(&path, Some(instance)).and_then(|entry| entry.connection);
        Ok(Mount { path, instance: instance.clone(), device, connection })
    }

    /// The descriptor that serves it.
    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Unmounts and gives up the connection. What had to be done by force is returned as a warning.
    pub(crate) fn unmount(self) -> Option<Failure> {
        let warning = unmount(&self.path, &self.instance);
        self.end_connection();
        warning
    }

    /// Unmounts by force: nobody serves it.
    pub(crate) fn abort(self) {
        abort(&self.path, &self.instance);
        self.end_connection();
    }

    /// A mount namespace made while the mount was there keeps the file system alive after it is unmounted here. The
    /// connection is then aborted, so that neither the daemon nor anybody in there waits for the other.
    fn end_connection(&self) {
        if is_disconnected(self.device.as_fd()) {
            return;
        }
        let Some(connection) = &self.connection else { return };
        log::info!("the mount lives on in another mount namespace; its connection is aborted");
        // Without fusectl the connection ends with the daemon's descriptor.
        if let Err(error) = fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1") {
            log::info!("cannot abort connection {connection}: {error}");
        }
    }
}

fn is_disconnected(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&none)), Ok(1)) && fds[0].revents().contains(PollFlags::ERR)
}

fn source(instance: &InstanceId) -> String {
    format!("burstfs:{instance}")
}

/// Unmounts `instance` from `path`, in an orderly way if possible. Another run of the job may be mounted there by now.
pub(crate) fn unmount(path: &Path, instance: &InstanceId) -> Option<Failure> {
    find(path, Some(instance))?;
    let why = match unmount_in_child(path) {
        Ok(()) => return None,
        Err(Errno::BUSY) => format!("in use by {}", users(path)),
        Err(Errno::TIMEDOUT) => "burstfsd did not answer".to_owned(),
        Err(errno) => errno.to_string(),
    };
    abort(path, instance);
    let message = format!("{} could not be unmounted ({why}): it was aborted and detached", path.display());
    Some(Failure::new(Code::UnmountFailed, message))
}

/// Aborts the connection of `instance` at `path` and detaches the mount, until it is not mounted there.
pub(crate) fn abort(path: &Path, instance: &InstanceId) {
    // A second mount over the first is a matter of a crash between two steps; a few rounds are plenty.
    for _ in 0..8 {
        if find(path, Some(instance)).is_none() {
            return;
        }
        let force = rustix::mount::unmount(path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
        if force == Err(Errno::BUSY) {
            // Aborted, but still there.
            if let Err(errno) = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                log::warning!("cannot detach {}: {errno}", path.display());
            }
        }
    }
    log::error!("{} stays mounted", path.display());
}

/// umount2(2) in a child: it can be left behind when it waits for a daemon that does not answer.
fn unmount_in_child(path: &Path) -> Result<(), Errno> {
    let child = process::fork_with(|| match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error().clamp(1, 255),
    })?;
    match child.wait_for(UNMOUNT_PATIENCE)? {
        Some(process::End::Exited(0)) => Ok(()),
        Some(process::End::Exited(errno)) => Err(Errno::from_raw_os_error(errno)),
        Some(process::End::Killed(_)) => Err(Errno::INTR),
        None => {
            // The abort that follows wakes it; it is then reaped with this process.
            child.kill();
            Err(Errno::TIMEDOUT)
        }
    }
}

/// Who holds the mount, for the message: some process ids with their names.
fn users(path: &Path) -> String {
    let Some(device) = find(path, None).and_then(|entry| entry.connection).and_then(|minor| minor.parse::<u64>().ok())
    else {
        return "somebody".to_owned();
    };
    let mut seen = Vec::new();
    for pid in process::all_pids() {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        // readlink only: following the link would ask the daemon, and wait for it.
        let links = ["cwd", "root", "exe"].into_iter().map(|name| dir.join(name));
        let files = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let inside = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
        if links.chain(files).any(|link| inside(&link)) {
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            seen.push(format!("{} ({pid})", log::printable(&name, 16)));
        }
        if seen.len() == 4 {
            break;
        }
    }
    if seen.is_empty() { format!("somebody (device 0:{device})") } else { seen.join(", ") }
}

struct MountEntry {
    connection: Option<String>,
}

/// Whether a burstfs is mounted at `path`, in this mount namespace.
pub(crate) fn is_mounted(path: &Path) -> bool {
    find(path, None).is_some()
}

/// The topmost burstfs at `path`, if it is `instance`. From mountinfo, since asking the path would ask the daemon.
fn find(path: &Path, instance: Option<&InstanceId>) -> Option<MountEntry> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    find_in(&table, path, instance)
}

/// `36 35 0:45 / /burstfs/42 rw,nosuid - fuse.burstfs burstfs:vc.42.0 rw,user_id=...`
fn find_in(table: &[u8], path: &Path, instance: Option<&InstanceId>) -> Option<MountEntry> {
    let wanted = instance.map(source);
    let entry = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let mount_point = fields.nth(1)?;
        let mut kind_and_source = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source) = (kind_and_source.next()?, kind_and_source.next()?);
        if wanted.as_ref().is_some_and(|wanted| wanted.as_bytes() != source) {
            return None;
        }
        if kind != FS_TYPE.as_bytes() || unescape(mount_point) != path.as_os_str().as_bytes() {
            return None;
        }
        let minor = std::str::from_utf8(device).ok().and_then(|device| device.split_once(':'));
        Some(MountEntry { connection: minor.map(|(_, minor)| minor.to_owned()) })
    };
    table.split(|byte| *byte == b'\n').rev().find_map(entry)
}

/// Undoes mountinfo's `\040` and friends.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_our_own_mounts() {
        let table = b"36 35 0:45 / /burstfs/42 rw,nosuid shared:7 - fuse.burstfs burstfs:vc.42.0 rw\n\
                      37 35 0:46 / /burstfs/43 rw - tmpfs tmpfs rw\n\
                      38 35 0:47 / /odd\\040name rw - fuse.burstfs burstfs:vc.44.0 rw\n";
        assert_eq!(find_in(table, Path::new("/burstfs/42"), None).unwrap().connection.as_deref(), Some("45"));
        assert!(find_in(table, Path::new("/burstfs/43"), None).is_none());
        assert_eq!(find_in(table, Path::new("/odd name"), None).unwrap().connection.as_deref(), Some("47"));
        assert!(find_in(table, Path::new("/burstfs"), None).is_none());
        let at_42 =
            |instance: &str| find_in(table, Path::new("/burstfs/42"), Some(&instance.parse().unwrap())).is_some();
        assert!(at_42("vc.42.0") && !at_42("vc.42.1"));
    }
}

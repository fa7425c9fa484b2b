//! The cgroups of an instance: `burstfs/<node>.<instance>/daemon` and `.../supervisor` in each hierarchy that can be
//! written.
//!
//! They serve two ends: everything that `burstfsd` starts can be found and ended, and nothing of an instance lives in the
//! cgroup of slurmd, whose stop and whose memory limit are not the instance's. Under cgroup v2 there is one hierarchy;
//! under v1 the freezer, memory and systemd hierarchies are used. Where none can be written (a container), processes are
//! found by their session instead; that is said once in the log.
//!
//! The node's name is part of the group's: several virtual nodes may share one kernel.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::log;
use crate::process;

const BASE: &str = "burstfs";
/// Named hierarchies and controllers of v1 that are used.
const V1: [&str; 3] = ["name=systemd", "memory", "freezer"];
/// How often processes that keep forking are gone after where there is no `cgroup.kill`.
const KILL_ROUNDS: usize = 100;

/// The groups of one instance; empty where there are none.
#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Hierarchy {
    mount: PathBuf,
    /// Where this process was when it looked, below `mount`.
    own: PathBuf,
}

impl Hierarchy {
    fn base(&self) -> PathBuf {
        self.mount.join(BASE)
    }
}

impl Cgroups {
    /// The groups of that name, whether they are there or not.
    pub(crate) fn find(name: &str) -> Cgroups {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Cgroups { name: name.to_owned(), hierarchies: hierarchies(&mounts, &own) }
    }

    /// Makes them, and forgets the hierarchies where that is not possible.
    pub(crate) fn make(&mut self) {
        let name = &self.name;
        self.hierarchies.retain(|hierarchy| match make_in(hierarchy, name) {
            Ok(()) => true,
            Err(error) => {
                log::info!("no cgroup below {}: {error}", hierarchy.mount.display());
                false
            }
        });
        if self.hierarchies.is_empty() {
            log::info!("no cgroup can be written: processes are followed by their session");
        }
    }

    fn groups(&self, role: &'static str) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchies.iter().map(move |hierarchy| hierarchy.base().join(&self.name).join(role))
    }

    /// What a new daemon writes `0` to, to be in its groups.
    pub(crate) fn daemon_files(&self) -> Vec<PathBuf> {
        self.groups("daemon").map(|group| group.join("cgroup.procs")).collect()
    }

    /// Whether `pid` is in the daemon's group of some hierarchy, so that all that it starts is found there.
    pub(crate) fn holds(&self, pid: i32) -> bool {
        let place = format!("/{BASE}/{}/daemon", self.name);
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|groups| groups.lines().any(|line| line.ends_with(&place)))
    }

    /// Moves this process to the supervisor's groups.
    pub(crate) fn enter(&self) {
        for group in self.groups("supervisor") {
            if let Err(error) = fs::write(group.join("cgroup.procs"), "0") {
                log::info!("cannot enter {}: {error}", group.display());
            }
        }
    }

    /// Ends everything in the daemon's groups and waits for it; not for a process that the kernel does not let go, since a hung
    /// file system has it: it ends when it can.
    pub(crate) fn kill_daemon(&self) {
        for group in self.groups("daemon") {
            // Absent in v1, and there it cannot be created.
            let _ = fs::OpenOptions::new()
                .write(true)
                .open(group.join("cgroup.kill"))
                .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
            for _ in 0..KILL_ROUNDS {
                let members = members(&group);
                if members.is_empty() {
                    break;
                }
                if !process::end_all(&members) {
                    return;
                }
            }
        }
    }

    /// Removes the groups; this process goes back to where it came from if it is in one of them.
    pub(crate) fn remove(&self) {
        for hierarchy in &self.hierarchies {
            let group = hierarchy.base().join(&self.name);
            if !group.exists() {
                continue;
            }
            let home = hierarchy.mount.join(&hierarchy.own).join("cgroup.procs");
            if fs::read_to_string(group.join("supervisor/cgroup.procs")).is_ok_and(|pids| contains_self(&pids)) {
                let root = hierarchy.mount.join("cgroup.procs");
                if let Err(error) = fs::write(home, "0").or_else(|_| fs::write(root, "0")) {
                    log::info!("cannot leave {}: {error}", group.display());
                }
            }
            for directory in [group.join("daemon"), group.join("supervisor"), group.clone()] {
                if let Err(error) = remove_group(&directory) {
                    log::warning!("cannot remove {}: {error}", directory.display());
                }
            }
            // The last instance takes the common parent along.
            let _ = fs::remove_dir(hierarchy.base());
        }
    }
}

fn make_in(hierarchy: &Hierarchy, name: &str) -> io::Result<()> {
    let group = hierarchy.base().join(name);
    // Another instance's end may remove the common parent between two steps: try again.
    let mut attempts = 0;
    loop {
        let made = fs::create_dir_all(group.join("daemon")).and_then(|()| fs::create_dir_all(group.join("supervisor")));
        attempts += 1;
        match made {
            Err(error) if error.kind() == ErrorKind::NotFound && attempts < 10 => {}
            other => return other,
        }
    }
}

fn contains_self(pids: &str) -> bool {
    let own = std::process::id().to_string();
    pids.lines().any(|pid| pid == own)
}

/// Removes an empty group. A process leaves its group a moment after its pidfd says that it has ended, and nothing tells
/// when: so it is asked again, for at most a second.
fn remove_group(group: &Path) -> io::Result<()> {
    for _ in 0..1000 {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(1)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    Err(ErrorKind::ResourceBusy.into())
}

fn members(group: &Path) -> Vec<OwnedFd> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another pid namespace.
    let open = |pid: &str| {
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // A zombie is listed until its parent has waited for it.
        matches!(process::wait_readable(std::os::fd::AsFd::as_fd(&pidfd), Some(Duration::ZERO)), Ok(false))
            .then_some(pidfd)
    };
    pids.lines().filter_map(open).collect()
}

/// The hierarchies of mountinfo that may be used, each with this process's place in it.
fn hierarchies(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = mounts.lines().filter_map(|line| hierarchy(line, own)).collect();
    // One hierarchy may be mounted in several places.
    found.sort_by(|a, b| a.mount.cmp(&b.mount));
    found.dedup_by(|a, b| a.mount == b.mount);
    found
}

/// `33 32 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer` with `6:freezer:/slurm`.
fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let (root, mount) = (fields.nth(3)?, fields.next()?);
    let mut kind = after.split(' ');
    let (fs_type, options) = (kind.next()?, kind.nth(1)?);
    // A mount that shows more than this process's cgroup namespace belongs to somebody else.
    if root.starts_with("/..") {
        return None;
    }
    let own = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        Some((parts.nth(1)?, parts.next()?))
    });
    let (_, path) = match fs_type {
        "cgroup2" => own.clone().find(|(controllers, _)| controllers.is_empty())?,
        "cgroup" => {
            let wanted = options.split(',').find(|option| V1.contains(option))?;
            own.clone().find(|(controllers, _)| controllers.split(',').any(|one| one == wanted))?
        }
        _ => return None,
    };
    let own = Path::new(path).strip_prefix(root).unwrap_or(Path::new("")).to_owned();
    Some(Hierarchy { mount: PathBuf::from(mount), own })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy_at(mount: &str, own: &str) -> Hierarchy {
        Hierarchy { mount: mount.into(), own: own.into() }
    }

    #[test]
    fn finds_the_hierarchies_of_v1_and_v2() {
        let mounts = "24 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      33 32 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      34 32 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 32 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      36 32 0:31 /.. /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "9:name=systemd:/system.slice/slurmd.service\n6:freezer:/\n1:cpu,cpuacct:/\n0::/x\n";
        let expected = [
            hierarchy_at("/sys/fs/cgroup/freezer", ""),
            hierarchy_at("/sys/fs/cgroup/systemd", "system.slice/slurmd.service"),
        ];
        assert_eq!(hierarchies(mounts, own), expected);

        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/system.slice/slurmd.service\n";
        assert_eq!(hierarchies(mounts, own), [hierarchy_at("/sys/fs/cgroup", "system.slice/slurmd.service")]);
    }
}

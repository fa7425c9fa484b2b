//! Where things of an instance are on this node, and what is in them. Names only; the steps are elsewhere.
//!
//! ```text
//! <run_dir>/<instance>/    root, 0700: launch.json outcome.json daemon.json node.sock
//! <run_dir>/.lock          held while it is decided who supervises an instance
//! <nvme>/<instance>/       root, 0711: journal description.json
//! <nvme>/<instance>/data/  the job's user, 0700
//! ```
//! `launch.json` is all that a supervisor needs; who has it need not read the configuration, nor trust an environment.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use burstfs_node::description::InstanceDescription;
use burstfs_node::held::Held;
use burstfs_node::journal::{Journal, Standing};
use burstfs_node::outcome::Outcome;
use burstfs_types::{Code, Failure, InstanceId};
use rustix::fs::{FlockOperation, OFlags};
use serde::{Deserialize, Serialize};

use crate::dirs::TrustedDir;
use crate::error::{Context, NodeError};
use crate::process::Identity;
use crate::{mount, node_socket, remove};

const LAUNCH: &str = "launch.json";
const OUTCOME: &str = "outcome.json";
const DAEMON: &str = "daemon.json";
const DESCRIPTION: &str = "description.json";
const JOURNAL: &str = "journal";
const DATA: &str = "data";
const LOCK: &str = ".lock";

/// What the job and the site say about an instance on this node, checked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) description: InstanceDescription,
    /// The user's supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) nvme: PathBuf,
    pub(crate) mount_base: PathBuf,
    pub(crate) daemon: PathBuf,
    pub(crate) job_state: PathBuf,
    pub(crate) drain: DrainRules,
    /// The boot that it is for.
    pub(crate) boot_id: String,
}

/// What the site says about drains.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DrainRules {
    /// How long an epilog waits for what cannot be drained.
    pub(crate) retry_ms: u64,
    /// Whether it waits for no drain.
    pub(crate) returns_node: bool,
}

impl Launch {
    /// The name of the instance's cgroups.
    pub(crate) fn cgroup_name(&self) -> String {
        format!("{}.{}", self.description.node_name(), self.description.instance)
    }
}

/// The directory of run directories.
pub(crate) struct RunBase {
    dir: TrustedDir,
}

impl RunBase {
    pub(crate) fn open(path: &std::path::Path) -> Result<RunBase, NodeError> {
        Ok(RunBase { dir: TrustedDir::open_or_make(path)? })
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Held as long as the result lives. Short: nobody drains or waits for a daemon under it.
    pub(crate) fn lock(&self) -> Result<File, NodeError> {
        let file = self.dir.open_file(LOCK, OFlags::RDWR | OFlags::CREATE, 0o600)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).context(|| "lock the run directory".to_owned())?;
        Ok(file)
    }

    /// Every instance that has a run directory.
    pub(crate) fn instances(&self) -> Result<Vec<InstanceId>, NodeError> {
        Ok(parse_names(&self.dir.directories()?))
    }

    /// The run directory of an instance; `None` when there is none.
    pub(crate) fn find(&self, instance: &InstanceId) -> Result<Option<RunDir>, NodeError> {
        match self.dir.open_dir(&instance.to_string()) {
            Ok(dir) => Ok(Some(RunDir { dir })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn make(&self, instance: &InstanceId) -> Result<RunDir, NodeError> {
        self.dir.make(instance.to_string().as_ref(), 0o700)?;
        Ok(RunDir { dir: self.dir.open_dir(&instance.to_string())? })
    }

    /// Removes the run directory of an instance with what the helper puts there.
    pub(crate) fn remove(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let Some(run) = self.find(instance)? else { return Ok(()) };
        run.remove_all_but_outcome()?;
        run.dir.remove_file(OUTCOME)?;
        self.dir.remove_dir(&instance.to_string())
    }
}

/// One instance's run directory.
pub(crate) struct RunDir {
    dir: TrustedDir,
}

impl RunDir {
    pub(crate) fn dir(&self) -> &TrustedDir {
        &self.dir
    }

    pub(crate) fn listen(&self) -> Result<OwnedFd, NodeError> {
        node_socket::listen(&self.dir)
    }

    pub(crate) fn write_launch(&self, launch: &Launch) -> Result<(), NodeError> {
        self.dir.write_json(LAUNCH, launch, 0o600)
    }

    pub(crate) fn launch(&self) -> Result<Option<Launch>, NodeError> {
        self.dir.read_json(LAUNCH)
    }

    pub(crate) fn write_outcome(&self, outcome: &Outcome) -> Result<(), NodeError> {
        self.dir.write_json(OUTCOME, outcome, 0o600)
    }

    pub(crate) fn outcome(&self) -> Result<Option<Outcome>, NodeError> {
        self.dir.read_json(OUTCOME)
    }

    pub(crate) fn remove_outcome(&self) -> Result<(), NodeError> {
        self.dir.remove_file(OUTCOME)
    }

    pub(crate) fn write_daemon(&self, daemon: &Identity) -> Result<(), NodeError> {
        self.dir.write_json(DAEMON, daemon, 0o600)
    }

    pub(crate) fn daemon(&self) -> Result<Option<Identity>, NodeError> {
        self.dir.read_json(DAEMON)
    }

    /// Removes what only a supervisor needs.
    pub(crate) fn remove_all_but_outcome(&self) -> Result<(), NodeError> {
        for name in [node_socket::SOCKET, LAUNCH, DAEMON] {
            self.dir.remove_file(name)?;
            self.dir.remove_file(&format!("{name}.new"))?;
        }
        self.dir.remove_file(&format!("{OUTCOME}.new"))
    }
}

/// The node's NVMe.
pub(crate) struct Storage {
    dir: TrustedDir,
}

impl Storage {
    /// Fails with what a job is told when its node's NVMe is not there.
    pub(crate) fn open(path: &std::path::Path) -> Result<Storage, Failure> {
        let dir = TrustedDir::open(path).map_err(|error| Failure::new(Code::NvmeMissing, error.to_string()))?;
        Ok(Storage { dir })
    }

    pub(crate) fn available_bytes(&self) -> Result<u64, NodeError> {
        self.dir.available_bytes()
    }

    /// Every instance that has a directory.
    pub(crate) fn instances(&self) -> Result<Vec<InstanceId>, NodeError> {
        Ok(parse_names(&self.dir.directories()?))
    }

    /// The directory of an instance; `None` when there is none.
    pub(crate) fn find(&self, instance: &InstanceId) -> Result<Option<InstanceDir>, NodeError> {
        match self.dir.open_dir(&instance.to_string()) {
            Ok(dir) => Ok(Some(InstanceDir { dir })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the directory of an instance, with an empty journal.
    pub(crate) fn make(&self, instance: &InstanceId) -> Result<InstanceDir, NodeError> {
        self.dir.make(instance.to_string().as_ref(), 0o711)?;
        Ok(InstanceDir { dir: self.dir.open_dir(&instance.to_string())? })
    }

    /// Removes the data, then what told about it, last the directory. Can be done again at any point.
    pub(crate) fn remove(&self, instance: &InstanceId) -> Result<(), NodeError> {
        let Some(instance_dir) = self.find(instance)? else { return Ok(()) };
        let dir = &instance_dir.dir;
        remove::remove_tree(std::os::fd::AsFd::as_fd(dir), c"data")
            .context(|| format!("remove {}", dir.path().join(DATA).display()))?;
        for name in [DESCRIPTION, JOURNAL] {
            dir.remove_file(&format!("{name}.new"))?;
            dir.remove_file(name)?;
        }
        self.dir.remove_dir(&instance.to_string())
    }
}

/// One instance's directory on the NVMe.
pub(crate) struct InstanceDir {
    dir: TrustedDir,
}

impl InstanceDir {
    pub(crate) fn journal(&self) -> Result<Journal, NodeError> {
        Ok(Journal::open(self.dir.open_file(JOURNAL, OFlags::RDWR | OFlags::CREATE, 0o600)?)?)
    }

    /// What is known about the data. Data whose journal cannot be read, or is empty although the first step comes before
    /// the data, is kept: nobody can say that it is not needed.
    pub(crate) fn standing(&self) -> Result<Standing, NodeError> {
        let unreadable = |why: &str| Standing::Held(Held::unknown(why));
        match self.journal() {
            Err(NodeError::Journal(error)) => Ok(unreadable(&error.to_string())),
            Err(error) => Err(error),
            Ok(journal) if journal.steps().is_empty() && self.has_data()? => Ok(unreadable("its journal is empty")),
            Ok(journal) => Ok(journal.standing()),
        }
    }

    fn has_data(&self) -> Result<bool, NodeError> {
        Ok(self.dir.directories()?.iter().any(|name| name == DATA))
    }

    pub(crate) fn write_description(&self, description: &InstanceDescription) -> Result<(), NodeError> {
        self.dir.write_json(DESCRIPTION, description, 0o600)
    }

    pub(crate) fn description(&self) -> Result<Option<InstanceDescription>, NodeError> {
        self.dir.read_json(DESCRIPTION)
    }

    /// The user's directory itself; what is below is the user's.
    pub(crate) fn open_data(&self) -> Result<OwnedFd, NodeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, DATA, flags, rustix::fs::Mode::empty());
        opened.context(|| format!("open {}", self.dir.path().join(DATA).display()))
    }

    pub(crate) fn make_data(&self, uid: u32, gid: u32) -> Result<(), NodeError> {
        self.dir.make_for(DATA, 0o700, uid, gid)
    }
}

/// Where the data of an instance is, for its description.
pub(crate) fn data_path(nvme: &std::path::Path, instance: &InstanceId) -> PathBuf {
    nvme.join(instance.to_string()).join(DATA)
}

/// Removes the mount point of a job, when nothing is mounted there.
pub(crate) fn remove_mount_point(base: &TrustedDir, instance: &InstanceId) -> Result<(), NodeError> {
    let name = instance.job_id().to_string();
    if mount::is_mounted(&base.path().join(&name)) {
        return Ok(());
    }
    base.remove_dir(&name)
}

fn parse_names(names: &[String]) -> Vec<InstanceId> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

//! The note in the user's home that says where an instance is that outlives its job: Slurm forgets a job's nodes, and the
//! commands must find them. Pure: what it says and where it is; `burstfsd` writes and removes it, the commands read it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of [`Note`] that this build writes and reads.
pub const NOTE_VERSION: u32 = 1;

/// Below the user's home.
const DIRECTORY: &str = ".burstfs/instances";

/// An instance that outlives its job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// [`NOTE_VERSION`].
    pub version: u32,
    /// `<cluster>.<job id>.<restart count>`.
    pub instance: String,
    /// The value of `name`.
    pub name: String,
    /// The job's user.
    pub user: String,
    /// All hosts, by node index.
    pub hosts: Vec<String>,
    /// Bytes asked for.
    pub capacity: u64,
    /// Until when data is kept that could not be drained: seconds since the epoch. `None` while the first drain goes on.
    pub kept_until: Option<u64>,
    /// Where the receipt is, or will be.
    pub receipt: String,
    /// Why the instance is still there.
    pub reason: String,
}

impl Note {
    /// Where the notes of the user with this home are.
    pub fn directory(home: &Path) -> PathBuf {
        home.join(DIRECTORY)
    }

    /// Where the note of `instance` is.
    pub fn path(home: &Path, instance: &str) -> PathBuf {
        Note::directory(home).join(format!("{instance}.json"))
    }
}

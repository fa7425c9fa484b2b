//! Groups of hard links that this node has begun to copy.
//!
//! All names of a group are copied on one node (its data's, or one chosen by a hash), one at a time. A restarted daemon
//! has forgotten the groups: later names are then copied, and counted as such.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burstfs_types::Ino;

use crate::item::{Dir, EntryRecord};

/// A source inode: device (0 in the instance) and number.
pub(crate) type GroupKey = (u64, u64);

/// The first name of a group that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    /// In the instance, when that is the target.
    pub(crate) ino: Option<Ino>,
    /// At the PFS, when that is.
    pub(crate) dir: Dir,
    /// Its name there.
    pub(crate) name: Vec<u8>,
    /// Its record: later names share size, time and checksum.
    pub(crate) record: EntryRecord,
}

/// One group; locked while one of its names is copied.
pub(crate) type Group = Arc<tokio::sync::Mutex<Option<Made>>>;

#[derive(Default)]
pub(crate) struct Links(Mutex<HashMap<GroupKey, (Group, u32)>>);

impl Links {
    /// The group of an inode.
    pub(crate) fn group(&self, key: GroupKey) -> Group {
        self.groups().entry(key).or_default().0.clone()
    }

    /// One more name of the group is done; when all `nlink` are, the group is forgotten.
    pub(crate) fn done(&self, key: GroupKey, nlink: u32) {
        let mut groups = self.groups();
        if let Some((_, done)) = groups.get_mut(&key) {
            *done += 1;
            if *done >= nlink {
                groups.remove(&key);
            }
        }
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<GroupKey, (Group, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

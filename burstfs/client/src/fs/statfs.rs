//! Space of the whole instance.

use burstfs_proto::{mds, oss};
use futures_util::future::join_all;

use super::ClientFs;
use super::error::FsError;

/// The instance's figures: the sum over its targets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FsStatfs {
    /// Capacity of the instance, bytes.
    pub capacity: u64,
    /// Used by objects, bytes.
    pub used: u64,
    /// What can still be written, bytes.
    pub available: u64,
    /// Inodes that exist.
    pub inodes_used: u64,
}

impl ClientFs {
    /// `statfs(2)`: asks every target but those that are lost, which hold nothing any more. One that does not answer is an
    /// error: a sum without it would be a lie.
    pub async fn statfs(&self) -> Result<FsStatfs, FsError> {
        let mut sum = FsStatfs::default();
        for ost in join_all(self.targets.osts().map(|ost| self.targets.oss(ost, oss::Statfs))).await {
            let Some(ost) = unless_lost(ost)? else { continue };
            sum.capacity = sum.capacity.saturating_add(ost.capacity);
            sum.used = sum.used.saturating_add(ost.used);
            sum.available = sum.available.saturating_add(ost.available);
        }
        for mdt in join_all(self.targets.mdts().map(|mdt| self.targets.mds(mdt, mds::Statfs))).await {
            let Some(mdt) = unless_lost(mdt)? else { continue };
            sum.inodes_used = sum.inodes_used.saturating_add(mdt.inodes_used);
        }
        Ok(sum)
    }
}

fn unless_lost<T>(answer: Result<T, FsError>) -> Result<Option<T>, FsError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_of_lost_node() => Ok(None),
        Err(error) => Err(error),
    }
}

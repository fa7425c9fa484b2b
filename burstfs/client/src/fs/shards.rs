//! Directories that are spread over several MDTs: who is asked for a name, and what all shards know together.
//!
//! Owns what this client remembers of such directories. That may be old: a name that has moved since is answered with EREMCHG by the
//! shard that had it, nothing has happened then, and the head says how it is now. So what is remembered is never wrong for
//! longer than one answer, and a directory of which nothing is remembered is asked itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use burstfs_placement::name_hash;
use burstfs_proto::mds::GetAttr;
use burstfs_types::{Attr, Errno, Ino, Name, Shards};
use futures_util::future::join_all;

use super::ClientFs;
use super::error::FsError;
use super::targets::MdsRpc;

/// Spread directories that are remembered. There are few in any job.
const REMEMBERED_MAX: usize = 10_000;

/// What is remembered of spread directories.
#[derive(Default)]
pub(super) struct Spread {
    known: RwLock<HashMap<Ino, Arc<Shards>>>,
    /// How many, so that nobody takes the lock while there are none.
    count: AtomicUsize,
}

impl Spread {
    /// The shards of `directory`, as far as is known; `None` as well for one that is not spread.
    pub(super) fn of(&self, directory: Ino) -> Option<Arc<Shards>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&directory).cloned()
    }

    /// Remembers how a directory is spread, unless more is known already.
    pub(super) fn learn(&self, shards: &Shards) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = known.get(&shards.head()).is_none_or(|old| old.moved_below() < shards.moved_below());
        if !is_news {
            return;
        }
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(shards.head(), Arc::new(shards.clone()));
        self.count.store(known.len(), Ordering::Release);
    }

    /// The inode that holds `name` of `directory`.
    fn holder(&self, directory: Ino, name: &Name) -> Ino {
        self.of(directory).map_or(directory, |shards| shards.holder(name_hash(name)))
    }
}

impl ClientFs {
    /// Sends a request about `name` in `directory` to the MDT that holds it; `request` is given the inode to name as the directory.
    pub(super) async fn at_name<R: MdsRpc>(
        &self,
        directory: Ino,
        name: &Name,
        request: impl Fn(Ino) -> R,
    ) -> Result<R::Reply, FsError> {
        loop {
            let holder = self.spread.holder(directory, name);
            match self.targets.mds(holder.mdt(), request(holder)).await {
                Err(error) if error.errno() == Errno::EREMCHG => self.learn_anew(directory).await?,
                result => return result,
            }
        }
    }

    /// The same for two names, of which the first says whom to ask. Where that one says that MDT 0 does it, it is asked.
    pub(super) async fn at_names<R: MdsRpc>(
        &self,
        (from, name): (Ino, &Name),
        (to, new_name): (Ino, &Name),
        request: impl Fn(Ino, Ino) -> R,
    ) -> Result<R::Reply, FsError> {
        loop {
            let (holder, new_holder) = (self.spread.holder(from, name), self.spread.holder(to, new_name));
            let result = match self.targets.mds(holder.mdt(), request(holder, new_holder)).await {
                Err(error) if error.errno() == Errno::EREMOTE => {
                    self.targets.mds(Ino::ROOT.mdt(), request(holder, new_holder)).await
                }
                result => result,
            };
            match result {
                Err(error) if error.errno() == Errno::EREMCHG => {
                    self.learn_anew(from).await?;
                    self.learn_anew(to).await?;
                }
                result => return result,
            }
        }
    }

    /// Asks a directory's head how its names are spread now. ENOENT when the directory is gone.
    async fn learn_anew(&self, directory: Ino) -> Result<(), FsError> {
        match self.targets.mds(directory.mdt(), GetAttr { ino: directory }).await {
            Ok(attr) => {
                if let Some(shards) = &attr.shards {
                    self.spread.learn(shards);
                }
                Ok(())
            }
            Err(error) if error.errno() == Errno::ESTALE => {
                Err(FsError::Refused { rpc: "a name of a directory that is gone", errno: Errno::ENOENT })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a directory is spread over several MDTs, and nothing of it on the move.
    pub async fn is_spread(&self, directory: Ino) -> Result<bool, FsError> {
        let attr = self.targets.mds(directory.mdt(), GetAttr { ino: directory }).await?;
        Ok(attr.shards.is_some_and(|shards| !shards.is_moving()))
    }

    /// Adds to a spread directory's attributes what its shards know: links to directories, and when names changed. Shards on nodes
    /// that are lost are left out.
    pub(super) async fn with_shards(&self, mut attr: Attr) -> Result<Attr, FsError> {
        let Some(shards) = attr.shards.take() else { return Ok(attr) };
        self.spread.learn(&shards);
        let ask = |ino: &Ino| self.targets.mds(ino.mdt(), GetAttr { ino: *ino });
        for shard in join_all(shards.others().iter().map(ask)).await {
            match shard {
                Ok(shard) => {
                    // Two are there without any directory.
                    attr.nlink = attr.nlink.saturating_add(shard.nlink.saturating_sub(2));
                    attr.mtime = attr.mtime.max(shard.mtime);
                    attr.ctime = attr.ctime.max(shard.ctime);
                }
                Err(error) if error.is_of_lost_node() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(attr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_knowledge_stays() {
        let ino = |n| Ino::from_raw(n).unwrap();
        let name = Name::new("a").unwrap();
        let spread = Spread::default();
        assert!(spread.of(ino(2)).is_none() && spread.holder(ino(2), &name) == ino(2));
        let begun = Shards::new(vec![ino(1), ino(2)], 0).unwrap();
        let done = begun.moved_to(begun.moved_in_the_end()).unwrap();
        for shards in [&begun, &done, &begun] {
            spread.learn(shards);
        }
        assert_eq!(*spread.of(ino(2)).unwrap(), done);
        assert_eq!(spread.holder(ino(2), &name), done.holder(name_hash(&name)));
        assert!(spread.of(ino(1)).is_none());
    }
}

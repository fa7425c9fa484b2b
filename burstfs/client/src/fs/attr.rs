//! Attributes: the MDT's, merged with what the objects know.

use std::collections::BTreeMap;
use std::time::Duration;

use burstfs_placement::{file_size, object_size};
use burstfs_proto::leases::LeasedGetAttr;
use burstfs_proto::mds::{ChangeState, Close, EndChange, GetAttr, GetChange, SetAttr, SetTime};
use burstfs_proto::oss::{Glimpse, ObjectAttr, SetTimes, Truncate};
use burstfs_types::{Attr, FileKind, Ino, Layout, ObjectId, OstIndex, StripeIndex, Timestamp, limits};
use futures_util::future::{join_all, try_join_all};

use super::ClientFs;
use super::error::FsError;
use super::file::has_set_id;

/// The most objects of one glimpse; the protocol's limit.
const GLIMPSE_OBJECTS_MAX: usize = 4_096;

/// What [`ClientFs::setattr`] shall change: whatever is `Some`, and the set-id bits if they shall go.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of a regular file, bytes.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// Clears set-id bits as a write by an ordinary user does.
    pub kill_set_id: bool,
}

impl AttrChange {
    /// What of it is the MDT's business: also that a file's objects are about to change.
    fn for_mds(&self, ino: Ino) -> SetAttr {
        SetAttr {
            ino,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            atime: self.atime,
            mtime: self.mtime,
            kill_set_id: self.kill_set_id,
            opens: self.size.is_some() || self.atime.is_some() || self.mtime.is_some(),
        }
    }
}

impl ClientFs {
    /// `stat(2)`: what every node would be told now.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        let attr = self.targets.mds(ino.mdt(), GetAttr { ino }).await?;
        self.with_objects(attr).await
    }

    /// The same for the kernel, with the time for which it may keep them.
    pub async fn leased_getattr(&self, ino: Ino) -> Result<(Attr, Duration), FsError> {
        let ticket = self.leases.ticket();
        let leased = self.targets.mds(ino.mdt(), LeasedGetAttr { ino }).await?;
        // The objects are asked when the lease is there: who opens the file to write it has to wait for the lease's end.
        let attr = self.with_objects(leased.attr).await?;
        let valid = self.leases.keep_attributes(ticket, ino, leased.has_attributes);
        Ok((attr, valid))
    }

    /// `chmod(2)`, `chown(2)`, `utimensat(2)`, `truncate(2)`.
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<Attr, FsError> {
        check_size(change.size.unwrap_or(0))?;
        let request = change.for_mds(ino);
        let opens = request.opens;
        let attr = self.told(self.targets.mds(ino.mdt(), request).await, &[ino], &[]).await?;
        if has_set_id(attr.mode) {
            self.watch.set(ino);
        }
        let is_open = opens && attr.kind == FileKind::Regular;
        let changed = self.set_objects(attr, &change).await;
        if is_open {
            // Nobody keeps attributes meanwhile; if this fails nobody does until this client is evicted.
            let _ = self.targets.mds(ino.mdt(), Close { ino }).await;
        }
        self.told(changed, &[ino], &[]).await
    }

    /// Changes what the objects have of it.
    async fn set_objects(&self, attr: Attr, change: &AttrChange) -> Result<Attr, FsError> {
        let attr = match change.size {
            Some(size) => self.truncate(attr, size).await?,
            None => attr,
        };
        if let Some(layout) = &attr.layout {
            self.set_object_times(&attr, layout, change).await?;
        }
        self.with_objects(attr).await
    }

    /// What the MDT knows of changes to a file or link since it was last drained.
    pub async fn change(&self, ino: Ino) -> Result<ChangeState, FsError> {
        self.targets.mds(ino.mdt(), GetChange { ino }).await
    }

    /// Says that a file was drained as it was when its change had this number; whether it counts as drained now.
    pub async fn end_change(&self, ino: Ino, number: Option<u64>) -> Result<bool, FsError> {
        self.targets.mds(ino.mdt(), EndChange { ino, number }).await
    }

    /// Makes the file exactly `size` bytes long: each object holds its part of them, sparse where nothing was written.
    pub(super) async fn truncate_objects(&self, ino: Ino, layout: &Layout, size: u64) -> Result<(), FsError> {
        let truncate = |(stripe, ost): (StripeIndex, OstIndex)| {
            let request = Truncate { object: ObjectId { ino, stripe }, size: object_size(layout, stripe, size) };
            self.targets.oss(ost, request)
        };
        if let ([ost], stripe) = (layout.osts(), StripeIndex::new(0)) {
            return truncate((stripe, *ost)).await;
        }
        try_join_all(layout.stripes().map(truncate)).await.map(drop)
    }

    /// Gives the objects the times that the MDT has just been given, since objects' times count where there are objects.
    async fn set_object_times(&self, attr: &Attr, layout: &Layout, change: &AttrChange) -> Result<(), FsError> {
        // Truncation has just set the objects' mtime to now, by the clock that all later writes go by.
        let by_truncation = change.size.is_some() && change.mtime == Some(SetTime::Now);
        let mtime = change.mtime.filter(|_| !by_truncation).map(|time| resolve(time, attr.mtime));
        let atime = change.atime.map(|time| resolve(time, attr.atime));
        if mtime.is_none() && atime.is_none() {
            return Ok(());
        }
        let set = layout.stripes().map(|(stripe, ost)| {
            let object = ObjectId { ino: attr.ino, stripe };
            self.targets.oss(ost, SetTimes { object, atime, mtime })
        });
        try_join_all(set).await.map(drop)
    }

    /// Merges into a regular file's attributes a glimpse of the objects, and into a directory's what its shards know.
    pub(super) async fn with_objects(&self, mut attr: Attr) -> Result<Attr, FsError> {
        let Some(layout) = attr.layout.clone() else { return self.with_shards(attr).await };
        let objects = self.glimpse(attr.ino, &layout).await?;
        merge(&mut attr, &layout, &objects);
        Ok(attr)
    }

    /// What the OSTs know of a file's objects.
    pub(super) async fn glimpse(&self, ino: Ino, layout: &Layout) -> Result<Vec<(StripeIndex, ObjectAttr)>, FsError> {
        let asked = layout.stripes().map(|(stripe, ost)| (ost, ObjectId { ino, stripe }));
        let known = self.glimpse_all(asked).await?;
        Ok(known.into_iter().map(|(object, attr)| (object.stripe, attr)).collect())
    }

    /// Asks each OST once (or once per 4,096 objects) for all of its objects; those that are not there are left out.
    pub(super) async fn glimpse_all(
        &self,
        objects: impl Iterator<Item = (OstIndex, ObjectId)>,
    ) -> Result<Vec<(ObjectId, ObjectAttr)>, FsError> {
        let known = try_join_all(self.glimpses(objects)).await?;
        Ok(known.into_iter().flatten().collect())
    }

    /// The same, without the objects of nodes that are lost.
    pub(super) async fn glimpse_reachable(
        &self,
        objects: impl Iterator<Item = (OstIndex, ObjectId)>,
    ) -> Result<Vec<(ObjectId, ObjectAttr)>, FsError> {
        let known = join_all(self.glimpses(objects)).await;
        let known = known.into_iter().filter(|known| !known.as_ref().is_err_and(FsError::is_of_lost_node));
        Ok(known.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn glimpses(
        &self,
        objects: impl Iterator<Item = (OstIndex, ObjectId)>,
    ) -> Vec<impl Future<Output = Result<Vec<(ObjectId, ObjectAttr)>, FsError>>> {
        let mut by_ost: BTreeMap<OstIndex, Vec<ObjectId>> = BTreeMap::new();
        for (ost, object) in objects {
            by_ost.entry(ost).or_default().push(object);
        }
        let requests = by_ost.iter().flat_map(|(ost, objects)| {
            objects.chunks(GLIMPSE_OBJECTS_MAX).map(|chunk| self.glimpse_one(*ost, chunk.to_vec()))
        });
        requests.collect()
    }

    async fn glimpse_one(&self, ost: OstIndex, objects: Vec<ObjectId>) -> Result<Vec<(ObjectId, ObjectAttr)>, FsError> {
        let known = self.targets.oss(ost, Glimpse { objects: objects.clone() }).await?;
        if known.len() != objects.len() {
            return Err(FsError::WrongReply { rpc: "Glimpse" });
        }
        Ok(objects.into_iter().zip(known).filter_map(|(object, attr)| Some((object, attr?))).collect())
    }
}

/// Puts what the objects know over what the MDT knows.
pub(super) fn merge(attr: &mut Attr, layout: &Layout, objects: &[(StripeIndex, ObjectAttr)]) {
    let latest = |time: fn(&ObjectAttr) -> Timestamp| objects.iter().map(|(_, object)| time(object)).max();
    let (Some(atime), Some(mtime), Some(ctime)) =
        (latest(|object| object.atime), latest(|object| object.mtime), latest(|object| object.ctime))
    else {
        return;
    };
    attr.size = file_size(layout, objects.iter().map(|(stripe, object)| (*stripe, object.size)));
    attr.blocks = objects.iter().map(|(_, object)| object.blocks).sum();
    attr.atime = atime;
    attr.mtime = mtime;
    attr.ctime = attr.ctime.max(ctime);
}

/// Refuses what no file may hold.
pub(super) fn check_size(end: u64) -> Result<(), FsError> {
    if end > limits::FILE_SIZE_MAX_BYTES { Err(FsError::TooLarge { end }) } else { Ok(()) }
}

/// The time that was set, where `now` is what the MDT took for it.
fn resolve(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::FileKind;

    use super::*;

    fn attr() -> Attr {
        let time = |secs| Timestamp { secs, nanos: 0 };
        Attr {
            ino: Ino::ROOT,
            kind: FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            atime: time(10),
            mtime: time(10),
            ctime: time(30),
            layout: Some(Layout::new(1 << 16, vec![OstIndex::new(0), OstIndex::new(1)]).unwrap()),
            shards: None,
        }
    }

    fn object(size: u64, secs: i64) -> ObjectAttr {
        let time = Timestamp { secs, nanos: 5 };
        ObjectAttr { size, blocks: 8, atime: time, mtime: time, ctime: time }
    }

    #[test]
    fn a_file_without_objects_has_the_mdts_attributes() {
        let (mut merged, layout) = (attr(), attr().layout.unwrap());
        merge(&mut merged, &layout, &[]);
        assert_eq!(merged, attr());
    }

    #[test]
    fn objects_know_better() {
        let (mut merged, layout) = (attr(), attr().layout.unwrap());
        merge(&mut merged, &layout, &[(StripeIndex::new(0), object(7, 3)), (StripeIndex::new(1), object(2, 4))]);
        assert_eq!((merged.size, merged.blocks), ((1 << 16) + 2, 16));
        assert_eq!(merged.mtime, Timestamp { secs: 4, nanos: 5 });
        assert_eq!(merged.ctime, Timestamp { secs: 30, nanos: 0 });
    }
}

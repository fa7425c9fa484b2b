//! What an operation over several MDTs consists of.
//!
//! Owns the rules of those operations: which steps, on which MDT, and what is refused. Reads without holding anything; what it
//! has read is part of the steps, whose check fails when it has changed.

use std::collections::BTreeMap;

use burstfs_placement::directory_home;
use burstfs_proto::Answer;
use burstfs_proto::mds::{
    Becomes, Change, DirectoryPlace, Link, Looked, MdsReply, MdsRequest, Mkdir, Named, NewDirectory, PeerLook,
    PeerParent, RemoveXattr, Rename, RenameMode, Rmdir, SetXattr, Step, Unlink, XattrMode,
};
use burstfs_types::{Attr, Errno, FileKind, Ino, MdtIndex, NO_ACL, Name};

use super::coordinator::answer_of;
use crate::mdt::{Mdt, errno_of};
use crate::namespace::S_ISGID;
use crate::ops::acl;
use crate::ops::rename::check_replaceable;

/// Deeper than any tree that can be made by naming paths from one directory to the next in a job's time.
const DEPTH_MAX: u32 = 1 << 20;

/// The parts of a transaction, by MDT.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    pub(super) parts: BTreeMap<MdtIndex, Vec<Step>>,
}

impl Plan {
    /// `mdt` has to take this step, too.
    pub(crate) fn step(&mut self, mdt: MdtIndex, step: Step) {
        self.parts.entry(mdt).or_default().push(step);
    }

    /// The inodes of a directory go.
    fn remove_directory(&mut self, ino: Ino, shards: &[Ino]) {
        self.step(ino.mdt(), Step::RemoveDirectory { ino, shards: shards.to_vec() });
        for shard in shards {
            self.step(shard.mdt(), Step::RemoveDirectory { ino: *shard, shards: Vec::new() });
        }
    }

    /// A directory and all its shards change.
    fn change(&mut self, change: Change, shards: &[Ino]) {
        for shard in shards {
            self.step(shard.mdt(), Step::Change { change: change.of(*shard), shards: Vec::new() });
        }
        self.step(change.ino().mdt(), Step::Change { change, shards: shards.to_vec() });
    }

    fn entry(&mut self, (parent, name): (Ino, &Name), was: Option<Ino>, becomes: Becomes) {
        self.step(parent.mdt(), Step::Entry { parent, name: name.clone(), was, becomes });
    }
}

/// The client's answer; `attr` is what a participant made or changed.
pub(super) fn reply(request: &MdsRequest, attr: Option<Attr>) -> Result<MdsReply, Errno> {
    Ok(match request {
        MdsRequest::Mkdir(_) => MdsReply::Mkdir(attr.ok_or(Errno::EPROTO)?),
        MdsRequest::Link(_) => MdsReply::Link(attr.ok_or(Errno::EPROTO)?),
        MdsRequest::Rmdir(_) => MdsReply::Rmdir(()),
        MdsRequest::Unlink(_) => MdsReply::Unlink(()),
        MdsRequest::Rename(_) => MdsReply::Rename(()),
        MdsRequest::SetAttr(_) => MdsReply::SetAttr(attr.ok_or(Errno::EPROTO)?),
        MdsRequest::SetXattr(_) => MdsReply::SetXattr(()),
        MdsRequest::RemoveXattr(_) => MdsReply::RemoveXattr(()),
        MdsRequest::SetLayout(_) => MdsReply::SetLayout(()),
        _ => return Err(Errno::EPROTO),
    })
}

/// A list without entries is none.
fn removal(it: &RemoveXattr) -> Change {
    let (name, value) = (it.name.clone(), NO_ACL.to_vec());
    Change::Xattr(SetXattr { ino: it.ino, name, value, mode: XattrMode::Any, kill_set_gid: false })
}

impl Mdt {
    /// The steps of `request`, with the rename lock where they need it. `is_again` after a plan that was overtaken: it may have been
    /// made for a directory that has shards, which is not asked at first.
    pub(super) async fn plan(
        &self,
        request: &MdsRequest,
        is_again: bool,
    ) -> Result<(Plan, Option<RenameLock<'_>>), Errno> {
        match request {
            MdsRequest::Mkdir(it) => Ok((self.plan_mkdir(it).await?, None)),
            MdsRequest::Rmdir(it) => Ok((self.plan_rmdir(it, is_again).await?, None)),
            MdsRequest::Unlink(it) => Ok((self.plan_unlink(it).await?, None)),
            MdsRequest::Link(it) => Ok((self.plan_link(it).await?, None)),
            MdsRequest::Rename(it) => self.plan_rename(it, is_again).await,
            MdsRequest::SetAttr(it) => Ok((self.plan_change(Change::Attr(it.clone())).await?, None)),
            MdsRequest::SetXattr(it) => Ok((self.plan_change(Change::Xattr(it.clone())).await?, None)),
            MdsRequest::RemoveXattr(it) => Ok((self.plan_change(removal(it)).await?, None)),
            MdsRequest::SetLayout(it) => Ok((self.plan_change(Change::Layout(it.clone())).await?, None)),
            // No other operation asks for a transaction.
            _ => Err(Errno::EPROTO),
        }
    }

    async fn plan_mkdir(&self, it: &Mkdir) -> Result<Plan, Errno> {
        if self.look(it.parent, &it.name).await?.named.is_some() {
            return Err(Errno::EEXIST);
        }
        let new = self.with_namespace(|ns| {
            let parent = ns.directory(it.parent)?;
            let inherited = acl::inherit(ns, &parent, true, it.mode, it.umask)?;
            let (mode, gid) = (inherited.mode | (parent.inode.mode & S_ISGID), parent.group_for(it.gid));
            let (layout, xattrs) = (parent.layout.inherited(), inherited.xattrs);
            Ok(NewDirectory { mode, uid: it.uid, gid, parent: parent.head(), layout, xattrs })
        });
        let new = new.map_err(|error| errno_of(&error))?;
        let mut plan = Plan::default();
        plan.step(directory_home(it.parent, &it.name, self.config.mdts), Step::MakeDirectory(new));
        plan.entry((it.parent, &it.name), None, Becomes::Answered);
        Ok(plan)
    }

    async fn plan_rmdir(&self, it: &Rmdir, is_again: bool) -> Result<Plan, Errno> {
        let named = self.look(it.parent, &it.name).await?.named.ok_or(Errno::ENOENT)?;
        if named.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let mut plan = Plan::default();
        plan.entry((it.parent, &it.name), Some(named.ino), Becomes::Nothing);
        plan.remove_directory(named.ino, &self.shards_of(named.ino, is_again).await?);
        Ok(plan)
    }

    async fn plan_unlink(&self, it: &Unlink) -> Result<Plan, Errno> {
        let named = self.look(it.parent, &it.name).await?.named.ok_or(Errno::ENOENT)?;
        if named.kind == FileKind::Directory {
            return Err(Errno::EISDIR);
        }
        let mut plan = Plan::default();
        plan.entry((it.parent, &it.name), Some(named.ino), Becomes::Nothing);
        plan.step(named.ino.mdt(), Step::DropName { ino: named.ino });
        Ok(plan)
    }

    async fn plan_link(&self, it: &Link) -> Result<Plan, Errno> {
        if self.look(it.new_parent, &it.new_name).await?.named.is_some() {
            return Err(Errno::EEXIST);
        }
        let mut plan = Plan::default();
        plan.step(it.ino.mdt(), Step::AddName { ino: it.ino });
        plan.entry((it.new_parent, &it.new_name), None, Becomes::Answered);
        Ok(plan)
    }

    async fn plan_rename(&self, it: &Rename, is_again: bool) -> Result<(Plan, Option<RenameLock<'_>>), Errno> {
        let old = self.look(it.parent, &it.name).await?;
        let new = self.look(it.new_parent, &it.new_name).await?;
        let (source, target) = (old.named.ok_or(Errno::ENOENT)?, new.named);
        let mut plan = Plan::default();
        match (it.mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            // Two names of one inode, or one name: nothing to do (`rename(2)`).
            (_, Some(target)) if target.ino == source.ino => return Ok((plan, None)),
            (RenameMode::Replace, Some(target)) => check_replaceable(source.kind, target.kind)?,
            (RenameMode::Exchange, Some(_)) | (_, None) => {}
        }
        let lock = self.keep_the_tree(it.mode, (old.directory, source), (new.directory, target)).await?;
        let is_exchange = it.mode == RenameMode::Exchange;
        let back = target.filter(|_| is_exchange).map_or(Becomes::Nothing, Becomes::Inode);
        plan.entry((it.parent, &it.name), Some(source.ino), back);
        plan.entry((it.new_parent, &it.new_name), target.map(|target| target.ino), Becomes::Inode(source));
        plan.step(source.ino.mdt(), Step::Renamed { ino: source.ino, parent: new.directory });
        if let Some(Named { ino, kind }) = target {
            match kind {
                _ if is_exchange => plan.step(ino.mdt(), Step::Renamed { ino, parent: old.directory }),
                FileKind::Directory => plan.remove_directory(ino, &self.shards_of(ino, is_again).await?),
                _ => plan.step(ino.mdt(), Step::DropName { ino }),
            }
        }
        Ok((plan, lock))
    }

    /// Takes the rename lock if a directory gets another parent, and refuses what would then make a cycle. What was read
    /// before is checked again when it is promised.
    async fn keep_the_tree(
        &self,
        mode: RenameMode,
        (parent, source): (Ino, Named),
        (new_parent, target): (Ino, Option<Named>),
    ) -> Result<Option<RenameLock<'_>>, Errno> {
        let is_directory = |named: &Named| named.kind == FileKind::Directory;
        let exchanged = target.filter(|_| mode == RenameMode::Exchange);
        let moves = is_directory(&source) || exchanged.is_some_and(|target| is_directory(&target));
        if parent == new_parent || !moves {
            return Ok(None);
        }
        if self.index() != Ino::ROOT.mdt() {
            return Err(Errno::EREMOTE);
        }
        let lock = RenameLock { _held: self.txns.renames.lock().await };
        if is_directory(&source) && self.is_within(new_parent, source.ino).await? {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = exchanged.filter(is_directory)
            && self.is_within(parent, target.ino).await?
        {
            return Err(Errno::EINVAL);
        }
        Ok(Some(lock))
    }

    /// Whether `ino` is `directory`, or somewhere below it.
    async fn is_within(&self, mut ino: Ino, directory: Ino) -> Result<bool, Errno> {
        for _ in 0..DEPTH_MAX {
            if ino == directory || ino == Ino::ROOT {
                return Ok(ino == directory);
            }
            ino = match self.parent_of(ino).await {
                // Removed meanwhile: nothing can be renamed into it.
                Err(Errno::ESTALE) => return Err(Errno::ENOENT),
                parent => parent?,
            };
        }
        tracing::error!(%ino, "is {DEPTH_MAX} directories below the root, or in a cycle");
        Err(Errno::ELOOP)
    }

    async fn plan_change(&self, change: Change) -> Result<Plan, Errno> {
        let shards = self.place_of(change.ino()).await?.shards;
        let mut plan = Plan::default();
        plan.change(change, &shards);
        Ok(plan)
    }

    /// The shards of a directory besides its head. Most have none: where that would have to be asked of another MDT it is
    /// believed until a plan fails.
    async fn shards_of(&self, ino: Ino, is_again: bool) -> Result<Vec<Ino>, Errno> {
        if ino.mdt() != self.index() && !is_again {
            return Ok(Vec::new());
        }
        match self.place_of(ino).await {
            // Removed meanwhile, and so will the name be when it is looked at again.
            Err(Errno::ESTALE) => Ok(Vec::new()),
            place => Ok(place?.shards),
        }
    }

    /// What `name` in `parent`, on whichever MDT, stands for.
    async fn look(&self, parent: Ino, name: &Name) -> Result<Looked, Errno> {
        let request = PeerLook { parent, name: name.clone() };
        answer_of(self.ask_patiently(parent.mdt(), &request.into()).await?).map(|Answer::<PeerLook>(looked)| looked)
    }

    async fn parent_of(&self, ino: Ino) -> Result<Ino, Errno> {
        Ok(self.place_of(ino).await?.parent)
    }

    async fn place_of(&self, ino: Ino) -> Result<DirectoryPlace, Errno> {
        answer_of(self.ask_patiently(ino.mdt(), &PeerParent { ino }.into()).await?)
            .map(|Answer::<PeerParent>(place)| place)
    }
}

/// The rename lock of MDT 0, held.
pub(super) struct RenameLock<'m> {
    _held: tokio::sync::MutexGuard<'m, ()>,
}

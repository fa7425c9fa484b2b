//! What one step of a transaction needs, and what it does: synchronous functions over [`Namespace`].
//!
//! Owns the meaning of [`Step`]. The MDT that checks a step holds what it concerns from then until it is done, so that what was
//! checked is still so.

use burstfs_proto::mds::{Becomes, Named, NewDirectory, Step};
use burstfs_types::{Attr, Errno, FileKind, Ino, Name, limits};

use super::spread;
use crate::locks::Needs;
use crate::namespace::{Directory, Namespace, OpError};
use crate::record::{Body, Dentry, Inode};

/// What the steps must have held, and with `made` the directory that one of them makes.
pub(super) fn needs(steps: &[Step], made: Option<Ino>) -> Needs<'_> {
    let mut needs = Needs::default();
    for step in steps {
        match step {
            Step::Entry { parent, name, .. } => needs.names.push((*parent, name)),
            Step::MakeDirectory(_) | Step::MakeShard { .. } => needs.whole.extend(made),
            Step::Change { change, .. } => needs.whole.push(change.ino()),
            Step::RemoveDirectory { ino, .. }
            | Step::Spread { head: ino, .. }
            | Step::GiveNames { head: ino, .. }
            | Step::TakeNames { shard: ino, .. }
            | Step::Renamed { ino, .. }
            | Step::AddName { ino }
            | Step::DropName { ino } => needs.whole.push(*ino),
        }
    }
    needs
}

/// Says whether `step` can be done. Gives the attributes that the coordinator's reply needs.
pub(super) fn check(ns: &mut Namespace<'_>, step: &Step, made: Option<Ino>) -> Result<Option<Attr>, OpError> {
    match step {
        Step::Entry { parent, name, was, .. } => {
            ns.directory_with(*parent, name)?;
            let is = ns.dentry(*parent, name)?.map(|dentry| dentry.ino);
            if is == *was { Ok(None) } else { Err(Errno::EAGAIN.into()) }
        }
        Step::MakeDirectory(new) => {
            let ino = made.ok_or(Errno::ENOSPC)?;
            Ok(Some(new_directory(ns, new).attr(ino)))
        }
        Step::RemoveDirectory { ino, shards } => match ns.directory(*ino) {
            Ok(directory) if directory.entries > 0 => Err(Errno::ENOTEMPTY.into()),
            Ok(directory) if directory.spread.others() != shards => Err(Errno::EAGAIN.into()),
            Ok(_) => Ok(None),
            Err(error) => Err(gone_is_changed(error)),
        },
        Step::Renamed { ino, .. } => {
            ns.inode(*ino)?.ok_or(Errno::EAGAIN)?;
            Ok(None)
        }
        Step::AddName { ino } => Ok(Some(with_one_more_name(ns, *ino)?.attr(*ino))),
        Step::Change { change, shards } => spread::check_change(ns, change, shards),
        Step::MakeShard { .. } => {
            let ino = made.ok_or(Errno::ENOSPC)?;
            Ok(spread::new_shard(ns, step).map(|inode| inode.attr(ino)))
        }
        Step::Spread { head, next_cookie, like, .. } => spread::check_spread(ns, *head, *next_cookie, like),
        Step::GiveNames { head, piece } => spread::check_give(ns, *head, piece),
        Step::TakeNames { shard, piece } => spread::check_take(ns, *shard, piece),
        // A name whose inode is gone breaks an invariant; removing the name heals it.
        Step::DropName { .. } => Ok(None),
    }
}

fn gone_is_changed(error: OpError) -> OpError {
    match error {
        OpError::Errno(Errno::ENOENT) => Errno::EAGAIN.into(),
        other => other,
    }
}

/// Does what was checked. `answered` are the inodes of the checks' answers: the participant's own, or for the coordinator those of
/// all participants.
pub(super) fn apply(ns: &mut Namespace<'_>, step: &Step, answered: &[Named]) -> Result<(), OpError> {
    let answer = answered.last().copied();
    match step {
        Step::Entry { parent, name, becomes, .. } => {
            let named = match becomes {
                Becomes::Nothing => None,
                Becomes::Inode(named) => Some(*named),
                Becomes::Answered => Some(answer.ok_or(Errno::EPROTO)?),
            };
            change_entry(ns, *parent, name, named)
        }
        Step::MakeDirectory(new) => {
            let inode = new_directory(ns, new);
            ns.fresh = answer.map(|named| named.ino);
            let ino = ns.make_inode(&inode)?;
            new.xattrs.iter().for_each(|(name, value)| ns.put_xattr(ino, name, value.clone()));
            Ok(())
        }
        Step::RemoveDirectory { ino, .. } => {
            let directory = ns.directory(*ino)?;
            ns.remove_directory(directory)
        }
        Step::Renamed { ino, parent } => renamed(ns, *ino, *parent),
        Step::AddName { ino } => {
            let inode = with_one_more_name(ns, *ino)?;
            ns.put_inode(*ino, &inode);
            Ok(())
        }
        Step::DropName { ino } => ns.drop_name(*ino),
        Step::Change { change, .. } => spread::change(ns, change).map(drop),
        Step::MakeShard { .. } => {
            let ino = answer.ok_or(Errno::EPROTO)?.ino;
            spread::make_shard(ns, ino, step)
        }
        Step::Spread { head, homes, next_cookie, .. } => spread::spread(ns, *head, homes, *next_cookie, answered),
        Step::GiveNames { head, piece } => spread::give(ns, *head, piece),
        Step::TakeNames { shard, piece } => spread::take(ns, *shard, piece),
    }
}

fn new_directory(ns: &Namespace<'_>, new: &NewDirectory) -> Inode {
    let body = Inode::directory(new.parent, new.layout);
    Inode::new(new.mode, new.uid, new.gid, body, ns.now).with_xattrs(new.xattrs.len() as u32)
}

/// The file `ino` with another name.
pub(crate) fn with_one_more_name(ns: &mut Namespace<'_>, ino: Ino) -> Result<Inode, OpError> {
    let mut inode = ns.existing(ino)?;
    if inode.kind() == FileKind::Directory {
        return Err(Errno::EPERM.into());
    }
    if inode.nlink == 0 {
        // Its last name is gone, and so will it be.
        return Err(Errno::ENOENT.into());
    }
    if inode.nlink >= limits::LINK_MAX {
        return Err(Errno::EMLINK.into());
    }
    inode.nlink += 1;
    inode.ctime = ns.now;
    Ok(inode)
}

fn renamed(ns: &mut Namespace<'_>, ino: Ino, parent: Ino) -> Result<(), OpError> {
    let mut inode = ns.existing(ino)?;
    inode.ctime = ns.now;
    if let Body::Directory { parent: old, .. } = &mut inode.body {
        *old = parent;
    }
    ns.put_inode(ino, &inode);
    Ok(())
}

/// Cookies belong to names. A name that stays keeps its own, so that a listing in progress shows it once; a new name comes
/// last, so that a listing in progress shows the inode at least once.
fn change_entry(ns: &mut Namespace<'_>, parent: Ino, name: &Name, named: Option<Named>) -> Result<(), OpError> {
    let mut directory = ns.directory(parent)?;
    match (ns.dentry(parent, name)?, named) {
        (None, None) => return Ok(()),
        (None, Some(new)) => ns.add_entry(&mut directory, name, new.ino, new.kind),
        (Some(old), None) => ns.remove_entry(&mut directory, name, old),
        (Some(old), Some(new)) => replace_entry(ns, &mut directory, name, old, new),
    }
    ns.save_directory(directory);
    Ok(())
}

fn replace_entry(ns: &mut Namespace<'_>, directory: &mut Directory, name: &Name, old: Dentry, new: Named) {
    let links = |kind| u32::from(kind == FileKind::Directory);
    directory.inode.nlink = directory.inode.nlink + links(new.kind) - links(old.kind);
    ns.touch(directory);
    ns.put_dentry(directory.ino, name, Dentry { ino: new.ino, kind: new.kind, cookie: old.cookie });
}

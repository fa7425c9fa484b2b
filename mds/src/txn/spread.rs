//! What the steps need and do that spread a directory's names over shards, and keep the shards alike.
//!
//! Owns their meaning, as [`step`](super::step) does that of all others. When they are taken is `crate::split`'s business.
//!
//! Invariants: what is made in a shard inherits what it would inherit in the head. A name is with the shard that the head's
//! [`Shards`] say, and with no other, since it leaves and arrives in one transaction that also moves the border. It keeps its
//! cookie, and no other name of the directory ever has that one.

use burstfs_proto::mds::{Change, Inherited, MdsReply, MovedName, Named, Piece, Step};
use burstfs_types::{ACL_DEFAULT, Attr, Errno, FileKind, Ino, MdtIndex, Shards, Timestamp};

use crate::namespace::{Directory, Namespace, OpError};
use crate::ops;
use crate::record::{Body, Dentry, Inode, Spread};

/// Before every time that can be shown.
const NEVER: Timestamp = Timestamp { secs: i64::MIN, nanos: 0 };

/// What every shard of `directory` has of it.
pub(crate) fn inherited(ns: &mut Namespace<'_>, directory: &Directory) -> Result<Inherited, OpError> {
    let Inode { mode, uid, gid, xattrs, .. } = directory.inode;
    let default_acl = if xattrs > 0 { ns.xattr(directory.ino, ACL_DEFAULT)? } else { None };
    Ok(Inherited { mode, uid, gid, layout: directory.layout, default_acl })
}

pub(super) fn check_change(ns: &mut Namespace<'_>, of: &Change, shards: &[Ino]) -> Result<Option<Attr>, OpError> {
    let inode = ns.existing(of.ino())?;
    let Body::Directory { spread, .. } = &inode.body else { return Err(Errno::EAGAIN.into()) };
    if spread.others() != shards {
        return Err(Errno::EAGAIN.into());
    }
    let is_head = matches!(spread, Spread::Head(_));
    // What is written here is dropped.
    Ok(change(ns, of)?.filter(|_| is_head))
}

/// The attributes after a change of them.
pub(super) fn change(ns: &mut Namespace<'_>, change: &Change) -> Result<Option<Attr>, OpError> {
    let request = match change.clone() {
        Change::Attr(it) => it.into(),
        Change::Xattr(it) => it.into(),
        Change::Layout(it) => it.into(),
    };
    match ops::run(ns, &request)? {
        MdsReply::SetAttr(attr) => Ok(Some(attr)),
        _ => Ok(None),
    }
}

/// The inode that a `MakeShard` makes; `None` for other steps.
pub(super) fn new_shard(ns: &Namespace<'_>, step: &Step) -> Option<Inode> {
    let Step::MakeShard { index, count, head, next_cookie, like } = step else { return None };
    let spread = Spread::Shard { index: *index, count: *count, moved_below: 0 };
    let next_cookie = spread.cookie_from(*next_cookie);
    let body = Body::Directory { parent: *head, next_cookie, entries: 0, layout: like.layout, spread };
    let mut inode = Inode::new(like.mode, like.uid, like.gid, body, ns.now);
    // Nothing has happened in it: the times that the directory shows are the head's, however early they are set.
    (inode.atime, inode.mtime, inode.ctime) = (NEVER, NEVER, NEVER);
    Some(inode.with_xattrs(u32::from(like.default_acl.is_some())))
}

pub(super) fn make_shard(ns: &mut Namespace<'_>, ino: Ino, step: &Step) -> Result<(), OpError> {
    let (Some(inode), Step::MakeShard { like, .. }) = (new_shard(ns, step), step) else {
        return Err(Errno::EPROTO.into());
    };
    ns.make_shard(ino, &inode);
    if let Some(acl) = &like.default_acl {
        ns.put_xattr(ino, ACL_DEFAULT, acl.clone());
    }
    Ok(())
}

pub(super) fn check_spread(
    ns: &mut Namespace<'_>,
    head: Ino,
    next_cookie: u64,
    like: &Inherited,
) -> Result<Option<Attr>, OpError> {
    let directory = ns.directory(head)?;
    let is_as_planned = directory.spread == Spread::Whole
        && directory.next_cookie <= next_cookie
        && inherited(ns, &directory)? == *like;
    if is_as_planned { Ok(None) } else { Err(Errno::EAGAIN.into()) }
}

pub(super) fn spread(
    ns: &mut Namespace<'_>,
    head: Ino,
    homes: &[MdtIndex],
    next_cookie: u64,
    answered: &[Named],
) -> Result<(), OpError> {
    let mut directory = ns.directory(head)?;
    let at = |home: &MdtIndex| answered.iter().map(|named| named.ino).find(|ino| ino.mdt() == *home);
    let others: Option<Vec<Ino>> = homes.iter().map(at).collect();
    let inos = [others.ok_or(Errno::EPROTO)?, vec![head]].concat();
    let shards = Shards::new(inos, 0).map_err(|_| Errno::EPROTO)?;
    directory.spread = Spread::Head(Box::new(shards));
    directory.next_cookie = directory.spread.cookie_from(next_cookie);
    ns.save_directory(directory);
    ns.set_moving(head, true);
    Ok(())
}

/// The names of `head` with hashes from `from` on, and below `until`; at most `limit`.
pub(crate) fn names(
    ns: &mut Namespace<'_>,
    head: Ino,
    (from, until): (u64, u64),
    limit: usize,
) -> Result<Vec<(u64, MovedName)>, OpError> {
    let found = ns.entries_by_hash(head, (from, Some(until)), limit)?;
    let moved = found.into_iter().map(|(hash, name, dentry)| {
        let Dentry { ino, kind, cookie } = dentry;
        (hash, MovedName { name, named: Named { ino, kind }, cookie })
    });
    Ok(moved.collect())
}

pub(super) fn check_give(ns: &mut Namespace<'_>, head: Ino, piece: &Piece) -> Result<Option<Attr>, OpError> {
    let Piece { from, until, names: planned } = piece;
    let directory = ns.directory(head)?;
    let Spread::Head(shards) = &directory.spread else { return Err(Errno::EAGAIN.into()) };
    let is_border = shards.moved_below() == *from && shards.moved_to(*until).is_ok();
    // One more would be a difference.
    let found = names(ns, head, (*from, *until), planned.len() + 1)?;
    let is_same = found.iter().map(|(_, name)| name).eq(planned);
    if is_border && is_same { Ok(None) } else { Err(Errno::EAGAIN.into()) }
}

pub(super) fn give(ns: &mut Namespace<'_>, head: Ino, piece: &Piece) -> Result<(), OpError> {
    let mut directory = ns.directory(head)?;
    let Spread::Head(shards) = &directory.spread else { return Err(Errno::EPROTO.into()) };
    let shards = shards.moved_to(piece.until).map_err(|_| Errno::EPROTO)?;
    let is_moving = shards.is_moving();
    directory.spread = Spread::Head(Box::new(shards));
    for MovedName { name, cookie, .. } in &piece.names {
        ns.delete_dentry(head, name, *cookie);
    }
    directory.entries -= piece.names.len() as u64;
    directory.inode.nlink -= directories(piece);
    ns.save_directory(directory);
    if !is_moving {
        ns.set_moving(head, false);
    }
    Ok(())
}

pub(super) fn check_take(ns: &mut Namespace<'_>, shard: Ino, piece: &Piece) -> Result<Option<Attr>, OpError> {
    let spread = ns.directory(shard)?.spread;
    let (first, end) = spread.range().ok_or(Errno::EAGAIN)?;
    let is_next = spread.moved_below().max(first) == piece.from && piece.until <= end;
    if is_next { Ok(None) } else { Err(Errno::EAGAIN.into()) }
}

pub(super) fn take(ns: &mut Namespace<'_>, shard: Ino, piece: &Piece) -> Result<(), OpError> {
    let mut directory = ns.directory(shard)?;
    let Spread::Shard { moved_below, .. } = &mut directory.spread else { return Err(Errno::EPROTO.into()) };
    *moved_below = piece.until;
    for MovedName { name, named, cookie } in &piece.names {
        ns.put_dentry(shard, name, Dentry { ino: named.ino, kind: named.kind, cookie: *cookie });
        directory.next_cookie = directory.next_cookie.max(cookie.saturating_add(1));
    }
    directory.next_cookie = directory.spread.cookie_from(directory.next_cookie);
    directory.entries += piece.names.len() as u64;
    directory.inode.nlink += directories(piece);
    ns.save_directory(directory);
    Ok(())
}

fn directories(piece: &Piece) -> u32 {
    let is_directory = |moved: &&MovedName| moved.named.kind == FileKind::Directory;
    piece.names.iter().filter(is_directory).count() as u32
}

//! Layouts: what is wanted, what a file gets, and where appends to a striped file go.

use burstfs_placement::striped;
use burstfs_proto::mds::{
    DecideLayout, EndAppends, GetLayout, LayoutInfo, LayoutOrigin, ReserveAppend, SetLayout, WantedLayout,
};
use burstfs_types::{Attr, Errno, Ino, Layout, LayoutPolicy, OstIndex, limits};

use crate::namespace::{Namespace, OpError};
use crate::record::{Body, Inode, RegularFile};

/// What is known of a new file's bytes.
pub(super) fn new_file(wanted: WantedLayout) -> RegularFile {
    RegularFile { wanted, layout: None, appends_end: 0 }
}

/// The layout for the file `ino`, whose caller is nearest to the OST `near`.
pub(super) fn choose(ns: &Namespace<'_>, wanted: WantedLayout, ino: Ino, near: OstIndex) -> Result<Layout, OpError> {
    if near.get() >= ns.osts() {
        return Err(Errno::EINVAL.into());
    }
    match wanted.policy {
        LayoutPolicy::Auto | LayoutPolicy::Local => Ok(Layout::on_one(near)),
        LayoutPolicy::Striped(pattern) => Ok(striped(pattern, ino, ns.osts()).map_err(|_| Errno::EINVAL)?),
    }
}

pub(crate) fn get_layout(ns: &mut Namespace<'_>, request: &GetLayout) -> Result<LayoutInfo, OpError> {
    let inode = ns.existing(request.ino)?;
    let kind = inode.kind();
    match inode.body {
        Body::Regular(file) => Ok(LayoutInfo { kind, wanted: file.wanted, layout: file.layout }),
        Body::Directory { layout, .. } => Ok(LayoutInfo { kind, wanted: layout, layout: None }),
        Body::Symlink { .. } | Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => {
            Err(Errno::EINVAL.into())
        }
    }
}

pub(crate) fn set_layout(ns: &mut Namespace<'_>, request: &SetLayout) -> Result<(), OpError> {
    let mut inode = ns.existing(request.ino)?;
    let wanted = match request.policy {
        Some(policy) => WantedLayout { policy, origin: LayoutOrigin::Own },
        None => WantedLayout { policy: ns.job_layout, origin: LayoutOrigin::Job },
    };
    match &mut inode.body {
        // Somebody may be writing by the layout that the file has.
        Body::Regular(RegularFile { layout: Some(_), .. }) => return Err(Errno::EEXIST.into()),
        Body::Regular(file) => file.wanted = wanted,
        Body::Directory { layout, .. } => *layout = wanted,
        Body::Symlink { .. } | Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => {
            return Err(Errno::EINVAL.into());
        }
    }
    inode.ctime = ns.now;
    ns.put_inode(request.ino, &inode);
    Ok(())
}

pub(crate) fn decide_layout(ns: &mut Namespace<'_>, request: &DecideLayout) -> Result<Attr, OpError> {
    let mut inode = ns.existing(request.ino)?;
    let file = regular(&mut inode)?;
    if file.layout.is_none() {
        file.layout = Some(choose(ns, file.wanted, request.ino, request.near)?);
        ns.put_inode(request.ino, &inode);
    }
    Ok(inode.attr(request.ino))
}

/// The place of an append: behind all that the objects have, and behind all appends that were given a place before.
pub(crate) fn reserve_append(ns: &mut Namespace<'_>, request: &ReserveAppend) -> Result<u64, OpError> {
    let mut inode = ns.existing(request.ino)?;
    let file = regular(&mut inode)?;
    let begin = file.appends_end.max(request.size);
    let end = begin.checked_add(request.len).filter(|end| *end <= limits::FILE_SIZE_MAX_BYTES).ok_or(Errno::EFBIG)?;
    file.appends_end = end;
    ns.put_inode(request.ino, &inode);
    Ok(begin)
}

pub(crate) fn end_appends(ns: &mut Namespace<'_>, request: &EndAppends) -> Result<(), OpError> {
    let mut inode = ns.existing(request.ino)?;
    let file = regular(&mut inode)?;
    if file.appends_end > request.size {
        file.appends_end = request.size;
        ns.put_inode(request.ino, &inode);
    }
    Ok(())
}

fn regular(inode: &mut Inode) -> Result<&mut RegularFile, OpError> {
    match &mut inode.body {
        Body::Regular(file) => Ok(file),
        Body::Directory { .. } => Err(Errno::EISDIR.into()),
        Body::Symlink { .. } | Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => {
            Err(Errno::EINVAL.into())
        }
    }
}

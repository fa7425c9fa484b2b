//! Layouts: what is wanted, what a file gets, and where appends to a striped file go.

use burstfs_placement::striped;
use burstfs_proto::mds::{
    DecideLayout, EndAppends, GetLayout, Habit, LayoutChoice, LayoutInfo, LayoutOrigin, ReserveAppend, SetLayout,
    WantedLayout,
};
use burstfs_types::{Attr, Errno, Ino, Layout, LayoutPolicy, OstIndex, StripePattern, limits};

use crate::namespace::{Namespace, OpError};
use crate::record::{Body, Inode, RegularFile};

/// What is known of the bytes of a new file in `directory`.
pub(super) fn new_file(wanted: WantedLayout, directory: Ino) -> RegularFile {
    let teaches = (wanted.policy == LayoutPolicy::Auto).then_some(directory);
    RegularFile { wanted, layout: None, choice: None, teaches, appends_end: 0 }
}

/// Gives a file that is made and opened its layout, so that a kernel that is near may write it by itself from the start:
/// with `auto` by what its directory has taught. Nothing known means one node: whoever opens a file for passthrough cannot
/// be told later that it was striped, and a directory's first shared file teaches the next.
pub(super) fn choose_at_creation(
    ns: &Namespace<'_>,
    file: &mut RegularFile,
    ino: Ino,
    near: OstIndex,
) -> Result<(), OpError> {
    let habit = file.teaches.map_or_else(Habit::default, |directory| ns.habit(directory));
    choose(ns, file, (ino, near), LayoutChoice::Directory(habit), habit.is_shared())
}

/// Gives a file its layout for a caller who is nearest to the OST `near`; with `auto` for the reason `why`.
fn choose(
    ns: &Namespace<'_>,
    file: &mut RegularFile,
    (ino, near): (Ino, OstIndex),
    why: LayoutChoice,
    by_several: bool,
) -> Result<(), OpError> {
    if near.get() >= ns.osts() {
        return Err(Errno::EINVAL.into());
    }
    let stripes = |pattern| striped(pattern, ino, ns.osts()).map_err(|_| Errno::EINVAL);
    let (layout, choice) = match file.wanted.policy {
        LayoutPolicy::Auto if by_several => (stripes(StripePattern::default())?, why),
        LayoutPolicy::Auto => (Layout::on_one(near), why),
        LayoutPolicy::Local => (Layout::on_one(near), LayoutChoice::Wanted),
        LayoutPolicy::Striped(pattern) => (stripes(pattern)?, LayoutChoice::Wanted),
    };
    (file.layout, file.choice) = (Some(layout), Some(choice));
    Ok(())
}

pub(crate) fn get_layout(ns: &mut Namespace<'_>, request: &GetLayout) -> Result<LayoutInfo, OpError> {
    let inode = ns.existing(request.ino)?;
    let kind = inode.kind();
    match inode.body {
        Body::Regular(file) => Ok(LayoutInfo { kind, wanted: file.wanted, layout: file.layout, choice: file.choice }),
        Body::Directory { layout, .. } => Ok(LayoutInfo { kind, wanted: layout, layout: None, choice: None }),
        Body::Symlink { .. } | Body::Fifo | Body::Socket | Body::Character(_) | Body::Block(_) => {
            Err(Errno::EINVAL.into())
        }
    }
}

pub(crate) fn set_layout(ns: &mut Namespace<'_>, request: &SetLayout) -> Result<(), OpError> {
    let mut inode = ns.existing_with_shards(request.ino)?;
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
        let writers = ns.writers(request.ino);
        choose(ns, file, (request.ino, request.near), LayoutChoice::Writers(writers), writers > 1)?;
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

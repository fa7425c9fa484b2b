//! A striped file out of the instance: every node writes the stripes that it holds to their places in the target file, so that
//! no byte of it crosses between nodes.
//!
//! ```text
//!   begin (any node)      stripe 0 (its node)     stripe 1 (its node)    ...   the last stripe (its node)
//!   make the temporary -> write, sync          -> write, sync            ...   write, sync; attributes;
//!   of the full length    hash of its bytes       hash of its bytes            read all of it, compare every hash; rename
//! ```
//!
//! One item follows another, with the hashes so far; so there is nothing that two nodes would have to agree on, and of several
//! files each is at another node. What came before an item that fails stays in the temporary, which is removed when the
//! entry has failed for good.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use burstfs_types::{Errno, Layout, Timestamp};
use serde::{Deserialize, Serialize};

use crate::batch::Fate;
use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::drain::{Drain, Pending, Prepared, Temporary, record};
use crate::error::EntryError;
use crate::item::{Dir, Entry, EntryState, How};
use crate::job::Verify;
use crate::pfs;
use crate::stream::{Digest, WRITEBACK_BYTES};
use crate::tree::{Kind, Meta, Opened};

/// How far a striped file is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// Its name at the target until it is whole; `None`: the final one (`atomic=none`).
    temporary: Option<Vec<u8>>,
    /// The source as it was at the beginning.
    version: Version,
    /// The hashes of the stripes that are at the target.
    hashes: Vec<Option<u128>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Version {
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl From<&Meta> for Version {
    fn from(meta: &Meta) -> Version {
        Version { size: meta.size, mtime: meta.mtime, ctime: meta.ctime }
    }
}

/// How many stripes of a file have bytes.
fn stripes(layout: &Layout, size: u64) -> usize {
    let units = size.div_ceil(layout.stripe_size_bytes().into());
    usize::try_from(units).unwrap_or(usize::MAX).min(layout.osts().len())
}

/// Whether a file's bytes are on more than one node.
pub(crate) fn is_spread(layout: Option<&Layout>, size: u64) -> bool {
    layout.is_some_and(|layout| stripes(layout, size) > 1)
}

/// The units of a stripe: offset and length.
fn units(layout: &Layout, stripe: usize, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let unit = u64::from(layout.stripe_size_bytes());
    let step = unit * layout.osts().len() as u64;
    let offsets = std::iter::successors(Some(unit * stripe as u64), move |at| at.checked_add(step));
    offsets.take_while(move |at| *at < size).map(move |at| (at, unit.min(size - at)))
}

/// Removes what a file that has failed left.
pub(crate) fn discard(dir: &Dir, spread: &Spread) {
    let Some(name) = &spread.temporary else { return };
    let removed = pfs::open_below(&dir.pfs_root, &dir.below).and_then(|dir| pfs::unlink(dir.as_fd(), name));
    if let Err(errno) = removed {
        tracing::debug!(%errno, name = %name.escape_ascii(), "a temporary could not be removed");
    }
}

impl Drain<'_> {
    /// Makes the target of a striped file; the item that begins with its first stripe.
    pub(crate) fn begin_spread(&self, entry: &Entry, opened: &Opened, meta: &Meta) -> Result<Fate, EntryError> {
        let (fd, temporary) = self.create(entry)?;
        pfs::truncate(fd.as_fd(), meta.size).map_err(EntryError::target("write"))?;
        let spread = Spread { temporary: temporary.map(Temporary::keep), version: meta.into(), hashes: Vec::new() };
        Ok(self.next_stripe(opened, spread, meta.size))
    }

    /// The item that goes on with the next stripe.
    fn next_stripe(&self, opened: &Opened, spread: Spread, bytes: u64) -> Fate {
        let ost = opened.attr.layout.as_ref().and_then(|layout| layout.osts().get(spread.hashes.len()).copied());
        let place = ost.and_then(|ost| self.context.tree.place(opened.attr.ino, Some(&Layout::on_one(ost))));
        Fate::Later { how: How::Spread(Box::new(spread)), place, bytes }
    }

    /// Writes the next stripe of a file, or, with the last, gives it its name.
    pub(crate) async fn stripe(&self, entry: &Entry, spread: &Spread) -> Result<Fate, EntryError> {
        let failed = |what| move |errno: Errno| EntryError::Source { what, errno: errno.into() };
        let ino = entry.ino.ok_or_else(|| failed("find")(Errno::ENOENT))?;
        let opened = self.context.tree.open(ino).await.map_err(failed("open"))?;
        let done = self.opened_stripe(entry, spread, &opened).await;
        // Nothing was written through it: an error here says nothing about the copy.
        let _ = self.context.tree.close(opened.handle).await;
        done
    }

    async fn opened_stripe(&self, entry: &Entry, spread: &Spread, opened: &Opened) -> Result<Fate, EntryError> {
        let meta = Meta::from(&opened.attr);
        let Some(layout) = opened.attr.layout.as_ref().filter(|_| meta.kind == Kind::File) else {
            return Err(EntryError::Changed);
        };
        let place = self.context.tree.place(opened.attr.ino, Some(layout));
        if Version::from(&meta) != spread.version {
            return Err(EntryError::Changed);
        }
        let name = spread.temporary.as_deref().unwrap_or(entry.target_name());
        let fd = match pfs::open_existing(self.dir.as_fd(), name) {
            // A daemon that was started again has removed what it knew nothing of: from the beginning.
            Err(errno) if errno == Errno::ENOENT.into() => {
                return Ok(Fate::Later { how: How::Alone, place, bytes: meta.size });
            }
            fd => fd.map_err(EntryError::target("open"))?,
        };
        let hash = self.write_stripe(spread.hashes.len(), layout, &meta, opened, fd.as_fd()).await?;
        pfs::sync(fd.as_fd()).map_err(EntryError::target("sync"))?;
        let mut next = spread.clone();
        next.hashes.push(hash);
        if next.hashes.len() < stripes(layout, meta.size) {
            return Ok(self.next_stripe(opened, next, meta.size));
        }
        self.whole(entry, &next, layout, &meta, fd).await
    }

    async fn write_stripe(
        &self,
        stripe: usize,
        layout: &Layout,
        meta: &Meta,
        opened: &Opened,
        target: BorrowedFd<'_>,
    ) -> Result<Option<u128>, EntryError> {
        let failed = |errno: Errno| EntryError::Source { what: "read", errno: errno.into() };
        let skips_zeros = self.job.preserve.sparse && meta.may_have_holes();
        let mut digest = Digest::new(self.job.verify == Verify::Checksum);
        let mut buffer = Buffer::new(BUFFER_BYTES);
        let (mut hashed, mut since_writeback) = (0, 0);
        for (start, len) in units(layout, stripe, meta.size) {
            let mut done = 0;
            while done < len {
                let want = (BUFFER_BYTES as u64).min(len - done) as usize;
                let piece = &mut buffer[..want];
                self.context.pace(self.number, want as u64).await;
                let got = self.context.tree.read_at(opened.handle, start + done, piece).await.map_err(failed)?;
                if got < want {
                    return Err(EntryError::Changed);
                }
                digest.data(hashed, piece);
                // The target has its full length already, and a hole wherever nothing is written.
                if !(skips_zeros && piece.iter().all(|byte| *byte == 0)) {
                    pfs::write_at(target, start + done, piece).map_err(EntryError::target("write"))?;
                }
                hashed += want as u64;
                done += want as u64;
                since_writeback += want as u64;
            }
            if since_writeback >= WRITEBACK_BYTES {
                pfs::start_writeback(target, 0, start + len);
                since_writeback = 0;
            }
        }
        Ok(digest.end(hashed))
    }

    /// All stripes are there: attributes, check, name.
    async fn whole(
        &self,
        entry: &Entry,
        spread: &Spread,
        layout: &Layout,
        meta: &Meta,
        fd: OwnedFd,
    ) -> Result<Fate, EntryError> {
        let ino = entry.ino.ok_or(EntryError::Changed)?;
        let not_kept = self.attributes(ino, meta, fd.as_fd()).await?;
        if Version::from(&self.getattr(ino).await?) != spread.version {
            return Err(EntryError::Changed);
        }
        let checksum = if self.job.verify == Verify::Checksum {
            Some(check_stripes(fd.as_fd(), layout, meta.size, &spread.hashes)?)
        } else {
            None
        };
        let temporary = spread.temporary.clone().map(|name| Temporary::of(self.dir.as_fd(), name));
        let record = record(entry, meta, checksum, EntryState::Copied, not_kept);
        let target = entry.target_name().to_vec();
        let pending = Pending::checked(Arc::new(fd), temporary, target, meta.clone(), record);
        let fate = self.commit(vec![Prepared::Pending(Box::new(pending))]).await.pop();
        Ok(fate.unwrap_or(Fate::Failed(EntryError::Changed)))
    }
}

/// Reads the target once: the checksum of all of it, and that of each stripe, which must be its source's.
fn check_stripes(
    target: BorrowedFd<'_>,
    layout: &Layout,
    size: u64,
    hashes: &[Option<u128>],
) -> Result<u128, EntryError> {
    let failed = EntryError::target("read back");
    let (unit, count) = (u64::from(layout.stripe_size_bytes()), layout.osts().len() as u64);
    let mut all = Digest::new(true);
    let mut each: Vec<(Digest, u64)> = hashes.iter().map(|_| (Digest::new(true), 0)).collect();
    let mut buffer = Buffer::new(BUFFER_BYTES);
    let mut offset = 0;
    while offset < size {
        // A unit is a multiple of the buffer, or the other way round: no piece is of two stripes.
        let want = (BUFFER_BYTES as u64).min(unit - offset % unit).min(size - offset) as usize;
        let got = pfs::read_at(target, offset, &mut buffer[..want]).map_err(&failed)?;
        let data = &buffer[..got];
        all.data(offset, data);
        if let Some((digest, hashed)) = each.get_mut((offset / unit % count) as usize) {
            digest.data(*hashed, data);
            *hashed += got as u64;
        }
        if got < want {
            return Err(EntryError::Size { found: offset + got as u64, expected: size });
        }
        offset += got as u64;
    }
    for ((digest, hashed), expected) in each.into_iter().zip(hashes) {
        let (found, expected) = (digest.end(hashed).unwrap_or_default(), expected.unwrap_or_default());
        if found != expected {
            return Err(EntryError::Checksum { found, expected });
        }
    }
    Ok(all.end(size).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use burstfs_types::OstIndex;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn units_of_all_stripes_are_the_file(count in 1_u16..6, size in 0_u64..2_000_000) {
            let layout = Layout::new(64 << 10, (0..count).map(OstIndex::new).collect()).unwrap();
            let mut all: Vec<_> = (0..stripes(&layout, size)).flat_map(|stripe| units(&layout, stripe, size)).collect();
            all.sort_unstable();
            let mut end = 0;
            for (start, len) in all {
                prop_assert_eq!(start, end);
                prop_assert!(len > 0);
                end = start + len;
            }
            prop_assert_eq!(end, size);
            prop_assert_eq!(is_spread(Some(&layout), size), count > 1 && size > 64 << 10);
        }
    }
}

//! Contents of files that are too large to hold, or have holes: read, hash and write, a buffer at a time.
//!
//! One thread does all three for a piece that fits in its core's cache: a piece that went from thread to thread would be
//! fetched from memory for each. Both sides are files of this node as a rule (work is placed where the data is), and the
//! kernel reads ahead and writes behind; what waits is overlapped by the other workers of the node. The checksum is of the
//! whole contents, holes as zeros, so that anybody can compute it again (`xxh128sum`).

use std::os::fd::BorrowedFd;

use burstfs_types::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::engine::Context;
use crate::error::{EntryError, OsError};
use crate::pfs;
use crate::progress::Progress;
use crate::tree::{Extent, TreeHandle};

/// When so much has been written, it is written back while the copy goes on.
pub(crate) const WRITEBACK_BYTES: u64 = 8 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes that were shown as done; taken back when the copy fails.
struct Shown<'a> {
    progress: &'a Progress,
    bytes: u64,
}

impl Shown<'_> {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.show_bytes(bytes);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        // The entry's end counts its size as a whole.
        self.progress.hide_bytes(self.bytes);
    }
}

/// The hash of a file's contents, given in order, with gaps.
pub(crate) struct Digest {
    hash: Box<Xxh3>,
    at: u64,
    is_wanted: bool,
}

impl Digest {
    pub(crate) fn new(is_wanted: bool) -> Digest {
        Digest { hash: Box::new(Xxh3::new()), at: 0, is_wanted }
    }

    pub(crate) fn data(&mut self, offset: u64, data: &[u8]) {
        if self.is_wanted {
            self.zeros_to(offset);
            self.hash.update(data);
            self.at = offset + data.len() as u64;
        }
    }

    /// The checksum of a file of `size` bytes.
    pub(crate) fn end(mut self, size: u64) -> Option<u128> {
        if !self.is_wanted {
            return None;
        }
        self.zeros_to(size);
        Some(self.hash.digest128())
    }

    fn zeros_to(&mut self, offset: u64) {
        while self.at < offset {
            let len = (offset - self.at).min(ZEROS.len() as u64);
            self.hash.update(&ZEROS[..len as usize]);
            self.at += len;
        }
    }
}

/// How a file is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// The directive, whose rate holds.
    pub(crate) number: u16,
    pub(crate) size: u64,
    pub(crate) skips_holes: bool,
    pub(crate) is_hashed: bool,
}

/// Hands the data of a file of the instance to `each`, in order, at the rate of directive `number` if there is one.
async fn read_tree(
    context: &Context,
    number: Option<u16>,
    handle: TreeHandle,
    size: u64,
    skips_holes: bool,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), EntryError>,
) -> Result<(), EntryError> {
    let failed = |errno: Errno| EntryError::Source { what: "read", errno: errno.into() };
    let mut buffer = Buffer::new(buffer_len(size));
    let mut offset = 0;
    while offset < size {
        let extent = match skips_holes {
            false => Some(Extent { start: offset, end: size }),
            true => context.tree.next_data(handle, offset).await.map_err(failed)?,
        };
        let Some(extent) = extent else { return Ok(()) };
        let end = extent.end.min(size);
        offset = extent.start;
        while offset < end {
            let want = buffer.len().min((end - offset) as usize);
            let piece = &mut buffer[..want];
            if let Some(number) = number {
                context.pace(number, want as u64).await;
            }
            let got = context.tree.read_at(handle, offset, piece).await.map_err(failed)?;
            if got < want {
                return Err(EntryError::Changed);
            }
            each(offset, piece)?;
            offset += got as u64;
        }
    }
    Ok(())
}

fn buffer_len(size: u64) -> usize {
    usize::try_from(size).map_or(BUFFER_BYTES, |size| size.min(BUFFER_BYTES))
}

/// Copies a file out of the instance; its checksum, if wanted.
pub(crate) async fn copy_out(
    context: &Context,
    how: How,
    handle: TreeHandle,
    target: BorrowedFd<'_>,
) -> Result<Option<u128>, EntryError> {
    let How { number, size, skips_holes, is_hashed } = how;
    let mut shown = Shown { progress: &context.progress, bytes: 0 };
    let mut digest = Digest::new(is_hashed);
    let (mut end, mut written_back) = (0, 0);
    read_tree(context, Some(number), handle, size, skips_holes, |offset, data| {
        digest.data(offset, data);
        pfs::write_at(target, offset, data).map_err(EntryError::target("write"))?;
        end = offset + data.len() as u64;
        if end - written_back >= WRITEBACK_BYTES {
            pfs::start_writeback(target, written_back, end - written_back);
            written_back = end;
        }
        shown.add(data.len() as u64);
        Ok(())
    })
    .await?;
    if end < size {
        pfs::truncate(target, size).map_err(EntryError::target("write"))?;
    }
    Ok(digest.end(size))
}

/// The checksum of a file of the instance, as the target of a copy.
pub(crate) async fn checksum_in(context: &Context, handle: TreeHandle, size: u64) -> Result<Option<u128>, EntryError> {
    let mut digest = Digest::new(true);
    let read = read_tree(context, None, handle, size, true, |offset, data| {
        digest.data(offset, data);
        Ok(())
    });
    read.await.map_err(|error| match error {
        EntryError::Source { errno, .. } => EntryError::Target { what: "read back", errno },
        _ => EntryError::Target { what: "read back", errno: Errno::EIO.into() },
    })?;
    Ok(digest.end(size))
}

/// The checksum of a file of the PFS, as the target of a copy.
pub(crate) fn checksum_out(target: BorrowedFd<'_>, size: u64) -> Result<Option<u128>, OsError> {
    let mut digest = Digest::new(true);
    read_pfs(target, size, |offset, data| digest.data(offset, data))?;
    Ok(digest.end(size))
}

/// Hands the data of a PFS file to `each`, in order; where the file ends early, what there is.
fn read_pfs(file: BorrowedFd<'_>, size: u64, mut each: impl FnMut(u64, &[u8])) -> Result<(), OsError> {
    let mut buffer = Buffer::new(buffer_len(size));
    let mut offset = 0;
    while offset < size {
        let Some(extent) = pfs::next_data(file, offset, size)? else { return Ok(()) };
        let end = extent.end.min(size);
        offset = extent.start;
        while offset < end {
            let want = buffer.len().min((end - offset) as usize);
            let got = pfs::read_at(file, offset, &mut buffer[..want])?;
            if got == 0 {
                return Ok(());
            }
            each(offset, &buffer[..got]);
            offset += got as u64;
        }
    }
    Ok(())
}

/// Copies a file into the instance; its checksum, if wanted.
pub(crate) async fn copy_in(
    context: &Context,
    how: How,
    source: BorrowedFd<'_>,
    handle: TreeHandle,
) -> Result<Option<u128>, EntryError> {
    let How { number, size, skips_holes, is_hashed } = how;
    let read = EntryError::source("read");
    let write = |errno: Errno| EntryError::Target { what: "write", errno: errno.into() };
    let mut shown = Shown { progress: &context.progress, bytes: 0 };
    let mut digest = Digest::new(is_hashed);
    let mut buffer = Buffer::new(buffer_len(size));
    let (mut offset, mut written_to) = (0, 0);
    pfs::read_sequentially(source);
    while offset < size {
        let extent = match skips_holes {
            false => Some(Extent { start: offset, end: size }),
            true => pfs::next_data(source, offset, size).map_err(&read)?,
        };
        let Some(extent) = extent else { break };
        let end = extent.end.min(size);
        offset = extent.start;
        while offset < end {
            let want = buffer.len().min((end - offset) as usize);
            let piece = &mut buffer[..want];
            context.pace(number, want as u64).await;
            if context.cancel.is_cancelled() {
                return Err(EntryError::Cancelled);
            }
            let got = pfs::read_at(source, offset, piece).map_err(&read)?;
            if got < want {
                return Err(EntryError::Changed);
            }
            digest.data(offset, piece);
            context.tree.write_at(handle, offset, piece).await.map_err(write)?;
            offset += got as u64;
            written_to = offset;
            shown.add(got as u64);
        }
    }
    if written_to < size {
        context.tree.truncate(handle, size).await.map_err(write)?;
    }
    Ok(digest.end(size))
}

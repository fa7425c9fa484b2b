//! Contents of files that are too large to hold, or have holes: read, hash and write at the same time.
//!
//! The instance's side runs on the runtime's threads, the PFS's on the worker's own; a few buffers of 1 MiB are between
//! them. The checksum is of the whole contents, holes as zeros, so that anybody can compute it again (`xxh128sum`).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use burstfs_types::Errno;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use xxhash_rust::xxh3::Xxh3;

use crate::engine::Context;
use crate::error::{EntryError, OsError};
use crate::pfs;
use crate::progress::Progress;
use crate::tree::{Extent, InstanceTree, TreeHandle};

const BUFFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 3;
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

struct Chunk {
    offset: u64,
    data: Vec<u8>,
}

/// Reads a file of the instance on the runtime: its data in order.
fn read_tree(
    context: &Context,
    handle: TreeHandle,
    size: u64,
    skips_holes: bool,
) -> mpsc::Receiver<Result<Chunk, EntryError>> {
    let (sender, receiver) = mpsc::channel(BUFFERS);
    let tree = context.tree.clone();
    context.runtime.spawn(async move {
        if let Err(error) = send_tree(&*tree, handle, size, skips_holes, &sender).await {
            // The receiver went away: it has an error of its own.
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn send_tree(
    tree: &dyn InstanceTree,
    handle: TreeHandle,
    size: u64,
    skips_holes: bool,
    sender: &mpsc::Sender<Result<Chunk, EntryError>>,
) -> Result<(), EntryError> {
    let failed = |errno: Errno| EntryError::Source { what: "read", errno: errno.into() };
    let mut offset = 0;
    while offset < size {
        let extent = match skips_holes {
            false => Some(Extent { start: offset, end: size }),
            true => tree.next_data(handle, offset).await.map_err(failed)?,
        };
        let Some(extent) = extent else { return Ok(()) };
        let end = extent.end.min(size);
        offset = extent.start;
        while offset < end {
            let mut data = vec![0; BUFFER_BYTES.min((end - offset) as usize)];
            let got = tree.read_at(handle, offset, &mut data).await.map_err(failed)?;
            if got < data.len() {
                return Err(EntryError::Changed);
            }
            let chunk = Chunk { offset, data };
            offset += got as u64;
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Copies a file out of the instance; its checksum, if wanted.
pub(crate) async fn copy_out(
    context: &Context,
    handle: TreeHandle,
    size: u64,
    skips_holes: bool,
    target: BorrowedFd<'_>,
    is_hashed: bool,
) -> Result<Option<u128>, EntryError> {
    let mut shown = Shown { progress: &context.progress, bytes: 0 };
    let mut digest = Digest::new(is_hashed);
    let mut chunks = read_tree(context, handle, size, skips_holes);
    let mut end = 0;
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk?;
        digest.data(chunk.offset, &chunk.data);
        pfs::write_at(target, chunk.offset, &chunk.data).map_err(EntryError::target("write"))?;
        end = chunk.offset + chunk.data.len() as u64;
        shown.add(chunk.data.len() as u64);
    }
    if end < size {
        pfs::truncate(target, size).map_err(EntryError::target("write"))?;
    }
    Ok(digest.end(size))
}

/// The checksum of a file of the instance, as the target of a copy.
pub(crate) async fn checksum_in(context: &Context, handle: TreeHandle, size: u64) -> Result<Option<u128>, EntryError> {
    let mut digest = Digest::new(true);
    let mut chunks = read_tree(context, handle, size, true);
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk.map_err(|error| match error {
            EntryError::Source { errno, .. } => EntryError::Target { what: "read back", errno },
            _ => EntryError::Target { what: "read back", errno: Errno::EIO.into() },
        })?;
        digest.data(chunk.offset, &chunk.data);
    }
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
    let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(size).unwrap_or(BUFFER_BYTES))];
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

/// An extent of the source at a time, several writes under way.
struct Writes {
    tree: Arc<dyn InstanceTree>,
    handle: TreeHandle,
    set: JoinSet<Result<(), Errno>>,
}

impl Writes {
    async fn push(&mut self, offset: u64, data: Vec<u8>) -> Result<(), EntryError> {
        while self.set.len() >= BUFFERS {
            self.reap().await?;
        }
        let (tree, handle) = (self.tree.clone(), self.handle);
        self.set.spawn(async move { tree.write_at(handle, offset, &data).await });
        Ok(())
    }

    async fn reap(&mut self) -> Result<(), EntryError> {
        let failed = |errno: Errno| EntryError::Target { what: "write", errno: errno.into() };
        match self.set.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(errno))) => Err(failed(errno)),
            Some(Err(_)) => Err(failed(Errno::EIO)),
        }
    }

    /// Waits for all, also when one failed: the handle is closed next.
    async fn end(mut self) -> Result<(), EntryError> {
        let mut result = Ok(());
        while !self.set.is_empty() {
            result = result.and(self.reap().await);
        }
        result
    }
}

/// Copies a file into the instance; its checksum, if wanted.
pub(crate) async fn copy_in(
    context: &Context,
    source: BorrowedFd<'_>,
    size: u64,
    skips_holes: bool,
    handle: TreeHandle,
    is_hashed: bool,
) -> Result<Option<u128>, EntryError> {
    let mut writes = Writes { tree: context.tree.clone(), handle, set: JoinSet::new() };
    let copied = send_pfs(context, source, size, skips_holes, &mut writes, is_hashed).await;
    let written = writes.end().await;
    let (end, checksum) = copied?;
    written?;
    if end < size {
        let failed = |errno: Errno| EntryError::Target { what: "write", errno: errno.into() };
        context.tree.truncate(handle, size).await.map_err(failed)?;
    }
    Ok(checksum)
}

async fn send_pfs(
    context: &Context,
    source: BorrowedFd<'_>,
    size: u64,
    skips_holes: bool,
    writes: &mut Writes,
    is_hashed: bool,
) -> Result<(u64, Option<u128>), EntryError> {
    let failed = EntryError::source("read");
    let mut shown = Shown { progress: &context.progress, bytes: 0 };
    let mut digest = Digest::new(is_hashed);
    let (mut offset, mut written_to) = (0, 0);
    pfs::read_sequentially(source);
    while offset < size {
        let extent = match skips_holes {
            false => Some(Extent { start: offset, end: size }),
            true => pfs::next_data(source, offset, size).map_err(&failed)?,
        };
        let Some(extent) = extent else { break };
        let end = extent.end.min(size);
        offset = extent.start;
        while offset < end {
            let mut data = vec![0; BUFFER_BYTES.min((end - offset) as usize)];
            let got = pfs::read_at(source, offset, &mut data).map_err(&failed)?;
            if got < data.len() {
                return Err(EntryError::Changed);
            }
            digest.data(offset, &data);
            writes.push(offset, data).await?;
            offset += got as u64;
            written_to = offset;
            shown.add(got as u64);
        }
    }
    Ok((written_to, digest.end(size)))
}

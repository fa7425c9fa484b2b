//! What a role offers to a caller, whether the call comes from the same process or over a network.
//!
//! The roles implement these traits; the client calls them directly when the target is in its own process, and the RPC
//! server calls them for everybody else. A call that needs nothing from another node finishes without ever returning
//! `Poll::Pending`, so that it can run on the thread that asked.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use async_trait::async_trait;
use burstfs_types::{ClientId, Errno, ObjectId, Timestamp, Xid};
use thiserror::Error;

use crate::mds::{MdsReply, MdsRequest};
use crate::oss::{OssReply, OssRequest};

/// Who sends a request, and under which number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The client, as its connection proved it.
    pub client: ClientId,
    /// The request's number: the same when it is sent again.
    pub xid: Xid,
    /// The oldest request that the client still waits for: replies below need not be kept.
    pub oldest_unanswered: Xid,
}

/// One MDT.
#[async_trait]
pub trait MetadataService: Send + Sync + 'static {
    /// Does what `request` asks. A replayable request that comes again under its (client, xid) gets the first reply.
    async fn call(&self, caller: Caller, request: MdsRequest) -> Result<MdsReply, Errno>;
}

/// One OST.
#[async_trait]
pub trait ObjectService: Send + Sync + 'static {
    /// Does what `request` asks; the data of reads and writes goes through `bulk`.
    async fn call(&self, caller: Caller, request: OssRequest, bulk: &mut dyn Bulk) -> Result<OssReply, Errno>;
}

/// The object files of an OST, for the kernel of the OST's own node, which reads and writes them without asking anybody
/// (FUSE passthrough). Not an RPC: it needs the OST in the same process.
pub trait ObjectFiles: Send + Sync + 'static {
    /// Lends an object's file. One that is not there is made, with `times` (last read, last write).
    fn lend(self: Arc<Self>, object: ObjectId, times: (Timestamp, Timestamp)) -> Result<Arc<dyn LentFile>, Errno>;

    /// Says whom to tell of each lent object that was removed: who keeps its file open keeps its space. Once.
    fn on_removal(&self, tell: Box<dyn Fn(ObjectId) + Send + Sync>);
}

/// An object's file that is lent. Dropped when the kernel has it no longer.
pub trait LentFile: Send + Sync + 'static {
    /// The file, for reading and writing.
    fn file(&self) -> BorrowedFd<'_>;

    /// Says that the kernel is about to write it for one more open file. False when the OST is too near the end of its
    /// share for writes that it does not see: that open file must write through the OST.
    fn begin_writing(&self) -> bool;

    /// The end of what a successful [`LentFile::begin_writing`] began.
    fn end_writing(&self);

    /// Charges what the kernel has written. ENOSPC when the share is exceeded and this file has grown under the kernel's
    /// writes: the bytes are there, but they are more than there was room for.
    fn settle(&self) -> Result<(), Errno>;
}

/// Why bulk data could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BulkError {
    /// The client registered less memory than the server wants to reach.
    #[error("bytes {offset}..{end} are outside the {len} bytes that the client registered")]
    OutOfBounds {
        /// From.
        offset: usize,
        /// To, exclusive.
        end: usize,
        /// What there is.
        len: usize,
    },
    /// The connection ended meanwhile.
    #[error("the connection was lost while bulk data was moved")]
    Disconnected,
    /// The bytes that came are not those that were sent.
    #[error("crc32c of bulk data is {actual:#010x}, not {expected:#010x}")]
    Damaged {
        /// By the sender.
        expected: u32,
        /// By the bytes.
        actual: u32,
    },
}

/// The memory that a client registered for one request, seen from the server, which drives every transfer: it *gets*
/// what the client sends and *puts* what the client receives. One request has a source or a sink, not both.
#[async_trait]
pub trait Bulk: Send {
    /// Bytes that the client offers to get; 0 where there is no source.
    fn source_len(&self) -> usize;

    /// Bytes that the client offers to put into; 0 where there is no sink.
    fn sink_len(&self) -> usize;

    /// The source, where the server's process can address it (in-process; TCP, where it came with the request).
    fn source(&self) -> Option<&[u8]>;

    /// The sink, where the server's process can address it. How much of it counts is said with [`Bulk::set_put_len`].
    fn sink(&mut self) -> Option<&mut [u8]>;

    /// Says that the first `len` bytes of the sink were filled through [`Bulk::sink`].
    fn set_put_len(&mut self, len: usize);

    /// Copies the source's bytes from `offset` on into `into`.
    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError>;

    /// Copies `from` into the sink at `offset`.
    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError>;
}

/// No bulk data: for requests that have none.
pub struct NoBulk;

#[async_trait]
impl Bulk for NoBulk {
    fn source_len(&self) -> usize {
        0
    }

    fn sink_len(&self) -> usize {
        0
    }

    fn source(&self) -> Option<&[u8]> {
        Some(&[])
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(&mut [])
    }

    fn set_put_len(&mut self, _len: usize) {}

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), 0)
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), 0)
    }
}

/// Checks that `offset..offset + len` lies within `of` bytes.
pub fn in_bounds(offset: usize, len: usize, of: usize) -> Result<(), BulkError> {
    let end = offset.saturating_add(len);
    if end > of { Err(BulkError::OutOfBounds { offset, end, len: of }) } else { Ok(()) }
}

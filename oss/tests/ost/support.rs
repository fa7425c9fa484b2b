//! What the tests share: a caller, bulk memory of both kinds, and short forms of the requests.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use burstfs_oss::{Options, Ost};
use burstfs_proto::oss::{
    Allocate, AllocateMode, Append, Glimpse, ObjectAttr, OssReply, OssRequest, OstStatfs, Read, Remove, Statfs,
    Truncate, Write,
};
use burstfs_proto::service::{Bulk, BulkError, Caller, NoBulk, ObjectService, in_bounds};
use burstfs_types::{ClientId, Errno, Ino, NodeIndex, ObjectId, StripeIndex, Xid};

pub(crate) fn object(counter: u64) -> ObjectId {
    ObjectId { ino: Ino::from_raw(counter).unwrap(), stripe: StripeIndex::new(0) }
}

pub(crate) fn open(directory: &Path, capacity_bytes: u64) -> Ost {
    Ost::open(directory, Options { capacity_bytes, open_files_max: 64 }).unwrap()
}

pub(crate) fn caller(xid: u64) -> Caller {
    let client = ClientId { node: NodeIndex::new(1), incarnation: 1 };
    Caller { client, xid: Xid(xid), oldest_unanswered: Xid(xid.saturating_sub(64)) }
}

/// A client's memory. `is_addressable`: the server sees it as TCP and a caller in its own process show it; else only by
/// get and put, as RDMA will.
pub(crate) struct Memory {
    pub(crate) source: Vec<u8>,
    pub(crate) sink: Vec<u8>,
    pub(crate) put_len: usize,
    pub(crate) is_addressable: bool,
}

impl Memory {
    pub(crate) fn source(data: &[u8], is_addressable: bool) -> Memory {
        Memory { source: data.to_vec(), sink: Vec::new(), put_len: 0, is_addressable }
    }

    pub(crate) fn sink(len: usize, is_addressable: bool) -> Memory {
        Memory { source: Vec::new(), sink: vec![0xee; len], put_len: 0, is_addressable }
    }
}

#[async_trait]
impl Bulk for Memory {
    fn source_len(&self) -> usize {
        self.source.len()
    }

    fn sink_len(&self) -> usize {
        self.sink.len()
    }

    fn source(&self) -> Option<&[u8]> {
        self.is_addressable.then_some(&self.source[..])
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        self.is_addressable.then_some(&mut self.sink[..])
    }

    fn set_put_len(&mut self, len: usize) {
        self.put_len = len;
    }

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), self.source.len())?;
        into.copy_from_slice(&self.source[offset..][..into.len()]);
        Ok(())
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), self.sink.len())?;
        self.sink[offset..][..from.len()].copy_from_slice(from);
        self.put_len = self.put_len.max(offset + from.len());
        Ok(())
    }
}

/// Calls the service, which must end without waiting.
pub(crate) fn call_as(
    ost: &Ost,
    caller: Caller,
    request: impl Into<OssRequest>,
    bulk: &mut dyn Bulk,
) -> Result<OssReply, Errno> {
    let future = pin!(ost.call(caller, request.into(), bulk));
    let mut future = future;
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => reply,
        Poll::Pending => panic!("an operation of the OST waits for something"),
    }
}

pub(crate) fn call(ost: &Ost, request: impl Into<OssRequest>) -> Result<OssReply, Errno> {
    call_as(ost, caller(0), request, &mut NoBulk)
}

pub(crate) fn write(ost: &Ost, object: ObjectId, offset: u64, data: &[u8]) -> Result<u64, Errno> {
    let reply = call_as(ost, caller(0), Write { object, offset }, &mut Memory::source(data, true))?;
    let OssReply::Write(done) = reply else { panic!("{reply:?}") };
    Ok(done.size)
}

pub(crate) fn append(ost: &Ost, caller: Caller, object: ObjectId, data: &[u8]) -> Result<u64, Errno> {
    let reply = call_as(ost, caller, Append { object }, &mut Memory::source(data, true))?;
    let OssReply::Append(done) = reply else { panic!("{reply:?}") };
    Ok(done.size)
}

pub(crate) fn read_with(ost: &Ost, object: ObjectId, offset: u64, mut memory: Memory) -> Result<Vec<u8>, Errno> {
    let len = memory.sink.len() as u32;
    let reply = call_as(ost, caller(0), Read { object, offset, len }, &mut memory)?;
    let OssReply::Read(done) = reply else { panic!("{reply:?}") };
    assert_eq!(done.len as usize, memory.put_len);
    memory.sink.truncate(memory.put_len);
    Ok(memory.sink)
}

pub(crate) fn read(ost: &Ost, object: ObjectId, offset: u64, len: usize) -> Vec<u8> {
    read_with(ost, object, offset, Memory::sink(len, true)).unwrap()
}

pub(crate) fn glimpse(ost: &Ost, object: ObjectId) -> Option<ObjectAttr> {
    let reply = call(ost, Glimpse { objects: vec![object] }).unwrap();
    let OssReply::Glimpse(attrs) = reply else { panic!("{reply:?}") };
    attrs[0]
}

pub(crate) fn statfs(ost: &Ost) -> OstStatfs {
    let reply = call(ost, Statfs).unwrap();
    let OssReply::Statfs(statfs) = reply else { panic!("{reply:?}") };
    statfs
}

pub(crate) fn truncate(ost: &Ost, object: ObjectId, size: u64) -> Result<(), Errno> {
    call(ost, Truncate { object, size }).map(|_| ())
}

pub(crate) fn allocate(ost: &Ost, object: ObjectId, mode: AllocateMode, offset: u64, len: u64) -> Result<(), Errno> {
    call(ost, Allocate { object, mode, offset, len }).map(|_| ())
}

pub(crate) fn remove(ost: &Ost, object: ObjectId) {
    call(ost, Remove { objects: vec![object] }).unwrap();
}

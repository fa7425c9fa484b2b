//! A request's bulk data in memory of the server's own, for transports whose servers cannot address their clients' memory.

use std::sync::Arc;

use async_trait::async_trait;
use burstfs_proto::service::{Bulk, BulkError, in_bounds};
use burstfs_types::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::region::{Region, RegionPool};
use crate::transport::{Admission, put_at};

/// Where the requests of one connection take their memory from: the server's pool, within what the connection may have.
#[derive(Clone)]
pub(crate) struct Allowance {
    bytes: Arc<Semaphore>,
    pool: RegionPool,
}

impl Allowance {
    /// A new connection's. The largest request fits always.
    pub(crate) fn new(admission: Admission, pool: RegionPool) -> Allowance {
        let bytes = admission.bulk_bytes_max.max(limits::RPC_BULK_MAX_BYTES);
        Allowance { bytes: Arc::new(Semaphore::new(bytes)), pool }
    }

    /// Memory of `len` bytes, waited for, and what is to be held as long as it is in use; none where there is never so much.
    pub(crate) async fn take(&self, len: usize) -> Option<(Region, OwnedSemaphorePermit)> {
        let permits = u32::try_from(len).ok()?;
        let permit = self.bytes.clone().acquire_many_owned(permits).await.ok()?;
        let memory = self.pool.region(len).await.ok()?;
        Some((memory, permit))
    }
}

/// A copy of the client's source, or what is to be put into its sink; never both.
pub(crate) struct ServerMemory {
    source_len: usize,
    sink_len: usize,
    memory: Region,
    put_len: usize,
}

impl ServerMemory {
    /// Of a request that lends so much; without the memory itself as yet.
    pub(crate) fn new(source_len: usize, sink_len: usize) -> ServerMemory {
        ServerMemory { source_len, sink_len, memory: Region::default(), put_len: 0 }
    }

    /// How many bytes it needs.
    pub(crate) fn needs(&self) -> usize {
        self.source_len.max(self.sink_len)
    }

    /// Gives it the memory that it needs.
    pub(crate) fn provide(&mut self, memory: Region) {
        self.memory = memory;
    }

    /// The memory, for the transport to copy the source into.
    pub(crate) fn region(&mut self) -> &mut Region {
        &mut self.memory
    }

    /// What goes back to the client's sink.
    pub(crate) fn into_put(self) -> Region {
        let mut put = if self.sink_len > 0 { self.memory } else { Region::default() };
        put.truncate(self.put_len);
        put
    }
}

/// Whether a source is what its client says it is.
pub(crate) fn check_source(expected: u32, actual: u32) -> Result<(), BulkError> {
    if expected == actual { Ok(()) } else { Err(BulkError::Damaged { expected, actual }) }
}

#[async_trait]
impl Bulk for ServerMemory {
    fn source_len(&self) -> usize {
        self.source_len
    }

    fn sink_len(&self) -> usize {
        self.sink_len
    }

    fn source(&self) -> Option<&[u8]> {
        Some(if self.source_len > 0 { &self.memory } else { &[] })
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(if self.sink_len > 0 { &mut self.memory } else { &mut [] })
    }

    fn set_put_len(&mut self, len: usize) {
        self.put_len = len.min(self.sink_len);
    }

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), self.source_len)?;
        into.copy_from_slice(&self.memory[offset..offset + into.len()]);
        Ok(())
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), self.sink_len)?;
        put_at(&mut self.memory, &mut self.put_len, offset, from);
        Ok(())
    }
}

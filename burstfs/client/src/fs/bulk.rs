//! Bulk data of a call within the process: the caller's own memory, lent to the service for the call.

use async_trait::async_trait;
use burstfs_proto::service::{Bulk, BulkError, in_bounds};

/// What a service of this process gets.
pub(super) struct Lent<'a>(pub(super) &'a [u8]);

#[async_trait]
impl Bulk for Lent<'_> {
    fn source_len(&self) -> usize {
        self.0.len()
    }

    fn sink_len(&self) -> usize {
        0
    }

    fn source(&self) -> Option<&[u8]> {
        Some(self.0)
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(&mut [])
    }

    fn set_put_len(&mut self, _len: usize) {}

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), self.0.len())?;
        into.copy_from_slice(&self.0[offset..offset + into.len()]);
        Ok(())
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), 0)
    }
}

/// What a service of this process puts into.
pub(super) struct Room<'a> {
    memory: &'a mut [u8],
    put_len: usize,
}

impl<'a> Room<'a> {
    pub(super) fn new(memory: &'a mut [u8]) -> Room<'a> {
        Room { memory, put_len: 0 }
    }

    /// How many bytes, from the beginning, were put.
    pub(super) fn put_len(&self) -> usize {
        self.put_len
    }
}

#[async_trait]
impl Bulk for Room<'_> {
    fn source_len(&self) -> usize {
        0
    }

    fn sink_len(&self) -> usize {
        self.memory.len()
    }

    fn source(&self) -> Option<&[u8]> {
        Some(&[])
    }

    fn sink(&mut self) -> Option<&mut [u8]> {
        Some(self.memory)
    }

    fn set_put_len(&mut self, len: usize) {
        self.put_len = len.min(self.memory.len());
    }

    async fn get(&mut self, offset: usize, into: &mut [u8]) -> Result<(), BulkError> {
        in_bounds(offset, into.len(), 0)
    }

    async fn put(&mut self, offset: usize, from: &[u8]) -> Result<(), BulkError> {
        in_bounds(offset, from.len(), self.memory.len())?;
        let end = offset + from.len();
        self.memory[offset..end].copy_from_slice(from);
        self.put_len = self.put_len.max(end);
        Ok(())
    }
}

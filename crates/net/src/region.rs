//! Memory that bulk data travels in.
//!
//! A pool bounds what all of its regions take together and keeps some memory for the next ones, so that a transfer
//! neither allocates nor faults pages in. Its blocks are powers of two from 4 KiB on. A pool of registered memory has its
//! blocks from an arena that an RDMA device reaches; it serves any other transport as well.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut, Range};
#[cfg(feature = "rdma")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

#[cfg(feature = "rdma")]
use burstfs_verbs::{Arena, Block, Hold};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::pool_wait::taken;

const UNIT_BYTES: usize = 4096;

/// A bounded amount of memory for bulk data. Clones share it.
#[derive(Clone)]
pub struct RegionPool(Arc<Inner>);

struct Inner {
    limit_units: usize,
    units: Arc<Semaphore>,
    spare: Mutex<Spare>,
    /// A block came back: registered memory that had too many small ones in it may have a large one now.
    returned: Arc<Notify>,
    #[cfg(feature = "rdma")]
    arena: Option<Arena>,
    /// That no more memory can be registered was said.
    #[cfg(feature = "rdma")]
    is_short: AtomicBool,
}

/// Blocks that wait for their next use, by their length.
#[derive(Default)]
struct Spare {
    blocks: HashMap<usize, Vec<Box<[u8]>>>,
    bytes: usize,
}

/// A region that the pool could never give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a region of {len} bytes from a pool of {limit} bytes")]
pub struct RegionTooLarge {
    /// Asked for.
    pub len: usize,
    /// All that there is.
    pub limit: usize,
}

impl RegionPool {
    /// A pool whose regions take at most `limit_bytes` together; on top of it at most an eighth as much is kept spare.
    pub fn new(limit_bytes: usize) -> RegionPool {
        RegionPool(Arc::new(Inner::new(limit_bytes)))
    }

    /// A pool of registered memory.
    #[cfg(feature = "rdma")]
    pub(crate) fn registered(arena: Arena, limit_bytes: usize) -> RegionPool {
        let inner = Inner::new(limit_bytes);
        let returned = inner.returned.clone();
        arena.on_return(move || returned.notify_waiters());
        RegionPool(Arc::new(Inner { arena: Some(arena), ..inner }))
    }

    /// A region of `len` bytes with anything in it; waits until the pool has so much, in the order of asking.
    pub async fn region(&self, len: usize) -> Result<Region, RegionTooLarge> {
        let units = self.units_of(len)?;
        if units == 0 {
            return Ok(Region::default());
        }
        let Ok(permit) = self.0.units.clone().acquire_many_owned(units).await else {
            // The pool's semaphore is never closed.
            return Err(RegionTooLarge { len, limit: 0 });
        };
        let memory = taken(&self.0.returned, || self.0.memory(block_len(len))).await;
        Ok(Region { memory, len, home: Some((self.0.clone(), permit)) })
    }

    /// As [`RegionPool::region`], but `None` where it would have to wait.
    pub fn try_region(&self, len: usize) -> Result<Option<Region>, RegionTooLarge> {
        let units = self.units_of(len)?;
        if units == 0 {
            return Ok(Some(Region::default()));
        }
        let Ok(permit) = self.0.units.clone().try_acquire_many_owned(units) else { return Ok(None) };
        let memory = self.0.memory(block_len(len));
        Ok(memory.map(|memory| Region { memory, len, home: Some((self.0.clone(), permit)) }))
    }

    /// A copy of `bytes` to be sent: in memory of the pool where some is free now, from where a device sends it as it is, else
    /// in any.
    pub fn copy(&self, bytes: &[u8]) -> Source {
        match self.try_region(bytes.len()) {
            Ok(Some(mut region)) => {
                region.copy_from_slice(bytes);
                region.into()
            }
            Ok(None) | Err(RegionTooLarge { .. }) => Bytes::copy_from_slice(bytes).into(),
        }
    }

    /// Bytes that regions take now, in whole blocks.
    pub fn in_use_bytes(&self) -> usize {
        (self.0.limit_units - self.0.units.available_permits()) * UNIT_BYTES
    }

    /// Bytes that regions may take together.
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_units * UNIT_BYTES
    }

    fn units_of(&self, len: usize) -> Result<u32, RegionTooLarge> {
        let units = block_len(len) / UNIT_BYTES;
        match u32::try_from(units) {
            Ok(fits) if units <= self.0.limit_units => Ok(fits),
            _ => Err(RegionTooLarge { len, limit: self.limit_bytes() }),
        }
    }
}

/// Bytes of the block that holds a region of `len` bytes.
fn block_len(len: usize) -> usize {
    if len == 0 { 0 } else { len.max(UNIT_BYTES).checked_next_power_of_two().unwrap_or(usize::MAX) }
}

impl Inner {
    fn new(limit_bytes: usize) -> Inner {
        let limit_units = (limit_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Inner {
            limit_units,
            units: Arc::new(Semaphore::new(limit_units)),
            spare: Mutex::default(),
            returned: Arc::default(),
            #[cfg(feature = "rdma")]
            arena: None,
            #[cfg(feature = "rdma")]
            is_short: AtomicBool::new(false),
        }
    }

    /// Memory of so many bytes. Registered memory may be in pieces, or not be had; what is in use comes back.
    fn memory(&self, block_len: usize) -> Option<Memory> {
        #[cfg(feature = "rdma")]
        if let Some(arena) = &self.arena {
            return match arena.take(block_len) {
                Ok(block) => block.map(Memory::Registered),
                Err(error) => {
                    // The first part of it is there, so that everything goes on, in turn.
                    if !self.is_short.swap(true, Ordering::Relaxed) {
                        let registered = arena.registered_bytes();
                        tracing::warn!(%error, registered, "no more memory can be registered for RDMA: requests take turns");
                    }
                    None
                }
            };
        }
        let spare = self.take_spare(block_len);
        Some(Memory::Heap(spare.unwrap_or_else(|| vec![0; block_len].into_boxed_slice())))
    }

    fn take_spare(&self, block_len: usize) -> Option<Box<[u8]>> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let block = spare.blocks.get_mut(&block_len)?.pop()?;
        spare.bytes -= block_len;
        Some(block)
    }

    fn keep(&self, block: Box<[u8]>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.bytes + block.len() <= self.limit_units * UNIT_BYTES / 8 {
            spare.bytes += block.len();
            spare.blocks.entry(block.len()).or_default().push(block);
        }
    }
}

/// Owned memory of a pool; goes back to it when dropped.
#[derive(Default)]
pub struct Region {
    memory: Memory,
    len: usize,
    home: Option<(Arc<Inner>, OwnedSemaphorePermit)>,
}

enum Memory {
    Heap(Box<[u8]>),
    #[cfg(feature = "rdma")]
    Registered(Block),
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::Heap(Box::default())
    }
}

impl Region {
    /// Bytes, also while a device has them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes; does nothing where there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// What keeps the bytes where they are while a device reads them; `None` where they are in memory that none reaches.
    #[cfg(feature = "rdma")]
    pub(crate) fn hold(&self) -> Option<Hold> {
        match &self.memory {
            Memory::Registered(block) => Some(block.hold()),
            Memory::Heap(_) => None,
        }
    }

    /// Takes registered memory out, for a device to write to. The region has no bytes until it is put back.
    #[cfg(feature = "rdma")]
    pub(crate) fn take_block(&mut self) -> Option<Block> {
        match mem::take(&mut self.memory) {
            Memory::Registered(block) => Some(block),
            heap @ Memory::Heap(_) => {
                self.memory = heap;
                None
            }
        }
    }

    /// Puts back what was taken out.
    #[cfg(feature = "rdma")]
    pub(crate) fn put_block(&mut self, block: Block) {
        self.memory = Memory::Registered(block);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some((pool, permit)) = self.home.take() {
            match mem::take(&mut self.memory) {
                Memory::Heap(block) => pool.keep(block),
                #[cfg(feature = "rdma")]
                Memory::Registered(block) => drop(block),
            }
            drop(permit);
        }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(block) => &block[..self.len],
            #[cfg(feature = "rdma")]
            Memory::Registered(block) => &block[..self.len],
        }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(block) => &mut block[..self.len],
            #[cfg(feature = "rdma")]
            Memory::Registered(block) => &mut block[..self.len],
        }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

impl fmt::Debug for RegionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionPool({} of {} bytes)", self.in_use_bytes(), self.limit_bytes())
    }
}

/// What a request sends as bulk data; clones and slices share the bytes, so that they can be sent again, and in parts.
#[derive(Clone, Debug)]
pub struct Source {
    bytes: SourceBytes,
    crc: Arc<OnceLock<u32>>,
}

#[derive(Clone, Debug)]
enum SourceBytes {
    Region(Arc<Region>, Range<usize>),
    Bytes(Bytes),
}

impl Source {
    fn new(bytes: SourceBytes) -> Source {
        Source { bytes, crc: Arc::default() }
    }

    /// crc32c of the bytes, computed once.
    pub fn crc(&self) -> u32 {
        *self.crc.get_or_init(|| crc32c::crc32c(self))
    }

    /// The bytes of a range; panics where there are none, like a slice.
    pub fn slice(&self, range: Range<usize>) -> Source {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        Source::new(match &self.bytes {
            SourceBytes::Region(region, all) => {
                SourceBytes::Region(region.clone(), all.start + range.start..all.start + range.end)
            }
            SourceBytes::Bytes(bytes) => SourceBytes::Bytes(bytes.slice(range)),
        })
    }

    /// What keeps the bytes for a device, and where in it they begin; `None` where they are in memory that none reaches.
    #[cfg(feature = "rdma")]
    pub(crate) fn hold(&self) -> Option<(Hold, usize)> {
        match &self.bytes {
            SourceBytes::Region(region, range) => Some((region.hold()?, range.start)),
            SourceBytes::Bytes(_) => None,
        }
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            SourceBytes::Region(region, range) => &region[range.clone()],
            SourceBytes::Bytes(bytes) => bytes,
        }
    }
}

impl From<Region> for Source {
    fn from(region: Region) -> Source {
        let all = 0..region.len();
        Source::new(SourceBytes::Region(Arc::new(region), all))
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Source {
        Source::new(SourceBytes::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Source {
        Source::from(Bytes::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_what_it_has_and_takes_it_back() {
        let pool = RegionPool::new(64 << 10);
        let first = pool.try_region(40_000).unwrap().unwrap();
        assert_eq!((first.len(), pool.in_use_bytes()), (40_000, 64 << 10));
        assert!(pool.try_region(1).unwrap().is_none());
        assert_eq!(pool.try_region(0).unwrap().unwrap().len(), 0);
        drop(first);
        assert_eq!(pool.in_use_bytes(), 0);
        assert_eq!(pool.try_region(70_000).unwrap_err(), RegionTooLarge { len: 70_000, limit: 64 << 10 });
        assert!(pool.try_region(usize::MAX).is_err());
    }

    #[test]
    fn a_copy_takes_what_the_pool_has_and_slices_share_it() {
        let pool = RegionPool::new(8 << 10);
        let bytes: Vec<u8> = (0..=255).cycle().take(8 << 10).collect();
        let first = pool.copy(&bytes);
        assert_eq!(pool.in_use_bytes(), 8 << 10);
        let (second, part) = (pool.copy(&bytes), first.slice(100..200).slice(10..20));
        assert_eq!((&first[..], &second[..], &part[..]), (&bytes[..], &bytes[..], &bytes[110..120]));
        assert_eq!(part.crc(), crc32c::crc32c(&bytes[110..120]));
        drop(first);
        assert_eq!(pool.in_use_bytes(), 8 << 10);
        drop(part);
        assert_eq!(pool.in_use_bytes(), 0);
        assert_eq!(&second.slice(0..3)[..], &bytes[..3]);
    }

    #[test]
    fn spare_memory_is_bounded() {
        let pool = RegionPool::new(64 << 10);
        let regions: Vec<_> = (0..16).map(|_| pool.try_region(4096).unwrap().unwrap()).collect();
        drop(regions);
        assert_eq!(pool.0.spare.lock().unwrap().bytes, 8 << 10);
    }
}

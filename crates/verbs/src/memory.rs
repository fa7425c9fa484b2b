//! Memory that a device may reach.
//!
//! Owns: slabs, each mapped once and registered once in each protection domain, and the blocks in them (`extents` has which are in
//! use). Does not own: how much of it anybody may use at a time. Invariants: a block's bytes are accessible to one owner; while a [`Hold`] of it lives they are
//! given to nobody else; a slab stays mapped and registered as long as a block of it lives. The registration itself gives no peer access:
//! peers reach what an endpoint exposes through a window (`Endpoint::expose`), nothing else.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::device::ProtectionDomain;
use crate::error::{VerbsError, check_pointer};
use crate::extents::{Extent, Extents, Shape};
use crate::sys;

/// The smallest block, bytes.
pub const BLOCK_MIN_BYTES: usize = 4096;
/// The largest block, bytes.
pub const BLOCK_MAX_BYTES: usize = 4 << 20;
/// Mapped and registered at a time, bytes.
pub const SLAB_BYTES: usize = 8 << 20;

const ORDER_MAX: usize = (BLOCK_MAX_BYTES / BLOCK_MIN_BYTES).trailing_zeros() as usize;

/// What a registration may serve for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// This side's own transfers. Nothing of it can ever be exposed.
    Private,
    /// Also windows for peers.
    Exposable,
}

/// Registered memory that grows slab by slab up to a limit. Clones share it.
#[derive(Clone)]
pub struct Arena {
    domains: Arc<[ProtectionDomain]>,
    purpose: Purpose,
    extents: Extents<Slab>,
}

impl Arena {
    /// An arena with its first slab, so that what keeps memory from being registered is known at once. Endpoints of any of
    /// the domains, which may be of several devices, can use its memory.
    pub fn new(domains: &[ProtectionDomain], purpose: Purpose, limit_bytes: usize) -> Result<Arena, VerbsError> {
        let slabs_max = limit_bytes.div_ceil(SLAB_BYTES).max(1);
        let shape = Shape { order_max: ORDER_MAX, roots: SLAB_BYTES / BLOCK_MAX_BYTES };
        let arena = Arena { domains: domains.into(), purpose, extents: Extents::new(slabs_max, shape) };
        arena.extents.add(arena.slab()?);
        Ok(arena)
    }

    /// A block of at least `len` bytes, with anything in it. `None` when there is none free, or none so large; an error
    /// where the arena may grow and cannot.
    pub fn take(&self, len: usize) -> Result<Option<Block>, VerbsError> {
        let units = len.div_ceil(BLOCK_MIN_BYTES).max(1).next_power_of_two();
        let order = units.trailing_zeros() as usize;
        if order > ORDER_MAX {
            return Ok(None);
        }
        let taken = self.extents.take(order, || self.slab())?;
        Ok(taken.map(|extent| Block(Hold(Arc::new(extent)))))
    }

    /// Calls `act` whenever a block has come back, on whichever thread that is. Only the first call counts.
    pub fn on_return(&self, act: impl Fn() + Send + Sync + 'static) {
        self.extents.on_return(act);
    }

    /// Bytes that are registered now.
    pub fn registered_bytes(&self) -> usize {
        self.extents.count() * SLAB_BYTES
    }

    fn slab(&self) -> Result<Slab, VerbsError> {
        Slab::new(&self.domains, self.purpose)
    }
}

/// Keeps a block's bytes where they are, and from being given to anybody else.
#[derive(Clone)]
pub struct Hold(Arc<Extent<Slab>>);

impl Hold {
    /// Bytes of the block.
    pub fn capacity(&self) -> usize {
        BLOCK_MIN_BYTES << self.0.order()
    }

    pub(crate) fn address(&self) -> *mut u8 {
        // The unit lies within the slab, as the allocator was told its size.
        self.0.slab().base.0.as_ptr().wrapping_add(self.0.unit() * BLOCK_MIN_BYTES)
    }

    /// The registration in that domain; `None` where the memory is none of it.
    pub(crate) fn registration(&self, domain: &ProtectionDomain) -> Option<NonNull<sys::ibv_mr>> {
        let found = self.0.slab().registrations.iter().find(|registration| registration.domain.is(domain))?;
        Some(found.region)
    }

    pub(crate) fn is_exposable(&self) -> bool {
        self.0.slab().purpose == Purpose::Exposable
    }
}

/// Registered memory with one owner; goes back to its arena when it and all of its holds are gone.
pub struct Block(pub(crate) Hold);

impl Block {
    /// Keeps the bytes for a device that reads them.
    pub fn hold(&self) -> Hold {
        self.0.clone()
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are mapped and were zeroed by the kernel; the slab outlives the block; only this block's owner
        // has access to them, and a device that writes to them has the block itself (`Endpoint` takes it).
        unsafe { std::slice::from_raw_parts(self.0.address(), self.0.capacity()) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the exclusive borrow is of the only owner. A hold gives no access; a device may read the
        // bytes while they are changed, and then sends what it happens to see.
        unsafe { std::slice::from_raw_parts_mut(self.0.address(), self.0.capacity()) }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hold({} bytes)", self.capacity())
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({} bytes)", self.0.capacity())
    }
}

/// Memory, mapped and registered.
struct Slab {
    /// Gone before the mapping is.
    registrations: Vec<Registration>,
    base: Mapping,
    purpose: Purpose,
}

/// Addresses of a slab's length.
struct Mapping(NonNull<u8>);

/// A mapping as one device knows it.
struct Registration {
    region: NonNull<sys::ibv_mr>,
    domain: ProtectionDomain,
}

// SAFETY: the slab itself only keeps the mapping and its registrations; the bytes are reached through blocks, each of which
// has one owner. libibverbs allows its calls from any thread.
unsafe impl Send for Slab {}
// SAFETY: as above; nothing of the slab changes after it was made.
unsafe impl Sync for Slab {}

impl Slab {
    fn new(domains: &[ProtectionDomain], purpose: Purpose) -> Result<Slab, VerbsError> {
        let base = map()?;
        let registrations =
            domains.iter().map(|domain| Registration::new(&base, domain, purpose)).collect::<Result<_, _>>();
        Ok(Slab { registrations: registrations?, base, purpose })
    }
}

impl Registration {
    fn new(base: &Mapping, domain: &ProtectionDomain, purpose: Purpose) -> Result<Registration, VerbsError> {
        let access = match purpose {
            Purpose::Private => sys::IBV_ACCESS_LOCAL_WRITE,
            Purpose::Exposable => sys::IBV_ACCESS_LOCAL_WRITE | sys::IBV_ACCESS_MW_BIND,
        };
        // SAFETY: the domain is alive, and the range is mapped with that length; the slab unmaps it after the registrations.
        let region = unsafe {
            sys::ibv_reg_mr(domain.pointer(), base.0.as_ptr().cast(), SLAB_BYTES, i32::try_from(access).unwrap_or(0))
        };
        Ok(Registration { region: check_pointer("ibv_reg_mr", region)?, domain: domain.clone() })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: with the last block of the slab every work request that named it has ended, or its QP is destroyed
        // (`Endpoint` keeps the blocks until then), and every window is gone for the same reason.
        unsafe { sys::ibv_dereg_mr(self.region.as_ptr()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with that length, and no block, and no device, has it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SLAB_BYTES) };
    }
}

/// Maps a slab: of huge pages where some are set aside, else where the kernel may make them.
fn map() -> Result<Mapping, VerbsError> {
    let mapped = |flags| {
        let (read_write, any) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
        // SAFETY: a new mapping at a place that the kernel chooses touches nothing that exists.
        let base =
            unsafe { libc::mmap(any, SLAB_BYTES, read_write, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags, -1, 0) };
        if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast::<u8>()) }
    };
    if let Some(base) = mapped(libc::MAP_HUGETLB) {
        return Ok(Mapping(base));
    }
    let base = mapped(0).ok_or_else(|| VerbsError::last("mmap"))?;
    // SAFETY: the range was just mapped. Whether the advice is taken makes no difference to what follows.
    unsafe { libc::madvise(base.as_ptr().cast(), SLAB_BYTES, libc::MADV_HUGEPAGE) };
    Ok(Mapping(base))
}

//! Blocks of slabs, taken and let go of by many threads. What a slab is does not matter here.
//!
//! Owns: which blocks are in use. Invariants: a block has one owner, from [`Extents::take`] until its [`Extent`] is dropped, and what it
//! did with the block is done before the next one has it; there are never more slabs than the limit; who is told of a block's return finds
//! it free. `tests/models.rs` looks at them in every order of events.

use std::sync::{OnceLock, PoisonError};

use crate::buddy::Buddy;
use crate::sync::{Arc, Mutex, MutexGuard};

/// Slabs that are added as they are needed. Clones share them.
pub(crate) struct Extents<S>(Arc<Shared<S>>);

impl<S> Clone for Extents<S> {
    fn clone(&self) -> Self {
        Extents(self.0.clone())
    }
}

struct Shared<S> {
    slabs_max: usize,
    shape: Shape,
    slabs: Mutex<Vec<(Arc<S>, Buddy)>>,
    on_return: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What a slab consists of.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Of its largest blocks.
    pub(crate) order_max: usize,
    /// How many of them there are.
    pub(crate) roots: usize,
}

impl<S> Extents<S> {
    /// Of at most so many slabs; without any as yet.
    pub(crate) fn new(slabs_max: usize, shape: Shape) -> Self {
        Extents(Arc::new(Shared { slabs_max, shape, slabs: Mutex::new(Vec::new()), on_return: OnceLock::new() }))
    }

    /// Adds a slab, whatever the limit.
    pub(crate) fn add(&self, slab: S) {
        self.slabs().push((Arc::new(slab), self.buddy()));
    }

    /// Takes a block, from a new slab where there is none free and there may be one more. `None` where all is in use.
    pub(crate) fn take<E>(&self, order: usize, make: impl FnOnce() -> Result<S, E>) -> Result<Option<Extent<S>>, E> {
        let mut slabs = self.slabs();
        let mut taken = slabs.iter_mut().find_map(|(slab, buddy)| Some((slab.clone(), buddy.take(order)?)));
        if taken.is_none() && slabs.len() < self.0.slabs_max {
            let (slab, mut buddy) = (Arc::new(make()?), self.buddy());
            taken = buddy.take(order).map(|unit| (slab.clone(), unit));
            slabs.push((slab, buddy));
        }
        Ok(taken.map(|(slab, unit)| Extent { home: self.clone(), slab, unit, order }))
    }

    /// Calls `act` whenever a block has come back, on whichever thread that is. Only the first call counts.
    pub(crate) fn on_return(&self, act: impl Fn() + Send + Sync + 'static) {
        // A second one is left out, as said.
        let _ = self.0.on_return.set(Box::new(act));
    }

    /// How many slabs there are now.
    pub(crate) fn count(&self) -> usize {
        self.slabs().len()
    }

    fn buddy(&self) -> Buddy {
        Buddy::new(self.0.shape.order_max, self.0.shape.roots)
    }

    fn slabs(&self) -> MutexGuard<'_, Vec<(Arc<S>, Buddy)>> {
        self.0.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A block that is in use until this is dropped.
pub(crate) struct Extent<S> {
    home: Extents<S>,
    slab: Arc<S>,
    unit: usize,
    order: usize,
}

impl<S> Extent<S> {
    pub(crate) fn slab(&self) -> &S {
        &self.slab
    }

    /// Where it begins, in smallest blocks.
    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    /// It has `1 << order` smallest blocks.
    pub(crate) fn order(&self) -> usize {
        self.order
    }
}

impl<S> Drop for Extent<S> {
    fn drop(&mut self) {
        let mut slabs = self.home.slabs();
        if let Some((_, buddy)) = slabs.iter_mut().find(|(slab, _)| Arc::ptr_eq(slab, &self.slab)) {
            buddy.give(self.unit, self.order);
        }
        drop(slabs);
        if let Some(act) = self.home.0.on_return.get() {
            act();
        }
    }
}

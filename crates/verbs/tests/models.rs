//! The blocks of registered memory under loom, which runs each model in every order that its threads' steps can have (`model` has the
//! bound), also those that only a weaker processor than this one would show.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

#[allow(dead_code, reason = "shared with the crate, which uses all of it")]
#[path = "../src/buddy.rs"]
mod buddy;
#[allow(dead_code, reason = "shared with the crate, which uses all of it")]
#[path = "../src/extents.rs"]
mod extents;

/// In place of the crate's.
mod sync {
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

use std::convert::Infallible;

use extents::{Extent, Extents, Shape};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// The bytes of a slab of two smallest blocks. loom fails a model in which two threads may touch one of them at a time, or a later one
/// might not see what an earlier one did.
struct Bytes([UnsafeCell<()>; 2]);

// SAFETY: nothing is in the cells; they are there for loom, which looks at who touches them when.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn new() -> Bytes {
        Bytes([UnsafeCell::new(()), UnsafeCell::new(())])
    }

    fn write(&self, extent: &Extent<Bytes>) {
        for cell in &self.0[extent.unit()..extent.unit() + (1 << extent.order())] {
            cell.with_mut(|_| ());
        }
    }

    fn read(&self, extent: &Extent<Bytes>) {
        for cell in &self.0[extent.unit()..extent.unit() + (1 << extent.order())] {
            cell.with(|_| ());
        }
    }
}

/// Three changes of thread where none is forced show what more of them would, in a hundredth of the time.
fn model(of: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(of);
}

const SHAPE: Shape = Shape { order_max: 1, roots: 1 };

fn one_slab() -> Extents<Bytes> {
    let extents = Extents::new(1, SHAPE);
    extents.add(Bytes::new());
    extents
}

fn take(extents: &Extents<Bytes>, order: usize) -> Option<Extent<Bytes>> {
    extents.take(order, || Ok::<_, Infallible>(Bytes::new())).unwrap()
}

/// Takes a block where one is free, writes to it, and lets go.
fn use_one(extents: &Extents<Bytes>, order: usize) -> bool {
    let taken = take(extents, order);
    if let Some(extent) = &taken {
        extent.slab().write(extent);
    }
    taken.is_some()
}

#[test]
fn a_block_has_one_owner_at_a_time() {
    model(|| {
        let extents = one_slab();
        let others: Vec<_> = [0, 0]
            .map(|order| {
                let extents = extents.clone();
                thread::spawn(move || use_one(&extents, order))
            })
            .into();
        // Both of them, where neither is taken: they are joined again when they come back.
        use_one(&extents, 1);
        for other in others {
            other.join().unwrap();
        }
        assert!(use_one(&extents, 1), "a block did not come back");
    });
}

#[test]
fn what_a_device_reads_is_nobody_elses_until_it_lets_go() {
    model(|| {
        let extents = one_slab();
        let block = Arc::new(take(&extents, 1).unwrap());
        block.slab().write(&block);
        let hold = block.clone();
        let device = thread::spawn(move || hold.slab().read(&hold));
        let next = {
            let extents = extents.clone();
            thread::spawn(move || use_one(&extents, 1))
        };
        drop(block);
        device.join().unwrap();
        next.join().unwrap();
        assert!(use_one(&extents, 1), "the block did not come back");
    });
}

#[test]
fn slabs_are_added_up_to_the_limit_and_all_are_used() {
    model(|| {
        let extents = Extents::<Bytes>::new(2, SHAPE);
        let others = [(); 2].map(|()| {
            let extents = extents.clone();
            thread::spawn(move || take(&extents, 1).is_some())
        });
        let own = take(&extents, 1);
        assert!(others.map(|other| other.join().unwrap()).contains(&true), "two slabs serve two");
        drop(own);
        assert!((1..=2).contains(&extents.count()));
    });
}

//! What threads share in the network layer, under loom, which runs each model in every order that its threads' steps can have
//! (`model` has the bound), also those that only a weaker processor than this one would show.

#![cfg(feature = "rdma")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

#[allow(dead_code, reason = "shared with the crate, which uses all of it")]
#[path = "../../verbs/src/buddy.rs"]
mod buddy;
#[allow(dead_code, reason = "shared with the crate, which uses all of it")]
#[path = "../../verbs/src/extents.rs"]
mod extents;
#[path = "../src/rdma/lane_table.rs"]
mod lane_table;
#[path = "../src/pool_wait.rs"]
mod pool_wait;

/// In place of the crates'.
mod sync {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};

    /// What of tokio's is promised and used here: `notify_waiters` tells whoever called `notified` before it, waiting or not as yet.
    #[derive(Default)]
    pub(crate) struct Notify(Mutex<(u64, Vec<Waker>)>);

    impl Notify {
        pub(crate) fn notified(&self) -> impl Future<Output = ()> + '_ {
            let began = self.0.lock().unwrap().0;
            poll_fn(move |context| {
                let mut state = self.0.lock().unwrap();
                if state.0 != began {
                    return Poll::Ready(());
                }
                state.1.push(context.waker().clone());
                Poll::Pending
            })
        }

        pub(crate) fn notify_waiters(&self) {
            let wakers = {
                let mut state = self.0.lock().unwrap();
                state.0 += 1;
                std::mem::take(&mut state.1)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

use std::convert::Infallible;

use extents::{Extent, Extents, Shape};
use lane_table::{Lane, LaneTable};
use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use pool_wait::taken;
use sync::{AtomicBool, AtomicUsize, Notify, Ordering};

/// Three changes of thread where none is forced show what more of them would, in a hundredth of the time.
fn model(of: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(of);
}

/// Registered memory of two smallest blocks, and who waits for some of it, as a region's pool has them.
fn pool() -> (Extents<()>, Arc<Notify>) {
    let (extents, returned) = (Extents::new(1, Shape { order_max: 1, roots: 1 }), Arc::new(Notify::default()));
    extents.add(());
    let told = returned.clone();
    extents.on_return(move || told.notify_waiters());
    (extents, returned)
}

fn take(extents: &Extents<()>, order: usize) -> Option<Extent<()>> {
    extents.take(order, || Ok::<_, Infallible>(())).unwrap()
}

/// loom fails a model in which nobody can go on.
#[test]
fn who_waits_for_memory_hears_of_it_whenever_it_comes_back() {
    model(|| {
        let (extents, returned) = pool();
        // In pieces: what is large waits for both of them.
        let small = [take(&extents, 0).unwrap(), take(&extents, 0).unwrap()];
        let users = small.map(|block| thread::spawn(move || drop(block)));
        let large = block_on(taken(&returned, || take(&extents, 1)));
        assert_eq!(large.order(), 1);
        for user in users {
            user.join().unwrap();
        }
    });
}

#[test]
fn everybody_who_waits_for_memory_has_his_turn() {
    model(|| {
        let (extents, returned) = pool();
        let first = take(&extents, 1).unwrap();
        let others = [(); 2].map(|()| {
            let (extents, returned) = (extents.clone(), returned.clone());
            thread::spawn(move || drop(block_on(taken(&returned, || take(&extents, 1)))))
        });
        drop(first);
        for other in others {
            other.join().unwrap();
        }
        assert!(take(&extents, 1).is_some());
    });
}

/// A connection that is there until it is closed.
#[derive(Clone, Default)]
struct Line {
    is_closed: Arc<AtomicBool>,
    replies: Arc<AtomicUsize>,
}

impl Line {
    fn answer(&self) {
        self.replies.fetch_add(1, Ordering::Relaxed);
    }
}

impl Lane for Line {
    fn is_live(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
    }

    fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed) as u64
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_lane_that_comes_while_the_link_is_closed_ends_too() {
    model(|| {
        let table = Arc::new(LaneTable::new(2));
        let (first, late) = (Line::default(), Line::default());
        table.put(0, first.clone());
        let mending = {
            let (table, late) = (table.clone(), late.clone());
            thread::spawn(move || table.put(1, late))
        };
        table.close();
        mending.join().unwrap();
        assert!(!first.is_live() && !late.is_live(), "a lane outlives its link");
        assert!(table.is_over() && table.next().is_none());
    });
}

#[test]
fn requests_find_a_lane_while_another_is_replaced_and_no_reply_is_forgotten() {
    model(|| {
        let table = Arc::new(LaneTable::new(2));
        let (lost, other) = (Line::default(), Line::default());
        table.put(0, lost.clone());
        table.put(1, other);
        lost.answer();
        lost.close();
        let mending = {
            let table = table.clone();
            thread::spawn(move || table.put(0, Line::default()))
        };
        for _ in 0..2 {
            table.next().expect("one was there all the while").answer();
            assert!(table.replies() >= 1, "what the lost one had answered is forgotten");
        }
        mending.join().unwrap();
        assert_eq!((table.missing(), table.replies()), (Vec::new(), 3));
    });
}

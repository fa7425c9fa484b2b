//! Which of several connections there are, and whose turn it is. Knows nothing of what a connection is.
//!
//! Invariants: a link that is put in when the table is closed, or while it is, ends; a link that is over is never chosen; what a link has
//! answered counts also when another one has its place. `tests/models.rs` looks at them in every order of events.

use std::sync::PoisonError;

use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering};

/// A connection, to be shared.
pub(crate) trait Lane: Clone {
    fn is_live(&self) -> bool;

    /// How many replies have come over it.
    fn replies(&self) -> u64;

    /// Ends it.
    fn close(&self);
}

/// Places for as many lanes as there may be.
pub(crate) struct LaneTable<L> {
    places: Vec<Mutex<Place<L>>>,
    next: AtomicUsize,
    is_closed: AtomicBool,
}

struct Place<L> {
    lane: Option<L>,
    /// Of the lanes before this one.
    replies: u64,
}

impl<L: Lane> LaneTable<L> {
    pub(crate) fn new(places: usize) -> Self {
        let place = || Mutex::new(Place { lane: None, replies: 0 });
        let places = (0..places).map(|_| place()).collect();
        LaneTable { places, next: AtomicUsize::new(0), is_closed: AtomicBool::new(false) }
    }

    /// Gives a place its lane.
    pub(crate) fn put(&self, at: usize, lane: L) {
        let mut place = self.place(at);
        place.replies += place.lane.take().map_or(0, |before| before.replies());
        let lane = place.lane.insert(lane);
        // The end may have come meanwhile: it passes by every place after it has said so.
        if self.is_closed.load(Ordering::Relaxed) {
            lane.close();
        }
    }

    /// The next lane that is there, beginning with the one whose turn it is.
    pub(crate) fn next(&self) -> Option<L> {
        let (first, count) = (self.next.fetch_add(1, Ordering::Relaxed), self.places.len());
        (0..count).find_map(|lane| self.live(first.wrapping_add(lane) % count))
    }

    /// The places that have no lane just now.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|at| self.live(*at).is_none()).collect()
    }

    /// Whether there is none at all.
    pub(crate) fn is_over(&self) -> bool {
        self.missing().len() == self.places.len()
    }

    /// Replies over all lanes that there were.
    pub(crate) fn replies(&self) -> u64 {
        let of = |place: MutexGuard<'_, Place<L>>| place.replies + place.lane.as_ref().map_or(0, Lane::replies);
        (0..self.places.len()).map(|at| of(self.place(at))).sum()
    }

    /// Ends all of them, and those that come later.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        for at in 0..self.places.len() {
            if let Some(lane) = &self.place(at).lane {
                lane.close();
            }
        }
    }

    fn live(&self, at: usize) -> Option<L> {
        self.place(at).lane.as_ref().filter(|lane| lane.is_live()).cloned()
    }

    fn place(&self, at: usize) -> MutexGuard<'_, Place<L>> {
        self.places[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Reading ahead for clients on other nodes, into the page cache of this one.
//!
//! A client keeps no bytes, so what it will read next can only be made ready here: the device then works while the bytes before are
//! on their way. The kernel does this for one sequential reader of a file; it neither sees strides nor tells clients apart, who
//! share the OST's descriptor. Reads of the node itself do not come here; they are the kernel's.
//!
//! Owns what is known of each client's reads of each object. A pattern is a step that comes back: two reads that are as far apart as
//! the two before. With each further one more is read ahead, up to [`AHEAD_MAX_BYTES`]; whatever does not fit ends it, so that random
//! reads cost a look and nothing else.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burstfs_types::{ClientId, ObjectId};

/// Read ahead of one client in one object, at most.
const AHEAD_MAX_BYTES: u64 = 8 << 20;
/// Pieces of it, at most.
const PIECES_MAX: u64 = 16;
/// Equal steps before anything is read ahead.
const STEPS_MIN: u64 = 2;
/// What is remembered; with one more all is forgotten.
const STREAMS_MAX: usize = 4_096;

/// A part of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// All clients' reads.
#[derive(Default)]
pub(crate) struct Readahead {
    streams: Mutex<HashMap<(ClientId, ObjectId), Stream>>,
}

/// One client's reads of one object.
#[derive(Clone, Copy, Default)]
struct Stream {
    last: u64,
    step: u64,
    /// How often the step came back.
    steps: u64,
    /// Up to here all that is expected was asked for.
    ahead: u64,
}

impl Readahead {
    /// Takes note of a read; what to make ready behind it.
    pub(crate) fn after(&self, client: ClientId, object: ObjectId, read: Piece) -> Vec<Piece> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() >= STREAMS_MAX && !streams.contains_key(&(client, object)) {
            streams.clear();
        }
        streams.entry((client, object)).or_default().after(read)
    }
}

impl Stream {
    fn after(&mut self, read: Piece) -> Vec<Piece> {
        let step = read.offset.checked_sub(self.last).filter(|step| *step > 0);
        self.last = read.offset;
        match step {
            Some(step) if step == self.step => self.steps += 1,
            step => (self.step, self.steps, self.ahead) = (step.unwrap_or(0), 0, 0),
        }
        if self.steps < STEPS_MIN || read.len == 0 {
            return Vec::new();
        }
        let pieces = (self.steps - STEPS_MIN + 1).min(PIECES_MAX).min((AHEAD_MAX_BYTES / read.len).max(1));
        let expected = (1..=pieces).map(|n| read.offset.saturating_add(self.step.saturating_mul(n)));
        let fresh = expected.filter(|offset| *offset >= self.ahead);
        let pieces: Vec<Piece> = fresh.map(|offset| Piece { offset, len: read.len }).collect();
        if let Some(last) = pieces.last() {
            self.ahead = last.offset.saturating_add(1);
        }
        joined(pieces)
    }
}

/// Pieces that touch are one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match joined.last_mut() {
            Some(before) if before.offset.saturating_add(before.len) >= piece.offset => {
                before.len = piece.offset.saturating_add(piece.len).saturating_sub(before.offset);
            }
            _ => joined.push(piece),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use burstfs_types::{Ino, NodeIndex, StripeIndex};
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;

    fn client(node: u16) -> ClientId {
        ClientId { node: NodeIndex::new(node), incarnation: 1 }
    }

    fn object() -> ObjectId {
        ObjectId { ino: Ino::ROOT, stripe: StripeIndex::new(0) }
    }

    fn reads(readahead: &Readahead, node: u16, offsets: impl IntoIterator<Item = u64>) -> Vec<Piece> {
        let read = |offset| readahead.after(client(node), object(), Piece { offset, len: 64 * KIB });
        offsets.into_iter().flat_map(read).collect()
    }

    #[test]
    fn what_is_read_in_order_is_read_ahead_once_and_ever_further() {
        let found = reads(&Readahead::default(), 0, (0..40).map(|n| n * 64 * KIB));
        // Nothing twice, no gap, and always further than the reader.
        assert_eq!(found[0], Piece { offset: 4 * 64 * KIB, len: 64 * KIB });
        for (piece, next) in found.iter().zip(&found[1..]) {
            assert_eq!(piece.offset + piece.len, next.offset);
        }
        let end = found.last().map(|piece| piece.offset + piece.len);
        assert_eq!(end, Some((40 + PIECES_MAX) * 64 * KIB));
    }

    #[test]
    fn strides_are_seen_and_what_lies_between_is_left_alone() {
        let found = reads(&Readahead::default(), 0, (0..6).map(|n| n << 20));
        assert!(found.iter().all(|piece| piece.len == 64 * KIB && piece.offset.is_multiple_of(1 << 20)), "{found:?}");
        assert_eq!(found.first().map(|piece| piece.offset), Some(4 << 20));
    }

    #[test]
    fn clients_do_not_disturb_one_another_and_jumps_end_a_pattern() {
        let readahead = Readahead::default();
        let found: Vec<Piece> = (0..8)
            .flat_map(|n| {
                let first = reads(&readahead, 1, [n * 64 * KIB]);
                [first, reads(&readahead, 2, [(1 << 30) + n * (1 << 20)])].concat()
            })
            .collect();
        assert!(found.iter().any(|piece| piece.offset < 1 << 30) && found.iter().any(|piece| piece.offset > 1 << 30));
        assert_eq!(reads(&readahead, 1, [5 << 20, 1 << 20, 77 << 20, 3 << 20]), []);
    }

    #[test]
    fn large_reads_are_not_read_far_ahead() {
        let mut stream = Stream::default();
        let read = |stream: &mut Stream, n: u64| stream.after(Piece { offset: n << 22, len: 1 << 22 });
        let found: Vec<Piece> = (0..20).flat_map(|n| read(&mut stream, n)).collect();
        assert!(found.iter().all(|piece| piece.len <= AHEAD_MAX_BYTES), "{found:?}");
    }

    proptest! {
        #[test]
        fn no_read_is_too_odd(reads in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..50)) {
            let mut stream = Stream::default();
            for (offset, len) in reads {
                let found = stream.after(Piece { offset, len });
                prop_assert!(found.len() as u64 <= PIECES_MAX);
            }
        }
    }
}

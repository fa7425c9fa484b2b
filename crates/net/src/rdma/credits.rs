//! Who may send when, so that every message finds a posted receive. Pure.
//!
//! Each side posts the same number of receives. A message takes one of the other side's; every message says how many were
//! posted again since the last one. A message of data leaves the last receive alone: that one is for a message that only
//! gives back, which a side sends when it owes half of them and has nothing else to say.
//!
//! Why this never stops, as long as each side takes what it received: suppose that a side cannot send data though all is
//! delivered and taken. Then the other owes it all but one at least, and would give back, unless it has none left itself. Its
//! last one went with a message that gave back; that message brought this side half of them at least, and what this side sent
//! after gave back at least the one that the message itself took. So it has one, or this side has sent nothing since and still
//! has what the message brought: it could send.

/// Receives that each side must have: of fewer, a message that only gives back would make the other side owe half of them, and both would
/// give back for ever.
pub(super) const LEAST: u16 = 4;

/// One side's account.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Credits {
    total: u16,
    /// Receives of the other side that are free for this one.
    available: u16,
    /// Receives of this side that were posted again and not yet announced.
    owed: u16,
}

impl Credits {
    /// A new connection's: all receives are posted on both sides, at least [`LEAST`].
    pub(super) fn new(total: u16) -> Credits {
        Credits { total, available: total, owed: 0 }
    }

    /// Whether a message of data may be sent.
    pub(super) fn may_send(&self) -> bool {
        self.available > 1
    }

    /// Whether a message should be sent that only gives back.
    pub(super) fn should_give_back(&self) -> bool {
        self.available > 0 && self.owed >= self.total / 2
    }

    /// A message is sent: what it gives back.
    pub(super) fn send(&mut self) -> u16 {
        self.available = self.available.saturating_sub(1);
        std::mem::take(&mut self.owed)
    }

    /// A message gave back so many; false where that is more than were ever taken.
    #[must_use]
    pub(super) fn receive(&mut self, given_back: u16) -> bool {
        self.available = self.available.saturating_add(given_back);
        self.available <= self.total
    }

    /// A receive was posted again.
    pub(super) fn posted(&mut self) {
        self.owed += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const TOTAL: u16 = LEAST;

    /// A side with what it wants to say, what is on the way to it, and what it has received and not taken.
    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    struct Side {
        credits: Credits,
        to_say: u32,
        coming: VecDeque<(bool, u16)>,
        parked: u32,
        posted: u16,
    }

    impl Side {
        fn new(total: u16) -> Side {
            Side { credits: Credits::new(total), to_say: 0, coming: VecDeque::new(), parked: 0, posted: total }
        }

        /// Sends one message, where it may.
        fn send(&mut self, other: &mut Side) -> bool {
            let data = self.to_say > 0 && self.credits.may_send();
            if !data && !self.credits.should_give_back() {
                return false;
            }
            self.to_say -= u32::from(data);
            other.coming.push_back((data, self.credits.send()));
            true
        }

        fn arrive(&mut self) -> bool {
            let Some((data, given_back)) = self.coming.pop_front() else { return false };
            assert!(self.posted > 0, "a message for which no receive is posted");
            self.posted -= 1;
            assert!(self.credits.receive(given_back));
            if data {
                self.parked += 1
            } else {
                self.post()
            }
            true
        }

        fn take(&mut self) -> bool {
            let taken = self.parked > 0;
            if taken {
                self.parked -= 1;
                self.post();
            }
            taken
        }

        fn post(&mut self) {
            self.posted += 1;
            self.credits.posted();
        }
    }

    proptest! {
        #[test]
        fn no_message_finds_no_receive_and_nothing_gets_stuck(steps in prop::collection::vec((any::<bool>(), 0..4_u8), 0..400)) {
            let mut sides = [Side::new(TOTAL), Side::new(TOTAL)];
            for (which, step) in steps {
                let [first, second] = &mut sides;
                let (own, other) = if which { (first, second) } else { (second, first) };
                match step {
                    0 => own.to_say += 3,
                    1 => drop(own.send(other)),
                    2 => drop(own.arrive()),
                    _ => drop(own.take()),
                }
            }
            // Whatever happened: when both go on, everything is said and taken.
            loop {
                let [first, second] = &mut sides;
                let sent = first.send(second) | second.send(first);
                let moved = first.arrive() | second.arrive() | first.take() | second.take();
                if !sent && !moved {
                    break;
                }
            }
            for side in &sides {
                prop_assert_eq!((side.to_say, side.parked, side.coming.len()), (0, 0, 0));
                prop_assert_eq!(side.posted, TOTAL);
            }
        }
    }

    /// What can happen next at one side, which always has something to say.
    const EVENTS: [fn(&mut Side, &mut Side) -> bool; 4] = [
        |own, other| {
            own.to_say = 1;
            let sent = own.send(other);
            own.to_say = 0;
            sent
        },
        Side::send,
        |own, _| own.arrive(),
        |own, _| own.take(),
    ];

    /// Every state that any order of events leads to: in none does a message find no receive (`arrive` looks), and from each, once all
    /// is delivered and taken, both sides may speak.
    #[test]
    fn no_order_of_events_leads_to_a_state_that_is_stuck() {
        for (total, at_least) in [(LEAST, 1_900), (5, 12_000), (6, 43_000)] {
            let start = [Side::new(total), Side::new(total)];
            let (mut known, mut ahead) = (HashSet::from([start.clone()]), vec![start]);
            while let Some(state) = ahead.pop() {
                let mut settled = state.clone();
                while each_side(&mut settled, |own, other| own.arrive() | own.take() | own.send(other)) {}
                assert!(settled.iter().all(|side| side.credits.may_send()), "{state:?} settles as {settled:?}");
                for event in EVENTS {
                    for which in [0, 1] {
                        let mut next = state.clone();
                        let [first, second] = &mut next;
                        let (own, other) = if which == 0 { (first, second) } else { (second, first) };
                        if event(own, other) && known.insert(next.clone()) {
                            ahead.push(next);
                        }
                    }
                }
            }
            assert!(known.len() >= at_least, "only {} states of {total} receives were looked at", known.len());
        }
    }

    /// Does the same at both sides; whether anything happened.
    fn each_side(sides: &mut [Side; 2], mut act: impl FnMut(&mut Side, &mut Side) -> bool) -> bool {
        let [first, second] = sides;
        act(first, second) | act(second, first)
    }

    #[test]
    fn a_peer_cannot_give_back_what_was_not_taken() {
        let mut credits = Credits::new(TOTAL);
        assert!(!credits.receive(1));
        let mut credits = Credits::new(TOTAL);
        credits.send();
        assert!(credits.receive(1) && !credits.receive(u16::MAX));
    }
}

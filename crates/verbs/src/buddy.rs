//! Which parts of a slab are in use: blocks of powers of two, split and joined (a buddy allocator). Pure.

use std::collections::BTreeSet;

/// The free blocks of one slab, in units. A block of order `n` has `1 << n` units and begins at a multiple of that.
pub(crate) struct Buddy {
    /// By order: where free blocks begin.
    free: Vec<BTreeSet<usize>>,
}

impl Buddy {
    /// A slab of `roots` blocks of order `order_max`, all free.
    pub(crate) fn new(order_max: usize, roots: usize) -> Buddy {
        let mut free = vec![BTreeSet::new(); order_max + 1];
        free[order_max].extend((0..roots).map(|root| root << order_max));
        Buddy { free }
    }

    /// Takes a block, the lowest of the smallest that serve.
    pub(crate) fn take(&mut self, order: usize) -> Option<usize> {
        let found = (order..self.free.len()).find(|order| !self.free[*order].is_empty())?;
        let unit = self.free[found].pop_first()?;
        for split in (order..found).rev() {
            self.free[split].insert(unit + (1 << split));
        }
        Some(unit)
    }

    /// Gives a block back that was taken with that order.
    pub(crate) fn give(&mut self, unit: usize, order: usize) {
        let (mut unit, mut order) = (unit, order);
        while order + 1 < self.free.len() && self.free[order].remove(&(unit ^ (1 << order))) {
            unit &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(unit);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDER_MAX: usize = 4;
    const ROOTS: usize = 3;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_come_back(steps in prop::collection::vec((0..=ORDER_MAX, any::<usize>(), any::<bool>()), 0..200)) {
            let mut buddy = Buddy::new(ORDER_MAX, ROOTS);
            let mut used = [false; ROOTS << ORDER_MAX];
            let mut taken = Vec::new();
            for (order, which, take) in steps {
                if take {
                    let Some(unit) = buddy.take(order) else { continue };
                    prop_assert_eq!(unit % (1 << order), 0);
                    prop_assert!(used[unit..unit + (1 << order)].iter().all(|used| !used));
                    used[unit..unit + (1 << order)].fill(true);
                    taken.push((unit, order));
                } else if !taken.is_empty() {
                    let (unit, order) = taken.swap_remove(which % taken.len());
                    used[unit..unit + (1 << order)].fill(false);
                    buddy.give(unit, order);
                }
            }
            for (unit, order) in taken {
                buddy.give(unit, order);
            }
            for root in 0..ROOTS {
                prop_assert_eq!(buddy.take(ORDER_MAX), Some(root << ORDER_MAX));
            }
            prop_assert_eq!(buddy.take(0), None);
        }
    }
}

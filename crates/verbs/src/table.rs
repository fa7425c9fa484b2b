//! Which work requests are under way, by number. Pure.
//!
//! A number names one request for ever: its lower half is a place of the table, its upper half how often the place was
//! used. So a completion that comes late, or one that was made up, finds nothing.

/// What the work requests of one endpoint left here until they complete.
pub(crate) struct Table<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    uses: u32,
    content: Option<T>,
}

impl<T> Table<T> {
    pub(crate) fn new() -> Table<T> {
        Table { places: Vec::new(), free: Vec::new() }
    }

    /// Leaves something, under a new number.
    pub(crate) fn put(&mut self, content: T) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { uses: 0, content: None });
            // An endpoint's queues are far shorter than this can count.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[at as usize];
        place.uses = place.uses.wrapping_add(1);
        place.content = Some(content);
        u64::from(place.uses) << 32 | u64::from(at)
    }

    /// Takes back what was left under a number.
    pub(crate) fn take(&mut self, number: u64) -> Option<T> {
        let (uses, at) = ((number >> 32) as u32, number as u32);
        let place = self.places.get_mut(at as usize).filter(|place| place.uses == uses)?;
        let content = place.content.take()?;
        self.free.push(at);
        Some(content)
    }

    /// Takes everything back.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.free.clear();
        std::mem::take(&mut self.places).into_iter().filter_map(|place| place.content).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_good_once() {
        let mut table = Table::new();
        let first = table.put("a");
        assert_eq!(table.take(first ^ 1 << 32), None);
        assert_eq!(table.take(first), Some("a"));
        assert_eq!(table.take(first), None);
        let second = table.put("b");
        assert_ne!(first, second);
        assert_eq!((table.take(first), table.take(77)), (None, None));
        assert_eq!(table.drain(), ["b"]);
    }
}

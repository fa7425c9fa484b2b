//! What this MDT has learnt of how the files of its directories are written: by one node each, or by several at once.
//!
//! Owns a history of at most eight files for each directory, in memory: it is a guess about files to come, so a restart may
//! forget it. Does not own what follows from it (`crate::ops::layout`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burstfs_proto::mds::Habit;
use burstfs_types::Ino;

/// Directories that are remembered; with one more all are forgotten.
const DIRECTORIES_MAX: usize = 1 << 16;

/// The directories.
#[derive(Default)]
pub(crate) struct Habits {
    by_directory: Mutex<HashMap<Ino, History>>,
}

/// The latest file is the lowest bit, 1 for one that several nodes wrote.
#[derive(Clone, Copy, Default)]
struct History {
    files: u8,
    bits: u8,
}

impl Habits {
    /// What is known of `directory`.
    pub(crate) fn of(&self, directory: Ino) -> Habit {
        let history = self.lock().get(&directory).copied().unwrap_or_default();
        Habit { files: history.files, shared: u8::try_from(history.bits.count_ones()).unwrap_or(0) }
    }

    /// Remembers that a file made in `directory` was written.
    pub(crate) fn learn(&self, directory: Ino, by_several: bool) {
        let mut by_directory = self.lock();
        if by_directory.len() >= DIRECTORIES_MAX && !by_directory.contains_key(&directory) {
            by_directory.clear();
        }
        let history = by_directory.entry(directory).or_default();
        history.files = (history.files + 1).min(8);
        history.bits = history.bits << 1 | u8::from(by_several);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, History>> {
        self.by_directory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_files_count() {
        let (habits, dir) = (Habits::default(), Ino::ROOT);
        assert!(!habits.of(dir).is_shared());
        habits.learn(dir, true);
        assert_eq!((habits.of(dir), habits.of(dir).is_shared()), (Habit { files: 1, shared: 1 }, true));
        (0..2).for_each(|_| habits.learn(dir, false));
        assert!(!habits.of(dir).is_shared());
        (0..20).for_each(|_| habits.learn(dir, true));
        assert_eq!(habits.of(dir), Habit { files: 8, shared: 8 });
        (0..5).for_each(|_| habits.learn(dir, false));
        assert_eq!((habits.of(dir), habits.of(dir).is_shared()), (Habit { files: 8, shared: 3 }, false));
    }

    #[test]
    fn directories_are_bounded() {
        let habits = Habits::default();
        for counter in 1..=DIRECTORIES_MAX as u64 + 1 {
            habits.learn(Ino::from_raw(counter).unwrap(), true);
        }
        assert_eq!(habits.lock().len(), 1);
    }
}

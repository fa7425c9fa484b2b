//! The directories that an instance begins with: `.layout` at its root, and in it one for each kind of layout, so that a
//! program that knows nothing of burstfs gets a layout by a path.

use crate::{Ino, LayoutPolicy, MdtIndex, Name, StripePattern};

/// A directory that is there from the beginning, on MDT 0. Its number is always the same, and nobody else's when it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadyMade {
    /// `.layout`, which holds the others.
    Layouts,
    /// `.layout/striped`
    Striped,
    /// `.layout/local`
    Local,
    /// `.layout/auto`
    Auto,
}

impl ReadyMade {
    /// All of them, parents first.
    pub const ALL: [ReadyMade; 4] = [ReadyMade::Layouts, ReadyMade::Striped, ReadyMade::Local, ReadyMade::Auto];
    /// Counters of MDT 0 from here on are for inodes that are made later.
    pub const COUNTER_END: u64 = 6;

    /// The one that is still where it was made.
    pub fn at(parent: Ino, name: &Name, ino: Ino) -> Option<ReadyMade> {
        let is_it = |it: &ReadyMade| it.ino() == ino && it.parent() == parent && it.name() == *name;
        ReadyMade::ALL.into_iter().find(is_it)
    }

    const fn counter(self) -> u64 {
        match self {
            ReadyMade::Layouts => 2,
            ReadyMade::Striped => 3,
            ReadyMade::Local => 4,
            ReadyMade::Auto => 5,
        }
    }

    /// Its inode.
    pub const fn ino(self) -> Ino {
        match Ino::new(MdtIndex::new(0), self.counter()) {
            Some(ino) => ino,
            // No counter above is 0.
            None => Ino::ROOT,
        }
    }

    /// The directory with its name.
    pub const fn parent(self) -> Ino {
        match self {
            ReadyMade::Layouts => Ino::ROOT,
            ReadyMade::Striped | ReadyMade::Local | ReadyMade::Auto => ReadyMade::Layouts.ino(),
        }
    }

    /// Its name.
    pub fn name(self) -> Name {
        Name::of(match self {
            ReadyMade::Layouts => ".layout",
            ReadyMade::Striped => "striped",
            ReadyMade::Local => "local",
            ReadyMade::Auto => "auto",
        })
    }

    /// What is made in it gets, in a job that asks for `job`; `None`: what the job asks for.
    pub fn policy(self, job: LayoutPolicy) -> Option<LayoutPolicy> {
        match (self, job) {
            (ReadyMade::Layouts, _) => None,
            (ReadyMade::Striped, LayoutPolicy::Striped(_)) => Some(job),
            (ReadyMade::Striped, LayoutPolicy::Auto | LayoutPolicy::Local) => {
                Some(LayoutPolicy::Striped(StripePattern::default()))
            }
            (ReadyMade::Local, _) => Some(LayoutPolicy::Local),
            (ReadyMade::Auto, _) => Some(LayoutPolicy::Auto),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_names_are_names() {
        for directory in ReadyMade::ALL {
            assert_eq!(Name::new(directory.name().as_bytes()), Ok(directory.name()));
        }
    }

    #[test]
    fn each_has_a_number_of_its_own() {
        let mut counters: Vec<u64> = ReadyMade::ALL.iter().map(|directory| directory.ino().counter()).collect();
        counters.push(Ino::ROOT.counter());
        counters.sort_unstable();
        assert_eq!(counters, (1..ReadyMade::COUNTER_END).collect::<Vec<_>>());
    }
}

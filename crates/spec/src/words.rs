//! Values that are one of several words. Each type has the words that this version can honour; the words that the
//! interface has beyond them are recognised, so that they are refused as such.

use burstfs_types::Code;
use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;
use crate::nearest::nearest;

/// A value of the interface that this version does not have.
pub(crate) enum Later {
    /// A word.
    Word(&'static str),
    /// A word that is followed by parameters.
    Prefix(&'static str),
    /// Any whole number.
    Number,
}

impl Later {
    fn is(&self, text: &str) -> bool {
        match self {
            Later::Word(word) => text == *word,
            Later::Prefix(prefix) => text.starts_with(prefix),
            Later::Number => text.bytes().all(|byte| byte.is_ascii_digit()),
        }
    }
}

/// A type whose values are words.
pub(crate) trait Word: Copy + PartialEq + 'static {
    const BUILT: &'static [(&'static str, Self)];
    const LATER: &'static [Later];

    fn as_word(self) -> &'static str {
        Self::BUILT.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }

    fn parse(key: &str, text: &Text) -> Result<Self, Fault> {
        let word = text.plain();
        if let Some((_, value)) = Self::BUILT.iter().find(|(name, _)| *name == word) {
            return Ok(*value);
        }
        if Self::LATER.iter().any(|later| later.is(&word)) {
            return Err(not_built(text, &format!("{key}={word}")));
        }
        let words: Vec<&str> = Self::BUILT.iter().map(|(name, _)| *name).collect();
        let hint = match nearest(&word, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it is {}", list(&words)),
        };
        Err(Fault::new(Code::BadValue, &text.span, format!("\"{word}\" is no value of {key}; {hint}")))
    }
}

pub(crate) fn not_built(text: &Text, what: &str) -> Fault {
    Fault::new(Code::NotBuiltYet, &text.span, format!("{what} is not in this version of burstfs"))
}

/// `a`, `a or b`, `a, b or c`.
pub(crate) fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

macro_rules! words {
    ($($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)* }
        later [$($later:expr),* $(,)?])*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)*
        }

        impl Word for $name {
            const BUILT: &'static [(&'static str, $name)] = &[$(($word, $name::$variant)),*];
            const LATER: &'static [Later] = &[$($later),*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_word())
            }
        }
    )*};
}

words! {
    /// Who shares the namespace.
    Mode {
        /// All nodes of the job share one.
        #[default]
        Shared = "shared",
    } later [Later::Word("private")]

    /// Which nodes serve.
    Servers {
        /// Every node of the job.
        #[default]
        All = "all",
    } later [Later::Number, Later::Prefix("dedicated:")]

    /// How many copies there are.
    Redundancy {
        /// One: a lost node loses what it held.
        #[default]
        None = "none",
    } later [Later::Word("mirror")]

    /// What a full instance does.
    OnFull {
        /// The write fails with `ENOSPC`.
        #[default]
        Enospc = "enospc",
    } later [Later::Word("drain")]

    /// What a requeued job gets.
    Requeue {
        /// An empty instance.
        #[default]
        Fresh = "fresh",
    } later [Later::Word("keep")]

    /// How the nodes talk.
    Transport {
        /// The fastest that both ends have.
        #[default]
        Auto = "auto",
        /// RDMA between nodes, or no start.
        Rdma = "rdma",
        /// TCP only.
        Tcp = "tcp",
    } later []

    /// Where `$TMPDIR` leads.
    Tmpdir {
        /// Where it leads without burstfs.
        #[default]
        No = "no",
        /// To the mount.
        Yes = "yes",
    } later []

    /// Whose variables the job finds beside burstfs's own.
    Compat {
        /// Nobody's.
        #[default]
        None = "none",
        /// DataWarp's.
        Dw = "dw",
    } later []

    /// What the source of a copy is.
    EntryType {
        /// Whatever is there.
        #[default]
        Auto = "auto",
        /// One file.
        File = "file",
        /// A directory with what is in it.
        Directory = "directory",
        /// A directory, of which a list names what is copied.
        List = "list",
    } later []

    /// When input is copied in.
    StageInWhen {
        /// All of it before the job's script starts.
        #[default]
        Before = "before",
        /// While the script runs: what is opened before it has arrived is waited for, and brought first.
        Async = "async",
    } later []

    /// What a failed stage-in does.
    StageInOnError {
        /// The job fails with the reason.
        #[default]
        Fail = "fail",
        /// The job starts with what has come, and is told what has not.
        Warn = "warn",
        /// The job goes back into the queue, held, until somebody releases it.
        Hold = "hold",
    } later []

    /// After which ends output is copied out.
    DrainOn {
        /// Any.
        #[default]
        Always = "always",
        /// Only that of a job that Slurm calls COMPLETED.
        Success = "success",
        /// Only any other.
        Failure = "failure",
    } later []

    /// What a failed drain does.
    DrainOnError {
        /// Keep the data on the nodes, tell the user.
        #[default]
        Hold = "hold",
        /// Copy what can be copied, keep nothing, tell the user.
        Warn = "warn",
        /// As `Warn`, and end with the first error.
        Fail = "fail",
    } later []

    /// How a copy is proved.
    Verify {
        /// The checksum of what was written is that of what was read.
        #[default]
        Checksum = "checksum",
        /// The sizes are the same.
        Size = "size",
        /// Not at all.
        None = "none",
    } later []

    /// What appears at the target at once.
    Atomic {
        /// Each file: written under a temporary name, then renamed.
        #[default]
        File = "file",
        /// A directory with all that is in it: written beside it, then renamed.
        Dir = "dir",
        /// Nothing: written in place.
        None = "none",
    } later []

    /// Which files are copied.
    Update {
        /// Those whose size or time differ from the target's.
        #[default]
        Changed = "changed",
        /// All.
        All = "all",
    } later []
}

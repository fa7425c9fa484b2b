//! The request of a job: `--burstfs` directives, merged and validated, and their canonical JSON.
//!
//! Owns the grammar of the directives, the typed form of a request ([`JobSpec`]), and its JSON, which travels from the
//! submitting command to the nodes. Both sides use this crate: the submitting side to tell the user what is wrong
//! before anything is queued, the nodes because what reaches them went through the user's hands.
//!
//! Does not own: the site's configuration (profiles come in through [`Profiles`]), whether a path exists, what a node
//! has room for. Pure: no I/O, no clock, no environment.
//!
//! Invariants: a value of a type of this crate is valid, however it was made (serde goes through the same checks as
//! the parser); no input causes a panic; [`JobSpec::directives`] parsed again gives the same spec.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accumulator;
mod create;
mod duration;
mod error;
mod filter;
mod glob;
mod job;
mod lex;
mod name;
mod nearest;
mod path;
mod pattern;
mod rate;
mod size;
mod staging;
mod when;
mod words;

pub use accumulator::{Accumulator, NoProfiles, ProfileError, Profiles};
pub use create::{Capacity, Create, CreateItems, FOREIGN_VARIABLES};
pub use duration::TimeSpan;
pub use error::{Place, SpecError};
pub use filter::{Filter, FilterAction, Filters};
pub use glob::{Glob, GlobName};
pub use job::{JobSpec, SPEC_VERSION};
pub use name::InstanceName;
pub use nearest::nearest;
pub use path::{InstancePath, PersistentPath, Values, Variable};
pub use rate::Rate;
pub use size::Size;
pub use staging::{Preserve, PreserveSet, StageIn, StageOut, copy_target};
pub use when::{DrainDeadline, DrainWhen};
pub use words::{
    Atomic, Compat, DrainOn, DrainOnError, EntryType, Mode, OnFull, Redundancy, Requeue, Servers, StageInOnError,
    StageInWhen, Tmpdir, Transport, Update, Verify,
};

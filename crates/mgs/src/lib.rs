//! The MGS: which nodes serve what at which addresses, what they go through together, and the queue of staging work.
//!
//! Owns the rules of an instance's life as seen from node 0. Pure: no socket, no clock, no task; the driver in `burstfsd`
//! brings requests and events in, and wakes those who wait when [`Mgs::version`] has moved.
//!
//! ```text
//!            all joined      all StagedIn     first ClientsGone    all Drained, conclude()
//!  STARTING ----------> STAGING_IN -----> READY -----------> DRAINING ---------> DRAINED | HELD
//!     |                    |
//!     '-- fail, cancel, ---'--> FAILED          a node that is lost from READY on is left out: barriers name it
//!         time-out, lost
//!
//!            begin()           all Drained, conclude()
//!  HELD -------------> DRAINING ----------------------> DRAINED | HELD      a later life of all daemons, [`Mgs::hold`]
//! ```
//!
//! Invariants: a failure before READY is final and reaches every node; after READY nothing fails the instance. A barrier
//! that was passed stays passed. The map's generation rises with every change of an address.

mod arrivals;
mod deadline;
mod directory;
mod holding;
mod note;
pub mod ports;
mod pulse;
mod queue;
mod rounds;
mod schedule;
mod silence;

pub use deadline::{Amount, Deadline};
pub use directory::{Identity, JoinRefused, Mgs};
pub use holding::Holding;
pub use note::{NOTE_VERSION, Note};
pub use pulse::Pulse;
pub use queue::Queue;
pub use rounds::{Reason, Rounds, Wanted};
pub use schedule::{Often, Schedule};
pub use silence::Silence;

//! Stage-in and drain: copies trees between the persistent file system and the instance, on all nodes at once, and
//! tells the truth about it.
//!
//! ```text
//!             node 0                                       every node
//!   seed(jobs) -> queue of items (MGS)  <-- take ----  Engine::run: a few workers, each one item at a time
//!                                       -- items ->      Start  resolve a job's source and destination
//!                                       <- finished -    List   one page of a directory: makes sub-directories, batches names
//!                        | records                       Copy   a batch of names, or one large file
//!                        v
//!   Ledger: spill file, figures -> directories' times -> receipt
//! ```
//!
//! Owns: the copy of files, links and directories with what belongs to them; the receipt; each node's journal.
//! Does not own: the queue (see [`WorkQueue`]; the MGS holds it), the instance's file system ([`InstanceTree`]), sockets.
//! One side of every copy is the persistent file system (PFS), reached by system calls as the job's user; the other is
//! the instance.
//!
//! Invariants:
//! 1. A name at the PFS is either what it was before or the whole, durable, verified copy (`atomic=file`): data goes to
//!    a temporary name, is synced, read again as `verify` asks, and renamed. Nothing at the target is ever removed,
//!    except temporaries of earlier attempts of the same job.
//! 2. An entry is recorded as copied only after its directory was synced.
//! 3. A receipt says COMPLETE only if every job was resolved, every directory that was announced was listed to its end,
//!    every entry that was announced has a record, none of them failed, and no node was lost.
//! 4. Below a source's or destination's root no symbolic link is followed.
//! 5. Doing an item again is harmless.
//!
//! Concurrency: an item runs on one blocking thread, where PFS system calls are made directly; futures of the instance's
//! side are polled there too, so that calls that need no other node cost no task switch. Memory is bounded by
//! workers x files in flight x 256 KiB.
//!
//! Failure: an entry's error is recorded and never stops others; see `error` for what is tried again.

mod batch;
mod buffer;
mod coming;
mod drain;
mod drained;
mod engine;
mod error;
mod fill;
mod glob;
mod identity;
mod item;
mod job;
mod journal;
mod ledger;
mod links;
mod list;
mod names;
mod pace;
mod pfs;
pub mod plan;
mod progress;
mod publish;
mod queue;
mod receipt;
mod round;
mod settle;
mod spread;
mod start;
mod stream;
mod survey;
mod temporary;
mod tree;

pub use coming::{Brings, Destination, brings, destination, is_needed_for, not_brought};
pub use drained::DrainedFiles;
pub use engine::{Cancel, Config, Engine, EngineError, RetryPolicy, seed, seed_round};
pub use error::{Cure, EntryError, OsError};
pub use job::{AtEnd, Atomic, Preserve, SourceType, StageJob, Update, Verify};
pub use ledger::{Ledger, LedgerError, Outcome, Shortfall};
pub use progress::Progress;
pub use queue::{QueueLost, WorkQueue};
pub use receipt::{Header, ReceiptError, receipt_path, report_path};
pub use round::{Occasion, RoundPlan, RoundTally, Selection, Takes};
pub use tree::{Change, ChangeState, Extent, InstanceTree, Opened, Page, PageEntry, Space, TreeHandle};

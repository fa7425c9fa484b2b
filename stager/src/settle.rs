//! How a round makes sure of what it says about a file that others may be writing.
//!
//! ```text
//!   open (version) -> ask the MDS (number, writers) -> wait a tick -> write back -> read -> version again -> rename -> sync
//!        -> end the change under its number -> note the version (`drained`)
//! ```
//! The file is as it was drained if both the MDS and the version say so later, and nothing that was missed can be behind that:
//! - a write that was going on while the file was read may have stamped its time before: who does it has the file open for
//!   writing, and the MDS says so;
//! - a write after the version was taken moves ctime, unless it falls in the same tick of the clock: hence the wait, after which
//!   the bytes are read;
//! - a store through a mapping moves ctime only when it takes its page for writing: after the write-back each page has to be
//!   taken anew;
//! - an open for writing since has another number at the MDS, and the change does not end.
//!
//! What cannot be made sure of is copied all the same where it was asked for, and stays changed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burstfs_types::{Errno, Ino};

use crate::engine::Context;
use crate::error::EntryError;
use crate::round::Takes;
use crate::survey;
use crate::tree::{Meta, Opened};

/// Longer than any tick by which kernels stamp files.
const TICK: Duration = Duration::from_millis(20);

/// What was seen of a file before it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Watch {
    ino: Ino,
    /// The change under which it was read; `None` when somebody could write meanwhile.
    number: Option<Option<u64>>,
}

/// A file that is at the target as it was.
pub(crate) struct Settling {
    pub(crate) watch: Watch,
    /// Hash of the target's path.
    pub(crate) path: u128,
    pub(crate) meta: Meta,
    pub(crate) checksum: Option<u128>,
}

/// Files that are to be drained again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct StillChanged {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// What a batch of a round has copied, until its directory is synced.
#[derive(Default)]
pub(crate) struct Settles(Mutex<Vec<Settling>>);

impl Settles {
    pub(crate) fn push(&self, settling: Settling) {
        self.lock().push(settling);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Settling>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the changes of what is durable now, and notes the versions.
    pub(crate) async fn finish(self, context: &Context) -> StillChanged {
        let files = std::mem::take(&mut *self.lock());
        let Some(drained) = &context.config.drained else { return StillChanged::default() };
        let end = async |settling: &Settling| match settling.watch.number {
            Some(number) => context.tree.end_change(settling.watch.ino, number).await.unwrap_or(false),
            None => false,
        };
        let ended = futures_util::future::join_all(files.iter().map(end)).await;
        let mut still = StillChanged::default();
        let mut settled = Vec::new();
        for (settling, is_ended) in files.into_iter().zip(ended) {
            if is_ended {
                settled.push((settling.path, settling.meta, settling.checksum));
            } else {
                still.files += 1;
                still.bytes += settling.meta.size;
            }
        }
        if let Err(error) = drained.drained(&settled) {
            // They are drained once more.
            tracing::warn!(%error, "what was drained cannot be noted");
        }
        still
    }
}

/// Looks at an inode that is not read: a link, or a file that the target has already.
pub(crate) async fn look(context: &Context, ino: Ino) -> Result<Watch, EntryError> {
    let failed = |errno: Errno| EntryError::Source { what: "ask about", errno: errno.into() };
    let state = context.tree.change(ino).await.map_err(failed)?;
    Ok(Watch { ino, number: (!state.is_writable).then_some(state.number) })
}

/// Prepares the reading of an open file in a round about `takes`. `None` when it is not to be read now.
pub(crate) async fn begin(
    context: &Context,
    takes: Takes,
    ino: Ino,
    opened: &Opened,
    before: &Meta,
) -> Result<Option<Watch>, EntryError> {
    let watch = look(context, ino).await?;
    if let Takes::Quiet(quiet) = takes
        && (watch.number.is_none() || !survey::is_quiet(before, quiet))
    {
        return Ok(None);
    }
    let failed = |errno: Errno| EntryError::Source { what: "write back", errno: errno.into() };
    tokio::time::sleep(TICK).await;
    context.tree.write_back(opened.handle).await.map_err(failed)?;
    Ok(Some(watch))
}

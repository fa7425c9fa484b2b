//! A batch of entries of one directory: rounds of copying, until each is copied, failed or an item of its own.

use futures_util::stream::{self, StreamExt};

use crate::drain::Drain;
use crate::engine::{Context, Done};
use crate::error::EntryError;
use crate::fill::Fill;
use crate::item::{Copy, Entry, EntryRecord, EntryState, How, Step, Work};
use crate::job::StageJob;
use crate::journal::{Copied, path_hash};
use crate::list;
use burstfs_proto::stage::Direction;
use burstfs_types::NodeIndex;

/// Files of this size become items of their own.
pub(crate) const ALONE_MIN_BYTES: u64 = 8 << 20;
/// Files up to this size are held in memory as a whole.
pub(crate) const SMALL_MAX_BYTES: u64 = 1 << 20;
/// Entries whose calls to the instance overlap, in one batch.
const IN_FLIGHT: usize = 16;
/// Files that are open at the target and synced together.
const GROUP_MAX: usize = 64;

/// What became of an entry in one round.
pub(crate) enum Fate {
    /// Copied, or unchanged.
    Done(EntryRecord),
    /// It needs an item of its own, so large or linked it is.
    Later { how: How, place: Option<NodeIndex>, bytes: u64 },
    /// Not copied.
    Failed(EntryError),
}

impl From<Result<Fate, EntryError>> for Fate {
    fn from(result: Result<Fate, EntryError>) -> Fate {
        result.unwrap_or_else(Fate::Failed)
    }
}

/// Copies a batch.
pub(crate) async fn copy(context: &Context, job: &StageJob, number: u16, attempt: u32, mut copy: Copy) -> Done {
    let is_drain = context.direction == Direction::Out;
    if is_drain && let Err(error) = context.journal.began(&copy.dir) {
        tracing::warn!(%error, "the stager's journal cannot be written");
    }
    let mut todo: Vec<(Entry, u32)> = std::mem::take(&mut copy.entries).into_iter().map(|entry| (entry, 0)).collect();
    let mut done = Done::default();
    let mut records = Vec::with_capacity(todo.len());
    loop {
        let entries: Vec<Entry> = todo.iter().map(|(entry, _)| entry.clone()).collect();
        let fates = round(context, job, attempt, &copy, &entries).await;
        let mut again = Vec::new();
        for ((entry, tries), fate) in todo.into_iter().zip(fates) {
            match fate {
                Some(Fate::Done(record)) => records.push(finished(context, &entry, record)),
                Some(Fate::Later { how, place, bytes }) => {
                    let later = own_item(context, &copy, entry, how, bytes);
                    done.push_item(place, &Work { job: number, attempt, step: Step::Copy(later) });
                }
                Some(Fate::Failed(error)) if context.config.retry.allows(&error, tries) => {
                    again.push((entry, tries + 1))
                }
                Some(Fate::Failed(error)) => {
                    context.progress.failed();
                    records.push(EntryRecord::failed(&entry, &error));
                }
                None => records.push(EntryRecord::not_attempted(&entry, "cancelled")),
            }
        }
        let Some((_, tries)) = again.first() else { break };
        tokio::time::sleep(context.config.retry.delay(tries - 1)).await;
        todo = again;
    }
    if is_drain {
        journal(context, &copy, &records);
    }
    done.records.push(list::entries_record(context, number, &copy.dir, records));
    done
}

/// One round over `entries`; `None` for those that a cancellation left out.
async fn round(context: &Context, job: &StageJob, attempt: u32, copy: &Copy, entries: &[Entry]) -> Vec<Option<Fate>> {
    match context.direction {
        Direction::Out => match Drain::open(context, job, attempt, copy) {
            Ok(drain) => {
                let fates = rounds(context, copy, entries, async |group| drain.group(group).await).await;
                match drain.finish() {
                    Ok(()) => fates,
                    Err(error) => fates.into_iter().map(|fate| fate.map(|fate| not_durable(fate, &error))).collect(),
                }
            }
            Err(error) => all_failed(entries, &error),
        },
        Direction::In => match Fill::open(context, job, copy) {
            Ok(fill) => rounds(context, copy, entries, async |group| fill.group(group).await).await,
            Err(error) => all_failed(entries, &error),
        },
    }
}

async fn rounds(
    context: &Context,
    copy: &Copy,
    entries: &[Entry],
    group_fates: impl AsyncFn(&[Entry]) -> Vec<Fate>,
) -> Vec<Option<Fate>> {
    let group_len = if copy.how == How::Linked { 1 } else { GROUP_MAX };
    let mut fates = Vec::with_capacity(entries.len());
    for group in entries.chunks(group_len) {
        if context.cancel.is_cancelled() {
            fates.extend(group.iter().map(|_| None));
        } else {
            fates.extend(group_fates(group).await.into_iter().map(Some));
        }
    }
    fates
}

/// Runs `one` over all entries, some at a time; results in order.
pub(crate) async fn overlap<'a, T, F: Future<Output = T>>(
    entries: &'a [Entry],
    one: impl FnMut(&'a Entry) -> F,
) -> Vec<T> {
    stream::iter(entries).map(one).buffered(IN_FLIGHT).collect().await
}

fn all_failed(entries: &[Entry], error: &EntryError) -> Vec<Option<Fate>> {
    entries.iter().map(|_| Some(Fate::Failed(error.clone()))).collect()
}

/// A copy counts only when its directory was synced.
fn not_durable(fate: Fate, error: &EntryError) -> Fate {
    match fate {
        Fate::Done(record) if record.state == EntryState::Copied => Fate::Failed(error.clone()),
        other => other,
    }
}

fn finished(context: &Context, entry: &Entry, record: EntryRecord) -> EntryRecord {
    if entry.counted.is_none() {
        context.progress.found(0, record.size);
    }
    context.progress.done(record.size);
    record
}

fn own_item(context: &Context, copy: &Copy, entry: Entry, how: How, bytes: u64) -> Copy {
    if entry.counted.is_none() {
        context.progress.found(0, bytes);
    }
    let entry = Entry { counted: entry.counted.or(Some(bytes)), ..entry };
    Copy { dir: copy.dir.clone(), is_new: copy.is_new, how, entries: vec![entry] }
}

fn journal(context: &Context, copy: &Copy, records: &[EntryRecord]) {
    let dir = copy.dir.pfs_path();
    let is_copied = |record: &&EntryRecord| record.state == EntryState::Copied;
    let copied = records.iter().filter(is_copied).map(|record| Copied {
        path_hash: path_hash(&crate::item::join(&dir, record.target.as_ref().unwrap_or(&record.name))),
        size: record.size,
        mtime: record.mtime,
        checksum: record.checksum,
    });
    let written = context.journal.copied(copied.collect()).and_then(|()| context.journal.ended(&copy.dir));
    if let Err(error) = written {
        tracing::warn!(%error, "the stager's journal cannot be written");
    }
}

//! A batch of entries of one directory: rounds of copying, until each is copied, failed or an item of its own.

use futures_util::stream::{self, StreamExt};

use crate::drain::Drain;
use crate::engine::{Context, Done};
use crate::error::EntryError;
use crate::fill::Fill;
use crate::item::{Copy, Entry, EntryRecord, EntryState, How, Record, Step, Work};
use crate::job::StageJob;
use crate::journal::{Copied, path_hash};
use crate::list;
use crate::settle::StillChanged;
use crate::spread;
use burstfs_proto::stage::Direction;
use burstfs_types::NodeIndex;

/// Files of this size become items of their own.
pub(crate) const ALONE_MIN_BYTES: u64 = 32 << 20;
/// Files up to this size are held in memory as a whole.
pub(crate) const SMALL_MAX_BYTES: u64 = 256 << 10;
/// When a batch has copied so much, the rest of it becomes another item: somebody else may have nothing to do.
const BATCH_MAX_BYTES: u64 = 64 << 20;
/// Files that are open at the target and synced together: a batch.
const GROUP_MAX: usize = 128;
/// Files whose calls to the instance overlap, so that those to one other node go there in one message.
const OVERLAP_MAX: usize = 64;

/// What became of an entry in one round.
pub(crate) enum Fate {
    /// Copied, or unchanged.
    Done(EntryRecord),
    /// It needs an item of its own, so large or linked it is.
    Later { how: How, place: Option<NodeIndex>, bytes: u64 },
    /// Not begun, since the batch has grown too large.
    Rest,
    /// Not copied now, since somebody changes it, or may. Only in a round.
    Busy { bytes: u64 },
    /// Not copied.
    Failed(EntryError),
}

impl From<Result<Fate, EntryError>> for Fate {
    fn from(result: Result<Fate, EntryError>) -> Fate {
        result.unwrap_or_else(Fate::Failed)
    }
}

impl Fate {
    fn bytes_moved(&self) -> u64 {
        match self {
            Fate::Done(record) if record.state == EntryState::Copied => record.size,
            Fate::Done(_) | Fate::Later { .. } | Fate::Rest | Fate::Busy { .. } | Fate::Failed(_) => 0,
        }
    }
}

/// Copies a batch.
pub(crate) async fn copy(context: &Context, job: &StageJob, number: u16, attempt: u32, mut copy: Copy) -> Done {
    let is_drain = context.direction == Direction::Out;
    let has_temporaries = is_drain || job.is_shared;
    if has_temporaries && let Err(error) = context.journal.began(&copy.dir) {
        tracing::warn!(%error, "the stager's journal cannot be written");
    }
    let mut todo: Vec<(Entry, u32)> = std::mem::take(&mut copy.entries).into_iter().map(|entry| (entry, 0)).collect();
    let mut done = Done::default();
    let mut records = Vec::with_capacity(todo.len());
    let mut rest = Vec::new();
    loop {
        let entries: Vec<Entry> = todo.iter().map(|(entry, _)| entry.clone()).collect();
        let (fates, still_changed) = round(context, job, number, attempt, &copy, &entries).await;
        if still_changed.files > 0 {
            let StillChanged { files, bytes } = still_changed;
            done.records.push(Record::Changed { job: number, files, bytes });
        }
        let mut again = Vec::new();
        for ((entry, tries), fate) in todo.into_iter().zip(fates) {
            match fate {
                Some(Fate::Done(record)) => records.push(finished(context, &entry, record)),
                Some(Fate::Rest) => rest.push(entry),
                Some(Fate::Later { how, place, bytes }) => {
                    let later = own_item(context, &copy, entry, how, bytes);
                    done.push_item(place, &Work { job: number, attempt, step: Step::Copy(later) });
                }
                Some(Fate::Busy { bytes }) => {
                    done.records.push(Record::Changed { job: number, files: 1, bytes });
                    records.push(EntryRecord::not_attempted(&entry, "it is being written"));
                }
                Some(Fate::Failed(error)) if context.config.retry.allows(&error, tries) => {
                    again.push((entry, tries + 1))
                }
                Some(Fate::Failed(error)) => {
                    if let How::Spread(spread) = &copy.how {
                        spread::discard(&copy.dir, spread);
                    }
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
    if is_drain && context.round().is_none() {
        journal(context, &copy, &records);
    }
    if !is_drain
        && has_temporaries
        && let Err(error) = context.journal.ended(&copy.dir)
    {
        tracing::warn!(%error, "the stager's journal cannot be written");
    }
    if !rest.is_empty() {
        let copy = Copy { entries: rest, ..copy.clone() };
        done.push_item(place_of_rest(context), &Work { job: number, attempt, step: Step::Copy(copy) });
    }
    done.records.push(list::entries_record(context, number, &copy.dir, records));
    done
}

/// One round over `entries`; `None` for those that a cancellation left out.
async fn round(
    context: &Context,
    job: &StageJob,
    number: u16,
    attempt: u32,
    copy: &Copy,
    entries: &[Entry],
) -> (Vec<Option<Fate>>, StillChanged) {
    let mut still_changed = StillChanged::default();
    let fates = match context.direction {
        Direction::Out => match Drain::open(context, job, number, attempt, copy) {
            Ok(drain) => {
                let fates = rounds(context, copy, entries, async |group| drain.group(group).await).await;
                match drain.finish().await {
                    Ok(still) => {
                        still_changed = still;
                        fates
                    }
                    Err(error) => fates.into_iter().map(|fate| fate.map(|fate| not_durable(fate, &error))).collect(),
                }
            }
            Err(error) => all_failed(entries, &error),
        },
        Direction::In => match Fill::open(context, job, number, attempt, copy) {
            Ok(fill) => rounds(context, copy, entries, async |group| fill.group(group).await).await,
            Err(error) => all_failed(entries, &error),
        },
    };
    (fates, still_changed)
}

async fn rounds(
    context: &Context,
    copy: &Copy,
    entries: &[Entry],
    group_fates: impl AsyncFn(&[Entry]) -> Vec<Fate>,
) -> Vec<Option<Fate>> {
    let group_len = if copy.how == How::Linked { 1 } else { GROUP_MAX };
    let mut fates = Vec::with_capacity(entries.len());
    let mut bytes = 0;
    for group in entries.chunks(group_len) {
        if context.cancel.is_cancelled() {
            fates.extend(group.iter().map(|_| None));
        } else if bytes >= BATCH_MAX_BYTES {
            fates.extend(group.iter().map(|_| Some(Fate::Rest)));
        } else {
            let group_fates = group_fates(group).await;
            bytes += group_fates.iter().map(Fate::bytes_moved).sum::<u64>();
            fates.extend(group_fates.into_iter().map(Some));
        }
    }
    fates
}

/// The rest of a drain's batch is data of this node; what comes in can go to any.
fn place_of_rest(context: &Context) -> Option<NodeIndex> {
    (context.direction == Direction::Out).then_some(context.config.node)
}

/// Runs `one` over all entries, some at a time; results in order.
pub(crate) async fn overlap<'a, T, F: Future<Output = T>>(
    entries: &'a [Entry],
    one: impl FnMut(&'a Entry) -> F,
) -> Vec<T> {
    stream::iter(entries).map(one).buffered(OVERLAP_MAX).collect().await
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

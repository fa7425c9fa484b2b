//! How much there is to drain: a walk through the sources that touches neither the target nor any byte.
//!
//! A directory is looked at where its MDT is, whose record of changes then costs no message.

use std::time::Duration;

use burstfs_proto::stage::Direction;
use burstfs_types::{Attr, Errno, FileKind, Ino, Name};

use crate::engine::{Context, Done};
use crate::error::EntryError;
use crate::item::{Dir, From, Record, Step, Work};
use crate::job::StageJob;
use crate::list::{self, PAGE_MAX_BYTES, READDIR_MAX, changed_files};
use crate::names::{self, Page};
use crate::round::Selection;
use crate::tree::{Kind, Meta, PageEntry};
use crate::{glob, start};

/// One step of the walk.
pub(crate) async fn step(context: &Context, job: &StageJob, work: Work, selection: &Selection) -> Done {
    debug_assert_eq!(context.direction, Direction::Out);
    let looked = match &work.step {
        Step::Start { .. } => begin(context, job, &work).await,
        Step::List { dir, from } => page(context, job, &work, dir, *from, selection).await,
        Step::Names { dir, at, is_nul } => {
            named(context, job, &work, &Page { dir: dir.clone(), at: *at, is_nul: *is_nul }).await
        }
        Step::Copy(_) => Ok(Done::default()),
    };
    // What cannot be looked at is not counted; the drain itself says why.
    looked.unwrap_or_else(|error| {
        tracing::debug!(%error, "not surveyed");
        Done::default()
    })
}

async fn begin(context: &Context, job: &StageJob, work: &Work) -> Result<Done, EntryError> {
    let failed = |errno: Errno| EntryError::Source { what: "find", errno: errno.into() };
    let mut done = Done::default();
    if let Some(glob) = &job.glob {
        let parents = glob::expand_tree(context, job, glob).await.unwrap_or_default();
        for (instance_root, ino) in parents {
            let dir = Dir { pfs_root: Vec::new(), instance_root, below: Vec::new(), ino };
            push_dir(context, work, dir, &mut done);
        }
        return Ok(done);
    }
    let (ino, meta) = start::resolve(context, &job.source).await.map_err(failed)?;
    if start::is_left_out(job, meta.kind == Kind::Directory) {
        return Ok(done);
    }
    if meta.kind == Kind::Directory {
        let source = job.source.strip_suffix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(&job.source);
        let dir = Dir { pfs_root: Vec::new(), instance_root: source.to_vec(), below: Vec::new(), ino };
        let Some(list) = &job.list else {
            push_dir(context, work, dir, &mut done);
            return Ok(done);
        };
        let is_nul = names::is_nul_separated(list).map_err(EntryError::source("read the list of"))?;
        done.push_item(None, &Work { step: Step::Names { dir, at: 0, is_nul }, ..work.clone() });
    } else if context.tree.change(ino).await.map_err(failed)?.is_changed {
        done.records.push(Record::Changed { job: work.job, files: 1, bytes: meta.size });
    }
    Ok(done)
}

fn push_dir(context: &Context, work: &Work, dir: Dir, done: &mut Done) {
    let place = context.tree.place(dir.ino, None);
    let step = Step::List { dir, from: From::Beginning { is_new: false } };
    done.push_item(place, &Work { step, ..work.clone() });
}

/// A part of a list of names; those that are not there yet are not counted.
async fn named(context: &Context, job: &StageJob, work: &Work, page: &Page) -> Result<Done, EntryError> {
    let (paths, next) = names::part(job.list.as_deref().unwrap_or_default(), page.at, page.is_nul)?;
    let (mut done, mut files, mut bytes) = (Done::default(), 0, 0);
    for path in paths {
        let (parent, name) = names::split(&path);
        let Some((ino, attr)) = find(context, page.dir.ino, &path).await else { continue };
        let dir = Dir { below: parent.to_vec(), ..page.dir.clone() };
        match attr.kind {
            kind if list::is_left_out(job, &dir, name, kind == FileKind::Directory) => {}
            FileKind::Directory => push_dir(context, work, dir.child(name, ino), &mut done),
            FileKind::Regular | FileKind::Symlink => {
                if list::is_changed(context, ino).await {
                    files += 1;
                    bytes += attr.size;
                }
            }
            FileKind::Fifo | FileKind::Socket | FileKind::Character(_) | FileKind::Block(_) => {}
        }
    }
    done.records.push(Record::Changed { job: work.job, files, bytes });
    if let Some(at) = next {
        let step = Step::Names { dir: page.dir.clone(), at, is_nul: page.is_nul };
        done.push_item(None, &Work { step, ..work.clone() });
    }
    Ok(done)
}

/// What is at `path` below the directory `ino`; no link is followed.
async fn find(context: &Context, mut ino: Ino, path: &[u8]) -> Option<(Ino, Attr)> {
    for name in path.split(|byte| *byte == b'/') {
        let name = Name::new(name).ok()?;
        ino = context.tree.lookup(ino, &name).await.ok()?;
    }
    Some((ino, context.tree.getattr(ino).await.ok()?))
}

async fn page(
    context: &Context,
    job: &StageJob,
    work: &Work,
    dir: &Dir,
    from: From,
    selection: &Selection,
) -> Result<Done, EntryError> {
    let failed = |errno: Errno| EntryError::Source { what: "list", errno: errno.into() };
    let mut cookie = match from {
        From::Cookie { cookie, .. } => cookie,
        From::Beginning { .. } | From::Stream { .. } => 0,
    };
    let (mut done, mut files, mut bytes, mut items_bytes) = (Done::default(), 0, 0, 0);
    loop {
        let page = context.tree.readdir(dir.ino, cookie, READDIR_MAX).await.map_err(failed)?;
        let is_end = page.is_end || page.entries.is_empty();
        cookie = page.entries.last().map_or(cookie, |last| last.cookie);
        let concerned = |name: &[u8]| selection.concerns(&dir.child(name, dir.ino).instance_path());
        let is_wanted = |entry: &PageEntry| {
            let name = entry.name.as_bytes();
            concerned(name) && !list::is_left_out(job, dir, name, entry.kind == FileKind::Directory)
        };
        let entries: Vec<_> = page.entries.into_iter().filter(is_wanted).collect();
        for entry in entries.iter().filter(|entry| entry.kind == FileKind::Directory) {
            let child = dir.child(entry.name.as_bytes(), entry.ino);
            items_bytes += child.below.len() + child.instance_root.len() + 32;
            push_dir(context, work, child, &mut done);
        }
        let changed = changed_files(context, &entries).await;
        for (entry, _) in entries.iter().zip(changed).filter(|(_, is_changed)| *is_changed) {
            files += 1;
            bytes += entry.attr.as_ref().map_or(0, |attr| attr.size);
        }
        if is_end || items_bytes >= PAGE_MAX_BYTES {
            done.records.push(Record::Changed { job: work.job, files, bytes });
            if !is_end {
                let step = Step::List { dir: dir.clone(), from: From::Cookie { cookie, is_new: false } };
                done.push_item(context.tree.place(dir.ino, None), &Work { step, ..work.clone() });
            }
            return Ok(done);
        }
    }
}

/// Whether a file has not changed for so long, as far as this node's clock can say.
pub(crate) fn is_quiet(source: &Meta, quiet: Duration) -> bool {
    let latest = source.mtime.max(source.ctime);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let since =
        i128::from(now.as_nanos() as u64) - (i128::from(latest.secs) * 1_000_000_000 + i128::from(latest.nanos));
    since >= i128::from(quiet.as_nanos() as u64)
}

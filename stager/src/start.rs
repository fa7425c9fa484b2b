//! The first step of a job: where its source and its destination are, what they are, and the first item.

use burstfs_proto::stage::Direction;
use burstfs_spec::Glob;
use burstfs_types::{Errno, Ino, JobEnd, Name, NodeIndex};
use thiserror::Error;

use crate::drain;
use crate::engine::{Context, Done};
use crate::error::{EntryError, OsError};
use crate::item::{
    Copy, Dir, Entry, EntryKind, EntryRecord, EntryState, From, How, Publication, Record, Step, Work, join,
};
use crate::job::{AtEnd, Atomic, SourceType, StageJob};
use crate::list::{self, make_dir_in};
use crate::tree::{Kind, Meta};
use crate::{glob, names, pfs, publish};

/// As the kernel's.
const LINKS_MAX: u32 = 40;

/// Why a job could not begin.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum StartError {
    #[error("the source does not exist")]
    SourceMissing,
    #[error("nothing matches the pattern")]
    NoMatch,
    #[error("the pattern matches more than {0} names in several directories; name them with list=")]
    TooManyMatches(usize),
    #[error("two matches of the pattern have the name {name}; give each a destination", name = .0.escape_ascii())]
    SameName(Vec<u8>),
    #[error("cannot read the list {path}: {errno}", path = .path.escape_ascii())]
    List { path: Vec<u8>, errno: OsError },
    #[error("the source is a {found}, and type= asks for a {wanted}")]
    SourceType { found: &'static str, wanted: &'static str },
    #[error("the source is a {0}")]
    SourceKind(&'static str),
    #[error("{0}")]
    Entry(#[from] EntryError),
}

impl StartError {
    pub(crate) fn source(errno: Errno) -> StartError {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => StartError::SourceMissing,
            errno => EntryError::Source { what: "find", errno: errno.into() }.into(),
        }
    }
}

/// What the job begins with.
#[derive(Default)]
struct Found {
    steps: Vec<(Option<NodeIndex>, Step)>,
    /// Directories that will be listed.
    dirs: u64,
    /// Files.
    entries: u64,
    bytes: u64,
    publication: Option<Publication>,
}

impl Found {
    fn directory(place: Option<NodeIndex>, step: Step) -> Found {
        Found { steps: vec![(place, step)], dirs: 1, ..Found::default() }
    }

    fn file(place: Option<NodeIndex>, step: Step, bytes: u64) -> Found {
        Found { steps: vec![(place, step)], entries: 1, bytes, ..Found::default() }
    }
}

/// Resolves the job.
pub(crate) async fn start(context: &Context, job: &StageJob, number: u16, attempt: u32, is_published: bool) -> Done {
    if context.round().is_none() {
        match job.at_end {
            AtEnd::Drain | AtEnd::Name => {}
            AtEnd::Leave { .. } => return leave(context, job, number).await,
            AtEnd::Wait { on } => return wait(number, on),
        }
    }
    let mut tries = 0;
    let result = loop {
        let result = match context.direction {
            Direction::In => start_in(context, job).await,
            Direction::Out => start_out(context, job, attempt, is_published).await,
        };
        match result {
            Err(StartError::Entry(error)) if context.config.retry.allows(&error, tries) => {
                tokio::time::sleep(context.config.retry.delay(tries)).await;
                tries += 1;
            }
            result => break result,
        }
    };
    let mut done = Done::default();
    match result {
        // Nobody has asked for anything of it.
        Err(StartError::Entry(_)) if context.only_names(job) && context.direction == Direction::Out => {
            done.records.push(Record::Started { job: number, publication: None });
        }
        Ok(Found { steps, dirs, entries, bytes, publication }) => {
            done.records.push(Record::Started { job: number, publication });
            done.records.push(Record::Announced { job: number, entries, dirs });
            context.progress.found(entries, bytes);
            for (place, step) in steps {
                done.push_item(place, &Work { job: number, attempt, step });
            }
        }
        Err(error) => {
            context.progress.failed();
            let is_source_missing = matches!(error, StartError::SourceMissing | StartError::NoMatch);
            let errno = if let StartError::Entry(error) = &error { error.errno().map(|errno| errno.0) } else { None };
            done.records.push(Record::NotStarted { job: number, is_source_missing, reason: error.to_string(), errno });
        }
    }
    done
}

/// Names the source of what is not drained after this end of the job, with all that is in it; not what a pattern matches, nor a source that
/// is not there: nobody has asked for it.
async fn leave(context: &Context, job: &StageJob, number: u16) -> Done {
    let mut records = vec![Record::Started { job: number, publication: None }];
    let found = if job.glob.is_none() { resolve(context, &job.source).await.ok() } else { None };
    if let Some((_, meta)) = found {
        let state = EntryState::NotAsked;
        let (source_dir, target_dir, entry) = if meta.kind == Kind::Directory {
            (trimmed(&job.source).to_vec(), directory_target(job), EntryRecord::of_directory(state))
        } else {
            let ((dir, name), (target_dir, target)) = (split(&job.source), file_target(job, false));
            let target = (target != name).then_some(target);
            let (name, kind, counted) = (name.to_vec(), EntryKind::File, Some(meta.size));
            let entry = Entry { name, target, ino: None, kind, counted, is_changed: true };
            (dir.to_vec(), target_dir, EntryRecord::not_copied(&entry, state))
        };
        records.push(Record::Announced { job: number, entries: 1, dirs: 0 });
        records.push(Record::Entries { job: number, source_dir, target_dir, entries: vec![entry] });
    }
    Done { items: Vec::new(), records }
}

/// What depends on an end that is not known.
fn wait(number: u16, on: JobEnd) -> Done {
    let reason = format!("it is drained only after {on} of the job, and how the job ended is not known");
    let record = Record::NotStarted { job: number, is_source_missing: false, reason, errno: None };
    Done { items: Vec::new(), records: vec![record] }
}

pub(crate) fn check_type(job: &StageJob, kind: Kind) -> Result<(), StartError> {
    let wanted = match (job.source_type, kind) {
        (_, Kind::Symlink | Kind::Special(_)) => return Err(StartError::SourceKind(kind.text())),
        (SourceType::File, Kind::Directory) => Kind::File,
        (SourceType::Directory | SourceType::List, Kind::File) => Kind::Directory,
        (SourceType::Auto | SourceType::File, Kind::File)
        | (SourceType::Auto | SourceType::Directory | SourceType::List, Kind::Directory) => return Ok(()),
    };
    Err(StartError::SourceType { found: kind.text(), wanted: wanted.text() })
}

/// Whether the directive's filters leave its own source out.
pub(crate) fn is_left_out(job: &StageJob, is_directory: bool) -> bool {
    let name = job.filter_prefix();
    !name.is_empty() && job.filters.is_excluded(name, is_directory)
}

/// `path` without slashes at its end, but for the root.
pub(crate) fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    if end == 0 { b"/" } else { &path[..end] }
}

pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let path = trimmed(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        None | Some(0) if path.len() <= 1 => (b"/", b""),
        None => (b"/", path),
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}

/// Where a directory's copy goes.
pub(crate) fn directory_target(job: &StageJob) -> Vec<u8> {
    let destination = trimmed(&job.destination);
    if job.source.ends_with(b"/") { destination.to_vec() } else { join(destination, split(&job.source).1) }
}

/// Where a file's copy goes: directory and name.
pub(crate) fn file_target(job: &StageJob, destination_is_dir: bool) -> (Vec<u8>, Vec<u8>) {
    if destination_is_dir || job.destination.ends_with(b"/") {
        (trimmed(&job.destination).to_vec(), split(&job.source).1.to_vec())
    } else {
        let (dir, name) = split(&job.destination);
        (dir.to_vec(), name.to_vec())
    }
}

/// The one file that a job is about.
struct Single {
    ino: Option<Ino>,
    bytes: u64,
    is_changed: bool,
}

fn single_file(dir: Dir, is_new: bool, name: &[u8], target: Vec<u8>, file: Single) -> Step {
    let target = (target != name).then_some(target);
    let Single { ino, bytes, is_changed } = file;
    let (name, kind) = (name.to_vec(), EntryKind::File);
    let entry = Entry { name, target, ino, kind, counted: Some(bytes), is_changed };
    Step::Copy(Copy { dir, is_new, how: How::Alone, entries: vec![entry] })
}

async fn start_in(context: &Context, job: &StageJob) -> Result<Found, StartError> {
    let failed = |what| move |errno: OsError| StartError::from(EntryError::Source { what, errno });
    if let Some(glob) = &job.glob {
        return matches_in(context, job, glob).await;
    }
    let meta = pfs::stat_path(&job.source).map_err(failed("find"))?.ok_or(StartError::SourceMissing)?;
    check_type(job, meta.kind)?;
    let source = pfs::canonical(&job.source).map_err(failed("find"))?;
    if is_left_out(job, meta.kind == Kind::Directory) {
        return Ok(Found::default());
    }
    if meta.kind == Kind::Directory {
        // Readable now, or the reason why not.
        pfs::open_root(&source).map_err(failed("open"))?;
        if let Some(list) = &job.list {
            let path = trimmed(&job.destination).to_vec();
            let (ino, _) = make_path(context, &path).await?;
            let dir = Dir { pfs_root: source, instance_root: path, below: Vec::new(), ino };
            return names(list, dir);
        }
        let path = directory_target(job);
        let (ino, is_new) = make_path(context, &path).await?;
        let dir = Dir { pfs_root: source, instance_root: path, below: Vec::new(), ino };
        return Ok(Found::directory(None, Step::List { dir, from: From::Beginning { is_new } }));
    }
    let destination_is_dir = match resolve(context, &job.destination).await {
        Ok((_, meta)) => meta.kind == Kind::Directory,
        Err(_) => false,
    };
    let (dir_path, target) = file_target(job, destination_is_dir);
    let (ino, is_new) = make_path(context, &dir_path).await?;
    let (source_dir, name) = split(&source);
    let dir = Dir { pfs_root: source_dir.to_vec(), instance_root: dir_path, below: Vec::new(), ino };
    let file = Single { ino: None, bytes: meta.size, is_changed: true };
    Ok(Found::file(None, single_file(dir, is_new, name, target, file), meta.size))
}

/// The first page of a list of names.
fn names(list: &[u8], dir: Dir) -> Result<Found, StartError> {
    let failed = |errno| StartError::List { path: list.to_vec(), errno };
    let is_nul = names::is_nul_separated(list).map_err(failed)?;
    Ok(Found::directory(None, Step::Names { dir, at: 0, is_nul }))
}

async fn matches_in(context: &Context, job: &StageJob, glob: &Glob) -> Result<Found, StartError> {
    let parents = glob::expand_pfs(job, glob)?;
    let path = trimmed(&job.destination).to_vec();
    let (ino, is_new) = make_path(context, &path).await?;
    // What several directories bring may have the same names.
    let is_new = is_new && parents.len() == 1;
    let steps = parents.into_iter().map(|pfs_root| {
        let dir = Dir { pfs_root, instance_root: path.clone(), below: Vec::new(), ino };
        (None, Step::List { dir, from: From::Beginning { is_new } })
    });
    let steps: Vec<_> = steps.collect();
    Ok(Found { dirs: steps.len() as u64, steps, ..Found::default() })
}

async fn matches_out(context: &Context, job: &StageJob, glob: &Glob) -> Result<Found, StartError> {
    let parents = glob::expand_tree(context, job, glob).await?;
    let path = trimmed(&job.destination).to_vec();
    require_asked(context, job, &path)?;
    make_directory_out(&path)?;
    let steps = parents.into_iter().map(|(instance_root, ino)| {
        let dir = Dir { pfs_root: path.clone(), instance_root, below: Vec::new(), ino };
        (context.tree.place(ino, None), Step::List { dir, from: From::Beginning { is_new: false } })
    });
    let steps: Vec<_> = steps.collect();
    Ok(Found { dirs: steps.len() as u64, steps, ..Found::default() })
}

/// Makes all directories of a path in the instance.
async fn make_path(context: &Context, path: &[u8]) -> Result<(Ino, bool), StartError> {
    match resolve(context, path).await {
        Ok((ino, meta)) if meta.kind == Kind::Directory => return Ok((ino, false)),
        Ok((_, meta)) => {
            let wanted = Kind::Directory.text();
            return Err(EntryError::TargetKind { found: meta.kind.text(), wanted }.into());
        }
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(EntryError::Target { what: "find", errno: errno.into() }.into()),
    }
    let (parent, name) = split(path);
    let (parent, _) = Box::pin(make_path(context, parent)).await?;
    Ok(make_dir_in(context, parent, name).await?)
}

async fn start_out(context: &Context, job: &StageJob, attempt: u32, is_published: bool) -> Result<Found, StartError> {
    if let Some(glob) = &job.glob {
        return matches_out(context, job, glob).await;
    }
    let (ino, meta) = resolve(context, &job.source).await.map_err(StartError::source)?;
    check_type(job, meta.kind)?;
    if is_left_out(job, meta.kind == Kind::Directory) {
        return Ok(Found::default());
    }
    let tree = &context.tree;
    if meta.kind == Kind::Directory {
        if let Some(list) = &job.list {
            let pfs_root = trimmed(&job.destination).to_vec();
            require_asked(context, job, &pfs_root)?;
            make_directory_out(&pfs_root)?;
            if let Ok(target) = pfs::open_root(&pfs_root) {
                drain::remove_stale(context, std::os::fd::AsFd::as_fd(&target), attempt);
            }
            let instance_root = trimmed(&job.source).to_vec();
            return names(list, Dir { pfs_root, instance_root, below: Vec::new(), ino });
        }
        let at = directory_target(job);
        require_asked(context, job, &at)?;
        let publication = (job.atomic == Atomic::Dir && !is_published)
            .then(|| publish::beside(&at, context.config.job_id))
            .flatten()
            .map(|beside| Publication { beside, at: at.clone() });
        let path = publication.as_ref().map_or(&at, |publication| &publication.beside).clone();
        if at != trimmed(&job.destination) || publication.is_none() {
            make_directory_out(trimmed(&job.destination))?;
        }
        let is_new = path != trimmed(&job.destination) && make_directory_out(&path)?;
        let instance_root = trimmed(&job.source).to_vec();
        let dir = Dir { pfs_root: path, instance_root, below: Vec::new(), ino };
        let step = Step::List { dir, from: From::Beginning { is_new } };
        return Ok(Found { publication, ..Found::directory(tree.place(ino, None), step) });
    }
    let failed = |errno| StartError::from(EntryError::Target { what: "find", errno });
    let there = pfs::stat_path(&job.destination).map_err(failed)?;
    let (dir_path, target) = file_target(job, there.is_some_and(|there| there.kind == Kind::Directory));
    if job.destination.ends_with(b"/") {
        make_directory_out(&dir_path)?;
    }
    let target_dir = pfs::open_root(&dir_path).map_err(failed)?;
    drain::remove_stale(context, std::os::fd::AsFd::as_fd(&target_dir), attempt);
    let (source_dir, name) = split(&job.source);
    let attr = tree.getattr(ino).await.map_err(StartError::source)?;
    let dir = Dir { pfs_root: dir_path, instance_root: source_dir.to_vec(), below: Vec::new(), ino };
    let is_changed = list::is_changed(context, ino).await;
    let step = single_file(dir, false, name, target, Single { ino: Some(ino), bytes: meta.size, is_changed });
    Ok(Found::file(tree.place(ino, attr.layout.as_ref()), step, meta.size))
}

/// Fails when the directive's drain copies nothing, and no round has made the directory `path` of the PFS either.
fn require_asked(context: &Context, job: &StageJob, path: &[u8]) -> Result<(), StartError> {
    if context.only_names(job) {
        pfs::open_root(path).map_err(|errno| StartError::from(EntryError::Target { what: "find", errno }))?;
    }
    Ok(())
}

/// Makes the last component of a path of the PFS. Whether it is new.
fn make_directory_out(path: &[u8]) -> Result<bool, StartError> {
    let failed = EntryError::target("create");
    match pfs::stat_path(path).map_err(&failed)? {
        Some(meta) if meta.kind == Kind::Directory => Ok(false),
        Some(meta) => Err(EntryError::TargetKind { found: meta.kind.text(), wanted: Kind::Directory.text() }.into()),
        None => {
            pfs::mkdir_path(path, 0o777).map_err(&failed)?;
            // The new name itself must be durable before anything in it is called copied.
            let parent = pfs::open_root(split(path).0).map_err(&failed)?;
            pfs::sync(std::os::fd::AsFd::as_fd(&parent)).map_err(EntryError::target("sync the directory of"))?;
            Ok(true)
        }
    }
}

/// What a path of the instance names, links followed. An absolute link is understood when it points into the mount.
pub(crate) async fn resolve(context: &Context, path: &[u8]) -> Result<(Ino, Meta), Errno> {
    let tree = &context.tree;
    let mut todo: Vec<Vec<u8>> = components(path);
    let mut stack = vec![Ino::ROOT];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        let dir = *stack.last().unwrap_or(&Ino::ROOT);
        if name == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let ino = tree.lookup(dir, &Name::new(name).map_err(|_| Errno::EINVAL)?).await?;
        let meta = Meta::from(&tree.getattr(ino).await?);
        if meta.kind != Kind::Symlink {
            stack.push(ino);
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::ELOOP);
        }
        let target = tree.readlink(ino).await?;
        if target.starts_with(b"/") {
            stack.truncate(1);
            todo.extend(components(below_mount(&target, &context.config.mount).ok_or(Errno::EXDEV)?));
        } else {
            todo.extend(components(&target));
        }
    }
    let ino = *stack.last().unwrap_or(&Ino::ROOT);
    Ok((ino, Meta::from(&tree.getattr(ino).await?)))
}

/// A path's components, the last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}

fn below_mount<'a>(path: &'a [u8], mount: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(trimmed(mount)).filter(|_| mount.len() > 1)?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(source: &str, destination: &str) -> StageJob {
        StageJob::new(Direction::Out, source, destination)
    }

    #[test]
    fn targets_are_rsyncs() {
        assert_eq!(directory_target(&job("/out/", "/t/x")), b"/t/x");
        assert_eq!(directory_target(&job("/out", "/t/x/")), b"/t/x/out");
        assert_eq!(directory_target(&job("/", "/t")), b"/t");
        assert_eq!(file_target(&job("/a/f", "/t/g"), false), (b"/t".to_vec(), b"g".to_vec()));
        assert_eq!(file_target(&job("/a/f", "/t/"), false), (b"/t".to_vec(), b"f".to_vec()));
        assert_eq!(file_target(&job("/a/f", "/t"), true), (b"/t".to_vec(), b"f".to_vec()));
        assert_eq!(file_target(&job("/a/f", "/g"), false), (b"/".to_vec(), b"g".to_vec()));
    }

    #[test]
    fn only_links_into_the_mount_are_understood() {
        assert_eq!(below_mount(b"/burstfs/42/a", b"/burstfs/42"), Some(b"/a".as_slice()));
        assert_eq!(below_mount(b"/burstfs/421", b"/burstfs/42"), None);
        assert_eq!(below_mount(b"/etc", b""), None);
    }
}

//! A source that is a pattern: the directories in which its matches are.
//!
//! All names but the last are looked up here, when the job begins; the last one's matches come page by page with the listing
//! of their directory. Of a pattern that ends in `/` every name is looked up here, and what is listed are the matches.
//! Symbolic links to directories count as directories here, as for a shell.

use std::collections::HashSet;

use burstfs_spec::{Filters, Glob, GlobName};
use burstfs_types::{Errno, FileKind, Ino};

use crate::engine::Context;
use crate::error::{EntryError, OsError};
use crate::item::{EntryKind, join};
use crate::job::StageJob;
use crate::journal::path_hash;
use crate::pfs;
use crate::start::{StartError, resolve};
use crate::tree::{Kind, PageEntry};

/// Directories are found until their items would have so many bytes: they go to the queue in one message.
const FOUND_MAX_BYTES: usize = 400 << 10;
const READDIR_MAX: u32 = 1024;
/// Names of several directories that are compared: about 100 MiB of hashes.
const NAMES_MAX: usize = 4_000_000;

/// The names of which every match is looked up, and the one whose matches are listed later.
fn parts(glob: &Glob) -> (&[GlobName], Option<&GlobName>) {
    match glob.names().split_last() {
        Some((last, names)) if !glob.is_contents() => (names, Some(last)),
        _ => (glob.names(), None),
    }
}

/// Checks that not too many directories have been found.
fn check_count<T>(found: &[T], path_len: impl Fn(&T) -> usize) -> Result<(), StartError> {
    let bytes: usize = found.iter().map(|one| 2 * path_len(one) + 128).sum();
    if bytes > FOUND_MAX_BYTES { Err(StartError::TooManyMatches(found.len() - 1)) } else { Ok(()) }
}

/// The names that the matches will have at the target. Two of one name would become one, and nobody would know which.
struct Names<'a> {
    filters: &'a Filters,
    /// Hashes of those that were seen; not kept while there is only one directory to look at.
    seen: Option<HashSet<u128>>,
    has_match: bool,
}

impl<'a> Names<'a> {
    fn new(job: &'a StageJob, dirs: usize) -> Names<'a> {
        Names { filters: &job.filters, seen: (dirs > 1).then(HashSet::new), has_match: false }
    }

    /// Takes a name; whether there is need to look at more.
    fn take(&mut self, name: &[u8], is_directory: bool) -> Result<bool, StartError> {
        self.has_match = true;
        let Some(seen) = &mut self.seen else { return Ok(false) };
        if self.filters.is_excluded(name, is_directory) {
            return Ok(true);
        }
        if seen.len() >= NAMES_MAX {
            return Err(StartError::TooManyMatches(NAMES_MAX));
        }
        if seen.insert(path_hash(name)) { Ok(true) } else { Err(StartError::SameName(name.to_vec())) }
    }
}

/// Directories of the PFS in which matches are, in order; at least one has one, and no two matches have one name.
pub(crate) fn expand_pfs(job: &StageJob, glob: &Glob) -> Result<Vec<Vec<u8>>, StartError> {
    let failed = |what| move |errno: OsError| StartError::from(EntryError::Source { what, errno });
    let missing = |errno: OsError| match errno {
        errno if errno == Errno::ENOENT.into() || errno == Errno::ENOTDIR.into() => StartError::SourceMissing,
        errno => failed("find")(errno),
    };
    let (names, last) = parts(glob);
    let mut found = vec![pfs::canonical(glob.base().as_bytes()).map_err(missing)?];
    for name in names {
        let mut next = Vec::new();
        for dir in found {
            for_each_match(&dir, Some(name), |entry, kind| {
                let path = join(&dir, entry);
                let is_dir = match kind {
                    Some(EntryKind::Directory) => true,
                    Some(EntryKind::File) => false,
                    // A link that leads nowhere is no directory.
                    Some(EntryKind::Symlink | EntryKind::Other) | None => {
                        pfs::stat_path(&path).is_ok_and(|meta| meta.is_some_and(|meta| meta.kind == Kind::Directory))
                    }
                };
                if is_dir {
                    next.push(path);
                }
                check_count(&next, Vec::len).map(|()| true)
            })?;
        }
        next.sort();
        found = next;
    }
    let mut at_target = Names::new(job, found.len());
    for dir in &found {
        for_each_match(dir, last, |entry, kind| at_target.take(entry, kind == Some(EntryKind::Directory)))?;
    }
    if at_target.has_match || last.is_none() && !found.is_empty() { Ok(found) } else { Err(StartError::NoMatch) }
}

/// Hands the matches in a directory (`None`: all entries) to `each` until that says false.
fn for_each_match(
    dir: &[u8],
    name: Option<&GlobName>,
    mut each: impl FnMut(&[u8], Option<EntryKind>) -> Result<bool, StartError>,
) -> Result<(), StartError> {
    let failed = |errno: OsError| StartError::from(EntryError::Source { what: "list", errno });
    if let Some(literal) = name.and_then(GlobName::literal) {
        let meta = pfs::stat_path(&join(dir, literal.as_bytes())).map_err(failed)?;
        return if meta.is_some() { each(literal.as_bytes(), None).map(drop) } else { Ok(()) };
    }
    let opened = pfs::open_root(dir).map_err(failed)?;
    let mut listing = pfs::Listing::open(std::os::fd::AsFd::as_fd(&opened)).map_err(failed)?;
    while let Some((entry, kind)) = listing.next().map_err(failed)? {
        if name.is_none_or(|name| name.matches(&entry)) && !each(&entry, kind)? {
            break;
        }
    }
    Ok(())
}

/// As [`expand_pfs`], in the instance: path and inode.
pub(crate) async fn expand_tree(
    context: &Context,
    job: &StageJob,
    glob: &Glob,
) -> Result<Vec<(Vec<u8>, Ino)>, StartError> {
    let (names, last) = parts(glob);
    let (ino, meta) = resolve(context, glob.base().as_bytes()).await.map_err(StartError::source)?;
    if meta.kind != Kind::Directory {
        return Err(StartError::SourceMissing);
    }
    let mut found = vec![(glob.base().as_bytes().to_vec(), ino)];
    for name in names {
        let mut next = Vec::new();
        for (dir, ino) in found {
            let mut matches = Vec::new();
            for_each_in_tree(context, ino, Some(name), |entry| {
                matches.push((join(&dir, entry.name.as_bytes()), entry.ino, entry.kind));
                check_count(&matches, |(path, _, _)| path.len()).map(|()| true)
            })
            .await?;
            for (path, ino, kind) in matches {
                let ino = match kind {
                    FileKind::Directory => Some(ino),
                    FileKind::Symlink => {
                        let resolved = resolve(context, &path).await;
                        resolved.ok().filter(|(_, meta)| meta.kind == Kind::Directory).map(|(ino, _)| ino)
                    }
                    FileKind::Regular
                    | FileKind::Fifo
                    | FileKind::Socket
                    | FileKind::Character(_)
                    | FileKind::Block(_) => None,
                };
                next.extend(ino.map(|ino| (path, ino)));
                check_count(&next, |(path, _)| path.len())?;
            }
        }
        next.sort();
        found = next;
    }
    let mut at_target = Names::new(job, found.len());
    for (_, ino) in &found {
        let take = |entry: &PageEntry| at_target.take(entry.name.as_bytes(), entry.kind == FileKind::Directory);
        for_each_in_tree(context, *ino, last, take).await?;
    }
    if at_target.has_match || last.is_none() && !found.is_empty() { Ok(found) } else { Err(StartError::NoMatch) }
}

/// As [`for_each_match`], in the instance.
async fn for_each_in_tree(
    context: &Context,
    dir: Ino,
    name: Option<&GlobName>,
    mut each: impl FnMut(&PageEntry) -> Result<bool, StartError>,
) -> Result<(), StartError> {
    let mut cookie = 0;
    loop {
        let page = context.tree.readdir(dir, cookie, READDIR_MAX).await.map_err(StartError::source)?;
        for entry in &page.entries {
            cookie = entry.cookie;
            if name.is_none_or(|name| name.matches(entry.name.as_bytes())) && !each(entry)? {
                return Ok(());
            }
        }
        if page.is_end || page.entries.is_empty() {
            return Ok(());
        }
    }
}

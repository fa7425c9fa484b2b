//! An OST: opening it, and the way of a request to its operation.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use async_trait::async_trait;
use burstfs_proto::oss::{OssReply, OssRequest};
use burstfs_proto::service::{Bulk, Caller, ObjectService};
use burstfs_types::Errno;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstatvfs, mkdir, open, openat, statat};
use rustix::io::Errno as SysErrno;
use thiserror::Error;

use crate::appends::Appends;
use crate::device::is_fatal;
use crate::lent::Lending;
use crate::name::{SUBDIRS, parse, subdir_name};
use crate::readahead::Readahead;
use crate::space::Space;
use crate::store::{Store, allocated};

/// How an OST is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The OST's share of the instance's capacity.
    pub capacity_bytes: u64,
    /// About how many object files are kept open.
    pub open_files_max: usize,
}

/// Why an OST cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory could be neither made nor opened.
    #[error("the OST's directory {path} cannot be opened: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another process serves this OST.
    #[error("the OST's directory {path} is in use by another process")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// What an earlier process left cannot be read.
    #[error("the objects in {path} cannot be counted: {source}")]
    Scan {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The record of appends cannot be read or brought to an end.
    #[error("the record of appends in {path} cannot be recovered: {source}")]
    Appends {
        /// Which.
        path: PathBuf,
        /// The errno.
        source: Errno,
    },
}

/// One OST. See the crate's documentation.
pub struct Ost {
    pub(crate) store: Store,
    pub(crate) appends: Appends,
    pub(crate) lending: Lending,
    pub(crate) readahead: Readahead,
    /// Bytes of a block of the device's file system.
    pub(crate) block: u64,
    fatal: OnceLock<Errno>,
}

impl Ost {
    /// Opens the OST in `directory`, which is made when it is not there (its parent must be). Objects that an earlier
    /// process left are counted, on a few threads; a fresh OST costs a handful of system calls.
    pub fn open(directory: &Path, options: Options) -> Result<Ost, OpenError> {
        let path = || directory.to_owned();
        let root =
            open_directory(directory).map_err(|error| OpenError::Directory { path: path(), source: error.into() })?;
        // Two processes on one OST would each count on their own. The lock goes with its process, however that ends.
        flock(&root, FlockOperation::NonBlockingLockExclusive).map_err(|_| OpenError::InUse { path: path() })?;
        let appends = Appends::recover(root.as_fd()).map_err(|source| OpenError::Appends { path: path(), source })?;
        let scan_error = |error: SysErrno| OpenError::Scan { path: path(), source: error.into() };
        let found = scan(root.as_fd()).map_err(scan_error)?;
        let block = fstatvfs(&root).map_err(scan_error)?.f_bsize.clamp(512, 1 << 20);
        let space = Space::new(options.capacity_bytes, found.bytes);
        let store = Store::new(root, space, found.objects, options.open_files_max);
        Ok(Ost {
            store,
            appends,
            lending: Lending::default(),
            readahead: Readahead::default(),
            block,
            fatal: OnceLock::new(),
        })
    }

    /// The error after which no change is acknowledged any more, if there was one.
    pub fn fatal_error(&self) -> Option<Errno> {
        self.fatal.get().copied()
    }

    /// Runs something that changes the device: refused once the device is broken, and judged when it fails.
    pub(crate) fn change<T>(&self, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        if self.fatal.get().is_some() {
            return Err(Errno::EIO);
        }
        change().inspect_err(|error| {
            if is_fatal(*error) && self.fatal.set(*error).is_ok() {
                tracing::error!(%error, "the OST's device failed; it takes no more changes");
            }
        })
    }
}

#[async_trait]
impl ObjectService for Ost {
    async fn call(&self, caller: Caller, request: OssRequest, bulk: &mut dyn Bulk) -> Result<OssReply, Errno> {
        match request {
            OssRequest::Read(request) => self.read(caller, &request, bulk).await.map(OssReply::Read),
            OssRequest::Write(request) => self.write(&request, bulk).await.map(OssReply::Write),
            OssRequest::Append(request) => self.append(caller, &request, bulk).await.map(OssReply::Append),
            OssRequest::Truncate(request) => self.truncate(&request).map(OssReply::Truncate),
            OssRequest::Glimpse(request) => self.glimpse(&request).map(OssReply::Glimpse),
            OssRequest::Remove(request) => self.remove(&request).map(OssReply::Remove),
            OssRequest::SetTimes(request) => self.set_times(&request).map(OssReply::SetTimes),
            OssRequest::Sync(request) => self.sync(&request).map(OssReply::Sync),
            OssRequest::WriteBack(request) => self.write_back(&request).map(OssReply::WriteBack),
            OssRequest::Allocate(request) => self.allocate(&request).map(OssReply::Allocate),
            OssRequest::Seek(request) => self.seek(&request).map(OssReply::Seek),
            OssRequest::Statfs(_) => self.statfs().map(OssReply::Statfs),
            OssRequest::List(request) => self.list(request).map(OssReply::List),
        }
    }
}

pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> Result<OwnedFd, SysErrno> {
    match mkdir(path, Mode::RWXU) {
        Ok(()) | Err(SysErrno::EXIST) => open(path, DIRECTORY, Mode::empty()),
        Err(error) => Err(error),
    }
}

/// Objects, and what is allocated for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Found {
    objects: u64,
    bytes: u64,
}

/// Threads that count: enough to keep a device with cold metadata busy.
const SCAN_THREADS: usize = 4;

fn scan(root: BorrowedFd<'_>) -> Result<Found, SysErrno> {
    let subdirs: Vec<usize> = {
        let names = entries(root)?;
        (0..SUBDIRS)
            .filter(|subdir| names.iter().any(|name| name.as_bytes() == subdir_name(*subdir).as_bytes()))
            .collect()
    };
    let share = subdirs.len().div_ceil(SCAN_THREADS).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = subdirs.chunks(share).map(|part| scope.spawn(|| scan_subdirs(root, part))).collect();
        parts.into_iter().try_fold(Found::default(), |sum, part| {
            let found = part.join().unwrap_or(Err(SysErrno::IO))?;
            Ok(Found { objects: sum.objects + found.objects, bytes: sum.bytes + found.bytes })
        })
    })
}

fn scan_subdirs(root: BorrowedFd<'_>, subdirs: &[usize]) -> Result<Found, SysErrno> {
    let mut found = Found::default();
    for subdir in subdirs {
        let directory = openat(root, subdir_name(*subdir), DIRECTORY, Mode::empty())?;
        for name in entries(directory.as_fd())? {
            if parse(*subdir, name.as_bytes()).is_none() {
                tracing::warn!(?name, subdir, "a file in the OST's directory is no object");
                continue;
            }
            let stat = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            found.objects += 1;
            found.bytes += allocated(&stat);
        }
    }
    Ok(found)
}

pub(crate) fn entries(directory: BorrowedFd<'_>) -> Result<Vec<CString>, SysErrno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

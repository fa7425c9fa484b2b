//! The instance's file system as the stager needs it, over the client.
//!
//! Owns the stager's open files, and the memory of where the paths that are drained lead: when the node of a directory that a
//! path goes through is lost (the root's, above all), what is below it on other nodes can still be found. The stager works as the job's user inside the user's own instance, so nothing is checked
//! here that the kernel would check for a process of the job.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use burstfs_client::fs::{
    AttrChange, ClientFs, Credentials, FsError, NewFile, OpenFile, Opened as ClientOpened, PlusEntry, PlusListing,
    WriteData,
};
use burstfs_proto::mds::{RenameMode, SetTime, XattrMode};
use burstfs_proto::oss::SeekTarget;
use burstfs_stager::{Change, ChangeState, Extent, InstanceTree, Opened, Page, PageEntry, Space, TreeHandle};
use burstfs_types::{Attr, Errno, Ino, Layout, Name, NodeIndex, ReadyMade};

/// The instance, for the stager of one node.
pub(crate) struct Tree {
    fs: Arc<ClientFs>,
    owner: Credentials,
    open: Mutex<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    names: Mutex<HashMap<(Ino, Vec<u8>), Ino>>,
}

impl Tree {
    /// What the stager makes belongs to `owner`.
    pub(crate) fn new(fs: Arc<ClientFs>, owner: Credentials) -> Tree {
        Tree { fs, owner, open: Mutex::default(), next_handle: AtomicU64::new(1), names: Mutex::default() }
    }

    /// Notes where `path` leads now, as far as it is there; whether all of it is.
    pub(crate) async fn remember(&self, path: &[u8]) -> bool {
        let (mut dir, mut is_news) = (Ino::ROOT, false);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let found = self.fs.lookup(dir, name).await.map(ino);
            let mut names = self.names();
            match found {
                Ok(found) => {
                    is_news |= names.insert((dir, name.to_vec()), found) != Some(found);
                    dir = found;
                }
                Err(error) => {
                    if error.is_gone() {
                        names.remove(&(dir, name.to_vec()));
                    }
                    return false;
                }
            }
        }
        if is_news {
            tracing::info!("{} is {dir} now", path.escape_ascii());
        }
        true
    }

    fn recall(&self, dir: Ino, name: &Name) -> Option<Ino> {
        let found = self.names().get(&(dir, name.as_bytes().to_vec())).copied()?;
        let name = name.as_bytes().escape_ascii();
        tracing::warn!("{name} is looked for where it was before the node of its directory was lost");
        Some(found)
    }

    fn names(&self) -> MutexGuard<'_, HashMap<(Ino, Vec<u8>), Ino>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, handle: TreeHandle) -> Result<Arc<OpenFile>, Errno> {
        self.lock().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn keep(&self, opened: ClientOpened) -> Opened {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(handle, Arc::new(opened.file));
        Opened { handle: TreeHandle(handle), attr: opened.attr }
    }

    /// Whether nobody has put anything into a ready-made directory: then nobody wants it at a drain's target.
    async fn is_unused(&self, directory: ReadyMade) -> Result<bool, FsError> {
        let listing = self.fs.readdir(directory.ino(), 0, ReadyMade::ALL.len() as u32).await?.listing;
        for listed in &listing.entries {
            match ReadyMade::at(directory.ino(), &listed.name, listed.entry.ino) {
                Some(below) if Box::pin(self.is_unused(below)).await? => {}
                _ => return Ok(false),
            }
        }
        Ok(listing.is_end)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errno(error: FsError) -> Errno {
    error.errno()
}

fn page_entry(entry: PlusEntry) -> PageEntry {
    let PlusEntry { name, ino, kind, cookie, attr } = entry;
    PageEntry { name, ino, kind, attr, cookie }
}

fn ino(attr: Attr) -> Ino {
    attr.ino
}

#[async_trait]
impl InstanceTree for Tree {
    fn place(&self, ino: Ino, layout: Option<&Layout>) -> Option<NodeIndex> {
        // Node n serves MDT n and OST n.
        let index = layout.map_or(ino.mdt().get(), |layout| layout.osts()[0].get());
        Some(NodeIndex::new(index))
    }

    async fn lookup(&self, dir: Ino, name: &Name) -> Result<Ino, Errno> {
        match self.fs.lookup(dir, name.as_bytes()).await {
            Err(error) if error.is_of_lost_node() => self.recall(dir, name).ok_or_else(|| error.errno()),
            found => found.map(ino).map_err(errno),
        }
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Errno> {
        self.fs.getattr(ino).await.map_err(errno)
    }

    async fn setattr(&self, ino: Ino, change: Change) -> Result<(), Errno> {
        let change = AttrChange {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            atime: change.atime.map(SetTime::At),
            mtime: change.mtime.map(SetTime::At),
            ..AttrChange::default()
        };
        self.fs.setattr(ino, change).await.map(drop).map_err(errno)
    }

    async fn readdir(&self, dir: Ino, cookie: u64, max: u32) -> Result<Page, Errno> {
        let mut cookie = cookie;
        loop {
            let PlusListing { mut entries, is_end, .. } =
                self.fs.readdir_plus(dir, cookie, max).await.map_err(errno)?;
            cookie = entries.last().map_or(cookie, |last| last.cookie);
            let mut unused = Vec::new();
            for ready_made in entries.iter().filter_map(|entry| ReadyMade::at(dir, &entry.name, entry.ino)) {
                if self.is_unused(ready_made).await.map_err(errno)? {
                    unused.push(ready_made.ino());
                }
            }
            entries.retain(|entry| !unused.contains(&entry.ino));
            // Only a listing's end may look like one.
            if is_end || !entries.is_empty() {
                return Ok(Page { entries: entries.into_iter().map(page_entry).collect(), is_end });
            }
        }
    }

    async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.fs.readlink(ino).await.map_err(errno)
    }

    async fn mkdir(&self, dir: Ino, name: &Name, mode: u16) -> Result<Ino, Errno> {
        self.fs.mkdir(dir, name.as_bytes(), mode, self.owner).await.map(ino).map_err(errno)
    }

    async fn symlink(&self, dir: Ino, name: &Name, target: &[u8]) -> Result<Ino, Errno> {
        self.fs.symlink(dir, name.as_bytes(), target, self.owner).await.map(ino).map_err(errno)
    }

    async fn link(&self, ino: Ino, dir: Ino, name: &Name) -> Result<(), Errno> {
        self.fs.link(ino, dir, name.as_bytes()).await.map(drop).map_err(errno)
    }

    async fn rename(&self, dir: Ino, name: &Name, new_name: &Name) -> Result<(), Errno> {
        let (from, to) = ((dir, name.as_bytes()), (dir, new_name.as_bytes()));
        self.fs.rename(from, to, RenameMode::NoReplace).await.map_err(errno)
    }

    async fn unlink(&self, dir: Ino, name: &Name) -> Result<(), Errno> {
        self.fs.unlink(dir, name.as_bytes()).await.map_err(errno)
    }

    async fn open(&self, ino: Ino) -> Result<Opened, Errno> {
        self.fs.open(ino, false).await.map(|opened| self.keep(opened)).map_err(errno)
    }

    async fn create(&self, dir: Ino, name: &Name, mode: u16) -> Result<Opened, Errno> {
        let new = NewFile { mode, owner: self.owner, exclusive: false, truncate: true, policy: None };
        self.fs.create(dir, name.as_bytes(), new).await.map(|opened| self.keep(opened)).map_err(errno)
    }

    async fn read_at(&self, handle: TreeHandle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let file = self.file(handle)?;
        self.fs.read_into(&file, offset, into).await.map_err(errno)
    }

    async fn next_data(&self, handle: TreeHandle, offset: u64) -> Result<Option<Extent>, Errno> {
        let file = self.file(handle)?;
        let start = match self.fs.seek(&file, SeekTarget::Data, offset).await {
            Ok(start) => start,
            Err(error) if error.errno() == Errno::ENXIO => return Ok(None),
            Err(error) => return Err(error.errno()),
        };
        let end = self.fs.seek(&file, SeekTarget::Hole, start).await.map_err(errno)?;
        Ok(Some(Extent { start, end }))
    }

    async fn write_at(&self, handle: TreeHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let file = self.file(handle)?;
        self.fs.write(&file, offset, WriteData::Lent(data), false).await.map_err(errno)
    }

    async fn truncate(&self, handle: TreeHandle, size: u64) -> Result<(), Errno> {
        let file = self.file(handle)?;
        let change = AttrChange { size: Some(size), ..AttrChange::default() };
        self.fs.setattr(file.ino(), change).await.map(drop).map_err(errno)
    }

    async fn fsync(&self, handle: TreeHandle) -> Result<(), Errno> {
        let file = self.file(handle)?;
        self.fs.fsync(&file, false).await.map_err(errno)
    }

    async fn close(&self, handle: TreeHandle) -> Result<(), Errno> {
        let file = self.lock().remove(&handle.0).ok_or(Errno::EBADF)?;
        self.fs.close(&file).await.map_err(errno)
    }

    async fn list_xattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Errno> {
        self.fs.listxattr(ino).await.map_err(errno)
    }

    async fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.fs.getxattr(ino, name).await.map_err(errno)
    }

    async fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        self.fs.setxattr(ino, name, value, XattrMode::Any).await.map_err(errno)
    }

    async fn change(&self, ino: Ino) -> Result<ChangeState, Errno> {
        let state = self.fs.change(ino).await.map_err(errno)?;
        Ok(ChangeState { number: state.number, is_writable: state.is_writable, is_changed: state.is_changed() })
    }

    async fn end_change(&self, ino: Ino, number: Option<u64>) -> Result<bool, Errno> {
        self.fs.end_change(ino, number).await.map_err(errno)
    }

    async fn write_back(&self, handle: TreeHandle) -> Result<(), Errno> {
        let file = self.file(handle)?;
        self.fs.write_back(&file).await.map_err(errno)
    }

    async fn space(&self) -> Result<Space, Errno> {
        let space = self.fs.statfs().await.map_err(errno)?;
        Ok(Space { capacity: space.capacity, available: space.available })
    }
}

//! Names: lookup, making, removing, renaming.

use std::time::Duration;

use burstfs_proto::leases::{LeasedGetAttr, LeasedLookup};
use burstfs_proto::mds::{
    Close, Create, GetAttr, Link, Lookup, Mkdir, Mknod, Open, Readlink, Rename, RenameMode, Rmdir, Symlink, Unlink,
};
use burstfs_types::{Attr, Errno, FileKind, Ino, LayoutPolicy, Name};

use super::attr::AttrChange;
use super::error::FsError;
use super::{ClientFs, OpenFile};

/// Who makes something: the new inode's owner and group, and what he denies to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group; a set-group-id directory overrides it.
    pub gid: u32,
    /// Permission bits that are not given, unless the directory has a default ACL, which then decides. `None`: the new inode's bits
    /// are exactly those that are asked for, and it inherits no ACL.
    pub umask: Option<u16>,
}

/// A regular file to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewFile {
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub owner: Credentials,
    /// `O_EXCL`: EEXIST when the name is taken.
    pub exclusive: bool,
    /// `O_TRUNC`: a file that is there already becomes empty.
    pub truncate: bool,
    /// The layout that it shall have; `None`: as its directory has it.
    pub policy: Option<LayoutPolicy>,
}

/// Something else to make than a directory or an open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewSpecial {
    /// `Fifo`, `Socket`, or `Regular` (without opening it).
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Its owner.
    pub owner: Credentials,
}

/// A file just opened, with its attributes.
pub struct Opened {
    /// The open file.
    pub file: OpenFile,
    /// Its attributes.
    pub attr: Attr,
}

/// What a name stands for, for a kernel that keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// The inode's attributes; `None`: there is no such name.
    pub attr: Option<Attr>,
    /// How long the kernel may keep the attributes.
    pub attr_valid: Duration,
    /// How long it may keep what the name stands for, or that it is not there.
    pub entry_valid: Duration,
}

impl ClientFs {
    /// What `name` in `parent` is, for the kernel: it counts as told of the inode.
    pub async fn leased_lookup(&self, parent: Ino, name: &[u8]) -> Result<Looked, FsError> {
        let name = Name::new(name)?;
        let request = |holder| LeasedLookup { directory: parent, parent: holder, name: name.clone() };
        loop {
            let ticket = self.leases.ticket();
            let found = self.at_name(parent, &name, request).await?;
            let is_there = found.entry.is_some();
            let entry_valid = || self.leases.keep_entry(ticket, (parent, &name), is_there, found.has_entries);
            let Some(entry) = found.entry else {
                return Ok(Looked { attr: None, attr_valid: Duration::ZERO, entry_valid: entry_valid() });
            };
            let ino = entry.ino;
            let (attr, has_attributes) = match entry.attr {
                Some(attr) => (attr, found.has_attributes),
                None => match self.targets.mds(ino.mdt(), LeasedGetAttr { ino }).await {
                    Ok(leased) => (leased.attr, leased.has_attributes),
                    // Removed between the two answers; the name is gone as well, or names something new.
                    Err(error) if error.errno() == Errno::ESTALE => continue,
                    Err(error) => return Err(error),
                },
            };
            let attr = self.with_objects(attr).await?;
            self.leases.shown(ino);
            let attr_valid = self.leases.keep_attributes(ticket, ino, has_attributes);
            return Ok(Looked { attr: Some(attr), attr_valid, entry_valid: entry_valid() });
        }
    }

    /// What `name` in `parent` is.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        let name = Name::new(name)?;
        loop {
            let entry = self.at_name(parent, &name, |parent| Lookup { parent, name: name.clone() }).await?;
            let attr = match entry.attr {
                Some(attr) => Ok(attr),
                None => self.targets.mds(entry.ino.mdt(), GetAttr { ino: entry.ino }).await,
            };
            match attr {
                Ok(attr) => return self.with_objects(attr).await,
                // Removed between the two answers; the name is gone as well, or names something new.
                Err(error) if error.errno() == Errno::ESTALE => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `open(2)` with `O_CREAT`.
    pub async fn create(&self, parent: Ino, name: &[u8], new: NewFile) -> Result<Opened, FsError> {
        let request = Create {
            parent,
            name: Name::new(name)?,
            mode: new.mode,
            umask: new.owner.umask,
            uid: new.owner.uid,
            gid: new.owner.gid,
            exclusive: new.exclusive,
            near: self.local_ost(),
            policy: new.policy,
        };
        let created = loop {
            match self.at_name(parent, &request.name, |parent| Create { parent, ..request.clone() }).await {
                Err(error) if error.errno() == Errno::EREMOTE => {
                    match self.open_elsewhere(parent, &request.name, new.truncate).await {
                        // Gone meanwhile: made, or found, anew.
                        Err(error) if error.is_gone() => {}
                        opened => return opened,
                    }
                }
                created => break self.told(created, &[], &[]).await?,
            }
        };
        if created.is_new {
            self.changed(&[parent], &[(parent, &request.name)]).await;
            let file = OpenFile::new(&created.attr, &self.targets, &self.watch)?;
            return Ok(Opened { file, attr: created.attr });
        }
        self.opened(created.attr, (true, new.truncate)).await
    }

    /// Opens a file that a name stands for whose directory is on another MDT.
    async fn open_elsewhere(&self, parent: Ino, name: &Name, truncate: bool) -> Result<Opened, FsError> {
        let entry = self.at_name(parent, name, |parent| Lookup { parent, name: name.clone() }).await?;
        self.open_to_write(entry.ino, truncate).await
    }

    /// `open(2)` of a regular file for reading. With `truncate` it becomes empty, and may be written.
    pub async fn open(&self, ino: Ino, truncate: bool) -> Result<Opened, FsError> {
        self.open_as(ino, truncate, truncate).await
    }

    /// The same, for writing.
    pub async fn open_to_write(&self, ino: Ino, truncate: bool) -> Result<Opened, FsError> {
        self.open_as(ino, true, truncate).await
    }

    async fn open_as(&self, ino: Ino, writes: bool, truncate: bool) -> Result<Opened, FsError> {
        let attr = self.targets.mds(ino.mdt(), Open { ino, writes }).await?;
        self.opened(attr, (writes, truncate)).await
    }

    /// Finishes an open that the MDT has registered; takes the registration back if it fails.
    async fn opened(&self, attr: Attr, (writes, truncate): (bool, bool)) -> Result<Opened, FsError> {
        let ino = attr.ino;
        if writes {
            // From now on its attributes change without a word.
            self.changed(&[ino], &[]).await;
        }
        let finished = async {
            let attr = if truncate { self.truncate(attr, 0).await? } else { attr };
            let file = OpenFile::new(&attr, &self.targets, &self.watch)?;
            let attr = self.with_objects(attr).await?;
            Ok(Opened { file, attr })
        };
        match finished.await {
            Ok(opened) => Ok(opened),
            Err(error) => {
                // The first error is what the caller must hear; a registration left behind ends with this client.
                let _ = self.targets.mds(ino.mdt(), Close { ino }).await;
                Err(error)
            }
        }
    }

    /// The last `close(2)` of an open file.
    pub async fn close(&self, file: &OpenFile) -> Result<(), FsError> {
        let ino = file.ino();
        self.unlock_description(file).await;
        self.targets.mds(ino.mdt(), Close { ino }).await
    }

    /// Clears set-id bits as a truncation or a change of owner does.
    pub async fn clear_set_id(&self, ino: Ino) -> Result<Attr, FsError> {
        self.setattr(ino, AttrChange { kill_set_id: true, ..AttrChange::default() }).await
    }

    /// `mknod(2)`.
    pub async fn mknod(&self, parent: Ino, name: &[u8], new: NewSpecial) -> Result<Attr, FsError> {
        let request = Mknod {
            parent,
            name: Name::new(name)?,
            kind: new.kind,
            mode: new.mode,
            umask: new.owner.umask,
            uid: new.owner.uid,
            gid: new.owner.gid,
        };
        let made = self.at_name(parent, &request.name, |parent| Mknod { parent, ..request.clone() }).await;
        self.told(made, &[parent], &[(parent, &request.name)]).await
    }

    /// `mkdir(2)`.
    pub async fn mkdir(&self, parent: Ino, name: &[u8], mode: u16, owner: Credentials) -> Result<Attr, FsError> {
        let Credentials { uid, gid, umask } = owner;
        let request = Mkdir { parent, name: Name::new(name)?, mode, umask, uid, gid };
        let made = self.at_name(parent, &request.name, |parent| Mkdir { parent, ..request.clone() }).await;
        self.told(made, &[parent], &[(parent, &request.name)]).await
    }

    /// `unlink(2)`. The objects go when the last open file is closed; the MDS sees to it.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        let name = Name::new(name)?;
        let removed = self.at_name(parent, &name, |parent| Unlink { parent, name: name.clone() }).await;
        self.told(removed, &[parent], &[(parent, &name)]).await
    }

    /// `rmdir(2)`.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        let name = Name::new(name)?;
        let removed = self.at_name(parent, &name, |parent| Rmdir { parent, name: name.clone() }).await;
        self.told(removed, &[parent], &[(parent, &name)]).await
    }

    /// `renameat2(2)`.
    pub async fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<(), FsError> {
        let (name, new_name) = (Name::new(from.1)?, Name::new(to.1)?);
        let request = |parent, new_parent| {
            let (name, new_name) = (name.clone(), new_name.clone());
            Rename { parent, name, new_parent, new_name, mode }
        };
        let (old, new) = ((from.0, &name), (to.0, &new_name));
        // When a directory gets another parent MDT 0 has the rename lock.
        let renamed = self.at_names(old, new, request).await;
        let renamed = self.told(renamed, &[from.0, to.0], &[old, new]).await;
        // Behind that no answer that is under way brings a name's time along that the kernel would move unseen.
        if self.is_for_kernel && renamed.is_ok() {
            self.leases.renamed(old, new, mode == RenameMode::Exchange);
        }
        renamed
    }

    /// `link(2)`.
    pub async fn link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr, FsError> {
        let new_name = Name::new(new_name)?;
        let request = |new_parent| Link { ino, new_parent, new_name: new_name.clone() };
        let linked = self.at_name(new_parent, &new_name, request).await;
        let linked = self.told(linked, &[ino, new_parent], &[(new_parent, &new_name)]).await;
        self.with_objects(linked?).await
    }

    /// `symlink(2)`.
    pub async fn symlink(&self, parent: Ino, name: &[u8], target: &[u8], owner: Credentials) -> Result<Attr, FsError> {
        let request =
            Symlink { parent, name: Name::new(name)?, target: target.to_vec(), uid: owner.uid, gid: owner.gid };
        let made = self.at_name(parent, &request.name, |parent| Symlink { parent, ..request.clone() }).await;
        self.told(made, &[parent], &[(parent, &request.name)]).await
    }

    /// `readlink(2)`.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        self.targets.mds(ino.mdt(), Readlink { ino }).await
    }
}

//! Where a file's bytes live: found out, decided, shown and set.
//!
//! A user sees a layout as the extended attribute [`LAYOUT`], which is a text as `burstfs_types::LayoutPolicy` has it, and
//! with its reasons as [`INFO`], which is JSON and cannot be set. Neither is listed, so that copying a file with its
//! attributes does not copy its layout.

use burstfs_placement::file_size;
use burstfs_proto::mds::{
    DecideLayout, EndAppends, GetAttr, GetLayout, Habit, LayoutChoice, LayoutInfo, LayoutOrigin, ReserveAppend,
    SetAttr, SetLayout, SetTime,
};
use burstfs_types::{Attr, FileKind, Ino, Layout, LayoutPolicy, StripePattern};
use serde::Serialize;

use super::attr::check_size;
use super::error::FsError;
use super::file::layout_of;
use super::{ClientFs, OpenFile};

/// The attribute with an inode's layout.
pub(super) const LAYOUT: &[u8] = b"burstfs.layout";
/// The attribute that says more.
pub(super) const INFO: &[u8] = b"burstfs.layout.info";

/// A layout and why it is so, for people and for the `burstfs` command.
#[derive(Serialize)]
struct Shown {
    kind: &'static str,
    /// As it can be set.
    layout: String,
    /// The OSTs in the order of the stripes; `None` before the first byte, and for a directory.
    osts: Option<Vec<u16>>,
    reason: String,
}

impl ClientFs {
    /// The layout of an open file, asked for as long as it has none; `None`: the file has no bytes yet.
    pub(super) async fn known_layout<'f>(&self, file: &'f OpenFile) -> Result<Option<&'f Layout>, FsError> {
        if let Some(layout) = file.layout() {
            return Ok(Some(layout));
        }
        let attr = self.targets.mds(file.ino().mdt(), GetAttr { ino: file.ino() }).await?;
        Ok(attr.layout.map(|layout| file.place(layout, &self.targets)))
    }

    /// The layout of an open file that is about to get bytes.
    pub(super) async fn layout_to_fill<'f>(&self, file: &'f OpenFile) -> Result<&'f Layout, FsError> {
        if let Some(layout) = file.layout() {
            return Ok(layout);
        }
        let attr = self.decide_layout(file.ino()).await?;
        Ok(file.place(layout_of(&attr)?.ok_or(FsError::WrongReply { rpc: "DecideLayout" })?.clone(), &self.targets))
    }

    async fn decide_layout(&self, ino: Ino) -> Result<Attr, FsError> {
        self.targets.mds(ino.mdt(), DecideLayout { ino, near: self.local_ost() }).await
    }

    /// Makes a file exactly `size` bytes long; gives its attributes on the MDT.
    pub(super) async fn truncate(&self, attr: Attr, size: u64) -> Result<Attr, FsError> {
        check_size(size)?;
        let ino = attr.ino;
        let attr = match (layout_of(&attr)?, size) {
            (Some(_), _) => attr,
            (None, 0) => {
                // There are no objects whose time would tell of it.
                let mtime = Some(SetTime::Now);
                let (mode, uid, gid, atime) = (None, None, None, None);
                let request = SetAttr { ino, mode, uid, gid, atime, mtime, kill_set_id: false, opens: false };
                return self.targets.mds(ino.mdt(), request).await;
            }
            (None, _) => self.decide_layout(ino).await?,
        };
        if let Some(layout) = layout_of(&attr)? {
            if layout.osts().len() > 1 {
                self.targets.mds(ino.mdt(), EndAppends { ino, size }).await?;
            }
            self.truncate_objects(ino, layout, size).await?;
        }
        Ok(attr)
    }

    /// Where an append of `len` bytes to a striped file goes: the MDT gives each byte behind the end to one append only.
    pub(super) async fn reserve_append(&self, ino: Ino, layout: &Layout, len: u64) -> Result<u64, FsError> {
        let objects = self.glimpse(ino, layout).await?;
        let size = file_size(layout, objects.iter().map(|(stripe, object)| (*stripe, object.size)));
        self.targets.mds(ino.mdt(), ReserveAppend { ino, size, len }).await
    }

    /// The layout of a directory or a regular file.
    pub async fn get_layout(&self, ino: Ino) -> Result<LayoutInfo, FsError> {
        self.targets.mds(ino.mdt(), GetLayout { ino }).await
    }

    /// Sets the layout of what is made in a directory from now on, or of a file that has none yet (else EEXIST). `None`:
    /// the job's.
    pub async fn set_layout(&self, ino: Ino, policy: Option<LayoutPolicy>) -> Result<(), FsError> {
        let set = self.targets.mds(ino.mdt(), SetLayout { ino, policy }).await;
        self.told(set, &[ino], &[]).await
    }

    /// The attribute `name` of the name space `burstfs.`; ENODATA when the inode has none of that name.
    pub(super) async fn layout_attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let info = match name {
            LAYOUT | INFO => self.get_layout(ino).await,
            _ => return Err(FsError::NoAttribute),
        };
        match info {
            Ok(info) if name == LAYOUT => Ok(settable(&info).to_string().into_bytes()),
            // A struct of strings and numbers always is JSON.
            Ok(info) => Ok(serde_json::to_vec(&shown(&info)).unwrap_or_default()),
            Err(error) if error.errno() == burstfs_types::Errno::EINVAL => Err(FsError::NoAttribute),
            Err(error) => Err(error),
        }
    }

    /// Sets such an attribute from what a user wrote.
    pub(super) async fn set_layout_attribute(&self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), FsError> {
        if name != LAYOUT {
            return Err(FsError::Unsupported { what: "setting this attribute" });
        }
        let policy = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        self.set_layout(ino, Some(policy.ok_or(FsError::Invalid { what: "the layout" })?)).await
    }

    /// Takes back what was set.
    pub(super) async fn remove_layout_attribute(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        if name == LAYOUT { self.set_layout(ino, None).await } else { Err(FsError::NoAttribute) }
    }
}

/// What would have to be set to get the same again.
fn settable(info: &LayoutInfo) -> LayoutPolicy {
    let Some(layout) = &info.layout else { return info.wanted.policy };
    let (count, size_bytes) = (layout.osts().len(), layout.stripe_size_bytes());
    let is_striped = count > 1 || matches!(info.wanted.policy, LayoutPolicy::Striped(_));
    let pattern = u16::try_from(count).ok().and_then(|count| StripePattern::new(Some(count), size_bytes).ok());
    pattern.filter(|_| is_striped).map_or(LayoutPolicy::Local, LayoutPolicy::Striped)
}

fn shown(info: &LayoutInfo) -> Shown {
    Shown {
        kind: if info.kind == FileKind::Directory { "directory" } else { "file" },
        layout: settable(info).to_string(),
        osts: info.layout.as_ref().map(|layout| layout.osts().iter().map(|ost| ost.get()).collect()),
        reason: reason(info),
    }
}

/// Why a file got this layout.
fn chosen(choice: LayoutChoice) -> String {
    match choice {
        LayoutChoice::Wanted => String::new(),
        LayoutChoice::Directory(Habit { files: 0, .. }) => {
            ": on the node that made it, since nothing was known yet of how files of its directory are written"
                .to_owned()
        }
        LayoutChoice::Directory(habit) => {
            let Habit { files, shared } = habit;
            let what = if habit.is_shared() { "striped" } else { "on the node that made it" };
            format!(
                ": {what}, since of the last {files} files of its directory {shared} were written by several nodes at a time"
            )
        }
        LayoutChoice::Writers(writers @ 2..) => {
            format!(": striped, since {writers} nodes had it open for writing at its first byte")
        }
        LayoutChoice::Writers(_) => ": on the node that wrote its first byte, alone".to_owned(),
    }
}

fn reason(info: &LayoutInfo) -> String {
    let who = match (info.wanted.origin, info.kind) {
        (LayoutOrigin::Job, _) => "the job asks for it",
        (LayoutOrigin::Parent, FileKind::Directory) => "the directory that it was made in had it",
        (LayoutOrigin::Parent, _) => "its directory had it when it was made",
        (LayoutOrigin::Own, FileKind::Directory) => "it was set on this directory",
        (LayoutOrigin::Own, _) => "it was set on this file",
    };
    match (info.kind, &info.layout) {
        (FileKind::Directory, _) => format!("{who}; files made in it get it"),
        (_, None) => format!("{who}; decided at the first write"),
        (_, Some(_)) => format!("{who}{}", info.choice.map(chosen).unwrap_or_default()),
    }
}

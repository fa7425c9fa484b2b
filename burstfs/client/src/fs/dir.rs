//! Listings.

use std::collections::HashMap;

use burstfs_proto::mds::{GetAttr, Listing, ListingEntry, Readdir};
use burstfs_proto::oss::ObjectAttr;
use burstfs_types::{Attr, FileKind, Ino, Name, ObjectId, StripeIndex};
use futures_util::future::try_join_all;

use super::ClientFs;
use super::attr::merge;
use super::error::FsError;

/// An entry with its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlusEntry {
    /// The name.
    pub name: Name,
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Where to go on behind it.
    pub cookie: u64,
    /// Its attributes; `None` when it was removed meanwhile, or is a directory whose node is lost.
    pub attr: Option<Attr>,
}

/// A part of a listing, with attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlusListing {
    /// The entries in the order of their cookies.
    pub entries: Vec<PlusEntry>,
    /// True when nothing comes behind the last.
    pub is_end: bool,
}

impl ClientFs {
    /// At most `entries_max` entries behind `cookie` (0: the beginning), without `.` and `..`.
    pub async fn readdir(&self, ino: Ino, cookie: u64, entries_max: u32) -> Result<Listing, FsError> {
        let request = Readdir { ino, cookie, entries_max, with_attrs: false };
        self.targets.mds(ino.mdt(), request).await
    }

    /// The same with attributes: one glimpse per OST for all of the files in it. A lost node spoils nothing but its own: size
    /// and times of files whose objects it holds are the MDT's.
    pub async fn readdir_plus(&self, ino: Ino, cookie: u64, entries_max: u32) -> Result<PlusListing, FsError> {
        let request = Readdir { ino, cookie, entries_max, with_attrs: true };
        let listing = self.targets.mds(ino.mdt(), request).await?;
        let mut entries = try_join_all(listing.entries.into_iter().map(|entry| self.plus(entry))).await?;
        let files = entries.iter().filter_map(|entry| entry.attr.as_ref()?.layout.as_ref().map(|of| (entry.ino, of)));
        let objects =
            files.flat_map(|(ino, layout)| layout.stripes().map(move |(stripe, ost)| (ost, ObjectId { ino, stripe })));
        let objects: Vec<_> = objects.collect();
        let mut by_file: HashMap<Ino, Vec<(StripeIndex, ObjectAttr)>> = HashMap::new();
        for (object, attr) in self.glimpse_reachable(objects.into_iter()).await? {
            by_file.entry(object.ino).or_default().push((object.stripe, attr));
        }
        for attr in entries.iter_mut().filter_map(|entry| entry.attr.as_mut()) {
            if let (Some(objects), Some(layout)) = (by_file.get(&attr.ino), attr.layout.clone()) {
                merge(attr, &layout, objects);
            }
        }
        Ok(PlusListing { entries, is_end: listing.is_end })
    }

    /// Adds the attributes of an inode of another MDT than its directory's.
    async fn plus(&self, listed: ListingEntry) -> Result<PlusEntry, FsError> {
        let ListingEntry { name, entry, cookie } = listed;
        let attr = match entry.attr {
            Some(attr) => Some(attr),
            None => match self.targets.mds(entry.ino.mdt(), GetAttr { ino: entry.ino }).await {
                Ok(attr) => Some(attr),
                Err(error) if error.is_gone() || error.is_of_lost_node() => None,
                Err(error) => return Err(error),
            },
        };
        Ok(PlusEntry { name, ino: entry.ino, kind: entry.kind, cookie, attr })
    }
}

//! Listings.

use std::collections::HashMap;

use burstfs_proto::Rpc;
use burstfs_proto::mds::{GetAttr, Listing, ListingEntry, Readdir};
use burstfs_proto::oss::ObjectAttr;
use burstfs_types::shards::first_hash;
use burstfs_types::{Attr, FileKind, Ino, Name, ObjectId, Shards, StripeIndex};
use futures_util::future::{join_all, try_join_all};

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

/// A part of a listing, without attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The entries.
    pub listing: Listing,
    /// True when names are missing: those that a lost node held.
    pub is_missing_names: bool,
}

/// A part of a listing, with attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlusListing {
    /// The entries in the order of their cookies.
    pub entries: Vec<PlusEntry>,
    /// True when nothing comes behind the last.
    pub is_end: bool,
    /// True when names are missing: those that a lost node held.
    pub is_missing_names: bool,
}

/// Entries that are asked of each shard beyond its part of what is wanted: names are not quite even.
const SHARD_MARGIN: u32 = 8;

impl ClientFs {
    /// At most `entries_max` entries behind `cookie` (0: the beginning), without `.` and `..`.
    pub async fn readdir(&self, ino: Ino, cookie: u64, entries_max: u32) -> Result<Listed, FsError> {
        self.list(&Readdir { ino, cookie, entries_max, with_attrs: false }).await
    }

    /// A part of a listing, of whichever shards.
    async fn list(&self, request: &Readdir) -> Result<Listed, FsError> {
        loop {
            let Some(shards) = self.spread.of(request.ino) else {
                let listing = self.targets.mds(request.ino.mdt(), request.clone()).await?;
                match &listing.shards {
                    None => return Ok(Listed { listing, is_missing_names: false }),
                    Some(shards) => self.spread.learn(shards),
                }
                continue;
            };
            if let Some(listed) = self.list_shards(&shards, request).await? {
                return Ok(listed);
            }
        }
    }

    /// Asks all shards at once. `None` when names have moved meanwhile, and may be missing or there twice.
    async fn list_shards(&self, shards: &Shards, request: &Readdir) -> Result<Option<Listed>, FsError> {
        let entries_max = request.entries_max / u32::from(shards.count()) + SHARD_MARGIN;
        let ask = |ino: &Ino| self.targets.mds(ino.mdt(), Readdir { ino: *ino, entries_max, ..request.clone() });
        let answers = join_all(shards.inos().iter().map(ask)).await;
        let (mut listings, mut is_missing_names) = (Vec::with_capacity(answers.len()), false);
        let mut head = None;
        for (index, answer) in answers.into_iter().enumerate() {
            let is_head = index == shards.others().len();
            match answer {
                Ok(listing) if is_head => head = Some(listing),
                Ok(listing) => listings.push((index as u16, listing)),
                Err(error) if error.is_of_lost_node() && !is_head => is_missing_names = true,
                Err(error) => return Err(error),
            }
        }
        let head = head.ok_or(FsError::WrongReply { rpc: Readdir::NAME })?;
        let now = head.shards.as_ref().ok_or(FsError::WrongReply { rpc: Readdir::NAME })?;
        self.spread.learn(now);
        let agrees = |(index, listing): &(u16, Listing)| {
            let (first, end) = (first_hash(*index, now.count()), first_hash(index + 1, now.count()));
            listing.moved_below.max(first) == now.moved_below().clamp(first, end)
        };
        if !listings.iter().all(agrees) {
            return Ok(None);
        }
        let listings = listings.into_iter().map(|(_, listing)| listing).chain([head]);
        let listing = merge_listings(listings.collect(), request.entries_max as usize);
        Ok(Some(Listed { listing, is_missing_names }))
    }

    /// The same with attributes: one glimpse per OST for all of the files in it. A lost node spoils nothing but its own: size
    /// and times of files whose objects it holds are the MDT's.
    pub async fn readdir_plus(&self, ino: Ino, cookie: u64, entries_max: u32) -> Result<PlusListing, FsError> {
        let request = Readdir { ino, cookie, entries_max, with_attrs: true };
        let Listed { listing, is_missing_names } = self.list(&request).await?;
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
        Ok(PlusListing { entries, is_end: listing.is_end, is_missing_names })
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
        let attr = match attr {
            Some(attr) => Some(self.with_shards(attr).await?),
            None => None,
        };
        Ok(PlusEntry { name, ino: entry.ino, kind: entry.kind, cookie, attr })
    }
}

/// The listings of all shards, the head's last, as one of at most `wanted` entries. Each has the entries of its own that come next, so
/// what comes behind the last of one that goes on may not be all there is.
fn merge_listings(mut listings: Vec<Listing>, wanted: usize) -> Listing {
    let goes_on = |listing: &&Listing| !listing.is_end;
    let horizon =
        listings.iter().filter(goes_on).map(|listing| listing.entries.last().map_or(0, |last| last.cookie)).min();
    let mut entries: Vec<ListingEntry> =
        listings.iter_mut().flat_map(|listing| std::mem::take(&mut listing.entries)).collect();
    entries.sort_unstable_by_key(|entry| entry.cookie);
    let all = entries.len();
    entries.retain(|entry| horizon.is_none_or(|horizon| entry.cookie <= horizon));
    entries.truncate(wanted.max(1));
    let is_end = horizon.is_none() && entries.len() == all;
    let (parent, moved_below) = listings.last().map_or((Ino::ROOT, 0), |head| (head.parent, head.moved_below));
    Listing { entries, is_end, parent, shards: listings.pop().and_then(|head| head.shards), moved_below }
}

#[cfg(test)]
mod tests {
    use burstfs_proto::mds::Entry;

    use super::*;

    fn listing(cookies: &[u64], is_end: bool) -> Listing {
        let entry = |cookie: &u64| ListingEntry {
            name: Name::new(cookie.to_string()).unwrap(),
            entry: Entry { ino: Ino::ROOT, kind: FileKind::Fifo, attr: None },
            cookie: *cookie,
        };
        let entries = cookies.iter().map(entry).collect();
        Listing { entries, is_end, parent: Ino::ROOT, shards: None, moved_below: 0 }
    }

    fn merged(listings: &[(&[u64], bool)], wanted: usize) -> (Vec<u64>, bool) {
        let listings = listings.iter().map(|(cookies, is_end)| listing(cookies, *is_end)).collect();
        let merged = merge_listings(listings, wanted);
        (merged.entries.iter().map(|entry| entry.cookie).collect(), merged.is_end)
    }

    #[test]
    fn what_may_be_followed_by_others_waits() {
        assert_eq!(merged(&[(&[3, 9], true), (&[4, 5], true)], 9), (vec![3, 4, 5, 9], true));
        assert_eq!(merged(&[(&[3, 9], true), (&[4, 5], false)], 9), (vec![3, 4, 5], false));
        assert_eq!(merged(&[(&[3, 9], false), (&[], true)], 9), (vec![3, 9], false));
        assert_eq!(merged(&[(&[3, 9], true), (&[4, 5], true)], 3), (vec![3, 4, 5], false));
        assert_eq!(merged(&[(&[], true), (&[], true)], 3), (vec![], true));
    }
}

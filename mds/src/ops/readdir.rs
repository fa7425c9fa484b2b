//! A part of a listing.

use burstfs_proto::mds::{Listing, ListingEntry, Readdir};
use burstfs_types::Errno;

use super::lookup::entry;
use crate::namespace::{Namespace, OpError};
use crate::record::Spread;

/// The most entries of one reply.
const ENTRIES_MAX: u32 = 1_024;
/// A reply stops behind the entry that crosses this: well below the limit of a message's body.
const REPLY_BYTES: usize = 512 << 10;
/// More than the fixed part of an entry takes.
const ENTRY_BYTES: usize = 128;
/// More than one OST of a layout takes.
const OST_BYTES: usize = 3;

pub(crate) fn readdir(ns: &mut Namespace<'_>, request: &Readdir) -> Result<Listing, OpError> {
    let directory = ns.directory(request.ino)?;
    if request.cookie >= 1 << 63 {
        return Err(Errno::EINVAL.into());
    }
    let wanted = request.entries_max.clamp(1, ENTRIES_MAX) as usize;
    // One more than wanted says whether the listing ends with them.
    let found = ns.entries_behind(request.ino, request.cookie, wanted + 1)?;
    let found_count = found.len();
    let mut entries = Vec::with_capacity(found_count.min(wanted));
    let mut bytes = 0;
    for (cookie, record) in found.into_iter().take(wanted) {
        let entry = entry(ns, record.ino, record.kind, request.with_attrs)?;
        let layout = entry.attr.as_ref().and_then(|attr| attr.layout.as_ref());
        bytes +=
            ENTRY_BYTES + record.name.as_bytes().len() + layout.map_or(0, |layout| layout.osts().len() * OST_BYTES);
        entries.push(ListingEntry { name: record.name, entry, cookie });
        if bytes > REPLY_BYTES {
            break;
        }
    }
    let is_end = entries.len() == found_count;
    let (parent, moved_below) = (directory.parent, directory.spread.moved_below());
    let shards = if let Spread::Head(shards) = directory.spread { Some(*shards) } else { None };
    Ok(Listing { entries, is_end, parent, shards, moved_below })
}

//! Reads whose answers come with leases.

use burstfs_proto::leases::{LeasedAttr, LeasedEntry, LeasedGetAttr, LeasedLookup};
use burstfs_proto::mds::Entry;
use burstfs_types::{Attr, Errno, FileKind, Ino};

use super::{attributes, entries};
use crate::clients::Client;
use crate::locks::Stripe;
use crate::mdt::Mdt;
use crate::namespace::{Namespace, OpError};
use crate::record::Dentry;

impl Mdt {
    /// `None` while another MDT decides what the answer is.
    pub(crate) fn leased_lookup(
        &self,
        client: &Client,
        request: &LeasedLookup,
    ) -> Option<Result<LeasedEntry, OpError>> {
        let LeasedLookup { directory, parent, name } = request;
        let (found, has_entries) = {
            let stripe = self.locks.read(*parent);
            if stripe.is_name_promised(*parent, name) {
                return None;
            }
            let found = self.with_namespace(|ns| match ns.dentry(*parent, name)? {
                Some(dentry) => Ok(Some(dentry)),
                None => ns.directory_with(*parent, name).map(|_| None),
            });
            if matches!(found, Err(OpError::Errno(Errno::EREMCHG))) && stripe.is_promised(*parent) {
                // The name may be on its way here.
                return None;
            }
            let is_stable = found.is_ok() && directory == parent && !stripe.is_held(*parent);
            (found, is_stable && self.grant(client, entries(*parent)))
        };
        Some(found.and_then(|dentry| self.leased_entry(client, dentry, has_entries)))
    }

    fn leased_entry(&self, client: &Client, dentry: Option<Dentry>, has_entries: bool) -> Result<LeasedEntry, OpError> {
        let Some(Dentry { ino, kind, .. }) = dentry else {
            return Ok(LeasedEntry { entry: None, has_entries, has_attributes: false });
        };
        let known = if ino.mdt() == self.index() { self.leased_attr(client, ino)? } else { None };
        let (attr, has_attributes) = known.map_or((None, false), |(attr, has)| (Some(attr), has));
        Ok(LeasedEntry { entry: Some(Entry { ino, kind, attr }), has_entries, has_attributes })
    }

    /// `None` while another MDT decides what the answer is.
    pub(crate) fn leased_get_attr(
        &self,
        client: &Client,
        request: &LeasedGetAttr,
    ) -> Option<Result<LeasedAttr, OpError>> {
        if self.locks.read(request.ino).is_promised(request.ino) {
            return None;
        }
        let known = self.leased_attr(client, request.ino);
        Some(known.and_then(|known| {
            let (attr, has_attributes) = known.ok_or(Errno::ESTALE)?;
            Ok(LeasedAttr { attr, has_attributes })
        }))
    }

    /// The attributes of an inode of this MDT, if it is there, and whether the client may keep them.
    fn leased_attr(&self, client: &Client, ino: Ino) -> Result<Option<(Attr, bool)>, OpError> {
        let stripe = self.locks.read(ino);
        let Some(inode) = self.with_namespace(|ns: &mut Namespace<'_>| ns.inode(ino))? else { return Ok(None) };
        let attr = inode.attr(ino);
        // A spread directory's are its shards', too, which say nothing to its head.
        let is_whole = attr.shards.is_none() && (attr.kind != FileKind::Regular || self.is_still(&stripe, ino));
        let is_stable = is_whole && !stripe.is_held(ino);
        Ok(Some((attr, is_stable && self.grant(client, attributes(ino)))))
    }

    /// Whether nobody can be writing a regular file.
    fn is_still(&self, stripe: &Stripe, ino: Ino) -> bool {
        !stripe.is_open_for_writing(ino) && !self.inos.is_from_before(ino)
    }

    fn grant(&self, client: &Client, lease: burstfs_proto::leases::Leased) -> bool {
        let is_given = self.leases.grant(lease, client.id);
        // An eviction forgets what was given before it; this may have come after it.
        if is_given && client.is_evicted() {
            self.leases.end(lease, client.id);
            return false;
        }
        is_given
    }
}

//! How a client asks: it finds the shard that holds a name by what it remembers, asks anew where it is told that this is old, and
//! completes answers with what other MDTs know.

use burstfs_placement::name_hash;
use burstfs_proto::mds::*;
use burstfs_proto::service::Caller;
use burstfs_types::*;

use super::Runner;

impl Runner<'_> {
    /// The request as it is sent: the directories of names are the shards that hold them, as far as is remembered.
    pub(super) fn routed(&self, request: &MdsRequest) -> MdsRequest {
        let mut routed = request.clone();
        for (directory, name) in names_in(&mut routed) {
            if let Some(shards) = self.spread.get(directory) {
                *directory = shards.holder(name_hash(name));
            }
        }
        routed
    }

    /// Asks the heads of the directories of `request` how they are spread; whether that is news.
    pub(super) fn learn_anew(&mut self, request: &MdsRequest, has_crashed: &mut bool) -> bool {
        let mut directories: Vec<Ino> = names_in(&mut request.clone()).into_iter().map(|(ino, _)| *ino).collect();
        directories.dedup();
        let mut is_news = false;
        for ino in directories {
            if let Ok(MdsReply::GetAttr(Attr { shards: Some(shards), .. })) =
                self.ask(GetAttr { ino }.into(), has_crashed)
            {
                is_news |= self.spread.insert(ino, (*shards).clone()) != Some(*shards);
            }
        }
        is_news
    }

    pub(super) fn ask(&mut self, request: MdsRequest, has_crashed: &mut bool) -> Result<MdsReply, Errno> {
        self.send_to(mdt_of(&request), &request, has_crashed).1
    }

    /// The answer as a client completes it: attributes of inodes on other MDTs, and what shards know.
    pub(super) fn completed(
        &mut self,
        request: &MdsRequest,
        answer: Result<MdsReply, Errno>,
        has_crashed: &mut bool,
    ) -> Result<MdsReply, Errno> {
        Ok(match answer? {
            MdsReply::Lookup(entry) => MdsReply::Lookup(self.with_attr(entry, has_crashed)?),
            MdsReply::GetAttr(attr) => MdsReply::GetAttr(self.with_shards(attr, has_crashed)?),
            MdsReply::SetAttr(attr) => MdsReply::SetAttr(self.with_shards(attr, has_crashed)?),
            MdsReply::Readdir(listing) => {
                let MdsRequest::Readdir(asked) = request else { return Err(Errno::EPROTO) };
                MdsReply::Readdir(self.whole_listing(asked, listing, has_crashed)?)
            }
            other => other,
        })
    }

    pub(super) fn with_attr(&mut self, entry: Entry, has_crashed: &mut bool) -> Result<Entry, Errno> {
        let attr = match entry.attr {
            Some(attr) => attr,
            None => match self.ask(GetAttr { ino: entry.ino }.into(), has_crashed)? {
                MdsReply::GetAttr(attr) => attr,
                _ => return Err(Errno::EPROTO),
            },
        };
        Ok(Entry { attr: Some(self.with_shards(attr, has_crashed)?), ..entry })
    }

    pub(super) fn with_shards(&mut self, mut attr: Attr, has_crashed: &mut bool) -> Result<Attr, Errno> {
        let Some(shards) = attr.shards.take() else { return Ok(attr) };
        for ino in shards.others() {
            let MdsReply::GetAttr(shard) = self.ask(GetAttr { ino: *ino }.into(), has_crashed)? else {
                return Err(Errno::EPROTO);
            };
            attr.nlink += shard.nlink - 2;
            attr.mtime = attr.mtime.max(shard.mtime);
            attr.ctime = attr.ctime.max(shard.ctime);
        }
        Ok(attr)
    }

    /// The listing of all shards, of which that of the head is there.
    pub(super) fn whole_listing(
        &mut self,
        asked: &Readdir,
        head: Listing,
        has_crashed: &mut bool,
    ) -> Result<Listing, Errno> {
        let Listing { mut entries, mut is_end, parent, shards, .. } = head;
        for ino in shards.iter().flat_map(|shards| shards.others()) {
            let request = Readdir { ino: *ino, ..asked.clone() };
            let MdsReply::Readdir(mut listing) = self.ask(request.into(), has_crashed)? else {
                return Err(Errno::EPROTO);
            };
            entries.append(&mut listing.entries);
            is_end &= listing.is_end;
        }
        // Each has told as many as are wanted of all.
        entries.sort_by_key(|entry| entry.cookie);
        is_end &= entries.len() <= asked.entries_max as usize;
        entries.truncate(asked.entries_max as usize);
        if asked.with_attrs {
            for listed in &mut entries {
                listed.entry = self.with_attr(listed.entry.clone(), has_crashed)?;
            }
        }
        Ok(Listing { entries, is_end, parent, shards: None, moved_below: 0 })
    }

    /// Lists all of a directory, so that the model knows its cookies.
    pub(super) fn learn_cookies(&mut self, dir: Ino, has_crashed: &mut bool) -> Result<(), String> {
        let all = Readdir { ino: dir, cookie: 0, entries_max: 1_000, with_attrs: false };
        let listing = match self.ask(all.clone().into(), has_crashed) {
            Ok(MdsReply::Readdir(listing)) => listing,
            other => return Err(format!("a whole listing is {other:?}")),
        };
        let is_spread = listing.shards.is_some();
        let whole = self.whole_listing(&all, listing, has_crashed).map_err(|errno| errno.to_string())?;
        self.model.learn_cookies(dir, &whole, is_spread)
    }

    /// Sends a request until it is answered, and takes note when an MDT dies meanwhile.
    pub(super) fn send_to(
        &mut self,
        mdt: MdtIndex,
        request: &MdsRequest,
        has_crashed: &mut bool,
    ) -> (Caller, Result<MdsReply, Errno>) {
        let mut caller = self.next_caller();
        let mut actual = self.target.call(mdt, caller, request.clone());
        loop {
            let dead = self.target.recover();
            if dead.is_empty() {
                return (caller, actual);
            }
            *has_crashed = true;
            if actual.is_err() {
                // From one that lives an error says that nothing has happened. From one that died it says nothing: it is sent
                // again under its number.
                caller = if dead.contains(&mdt) { caller } else { self.next_caller() };
                actual = self.target.call(mdt, caller, request.clone());
            }
        }
    }
}

/// The names that a request is about, with their directories.
fn names_in(request: &mut MdsRequest) -> Vec<(&mut Ino, &Name)> {
    match request {
        MdsRequest::Lookup(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Create(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Mknod(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Mkdir(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Unlink(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Rmdir(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Symlink(it) => vec![(&mut it.parent, &it.name)],
        MdsRequest::Link(it) => vec![(&mut it.new_parent, &it.new_name)],
        MdsRequest::Rename(it) => vec![(&mut it.parent, &it.name), (&mut it.new_parent, &it.new_name)],
        _ => Vec::new(),
    }
}

/// The MDT that a client asks.
pub(super) fn mdt_of(request: &MdsRequest) -> MdtIndex {
    let ino = match request {
        MdsRequest::Lookup(it) => it.parent,
        MdsRequest::GetAttr(it) => it.ino,
        MdsRequest::SetAttr(it) => it.ino,
        MdsRequest::Create(it) => it.parent,
        MdsRequest::Mknod(it) => it.parent,
        MdsRequest::Mkdir(it) => it.parent,
        MdsRequest::Unlink(it) => it.parent,
        MdsRequest::Rmdir(it) => it.parent,
        MdsRequest::Rename(it) => it.parent,
        MdsRequest::Link(it) => it.new_parent,
        MdsRequest::Symlink(it) => it.parent,
        MdsRequest::Readlink(it) => it.ino,
        MdsRequest::Open(it) => it.ino,
        MdsRequest::Close(it) => it.ino,
        MdsRequest::Readdir(it) => it.ino,
        MdsRequest::GetXattr(it) => it.ino,
        MdsRequest::SetXattr(it) => it.ino,
        MdsRequest::ListXattr(it) => it.ino,
        MdsRequest::RemoveXattr(it) => it.ino,
        MdsRequest::GetLayout(it) => it.ino,
        MdsRequest::SetLayout(it) => it.ino,
        MdsRequest::DecideLayout(it) => it.ino,
        MdsRequest::ReserveAppend(it) => it.ino,
        MdsRequest::EndAppends(it) => it.ino,
        MdsRequest::GetChange(it) => it.ino,
        MdsRequest::EndChange(it) => it.ino,
        MdsRequest::LeasedLookup(it) => it.parent,
        MdsRequest::LeasedGetAttr(it) => it.ino,
        MdsRequest::PeerLook(it) => it.parent,
        MdsRequest::PeerParent(it) => it.ino,
        MdsRequest::PeerOutcome(it) => it.tx.number(),
        MdsRequest::SetLock(it) => it.lock.ino,
        MdsRequest::Unlock(it) => it.ino,
        MdsRequest::GetLock(it) => it.lock.ino,
        // These are asked of each MDT.
        MdsRequest::Statfs(_)
        | MdsRequest::AwaitLocks(_)
        | MdsRequest::LeaveQueue(_)
        | MdsRequest::PeerPrepare(_)
        | MdsRequest::PeerDecide(_)
        | MdsRequest::PeerRecords(_) => Ino::ROOT,
    };
    ino.mdt()
}

//! What a new MDT 0 begins with: the root directory, and the ready-made ones below it.

use burstfs_proto::mds::{LayoutOrigin, WantedLayout};
use burstfs_types::{FileKind, Ino, ReadyMade, Timestamp};

use crate::mdt::MdtConfig;
use crate::record::{Body, CookieEntry, Dentry, FIRST_COOKIE, Inode, Spread, encode, key};
use crate::store::{Change, Engine, StoreError};

/// Makes the root in one batch, unless it is there, or this MDT is not the one that has it.
pub(crate) fn make_root(config: &MdtConfig, engine: &dyn Engine, now: Timestamp) -> Result<(), StoreError> {
    if config.mdt != Ino::ROOT.mdt() || engine.get(&key::inode(Ino::ROOT))?.is_some() {
        return Ok(());
    }
    let mut changes = Vec::new();
    let job = WantedLayout { policy: config.layout, origin: LayoutOrigin::Job };
    add(&mut changes, config, (Ino::ROOT, Ino::ROOT), job, now);
    if config.has_ready_made {
        for directory in ReadyMade::ALL {
            let own = directory.policy(config.layout).map(|policy| WantedLayout { policy, origin: LayoutOrigin::Own });
            add(&mut changes, config, (directory.ino(), directory.parent()), own.unwrap_or(job), now);
        }
        changes.push((key::INO_LIMIT.to_vec(), Some(encode(&ReadyMade::COUNTER_END))));
    }
    engine.commit(changes)
}

/// A directory, and its entries for those that are made in it.
fn add(changes: &mut Vec<Change>, config: &MdtConfig, (ino, parent): (Ino, Ino), layout: WantedLayout, now: Timestamp) {
    let is_child = |directory: &&ReadyMade| config.has_ready_made && directory.parent() == ino;
    let children: Vec<&ReadyMade> = ReadyMade::ALL.iter().filter(is_child).collect();
    let mut next_cookie = FIRST_COOKIE;
    for child in &children {
        let (ino_of_child, kind, name) = (child.ino(), FileKind::Directory, child.name());
        let dentry = Dentry { ino: ino_of_child, kind, cookie: next_cookie };
        changes.push((key::dentry(ino, &name), Some(encode(&dentry))));
        let by_cookie = CookieEntry { name, ino: ino_of_child, kind };
        changes.push((key::cookie(ino, next_cookie), Some(encode(&by_cookie))));
        next_cookie += 1;
    }
    let body = Body::Directory { parent, next_cookie, entries: children.len() as u64, layout, spread: Spread::Whole };
    let mut inode = Inode::new(config.root_mode, config.root_uid, config.root_gid, body, now);
    inode.nlink += children.len() as u32;
    changes.push((key::inode(ino), Some(encode(&inode))));
}

//! The rules of POSIX and of the protocol, one by one, in memory; the model runs them in every mixture on both engines.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::Arc;

use burstfs_mds::{MemoryEngine, NoPeers};
use burstfs_proto::mds::*;
use burstfs_proto::service::Caller;
use burstfs_types::*;

use support::{Bench, Medium, config, create, layout, mkdir, name};

fn bench() -> Bench {
    Bench::new(Medium::Memory(MemoryEngine::new()))
}

fn chmod(ino: Ino, mode: u16) -> SetAttr {
    SetAttr { ino, mode: Some(mode), uid: None, gid: None, atime: None, mtime: None, kill_set_id: false, opens: false }
}

fn set_xattr(ino: Ino, text: &[u8], value: &[u8], mode: XattrMode) -> SetXattr {
    SetXattr { ino, name: text.to_vec(), value: value.to_vec(), mode, kill_set_gid: false }
}

#[test]
fn the_root_is_there_and_owned() {
    let mut bench = bench();
    let root = bench.attr(Ino::ROOT).unwrap();
    assert_eq!((root.kind, root.mode, root.nlink), (FileKind::Directory, 0o700, 2));
}

#[test]
fn the_root_cannot_be_opened_to_others() {
    let mut bench = bench();
    bench.call(chmod(Ino::ROOT, 0o1777)).unwrap();
    assert_eq!(bench.attr(Ino::ROOT).unwrap().mode, 0o1700);
    bench.call(chmod(Ino::ROOT, 0o500)).unwrap();
    assert_eq!(bench.attr(Ino::ROOT).unwrap().mode, 0o500);
}

#[test]
fn create_makes_or_opens_unless_exclusive() {
    let mut bench = bench();
    let made = bench.create(Ino::ROOT, "f").unwrap();
    assert_eq!((made.nlink, made.mode, made.uid, made.gid), (1, 0o644, 7, 8));
    let again = bench.call(create(Ino::ROOT, "f"));
    assert_eq!(again, Ok(MdsReply::Create(Created { attr: made, is_new: false })));
    assert_eq!(bench.call(Create { exclusive: true, ..create(Ino::ROOT, "f") }), Err(Errno::EEXIST));
}

#[test]
fn create_over_a_directory_is_eisdir() {
    let mut bench = bench();
    bench.mkdir(Ino::ROOT, "d").unwrap();
    assert_eq!(bench.create(Ino::ROOT, "d").unwrap_err(), Errno::EISDIR);
}

#[test]
fn a_file_is_no_directory() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    assert_eq!(bench.lookup(file, "x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(bench.create(file, "x").unwrap_err(), Errno::ENOTDIR);
    assert_eq!(bench.rmdir(Ino::ROOT, "f").unwrap_err(), Errno::ENOTDIR);
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    let mut bench = bench();
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    bench.rmdir(Ino::ROOT, "d").unwrap();
    assert_eq!(bench.create(dir, "x").unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.mkdir(dir, "x").unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.lookup(dir, "x").unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.attr(dir).unwrap_err(), Errno::ESTALE);
}

#[test]
fn only_an_empty_directory_is_removed() {
    let mut bench = bench();
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    bench.file(dir, "f");
    assert_eq!(bench.rmdir(Ino::ROOT, "d").unwrap_err(), Errno::ENOTEMPTY);
    bench.unlink(dir, "f").unwrap();
    assert_eq!(bench.unlink(Ino::ROOT, "d").unwrap_err(), Errno::EISDIR);
    bench.rmdir(Ino::ROOT, "d").unwrap();
}

#[test]
fn a_directory_counts_its_directories_and_moves_its_times() {
    let mut bench = bench();
    bench.clock.set(5);
    bench.mkdir(Ino::ROOT, "d").unwrap();
    let root = bench.attr(Ino::ROOT).unwrap();
    assert_eq!((root.nlink, root.mtime.secs, root.ctime.secs, root.atime.secs), (3, 5, 5, 0));
    bench.clock.set(6);
    bench.rmdir(Ino::ROOT, "d").unwrap();
    let root = bench.attr(Ino::ROOT).unwrap();
    assert_eq!((root.nlink, root.mtime.secs, root.ctime.secs), (2, 6, 6));
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    let mut bench = bench();
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    bench.call(SetAttr { gid: Some(99), ..chmod(dir, 0o2755) }).unwrap();
    let file = bench.create(dir, "f").unwrap();
    let sub = bench.mkdir(dir, "s").unwrap();
    assert_eq!((file.gid, file.mode), (99, 0o644));
    assert_eq!((sub.gid, sub.mode), (99, 0o2755));
}

#[test]
fn killing_set_id_spares_group_id_without_group_execution() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o644, 0o644)] {
        bench.call(chmod(file, before)).unwrap();
        bench.call(SetAttr { mode: None, kill_set_id: true, ..chmod(file, 0) }).unwrap();
        assert_eq!(bench.attr(file).unwrap().mode, after);
    }
}

#[test]
fn set_attr_keeps_nanoseconds_and_moves_ctime() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    let time = Timestamp { secs: -7, nanos: 999_999_999 };
    bench.clock.set(9);
    bench.call(SetAttr { mode: None, mtime: Some(SetTime::At(time)), ..chmod(file, 0) }).unwrap();
    let attr = bench.attr(file).unwrap();
    assert_eq!((attr.mtime, attr.ctime.secs, attr.atime.secs), (time, 9, 0));
}

#[test]
fn hard_links_share_an_inode_up_to_the_limit() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    assert_eq!(bench.link(file, dir, "g").unwrap().nlink, 2);
    assert_eq!(bench.link(file, dir, "g").unwrap_err(), Errno::EEXIST);
    assert_eq!(bench.link(dir, Ino::ROOT, "e").unwrap_err(), Errno::EPERM);
    for n in 2..limits::LINK_MAX {
        bench.link(file, dir, &n.to_string()).unwrap();
    }
    assert_eq!(bench.link(file, dir, "last").unwrap_err(), Errno::EMLINK);
}

#[test]
fn a_renamed_file_replaces_a_file_and_its_objects_go() {
    let mut bench = bench();
    let (f, g) = (bench.file(Ino::ROOT, "f"), bench.file(Ino::ROOT, "g"));
    let no = bench.rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), RenameMode::NoReplace);
    assert_eq!(no.unwrap_err(), Errno::EEXIST);
    bench.rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), RenameMode::Replace).unwrap();
    assert_eq!(bench.lookup(Ino::ROOT, "g").unwrap().ino, f);
    assert_eq!(bench.lookup(Ino::ROOT, "f").unwrap_err(), Errno::ENOENT);
    assert_eq!(bench.destroyed(), [g]);
}

#[test]
fn a_rename_between_names_of_one_inode_does_nothing() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    bench.link(file, Ino::ROOT, "g").unwrap();
    bench.rename((Ino::ROOT, "f"), (Ino::ROOT, "g"), RenameMode::Replace).unwrap();
    assert_eq!(bench.names(Ino::ROOT), ["f", "g"]);
}

#[test]
fn exchange_changes_places_and_needs_both() {
    let mut bench = bench();
    let file = bench.file(Ino::ROOT, "f");
    let dir = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    bench.rename((Ino::ROOT, "f"), (Ino::ROOT, "d"), RenameMode::Exchange).unwrap();
    assert_eq!(bench.lookup(Ino::ROOT, "f").unwrap().ino, dir);
    assert_eq!(bench.lookup(Ino::ROOT, "d").unwrap().ino, file);
    let missing = bench.rename((Ino::ROOT, "f"), (Ino::ROOT, "x"), RenameMode::Exchange);
    assert_eq!(missing.unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_directory_replaces_an_empty_one_and_may_get_another_parent() {
    let mut bench = bench();
    let d = bench.mkdir(Ino::ROOT, "d").unwrap().ino;
    let e = bench.mkdir(Ino::ROOT, "e").unwrap().ino;
    bench.file(e, "f");
    let rename = |bench: &mut Bench, from, to| bench.rename(from, to, RenameMode::Replace);
    assert_eq!(rename(&mut bench, (Ino::ROOT, "d"), (Ino::ROOT, "e")).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(rename(&mut bench, (Ino::ROOT, "e"), (e, "d")).unwrap_err(), Errno::EINVAL);
    assert_eq!(rename(&mut bench, (Ino::ROOT, "d"), (e, "f")).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(rename(&mut bench, (e, "f"), (Ino::ROOT, "d")).unwrap_err(), Errno::EISDIR);
    rename(&mut bench, (Ino::ROOT, "e"), (Ino::ROOT, "d")).unwrap();
    assert_eq!(bench.attr(Ino::ROOT).unwrap().nlink, 3);
    assert_eq!(bench.attr(d).unwrap_err(), Errno::ESTALE);
    let f = bench.mkdir(Ino::ROOT, "f").unwrap().ino;
    rename(&mut bench, (Ino::ROOT, "f"), (e, "g")).unwrap();
    assert_eq!((bench.attr(Ino::ROOT).unwrap().nlink, bench.attr(e).unwrap().nlink), (3, 3));
    let listing = bench.call(Readdir { ino: f, cookie: 0, entries_max: 1, with_attrs: false });
    assert_eq!(
        listing,
        Ok(MdsReply::Readdir(Listing { entries: vec![], is_end: true, parent: e, shards: None, moved_below: 0 }))
    );
}

#[test]
fn an_unlinked_file_lives_until_its_last_close() {
    let mut bench = bench();
    let ino = bench.create(Ino::ROOT, "f").unwrap().ino;
    let other = bench.caller_of(1, 1);
    bench.call_as(other, Open { ino, writes: true }).unwrap();
    bench.unlink(Ino::ROOT, "f").unwrap();
    bench.call(Close { ino }).unwrap();
    assert_eq!(bench.attr(ino).unwrap().nlink, 0);
    assert_eq!(bench.link(ino, Ino::ROOT, "g").unwrap_err(), Errno::ENOENT);
    // A close by one who does not have it open takes nothing from the other.
    bench.call(Close { ino }).unwrap();
    assert!(bench.destroyed().is_empty());
    let other = bench.caller_of(1, 1);
    bench.call_as(other, Close { ino }).unwrap();
    assert_eq!(bench.destroyed(), [ino]);
    assert_eq!(bench.attr(ino).unwrap_err(), Errno::ESTALE);
}

#[test]
fn a_restarted_client_has_nothing_open() {
    let mut bench = bench();
    let ino = bench.create(Ino::ROOT, "f").unwrap().ino;
    bench.unlink(Ino::ROOT, "f").unwrap();
    let old = bench.caller();
    let newer = bench.caller_of(0, 2);
    bench.call_as(newer, GetAttr { ino: Ino::ROOT }).unwrap();
    assert_eq!(bench.destroyed(), [ino]);
    assert_eq!(bench.call_as(old, GetAttr { ino: Ino::ROOT }), Err(Errno::ESTALE));
}

#[test]
fn after_a_restart_of_the_mdt_files_of_before_outlive_their_names_while_old_clients_do() {
    let mut bench = bench();
    let orphan = bench.create(Ino::ROOT, "orphan").unwrap().ino;
    bench.unlink(Ino::ROOT, "orphan").unwrap();
    let open = bench.create(Ino::ROOT, "open").unwrap().ino;
    bench.reopen();
    bench.unlink(Ino::ROOT, "open").unwrap();
    let new = bench.file(Ino::ROOT, "new");
    bench.unlink(Ino::ROOT, "new").unwrap();
    assert_eq!(bench.destroyed(), [new]);
    assert!(bench.attr(orphan).is_ok() && bench.attr(open).is_ok());
    let newer = bench.caller_of(0, 2);
    bench.call_as(newer, GetAttr { ino: Ino::ROOT }).unwrap();
    assert_eq!(bench.destroyed(), [orphan, open, new]);
}

#[test]
fn a_resend_gets_the_first_reply_also_after_a_restart() {
    let mut bench = Bench::new(Medium::rocks());
    let caller = bench.caller();
    let first = bench.call_as(caller, mkdir(Ino::ROOT, "d"));
    assert!(first.is_ok());
    assert_eq!(bench.call_as(caller, mkdir(Ino::ROOT, "d")), first);
    bench.reopen();
    assert_eq!(bench.call_as(caller, mkdir(Ino::ROOT, "d")), first);
    let later = Caller { xid: Xid(caller.xid.0 + 1), oldest_unanswered: Xid(caller.xid.0 + 1), ..caller };
    bench.call_as(later, Rmdir { parent: Ino::ROOT, name: name("d") }).unwrap();
    // A copy that was on its way for long.
    assert_eq!(bench.call_as(caller, mkdir(Ino::ROOT, "d")), Err(Errno::ECANCELED));
    assert!(bench.names(Ino::ROOT).is_empty());
}

#[test]
fn inode_numbers_are_not_used_again_after_a_restart() {
    let mut bench = Bench::new(Medium::rocks());
    let before = bench.file(Ino::ROOT, "f");
    bench.unlink(Ino::ROOT, "f").unwrap();
    bench.reopen();
    assert!(bench.file(Ino::ROOT, "f").counter() > before.counter());
}

#[test]
fn a_listing_goes_on_behind_an_entry_that_is_gone() {
    let mut bench = bench();
    for text in ["a", "b", "c", "d"] {
        bench.file(Ino::ROOT, text);
    }
    let part = |bench: &mut Bench, cookie| match bench.call(Readdir {
        ino: Ino::ROOT,
        cookie,
        entries_max: 2,
        with_attrs: true,
    }) {
        Ok(MdsReply::Readdir(listing)) => listing,
        other => panic!("{other:?}"),
    };
    let first = part(&mut bench, 0);
    assert!(!first.is_end && first.entries[0].cookie >= 3 && first.entries[0].entry.attr.is_some());
    bench.unlink(Ino::ROOT, "a").unwrap();
    bench.unlink(Ino::ROOT, "b").unwrap();
    let second = part(&mut bench, first.entries[1].cookie);
    let names: Vec<String> = second.entries.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!((names, second.is_end), (vec!["c".to_owned(), "d".to_owned()], true));
    assert_eq!(
        part(&mut bench, second.entries[1].cookie),
        Listing { entries: vec![], is_end: true, parent: Ino::ROOT, shards: None, moved_below: 0 }
    );
    let beyond = bench.call(Readdir { ino: Ino::ROOT, cookie: 1 << 63, entries_max: 1, with_attrs: false });
    assert_eq!(beyond, Err(Errno::EINVAL));
}

#[test]
fn a_listing_fits_in_a_message_whatever_the_layouts() {
    let mut bench = Bench::with_peers(Medium::Memory(MemoryEngine::new()), config(0, 2_048), Arc::new(NoPeers));
    let wide = Some(LayoutPolicy::Striped(StripePattern::default()));
    for n in 0..300 {
        let request = create(Ino::ROOT, &format!("{n:0>255}"));
        bench.call(Create { policy: wide, ..request }).unwrap();
    }
    let (mut cookie, mut count) = (0, 0);
    loop {
        let reply = bench.call(Readdir { ino: Ino::ROOT, cookie, entries_max: u32::MAX, with_attrs: true }).unwrap();
        assert!(reply.encode().len() <= limits::RPC_BODY_MAX_BYTES);
        let MdsReply::Readdir(listing) = reply else { panic!("{reply:?}") };
        count += listing.entries.len();
        if listing.is_end {
            break;
        }
        cookie = listing.entries.last().unwrap().cookie;
    }
    assert_eq!(count, 300);
}

#[test]
fn extended_attributes_obey_their_modes_and_limits() {
    let mut bench = bench();
    let ino = bench.file(Ino::ROOT, "f");
    let set =
        |bench: &mut Bench, text: &[u8], value: &[u8], mode| bench.call(set_xattr(ino, text, value, mode)).map(drop);
    assert_eq!(set(&mut bench, b"user.a", b"1", XattrMode::Replace), Err(Errno::ENODATA));
    set(&mut bench, b"user.a", b"1", XattrMode::Create).unwrap();
    assert_eq!(set(&mut bench, b"user.a", b"1", XattrMode::Create), Err(Errno::EEXIST));
    set(&mut bench, b"user.a", b"2", XattrMode::Replace).unwrap();
    assert_eq!(set(&mut bench, b"system.posix_acl_access", b"", XattrMode::Any), Err(Errno::EINVAL));
    assert_eq!(set(&mut bench, b"system.other", b"", XattrMode::Any), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut bench, b"user.", b"", XattrMode::Any), Err(Errno::EINVAL));
    assert_eq!(set(&mut bench, &[b'u'; 256], b"", XattrMode::Any), Err(Errno::ERANGE));
    assert_eq!(set(&mut bench, b"user.b", &vec![0; 65_537], XattrMode::Any), Err(Errno::E2BIG));
    let get = GetXattr { ino, name: b"user.a".to_vec() };
    assert_eq!(bench.call(get.clone()), Ok(MdsReply::GetXattr(b"2".to_vec())));
    bench.call(RemoveXattr { ino, name: b"user.a".to_vec() }).unwrap();
    assert_eq!(bench.call(get), Err(Errno::ENODATA));
}

#[test]
fn the_names_of_extended_attributes_fit_in_a_list() {
    let mut bench = bench();
    let ino = bench.file(Ino::ROOT, "f");
    let outcome = (0..300).map(|n| {
        let text = format!("user.{n:0>250}");
        bench.call(set_xattr(ino, text.as_bytes(), b"", XattrMode::Any)).map(drop)
    });
    assert_eq!(outcome.collect::<Vec<_>>().iter().position(|set| *set == Err(Errno::ENOSPC)), Some(256));
    bench.unlink(Ino::ROOT, "f").unwrap();
}

#[test]
fn symbolic_links_and_special_files() {
    let mut bench = bench();
    let symlink =
        |target: &[u8]| Symlink { parent: Ino::ROOT, name: name("l"), target: target.to_vec(), uid: 7, gid: 8 };
    assert_eq!(bench.call(symlink(&[b'x'; 4_096])), Err(Errno::ENAMETOOLONG));
    let Ok(MdsReply::Symlink(link)) = bench.call(symlink(b"../x")) else { panic!("no link") };
    assert_eq!((link.size, link.mode), (4, 0o777));
    assert_eq!(bench.call(Readlink { ino: link.ino }), Ok(MdsReply::Readlink(b"../x".to_vec())));
    let mknod = |kind| Mknod { parent: Ino::ROOT, name: name("p"), kind, mode: 0o600, umask: None, uid: 7, gid: 8 };
    assert_eq!(bench.call(mknod(FileKind::Directory)), Err(Errno::EPERM));
    let Ok(MdsReply::Mknod(fifo)) = bench.call(mknod(FileKind::Fifo)) else { panic!("no pipe") };
    assert_eq!(bench.call(Open { ino: fifo.ino, writes: false }), Err(Errno::EINVAL));
    assert_eq!(bench.call(Readlink { ino: fifo.ino }), Err(Errno::EINVAL));
    let user = set_xattr(fifo.ino, b"user.a", b"", XattrMode::Any);
    assert_eq!(bench.call(user), Err(Errno::EPERM));
    bench.unlink(Ino::ROOT, "p").unwrap();
    assert!(bench.destroyed().is_empty());
}

#[test]
fn pending_removals_survive_a_restart_until_confirmed() {
    let mut bench = Bench::new(Medium::rocks());
    let ino = bench.file(Ino::ROOT, "f");
    bench.unlink(Ino::ROOT, "f").unwrap();
    bench.reopen();
    assert_eq!(bench.mdt().orphans(None, 9).unwrap(), [Orphan { ino, layout: layout() }]);
    bench.mdt().confirm(&[ino]).unwrap();
    bench.reopen();
    assert!(bench.destroyed().is_empty());
}

#[test]
fn statfs_counts_inodes_over_a_restart() {
    let mut bench = Bench::new(Medium::rocks());
    bench.file(Ino::ROOT, "f");
    bench.mkdir(Ino::ROOT, "d").unwrap();
    bench.reopen();
    assert_eq!(bench.call(Statfs), Ok(MdsReply::Statfs(MdtStatfs { inodes_used: 3 })));
}

/// The store fails at the k-th commit, for every k; what it then holds is whole, and the scenario can be run from there.
#[test]
fn a_crash_at_any_commit_leaves_a_whole_mdt() {
    for commits in 0..40 {
        let engine = MemoryEngine::new();
        let mut bench = Bench::new(Medium::Memory(engine.clone()));
        engine.fail_after(commits);
        let failed = scenario(&mut bench).is_err();
        bench.check();
        engine.fail_after(u64::MAX);
        bench.reopen();
        bench.check();
        if !failed {
            return;
        }
    }
    panic!("the scenario never came to its end");
}

fn scenario(bench: &mut Bench) -> Result<(), Errno> {
    let dir = bench.mkdir(Ino::ROOT, "d")?.ino;
    let file = bench.create(dir, "f")?.ino;
    bench.call(set_xattr(file, b"user.a", b"1", XattrMode::Any))?;
    bench.link(file, Ino::ROOT, "g")?;
    bench.unlink(dir, "f")?;
    bench.create(dir, "h")?;
    bench.rename((dir, "h"), (Ino::ROOT, "g"), RenameMode::Replace)?;
    bench.call(Close { ino: file })?;
    bench.rmdir(Ino::ROOT, "d")?;
    bench.unlink(Ino::ROOT, "g")?;
    bench.mdt().confirm(&bench.destroyed()).map_err(|error| error.errno())
}

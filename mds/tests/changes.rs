//! What an MDT knows of changes to what is drained.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(unreachable_pub, dead_code, reason = "the helpers' modules end in this program")]

mod support;

use burstfs_mds::MemoryEngine;
use burstfs_proto::mds::{
    ChangeState, Close, EndChange, GetChange, MdsReply, Open, SetAttr, SetXattr, Symlink, XattrMode,
};
use burstfs_types::Ino;
use support::{Bench, Medium, name};

fn on_both(test: impl Fn(&mut Bench)) {
    test(&mut Bench::new(Medium::Memory(MemoryEngine::new())));
    test(&mut Bench::new(Medium::rocks()));
}

fn change(bench: &mut Bench, ino: Ino) -> ChangeState {
    match bench.call(GetChange { ino }) {
        Ok(MdsReply::GetChange(state)) => state,
        other => panic!("{other:?}"),
    }
}

fn end(bench: &mut Bench, ino: Ino, number: Option<u64>) -> bool {
    match bench.call(EndChange { ino, number }) {
        Ok(MdsReply::EndChange(is_ended)) => is_ended,
        other => panic!("{other:?}"),
    }
}

/// After a restart: the client of before is gone, and what it had open is known to be closed.
fn of_next_client(bench: &mut Bench, ino: Ino) -> ChangeState {
    let caller = bench.caller_of(0, 2);
    match bench.call_as(caller, GetChange { ino }) {
        Ok(MdsReply::GetChange(state)) => state,
        other => panic!("{other:?}"),
    }
}

/// Drains a file as it is; whether it counts as drained.
fn drain(bench: &mut Bench, ino: Ino) -> bool {
    let number = change(bench, ino).number;
    end(bench, ino, number) && !change(bench, ino).is_changed()
}

/// What says that somebody is about to truncate a file by its path.
fn truncation(ino: Ino) -> SetAttr {
    let (mode, uid, gid, atime, mtime) = (None, None, None, None, None);
    SetAttr { ino, mode, uid, gid, atime, mtime, kill_set_id: false, opens: true }
}

#[test]
fn a_file_is_changed_until_it_is_drained_and_again_when_it_is_opened_for_writing() {
    on_both(|bench| {
        let ino = bench.create(Ino::ROOT, "f").unwrap().ino;
        assert!(change(bench, ino).is_writable && !drain(bench, ino), "its maker has it open");
        bench.call(Close { ino }).unwrap();
        assert!(change(bench, ino).is_changed() && drain(bench, ino));
        bench.call(Open { ino, writes: false }).unwrap();
        assert!(!change(bench, ino).is_changed(), "who reads changes nothing");
        bench.call(Open { ino, writes: true }).unwrap();
        bench.call(Close { ino }).unwrap();
        assert!(change(bench, ino).is_writable, "which of the two was closed is not told");
        bench.call(Close { ino }).unwrap();
        let seen = change(bench, ino);
        assert!(seen.is_changed() && !seen.is_writable);
    });
}

#[test]
fn a_change_behind_the_one_that_was_drained_stays() {
    on_both(|bench| {
        let ino = bench.file(Ino::ROOT, "f");
        let number = change(bench, ino).number;
        bench.call(Open { ino, writes: true }).unwrap();
        bench.call(Close { ino }).unwrap();
        assert!(!end(bench, ino, number) && drain(bench, ino));
        bench.call(truncation(ino)).unwrap();
        assert!(change(bench, ino).is_writable);
        bench.call(Close { ino }).unwrap();
        assert!(change(bench, ino).is_changed() && drain(bench, ino));
        bench
            .call(SetXattr { ino, name: b"user.a".to_vec(), value: vec![1], mode: XattrMode::Any, kill_set_gid: false })
            .unwrap();
        assert!(change(bench, ino).is_changed());
    });
}

#[test]
fn links_change_and_what_is_gone_leaves_no_record() {
    on_both(|bench| {
        let link = Symlink { parent: Ino::ROOT, name: name("l"), target: b"f".to_vec(), uid: 7, gid: 8 };
        let MdsReply::Symlink(attr) = bench.call(link).unwrap() else { panic!("no symlink") };
        assert!(change(bench, attr.ino).is_changed() && drain(bench, attr.ino));
        let file = bench.file(Ino::ROOT, "f");
        bench.unlink(Ino::ROOT, "f").unwrap();
        bench.call(truncation(file)).unwrap_err();
        assert_eq!(change(bench, file).number, None);
    });
}

#[test]
fn a_restart_forgets_no_change_and_gives_no_number_twice() {
    on_both(|bench| {
        let (drained, changed) = (bench.file(Ino::ROOT, "a"), bench.file(Ino::ROOT, "b"));
        assert!(drain(bench, drained));
        let before = change(bench, changed).number;
        bench.reopen();
        assert!(!of_next_client(bench, drained).is_changed() && of_next_client(bench, changed).number == before);
        let caller = bench.caller_of(0, 2);
        bench.call_as(caller, truncation(changed)).unwrap();
        assert!(of_next_client(bench, changed).number > before);
    });
}

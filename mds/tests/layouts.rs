//! What layout a file gets: from its directory, from the job, set on it; and where appends go.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::Arc;

use burstfs_mds::{MdtConfig, MemoryEngine, NoPeers};
use burstfs_proto::mds::*;
use burstfs_types::*;
use support::{Bench, Medium, config, create, mkdir, name};

const OSTS: u16 = 4;

fn bench_of(job: LayoutPolicy, has_ready_made: bool) -> Bench {
    let config = MdtConfig { layout: job, has_ready_made, ..config(0, OSTS) };
    Bench::with_peers(Medium::Memory(MemoryEngine::new()), config, Arc::new(NoPeers))
}

fn striped(text: &str) -> LayoutPolicy {
    text.parse().unwrap()
}

fn osts(layout: &Option<Layout>) -> Vec<u16> {
    layout.as_ref().unwrap().osts().iter().map(|ost| ost.get()).collect()
}

impl BenchExt for Bench {
    fn info(&mut self, ino: Ino) -> LayoutInfo {
        let Ok(MdsReply::GetLayout(info)) = self.call(GetLayout { ino }) else { panic!("no layout of {ino}") };
        info
    }

    fn made(&mut self, parent: Ino, text: &str, near: u16) -> Attr {
        let request = Create { near: OstIndex::new(near), ..create(parent, text) };
        let Ok(MdsReply::Create(created)) = self.call(request) else { panic!("{text} is not made") };
        created.attr
    }

    fn dir(&mut self, parent: Ino, text: &str) -> Ino {
        // With several MDTs a directory of another one is made by a peer; the tests are about those of this one.
        let here = (0..).map(|n| format!("{text}{n}"));
        let name_here = |text: &String| burstfs_placement::directory_home(parent, &name(text), OSTS).get() == 0;
        let text = here.into_iter().find(name_here).unwrap();
        let Ok(MdsReply::Mkdir(attr)) = self.call(mkdir(parent, &text)) else { panic!("{text} is not made") };
        attr.ino
    }
}

trait BenchExt {
    fn info(&mut self, ino: Ino) -> LayoutInfo;
    fn made(&mut self, parent: Ino, text: &str, near: u16) -> Attr;
    fn dir(&mut self, parent: Ino, text: &str) -> Ino;
}

#[test]
fn a_directory_gives_its_layout_to_what_is_made_in_it_from_then_on() {
    let mut bench = bench_of(LayoutPolicy::Local, false);
    let dir = bench.dir(Ino::ROOT, "d");
    let before = bench.dir(dir, "before");
    assert_eq!(bench.info(dir).wanted, WantedLayout { policy: LayoutPolicy::Local, origin: LayoutOrigin::Job });
    bench.call(SetLayout { ino: dir, policy: Some(striped("striped:count=2,size=64K")) }).unwrap();
    let file = bench.made(dir, "f", 3);
    assert_eq!((file.layout.as_ref().unwrap().stripe_size_bytes(), osts(&file.layout).len()), (1 << 16, 2));
    let inherited = WantedLayout { policy: striped("striped:count=2,size=64K"), origin: LayoutOrigin::Parent };
    let choice = Some(LayoutChoice::Wanted);
    let expected = LayoutInfo { kind: FileKind::Regular, wanted: inherited, layout: file.layout, choice };
    assert_eq!(bench.info(file.ino), expected);
    let (after, deeper) = (bench.dir(dir, "after"), bench.dir(dir, "deeper"));
    assert_eq!(bench.info(after).wanted, inherited);
    assert_eq!(bench.info(before).wanted.policy, LayoutPolicy::Local);
    let below = bench.dir(deeper, "below");
    assert_eq!(bench.info(below).wanted, inherited);
    bench.call(SetLayout { ino: dir, policy: None }).unwrap();
    assert_eq!(osts(&bench.made(dir, "g", 3).layout), [3]);
}

#[test]
fn a_jobs_layout_is_that_of_its_files() {
    let mut bench = bench_of(striped("striped"), false);
    let first = bench.made(Ino::ROOT, "a", 2);
    let second = bench.made(Ino::ROOT, "b", 2);
    let (first, second) = (osts(&first.layout), osts(&second.layout));
    assert_eq!((first.len(), (first[0] + 1) % OSTS), (4, second[0]));
}

#[test]
fn a_file_that_was_not_written_takes_another_layout_and_no_other_does() {
    let mut bench = bench_of(LayoutPolicy::Local, false);
    let kind = FileKind::Regular;
    let mknod = Mknod { parent: Ino::ROOT, name: name("f"), kind, mode: 0o600, umask: None, uid: 7, gid: 8 };
    let Ok(MdsReply::Mknod(file)) = bench.call(mknod) else { panic!("no file") };
    assert_eq!(file.layout, None);
    bench.call(SetLayout { ino: file.ino, policy: Some(striped("striped:count=3")) }).unwrap();
    let decide = DecideLayout { ino: file.ino, near: OstIndex::new(1) };
    let Ok(MdsReply::DecideLayout(decided)) = bench.call(decide.clone()) else { panic!("not decided") };
    assert_eq!(osts(&decided.layout).len(), 3);
    // Whoever asks later, from wherever, hears the same.
    let again = bench.call(DecideLayout { near: OstIndex::new(2), ..decide });
    assert_eq!(again, Ok(MdsReply::DecideLayout(decided.clone())));
    let refused = bench.call(SetLayout { ino: file.ino, policy: Some(LayoutPolicy::Local) });
    assert_eq!(refused, Err(Errno::EEXIST));
    bench.reopen();
    assert_eq!(bench.info(file.ino).layout, decided.layout);
}

#[test]
fn auto_goes_by_how_many_nodes_write_at_the_first_byte() {
    for (others, writers) in [(0, 1), (2, 3)] {
        let mut bench = bench_of(LayoutPolicy::Auto, false);
        let kind = FileKind::Regular;
        let mknod = Mknod { parent: Ino::ROOT, name: name("f"), kind, mode: 0o600, umask: None, uid: 7, gid: 8 };
        let Ok(MdsReply::Mknod(file)) = bench.call(mknod) else { panic!("no file") };
        let ino = file.ino;
        bench.call(Open { ino, writes: true }).unwrap();
        for (node, writes) in (1..=others).map(|node| (node, true)).chain([(9, false)]) {
            let other = bench.caller_of(node, 1);
            bench.call_as(other, Open { ino, writes }).unwrap();
        }
        let decided = bench.call(DecideLayout { ino, near: OstIndex::new(2) });
        let Ok(MdsReply::DecideLayout(decided)) = decided else { panic!("not decided") };
        let osts = osts(&decided.layout);
        assert_eq!((osts.len(), osts == [2]), if writers > 1 { (4, false) } else { (1, true) });
        assert_eq!(bench.info(ino).choice, Some(LayoutChoice::Writers(writers)));
    }
}

#[test]
fn auto_learns_from_the_files_of_a_directory() {
    let mut bench = bench_of(LayoutPolicy::Auto, false);
    let dir = bench.dir(Ino::ROOT, "d");
    let choice = |files, shared| Some(LayoutChoice::Directory(Habit { files, shared }));
    // A file of one node, from the start where it was made.
    let own = bench.made(dir, "own", 3);
    assert_eq!((osts(&own.layout), bench.info(own.ino).choice), (vec![3], choice(0, 0)));
    bench.call(Close { ino: own.ino }).unwrap();
    // One that two nodes have open for writing.
    let shared = bench.made(dir, "shared", 3);
    assert_eq!((osts(&shared.layout), bench.info(shared.ino).choice), (vec![3], choice(1, 0)));
    let other = bench.caller_of(1, 1);
    bench.call_as(other, Open { ino: shared.ino, writes: true }).unwrap();
    let next = bench.made(dir, "next", 3);
    assert_eq!((osts(&next.layout).len(), bench.info(next.ino).choice), (4, choice(2, 1)));
    // Another directory, and a layout that was asked for, are not touched by it.
    assert_eq!(osts(&bench.made(Ino::ROOT, "elsewhere", 1).layout), [1]);
    bench.call(SetLayout { ino: dir, policy: Some(LayoutPolicy::Local) }).unwrap();
    assert_eq!(osts(&bench.made(dir, "asked", 1).layout), [1]);
    bench.call(SetLayout { ino: dir, policy: Some(LayoutPolicy::Auto) }).unwrap();
    // What follows is written by one node each, so it comes back.
    bench.call(Close { ino: next.ino }).unwrap();
    let later = bench.made(dir, "later", 3);
    assert_eq!((osts(&later.layout), bench.info(later.ino).choice), (vec![3], choice(3, 1)));
    // A restart forgets what was learnt, and not why a file is as it is.
    bench.reopen();
    assert_eq!(bench.info(later.ino).choice, choice(3, 1));
    assert_eq!(bench.info(next.ino).layout, next.layout);
}

#[test]
fn layouts_are_of_files_and_directories() {
    let mut bench = bench_of(LayoutPolicy::Auto, false);
    let mknod =
        Mknod { parent: Ino::ROOT, name: name("p"), kind: FileKind::Fifo, mode: 0o600, umask: None, uid: 7, gid: 8 };
    let Ok(MdsReply::Mknod(fifo)) = bench.call(mknod) else { panic!("no pipe") };
    let ino = fifo.ino;
    assert_eq!(bench.call(GetLayout { ino }), Err(Errno::EINVAL));
    assert_eq!(bench.call(SetLayout { ino, policy: None }), Err(Errno::EINVAL));
    let near = OstIndex::new(0);
    assert_eq!(bench.call(DecideLayout { ino, near }), Err(Errno::EINVAL));
    assert_eq!(bench.call(DecideLayout { ino: Ino::ROOT, near }), Err(Errno::EISDIR));
    let nowhere = Create { near: OstIndex::new(OSTS), ..create(Ino::ROOT, "f") };
    assert_eq!(bench.call(nowhere), Err(Errno::EINVAL));
}

#[test]
fn no_two_appends_get_one_place() {
    let mut bench = bench_of(striped("striped"), false);
    let ino = bench.made(Ino::ROOT, "log", 0).ino;
    let reserve = |bench: &mut Bench, size, len| bench.call(ReserveAppend { ino, size, len });
    let at = |begin| Ok(MdsReply::ReserveAppend(begin));
    assert_eq!(reserve(&mut bench, 0, 10), at(0));
    // The first one's bytes are not there yet.
    assert_eq!(reserve(&mut bench, 0, 5), at(10));
    bench.reopen();
    assert_eq!(reserve(&mut bench, 10, 5), at(15));
    // Somebody has written behind.
    assert_eq!(reserve(&mut bench, 100, 1), at(100));
    bench.call(EndAppends { ino, size: 7 }).unwrap();
    assert_eq!(reserve(&mut bench, 7, 1), at(7));
    assert_eq!(reserve(&mut bench, limits::FILE_SIZE_MAX_BYTES, 1), Err(Errno::EFBIG));
    assert_eq!(reserve(&mut bench, 0, u64::MAX), Err(Errno::EFBIG));
    assert_eq!(reserve(&mut bench, 0, 1), at(8));
}

#[test]
fn an_instance_begins_with_its_ready_made_directories() {
    for job in [LayoutPolicy::Auto, LayoutPolicy::Local, striped("striped:count=3,size=4M")] {
        let mut bench = bench_of(job, true);
        for directory in ReadyMade::ALL {
            let found = bench.call(Lookup { parent: directory.parent(), name: directory.name() });
            let Ok(MdsReply::Lookup(entry)) = found else { panic!("{directory:?} is not there") };
            assert_eq!((entry.ino, entry.kind), (directory.ino(), FileKind::Directory));
            assert_eq!(bench.info(entry.ino).wanted.policy, directory.policy(job).unwrap_or(job));
        }
        assert_eq!(osts(&bench.made(ReadyMade::Local.ino(), "f", 2).layout), [2]);
        let stripes = osts(&bench.made(ReadyMade::Striped.ino(), "f", 2).layout).len();
        assert_eq!(stripes, if job == LayoutPolicy::Auto || job == LayoutPolicy::Local { 4 } else { 3 });
        // Who does not want them can remove them, and a restart does not bring them back.
        bench.call(Rmdir { parent: ReadyMade::Layouts.ino(), name: ReadyMade::Auto.name() }).unwrap();
        bench.reopen();
        let lookup = Lookup { parent: ReadyMade::Layouts.ino(), name: ReadyMade::Auto.name() };
        assert_eq!(bench.call(lookup), Err(Errno::ENOENT));
        assert!(bench.made(Ino::ROOT, "later", 0).ino.counter() >= ReadyMade::COUNTER_END);
    }
}

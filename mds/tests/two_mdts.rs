//! Two MDTs in one process: directories whose inode lives on another MDT than their name.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use burstfs_mds::{Mdt, MemoryEngine, ObjectRemover, Peers};
use burstfs_placement::directory_home;
use burstfs_proto::leases::Recall;
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::*;
use tokio::sync::Semaphore;

use support::{Bench, Medium, config, mkdir, name, now};

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What happens to a request between two MDTs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Fault {
    #[default]
    None,
    BeforeIt,
    AfterIt,
}

/// Calls the other MDT directly, one permit for each call.
struct Wire {
    mdts: OnceLock<Vec<Mutex<Weak<Mdt>>>>,
    permits: Semaphore,
    fault: Mutex<Fault>,
    xid: AtomicU64,
    calls: AtomicU64,
}

#[async_trait]
impl Peers for Wire {
    async fn call(&self, mdt: MdtIndex, request: MdsRequest) -> Result<MdsReply, Errno> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
        let fault = *self.fault.lock().unwrap();
        if fault == Fault::BeforeIt {
            return Err(Errno::ETIMEDOUT);
        }
        let target = self.mdts.get().unwrap()[usize::from(mdt.get())].lock().unwrap().upgrade().unwrap();
        let xid = Xid(self.xid.fetch_add(1, Ordering::SeqCst) + 1);
        let client = ClientId { node: NodeIndex::new(100), incarnation: 1 };
        let reply = target.call(Caller { client, xid, oldest_unanswered: xid }, request).await;
        if fault == Fault::AfterIt { Err(Errno::ETIMEDOUT) } else { reply }
    }

    fn is_lost(&self, _mdt: MdtIndex) -> bool {
        false
    }

    async fn recall(&self, _recall: Recall) -> Result<(), Errno> {
        Ok(())
    }
}

struct Two {
    wire: Arc<Wire>,
    benches: [Bench; 2],
}

impl Two {
    fn new() -> Two {
        let wire = Arc::new(Wire {
            mdts: OnceLock::new(),
            permits: Semaphore::new(1_000),
            fault: Mutex::default(),
            xid: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        });
        let bench = |mdt| {
            let peers: Arc<dyn Peers> = Arc::<Wire>::clone(&wire);
            Bench::with_peers(Medium::Memory(MemoryEngine::new()), config(mdt, 2), peers)
        };
        let benches = [bench(0), bench(1)];
        let weak = benches.iter().map(|bench| Mutex::new(Arc::downgrade(bench.mdt()))).collect();
        assert!(wire.mdts.set(weak).is_ok());
        Two { wire, benches }
    }

    /// Lets no request through between the MDTs until `open` is called.
    fn shut(&self) {
        self.wire.permits.forget_permits(1_000);
    }

    fn open(&self) {
        self.wire.permits.add_permits(1_000);
    }

    fn set_fault(&self, fault: Fault) {
        *self.wire.fault.lock().unwrap() = fault;
    }

    /// Runs `request` on MDT 0 beside others.
    fn spawn(&mut self, request: impl Into<MdsRequest>) -> tokio::task::JoinHandle<Result<MdsReply, Errno>> {
        let (caller, request) = (self.benches[0].caller(), request.into());
        self.spawn_as(caller, request)
    }

    fn spawn_as(&self, caller: Caller, request: MdsRequest) -> tokio::task::JoinHandle<Result<MdsReply, Errno>> {
        let mdt = Arc::clone(self.benches[0].mdt());
        tokio::spawn(async move { tokio::time::timeout(TIME_LIMIT, mdt.call(caller, request)).await.unwrap() })
    }

    /// Waits until so many requests were sent between the MDTs.
    async fn sent(&self, calls: u64) {
        let wait = async {
            while self.wire.calls.load(Ordering::SeqCst) < calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIME_LIMIT, wait).await.unwrap();
    }
}

/// A name whose directory, in the root, lives on MDT 1.
fn remote(n: usize) -> String {
    let is_remote = |text: &String| directory_home(Ino::ROOT, &name(text), 2) == MdtIndex::new(1);
    (0..).map(|i| format!("d{i}")).filter(is_remote).nth(n).unwrap()
}

fn made(reply: Result<MdsReply, Errno>) -> Attr {
    match reply {
        Ok(MdsReply::Mkdir(attr)) => attr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_elsewhere_is_made_found_used_and_removed() {
    let mut two = Two::new();
    let text = remote(0);
    let dir = two.benches[0].mkdir(Ino::ROOT, &text).unwrap();
    assert_eq!((dir.ino.mdt(), dir.mode, dir.uid, dir.nlink), (MdtIndex::new(1), 0o755, 7, 2));
    let found = two.benches[0].lookup(Ino::ROOT, &text).unwrap();
    assert_eq!(found, Entry { ino: dir.ino, kind: FileKind::Directory, attr: None });
    assert_eq!(two.benches[1].attr(dir.ino).unwrap(), dir);
    assert_eq!(two.benches[0].attr(Ino::ROOT).unwrap().nlink, 3);
    assert_eq!(two.benches[0].mkdir(Ino::ROOT, &text).unwrap_err(), Errno::EEXIST);

    two.benches[1].file(dir.ino, "f");
    assert_eq!(two.benches[0].rmdir(Ino::ROOT, &text).unwrap_err(), Errno::ENOTEMPTY);
    two.benches[1].unlink(dir.ino, "f").unwrap();
    two.benches[0].rmdir(Ino::ROOT, &text).unwrap();
    assert_eq!(two.benches[0].lookup(Ino::ROOT, &text).unwrap_err(), Errno::ENOENT);
    assert_eq!(two.benches[1].create(dir.ino, "f").unwrap_err(), Errno::ENOENT);
    assert_eq!(two.benches[0].attr(Ino::ROOT).unwrap().nlink, 2);
}

#[test]
fn a_group_is_inherited_over_mdts() {
    let mut two = Two::new();
    let set = SetAttr {
        ino: Ino::ROOT,
        mode: Some(0o2700),
        uid: None,
        gid: Some(42),
        atime: None,
        mtime: None,
        kill_set_id: false,
        opens: false,
    };
    two.benches[0].call(set).unwrap();
    let dir = two.benches[0].mkdir(Ino::ROOT, &remote(0)).unwrap();
    assert_eq!((dir.gid, dir.mode), (42, 0o2755));
}

#[test]
fn a_rename_over_a_directory_elsewhere_removes_it_there() {
    let mut two = Two::new();
    let (a, b) = (remote(0), remote(1));
    let moved = two.benches[0].mkdir(Ino::ROOT, &a).unwrap().ino;
    let target = two.benches[0].mkdir(Ino::ROOT, &b).unwrap().ino;
    two.benches[1].file(target, "f");
    let rename = |two: &mut Two| two.benches[0].rename((Ino::ROOT, &a), (Ino::ROOT, &b), RenameMode::Replace);
    assert_eq!(rename(&mut two).unwrap_err(), Errno::ENOTEMPTY);
    two.benches[1].unlink(target, "f").unwrap();
    rename(&mut two).unwrap();
    assert_eq!(two.benches[0].lookup(Ino::ROOT, &b).unwrap().ino, moved);
    assert_eq!(two.benches[1].attr(target).unwrap_err(), Errno::ESTALE);
}

#[tokio::test]
async fn of_two_that_make_one_name_one_gets_eexist() {
    let mut two = Two::new();
    let text = remote(0);
    two.shut();
    let first = two.spawn(mkdir(Ino::ROOT, &text));
    two.sent(1).await;
    let second = two.spawn(mkdir(Ino::ROOT, &text));
    let file = two.spawn(Create { exclusive: true, ..support::create(Ino::ROOT, &text) });
    // Other names of the same directory do not wait.
    two.benches[0].file(Ino::ROOT, "f");
    assert_eq!(two.benches[0].lookup(Ino::ROOT, &text).unwrap_err(), Errno::ENOENT);
    two.open();
    made(first.await.unwrap());
    assert_eq!(second.await.unwrap(), Err(Errno::EEXIST));
    assert_eq!(file.await.unwrap(), Err(Errno::EEXIST));
    // A promise and its end; the second never asked MDT 1.
    assert_eq!(two.wire.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_copy_of_a_request_that_waits_gets_the_same_reply() {
    let mut two = Two::new();
    two.shut();
    let caller = two.benches[0].caller();
    let request = MdsRequest::from(mkdir(Ino::ROOT, &remote(0)));
    let first = two.spawn_as(caller, request.clone());
    two.sent(1).await;
    let second = two.spawn_as(caller, request);
    two.open();
    let first = first.await.unwrap();
    assert!(first.is_ok());
    assert_eq!(second.await.unwrap(), first);
    assert_eq!(two.wire.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_its_name_free() {
    let mut two = Two::new();
    let text = remote(0);
    two.shut();
    let first = two.spawn(mkdir(Ino::ROOT, &text));
    two.sent(1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    two.open();
    made(two.spawn(mkdir(Ino::ROOT, &text)).await.unwrap());
}

#[tokio::test]
async fn a_parent_is_not_removed_while_a_directory_is_made_in_it() {
    let mut two = Two::new();
    let on_mdt_0 = (0..).map(|i| format!("p{i}"));
    let parent_text =
        on_mdt_0.into_iter().find(|text| directory_home(Ino::ROOT, &name(text), 2) == MdtIndex::new(0)).unwrap();
    let parent = two.benches[0].mkdir(Ino::ROOT, &parent_text).unwrap().ino;
    let is_remote = |text: &String| directory_home(parent, &name(text), 2) == MdtIndex::new(1);
    let text = (0..).map(|i| format!("c{i}")).find(is_remote).unwrap();
    two.shut();
    let make = two.spawn(mkdir(parent, &text));
    two.sent(1).await;
    let remove = two.spawn(Rmdir { parent: Ino::ROOT, name: name(&parent_text) });
    two.open();
    made(make.await.unwrap());
    assert_eq!(remove.await.unwrap(), Err(Errno::ENOTEMPTY));
}

#[test]
fn a_mkdir_whose_peer_fails_can_be_repeated() {
    for fault in [Fault::BeforeIt, Fault::AfterIt] {
        let mut two = Two::new();
        let text = remote(0);
        two.set_fault(fault);
        assert_eq!(two.benches[0].mkdir(Ino::ROOT, &text).unwrap_err(), Errno::ETIMEDOUT);
        assert_eq!(two.benches[0].lookup(Ino::ROOT, &text).unwrap_err(), Errno::ENOENT);
        two.set_fault(Fault::None);
        two.benches[0].mkdir(Ino::ROOT, &text).unwrap();
    }
}

#[test]
fn an_rmdir_whose_answer_is_lost_can_be_repeated() {
    let mut two = Two::new();
    let text = remote(0);
    let dir = two.benches[0].mkdir(Ino::ROOT, &text).unwrap().ino;
    two.set_fault(Fault::AfterIt);
    assert_eq!(two.benches[0].rmdir(Ino::ROOT, &text).unwrap_err(), Errno::ETIMEDOUT);
    two.set_fault(Fault::None);
    two.benches[0].reopen();
    *two.wire.mdts.get().unwrap()[0].lock().unwrap() = Arc::downgrade(two.benches[0].mdt());
    // MDT 1 has promised, and learns from MDT 0, which knows nothing of it, that it is off.
    assert_eq!(now(two.benches[1].mdt().resolve_all(MdtIndex::new(0))), 0);
    two.benches[1].attr(dir).unwrap();
    two.benches[0].rmdir(Ino::ROOT, &text).unwrap();
    assert_eq!(two.benches[0].lookup(Ino::ROOT, &text).unwrap_err(), Errno::ENOENT);
}

#[tokio::test]
async fn nobody_sees_what_was_before_a_rename_that_is_decided() {
    let mut two = Two::new();
    let dir = two.benches[0].mkdir(Ino::ROOT, &remote(0)).unwrap().ino;
    let file = two.benches[0].file(Ino::ROOT, "f");
    two.shut();
    let (new_parent, new_name) = (dir, name("g"));
    let rename =
        two.spawn(Rename { parent: Ino::ROOT, name: name("f"), new_parent, new_name, mode: RenameMode::Replace });
    // After the mkdir's two: a look, a promise, and the decision, which does not arrive.
    two.wire.permits.add_permits(2);
    two.sent(2 + 3).await;
    assert_eq!(two.benches[0].lookup(Ino::ROOT, "f").unwrap_err(), Errno::ENOENT);
    let (mdt, caller) = (Arc::clone(two.benches[1].mdt()), two.benches[1].caller());
    let look = tokio::spawn(async move { mdt.call(caller, Lookup { parent: dir, name: name("g") }.into()).await });
    tokio::task::yield_now().await;
    assert!(!look.is_finished());
    two.open();
    assert_eq!(rename.await.unwrap(), Ok(MdsReply::Rename(())));
    let expected = Entry { ino: file, kind: FileKind::Regular, attr: None };
    assert_eq!(look.await.unwrap(), Ok(MdsReply::Lookup(expected)));
}

#[tokio::test]
async fn what_was_promised_is_held_over_a_restart() {
    let mut two = Two::new();
    let dir = two.benches[0].mkdir(Ino::ROOT, &remote(0)).unwrap().ino;
    two.benches[0].file(Ino::ROOT, "f");
    two.shut();
    let (new_parent, new_name) = (dir, name("g"));
    let rename =
        two.spawn(Rename { parent: Ino::ROOT, name: name("f"), new_parent, new_name, mode: RenameMode::NoReplace });
    two.wire.permits.add_permits(2);
    two.sent(2 + 3).await;
    two.benches[1].reopen();
    *two.wire.mdts.get().unwrap()[1].lock().unwrap() = Arc::downgrade(two.benches[1].mdt());
    let (mdt, caller) = (Arc::clone(two.benches[1].mdt()), two.benches[1].caller());
    let create = Create { exclusive: true, ..support::create(dir, "g") };
    let create = tokio::spawn(async move { mdt.call(caller, create.into()).await });
    tokio::task::yield_now().await;
    assert!(!create.is_finished());
    two.open();
    assert_eq!(rename.await.unwrap(), Ok(MdsReply::Rename(())));
    assert_eq!(create.await.unwrap(), Err(Errno::EEXIST));
}

#[test]
fn a_directory_that_gets_no_name_is_taken_back() {
    let engine = MemoryEngine::new();
    let mut two = Two::new();
    two.benches[0].medium = Medium::Memory(engine.clone());
    two.benches[0].reopen();
    two.benches[0].attr(Ino::ROOT).unwrap();
    // The number that MDT 0 sets aside is one commit, the entry would be the next.
    engine.fail_after(1);
    assert_eq!(two.benches[0].mkdir(Ino::ROOT, &remote(0)).unwrap_err(), Errno::EIO);
    assert_eq!(two.benches[1].call(Statfs), Ok(MdsReply::Statfs(MdtStatfs { inodes_used: 0 })));
}

/// Removes what it is asked for the second time.
#[derive(Default)]
struct Stubborn(Mutex<Vec<Ino>>);

#[async_trait]
impl ObjectRemover for Stubborn {
    async fn remove(&self, orphans: &[Orphan]) -> Vec<Ino> {
        let mut asked = self.0.lock().unwrap();
        let (again, new): (Vec<Ino>, Vec<Ino>) = orphans.iter().map(|it| it.ino).partition(|ino| asked.contains(ino));
        asked.extend(new);
        again
    }
}

#[tokio::test]
async fn the_destroyer_works_off_what_goes_and_asks_again() {
    let mut bench = Bench::new(Medium::Memory(MemoryEngine::new()));
    let mdt = Arc::clone(bench.mdt());
    let destroyer = tokio::spawn(async move { mdt.run_destroyer(&Stubborn::default()).await });
    for n in 0..200 {
        bench.file(Ino::ROOT, &n.to_string());
        bench.unlink(Ino::ROOT, &n.to_string()).unwrap();
        tokio::task::yield_now().await;
    }
    let wait = async {
        while !bench.destroyed().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TIME_LIMIT, wait).await.unwrap();
    destroyer.abort();
    assert!(destroyer.await.unwrap_err().is_cancelled());
}

//! Many clients on few names at once, over one MDT and over several: whatever the order, the invariants hold, no cycle forms,
//! and the counts of successes fit together.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use burstfs_mds::{Mdt, MemoryEngine};
use burstfs_placement::name_hash;
use burstfs_proto::mds::*;
use burstfs_proto::service::{Caller, MetadataService};
use burstfs_types::*;
use proptest::test_runner::RngSeed;
use tokio::runtime::Runtime;

use support::instance::Instance;
use support::{Medium, create, mkdir, name};

const CLIENTS: u16 = 8;
const STEPS: u64 = 3_000;
/// Directories beyond these are made, but nothing in them.
const DIRECTORIES_MAX: usize = 12;
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// What the clients have in common.
struct World {
    mdts: Vec<Arc<Mdt>>,
    dirs: Mutex<Vec<Ino>>,
    /// Names made minus names removed.
    names: AtomicI64,
    /// Whether directories are split meanwhile.
    splits: bool,
}

/// One client, whose requests come one after the other.
struct Player {
    world: Arc<World>,
    node: u16,
    xid: u64,
    random: u64,
    open: Vec<Ino>,
    /// How directories are spread, as far as is remembered.
    spread: HashMap<Ino, Shards>,
}

impl Player {
    async fn call(&mut self, mdt: MdtIndex, request: impl Into<MdsRequest>) -> Result<MdsReply, Errno> {
        self.xid += 1;
        let client = ClientId { node: NodeIndex::new(self.node), incarnation: 1 };
        let caller = Caller { client, xid: Xid(self.xid), oldest_unanswered: Xid(self.xid) };
        self.world.mdts[usize::from(mdt.get())].call(caller, request.into()).await
    }

    fn holder(&self, dir: Ino, text: &str) -> Ino {
        self.spread.get(&dir).map_or(dir, |shards| shards.holder(name_hash(&name(text))))
    }

    async fn learn_anew(&mut self, dir: Ino) {
        if let Ok(MdsReply::GetAttr(Attr { shards: Some(shards), .. })) =
            self.call(dir.mdt(), GetAttr { ino: dir }).await
        {
            self.spread.insert(dir, *shards);
        }
    }

    /// Asks who holds the name `text` of `dir`, and anew when it has moved; with the answer, who that was.
    async fn at<R: Into<MdsRequest>>(
        &mut self,
        dir: Ino,
        text: &str,
        request: impl Fn(Ino) -> R,
    ) -> (Ino, Result<MdsReply, Errno>) {
        loop {
            let holder = self.holder(dir, text);
            match self.call(holder.mdt(), request(holder)).await {
                Err(Errno::EREMCHG) => self.learn_anew(dir).await,
                result => return (holder, result),
            }
        }
    }

    /// SplitMix64.
    fn pick(&mut self, n: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }

    fn dir(&mut self) -> Ino {
        let dirs = self.world.dirs.lock().unwrap().clone();
        dirs[self.pick(dirs.len())]
    }

    fn made(&self, names: i64) {
        self.world.names.fetch_add(names, Ordering::Relaxed);
    }

    async fn rename(
        &mut self,
        (dir, old): (Ino, &str),
        (other, new): (Ino, &str),
        mode: RenameMode,
    ) -> Result<(), Errno> {
        loop {
            let (parent, new_parent) = (self.holder(dir, old), self.holder(other, new));
            let request = Rename { parent, name: name(old), new_parent, new_name: name(new), mode };
            let result = match self.call(parent.mdt(), request.clone()).await {
                Err(Errno::EREMOTE) => self.call(Ino::ROOT.mdt(), request).await,
                result => result,
            };
            match result {
                Err(Errno::EREMCHG) => {
                    self.learn_anew(dir).await;
                    self.learn_anew(other).await;
                }
                result => return result.map(drop),
            }
        }
    }

    async fn step(&mut self) {
        let (dir, other) = (self.dir(), self.dir());
        let (text, new) = (self.pick(5).to_string(), self.pick(5).to_string());
        match self.pick(10) {
            0 | 1 => {
                let (_, made) = self.at(dir, &text, |dir| create(dir, &text)).await;
                let Ok(MdsReply::Create(created)) = made else { return };
                self.open.push(created.attr.ino);
                self.made(i64::from(created.is_new));
            }
            2 => {
                if self.at(dir, &text, |parent| Unlink { parent, name: name(&text) }).await.1.is_ok() {
                    self.made(-1);
                }
            }
            3..6 => {
                let mode = if self.pick(2) == 0 { RenameMode::NoReplace } else { RenameMode::Exchange };
                if let Err(errno) = self.rename((dir, &text), (other, &new), mode).await {
                    assert!(!matches!(errno, Errno::EIO | Errno::ETIMEDOUT | Errno::EREMOTE), "{errno}");
                }
            }
            6 => {
                if let Some(ino) = self.open.pop() {
                    self.call(ino.mdt(), Close { ino }).await.unwrap();
                }
            }
            7 => {
                let (holder, found) = self.at(dir, &text, |parent| Lookup { parent, name: name(&text) }).await;
                let Ok(MdsReply::Lookup(entry)) = found else { return };
                let is_own = entry.ino.mdt() == holder.mdt();
                if self.world.splits && is_own && entry.attr.is_none() {
                    // A split may bring a name before its inode, which this MDT has promised to make; who asks for it waits.
                    let found = self.call(holder.mdt(), GetAttr { ino: entry.ino }).await;
                    assert!(matches!(found, Ok(MdsReply::GetAttr(_)) | Err(Errno::ENOENT)), "{found:?}");
                } else {
                    // Found under the directory's lock: an inode of the same MDT is there.
                    assert_eq!(entry.attr.is_some(), is_own);
                }
                let link = |new_parent| Link { ino: entry.ino, new_parent, new_name: name(&new) };
                if self.at(other, &new, link).await.1.is_ok() {
                    self.made(1);
                }
            }
            8 => {
                let (_, made) = self.at(dir, &text, |dir| mkdir(dir, &text)).await;
                let Ok(MdsReply::Mkdir(made)) = made else { return };
                self.made(1);
                let mut dirs = self.world.dirs.lock().unwrap();
                if dirs.len() < DIRECTORIES_MAX {
                    dirs.push(made.ino);
                }
            }
            _ => {
                if self.at(dir, &text, |parent| Rmdir { parent, name: name(&text) }).await.1.is_ok() {
                    self.made(-1);
                }
            }
        }
    }

    /// The names in a directory, and in its shards.
    async fn names_in(&mut self, ino: Ino) -> i64 {
        let readdir = |ino| Readdir { ino, cookie: 0, entries_max: 1_000, with_attrs: false };
        match self.call(ino.mdt(), readdir(ino)).await {
            Ok(MdsReply::Readdir(listing)) => {
                let mut names = listing.entries.len() as i64;
                for shard in listing.shards.iter().flat_map(|shards| shards.others()) {
                    match self.call(shard.mdt(), readdir(*shard)).await {
                        Ok(MdsReply::Readdir(listing)) => names += listing.entries.len() as i64,
                        other => panic!("{other:?}"),
                    }
                }
                names
            }
            Ok(other) => panic!("{other:?}"),
            // Removed.
            Err(errno) => {
                assert_eq!(errno, Errno::ENOENT);
                0
            }
        }
    }
}

/// With `splits`, directories are split as they grow.
fn stress(media: Vec<Medium>, splits: bool) {
    let seed = match proptest::test_runner::Config::default().rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    println!("seed: PROPTEST_RNG_SEED={seed}");
    let count = media.len();
    let instance = Instance::new(media, true);
    let mdts = (0..count).map(|mdt| Arc::clone(instance.mdt(mdt))).collect();
    let world = Arc::new(World { mdts, dirs: Mutex::new(vec![Ino::ROOT]), names: AtomicI64::new(0), splits });
    let runtime = Runtime::new().unwrap();
    let player = |node: u16| {
        let random = seed.wrapping_add(u64::from(node));
        Player { world: Arc::clone(&world), node, xid: 0, random, open: Vec::new(), spread: HashMap::new() }
    };
    let play = |mut player: Player| async move {
        for _ in 0..STEPS {
            player.step().await;
        }
        for ino in std::mem::take(&mut player.open) {
            player.call(ino.mdt(), Close { ino }).await.unwrap();
        }
    };
    let players: Vec<_> = (1..=CLIENTS).map(|node| runtime.spawn(play(player(node)))).collect();
    let splitters: Vec<_> = world.mdts.iter().filter(|_| splits).cloned().collect();
    let splitters: Vec<_> =
        splitters.into_iter().map(|mdt| runtime.spawn(async move { mdt.run_splitter().await })).collect();
    let all = async {
        for player in players {
            player.await.unwrap();
        }
    };
    runtime.block_on(async { tokio::time::timeout(TIME_LIMIT, all).await.unwrap() });
    splitters.iter().for_each(|splitter| splitter.abort());
    let ended = async {
        for splitter in splitters {
            drop(splitter.await);
        }
    };
    runtime.block_on(ended);
    instance.resolve();
    let (mut reader, mut names) = (player(0), 0);
    let dirs = world.dirs.lock().unwrap().clone();
    for dir in dirs {
        names += runtime.block_on(reader.names_in(dir));
    }
    assert_eq!(names, world.names.load(Ordering::Relaxed));
    assert_eq!(instance.found(), Vec::<String>::new());
}

fn in_memory() -> Medium {
    Medium::Memory(MemoryEngine::new())
}

#[test]
fn on_one_in_memory() {
    stress(vec![in_memory()], false);
}

#[test]
fn on_four_in_memory() {
    stress(vec![in_memory(), in_memory(), in_memory(), in_memory()], false);
}

#[test]
fn on_two_on_rocksdb() {
    stress(vec![Medium::rocks(), Medium::rocks()], false);
}

#[test]
fn on_four_in_memory_while_directories_split() {
    stress(vec![in_memory(), in_memory(), in_memory(), in_memory()], true);
}

#[test]
fn on_three_on_rocksdb_while_directories_split() {
    stress(vec![Medium::rocks(), Medium::rocks(), Medium::rocks()], true);
}

//! Directories that are split: what is seen of it, and what must not be.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use burstfs_mds::{Engine, Mdt, MemoryEngine, NoPeers, check};
use burstfs_placement::name_hash;
use burstfs_proto::mds::*;
use burstfs_proto::service::Caller;
use burstfs_testkit::namespace_model::Target;
use burstfs_types::*;

use support::instance::Instance;
use support::{Medium, StandingClock, config, create, mkdir, name};

/// Some MDTs with a client that numbers its requests.
struct Client {
    instance: Instance,
    xid: u64,
}

impl Client {
    fn new(mdts: usize) -> Client {
        let media = (0..mdts).map(|_| Medium::Memory(MemoryEngine::new())).collect();
        Client { instance: Instance::new(media, false), xid: 0 }
    }

    fn ask(&mut self, mdt: MdtIndex, request: impl Into<MdsRequest>) -> Result<MdsReply, Errno> {
        self.xid += 1;
        let client = ClientId { node: NodeIndex::new(0), incarnation: 1 };
        self.instance.call(mdt, Caller { client, xid: Xid(self.xid), oldest_unanswered: Xid(self.xid) }, request.into())
    }

    fn attr(&mut self, ino: Ino) -> Attr {
        match self.ask(ino.mdt(), GetAttr { ino }) {
            Ok(MdsReply::GetAttr(attr)) => attr,
            other => panic!("{other:?}"),
        }
    }

    fn shards(&mut self, ino: Ino) -> Option<Shards> {
        self.attr(ino).shards.map(|shards| *shards)
    }

    /// Who holds the name.
    fn at(&mut self, dir: Ino, text: &str) -> Ino {
        self.shards(dir).map_or(dir, |shards| shards.holder(name_hash(&name(text))))
    }

    fn file(&mut self, dir: Ino, text: &str) -> Ino {
        let holder = self.at(dir, text);
        match self.ask(holder.mdt(), create(holder, text)) {
            Ok(MdsReply::Create(created)) => {
                let ino = created.attr.ino;
                self.ask(ino.mdt(), Close { ino }).unwrap();
                ino
            }
            other => panic!("{other:?}"),
        }
    }

    /// A directory in the root with so many files, not split.
    fn directory(&mut self, text: &str, files: usize) -> Ino {
        let Ok(MdsReply::Mkdir(made)) = self.ask(MdtIndex::new(0), mkdir(Ino::ROOT, text)) else { panic!("{text}") };
        for n in 0..files {
            self.file(made.ino, &n.to_string());
        }
        made.ino
    }

    fn list(&mut self, ino: Ino, cookie: u64, entries_max: u32) -> Listing {
        match self.ask(ino.mdt(), Readdir { ino, cookie, entries_max, with_attrs: false }) {
            Ok(MdsReply::Readdir(listing)) => listing,
            other => panic!("{other:?}"),
        }
    }

    /// The next `max` entries behind `cookie`, over all shards.
    fn next(&mut self, dir: Ino, cookie: u64, max: usize) -> Vec<(u64, Name)> {
        let shards = self.shards(dir).map_or(vec![dir], |shards| shards.inos().to_vec());
        let mut entries: Vec<_> = shards
            .into_iter()
            .flat_map(|shard| self.list(shard, cookie, max as u32).entries)
            .map(|entry| (entry.cookie, entry.name))
            .collect();
        entries.sort();
        entries.truncate(max);
        entries
    }

    fn split(&mut self, dir: Ino, steps: usize) {
        self.instance.split(dir.mdt(), steps);
    }

    fn check(&self) {
        assert_eq!(self.instance.found(), Vec::<String>::new());
    }
}

#[test]
fn a_directory_that_has_grown_is_spread_over_mdts_and_everything_is_found() {
    let mut client = Client::new(3);
    let dir = client.directory("d", 600);
    let before = client.attr(dir);
    assert_eq!(before.shards, None);
    client.split(dir, usize::MAX);
    let shards = client.shards(dir).unwrap();
    assert!(!shards.is_moving() && shards.head() == dir);
    let mdts: BTreeSet<MdtIndex> = shards.inos().iter().map(|ino| ino.mdt()).collect();
    assert_eq!(mdts.len(), 3);
    for n in 0..600 {
        let (text, holder) = (n.to_string(), client.at(dir, &n.to_string()));
        client.ask(holder.mdt(), Lookup { parent: holder, name: name(&text) }).unwrap();
    }
    let counts: Vec<usize> = shards.inos().iter().map(|shard| client.list(*shard, 0, 1_000).entries.len()).collect();
    assert!(counts.iter().sum::<usize>() == 600 && counts.iter().all(|count| (130..270).contains(count)), "{counts:?}");
    // Nothing has changed for those who look at it.
    assert_eq!(Attr { shards: None, ..client.attr(dir) }, before);
    client.check();
}

#[test]
fn who_asks_the_wrong_shard_is_told_so_and_nothing_happens() {
    let mut client = Client::new(2);
    let dir = client.directory("d", 20);
    client.split(dir, usize::MAX);
    let shards = client.shards(dir).unwrap();
    for n in 0..40 {
        let text = name(&n.to_string());
        let right = shards.holder(name_hash(&text));
        let wrong = shards.inos().iter().copied().find(|ino| *ino != right).unwrap();
        let requests: [MdsRequest; 6] = [
            Lookup { parent: wrong, name: text.clone() }.into(),
            create(wrong, &n.to_string()).into(),
            mkdir(wrong, &n.to_string()).into(),
            Unlink { parent: wrong, name: text.clone() }.into(),
            Rmdir { parent: wrong, name: text.clone() }.into(),
            Rename {
                parent: wrong,
                name: text.clone(),
                new_parent: wrong,
                new_name: text.clone(),
                mode: RenameMode::Replace,
            }
            .into(),
        ];
        for request in requests {
            let told = format!("{request:?}");
            assert_eq!(client.ask(wrong.mdt(), request), Err(Errno::EREMCHG), "{told}");
        }
    }
    assert_eq!(client.next(dir, 0, 100).len(), 20);
    client.check();
}

#[test]
fn a_listing_that_goes_on_over_a_split_shows_every_name_once() {
    let mut client = Client::new(4);
    let dir = client.directory("d", 900);
    let (mut seen, mut cookie) = (Vec::new(), 0);
    loop {
        let entries = client.next(dir, cookie, 40);
        let Some((last, _)) = entries.last() else { break };
        cookie = *last;
        seen.extend(entries.into_iter().map(|(_, name)| name));
        client.split(dir, 1);
        // Made and removed meanwhile, in whatever shard.
        let text = format!("new{cookie}");
        client.file(dir, &text);
        let holder = client.at(dir, &text);
        client.ask(holder.mdt(), Unlink { parent: holder, name: name(&text) }).unwrap();
    }
    let expected: BTreeSet<Name> = (0..900).map(|n| name(&n.to_string())).collect();
    assert_eq!(seen.iter().filter(|name| expected.contains(name)).count(), 900);
    assert_eq!(seen.into_iter().filter(|name| expected.contains(name)).collect::<BTreeSet<_>>(), expected);
    assert!(client.shards(dir).is_some());
    client.check();
}

#[test]
fn a_spread_directory_goes_when_no_shard_has_a_name() {
    let mut client = Client::new(3);
    let dir = client.directory("d", 30);
    client.split(dir, usize::MAX);
    let shards = client.shards(dir).unwrap();
    let rmdir = || Rmdir { parent: Ino::ROOT, name: name("d") };
    for n in 0..30 {
        assert_eq!(client.ask(MdtIndex::new(0), rmdir()), Err(Errno::ENOTEMPTY), "{n}");
        let text = n.to_string();
        let holder = client.at(dir, &text);
        client.ask(holder.mdt(), Unlink { parent: holder, name: name(&text) }).unwrap();
    }
    client.ask(MdtIndex::new(0), rmdir()).unwrap();
    for shard in shards.inos() {
        assert_eq!(client.ask(shard.mdt(), GetAttr { ino: *shard }), Err(Errno::ESTALE));
        assert_eq!(client.ask(shard.mdt(), Lookup { parent: *shard, name: name("x") }), Err(Errno::ENOENT));
    }
    client.check();
}

#[test]
fn what_is_made_in_a_shard_inherits_what_the_directory_says() {
    let mut client = Client::new(3);
    let dir = client.directory("d", 30);
    client.split(dir, usize::MAX);
    let change = SetAttr {
        ino: dir,
        mode: Some(0o2775),
        uid: None,
        gid: Some(77),
        atime: None,
        mtime: None,
        kill_set_id: false,
        opens: false,
    };
    client.ask(dir.mdt(), change).unwrap();
    let pattern = StripePattern::new(Some(2), 1 << 16).unwrap();
    client.ask(dir.mdt(), SetLayout { ino: dir, policy: Some(LayoutPolicy::Striped(pattern)) }).unwrap();
    for n in 100..130 {
        let ino = client.file(dir, &n.to_string());
        let attr = client.attr(ino);
        assert_eq!((attr.gid, attr.layout.map(|layout| layout.osts().len())), (77, Some(2)));
    }
    client.check();
}

#[test]
fn a_directory_whose_names_were_on_the_move_is_spread_after_a_restart() {
    let mut client = Client::new(2);
    let dir = client.directory("d", 2_000);
    client.split(dir, 3);
    assert!(client.shards(dir).unwrap().is_moving());
    client.instance.reopen(dir.mdt());
    client.split(dir, usize::MAX);
    assert!(!client.shards(dir).unwrap().is_moving());
    let (mut names, mut cookie) = (0, 0);
    while let [.., (last, _)] = client.next(dir, cookie, 500)[..] {
        names += client.next(dir, cookie, 500).len();
        cookie = last;
    }
    assert_eq!(names, 2_000);
    client.check();
}

#[test]
fn whatever_record_of_a_spread_directory_is_lost_is_missed() {
    let engines: Vec<MemoryEngine> = (0..3).map(|_| MemoryEngine::new()).collect();
    let media = engines.iter().cloned().map(Medium::Memory).collect();
    let mut client = Client { instance: Instance::new(media, false), xid: 0 };
    let dir = client.directory("d", 1_000);
    client.split(dir, 3);
    let shards = client.shards(dir).unwrap();
    assert!(shards.is_moving());
    let shards = shards.inos().to_vec();
    let found = |lost: Option<(usize, &[u8])>| {
        let open = |(mdt, engine): (usize, &MemoryEngine)| {
            let copy = engine.snapshot();
            if let Some((_, key)) = lost.filter(|(of, _)| *of == mdt) {
                copy.commit(vec![(key.to_vec(), None)]).unwrap();
            }
            Mdt::open(config(mdt as u16, 3), Arc::new(copy), Arc::new(NoPeers), Arc::<StandingClock>::default())
                .unwrap()
        };
        let mdts: Vec<Mdt> = engines.iter().enumerate().map(open).collect();
        check(&mdts.iter().collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(found(None), []);
    let mut tables = BTreeSet::new();
    for (mdt, engine) in engines.iter().enumerate() {
        for (index, (key, _)) in engine.scan(&[0], &[0xff], usize::MAX).unwrap().into_iter().enumerate() {
            let table = char::from(key[0]);
            // Of entries and files there are enough of a kind; the root would be made anew.
            let is_shard = table == 'I' && shards.iter().any(|ino| key[1..] == ino.get().to_be_bytes());
            let is_one_of_many = "DCI".contains(table) && index % 41 != 0 && !is_shard;
            if !"IDCSQ".contains(table) || is_one_of_many || key[1..] == Ino::ROOT.get().to_be_bytes() {
                continue;
            }
            tables.insert(table);
            assert!(!found(Some((mdt, &key))).is_empty(), "{}", key.escape_ascii());
        }
    }
    assert_eq!(tables, BTreeSet::from(['C', 'D', 'I', 'Q', 'S']));
}

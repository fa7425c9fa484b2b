//! What a namespace shall do, in the simplest way: a model beside which an MDT is run.
//!
//! Owns the random operations, the model's answers, and the comparison. The MDTs under test are a [`Target`]. Several clients,
//! one after the other; operands are indices modulo what there is, so that every sequence stays meaningful and shrinks.
//! Directories and files that are gone stay among the operands: what is asked of them has a right answer too.
//!
//! A request goes to the MDT that a client sends it to. If an MDT dies meanwhile ([`Op::Crash`]), it is started again and the
//! request sent again, and the answer and the state must be those of a request that ran once.
//!
//! Directories are split meanwhile ([`Op::Split`]). The runner asks as a client does: by what it remembers of how a directory is spread,
//! which may be old, and anew where it is told so. The model knows nothing of it: nobody may see a difference.
//!
//! Inode numbers are the target's to choose; the model takes them from the replies and insists that none comes twice.
//! Cookies likewise: the model knows the order of entries, and insists that a name's cookie does not change.

mod client;
mod random_ops;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burstfs_proto::Class;
use burstfs_proto::mds::*;
use burstfs_proto::service::Caller;
use burstfs_types::*;

use client::mdt_of;
use random_ops::{NAMES, XATTRS};
pub use random_ops::{Op, ops, ops_with_crashes};

/// The MDTs under test.
pub trait Target {
    /// How many they are.
    fn mdts(&self) -> u16;
    /// Sets their clock.
    fn set_now(&mut self, now: Timestamp);
    /// Sends a request to an MDT.
    fn call(&mut self, mdt: MdtIndex, caller: Caller, request: MdsRequest) -> Result<MdsReply, Errno>;
    /// Ends the process of an MDT and starts another one on the same store.
    fn reopen(&mut self, mdt: MdtIndex);
    /// Lets an MDT die at its commit after `commits` more: before what is committed is there, or after it.
    fn crash(&mut self, mdt: MdtIndex, commits: u64, is_committed: bool);
    /// Starts those MDTs again that have died, and lets what they left be ended. Says which.
    fn recover(&mut self) -> Vec<MdtIndex>;
    /// Lets an MDT take at most `steps` steps of the splits that it has to do.
    fn split(&mut self, mdt: MdtIndex, steps: usize);
    /// The files whose objects are to be removed.
    fn destroyed(&self) -> BTreeSet<Ino>;
    /// What its checker finds.
    fn violations(&self) -> Vec<String>;
}

/// Where the target differs from the model.
#[derive(Debug)]
pub struct Difference {
    /// Which step.
    pub step: usize,
    /// What.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.found)
    }
}

/// Runs `ops` on an empty `target` whose root is owned by 0:0 with mode 0700 and made at time 0.
pub fn run(ops: &[Op], target: &mut dyn Target) -> Result<(), Difference> {
    let mut runner =
        Runner { model: Model::new(), target, xid: 0, incarnation: 1, last: None, spread: BTreeMap::new() };
    runner.greet().map_err(|found| Difference { step: 0, found })?;
    for (step, op) in ops.iter().enumerate() {
        runner.step(step, op).map_err(|found| Difference { step, found: format!("{op:?}: {found}") })?;
    }
    Ok(())
}

struct Runner<'t> {
    model: Model,
    target: &'t mut dyn Target,
    xid: u64,
    incarnation: u64,
    last: Option<(MdtIndex, Caller, MdsRequest, Result<MdsReply, Errno>)>,
    /// How directories are spread, as far as the clients remember.
    spread: BTreeMap<Ino, Shards>,
}

/// So many nodes have a client.
const CLIENTS: u64 = 3;

impl Runner<'_> {
    fn step(&mut self, step: usize, op: &Op) -> Result<(), String> {
        // Times rise in nanoseconds over the end of a second.
        let now = Timestamp { secs: 1 + step as i64 / 2, nanos: if step.is_multiple_of(2) { 1 } else { 999_999_999 } };
        self.target.set_now(now);
        self.model.now = now;
        match op {
            Op::Resend => self.resend()?,
            Op::Reopen { mdt } => {
                let mdt = self.mdt(*mdt);
                self.target.reopen(mdt);
                self.model.reopen(mdt);
                // Neither is remembered over a restart, nor needs to be: what they did is not.
                let is_forgotten = |request: &MdsRequest| matches!(request, MdsRequest::Open(_) | MdsRequest::Close(_));
                self.last.take_if(|(_, _, request, _)| is_forgotten(request));
            }
            Op::NewClient => self.new_clients()?,
            Op::Split { mdt, steps } => {
                let mdt = self.mdt(*mdt);
                self.target.split(mdt, *steps);
                // Runs anew when it is sent again, and may be told that a name is elsewhere.
                let is_rerun = |request: &MdsRequest, result: &Result<MdsReply, Errno>| {
                    result.is_err() || request.class() == Class::ReadOnly
                };
                self.last.take_if(|(_, _, request, result)| is_rerun(request, result));
                if !self.target.recover().is_empty() {
                    self.new_clients()?;
                }
            }
            Op::Forget => self.spread.clear(),
            Op::Crash { mdt, commits, is_committed } => {
                let mdt = self.mdt(*mdt);
                self.target.crash(mdt, *commits, *is_committed);
            }
            op => self.send(self.model.request(op))?,
        }
        self.compare_state()
    }

    fn mdt(&self, any: u16) -> MdtIndex {
        MdtIndex::new(any % self.target.mdts())
    }

    /// Makes all clients known to all MDTs. An MDT that dies meanwhile has forgotten what those before them had open.
    fn greet(&mut self) -> Result<(), String> {
        for mdt in (0..self.target.mdts()).map(MdtIndex::new) {
            let mut actual = Err(Errno::EIO);
            for _ in 0..CLIENTS {
                let caller = self.next_caller();
                actual = self.target.call(mdt, caller, Statfs.into());
            }
            if !self.target.recover().is_empty() {
                return self.new_clients();
            }
            let inodes_used = self.model.nodes.keys().filter(|ino| ino.mdt() == mdt).count() as u64;
            same("statfs", &actual, &Ok(MdsReply::Statfs(MdtStatfs { inodes_used })))?;
        }
        Ok(())
    }

    fn new_clients(&mut self) -> Result<(), String> {
        self.incarnation += 1;
        self.last = None;
        self.model.new_clients();
        self.greet()
    }

    fn next_caller(&mut self) -> Caller {
        self.xid += 1;
        let node = NodeIndex::new((self.xid % CLIENTS) as u16);
        let client = ClientId { node, incarnation: self.incarnation };
        Caller { client, xid: Xid(self.xid), oldest_unanswered: Xid(self.xid) }
    }

    fn send(&mut self, request: MdsRequest) -> Result<(), String> {
        let mut has_crashed = false;
        let (mdt, caller, routed, raw) = loop {
            let routed = self.routed(&request);
            let mut mdt = mdt_of(&routed);
            let (mut caller, mut actual) = self.send_to(mdt, &routed, &mut has_crashed);
            if actual == Err(Errno::EREMOTE) && matches!(request, MdsRequest::Rename(_)) {
                mdt = Ino::ROOT.mdt();
                (caller, actual) = self.send_to(mdt, &routed, &mut has_crashed);
            }
            if actual != Err(Errno::EREMCHG) {
                break (mdt, caller, routed, actual);
            }
            let is_news = self.learn_anew(&request, &mut has_crashed);
            if !is_news {
                return Err("a name is said to be elsewhere, and the head says it is not".to_owned());
            }
        };
        if let (MdsRequest::Readdir(asked), true) = (&request, raw.is_ok()) {
            self.learn_cookies(asked.ino, &mut has_crashed)?;
        }
        let actual = self.completed(&request, raw.clone(), &mut has_crashed);
        self.model.client = caller.client.node;
        self.model.asked = mdt;
        let expected = self.model.apply(&request, &actual);
        let is_close_enough = self.is_any_error_right(&request) && actual.is_err() && expected.is_err();
        self.last = Some((mdt, caller, routed, raw));
        if !is_close_enough {
            same("answer", &actual, &expected)?;
        }
        // Whether the opens were forgotten before or after the request, nobody can tell once all are.
        if has_crashed { self.new_clients() } else { Ok(()) }
    }

    /// Over several MDTs one of several errors may be found first.
    fn is_any_error_right(&self, request: &MdsRequest) -> bool {
        match request {
            MdsRequest::Link(_) | MdsRequest::Rename(_) => self.target.mdts() > 1,
            _ => false,
        }
    }

    fn resend(&mut self) -> Result<(), String> {
        let Some((mdt, caller, request, expected)) = self.last.clone() else { return Ok(()) };
        let mut actual = self.target.call(mdt, caller, request.clone());
        if !self.target.recover().is_empty() {
            // What was answered with an error runs again, and may do so.
            actual = expected.clone();
            if expected.is_ok() {
                actual = self.target.call(mdt, caller, request);
            }
            same("answer to the resend", &actual, &expected)?;
            return self.new_clients();
        }
        same("answer to the resend", &actual, &expected)
    }

    fn compare_state(&mut self) -> Result<(), String> {
        same("checker", &self.target.violations(), &Vec::new())?;
        same("objects to remove", &self.target.destroyed(), &self.model.destroyed)
    }
}

fn same<T: PartialEq + fmt::Debug>(what: &str, actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what} is {actual:?}, expected {expected:?}")) }
}

#[derive(Clone)]
struct Node {
    attr: Attr,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Vec<u8>,
    /// A directory's entries in the order of their cookies.
    entries: Vec<Slot>,
    /// A directory's.
    parent: Ino,
    /// Who has it open, each as often as he does.
    opens: Vec<NodeIndex>,
    is_from_before: bool,
}

#[derive(Clone)]
struct Slot {
    name: Name,
    ino: Ino,
    order: u64,
}

struct Model {
    now: Timestamp,
    /// Who asks.
    client: NodeIndex,
    /// Who was asked.
    asked: MdtIndex,
    nodes: BTreeMap<Ino, Node>,
    /// Every inode there ever was, and every directory.
    known: Vec<Ino>,
    directories: Vec<Ino>,
    destroyed: BTreeSet<Ino>,
    next_order: u64,
    /// Cookies that were seen, with the order that they stand for.
    cookies: Vec<(Ino, u64, u64)>,
    opens_are_unknown: BTreeSet<MdtIndex>,
}

impl Model {
    fn new() -> Model {
        let mut model = Model {
            now: Timestamp::default(),
            client: NodeIndex::new(0),
            asked: MdtIndex::new(0),
            nodes: BTreeMap::new(),
            known: Vec::new(),
            directories: Vec::new(),
            destroyed: BTreeSet::new(),
            next_order: 0,
            cookies: Vec::new(),
            opens_are_unknown: BTreeSet::new(),
        };
        model.insert(Ino::ROOT, Ino::ROOT, FileKind::Directory, 0o700, (0, 0));
        model
    }

    fn reopen(&mut self, mdt: MdtIndex) {
        self.opens_are_unknown.insert(mdt);
        for (_, node) in self.nodes.iter_mut().filter(|(ino, _)| ino.mdt() == mdt) {
            node.opens.clear();
            node.is_from_before = true;
        }
    }

    fn new_clients(&mut self) {
        self.opens_are_unknown.clear();
        let inos: Vec<Ino> = self.nodes.keys().copied().collect();
        for ino in inos {
            if let Some(node) = self.nodes.get_mut(&ino) {
                node.opens.clear();
            }
            self.collect(ino);
        }
    }

    fn insert(&mut self, ino: Ino, parent: Ino, kind: FileKind, mode: u16, (uid, gid): (u32, u32)) {
        let is_directory = kind == FileKind::Directory;
        let (size, nlink) = if is_directory { (4096, 2) } else { (0, 1) };
        let layout = None;
        let (atime, mtime, ctime) = (self.now, self.now, self.now);
        let shards = None;
        let attr = Attr { ino, kind, mode, nlink, uid, gid, size, blocks: 0, atime, mtime, ctime, layout, shards };
        let (xattrs, target, entries) = Default::default();
        self.nodes
            .insert(ino, Node { attr, xattrs, target, entries, parent, opens: Vec::new(), is_from_before: false });
        self.known.push(ino);
        if is_directory {
            self.directories.push(ino);
        }
    }

    fn request(&self, op: &Op) -> MdsRequest {
        let name = |n: &usize| Name::new(NAMES[n % NAMES.len()]).unwrap_or_else(|_| unreachable!("a good name"));
        let xattr = |n: &usize| XATTRS[n % XATTRS.len()].as_bytes().to_vec();
        let dir = |n: &usize| self.directories[n % self.directories.len()];
        let node = |n: &usize| self.known[n % self.known.len()];
        // A directory's place is also taken by what is none, now and then.
        let parent = |n: &usize| if n % 16 == 15 { node(n) } else { dir(n) };
        let (uid, gid) = (7, 8);
        let near = OstIndex::new(0);
        // Some are made as the stager makes them.
        let umask = |mode: u16| if mode.is_multiple_of(3) { None } else { Some(mode >> 3 & 0o77) };
        match op {
            Op::Create { dir, name: n, mode, exclusive } => {
                let (mode, exclusive) = (*mode, *exclusive);
                let (parent, name, umask) = (parent(dir), name(n), umask(mode));
                Create { parent, name, mode, umask, uid, gid, exclusive, near, policy: None }.into()
            }
            Op::Mknod { dir, name: n, kind } => {
                let (parent, name, umask) = (parent(dir), name(n), umask(0o664));
                Mknod { parent, name, kind: *kind, mode: 0o664, umask, uid, gid }.into()
            }
            Op::Mkdir { dir, name: n, mode } => {
                let (parent, name, umask) = (parent(dir), name(n), umask(*mode));
                Mkdir { parent, name, mode: *mode, umask, uid, gid }.into()
            }
            Op::Symlink { dir, name: n, target } => {
                Symlink { parent: parent(dir), name: name(n), target: target.clone(), uid, gid }.into()
            }
            Op::Link { node: i, dir, name: n } => {
                Link { ino: node(i), new_parent: parent(dir), new_name: name(n) }.into()
            }
            Op::Unlink { dir, name: n } => Unlink { parent: parent(dir), name: name(n) }.into(),
            Op::Rmdir { dir, name: n } => Rmdir { parent: parent(dir), name: name(n) }.into(),
            Op::Rename { dir, name: n, new_dir, new_name, mode } => {
                let (new_parent, new_name) = (parent(new_dir), name(new_name));
                Rename { parent: parent(dir), name: name(n), new_parent, new_name, mode: *mode }.into()
            }
            Op::Lookup { dir, name: n } => Lookup { parent: parent(dir), name: name(n) }.into(),
            Op::GetAttr { node: i } => GetAttr { ino: node(i) }.into(),
            Op::SetAttr { node: i, what, value } => {
                let bit = |n: u8| what & (1 << n) != 0;
                let time = if bit(6) { SetTime::Now } else { SetTime::At(Timestamp { secs: -5, nanos: 7 }) };
                SetAttr {
                    ino: node(i),
                    mode: bit(0).then_some(*value),
                    uid: bit(1).then_some(u32::from(*value)),
                    gid: bit(2).then_some(u32::from(*value)),
                    atime: bit(3).then_some(time),
                    mtime: bit(4).then_some(time),
                    kill_set_id: bit(5),
                    opens: false,
                }
                .into()
            }
            Op::Readlink { node: i } => Readlink { ino: node(i) }.into(),
            Op::DecideLayout { node: i } => DecideLayout { ino: node(i), near }.into(),
            Op::Open { node: i } => Open { ino: node(i), writes: i % 2 == 0 }.into(),
            Op::Close { node: i } => Close { ino: node(i) }.into(),
            Op::Readdir { dir, cookie, max } => self.readdir_request(parent(dir), *cookie, *max),
            Op::SetXattr { node: i, name, value, mode } => {
                let (name, kill_set_gid) = (xattr(name), value % 2 == 0);
                let value = if name.starts_with(b"system.posix_acl_") { acl_value(*value) } else { vec![*value] };
                SetXattr { ino: node(i), name, value, mode: *mode, kill_set_gid }.into()
            }
            Op::GetXattr { node: i, name } => GetXattr { ino: node(i), name: xattr(name) }.into(),
            Op::ListXattr { node: i } => ListXattr { ino: node(i) }.into(),
            Op::RemoveXattr { node: i, name } => RemoveXattr { ino: node(i), name: xattr(name) }.into(),
            Op::Resend | Op::Reopen { .. } | Op::NewClient | Op::Split { .. } | Op::Forget | Op::Crash { .. } => {
                Statfs.into()
            }
        }
    }

    /// Half of the listings begin at the beginning, the others behind a cookie that was seen, whose entry may be gone.
    fn readdir_request(&self, dir: Ino, cookie: usize, max: u32) -> MdsRequest {
        let seen: Vec<u64> =
            self.cookies.iter().filter(|(of, _, _)| *of == dir).map(|(_, cookie, _)| *cookie).collect();
        let resume = if cookie.is_multiple_of(2) || seen.is_empty() { 0 } else { seen[cookie % seen.len()] };
        Readdir { ino: dir, cookie: resume, entries_max: max, with_attrs: cookie.is_multiple_of(3) }.into()
    }

    /// What the answer to `request` shall be. Numbers that the target chooses are taken from `actual`.
    fn apply(&mut self, request: &MdsRequest, actual: &Result<MdsReply, Errno>) -> Result<MdsReply, Errno> {
        match request {
            MdsRequest::Lookup(it) => {
                let ino = self.find(it.parent, &it.name)?.ok_or(Errno::ENOENT)?;
                Ok(MdsReply::Lookup(self.entry(ino, true)))
            }
            MdsRequest::GetAttr(it) => Ok(MdsReply::GetAttr(self.node(it.ino)?.attr.clone())),
            MdsRequest::SetAttr(it) => self.set_attr(it).map(MdsReply::SetAttr),
            MdsRequest::Create(it) => self.create(it, actual).map(MdsReply::Create),
            MdsRequest::Mknod(it) => {
                let allowed = !matches!(it.kind, FileKind::Directory | FileKind::Symlink);
                let refused = if allowed { None } else { Some(Errno::EPERM) };
                let made = |reply: &MdsReply| if let MdsReply::Mknod(attr) = reply { Some(attr.ino) } else { None };
                let new = (it.kind, it.mode, it.umask, it.uid, it.gid);
                self.make((it.parent, &it.name), new, refused, learned(actual, made)).map(MdsReply::Mknod)
            }
            MdsRequest::Mkdir(it) => {
                let made = |reply: &MdsReply| if let MdsReply::Mkdir(attr) = reply { Some(attr.ino) } else { None };
                let new = (FileKind::Directory, it.mode, it.umask, it.uid, it.gid);
                self.make((it.parent, &it.name), new, None, learned(actual, made)).map(MdsReply::Mkdir)
            }
            MdsRequest::Symlink(it) => self.symlink(it, actual).map(MdsReply::Symlink),
            MdsRequest::Link(it) => self.link(it).map(MdsReply::Link),
            MdsRequest::Unlink(it) => self.unlink(it).map(MdsReply::Unlink),
            MdsRequest::Rmdir(it) => self.rmdir(it).map(MdsReply::Rmdir),
            MdsRequest::Rename(it) => self.rename(it).map(MdsReply::Rename),
            MdsRequest::Readlink(it) => {
                let node = self.node(it.ino)?;
                let is_link = node.attr.kind == FileKind::Symlink;
                if is_link { Ok(MdsReply::Readlink(node.target.clone())) } else { Err(Errno::EINVAL) }
            }
            MdsRequest::DecideLayout(it) => self.decide_layout(it.ino).map(MdsReply::DecideLayout),
            MdsRequest::Open(it) => self.open(it.ino).map(MdsReply::Open),
            MdsRequest::Close(it) => {
                self.close(it.ino);
                Ok(MdsReply::Close(()))
            }
            MdsRequest::Readdir(it) => self.readdir(it).map(MdsReply::Readdir),
            MdsRequest::SetXattr(it) => self.set_xattr(it).map(MdsReply::SetXattr),
            MdsRequest::GetXattr(it) => self.get_xattr(it).map(MdsReply::GetXattr),
            MdsRequest::ListXattr(it) => Ok(MdsReply::ListXattr(self.node(it.ino)?.xattrs.keys().cloned().collect())),
            MdsRequest::RemoveXattr(it) => self.remove_xattr(it).map(MdsReply::RemoveXattr),
            MdsRequest::Statfs(_) => Ok(MdsReply::Statfs(MdtStatfs { inodes_used: self.nodes.len() as u64 })),
            // Nothing of the namespace.
            _ => Err(Errno::EPROTO),
        }
    }

    fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    fn change(&mut self, ino: Ino) -> Result<&mut Node, Errno> {
        let now = self.now;
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)?;
        node.attr.ctime = now;
        Ok(node)
    }

    fn dir(&self, ino: Ino) -> Result<&Node, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ENOENT)?;
        if node.attr.kind == FileKind::Directory { Ok(node) } else { Err(Errno::ENOTDIR) }
    }

    fn find(&self, dir: Ino, name: &Name) -> Result<Option<Ino>, Errno> {
        Ok(self.dir(dir)?.entries.iter().find(|slot| slot.name == *name).map(|slot| slot.ino))
    }

    fn kind(&self, ino: Ino) -> FileKind {
        self.nodes[&ino].attr.kind
    }

    fn entry(&self, ino: Ino, with_attr: bool) -> Entry {
        let attr = &self.nodes[&ino].attr;
        Entry { ino, kind: attr.kind, attr: with_attr.then(|| attr.clone()) }
    }

    /// Recomputes what follows from a directory's entries, and moves its times.
    fn entries_changed(&mut self, dir: Ino) {
        let directories = self.nodes[&dir].entries.iter().filter(|slot| self.kind(slot.ino) == FileKind::Directory);
        let nlink = 2 + directories.count() as u32;
        let now = self.now;
        if let Ok(node) = self.change(dir) {
            node.attr.nlink = nlink;
            node.attr.mtime = now;
        }
    }

    fn put(&mut self, dir: Ino, name: &Name, ino: Ino) {
        self.next_order += 1;
        let slot = Slot { name: name.clone(), ino, order: self.next_order };
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.entries.push(slot);
        }
        self.entries_changed(dir);
    }

    fn point(&mut self, dir: Ino, name: &Name, ino: Ino) {
        let slots = self.nodes.get_mut(&dir).into_iter().flat_map(|node| &mut node.entries);
        slots.filter(|slot| slot.name == *name).for_each(|slot| slot.ino = ino);
        self.entries_changed(dir);
    }

    fn take(&mut self, dir: Ino, name: &Name) {
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.entries.retain(|slot| slot.name != *name);
        }
        self.entries_changed(dir);
    }

    fn drop_name(&mut self, ino: Ino) {
        if let Ok(node) = self.change(ino) {
            node.attr.nlink -= 1;
        }
        self.collect(ino);
    }

    fn collect(&mut self, ino: Ino) {
        let node = &self.nodes[&ino];
        let is_unknown = node.is_from_before && self.opens_are_unknown.contains(&ino.mdt());
        let may_be_open = !node.opens.is_empty() || is_unknown;
        if node.attr.nlink > 0 || may_be_open {
            return;
        }
        if node.attr.layout.is_some() {
            self.destroyed.insert(ino);
        }
        self.nodes.remove(&ino);
    }

    fn make(
        &mut self,
        (parent, name): (Ino, &Name),
        (kind, mode, umask, uid, gid): (FileKind, u16, Option<u16>, u32, u32),
        refused: Option<Errno>,
        ino: Option<Ino>,
    ) -> Result<Attr, Errno> {
        if self.find(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        if let Some(errno) = refused {
            return Err(errno);
        }
        // The target has not made it, or under a number that was used: whatever is answered here differs from its answer.
        let ino = ino.filter(|ino| !self.known.contains(ino)).ok_or(Errno::ENOTEMPTY)?;
        let above = &self.dir(parent)?.attr;
        let inherits = above.mode & 0o2000 != 0;
        let gid = if inherits { above.gid } else { gid };
        let set_id = if inherits && kind == FileKind::Directory { 0o2000 } else { 0 };
        let default = self.dir(parent)?.xattrs.get(ACL_DEFAULT).filter(|_| umask.is_some()).cloned();
        let mode = if default.is_some() { mode } else { mode & !umask.unwrap_or(0) };
        self.insert(ino, parent, kind, mode & 0o7777 | set_id, (uid, gid));
        if let Some(default) = default {
            self.inherit(ino, kind, default);
        }
        self.put(parent, name, ino);
        Ok(self.nodes[&ino].attr.clone())
    }

    /// The new inode `ino`, which has its mode, inherits its directory's default ACL.
    fn inherit(&mut self, ino: Ino, kind: FileKind, default: Vec<u8>) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Ok(Some(acl)) = Acl::decode(&default) else { return };
        let bits = acl.bits() & node.attr.mode;
        let access = acl.with_bits(bits);
        node.attr.mode = node.attr.mode & !0o777 | bits;
        if !access.is_only_bits() {
            node.xattrs.insert(ACL_ACCESS.to_vec(), access.encode());
        }
        if kind == FileKind::Directory {
            node.xattrs.insert(ACL_DEFAULT.to_vec(), default);
        }
    }

    /// All requests are made near OST 0.
    fn decide_layout(&mut self, ino: Ino) -> Result<Attr, Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)?;
        match node.attr.kind {
            FileKind::Regular => {
                node.attr.layout = Some(Layout::on_one(OstIndex::new(0)));
                Ok(node.attr.clone())
            }
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn create(&mut self, it: &Create, actual: &Result<MdsReply, Errno>) -> Result<Created, Errno> {
        let Some(ino) = self.find(it.parent, &it.name)? else {
            let made = |reply: &MdsReply| if let MdsReply::Create(made) = reply { Some(made.attr.ino) } else { None };
            let new = (FileKind::Regular, it.mode, it.umask, it.uid, it.gid);
            let made = self.make((it.parent, &it.name), new, None, learned(actual, made))?;
            let attr = self.decide_layout(made.ino)?;
            self.open(attr.ino)?;
            return Ok(Created { attr, is_new: true });
        };
        match self.kind(ino) {
            _ if it.exclusive => Err(Errno::EEXIST),
            FileKind::Directory => Err(Errno::EISDIR),
            FileKind::Regular if ino.mdt() != self.asked => Err(Errno::EREMOTE),
            FileKind::Regular => Ok(Created { attr: self.open(ino)?, is_new: false }),
            _ => Err(Errno::ESTALE),
        }
    }

    fn symlink(&mut self, it: &Symlink, actual: &Result<MdsReply, Errno>) -> Result<Attr, Errno> {
        match it.target.len() {
            0 => return Err(Errno::ENOENT),
            4_096.. => return Err(Errno::ENAMETOOLONG),
            _ if it.target.contains(&0) => return Err(Errno::EINVAL),
            _ => {}
        }
        let made = |reply: &MdsReply| if let MdsReply::Symlink(attr) = reply { Some(attr.ino) } else { None };
        let new = (FileKind::Symlink, 0o777, None, it.uid, it.gid);
        let ino = self.make((it.parent, &it.name), new, None, learned(actual, made))?.ino;
        let node = self.change(ino)?;
        node.attr.size = it.target.len() as u64;
        node.target.clone_from(&it.target);
        Ok(node.attr.clone())
    }

    fn link(&mut self, it: &Link) -> Result<Attr, Errno> {
        self.node(it.ino)?;
        let is_taken = self.find(it.new_parent, &it.new_name)?.is_some();
        match self.kind(it.ino) {
            FileKind::Directory => return Err(Errno::EPERM),
            _ if is_taken => return Err(Errno::EEXIST),
            _ if self.nodes[&it.ino].attr.nlink == 0 => return Err(Errno::ENOENT),
            _ => {}
        }
        self.change(it.ino)?.attr.nlink += 1;
        self.put(it.new_parent, &it.new_name, it.ino);
        Ok(self.nodes[&it.ino].attr.clone())
    }

    fn unlink(&mut self, it: &Unlink) -> Result<(), Errno> {
        let ino = self.find(it.parent, &it.name)?.ok_or(Errno::ENOENT)?;
        if self.kind(ino) == FileKind::Directory {
            return Err(Errno::EISDIR);
        }
        self.take(it.parent, &it.name);
        self.drop_name(ino);
        Ok(())
    }

    fn rmdir(&mut self, it: &Rmdir) -> Result<(), Errno> {
        let ino = self.find(it.parent, &it.name)?.ok_or(Errno::ENOENT)?;
        if !self.dir(ino)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.take(it.parent, &it.name);
        self.nodes.remove(&ino);
        Ok(())
    }

    fn rename(&mut self, it: &Rename) -> Result<(), Errno> {
        self.dir(it.parent)?;
        self.dir(it.new_parent)?;
        let source = self.find(it.parent, &it.name)?.ok_or(Errno::ENOENT)?;
        let target = self.find(it.new_parent, &it.new_name)?;
        let is_dir = |ino: Ino| self.kind(ino) == FileKind::Directory;
        let crosses = it.parent != it.new_parent;
        let source_is_dir = is_dir(source);
        match (it.mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            (_, Some(target)) if target == source => return Ok(()),
            (RenameMode::Replace, Some(target)) if source_is_dir && !is_dir(target) => return Err(Errno::ENOTDIR),
            (RenameMode::Replace, Some(target)) if !source_is_dir && is_dir(target) => return Err(Errno::EISDIR),
            _ if crosses && source_is_dir && self.is_within(it.new_parent, source) => return Err(Errno::EINVAL),
            (RenameMode::Exchange, Some(target)) if crosses && is_dir(target) && self.is_within(it.parent, target) => {
                return Err(Errno::EINVAL);
            }
            (RenameMode::Replace, Some(target)) if !self.nodes[&target].entries.is_empty() => {
                return Err(Errno::ENOTEMPTY);
            }
            _ => {}
        }
        self.change(source)?.parent = it.new_parent;
        match (it.mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                self.change(target)?.parent = it.parent;
                self.point(it.parent, &it.name, target);
                self.point(it.new_parent, &it.new_name, source);
            }
            (_, Some(target)) => {
                self.take(it.parent, &it.name);
                self.point(it.new_parent, &it.new_name, source);
                if self.kind(target) == FileKind::Directory {
                    self.nodes.remove(&target);
                } else {
                    self.drop_name(target);
                }
            }
            (_, None) => {
                self.take(it.parent, &it.name);
                self.put(it.new_parent, &it.new_name, source);
            }
        }
        Ok(())
    }

    /// Whether `ino` is `dir` or somewhere below it.
    fn is_within(&self, mut ino: Ino, dir: Ino) -> bool {
        while ino != dir {
            match self.nodes.get(&ino) {
                Some(node) if ino != Ino::ROOT => ino = node.parent,
                Some(_) | None => return false,
            }
        }
        true
    }

    fn set_attr(&mut self, it: &SetAttr) -> Result<Attr, Errno> {
        let now = self.now;
        let node = self.nodes.get_mut(&it.ino).ok_or(Errno::ESTALE)?;
        let attr = &mut node.attr;
        let mut is_changed = false;
        let mut set = |is_asked: bool| is_changed |= is_asked;
        let time = |time: SetTime| if let SetTime::At(time) = time { time } else { now };
        // What the root directory denies to group and others stays denied.
        let denied = if it.ino == Ino::ROOT { !attr.mode & 0o077 } else { 0 };
        set(it.mode.map(|mode| attr.mode = mode & 0o7777 & !denied).is_some());
        set(it.uid.map(|uid| attr.uid = uid).is_some());
        set(it.gid.map(|gid| attr.gid = gid).is_some());
        set(it.atime.map(|set| attr.atime = time(set)).is_some());
        set(it.mtime.map(|set| attr.mtime = time(set)).is_some());
        let mut killed = 0;
        if it.kill_set_id && attr.kind != FileKind::Directory {
            killed = attr.mode & if attr.mode & 0o010 != 0 { 0o6000 } else { 0o4000 };
        }
        attr.mode -= killed;
        chmod_acl(&mut node.xattrs, attr.mode);
        if is_changed || killed != 0 {
            attr.ctime = now;
        }
        Ok(attr.clone())
    }

    fn open(&mut self, ino: Ino) -> Result<Attr, Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)?;
        match node.attr.kind {
            FileKind::Regular => {
                node.opens.push(self.client);
                Ok(node.attr.clone())
            }
            FileKind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn close(&mut self, ino: Ino) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some(own) = node.opens.iter().position(|client| *client == self.client) else { return };
        node.opens.remove(own);
        self.collect(ino);
    }

    /// Takes the cookies of a directory from its whole listing. Those that were seen before must be the same, and no two ever are;
    /// where the directory is in one piece, new names come last.
    fn learn_cookies(&mut self, dir: Ino, listing: &Listing, is_spread: bool) -> Result<(), String> {
        let Some(node) = self.nodes.get(&dir) else { return Err(format!("{dir} is gone and listed")) };
        let slots = node.entries.clone();
        same("names of a listing", &listing.entries.len(), &slots.len())?;
        let mut last = 0;
        for ListingEntry { name, cookie, .. } in &listing.entries {
            let slot = slots.iter().find(|slot| slot.name == *name).ok_or(format!("{name} is listed"))?;
            let seen =
                self.cookies.iter().find(|(of, known, order)| *of == dir && (known == cookie || *order == slot.order));
            match seen {
                Some((_, known, order)) => same("cookie", &(*cookie, slot.order), &(*known, *order))?,
                None if *cookie < 3 => return Err(format!("{name} has cookie {cookie}")),
                None => self.cookies.push((dir, *cookie, slot.order)),
            }
            if !is_spread && slot.order <= last {
                return Err(format!("{name} is listed behind a newer name"));
            }
            last = slot.order;
        }
        Ok(())
    }

    fn readdir(&mut self, it: &Readdir) -> Result<Listing, Errno> {
        let node = self.dir(it.ino)?;
        let cookie_of = |slot: &Slot| {
            let known = self.cookies.iter().find(|(dir, _, order)| (*dir, *order) == (it.ino, slot.order));
            known.map_or(0, |(_, cookie, _)| *cookie)
        };
        let rest: BTreeMap<u64, &Slot> = node.entries.iter().map(|slot| (cookie_of(slot), slot)).collect();
        let behind = rest.range(it.cookie + 1..);
        let is_end = behind.clone().count() <= it.entries_max as usize;
        let listed = behind.take(it.entries_max as usize).map(|(cookie, slot)| {
            let entry = self.entry(slot.ino, it.with_attrs);
            ListingEntry { name: slot.name.clone(), entry, cookie: *cookie }
        });
        Ok(Listing { entries: listed.collect(), is_end, parent: node.parent, shards: None, moved_below: 0 })
    }

    fn set_xattr(&mut self, it: &SetXattr) -> Result<(), Errno> {
        check_xattr(&it.name)?;
        let node = self.node(it.ino)?;
        if it.name == ACL_ACCESS || it.name == ACL_DEFAULT {
            return self.set_acl(it);
        }
        if it.name.starts_with(b"user.") && !matches!(node.attr.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::EPERM);
        }
        match (it.mode, node.xattrs.contains_key(&it.name)) {
            (XattrMode::Create, true) => Err(Errno::EEXIST),
            (XattrMode::Replace, false) => Err(Errno::ENODATA),
            _ => {
                self.change(it.ino)?.xattrs.insert(it.name.clone(), it.value.clone());
                Ok(())
            }
        }
    }

    fn set_acl(&mut self, it: &SetXattr) -> Result<(), Errno> {
        let acl = Acl::decode(&it.value).map_err(|_| Errno::EINVAL)?;
        let is_access = it.name == ACL_ACCESS;
        match self.kind(it.ino) {
            FileKind::Symlink => return Err(Errno::EOPNOTSUPP),
            FileKind::Directory => {}
            _ if !is_access && acl.is_some() => return Err(Errno::EACCES),
            _ if !is_access => return Ok(()),
            _ => {}
        }
        let denied = if it.ino == Ino::ROOT { !self.node(it.ino)?.attr.mode & 0o077 } else { 0 };
        let node = self.change(it.ino)?;
        node.xattrs.remove(&it.name);
        let Some(acl) = acl else { return Ok(()) };
        if !is_access || !acl.is_only_bits() {
            node.xattrs.insert(it.name.clone(), it.value.clone());
        }
        if is_access {
            let set_gid = if it.kill_set_gid { 0o2000 } else { 0 };
            node.attr.mode = (node.attr.mode & !0o777 & !set_gid | acl.bits()) & !denied;
            chmod_acl(&mut node.xattrs, node.attr.mode);
        }
        Ok(())
    }

    fn get_xattr(&self, it: &GetXattr) -> Result<Vec<u8>, Errno> {
        check_xattr(&it.name)?;
        self.node(it.ino)?.xattrs.get(&it.name).cloned().ok_or(Errno::ENODATA)
    }

    fn remove_xattr(&mut self, it: &RemoveXattr) -> Result<(), Errno> {
        check_xattr(&it.name)?;
        if !self.node(it.ino)?.xattrs.contains_key(&it.name) {
            let is_acl = it.name == ACL_ACCESS || it.name == ACL_DEFAULT;
            return if is_acl { Ok(()) } else { Err(Errno::ENODATA) };
        }
        self.change(it.ino)?.xattrs.remove(&it.name);
        Ok(())
    }
}

/// What `chmod` does to an access ACL.
fn chmod_acl(xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>, mode: u16) {
    if let Some(value) = xattrs.get_mut(ACL_ACCESS)
        && let Ok(Some(acl)) = Acl::decode(value)
    {
        *value = acl.with_bits(mode).encode();
    }
}

/// A list with one named user, a list without, the empty list, or what is none.
fn acl_value(any: u8) -> Vec<u8> {
    let entry = |tag: u16, bits: u8, id: u32| {
        [&tag.to_le_bytes()[..], &u16::from(bits & 7).to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let (owner, group, others) =
        (entry(1, any, u32::MAX), entry(4, any >> 1, u32::MAX), entry(0x20, any >> 2, u32::MAX));
    let named = [entry(2, any >> 3, 9), group.clone(), entry(0x10, any >> 4, u32::MAX)].concat();
    let entries = match any % 8 {
        0 => Vec::new(),
        1 => others,
        2 | 3 => [owner, group, others].concat(),
        _ => [owner, named, others].concat(),
    };
    [&[2, 0, 0, 0][..], &entries].concat()
}

fn check_xattr(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"user." => Err(Errno::EINVAL),
        _ if name == ACL_ACCESS || name == ACL_DEFAULT => Ok(()),
        _ if name.starts_with(b"system.") => Err(Errno::EOPNOTSUPP),
        _ => Ok(()),
    }
}

fn learned(actual: &Result<MdsReply, Errno>, ino: impl Fn(&MdsReply) -> Option<Ino>) -> Option<Ino> {
    actual.as_ref().ok().and_then(ino)
}

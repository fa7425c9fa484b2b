//! Leases on real mounts: whatever a node's kernel has cached, it sees what another node has done, and what is cached costs nothing.
//!
//! Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(clippy::panic, reason = "so does an unexpected answer")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use burstfs_client::fs::ClientFs;
use burstfs_types::{Attr, FileKind, Ino, MetadataPolicy};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, Uid};

use support::cluster::Cluster;
use support::mount::{Mounted, mounts, own_namespace};

/// Names that are asked for everywhere, there or not.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// What a node sees of an inode; a name that is not there has none.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    ino: u64,
    mode: u32,
    nlink: u64,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    names: Option<Vec<String>>,
}

type View = BTreeMap<PathBuf, Option<Seen>>;

/// Everything below `root`, by the system calls of a mount: each name is looked up, also those that are not there.
fn view(root: &Path) -> View {
    let mut view = View::new();
    look(root, Path::new(""), &mut view);
    view
}

fn look(root: &Path, at: &Path, view: &mut View) {
    let here = root.join(at);
    let seen = match fs::symlink_metadata(&here) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            view.insert(at.to_owned(), None);
            return;
        }
        Err(error) => panic!("{}: {error}", here.display()),
    };
    let names = seen.is_dir().then(|| {
        let mut names: Vec<String> =
            fs::read_dir(&here).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    });
    let all = names.iter().flatten().map(String::as_str).chain(NAMES.into_iter().filter(|_| names.is_some()));
    let mut all: Vec<String> = all.map(str::to_owned).collect();
    all.sort();
    all.dedup();
    let of = Seen {
        ino: seen.ino(),
        mode: seen.mode() & 0o7777,
        nlink: seen.nlink(),
        owner: (seen.uid(), seen.gid()),
        size: seen.size(),
        mtime: (seen.mtime(), seen.mtime_nsec()),
        ctime: (seen.ctime(), seen.ctime_nsec()),
        names,
    };
    view.insert(at.to_owned(), Some(of));
    all.iter().for_each(|name| look(root, &at.join(name), view));
}

/// The same by a client that keeps nothing.
fn truth(cluster: &Cluster, fs: &ClientFs) -> View {
    let mut view = View::new();
    let root = cluster.block_on(fs.getattr(Ino::ROOT)).unwrap();
    look_uncached(cluster, fs, root, Path::new(""), &mut view);
    view
}

fn look_uncached(cluster: &Cluster, fs: &ClientFs, attr: Attr, at: &Path, view: &mut View) {
    let names = (attr.kind == FileKind::Directory).then(|| {
        let listing = cluster.block_on(fs.readdir(attr.ino, 0, 1_000)).unwrap().listing;
        let name = |listed: &burstfs_proto::mds::ListingEntry| listed.name.as_bytes().to_vec();
        let mut names: Vec<String> =
            listing.entries.iter().map(|listed| String::from_utf8(name(listed)).unwrap()).collect();
        names.sort();
        names
    });
    let of = Seen {
        ino: attr.ino.get(),
        mode: u32::from(attr.mode),
        nlink: u64::from(attr.nlink),
        owner: (attr.uid, attr.gid),
        size: attr.size,
        mtime: (attr.mtime.secs, i64::from(attr.mtime.nanos)),
        ctime: (attr.ctime.secs, i64::from(attr.ctime.nanos)),
        names: names.clone(),
    };
    view.insert(at.to_owned(), Some(of));
    let Some(listed) = names else { return };
    let mut all: Vec<String> = listed.iter().cloned().chain(NAMES.map(str::to_owned)).collect();
    all.sort();
    all.dedup();
    for name in all {
        match cluster.block_on(fs.lookup(attr.ino, name.as_bytes())) {
            Ok(child) => look_uncached(cluster, fs, child, &at.join(name), view),
            Err(error) => {
                assert!(error.is_gone(), "{error}");
                view.insert(at.join(name), None);
            }
        }
    }
}

/// What is done, on one node; paths are below its mount.
#[derive(Clone, Debug)]
enum Act {
    Create(usize),
    Mkdir(usize),
    Symlink(usize),
    Fifo(usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize),
    Exchange(usize, usize),
    Link(usize, usize),
    Chmod(usize, u32),
    Chown(usize, u32),
    Touch(usize, i64),
    Truncate(usize, u64),
    Append(usize),
}

/// Two directories with names in them, and names in the root.
fn paths() -> Vec<PathBuf> {
    let inner = ["d", "e"].into_iter().flat_map(|dir| ["a", "b", "c"].map(|name| Path::new(dir).join(name)));
    NAMES.iter().map(PathBuf::from).chain(inner).collect()
}

fn act() -> impl Strategy<Value = Act> {
    let path = || 0..paths().len();
    prop_oneof![
        4 => path().prop_map(Act::Create),
        3 => path().prop_map(Act::Mkdir),
        1 => path().prop_map(Act::Symlink),
        1 => path().prop_map(Act::Fifo),
        3 => path().prop_map(Act::Unlink),
        2 => path().prop_map(Act::Rmdir),
        4 => (path(), path()).prop_map(|(from, to)| Act::Rename(from, to)),
        1 => (path(), path()).prop_map(|(from, to)| Act::Exchange(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Act::Link(from, to)),
        2 => (path(), 0_u32..0o1000).prop_map(|(path, mode)| Act::Chmod(path, 0o700 | mode)),
        1 => (path(), 0_u32..9).prop_map(|(path, uid)| Act::Chown(path, uid)),
        2 => (path(), 0_i64..2).prop_map(|(path, time)| Act::Touch(path, time)),
        1 => (path(), 0_u64..9).prop_map(|(path, size)| Act::Truncate(path, size)),
        2 => path().prop_map(Act::Append),
    ]
}

/// Does it; many are refused, which is as good.
fn perform(root: &Path, act: &Act) {
    let path = |index: &usize| root.join(&paths()[*index]);
    let _ = match act {
        Act::Create(at) => OpenOptions::new().write(true).create_new(true).open(path(at)).map(drop),
        Act::Mkdir(at) => fs::DirBuilder::new().mode(0o755).create(path(at)),
        Act::Symlink(at) => symlink("nowhere", path(at)),
        Act::Fifo(at) => rustix::fs::mknodat(CWD, path(at), FileType::Fifo, Mode::RUSR, 0).map_err(Into::into),
        Act::Unlink(at) => fs::remove_file(path(at)),
        Act::Rmdir(at) => fs::remove_dir(path(at)),
        Act::Rename(from, to) => fs::rename(path(from), path(to)),
        Act::Exchange(from, to) => {
            rustix::fs::renameat_with(CWD, path(from), CWD, path(to), RenameFlags::EXCHANGE).map_err(Into::into)
        }
        Act::Link(from, to) => fs::hard_link(path(from), path(to)),
        Act::Chmod(at, mode) if !path(at).is_symlink() => {
            fs::set_permissions(path(at), PermissionsExt::from_mode(*mode))
        }
        Act::Chmod(..) => Ok(()),
        Act::Chown(at, uid) if !path(at).is_symlink() => {
            rustix::fs::chown(path(at), Some(Uid::from_raw(*uid)), None).map_err(Into::into)
        }
        Act::Chown(..) => Ok(()),
        Act::Touch(at, secs) => {
            let time = Timespec { tv_sec: *secs, tv_nsec: 5 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, path(at), &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
        }
        Act::Truncate(at, size) if path(at).is_file() => truncate(&path(at), *size),
        Act::Append(at) if path(at).is_file() => {
            OpenOptions::new().append(true).open(path(at)).and_then(|mut file| file.write_all(b"more"))
        }
        Act::Truncate(..) | Act::Append(_) => Ok(()),
    };
}

/// By its path, not by an open file.
fn truncate(path: &Path, size: u64) -> std::io::Result<()> {
    nix::unistd::truncate(path, i64::try_from(size).unwrap()).map_err(Into::into)
}

/// Waits until what a close leaves to be done in the background is done: times and sizes are then leased again.
fn settle(mount: &Mounted) {
    view(mount.path());
    view(mount.path());
}

#[test]
fn what_one_node_does_every_other_sees_whatever_it_has_cached() {
    let ([here, there], cluster) = mounts::<2>();
    let uncached = cluster.client(0).gathering();
    for dir in ["d", "e"] {
        fs::create_dir(here.join(dir)).unwrap();
    }
    // Each operation once by itself, on what is and on what is not, each after both have cached all.
    let ways: Vec<Act> = vec![
        Act::Create(5),
        Act::Append(5),
        Act::Chmod(5, 0o640),
        Act::Chown(5, 3),
        Act::Touch(5, 1),
        Act::Truncate(5, 2),
        Act::Link(5, 8),
        Act::Rename(5, 6),
        Act::Rename(6, 9),
        Act::Rename(9, 0),
        Act::Create(6),
        Act::Rename(6, 8),
        Act::Create(5),
        Act::Exchange(5, 0),
        Act::Exchange(0, 8),
        Act::Unlink(8),
        Act::Symlink(8),
        Act::Fifo(9),
        Act::Mkdir(6),
        Act::Rename(6, 10),
        Act::Rmdir(10),
        Act::Touch(3, 0),
        Act::Chmod(3, 0o711),
        Act::Rename(3, 1),
        Act::Rename(1, 3),
        Act::Unlink(0),
        Act::Unlink(5),
    ];
    for (turn, act) in ways.iter().enumerate() {
        for mount in [&here, &there] {
            settle(mount);
        }
        let by = if turn % 2 == 0 { &here } else { &there };
        perform(by.path(), act);
        let expected = truth(&cluster, &uncached);
        assert_eq!(view(there.path()), expected, "the second node after {act:?}");
        assert_eq!(view(here.path()), expected, "the first node after {act:?}");
    }
}

#[test]
fn random_changes_on_three_nodes_are_seen_by_all() {
    let (mounts, cluster) = mounts::<3>();
    change_at_random(&mounts, &cluster);
}

#[test]
fn so_are_those_of_directories_that_are_split() {
    own_namespace();
    let policy = MetadataPolicy { split_names: 1, split_contended_names: 1, split_shards: 3 };
    let cluster = Cluster::with_policy(3, policy);
    let mounts: [Mounted; 3] = std::array::from_fn(|node| Mounted::new(cluster.client(node), None, cluster.runtime()));
    change_at_random(&mounts, &cluster);
    let ino = |path: &str| Ino::from_raw(fs::metadata(mounts[0].join(path)).unwrap().ino()).unwrap();
    assert!(cluster.block_on(cluster.client(0).is_spread(ino(""))).unwrap(), "nothing was split");
}

fn change_at_random(mounts: &[Mounted; 3], cluster: &Cluster) {
    let uncached = cluster.client(0).gathering();
    let config = Config { cases: 12, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let acts = prop::collection::vec((0_usize..3, act()), 1..60);
    let result = TestRunner::new(config).run(&acts, |acts| {
        for (node, act) in acts {
            perform(mounts[node].path(), &act);
            let expected = truth(cluster, &uncached);
            for (index, mount) in mounts.iter().enumerate() {
                let seen = view(mount.path());
                prop_assert_eq!(&seen, &expected, "node {} after {:?} on node {}", index, act, node);
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn what_a_split_moves_away_is_taken_back() {
    own_namespace();
    let cluster = Cluster::that_splits(3);
    let mount = |node: usize| Mounted::new(cluster.client(node), None, cluster.runtime());
    let (here, there) = (mount(0), mount(1));
    fs::create_dir(here.join("d")).unwrap();
    let (old, new) = (0..8, 8..60);
    let path = |mount: &Mounted, n: usize| mount.join("d").join(format!("n{n}"));
    for n in old.clone() {
        File::create(path(&here, n)).unwrap();
    }
    // There the kernel has all that is, and of the rest that it is not.
    for n in 0..60 {
        assert_eq!(path(&there, n).exists(), old.contains(&n));
    }
    assert_eq!(fs::read_dir(there.join("d")).unwrap().count(), 8);
    let ino = Ino::from_raw(fs::metadata(here.join("d")).unwrap().ino()).unwrap();
    for n in new {
        File::create(path(&here, n)).unwrap();
        assert!(path(&there, n).exists(), "n{n}");
        assert_eq!(fs::read_dir(there.join("d")).unwrap().count(), n + 1);
    }
    while !cluster.block_on(cluster.client(2).is_spread(ino)).unwrap() {
        std::thread::yield_now();
    }
    for n in 0..60 {
        assert!(path(&there, n).exists());
        fs::rename(path(&here, n), path(&here, 100 + n)).unwrap();
        assert!(!path(&there, n).exists() && path(&there, 100 + n).exists(), "n{n}");
        fs::remove_file(path(&here, 100 + n)).unwrap();
        assert!(!path(&there, 100 + n).exists(), "n{n}");
        assert_eq!(fs::read_dir(there.join("d")).unwrap().count(), 59 - n);
    }
    fs::set_permissions(here.join("d"), PermissionsExt::from_mode(0o711)).unwrap();
    assert_eq!(fs::metadata(there.join("d")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn what_is_cached_costs_no_request() {
    let ([here, there], cluster) = mounts::<2>();
    fs::create_dir_all(here.join("dir/sub")).unwrap();
    for n in 0..20 {
        fs::write(here.join(&format!("dir/f{n}")), "text").unwrap();
    }
    let pass = |mount: &Mounted| {
        let names = fs::read_dir(mount.join("dir")).unwrap().count();
        assert_eq!(names, 21);
        for n in 0..20 {
            assert_eq!(fs::metadata(mount.join(&format!("dir/f{n}"))).unwrap().len(), 4);
            assert!(!mount.join(&format!("dir/none{n}")).exists());
        }
        fs::metadata(mount.join("dir/sub")).unwrap();
    };
    // What was just made is closed in the background, and what a node changed itself is not kept for a moment.
    let asked = |mount: &Mounted| {
        let before = cluster.asked();
        pass(mount);
        cluster.asked() - before
    };
    for mount in [&here, &there] {
        let mut passes = 0;
        while asked(mount) > 0 {
            passes += 1;
            assert!(passes < 200, "every pass asks again");
        }
    }
    assert_eq!((asked(&here), asked(&there)), (0, 0));
    // One change is one change: the rest stays.
    fs::set_permissions(here.join("dir/f3"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(there.join("dir/f3")).unwrap().mode() & 0o7777, 0o600);
    assert!(asked(&there) <= 2);
}

#[test]
fn what_is_taken_back_is_still_there_for_who_uses_it() {
    let ([here, there], _cluster) = mounts::<2>();
    fs::create_dir_all(here.join("d/sub")).unwrap();
    fs::write(here.join("d/f"), "text").unwrap();
    let paths = ["d", "d/sub", "d/f"].map(|path| there.join(path));
    let used = paths.each_ref().map(|path| File::open(path).unwrap());
    // As the working directory's path is asked for, and that of a running program.
    let link = |file: &File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    for turn in 0..5 {
        fs::write(here.join(&format!("new{turn}")), "").unwrap();
        fs::write(here.join(&format!("d/new{turn}")), "").unwrap();
        assert_eq!(used.each_ref().map(link), paths);
    }
    // Looked up again: a directory is the same one still.
    for turn in 5..10 {
        for path in &paths {
            fs::metadata(path).unwrap();
        }
        fs::write(here.join(&format!("d/new{turn}")), "").unwrap();
        assert_eq!([&used[0], &used[1]].map(link), paths[..2]);
    }
}

#[test]
fn a_file_that_grows_is_asked_for_as_long_as_it_is_open() {
    let ([here, there], _cluster) = mounts::<2>();
    fs::write(here.join("f"), "1").unwrap();
    settle(&there);
    let size = || fs::metadata(there.join("f")).unwrap().len();
    let mut file = OpenOptions::new().append(true).open(here.join("f")).unwrap();
    for n in 2..20 {
        file.write_all(b"x").unwrap();
        assert_eq!(size(), n);
    }
    let far = File::options().write(true).open(there.join("f")).unwrap();
    far.set_len(3).unwrap();
    assert_eq!((size(), fs::metadata(here.join("f")).unwrap().len(), file.metadata().unwrap().len()), (3, 3, 3));
    drop((file, far));
    fs::write(here.join("f"), "all of it").unwrap();
    assert_eq!(size(), 9);
}

#[test]
fn two_nodes_that_change_one_directory_never_wait_for_each_other() {
    let ([here, there], cluster) = mounts::<2>();
    fs::create_dir(here.join("d")).unwrap();
    let work = |root: PathBuf, own: usize| {
        for n in 0..150 {
            let (mine, moved) = (root.join(format!("d/{own}-{n}")), root.join(format!("d/m{own}-{n}")));
            // The other's names as well, so that both kernels have all of them.
            let others = root.join(format!("d/{}-{n}", 1 - own));
            let _ = fs::metadata(&others);
            File::create(&mine).unwrap();
            fs::rename(&mine, &moved).unwrap();
            let _ = fs::read_dir(root.join("d")).unwrap().count();
            let _ = fs::remove_file(root.join(format!("d/m{}-{n}", 1 - own)));
            let _ = fs::remove_file(&moved);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(here.path().to_owned(), 0));
        scope.spawn(|| work(there.path().to_owned(), 1));
    });
    for n in 0..150 {
        for own in 0..2 {
            let _ = fs::remove_file(here.join(&format!("d/m{own}-{n}")));
        }
    }
    let expected = truth(&cluster, &cluster.client(0).gathering());
    assert_eq!(view(here.path()), expected);
    assert_eq!(view(there.path()), expected);
}

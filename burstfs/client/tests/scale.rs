//! Directories that are wide, and trees that are deep. Needs root and `/dev/fuse`.
//!
//! `BURSTFS_SCALE_NAMES=1000000 cargo test ... --test scale -- --nocapture` prints the figures of a directory of a million names.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::fs::{AtFlags, Mode, OFlags};
use support::cluster::Cluster;
use support::mount::{Mounted, own_namespace};

const LEVELS: usize = 1_000;
const NAMES: usize = 1_500;

fn mounts(cluster: &Cluster) -> [Mounted; 2] {
    [0, 1].map(|node| Mounted::new(cluster.client(node), None, cluster.runtime()))
}

/// A name of 255 bytes of every kind that there is, which tells `n`.
fn long_name(n: usize) -> Vec<u8> {
    let bytes = (1..=u8::MAX).filter(|byte| *byte != b'/');
    let rest = bytes.cycle().skip(n % 254).take(255 - 8);
    format!("{n:08}").into_bytes().into_iter().chain(rest).collect()
}

#[test]
fn a_directory_of_many_names_of_all_bytes() {
    own_namespace();
    let cluster = Cluster::that_splits(3);
    let [here, there] = mounts(&cluster);
    let count = std::env::var("BURSTFS_SCALE_NAMES").map_or(NAMES, |text| text.parse().unwrap());
    let directory = here.join("wide");
    fs::create_dir(&directory).unwrap();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        let seconds = start.elapsed().as_secs_f64();
        println!("{what} {count} names: {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    };
    let path = |n: usize| directory.join(OsStr::from_bytes(&long_name(n)));
    timed("made", &mut || (0..count).for_each(|n| drop(File::create_new(path(n)).unwrap())));
    let mut listed = Vec::new();
    timed("listed", &mut || {
        let entries = fs::read_dir(there.join("wide")).unwrap();
        listed = entries.map(|entry| entry.unwrap().file_name().into_vec()).collect();
    });
    assert_eq!(listed.len(), count);
    let listed: HashSet<Vec<u8>> = listed.into_iter().collect();
    assert!((0..count).all(|n| listed.contains(&long_name(n))));
    timed("looked up", &mut || (0..count).for_each(|n| assert!(fs::symlink_metadata(path(n)).unwrap().is_file())));
    timed("removed", &mut || (0..count).for_each(|n| fs::remove_file(path(n)).unwrap()));
    fs::remove_dir(there.join("wide")).unwrap();
}

/// Opens the directory `name` in `dir`.
fn below(dir: &OwnedFd, name: &str) -> OwnedFd {
    rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

#[test]
fn a_thousand_levels() {
    own_namespace();
    let cluster = Cluster::that_splits(3);
    let [here, there] = mounts(&cluster);
    let root = |mount: &Mounted| OwnedFd::from(File::open(mount.path()).unwrap());
    let mut dir = root(&here);
    for level in 0..LEVELS {
        let name = format!("level{level}");
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = below(&dir, &name);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    drop(rustix::fs::openat(&dir, "bottom", flags, Mode::RUSR).unwrap());
    // Not into itself, however far below.
    assert!(rustix::fs::renameat(root(&here).as_fd(), "level0", dir.as_fd(), "x").is_err());
    fs::create_dir(there.join("other")).unwrap();
    fs::rename(there.join("level0"), there.join("other/level0")).unwrap();
    let mut dir = below(&root(&there), "other");
    let mut above = Vec::new();
    for level in 0..LEVELS {
        let next = below(&dir, &format!("level{level}"));
        above.push(std::mem::replace(&mut dir, next));
    }
    assert_eq!(rustix::fs::statat(&dir, "bottom", AtFlags::SYMLINK_NOFOLLOW).unwrap().st_size, 0);
    rustix::fs::unlinkat(&dir, "bottom", AtFlags::empty()).unwrap();
    for level in (0..LEVELS).rev() {
        dir = above.pop().unwrap();
        rustix::fs::unlinkat(&dir, format!("level{level}"), AtFlags::REMOVEDIR).unwrap();
    }
    fs::remove_dir(there.join("other")).unwrap();
    assert_eq!(fs::metadata(here.path()).unwrap().nlink(), 2);
}

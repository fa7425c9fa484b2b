//! Trees of all kinds of entries, and what differs between two.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

fn set_times(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn write(path: &Path, len: usize, seed: u8) {
    let data: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    fs::write(path, data).unwrap();
}

/// A tree with everything that can be copied.
pub fn torture(root: &Path, many: usize) {
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    write(&root.join("dir/nothing"), 0, 0);
    for (index, len) in [1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000].iter().enumerate() {
        let path = root.join(format!("dir/len{len}"));
        write(&path, *len, index as u8);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400 + index as u32)).unwrap();
        set_times(&path, 1_000_000_000 + index as i64, 123_456_789);
    }
    write(&root.join("large"), 20 << 20, 9);
    for (index, name) in [b"new\nline".as_slice(), b"\xff\xfe invalid", b" ", b"\\back \"quote\"", b"-rf", &[b'n'; 255]]
        .iter()
        .enumerate()
    {
        write(&root.join("dir").join(OsStr::from_bytes(name)), 100 + index, index as u8);
    }
    write(&root.join("set-id"), 10, 1);
    fs::set_permissions(root.join("set-id"), fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("/nowhere/at all", root.join("dangling")).unwrap();
    symlink("dir", root.join("to-dir")).unwrap();
    set_times(&root.join("dangling"), 999, 5);
    sparse(&root.join("sparse"));
    links(root);
    let mut deep = root.join("deep");
    for _ in 0..40 {
        deep.push("d".repeat(50));
    }
    fs::create_dir_all(&deep).unwrap();
    write(&deep.join("bottom"), 5, 5);
    fs::create_dir(root.join("many")).unwrap();
    for index in 0..many {
        fs::write(root.join(format!("many/file-{index:06}-with-a-name")), format!("{index}")).unwrap();
    }
    write(&root.join("dir/tagged"), 7, 7);
    rustix::fs::setxattr(root.join("dir/tagged"), "user.colour", b"blue\0\xff", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(root.join("dir"), "user.colour", b"red", XattrFlags::empty()).unwrap();
    acls(root);
    fs::set_permissions(root.join("dir/empty"), fs::Permissions::from_mode(0o1555)).unwrap();
    fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o500)).unwrap();
    set_times(&root.join("dir/empty"), -5, 999_999_999);
    set_times(&root.join("dir"), 77, 7);
    set_times(&root.join("many"), 88, 8);
    set_times(&root.join("deep"), 66, 6);
    set_times(root, 55, 5);
}

const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// A file with an access ACL, a directory with both, which some of what is in it does not have.
fn acls(root: &Path) {
    let entry =
        |tag: u16, bits: u16, id: u32| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat();
    let nobody = u32::MAX;
    let entries =
        [entry(1, 7, nobody), entry(2, 6, 1234), entry(4, 5, nobody), entry(16, 4, nobody), entry(32, 0, nobody)];
    let acl = [&[2, 0, 0, 0][..], &entries.concat()].concat();
    for (path, name) in [("dir/tagged", ACLS[0]), ("dir", ACLS[0]), ("dir", ACLS[1])] {
        rustix::fs::setxattr(root.join(path), name, &acl, XattrFlags::empty()).unwrap();
    }
}

fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.write_all_at(&[7; 5000], 1 << 20).unwrap();
    file.write_all_at(&[8; 5000], 40 << 20).unwrap();
    file.set_len(100 << 20).unwrap();
    let hole = File::create(path.with_extension("hole")).unwrap();
    hole.set_len(5 << 20).unwrap();
    let small = File::create(path.with_extension("small")).unwrap();
    small.write_all_at(b"end", 500_000).unwrap();
}

fn links(root: &Path) {
    write(&root.join("link-a"), 1000, 3);
    fs::create_dir(root.join("links")).unwrap();
    for index in 0..5 {
        fs::hard_link(root.join("link-a"), root.join(format!("links/b{index}"))).unwrap();
    }
    write(&root.join("links/empty"), 0, 0);
    fs::hard_link(root.join("links/empty"), root.join("links/empty2")).unwrap();
}

/// All that is compared of an entry, by relative path.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut groups: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        let mut names: Vec<OsString> =
            fs::read_dir(root.join(&below)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let below = below.join(name);
            let path = root.join(&below);
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                todo.push(below.clone());
            }
            let text = entry(&path, &meta);
            found.insert(below.clone(), text);
            if !meta.is_dir() && meta.nlink() > 1 {
                groups.entry(meta.ino()).or_insert(below);
            }
        }
    }
    for (below, text) in &mut found {
        let meta = fs::symlink_metadata(root.join(below)).unwrap();
        if !meta.is_dir() && meta.nlink() > 1 {
            let first = found_first(root, &groups, meta.ino());
            text.push_str(&format!(" group {first}"));
        }
    }
    found
}

fn found_first(_root: &Path, groups: &BTreeMap<u64, PathBuf>, ino: u64) -> String {
    groups[&ino].display().to_string()
}

fn entry(path: &Path, meta: &fs::Metadata) -> String {
    let mut text = format!(
        "mode {:o} owner {}:{} mtime {}.{:09}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    if meta.is_symlink() {
        text.push_str(&format!(" -> {:?}", fs::read_link(path).unwrap()));
    } else if meta.is_file() {
        let hash = xxhash_rust::xxh3::xxh3_128(&fs::read(path).unwrap());
        text.push_str(&format!(
            " size {} {hash:032x} sparse {}",
            meta.len(),
            meta.blocks() * 512 + 65_536 < meta.len()
        ));
    }
    if meta.is_file() || meta.is_dir() {
        let mut value = [0; 100];
        if let Ok(len) = rustix::fs::lgetxattr(path, "user.colour", &mut value[..]) {
            text.push_str(&format!(" colour {:?}", &value[..len]));
        }
        for acl in ACLS {
            if let Ok(len) = rustix::fs::lgetxattr(path, acl, &mut value[..]) {
                text.push_str(&format!(" {acl} {:?}", &value[..len]));
            }
        }
    }
    text
}

/// Panics with the first differences.
pub fn assert_same(source: &Path, target: &Path) {
    let (source, target) = (snapshot(source), snapshot(target));
    let mut differences = Vec::new();
    for (path, text) in &source {
        match target.get(path) {
            Some(other) if other == text => {}
            other => differences.push(format!("{path:?}: {text}\n     became {other:?}")),
        }
    }
    differences.extend(target.keys().filter(|path| !source.contains_key(*path)).map(|path| format!("{path:?} is new")));
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences[..differences.len().min(10)].join("\n")
    );
}

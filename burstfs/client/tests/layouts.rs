//! Layouts as a user meets them: extended attributes, on a real mount. Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use burstfs_types::{Errno, LayoutPolicy};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
use support::cluster::Cluster;
use support::mount::{Mounted, own_namespace};

const LAYOUT: &str = "burstfs.layout";
const INFO: &str = "burstfs.layout.info";

fn mounts<const NODES: usize>(layout: LayoutPolicy) -> ([Mounted; NODES], Cluster) {
    own_namespace();
    let cluster = Cluster::of_job(NODES, layout);
    (std::array::from_fn(|node| Mounted::new(cluster.client(node), None, cluster.runtime())), cluster)
}

fn get(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, name, &mut value).map_err(errno)?;
    Ok(String::from_utf8(value[..len].to_vec()).unwrap())
}

fn set(path: &Path, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::setxattr(path, LAYOUT, value, XattrFlags::empty()).map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from(&io::Error::from(error))
}

/// A file that nobody has written.
fn make(path: &Path) {
    mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap();
}

#[test]
fn a_directorys_layout_is_set_and_seen_on_all_nodes() {
    let ([here, there], _cluster) = mounts(LayoutPolicy::Local);
    let dir = here.join("d");
    fs::create_dir(&dir).unwrap();
    assert_eq!(get(&dir, LAYOUT).unwrap(), "local");
    set(&dir, b"striped:size=64K").unwrap();
    assert_eq!(get(&there.join("d"), LAYOUT).unwrap(), "striped:count=all,size=64KiB");
    fs::write(there.join("d/f"), vec![7; 200_000]).unwrap();
    assert_eq!(get(&dir.join("f"), LAYOUT).unwrap(), "striped:count=2,size=64KiB");
    let info = get(&dir.join("f"), INFO).unwrap();
    assert!(info.contains(r#""kind":"file""#) && info.contains("its directory had it"), "{info}");
    fs::create_dir(dir.join("below")).unwrap();
    assert_eq!(get(&dir.join("below"), LAYOUT).unwrap(), "striped:count=all,size=64KiB");
    rustix::fs::removexattr(&dir, LAYOUT).unwrap();
    assert_eq!(get(&dir, LAYOUT).unwrap(), "local");
    // What is copied with its attributes does not get its layout by that.
    let mut list = [0; 64];
    assert_eq!(rustix::fs::listxattr(&dir, &mut list).unwrap(), 0);
}

#[test]
fn a_files_layout_is_set_before_its_first_byte_and_never_again() {
    let ([here, there], _cluster) = mounts(LayoutPolicy::Auto);
    let file = here.join("f");
    make(&file);
    set(&file, b"striped:count=2,size=128K").unwrap();
    assert_eq!(get(&there.join("f"), LAYOUT).unwrap(), "striped:count=2,size=128KiB");
    set(&file, b"striped:count=2,size=64K").unwrap();
    fs::write(there.join("f"), b"byte").unwrap();
    assert_eq!(set(&file, b"local"), Err(Errno::EEXIST));
    assert_eq!(get(&file, LAYOUT).unwrap(), "striped:count=2,size=64KiB");
    let info = get(&file, INFO).unwrap();
    assert!(info.contains(r#""osts":["#) && info.contains("set on this file"), "{info}");
}

#[test]
fn auto_stripes_what_several_nodes_write_and_says_why() {
    let ([here, there], _cluster) = mounts(LayoutPolicy::Auto);
    let write = |path: &Path| OpenOptions::new().write(true).open(path).unwrap();
    // Both have it open before its first byte.
    make(&here.join("f"));
    let both = [write(&here.join("f")), write(&there.join("f"))];
    both[0].write_all_at(b"one", 0).unwrap();
    both[1].write_all_at(b"two", 1 << 20).unwrap();
    assert_eq!(get(&here.join("f"), LAYOUT).unwrap(), "striped:count=2,size=1MiB");
    let info = get(&there.join("f"), INFO).unwrap();
    assert!(info.contains("striped, since 2 nodes had it open for writing at its first byte"), "{info}");
    // The directory has learnt, and unlearns.
    let at_creation = |name: &str| {
        fs::write(here.join(name), b"bytes").unwrap();
        (get(&here.join(name), LAYOUT).unwrap(), get(&here.join(name), INFO).unwrap())
    };
    let (layout, info) = at_creation("second");
    assert_eq!(layout, "striped:count=2,size=1MiB");
    assert!(info.contains("of the last 1 files of its directory 1 were written by several nodes"), "{info}");
    // The MDT hears of a close a moment later.
    assert!((0..100).any(|n| at_creation(&format!("later{n}")).0 == "local"));
    drop(both);
    assert_eq!(fs::read(there.join("f")).unwrap().len(), (1 << 20) + 3);
}

#[test]
fn what_is_no_layout_is_refused() {
    let ([here], _cluster) = mounts(LayoutPolicy::Auto);
    let dir = here.join("d");
    fs::create_dir(&dir).unwrap();
    let long = vec![b's'; 60_000];
    let hostile = [b"".as_slice(), b"stripe", b"striped:count=0", b"striped:size=3M", b"\xff\xfe", b"local\0", &long];
    for value in hostile {
        assert_eq!(set(&dir, value), Err(Errno::EINVAL), "{:?}", value.escape_ascii().to_string());
    }
    assert_eq!(rustix::fs::setxattr(&dir, INFO, b"{}", XattrFlags::empty()).map_err(errno), Err(Errno::EOPNOTSUPP));
    assert_eq!(get(&dir, "burstfs.other"), Err(Errno::ENODATA));
    std::os::unix::fs::symlink("d", here.join("link")).unwrap();
    let mut value = [0; 64];
    let of_link = rustix::fs::lgetxattr(here.join("link"), LAYOUT, &mut value);
    assert_eq!(of_link.map_err(errno), Err(Errno::ENODATA));
    assert_eq!(get(&dir, LAYOUT).unwrap(), "auto");
}

#[test]
fn who_may_write_may_set_it_and_nobody_else() {
    let ([here], _cluster) = mounts(LayoutPolicy::Auto);
    let dir = here.join("d");
    fs::create_dir(&dir).unwrap();
    let set_as_user = || {
        let script = format!("import os; os.setuid(1234); os.setxattr('{}', '{LAYOUT}', b'local')", dir.display());
        Command::new("python3").args(["-c", &script]).output().unwrap().status.success()
    };
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!set_as_user());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(set_as_user());
    assert_eq!(get(&dir, LAYOUT).unwrap(), "local");
}

/// Two nodes write and read back their own parts of one file at once, each in its own order, as two instances of fsx do.
#[test]
fn two_nodes_work_on_their_parts_of_one_striped_file() {
    const PART: u64 = 3 << 20;
    const STEPS: usize = 400;
    let ([here, there], _cluster) = mounts("striped:size=64K".parse().unwrap());
    File::create(here.join("f")).unwrap();
    let seed = std::process::id() as u64;
    let (mine, theirs) = std::thread::scope(|scope| {
        let parts = [(&here, 0), (&there, PART)].map(|(mount, base)| {
            let path = mount.join("f");
            scope.spawn(move || work_on_part(&path, base, PART, STEPS, seed + base))
        });
        let [mine, theirs] = parts.map(|part| part.join().unwrap());
        (mine, theirs)
    });
    let expected = [mine, theirs].concat();
    for mount in [&here, &there] {
        let mut found = fs::read(mount.join("f")).unwrap();
        found.resize(expected.len(), 0);
        assert!(found == expected, "seed {seed}");
    }
}

/// Random writes, punched holes and reads of `base..base + len`, each read compared; what the part has at the end.
fn work_on_part(path: &Path, base: u64, len: u64, steps: usize, seed: u64) -> Vec<u8> {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut model = vec![0_u8; len as usize];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..steps {
        let offset = random(len);
        let size = (1 + random(300_000)).min(len - offset);
        let range = offset as usize..(offset + size) as usize;
        match random(4) {
            0 | 1 => {
                let data: Vec<u8> = (0..size).map(|n| (n as usize + step) as u8 | 1).collect();
                file.write_all_at(&data, base + offset).unwrap();
                model[range].copy_from_slice(&data);
            }
            2 => {
                let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, punch, base + offset, size).unwrap();
                model[range].fill(0);
            }
            _ => {
                let mut found = vec![0; size as usize];
                let mut got = 0;
                while got < found.len() {
                    match file.read_at(&mut found[got..], base + offset + got as u64).unwrap() {
                        0 => break,
                        n => got += n,
                    }
                }
                // Behind the file's end, which the other node may have moved or not, are zeros.
                assert!(found == model[range], "step {step}, {size} bytes at {offset}, seed {seed}");
            }
        }
    }
    model
}

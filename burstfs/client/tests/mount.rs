//! The file system as programs see it: system calls on real mounts, one or two nodes of an instance in this process.
//! Needs root and `/dev/fuse`; each test has a mount namespace of its own.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use burstfs_client::fuse::SessionEnd;
use burstfs_types::Errno;
use nix::mount::MntFlags;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use support::cluster::CAPACITY;
use support::mount::{Mounted, mounts};

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().map(|error| Errno::from(&error))
}

fn sys<T>(result: rustix::io::Result<T>) -> Option<Errno> {
    errno(result.map_err(io::Error::from))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Directories of `mount` whose homes are on as many MDTs as there are nodes, by the MDT in their inode number.
fn directory_on(mount: &Mounted, mdt: u64) -> std::path::PathBuf {
    for n in 0.. {
        let path = mount.join(&format!("d{mdt}-{n}"));
        fs::create_dir(&path).unwrap();
        if fs::metadata(&path).unwrap().ino() >> 48 == mdt {
            return path;
        }
        fs::remove_dir(&path).unwrap();
    }
    unreachable!()
}

#[test]
fn files_are_written_and_read() {
    let ([mount], _cluster) = mounts();
    let path = mount.join("file");
    let data: Vec<u8> = (0..5_000_000).map(|n| (n % 253) as u8).collect();
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.nlink()), (5_000_000, 1));
    assert!(meta.blocks() * 512 >= 5_000_000);
    fs::write(&path, b"shorter").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"shorter");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"XY", 3).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"shoXYer");
    file.set_len(3).unwrap();
    file.set_len(6).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"sho\0\0\0");
    let mut past_the_end = [0; 10];
    assert_eq!(file.read_at(&mut past_the_end, 100).unwrap(), 0);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), Some(Errno::EEXIST));
}

#[test]
fn one_node_sees_at_once_what_the_other_does() {
    let ([here, there], _cluster) = mounts();
    fs::create_dir_all(here.join("a/b/c")).unwrap();
    for mdt in 0..2 {
        let directory = directory_on(&here, mdt);
        let (mine, theirs) = (directory.join("file"), there.path().join(directory.file_name().unwrap()).join("file"));
        assert_eq!(errno(fs::metadata(&theirs)), Some(Errno::ENOENT));
        fs::write(&mine, b"one").unwrap();
        assert_eq!(fs::read(&theirs).unwrap(), b"one");
        let reader = File::open(&theirs).unwrap();
        let mut writer = OpenOptions::new().append(true).open(&mine).unwrap();
        for round in 0..100_u64 {
            writer.write_all(b"more").unwrap();
            assert_eq!(reader.metadata().unwrap().len(), 3 + (round + 1) * 4);
            let mut last = [0; 4];
            reader.read_exact_at(&mut last, 3 + round * 4).unwrap();
            assert_eq!(&last, b"more");
        }
        OpenOptions::new().write(true).open(&theirs).unwrap().write_all_at(b"ONE", 0).unwrap();
        assert_eq!(&fs::read(&mine).unwrap()[..7], b"ONEmore");
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(&mine).unwrap().mode() & 0o7777, 0o600);
        fs::rename(&theirs, theirs.with_file_name("renamed")).unwrap();
        assert_eq!(names(&directory), ["renamed"]);
        fs::remove_file(directory.join("renamed")).unwrap();
        assert_eq!(names(theirs.parent().unwrap()), Vec::<String>::new());
        assert_eq!(errno(fs::metadata(theirs.with_file_name("renamed"))), Some(Errno::ENOENT));
    }
    assert_eq!(names(&there.join("a/b")), ["c"]);
}

#[test]
fn a_file_truncated_on_one_node_is_short_on_the_other() {
    let ([here, there], _cluster) = mounts();
    fs::write(here.join("f"), vec![7; 100_000]).unwrap();
    let reader = File::open(there.join("f")).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 100_000);
    // By O_TRUNC, by truncate(2) and by ftruncate(2).
    fs::write(here.join("f"), b"xyz").unwrap();
    assert_eq!(reader.metadata().unwrap().len(), 3);
    let mut all = [0; 10];
    assert_eq!(reader.read_at(&mut all, 0).unwrap(), 3);
    nix::unistd::truncate(&here.join("f"), 1).unwrap();
    assert_eq!(reader.read_at(&mut all, 0).unwrap(), 1);
    OpenOptions::new().write(true).open(there.join("f")).unwrap().set_len(5).unwrap();
    assert_eq!(fs::read(here.join("f")).unwrap(), b"x\0\0\0\0");
}

#[test]
fn appends_of_two_nodes_do_not_overwrite_each_other() {
    let (mounts, _cluster) = mounts::<2>();
    let paths = mounts.each_ref().map(|mount| mount.join("log"));
    std::thread::scope(|scope| {
        for (node, path) in paths.iter().enumerate() {
            scope.spawn(move || {
                let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
                let record = [b'a' + node as u8; 8];
                for _ in 0..300 {
                    log.write_all(&record).unwrap();
                }
            });
        }
    });
    let log = fs::read(&paths[0]).unwrap();
    let count = |byte| log.chunks(8).filter(|record| *record == [byte; 8]).count();
    assert_eq!((log.len(), count(b'a'), count(b'b')), (4800, 300, 300));
}

#[test]
fn an_unlinked_file_lives_until_its_last_close_on_any_node() {
    let ([here, there], cluster) = mounts();
    fs::write(here.join("f"), b"still there").unwrap();
    let (mine, theirs) = (File::open(here.join("f")).unwrap(), File::open(there.join("f")).unwrap());
    fs::remove_file(there.join("f")).unwrap();
    assert_eq!(errno(File::open(here.join("f"))), Some(Errno::ENOENT));
    drop(mine);
    let mut text = String::new();
    (&theirs).read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), theirs.metadata().unwrap().nlink()), ("still there", 0));
    drop(theirs);
    // RELEASE is asynchronous, and so is the removal of objects: the device is asked until they are gone.
    while cluster.block_on(cluster.client(0).statfs()).unwrap().used > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_name_replaced_by_rename_keeps_its_open_file() {
    let ([here, there], _cluster) = mounts();
    fs::write(here.join("old"), b"old").unwrap();
    fs::write(here.join("new"), b"new").unwrap();
    let old = File::open(there.join("old")).unwrap();
    fs::rename(here.join("new"), here.join("old")).unwrap();
    let mut three = [0; 3];
    old.read_exact_at(&mut three, 0).unwrap();
    assert_eq!((&three, fs::read(there.join("old")).unwrap().as_slice()), (b"old", b"new".as_slice()));
}

#[test]
fn rename_with_flags() {
    let ([mount], _cluster) = mounts();
    let (a, b) = (mount.join("a"), mount.join("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    let rename = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(sys(rename(RenameFlags::NOREPLACE)), Some(Errno::EEXIST));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!(sys(rename(RenameFlags::WHITEOUT)), Some(Errno::EINVAL));
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/x"), b"").unwrap();
    fs::create_dir(mount.join("e")).unwrap();
    assert_eq!(errno(fs::rename(mount.join("e"), mount.join("d"))), Some(Errno::ENOTEMPTY));
    assert_eq!(errno(fs::rename(mount.join("d"), mount.join("d/y"))), Some(Errno::EINVAL));
    assert_eq!(errno(fs::rename(&a, mount.join("d"))), Some(Errno::EISDIR));
}

#[test]
fn names_move_between_directories_of_different_nodes() {
    let ([here, there], _cluster) = mounts();
    let (first, second) = (directory_on(&here, 0), directory_on(&here, 1));
    fs::write(first.join("f"), b"f").unwrap();
    fs::rename(first.join("f"), second.join("g")).unwrap();
    let seen = there.path().join(second.strip_prefix(here.path()).unwrap());
    assert_eq!(fs::read(seen.join("g")).unwrap(), b"f");
    assert_eq!(errno(fs::metadata(first.join("f"))), Some(Errno::ENOENT));

    // An inode whose name is on another node than it: links, opens, truncation, replacement.
    fs::hard_link(second.join("g"), first.join("h")).unwrap();
    assert_eq!(fs::metadata(seen.join("g")).unwrap().nlink(), 2);
    fs::write(seen.join("g"), b"longer").unwrap();
    assert_eq!(fs::read(first.join("h")).unwrap(), b"longer");
    fs::write(first.join("new"), b"new").unwrap();
    let mut old = File::open(seen.join("g")).unwrap();
    fs::rename(first.join("new"), second.join("g")).unwrap();
    let mut bytes = Vec::new();
    old.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.as_slice(), old.metadata().unwrap().nlink()), (&b"longer"[..], 1));
    let listed = fs::read_dir(&seen).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!(listed.collect::<Vec<_>>(), [3]);
    fs::remove_file(seen.join("g")).unwrap();
    fs::remove_file(first.join("h")).unwrap();
    for directory in [first, second] {
        fs::remove_dir(directory).unwrap();
    }
}

#[test]
fn directories_move_between_nodes_and_never_into_themselves() {
    let ([here, there], _cluster) = mounts();
    let (first, second) = (directory_on(&here, 0), directory_on(&here, 1));
    fs::create_dir_all(first.join("a/b")).unwrap();
    fs::write(first.join("a/b/f"), b"f").unwrap();
    assert!(Command::new("mv").args([first.join("a"), second.join("c")]).status().unwrap().success());
    let seen = there.path().join(second.strip_prefix(here.path()).unwrap());
    assert_eq!(fs::read(seen.join("c/b/f")).unwrap(), b"f");
    assert_eq!(fs::read(seen.join("c/b/../../c/b/f")).unwrap(), b"f");
    assert_eq!(fs::canonicalize(seen.join("c/b/..")).unwrap(), fs::canonicalize(seen.join("c")).unwrap());
    let dot_dot = |dir: &Path| {
        let entries = rustix::fs::Dir::new(File::open(dir).unwrap()).unwrap();
        entries.map(Result::unwrap).find(|entry| entry.file_name() == c"..").unwrap().ino()
    };
    assert_eq!(dot_dot(&seen.join("c")), fs::metadata(&second).unwrap().ino());
    assert_eq!(errno(fs::rename(second.join("c"), second.join("c/b/d"))), Some(Errno::EINVAL));
    assert_eq!(errno(fs::rename(&first, second.join("c"))), Some(Errno::ENOTEMPTY));

    fs::create_dir(first.join("x")).unwrap();
    let exchange = rustix::fs::renameat_with(CWD, first.join("x"), CWD, second.join("c"), RenameFlags::EXCHANGE);
    assert_eq!(sys(exchange), None);
    assert!(here.join(first.join("x/b/f").strip_prefix(here.path()).unwrap().to_str().unwrap()).exists());
    fs::rename(&first, second.join("c/first")).unwrap();
    assert_eq!((fs::metadata(&second).unwrap().nlink(), fs::metadata(seen.join("c")).unwrap().nlink()), (3, 3));
    assert_eq!(fs::read(second.join("c/first/x/b/f")).unwrap(), b"f");
}

#[test]
fn links_and_special_files() {
    let ([here, there], _cluster) = mounts();
    fs::write(here.join("f"), b"data").unwrap();
    fs::hard_link(here.join("f"), here.join("g")).unwrap();
    let (f, g) = (fs::metadata(there.join("f")).unwrap(), fs::metadata(there.join("g")).unwrap());
    assert_eq!((f.ino(), f.nlink(), g.nlink()), (g.ino(), 2, 2));
    fs::remove_file(there.join("f")).unwrap();
    assert_eq!(fs::metadata(here.join("g")).unwrap().nlink(), 1);
    assert_eq!(fs::read(here.join("g")).unwrap(), b"data");
    symlink("g", here.join("s")).unwrap();
    assert_eq!(fs::read_link(there.join("s")).unwrap(), Path::new("g"));
    assert_eq!(fs::read(there.join("s")).unwrap(), b"data");
    symlink("x".repeat(4095), here.join("long")).unwrap();
    assert_eq!(fs::read_link(there.join("long")).unwrap().as_os_str().len(), 4095);
    rustix::fs::mknodat(CWD, here.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(fs::metadata(there.join("fifo")).unwrap().file_type().is_fifo());
    rustix::fs::mknodat(CWD, here.join("plain"), FileType::RegularFile, Mode::RWXU, 0).unwrap();
    fs::write(there.join("plain"), b"bytes").unwrap();
    assert_eq!(fs::read(here.join("plain")).unwrap(), b"bytes");
    for (name, kind, device) in [("null", FileType::CharacterDevice, 0x103), ("loop", FileType::BlockDevice, 0x7_12345)]
    {
        rustix::fs::mknodat(CWD, here.join(name), kind, Mode::RWXU, device).unwrap();
        let meta = fs::metadata(there.join(name)).unwrap();
        assert_eq!((FileType::from_raw_mode(meta.mode()), meta.rdev()), (kind, device));
        // The mount is nodev.
        assert_eq!(errno(File::open(there.join(name))), Some(Errno::EACCES));
    }
    assert_eq!(errno(fs::write(here.join(&"n".repeat(256)), b"")), Some(Errno::ENAMETOOLONG));
    fs::write(here.join(&"n".repeat(255)), b"").unwrap();
}

#[test]
fn modes_owners_and_set_id_bits() {
    let ([here, there], _cluster) = mounts();
    let path = here.join("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || fs::metadata(there.join("f")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o6755);
    // Root may keep them when it writes, but not when it changes the owner.
    OpenOptions::new().write(true).open(&path).unwrap().write_all(b"y").unwrap();
    assert_eq!(mode(), 0o6755);
    std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    assert_eq!((mode(), fs::metadata(&path).unwrap().uid()), (0o755, 1234));
    let as_user = |script: &str| {
        let path = path.as_os_str().to_owned();
        let mut shell = Command::new("setpriv");
        shell.args(["--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", script, "sh"]).arg(path);
        assert!(shell.status().unwrap().success(), "{script}");
    };
    // The mount point itself is only its owner's in real life; here others must get through.
    fs::set_permissions(here.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for script in ["echo a >> $1", "echo a | dd of=$1 conv=notrunc status=none", ": > $1", "truncate -s 7 $1"] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        as_user(script);
        assert_eq!(mode(), 0o777, "{script}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    as_user("! echo a > $1");
    fs::create_dir(here.join("shared")).unwrap();
    std::os::unix::fs::chown(here.join("shared"), None, Some(77)).unwrap();
    fs::set_permissions(here.join("shared"), fs::Permissions::from_mode(0o2777)).unwrap();
    fs::write(there.join("shared/f"), b"").unwrap();
    fs::create_dir(there.join("shared/d")).unwrap();
    assert_eq!(fs::metadata(here.join("shared/f")).unwrap().gid(), 77);
    assert_eq!(fs::metadata(here.join("shared/d")).unwrap().mode() & 0o2000, 0o2000);
}

#[test]
fn times_to_the_nanosecond() {
    let ([here, there], _cluster) = mounts();
    let timespec = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times =
        Timestamps { last_access: timespec(-1, 500_000_000), last_modification: timespec(1 << 33, 123_456_789) };
    for (name, contents) in [("empty", "".as_bytes()), ("full", b"contents")] {
        let path = here.join(name);
        fs::write(&path, contents).unwrap();
        let before = fs::metadata(&path).unwrap();
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let meta = fs::metadata(there.join(name)).unwrap();
        assert_eq!((meta.atime(), meta.atime_nsec()), (-1, 500_000_000));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1 << 33, 123_456_789));
        assert!((meta.ctime(), meta.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
        let age = SystemTime::now().duration_since(fs::metadata(there.join(name)).unwrap().modified().unwrap());
        assert!(age.is_ok_and(|age| age < Duration::from_secs(60)));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert!((after.ctime(), after.ctime_nsec()) >= (meta.ctime(), meta.ctime_nsec()));
    }
    symlink("full", here.join("s")).unwrap();
    rustix::fs::utimensat(CWD, here.join("s"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(fs::symlink_metadata(there.join("s")).unwrap().mtime(), 1 << 33);
}

#[test]
fn extended_attributes() {
    let ([here, there], _cluster) = mounts();
    let (mine, theirs) = (here.join("f"), there.join("f"));
    fs::write(&mine, b"").unwrap();
    let set = |name, value: &[u8], flags| rustix::fs::setxattr(&mine, name, value, flags);
    set("user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(sys(set("user.a", b"1", XattrFlags::CREATE)), Some(Errno::EEXIST));
    assert_eq!(sys(set("user.b", b"1", XattrFlags::REPLACE)), Some(Errno::ENODATA));
    set("user.a", b"longer", XattrFlags::REPLACE).unwrap();
    set("user.big", &[9; 60_000], XattrFlags::empty()).unwrap();
    let mut value = [0; 16];
    assert_eq!(rustix::fs::getxattr(&theirs, "user.a", &mut value).unwrap(), 6);
    assert_eq!(&value[..6], b"longer");
    assert_eq!(rustix::fs::getxattr_query(&theirs, "user.big").unwrap(), 60_000);
    assert_eq!(sys(rustix::fs::getxattr(&theirs, "user.big", &mut value)), Some(Errno::ERANGE));
    let mut list = [0; 64];
    let len = rustix::fs::listxattr(&theirs, &mut list).unwrap();
    let listed: HashSet<_> = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(listed, HashSet::from([b"user.a".as_slice(), b"user.big"]));
    rustix::fs::removexattr(&theirs, "user.a").unwrap();
    assert_eq!(sys(rustix::fs::getxattr(&mine, "user.a", &mut value)), Some(Errno::ENODATA));
    // Version 2, nothing permitted: the kernel passes on only what has this form.
    let capability = [[0, 0, 0, 2].as_slice(), &[0; 16]].concat();
    assert_eq!(sys(set("security.capability", &capability, XattrFlags::empty())), Some(Errno::EOPNOTSUPP));
    assert_eq!(sys(rustix::fs::getxattr_query(&mine, "security.capability")), Some(Errno::ENODATA));
    assert_eq!(sys(set("system.other", b"1", XattrFlags::empty())), Some(Errno::EOPNOTSUPP));
}

#[test]
fn holes_are_sparse_and_can_be_found() {
    let ([here, there], _cluster) = mounts();
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(here.join("f")).unwrap();
    file.write_all_at(b"data", 1 << 20).unwrap();
    file.set_len(4 << 20).unwrap();
    let meta = fs::metadata(there.join("f")).unwrap();
    assert!(meta.len() == 4 << 20 && meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let reader = File::open(there.join("f")).unwrap();
    let seek = |target| rustix::fs::seek(&reader, target);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)).unwrap(), 1 << 20);
    let hole = seek(rustix::fs::SeekFrom::Hole(1 << 20)).unwrap();
    assert!(((1 << 20) + 4..=(1 << 20) + 65_536).contains(&hole), "{hole}");
    assert_eq!(sys(seek(rustix::fs::SeekFrom::Data(2 << 20))), Some(Errno::ENXIO));
    assert_eq!(sys(seek(rustix::fs::SeekFrom::Hole(4 << 20))), Some(Errno::ENXIO));
    assert_eq!(seek(rustix::fs::SeekFrom::End(0)).unwrap(), 4 << 20);
    let mut zeros = vec![1; 4096];
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut zeros).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
}

#[test]
fn fallocate_in_its_modes() {
    let ([here, there], _cluster) = mounts();
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(here.join("f")).unwrap();
    let allocate = |mode, offset, len| rustix::fs::fallocate(&file, mode, offset, len);
    let size = || fs::metadata(there.join("f")).unwrap().len();
    allocate(FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(size(), 1 << 20);
    assert!(fs::metadata(there.join("f")).unwrap().blocks() * 512 >= 1 << 20);
    allocate(FallocateFlags::KEEP_SIZE, 0, 2 << 20).unwrap();
    assert_eq!(size(), 1 << 20);
    file.write_all_at(&[5; 12_288], 0).unwrap();
    allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096).unwrap();
    let data = fs::read(there.join("f")).unwrap();
    assert!(data[..4096] == [5; 4096] && data[4096..8192] == [0; 4096] && data[8192..12_288] == [5; 4096]);
    allocate(FallocateFlags::ZERO_RANGE, 1 << 20, 4096).unwrap();
    assert_eq!(size(), (1 << 20) + 4096);
    assert_eq!(sys(allocate(FallocateFlags::COLLAPSE_RANGE, 0, 4096)), Some(Errno::EOPNOTSUPP));
}

#[test]
fn statfs_tells_of_the_whole_instance() {
    let ([mount, _other], _cluster) = mounts();
    let before = rustix::fs::statvfs(mount.path()).unwrap();
    assert_eq!(before.f_blocks * before.f_frsize, 2 * CAPACITY);
    assert!(before.f_bavail <= before.f_bfree && before.f_bfree <= before.f_blocks);
    assert_eq!(before.f_namemax, 255);
    fs::write(mount.join("f"), vec![1; 8 << 20]).unwrap();
    let after = rustix::fs::statvfs(mount.path()).unwrap();
    assert!(before.f_bfree - after.f_bfree >= (8 << 20) / before.f_frsize);
    assert!(before.f_files > before.f_ffree);
}

#[test]
fn a_full_ost_says_so() {
    let ([mount], _cluster) = mounts();
    let file = File::create(mount.join("f")).unwrap();
    assert_eq!(sys(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 * CAPACITY)), Some(Errno::ENOSPC));
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, CAPACITY - (1 << 20)).unwrap();
    let full = fs::write(mount.join("g"), vec![1; 8 << 20]);
    assert_eq!(errno(full), Some(Errno::ENOSPC));
}

#[test]
fn a_write_that_promises_durability_is_synced_before_it_returns() {
    let ([here, there], cluster) = mounts();
    let open = |path: &Path, flags: i32| {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path).unwrap()
    };
    File::create(here.join("f")).unwrap();
    // Node 0 holds the file, so what node 1 writes goes through both daemons.
    for (flags, synced) in [(0, 0), (libc::O_DSYNC, 1), (libc::O_SYNC, 1), (libc::O_APPEND, 0)] {
        let file = open(&there.join("f"), flags);
        file.write_all_at(b"bytes", 0).unwrap();
        assert_eq!(cluster.take_syncs(), [synced, 0], "{flags:#o}");
    }
    // An append goes through the daemon on the file's own node, too.
    let mut appended = open(&here.join("f"), libc::O_APPEND | libc::O_SYNC);
    appended.write_all(b"more").unwrap();
    assert_eq!(cluster.take_syncs(), [1, 0]);
    let plain = open(&there.join("f"), 0);
    let bytes = [io::IoSlice::new(b"once")];
    rustix::io::pwritev2(&plain, &bytes, 0, rustix::io::ReadWriteFlags::DSYNC).unwrap();
    assert_eq!(cluster.take_syncs(), [1, 0]);
    // Of a striped file just the objects that were written are synced.
    rustix::fs::setxattr(here.path(), "burstfs.layout", b"striped:count=2,size=64K", XattrFlags::empty()).unwrap();
    let striped = open(&here.join("striped"), libc::O_DSYNC);
    striped.write_all_at(&[1; 10], 0).unwrap();
    assert_eq!(cluster.take_syncs().iter().sum::<usize>(), 1);
    striped.write_all_at(&[1; 1 << 17], 0).unwrap();
    assert_eq!(cluster.take_syncs(), [1, 1]);
}

#[test]
fn a_listing_of_thousands_of_entries_while_it_changes() {
    const STEADY: usize = 5_000;
    let ([here, there], _cluster) = mounts();
    let directory = directory_on(&here, 1);
    for n in 0..STEADY {
        File::create(directory.join(format!("steady{n}"))).unwrap();
    }
    let theirs = there.path().join(directory.file_name().unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                File::create(directory.join(format!("passing{n}"))).unwrap();
                fs::remove_file(directory.join(format!("passing{n}"))).unwrap();
            }
        });
        for _ in 0..3 {
            let listed: Vec<OsString> =
                fs::read_dir(&theirs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let distinct: HashSet<_> = listed.iter().collect();
            assert_eq!(distinct.len(), listed.len(), "an entry was listed twice");
            let steady = listed.iter().filter(|name| name.to_str().unwrap().starts_with("steady")).count();
            assert_eq!(steady, STEADY);
        }
        done.store(true, Ordering::Relaxed);
    });
    let removed: Vec<_> = fs::read_dir(&theirs).unwrap().map(|entry| fs::remove_file(entry.unwrap().path())).collect();
    assert!(removed.len() >= STEADY && removed.iter().all(Result::is_ok));
    assert!(names(&directory).is_empty());
    fs::remove_dir(&directory).unwrap();
}

#[test]
fn directories() {
    let ([here, there], _cluster) = mounts();
    fs::create_dir(here.join("d")).unwrap();
    assert_eq!(errno(fs::create_dir(there.join("d"))), Some(Errno::EEXIST));
    fs::write(there.join("d/f"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(here.join("d"))), Some(Errno::ENOTEMPTY));
    assert_eq!(errno(fs::remove_file(here.join("d"))), Some(Errno::EISDIR));
    assert_eq!(errno(fs::remove_dir(here.join("d/f"))), Some(Errno::ENOTDIR));
    assert_eq!(errno(fs::write(here.join("d/f/g"), b"")), Some(Errno::ENOTDIR));
    fs::create_dir(here.join("d/sub")).unwrap();
    assert_eq!(fs::metadata(there.join("d")).unwrap().nlink(), 3);
    File::open(here.join("d")).unwrap().sync_all().unwrap();
    let mut dots = rustix::fs::Dir::read_from(File::open(here.join("d")).unwrap()).unwrap();
    let first = [dots.next().unwrap().unwrap(), dots.next().unwrap().unwrap()];
    assert_eq!(first.each_ref().map(|entry| entry.file_name()), [c".", c".."]);
    assert_eq!(first[0].ino(), fs::metadata(here.join("d")).unwrap().ino());
    fs::remove_dir_all(here.join("d")).unwrap();
    assert!(names(there.path()).is_empty());
}

#[test]
fn programs_run_from_the_mount() {
    let ([here, there], _cluster) = mounts();
    fs::copy("/bin/echo", here.join("echo")).unwrap();
    let said = Command::new(there.join("echo")).arg("hello").output().unwrap();
    assert_eq!(said.stdout, b"hello\n");
    fs::write(there.join("script"), "#!/bin/sh\nexec cat \"$0\"\n").unwrap();
    fs::set_permissions(there.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new(here.join("script")).output().unwrap().status.success());
}

#[test]
fn of_another_nodes_files_private_mappings_work_and_shared_ones_are_refused() {
    const LEN: usize = 8192;
    let ([here, there], _cluster) = mounts();
    fs::write(there.join("f"), vec![3; LEN]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(here.join("f")).unwrap();
    let map = |flags| {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody.
        unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, file.as_raw_fd(), 0) }
    };
    assert_eq!(map(libc::MAP_SHARED), libc::MAP_FAILED);
    assert_eq!(errno::<()>(Err(io::Error::last_os_error())), Some(Errno::ENODEV));
    let memory = map(libc::MAP_PRIVATE);
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping is LEN bytes long, and `bytes` is not used after it is unmapped below.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), LEN) };
    assert!(bytes.iter().all(|byte| *byte == 3));
    bytes.fill(4);
    assert_eq!(fs::read(here.join("f")).unwrap(), vec![3; LEN]);
    // SAFETY: the mapping is the one made above.
    assert_eq!(unsafe { libc::munmap(memory, LEN) }, 0);
}

#[test]
fn direct_io_to_another_nodes_files_needs_no_alignment() {
    let ([here, there], _cluster) = mounts();
    let direct = libc::O_DIRECT;
    File::create(here.join("f")).unwrap();
    let file = OpenOptions::new().write(true).custom_flags(direct).open(there.join("f"));
    file.unwrap().write_all(b"odd").unwrap();
    let mut text = String::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(direct)
        .open(there.join("f"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "odd");
}

#[test]
fn a_session_ends_with_its_mount_and_closes_what_was_open() {
    let ([here, there], cluster) = mounts();
    fs::write(here.join("f"), b"data").unwrap();
    let open = File::open(here.join("f")).unwrap();
    fs::remove_file(there.join("f")).unwrap();
    // A forced unmount of a busy mount aborts its connection, and says that it is busy.
    let forced = nix::mount::umount2(here.path(), MntFlags::MNT_FORCE);
    assert_eq!(forced, Err(nix::errno::Errno::EBUSY));
    assert!(matches!(here.unmount(MntFlags::MNT_DETACH), SessionEnd::Unmounted));
    assert!(open.metadata().is_err());
    // The file that only the aborted mount had open is closed: its objects go.
    while cluster.block_on(cluster.client(1).statfs()).unwrap().used > 0 {
        std::thread::yield_now();
    }
    assert!(matches!(there.unmount(MntFlags::empty()), SessionEnd::Unmounted));
}

#[test]
fn what_is_not_there_says_so() {
    let ([here, _there], _cluster) = mounts::<2>();
    let unnamed = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(here.path());
    assert_eq!(errno(unnamed), Some(Errno::EOPNOTSUPP));
    fs::write(here.join("f"), b"0123456789").unwrap();
    let (source, target) = (File::open(here.join("f")).unwrap(), File::create(here.join("g")).unwrap());
    assert_eq!(rustix::fs::ioctl_getflags(&source).unwrap_err(), rustix::io::Errno::NOTTY);
    assert_eq!(rustix::fs::copy_file_range(&source, Some(&mut 2), &target, Some(&mut 0), 5).unwrap(), 5);
    assert_eq!(fs::read(here.join("g")).unwrap(), b"23456");
    rustix::fs::syncfs(&target).unwrap();
    let statx = rustix::fs::statx(CWD, here.join("f"), AtFlags::empty(), rustix::fs::StatxFlags::ALL).unwrap();
    assert_eq!((statx.stx_size, statx.stx_mask & rustix::fs::StatxFlags::BTIME.bits()), (10, 0));
}

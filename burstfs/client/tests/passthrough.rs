//! Files that live on the node itself, whose bytes the kernel reads and writes without the client: system calls on real
//! mounts, while other nodes of the instance use the same files. Needs root and `/dev/fuse`.

#![allow(clippy::unwrap_used)] // clippy.toml's exception ends at a test's helpers

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burstfs_types::Errno;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate};
use support::cluster::{CAPACITY, Cluster};
use support::mount::{LocalFiles, Mounted, SmallDevice, mounts, own_namespace};

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().map(|error| Errno::from(&error))
}

fn sys<T>(result: rustix::io::Result<T>) -> Option<Errno> {
    errno(result.map_err(io::Error::from))
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A shared mapping of a file, unmapped when dropped.
struct Mapped {
    memory: *mut libc::c_void,
    len: usize,
}

impl Mapped {
    fn new(file: &File, len: usize) -> io::Result<Mapped> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapped { memory, len }) }
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: within the mapping, which others may change at any time.
        unsafe { self.memory.cast::<u8>().add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: as in `get`.
        unsafe { self.memory.cast::<u8>().add(at).write_volatile(byte) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is the one that was made, and nothing refers into it.
        unsafe { libc::munmap(self.memory, self.len) };
    }
}

#[test]
fn sizes_and_bytes_are_right_elsewhere_while_a_local_writer_writes() {
    let ([here, there], _cluster) = mounts();
    let mine = read_write(&here.join("f"));
    let theirs = read_write(&there.join("f"));
    for round in 0..200_u64 {
        let (mut seen, byte) = ([0; 100], round as u8);
        mine.write_all_at(&[byte; 100], round * 200).unwrap();
        assert_eq!(fs::metadata(there.join("f")).unwrap().len(), round * 200 + 100);
        theirs.read_exact_at(&mut seen, round * 200).unwrap();
        assert_eq!(seen, [byte; 100]);
        theirs.write_all_at(&[byte; 100], round * 200 + 100).unwrap();
        assert_eq!(mine.metadata().unwrap().len(), round * 200 + 200);
        mine.read_exact_at(&mut seen, round * 200 + 100).unwrap();
        assert_eq!(seen, [byte; 100]);
    }
    theirs.set_len(150).unwrap();
    assert_eq!(mine.read_at(&mut [0; 100], 150).unwrap(), 0);
    mine.write_all_at(b"end", 1000).unwrap();
    let all = fs::read(there.join("f")).unwrap();
    assert!(all.len() == 1003 && all[150..1000].iter().all(|byte| *byte == 0));
    mine.set_len(10).unwrap();
    assert_eq!(fs::metadata(there.join("f")).unwrap().len(), 10);
}

#[test]
fn shared_mappings_are_of_the_one_page_cache() {
    const LEN: usize = 3 * 4096;
    let ([here, there], _cluster) = mounts();
    let (mine, theirs) = (read_write(&here.join("f")), read_write(&there.join("f")));
    mine.set_len(LEN as u64).unwrap();
    let mapped = Mapped::new(&mine, LEN).unwrap();
    let mut byte = [0];
    for at in (0..LEN).step_by(511) {
        mapped.set(at, 7);
        theirs.read_exact_at(&mut byte, at as u64).unwrap();
        assert_eq!(byte, [7]);
        theirs.write_all_at(&[8], at as u64).unwrap();
        assert_eq!(mapped.get(at), 8);
        mine.write_all_at(&[9], at as u64).unwrap();
        assert_eq!(mapped.get(at), 9);
    }
    // One that is appended to through the client is mapped all the same.
    let appender = OpenOptions::new().read(true).append(true).open(here.join("f")).unwrap();
    assert_eq!(Mapped::new(&appender, LEN).unwrap().get(0), 9);
    assert_eq!(errno(Mapped::new(&theirs, LEN)), Some(Errno::ENODEV));
    // A mapping outlives its descriptor, and the file's name.
    drop((mine, appender));
    fs::remove_file(there.join("f")).unwrap();
    drop(theirs);
    mapped.set(1, 5);
    assert_eq!((mapped.get(0), mapped.get(1)), (9, 5));
}

#[test]
fn opens_of_all_kinds_at_once_never_disagree() {
    const THREADS: usize = 8;
    let ([here, there], _cluster) = mounts();
    fs::write(here.join("f"), vec![1; 8192]).unwrap();
    let kinds: [(i32, bool); 6] = [
        (libc::O_RDONLY, false),
        (libc::O_RDWR, false),
        (libc::O_WRONLY | libc::O_APPEND, false),
        (libc::O_RDWR | libc::O_DIRECT, false),
        (libc::O_RDONLY | libc::O_NONBLOCK, true),
        (libc::O_WRONLY | libc::O_TRUNC, false),
    ];
    let open = |(flags, is_there): (i32, bool)| {
        let path = if is_there { there.join("f") } else { here.join("f") };
        let mut options = OpenOptions::new();
        let access = flags & libc::O_ACCMODE;
        options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
        options.custom_flags(flags & !libc::O_ACCMODE).open(path)
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..400 {
                    let kind = kinds[(thread * 5 + round * 7) % kinds.len()];
                    let file = open(kind).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
                    if kind.0 & libc::O_ACCMODE != libc::O_RDONLY && kind.0 & libc::O_DIRECT == 0 {
                        (&file).write_all(b"x").unwrap();
                    }
                    held.push(file);
                    // Now and then nobody has it open, so that the next open decides anew.
                    if round % 5 == thread % 5 {
                        held.clear();
                    }
                }
            });
        }
    });
}

#[test]
fn opens_from_before_and_after_a_file_has_a_place_never_disagree() {
    let ([here], _cluster) = mounts();
    for round in 0..60 {
        let path = here.join(&format!("f{round}"));
        let (kind, mode) = (rustix::fs::FileType::RegularFile, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        std::thread::scope(|scope| {
            for byte in 0..6 {
                let path = &path;
                scope.spawn(move || {
                    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                    file.write_all_at(&[byte], u64::from(byte)).unwrap();
                    drop(OpenOptions::new().read(true).open(path).unwrap());
                });
            }
        });
        assert_eq!(fs::read(&path).unwrap(), [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn the_kernels_copies_and_allocations_are_seen_everywhere() {
    let ([here, there], _cluster) = mounts();
    let data: Vec<u8> = (0..300_000).map(|n| (n % 251) as u8).collect();
    fs::write(here.join("a"), &data).unwrap();
    let (source, target) = (File::open(here.join("a")).unwrap(), read_write(&here.join("b")));
    let copied = rustix::fs::copy_file_range(&source, None, &target, None, data.len()).unwrap();
    assert_eq!(copied, data.len());
    assert!(fs::read(there.join("b")).unwrap() == data);
    let sent = read_write(&here.join("c"));
    let (mut at, mut left) = (0, data.len());
    while left > 0 {
        left -= rustix::fs::sendfile(&sent, &source, Some(&mut at), left).unwrap();
    }
    assert!(fs::read(there.join("c")).unwrap() == data);
    // From one node's file to another's.
    fs::write(there.join("d"), b"").unwrap();
    assert_eq!(fs::copy(here.join("a"), here.join("d")).unwrap(), data.len() as u64);
    assert!(fs::read(there.join("d")).unwrap() == data);
    fallocate(&target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).unwrap();
    let mut hole = [1; 4096];
    target.read_exact_at(&mut hole, 0).unwrap();
    assert_eq!(hole, [0; 4096]);
    fallocate(&target, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(fs::metadata(there.join("b")).unwrap().len(), 1 << 20);
}

#[test]
fn appends_from_elsewhere_and_local_writes_do_not_lose_each_other() {
    const RECORDS: usize = 300;
    let ([here, there], _cluster) = mounts();
    let mine = read_write(&here.join("f"));
    mine.set_len(4096).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = OpenOptions::new().append(true).open(there.join("f")).unwrap();
            for _ in 0..RECORDS {
                log.write_all(b"appended").unwrap();
            }
            done.store(true, Ordering::Release);
        });
        // In place, and now and then behind the end: the kernel's own append, as a local program without O_APPEND at its
        // open does it.
        let mut appended = 0;
        rustix::fs::fcntl_setfl(&mine, rustix::fs::OFlags::APPEND).unwrap();
        while !done.load(Ordering::Acquire) {
            (&mine).write_all(b"(local!)").unwrap();
            appended += 1;
        }
        let all = fs::read(here.join("f")).unwrap();
        let count = |what: &[u8]| all[4096..].chunks(8).filter(|record| *record == what).count();
        assert_eq!((count(b"appended"), count(b"(local!)")), (RECORDS, appended));
    });
}

#[test]
fn an_empty_file_that_is_opened_keeps_its_times() {
    let ([here, there], _cluster) = mounts();
    File::create(there.join("theirs")).unwrap();
    File::create(here.join("f")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        here.join("never-opened"),
        rustix::fs::FileType::RegularFile,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    for name in ["f", "never-opened"] {
        let before = fs::metadata(here.join(name)).unwrap();
        let open = read_write(&here.join(name));
        let after = open.metadata().unwrap();
        let times = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.atime(), meta.atime_nsec());
        assert_eq!(times(&before), times(&after), "{name}");
    }
}

#[test]
fn direct_io_is_the_disks_own() {
    let ([here, there], _cluster) = mounts();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(here.join("f"))
        .unwrap();
    let layout = std::alloc::Layout::from_size_align(8192, 4096).unwrap();
    // SAFETY: the layout has a size; the memory is zeroed, stays that long, and is given back with the same layout.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    // SAFETY: as above.
    let block = unsafe { std::slice::from_raw_parts_mut(memory, 8192) };
    block.fill(6);
    file.write_all_at(block, 4096).unwrap();
    assert_eq!(fs::read(there.join("f")).unwrap()[4096..], [6; 8192]);
    OpenOptions::new().write(true).open(there.join("f")).unwrap().write_all_at(&[5; 4096], 0).unwrap();
    file.read_exact_at(block, 0).unwrap();
    assert!(block[..4096].iter().all(|byte| *byte == 5) && block[4096..].iter().all(|byte| *byte == 6));
    // SAFETY: as above; `block` is not used any more.
    unsafe { std::alloc::dealloc(memory, layout) };
}

/// close(2) with its result, which Rust's own throws away.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is this function's, and not used afterwards.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn what_the_kernel_writes_beyond_the_share_is_told_at_fsync_and_close() {
    const MIB: u64 = 1 << 20;
    let ([here, there], cluster) = mounts();
    let early = read_write(&here.join("early"));
    early.write_all_at(&[1; 4096], 0).unwrap();
    let filler = read_write(&here.join("filler"));
    fallocate(&filler, FallocateFlags::empty(), 0, CAPACITY - 8 * MIB).unwrap();
    // Near the end of the share writes go through the OST: they end there.
    let late = read_write(&here.join("late"));
    let mut written = 0;
    let full = loop {
        match late.write_at(&vec![2; MIB as usize], written) {
            Ok(count) => written += count as u64,
            Err(error) => break error,
        }
        assert!(written <= 8 * MIB);
    };
    assert_eq!((Errno::from(&full), errno(late.sync_all())), (Errno::ENOSPC, None));
    assert_eq!(errno(close(late)), None);
    // A file that was open before is the kernel's until it is closed.
    early.write_all_at(&vec![1; 2 * MIB as usize], 0).unwrap();
    assert_eq!(errno(early.sync_all()), Some(Errno::ENOSPC));
    assert_eq!(errno(close(early.try_clone().unwrap())), Some(Errno::ENOSPC));
    let statfs = cluster.block_on(cluster.client(0).statfs()).unwrap();
    assert!(statfs.used > CAPACITY, "{statfs:?}");
    assert_eq!(rustix::fs::statvfs(there.path()).unwrap().f_bfree, CAPACITY / 4096 - (statfs.used - CAPACITY) / 4096);
    // Nobody gets more meanwhile, and what is there can be read and removed.
    assert_eq!(errno(fs::write(there.join("late"), vec![3; 10 * MIB as usize])), Some(Errno::ENOSPC));
    assert_eq!(fs::read(there.join("early")).unwrap(), vec![1; 2 * MIB as usize]);
    assert_eq!(sys(fallocate(&filler, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 16 * MIB)), None);
    assert_eq!((errno(early.sync_all()), errno(close(early))), (None, None));
}

#[test]
fn a_full_device_is_told_to_the_write() {
    own_namespace();
    let device = SmallDevice::new(64 << 20);
    let cluster = Cluster::new_in(1, &device.path());
    let local = LocalFiles { ost: cluster.osts()[0].clone(), data: cluster.directory() };
    let mount = Mounted::new(cluster.client(0), Some(local), cluster.runtime());
    fs::write(mount.join("other"), vec![1; 8 << 20]).unwrap();
    let file = read_write(&mount.join("f"));
    let fill = |mut end: u64| loop {
        match file.write_at(&vec![2; 1 << 20], end) {
            Ok(count) => end += count as u64,
            Err(error) => break (end, Errno::from(&error)),
        }
    };
    let (end, full) = fill(0);
    assert!(full == Errno::ENOSPC && end > 20 << 20, "{end} {full}");
    assert_eq!((errno(file.sync_all()), file.metadata().unwrap().len()), (None, end));
    assert!(fs::read(mount.join("f")).unwrap().iter().all(|byte| *byte == 2));
    assert!(rustix::fs::statvfs(mount.path()).unwrap().f_bavail < 1 << 8);
    // Space comes back, though the kernel may still know the file.
    fs::remove_file(mount.join("other")).unwrap();
    while fill(end).0 < end + (4 << 20) {
        std::thread::yield_now();
    }
    assert_eq!(errno(close(file)), None);
}

#[test]
fn every_way_to_write_is_told_that_the_device_is_full() {
    own_namespace();
    let device = SmallDevice::new(64 << 20);
    let cluster = Cluster::new_in(2, &device.path());
    let local = |node: usize| LocalFiles { ost: cluster.osts()[node].clone(), data: cluster.directory() };
    let [here, there]: [Mounted; 2] =
        std::array::from_fn(|node| Mounted::new(cluster.client(node), Some(local(node)), cluster.runtime()));
    fs::create_dir(here.join("striped")).unwrap();
    rustix::fs::setxattr(here.join("striped"), "burstfs.layout", b"striped:size=64K", XattrFlags::empty()).unwrap();
    let names = ["own", "striped/f"];
    for name in names {
        fs::write(here.join(name), b"before").unwrap();
    }
    // To the last block, so that nothing that needs one can be done.
    let filler = read_write(&here.join("filler"));
    let mut end = 0;
    for step in [1 << 20, 64 << 10, 4 << 10] {
        while filler.write_all_at(&vec![1; step], end).is_ok() {
            end += step as u64;
        }
    }
    filler.sync_all().unwrap();
    let flags = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).clone();
    let data = vec![7; 1 << 20];
    for (mount, node) in [(&here, 0), (&there, 1)] {
        for name in names {
            let path = mount.join(name);
            let open = |options: OpenOptions| options.open(&path).unwrap();
            let ways: [(&str, Option<Errno>); 5] = [
                ("write", errno(open(flags(0)).write_all_at(&data, 8 << 20))),
                ("O_DSYNC", errno(open(flags(libc::O_DSYNC)).write_all_at(&data, 8 << 20))),
                ("O_APPEND", errno(open(flags(libc::O_APPEND)).write_all(&data))),
                ("fallocate", sys(fallocate(open(flags(0)), FallocateFlags::empty(), 8 << 20, 1 << 20))),
                ("copy", errno(io::copy(&mut data.as_slice(), &mut open(flags(libc::O_APPEND))))),
            ];
            for (way, told) in ways {
                assert_eq!(told, Some(Errno::ENOSPC), "{way} to {name} on node {node}");
            }
            // What there was is there, also on the device.
            let file = open(flags(0));
            let mut before = [0; 6];
            file.read_exact_at(&mut before, 0).unwrap();
            assert_eq!((&before, errno(file.sync_all())), (b"before", None), "{name} on node {node}");
        }
        assert_eq!(errno(fs::write(mount.join(&format!("new{node}")), &data)), Some(Errno::ENOSPC));
    }
    filler.set_len(1 << 20).unwrap();
    for name in names {
        for mount in [&here, &there] {
            let file = flags(0).open(mount.join(name)).unwrap();
            file.write_all_at(&data, 8 << 20).unwrap();
            file.sync_all().unwrap();
        }
    }
}

#[test]
fn without_a_broker_files_are_the_same_and_slower() {
    own_namespace();
    let cluster = Cluster::new(1);
    let mount = Mounted::new(cluster.client(0), None, cluster.runtime());
    let file = read_write(&mount.join("f"));
    file.write_all_at(&[4; 10_000], 0).unwrap();
    assert_eq!(fs::read(mount.join("f")).unwrap(), vec![4; 10_000]);
    assert_eq!(errno(Mapped::new(&file, 4096)), Some(Errno::ENODEV));
}

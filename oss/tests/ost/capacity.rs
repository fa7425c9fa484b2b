//! The end of the space: of the OST's share, and of the device.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use burstfs_proto::oss::{AllocateMode, Sync};
use burstfs_types::{Errno, ObjectId};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::support::{allocate, append, call, caller, glimpse, object, open, read, remove, statfs, truncate, write};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn fill(ost: &burstfs_oss::Ost, object: ObjectId, chunk: usize) -> u64 {
    let mut size = 0;
    loop {
        match write(ost, object, size, &vec![7; chunk]) {
            Ok(new_size) => size = new_size,
            Err(Errno::ENOSPC) => return size,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_share_ends_before_the_device_does() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), MIB);
    assert_eq!(fill(&ost, object(1), 64 << 10), MIB);
    let full = statfs(&ost);
    assert_eq!((full.capacity, full.used, full.available), (MIB, MIB, 0));
    assert_eq!(write(&ost, object(2), 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(append(&ost, caller(1), object(1), b"x"), Err(Errno::ENOSPC));
    assert_eq!(glimpse(&ost, object(1)).unwrap().size, MIB);
    assert_eq!(allocate(&ost, object(2), AllocateMode::KeepSize, 0, 1), Err(Errno::ENOSPC));
    // What has blocks can be overwritten, and what costs none can be had.
    write(&ost, object(1), 100 * KIB, &[8; 64 << 10]).unwrap();
    truncate(&ost, object(3), 1 << 40).unwrap();
    // Space comes back.
    allocate(&ost, object(1), AllocateMode::PunchHole, 0, 64 * KIB).unwrap();
    write(&ost, object(2), 0, &[1; 64 << 10]).unwrap();
    assert_eq!(write(&ost, object(1), 0, b"x"), Err(Errno::ENOSPC));
    remove(&ost, object(2));
    write(&ost, object(1), 0, &[1; 64 << 10]).unwrap();
    truncate(&ost, object(1), 0).unwrap();
    assert_eq!(statfs(&ost).used, 0);
    assert_eq!(ost.fatal_error(), None);
}

#[test]
fn what_was_allocated_ahead_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), MIB);
    allocate(&ost, object(1), AllocateMode::Extend, 0, 512 * KIB).unwrap();
    assert_eq!(statfs(&ost).used, 512 * KIB);
    fill(&ost, object(2), 4096);
    write(&ost, object(1), 0, &vec![3; 512 << 10]).unwrap();
    assert_eq!(write(&ost, object(1), 512 * KIB, b"x"), Err(Errno::ENOSPC));
}

#[test]
fn holes_cost_nothing_and_a_restart_counts_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), MIB);
    for n in 1..=50 {
        write(&ost, object(n), 1 << 30, &[1; 4096]).unwrap();
    }
    let before = statfs(&ost);
    // A block of the file system's own may come with each.
    assert!((50 * 4096..=50 * 8192).contains(&before.used), "{before:?}");
    drop(ost);
    let after = statfs(&open(directory.path(), MIB));
    assert_eq!((after.used, after.objects), (before.used, 50));
}

/// Delayed blocks get their places when they are written back, and six extents do not fit in ext4's inode.
#[test]
fn what_a_sync_allocates_is_charged() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), MIB);
    for n in 0..6 {
        write(&ost, object(1), n * 32 * KIB, b"x").unwrap();
    }
    call(&ost, Sync { object: object(1), data_only: true }).unwrap();
    assert_eq!(statfs(&ost).used, glimpse(&ost, object(1)).unwrap().blocks * 512);
}

#[test]
fn concurrent_writers_share_the_last_byte() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 8 * MIB);
    let acknowledged = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 1..=8 {
            let (ost, acknowledged) = (&ost, &acknowledged);
            scope.spawn(move || acknowledged.fetch_add(fill(ost, object(n), 12 << 10), Ordering::Relaxed));
        }
    });
    let acknowledged = acknowledged.into_inner();
    let statfs = statfs(&ost);
    assert!(statfs.used <= 8 * MIB, "{statfs:?}");
    assert!(statfs.used >= acknowledged && 8 * MIB - acknowledged < 12 * KIB, "{acknowledged} {statfs:?}");
    let sizes: u64 = (1..=8).map(|n| glimpse(&ost, object(n)).unwrap().size).sum();
    assert_eq!(sizes, acknowledged);
}

/// Runs `test` on a device of its own: a tmpfs in a mount namespace that ends with the thread.
fn on_small_device(size: &str, test: impl FnOnce(&Path) + Send) {
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            let directory = tempfile::tempdir().unwrap();
            // SAFETY: no file descriptor table is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("tests run as root");
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let options = std::ffi::CString::new(format!("size={size}")).unwrap();
            mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
            test(directory.path());
            rustix::mount::unmount(directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        });
        done.join().unwrap();
    });
}

#[test]
fn a_full_device_is_told_and_harms_nothing() {
    on_small_device("2m", |directory| {
        let ost = open(&directory.join("ost"), 1 << 40);
        write(&ost, object(1), 0, &[1; 300 << 10]).unwrap();
        append(&ost, caller(1), object(3), &[3; 1000]).unwrap();
        let free = statfs(&ost).available;
        assert!(free < 2 * MIB);
        // A write that begins to fit is refused as a whole.
        assert_eq!(append(&ost, caller(2), object(3), &vec![3; 3 << 20]), Err(Errno::ENOSPC));
        assert_eq!(glimpse(&ost, object(3)).unwrap().size, 1000);
        assert_eq!(statfs(&ost).available, free);
        assert_eq!(write(&ost, object(2), 0, &vec![2; 3 << 20]), Err(Errno::ENOSPC));
        assert_eq!(statfs(&ost).available, 0);
        assert_eq!(append(&ost, caller(3), object(3), &[3; 4000]), Err(Errno::ENOSPC));
        assert_eq!(read(&ost, object(1), 0, 1 << 20), [1; 300 << 10]);
        remove(&ost, object(2));
        assert_eq!(append(&ost, caller(3), object(3), &[3; 4000]), Ok(5000));
        assert_eq!(ost.fatal_error(), None);
    });
}

#[test]
fn a_broken_device_takes_no_more_changes() {
    on_small_device("2m", |directory| {
        let path = directory.join("ost");
        let ost = open(&path, 1 << 40);
        write(&ost, object(1), 0, b"kept").unwrap();
        drop(ost);
        let ost = open(&path, 1 << 40);
        mount_remount(directory, MountFlags::RDONLY, c"").unwrap();
        assert_eq!(truncate(&ost, object(2), 0), Err(Errno::EROFS));
        mount_remount(directory, MountFlags::empty(), c"").unwrap();
        assert_eq!(ost.fatal_error(), Some(Errno::EROFS));
        assert_eq!(write(&ost, object(1), 0, b"lost"), Err(Errno::EIO));
        assert_eq!(read(&ost, object(1), 0, 10), b"kept");
    });
}

#[test]
fn a_fresh_ost_opens_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let open_times = (0..10).map(|n| {
        let path = directory.path().join(n.to_string());
        let start = Instant::now();
        let _ost = open(&path, 1 << 30);
        start.elapsed()
    });
    // The best of several: other tests use the machine too.
    let best = open_times.min().unwrap();
    assert!(best.as_micros() < 2_000, "{best:?}");
}

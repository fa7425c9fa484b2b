//! Objects that the kernel writes behind the OST's back: here the test does.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use burstfs_oss::Ost;
use burstfs_proto::oss::AllocateMode;
use burstfs_proto::service::{LentFile, ObjectFiles};
use burstfs_types::{Errno, ObjectId, Timestamp};
use rustix::io::pwrite;

use crate::support::{allocate, append, caller, glimpse, object, open, remove, statfs, truncate, write};

const MIB: u64 = 1 << 20;
const TIME: Timestamp = Timestamp { secs: 1_000_000_000, nanos: 5 };

fn lend(ost: &Arc<Ost>, id: ObjectId) -> Arc<dyn LentFile> {
    Arc::clone(ost).lend(id, (TIME, TIME)).unwrap()
}

fn write_behind(lent: &dyn LentFile, at: u64, len: usize) {
    assert_eq!(pwrite(lent.file(), &vec![1; len], at).unwrap(), len);
}

#[test]
fn what_the_kernel_writes_is_charged_when_somebody_asks() {
    let directory = tempfile::tempdir().unwrap();
    let ost = Arc::new(open(directory.path(), 1024 * MIB));
    let lent = lend(&ost, object(1));
    assert_eq!(glimpse(&ost, object(1)).unwrap().mtime, TIME);
    assert!(lent.begin_writing());
    write_behind(&*lent, 0, 1 << 20);
    assert!((MIB..2 * MIB).contains(&statfs(&ost).used));
    write_behind(&*lent, MIB, 1 << 20);
    lent.end_writing();
    drop(lent);
    let used = statfs(&ost).used;
    assert!((2 * MIB..3 * MIB).contains(&used));
    // What is there already keeps its times.
    let again = lend(&ost, object(1));
    assert_ne!(glimpse(&ost, object(1)).unwrap().mtime, TIME);
    drop(again);
    remove(&ost, object(1));
    assert_eq!(statfs(&ost).used, 0);
}

#[test]
fn near_the_end_of_the_share_nobody_writes_unseen() {
    let directory = tempfile::tempdir().unwrap();
    let ost = Arc::new(open(directory.path(), 600 * MIB));
    let lent = [1, 2, 3].map(|n| lend(&ost, object(n)));
    assert!(lent[0].begin_writing() && lent[1].begin_writing());
    assert!(!lent[2].begin_writing());
    lent[1].end_writing();
    assert!(lent[2].begin_writing());
    let small = tempfile::tempdir().unwrap();
    assert!(!lend(&Arc::new(open(small.path(), 8 * MIB)), object(1)).begin_writing());
}

#[test]
fn growth_beyond_the_share_is_told_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let ost = Arc::new(open(directory.path(), 300 * MIB));
    let lent = lend(&ost, object(1));
    assert!(lent.begin_writing());
    allocate(&ost, object(2), AllocateMode::Extend, 0, 300 * MIB).unwrap();
    assert_eq!(lent.settle(), Ok(()));
    write_behind(&*lent, 0, 1 << 20);
    assert_eq!((lent.settle(), lent.settle()), (Err(Errno::ENOSPC), Err(Errno::ENOSPC)));
    assert_eq!(write(&ost, object(3), 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(statfs(&ost).available, 0);
    truncate(&ost, object(2), 0).unwrap();
    assert_eq!(lent.settle(), Ok(()));
}

#[test]
fn appends_go_behind_what_the_kernel_has_written() {
    let directory = tempfile::tempdir().unwrap();
    let ost = Arc::new(open(directory.path(), 1024 * MIB));
    let lent = lend(&ost, object(1));
    assert!(lent.begin_writing());
    append(&ost, caller(1), object(1), b"one").unwrap();
    write_behind(&*lent, 3, 5);
    assert_eq!(append(&ost, caller(2), object(1), b"two"), Ok(11));
    assert_eq!(append(&ost, caller(2), object(1), b"two"), Ok(11));
    let mut bytes = [0; 11];
    rustix::io::pread(lent.file().as_fd(), &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"one\x01\x01\x01\x01\x01two");
}

#[test]
fn the_removal_of_lent_objects_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let ost = Arc::new(open(directory.path(), 1024 * MIB));
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    ost.on_removal(Box::new(move |id| telling.lock().unwrap().push(id)));
    let lent = lend(&ost, object(1));
    write(&ost, object(2), 0, b"x").unwrap();
    remove(&ost, object(2));
    remove(&ost, object(1));
    assert_eq!(*told.lock().unwrap(), [object(1)]);
    // Its file can still be written, and costs nothing.
    write_behind(&*lent, 0, 4096);
    assert_eq!((lent.settle(), statfs(&ost).used), (Ok(()), 0));
}

//! Requests that no client of ours sends.

use burstfs_oss::{OpenError, Options, Ost};
use burstfs_proto::oss::{
    AllocateMode, Glimpse, OssRequest, Read, Remove, Seek, SeekTarget, SetTimes, Truncate, Write,
};
use burstfs_types::{Errno, Ino, ObjectId, StripeIndex, Timestamp, limits};

use crate::support::{
    Memory, allocate, append, call, call_as, caller, glimpse, object, open, read_with, statfs, write,
};

#[test]
fn ids_that_no_layout_has_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    // An id is not checked when it is decoded.
    let no_inode = OssRequest::decode(0x0205, &[1, 0, 0]).unwrap();
    assert!(matches!(&no_inode, OssRequest::Glimpse(glimpse) if glimpse.objects[0].ino.get() == 0));
    assert_eq!(call(&ost, no_inode), Err(Errno::EINVAL));
    let object = ObjectId { ino: Ino::ROOT, stripe: StripeIndex::new(limits::STRIPE_COUNT_MAX as u16) };
    assert_eq!(write(&ost, object, 0, b"x"), Err(Errno::EINVAL));
    assert_eq!(append(&ost, caller(1), object, b"x"), Err(Errno::EINVAL));
    assert_eq!(call(&ost, Remove { objects: vec![object] }), Err(Errno::EINVAL));
    assert_eq!(call(&ost, Truncate { object, size: 0 }), Err(Errno::EINVAL));
    let last = ObjectId { ino: Ino::from_raw(u64::MAX).unwrap(), stripe: StripeIndex::new(2_047) };
    assert_eq!(write(&ost, last, 0, b"x"), Ok(1));
    assert_eq!(statfs(&ost).objects, 1);
}

#[test]
fn ranges_that_no_file_has_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    for offset in [limits::FILE_SIZE_MAX_BYTES, i64::MAX as u64, u64::MAX] {
        assert_eq!(write(&ost, object(1), offset, b"x"), Err(Errno::EFBIG));
        assert_eq!(allocate(&ost, object(1), AllocateMode::Extend, offset, u64::MAX), Err(Errno::EFBIG));
        assert_eq!(allocate(&ost, object(1), AllocateMode::PunchHole, offset, 1), Err(Errno::EFBIG));
        assert_eq!(read_with(&ost, object(1), offset, Memory::sink(9, true)), Ok(vec![]));
        assert!(call(&ost, Seek { object: object(1), target: SeekTarget::Data, offset }).is_ok());
    }
    assert_eq!(call(&ost, Truncate { object: object(1), size: u64::MAX }), Err(Errno::EFBIG));
    assert_eq!(allocate(&ost, object(1), AllocateMode::Extend, 0, 0), Err(Errno::EINVAL));
    assert_eq!(glimpse(&ost, object(1)), None);
    assert_eq!(ost.fatal_error(), None);
}

#[test]
fn lengths_that_are_not_backed_by_memory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    for is_addressable in [true, false] {
        let read = Read { object: object(1), offset: 0, len: 100 };
        assert_eq!(call_as(&ost, caller(0), read, &mut Memory::sink(99, is_addressable)), Err(Errno::EINVAL));
        let mut much = Memory::source(&vec![0; limits::RPC_BULK_MAX_BYTES + 1], is_addressable);
        let request = Write { object: object(1), offset: 0 };
        assert_eq!(call_as(&ost, caller(0), request, &mut much), Err(Errno::EINVAL));
    }
    let many = vec![object(1); 4_097];
    assert_eq!(call(&ost, Glimpse { objects: many.clone() }), Err(Errno::EINVAL));
    assert_eq!(call(&ost, Remove { objects: many }), Err(Errno::EINVAL));
}

#[test]
fn nanoseconds_that_mean_something_else_to_the_kernel_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let ost = open(directory.path(), 1 << 30);
    write(&ost, object(1), 0, b"x").unwrap();
    for nanos in [1_000_000_000, 0x3fff_ffff, 0x3fff_fffe, u32::MAX] {
        let time = Some(Timestamp { secs: 0, nanos });
        let request = SetTimes { object: object(1), atime: time, mtime: None };
        assert_eq!(call(&ost, request), Err(Errno::EINVAL));
    }
}

#[test]
fn two_processes_cannot_serve_one_ost() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path(), 1 << 30);
    let second = Ost::open(directory.path(), Options { capacity_bytes: 1, open_files_max: 1 });
    assert!(matches!(second, Err(OpenError::InUse { .. })));
    let nowhere = Ost::open(&directory.path().join("a/b"), Options { capacity_bytes: 1, open_files_max: 1 });
    assert!(matches!(nowhere, Err(OpenError::Directory { .. })));
}

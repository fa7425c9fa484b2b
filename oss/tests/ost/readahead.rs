//! What is read in a pattern is in the page cache before it is asked for.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use burstfs_proto::oss::Read;
use rustix::fs::{Advice, fadvise};

use crate::support::{Memory, call_as, caller, object, open, write};

const LEN: u32 = 64 << 10;
const STEP: u64 = 4 << 20;

/// Whether a part of a file is in the page cache. Reading it without waiting would tell, too, and have it read.
fn is_cached(file: &File, offset: u64) -> bool {
    let (len, mut pages) = (LEN as usize, vec![0_u8; LEN as usize / 4096]);
    let offset = libc::off_t::try_from(offset).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice, looked at and taken away again; `pages` has a byte for each page.
    let known = unsafe {
        let map = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset);
        assert_ne!(map, libc::MAP_FAILED);
        let known = libc::mincore(map, len, pages.as_mut_ptr());
        libc::munmap(map, len);
        known
    };
    assert_eq!(known, 0);
    pages.iter().all(|page| page & 1 == 1)
}

fn only_object(directory: &Path) -> File {
    let mut subdirs = std::fs::read_dir(directory).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let subdir = subdirs.next().unwrap().path();
    File::open(std::fs::read_dir(subdir).unwrap().next().unwrap().unwrap().path()).unwrap()
}

#[test]
fn a_strided_reader_finds_the_next_piece_ready() {
    // Not a tmpfs, which has nothing but the cache.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let ost = open(&directory.path().join("ost"), 1 << 30);
    for n in 0..8 {
        write(&ost, object(1), n * STEP, &vec![7; LEN as usize]).unwrap();
    }
    let file = only_object(&directory.path().join("ost"));
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    assert!(!is_cached(&file, 4 * STEP), "/var/tmp has to be on a device");
    let read = |n: u64| {
        let request = Read { object: object(1), offset: n * STEP, len: LEN };
        call_as(&ost, caller(0), request, &mut Memory::sink(LEN as usize, true)).unwrap();
    };
    (0..3).for_each(read);
    assert!(!is_cached(&file, 4 * STEP), "three reads are two steps: no pattern yet");
    read(3);
    let end = Instant::now() + Duration::from_secs(30);
    while !is_cached(&file, 4 * STEP) {
        assert!(Instant::now() < end, "the fifth piece is not read ahead");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(!is_cached(&file, 6 * STEP), "one piece, so far");
}

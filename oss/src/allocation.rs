//! Which bytes of a file have blocks.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Direction, Opcode, Updater, ioctl, opcode};

/// How many bytes of `offset..offset + len`, widened to blocks, have no block yet: what writing all of it allocates.
pub(crate) fn missing(file: impl AsFd + Copy, offset: u64, len: u64, block: u64) -> Result<u64> {
    let (start, end) = widened(offset, len, block);
    let there = mapped(file, start, end).or_else(|_| written(file, start, end, block))?;
    Ok((end - start).saturating_sub(there))
}

/// The bytes of the blocks that a range touches.
pub(crate) fn touched(offset: u64, len: u64, block: u64) -> u64 {
    let (start, end) = widened(offset, len, block);
    end - start
}

fn widened(offset: u64, len: u64, block: u64) -> (u64, u64) {
    if len == 0 {
        return (offset, offset);
    }
    let start = offset - offset % block;
    let end = offset.saturating_add(len).div_ceil(block).saturating_mul(block);
    (start, end)
}

const EXTENTS: usize = 32;
const LAST: u32 = 1;
/// `FS_IOC_FIEMAP`: its size counts the header alone.
const FIEMAP: Opcode = opcode::from_components(Direction::ReadWrite, b'f', 11, 32);

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` of `linux/fiemap.h` with room for some extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

/// Bytes of `start..end` that have blocks, also those that were allocated and never written: `SEEK_DATA` would call these
/// a hole, and a write to space that `fallocate` promised would be refused.
fn mapped(file: impl AsFd + Copy, start: u64, end: u64) -> Result<u64> {
    let (mut next, mut sum) = (start, 0);
    while next < end {
        let mut map = Fiemap {
            start: next,
            length: end - next,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); EXTENTS],
        };
        // SAFETY: `Fiemap` is laid out as the kernel's structure, and `extent_count` says how many extents fit behind it.
        unsafe { ioctl(file, Updater::<FIEMAP, Fiemap>::new(&mut map)) }?;
        let found = map.extents.get(..map.mapped_extents as usize).ok_or(Errno::IO)?;
        let Some(last) = found.last() else { break };
        for extent in found {
            let extent_end = extent.logical.saturating_add(extent.length).min(end);
            sum += extent_end.saturating_sub(extent.logical.max(next));
        }
        if last.flags & LAST != 0 {
            break;
        }
        next = last.logical.saturating_add(last.length).max(next + 1);
    }
    Ok(sum)
}

/// Bytes of `start..end` that `SEEK_DATA` calls data: for file systems without FIEMAP (tmpfs).
fn written(file: impl AsFd + Copy, start: u64, end: u64, block: u64) -> Result<u64> {
    let (mut next, mut sum) = (start, 0);
    while next < end {
        let data = match seek(file, SeekFrom::Data(next)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        // The hole at the file's end begins within a block that is there.
        let hole = seek(file, SeekFrom::Hole(data))?.next_multiple_of(block).min(end);
        sum += hole - data;
        next = hole;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[test]
    fn ranges_are_widened_to_blocks() {
        assert_eq!(touched(0, 0, 4096), 0);
        assert_eq!(touched(4095, 2, 4096), 8192);
        assert_eq!(touched(4096, 4096, 4096), 4096);
        assert!(touched(u64::MAX - 5, 100, 4096) > 0);
    }

    fn check(file: &File) {
        let missing = |offset, len| missing(file.as_fd(), offset, len, 4096).unwrap();
        assert_eq!(missing(0, 10_000), 12_288);
        file.write_all_at(b"x", 5_000).unwrap();
        assert_eq!(missing(0, 10_000), 8_192);
        assert_eq!(missing(4_096, 1), 0);
        for n in 0..100 {
            file.write_all_at(b"x", n * 8_192).unwrap();
        }
        assert_eq!(missing(0, 100 * 8_192), 99 * 4_096);
    }

    #[test]
    fn blocks_that_are_there_do_not_count() {
        check(&tempfile::tempfile().unwrap());
        if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
            check(&file);
        }
    }

    #[test]
    fn what_fallocate_promised_is_there() {
        let file = tempfile::tempfile().unwrap();
        let has_fiemap = mapped(file.as_fd(), 0, 1).is_ok();
        if has_fiemap && fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).is_ok() {
            assert_eq!(missing(file.as_fd(), 0, 1 << 20, 4096).unwrap(), 0);
        }
    }
}

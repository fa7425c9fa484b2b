//! Writes that come to the daemon, and what they promise.

use crate::fs::{ClientFs, FsError, OpenFile, WriteData};

/// What a write promises to have done when it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Durability {
    /// The bytes are where all nodes see them.
    None,
    /// They are on the device, and so is what is needed to find them (`O_DSYNC`).
    Data,
    /// So is all that is known of the file (`O_SYNC`).
    File,
}

impl Durability {
    /// From a write's flags: those of its open file, and what `pwritev2(2)` adds (`RWF_DSYNC`, `RWF_SYNC`), in terms of `open(2)`.
    /// The kernel sends no FSYNC after a write that comes here.
    pub(super) fn of(flags: i32) -> Durability {
        match flags & libc::O_SYNC {
            libc::O_SYNC => Durability::File,
            libc::O_DSYNC => Durability::Data,
            _ => Durability::None,
        }
    }
}

/// What a write is to do besides writing.
#[derive(Clone, Copy, Debug)]
pub(super) struct HowToWrite {
    pub(super) is_append: bool,
    pub(super) kill_set_id: bool,
    pub(super) durability: Durability,
}

/// A write at its offset or, for an append, at the file's end; how many bytes.
pub(super) async fn write(
    fs: &ClientFs,
    file: &OpenFile,
    offset: u64,
    data: WriteData<'_>,
    how: HowToWrite,
) -> Result<u32, FsError> {
    let (offset, written) = if how.is_append {
        let (written, size) = fs.append(file, data, how.kill_set_id).await?;
        (size.saturating_sub(written as u64), written)
    } else {
        fs.write(file, offset, data, how.kill_set_id).await?;
        (offset, data.len())
    };
    match how.durability {
        Durability::None => {}
        Durability::Data => fs.sync_range(file, (offset, written as u64), true).await?,
        Durability::File => fs.sync_range(file, (offset, written as u64), false).await?,
    }
    u32::try_from(written).map_err(|_| FsError::TooLarge { end: written as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writes_flags_say_how_durable_it_is() {
        // `O_SYNC` contains the bit of `O_DSYNC`.
        let all = [0, libc::O_APPEND | libc::O_RDWR, libc::O_DSYNC, libc::O_SYNC, libc::O_SYNC | libc::O_DIRECT];
        let expected = [Durability::None, Durability::None, Durability::Data, Durability::File, Durability::File];
        assert_eq!(all.map(Durability::of), expected);
    }
}

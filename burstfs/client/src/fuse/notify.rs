//! Taking back what the kernel has cached.
//!
//! Notifications are written to the session's device like replies (Linux `fs/fuse/dev.c`, `fuse_notify`). fuser's own notifier
//! does not say whether the kernel had what was to be dropped, and knows no epochs.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;

use burstfs_types::{Ino, Name};

use crate::fs::KernelCache;

const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const INC_EPOCH: i32 = 8;
/// Of a name: only its time ends (FUSE 7.38).
const EXPIRE_ONLY: u32 = 1;
const HEADER_LEN: usize = 16;

/// One connection's notifications.
pub(super) struct Notifier {
    device: File,
    has_epochs: bool,
}

impl Notifier {
    /// On a descriptor of a session that has been agreed on.
    pub(super) fn new(device: OwnedFd) -> Notifier {
        let device = File::from(device);
        // Kernels before FUSE 7.44 refuse it as unknown; nobody has a name yet.
        let has_epochs = send(&device, INC_EPOCH, &[]).is_ok();
        Notifier { device, has_epochs }
    }
}

/// Writes one notification: `struct fuse_out_header` with the code in place of an error, and the payload.
fn send(mut device: &File, code: i32, payload: &[&[u8]]) -> io::Result<()> {
    let len = HEADER_LEN + payload.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    payload.iter().for_each(|part| message.extend_from_slice(part));
    // It is one message: the kernel takes it whole or not at all.
    device.write(&message).map(drop)
}

impl KernelCache for Notifier {
    fn drop_attributes(&self, ino: Ino, listing: bool) -> io::Result<bool> {
        // An offset below 0: attributes only. From 0 to the end, which a length of 0 or less means: the pages as well.
        let offset: i64 = if listing { 0 } else { -1 };
        let payload = [&ino.get().to_ne_bytes()[..], &offset.to_ne_bytes()[..], &0_i64.to_ne_bytes()[..]];
        match send(&self.device, INVAL_INODE, &payload) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn drop_entry(&self, parent: Ino, name: &Name) -> io::Result<()> {
        let bytes = name.as_bytes();
        let (len, flags) = (u32::try_from(bytes.len()).unwrap_or(u32::MAX), EXPIRE_ONLY);
        let payload =
            [&parent.get().to_ne_bytes()[..], &len.to_ne_bytes()[..], &flags.to_ne_bytes()[..], bytes, &[0][..]];
        send(&self.device, INVAL_ENTRY, &payload)
    }

    fn drop_all_entries(&self) -> io::Result<()> {
        send(&self.device, INC_EPOCH, &[])
    }

    fn has_epochs(&self) -> bool {
        self.has_epochs
    }
}

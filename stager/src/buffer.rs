//! Memory for contents that are under way, kept by the thread that has used it: asking for it and giving it back for each
//! small file would cost as much as its copy.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Stays in the second-level cache of one core, and is large enough that a system call does not count.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;
/// A thread keeps so many; more are in use only while other nodes are waited for.
const KEPT_MAX: usize = 2;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Some bytes with whatever is in them.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Room for `len` bytes, at most `BUFFER_BYTES` and one more.
    pub(crate) fn new(len: usize) -> Buffer {
        let kept = KEPT.with_borrow_mut(Vec::pop);
        Buffer { bytes: kept.unwrap_or_else(|| vec![0; BUFFER_BYTES + 1]), len: len.min(BUFFER_BYTES + 1) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // A thread that ends keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_MAX {
                kept.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        let first = Buffer::new(7);
        let at = first.as_ptr();
        drop(first);
        let again = Buffer::new(BUFFER_BYTES + 1);
        assert_eq!((again.len(), again.as_ptr()), (BUFFER_BYTES + 1, at));
        assert_ne!(Buffer::new(1).as_ptr(), at);
    }
}

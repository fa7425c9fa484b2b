//! What the tests of the client share: an instance in this process, and mounts of it.
#![allow(dead_code, reason = "each test file uses a part of this module")]

pub(crate) mod bytes;
pub(crate) mod cluster;
pub(crate) mod mount;

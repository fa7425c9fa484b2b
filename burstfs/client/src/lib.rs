//! The client: the instance's file system as one node sees it, and its FUSE adapter.
//!
//! [`fs`] routes each operation to the MDTs and OSTs that it concerns; it knows no FUSE and no socket, and the stager
//! uses it as the kernel does. [`fuse`] translates the kernel's requests; it is the only module that knows `fuser`.

pub mod fs;
pub mod fuse;

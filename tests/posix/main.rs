//! What others ask of a POSIX file system: pjdfstest and fsx on the mount of a real job's four-node instance. Needs root, and
//! the suites' programs, where `BURSTFS_POSIX_SUITES` says; `make posix` installs them and runs this.

mod fsx;
mod instance;
mod pjdfstest;

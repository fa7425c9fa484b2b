//! Limits that several crates must agree on. All sizes are in bytes.

/// The most nodes of one instance.
pub const NODES_MAX: usize = 16_384;
/// The most stripes of one file.
pub const STRIPE_COUNT_MAX: usize = 2_048;
/// Stripe size when nobody asks for another.
pub const STRIPE_SIZE_DEFAULT_BYTES: u32 = 1 << 20;
/// The largest file: what an `off_t` and ext4's extents can both hold.
pub const FILE_SIZE_MAX_BYTES: u64 = 1 << 44;
/// The longest target of a symbolic link (Linux's `PATH_MAX`, without its NUL).
pub const SYMLINK_TARGET_MAX_BYTES: usize = 4_095;
/// The most names of one inode (ext4's is 65,000, XFS's 2^31).
pub const LINK_MAX: u32 = 65_000;
/// The longest name of an extended attribute (Linux's `XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// The largest value of an extended attribute (Linux's `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX_BYTES: usize = 65_536;
/// The largest message body, bulk data apart.
pub const RPC_BODY_MAX_BYTES: usize = 1 << 20;
/// The largest bulk segment of one request. FUSE asks for at most 1 MiB at a time.
pub const RPC_BULK_MAX_BYTES: usize = 4 << 20;
/// The most that a peer may send before it has proved who it is.
pub const HELLO_MAX_BYTES: usize = 8 << 10;
/// The largest canonical job specification.
pub const SPEC_MAX_BYTES: usize = 64 << 10;

//! What can go wrong with an operation, and what a user sees of it.

use std::fmt;

use burstfs_net::{ProtocolError, RpcError};
use burstfs_types::{Errno, Ino, InvalidName, NodeIndex, ObjectId};
use thiserror::Error;

use super::remote::RemoteError;

/// Why an operation failed.
#[derive(Clone, Debug, Error)]
pub enum FsError {
    /// The service says no; so does the file system.
    #[error("{rpc}: {errno}")]
    Refused {
        /// The RPC's name.
        rpc: &'static str,
        /// The service's answer.
        errno: Errno,
    },
    /// Another node gave no answer.
    #[error("{rpc} to {node}: {source}")]
    Remote {
        /// The RPC's name.
        rpc: &'static str,
        /// Who was asked.
        node: NodeIndex,
        /// Why there is no answer.
        source: RemoteError,
    },
    /// Bytes changed between this node and another each time that they were sent.
    #[error("{rpc} of {object}, {len} bytes at {offset}, between this node and {node}: {source}")]
    Damaged {
        /// The RPC's name.
        rpc: &'static str,
        /// The other node.
        node: NodeIndex,
        /// Of which object.
        object: ObjectId,
        /// Where in the object; behind its end for an append.
        offset: AppendOrOffset,
        /// Bytes.
        len: usize,
        /// The last attempt's checksums.
        source: RpcError,
    },
    /// An inode number or a layout names a node that the instance does not have.
    #[error("the instance has no {node}")]
    NoSuchNode {
        /// The node.
        node: NodeIndex,
    },
    /// A service answered with another RPC's reply, or with more than it was asked for.
    #[error("{rpc} was answered with something else")]
    WrongReply {
        /// The RPC's name.
        rpc: &'static str,
    },
    /// Not a name for an entry.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An operation on bytes of something that has none.
    #[error("{ino} is a directory")]
    IsDirectory {
        /// The inode.
        ino: Ino,
    },
    /// An operation on bytes of a link, pipe or socket.
    #[error("{ino} is no regular file")]
    NotRegular {
        /// The inode.
        ino: Ino,
    },
    /// Beyond the largest file.
    #[error("byte {end} is beyond the largest file")]
    TooLarge {
        /// Where the range ends, bytes.
        end: u64,
    },
    /// `SEEK_DATA` or `SEEK_HOLE` at or behind the end.
    #[error("nothing to find at or behind byte {offset}")]
    BeyondEnd {
        /// From where, bytes.
        offset: u64,
    },
    /// An extended attribute that is not there.
    #[error("there is no such attribute")]
    NoAttribute,
    /// An argument that the file system does not know.
    #[error("{what} is not supported")]
    Unsupported {
        /// The argument.
        what: &'static str,
    },
    /// An argument that makes no sense.
    #[error("{what} is not valid")]
    Invalid {
        /// The argument.
        what: &'static str,
    },
}

impl FsError {
    /// What a system call returns for this. No catch-all arm: a new error does not compile until somebody has decided.
    pub fn errno(&self) -> Errno {
        match self {
            FsError::Refused { errno, .. } => *errno,
            FsError::Remote { source: RemoteError::Rpc(error), .. } => error.errno(),
            FsError::Remote { source: RemoteError::Region(_), .. } => Errno::ENOMEM,
            FsError::Damaged { .. } => Errno::EIO,
            FsError::NoSuchNode { .. } => Errno::ESTALE,
            FsError::WrongReply { .. } => Errno::EIO,
            FsError::Name(InvalidName::TooLong(_)) => Errno::ENAMETOOLONG,
            FsError::Name(InvalidName::Reserved | InvalidName::ForbiddenByte(_)) => Errno::EINVAL,
            FsError::IsDirectory { .. } => Errno::EISDIR,
            FsError::NotRegular { .. } => Errno::EINVAL,
            FsError::TooLarge { .. } => Errno::EFBIG,
            FsError::BeyondEnd { .. } => Errno::ENXIO,
            FsError::NoAttribute => Errno::ENODATA,
            FsError::Unsupported { .. } => Errno::EOPNOTSUPP,
            FsError::Invalid { .. } => Errno::EINVAL,
        }
    }

    /// The same, with the place where it happened if bulk data was damaged.
    pub(super) fn at(self, object: ObjectId, offset: AppendOrOffset, len: usize) -> FsError {
        match self {
            FsError::Remote {
                rpc,
                node,
                source: RemoteError::Rpc(source @ RpcError::Protocol(ProtocolError::Checksum { .. })),
            } => FsError::Damaged { rpc, node, object, offset, len, source },
            other => other,
        }
    }

    /// Whether this needs a node that was given up.
    pub fn is_of_lost_node(&self) -> bool {
        matches!(self, FsError::Remote { source: RemoteError::Rpc(RpcError::Closed), .. })
    }

    /// Whether it is unknown if what was asked for has been done.
    pub(super) fn leaves_open(&self) -> bool {
        match self {
            FsError::Remote { source: RemoteError::Rpc(RpcError::Errno(_)), .. } => false,
            FsError::Remote { source: RemoteError::Rpc(_) | RemoteError::Region(_), .. }
            | FsError::Damaged { .. }
            | FsError::WrongReply { .. } => true,
            FsError::Refused { .. }
            | FsError::NoSuchNode { .. }
            | FsError::Name(_)
            | FsError::IsDirectory { .. }
            | FsError::NotRegular { .. }
            | FsError::TooLarge { .. }
            | FsError::BeyondEnd { .. }
            | FsError::NoAttribute
            | FsError::Unsupported { .. }
            | FsError::Invalid { .. } => false,
        }
    }

    /// Whether the inode, or the entry, is not there.
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Errno::ENOENT | Errno::ESTALE)
    }
}

/// Where in an object bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendOrOffset {
    /// Behind its last byte.
    Append,
    /// There.
    Offset(u64),
}

impl fmt::Display for AppendOrOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendOrOffset::Append => f.write_str("its end"),
            AppendOrOffset::Offset(offset) => write!(f, "{offset}"),
        }
    }
}

impl From<FsError> for Errno {
    fn from(error: FsError) -> Errno {
        error.errno()
    }
}

#[cfg(test)]
mod tests {
    use burstfs_net::Waiting;
    use burstfs_types::{StripeIndex, Xid};

    use super::*;

    fn remote(source: RpcError) -> FsError {
        FsError::Remote { rpc: "Mkdir", node: NodeIndex::new(2), source: source.into() }
    }

    #[test]
    fn a_service_that_says_no_is_heard() {
        assert_eq!(FsError::Refused { rpc: "Mkdir", errno: Errno::EEXIST }.errno(), Errno::EEXIST);
        assert_eq!(remote(RpcError::Errno(Errno::ENOSPC)).errno(), Errno::ENOSPC);
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let damage = ProtocolError::Checksum { xid: Xid(7), opcode: 0x0202, len: 100, expected: 1, actual: 2 };
        let object = ObjectId { ino: Ino::ROOT, stripe: StripeIndex::new(3) };
        let error = remote(RpcError::Protocol(damage)).at(object, AppendOrOffset::Offset(4096), 100);
        assert_eq!(error.errno(), Errno::EIO);
        let said = error.to_string();
        for part in [&object.to_string(), "100 bytes at 4096", &NodeIndex::new(2).to_string(), "0x00000002"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let other = remote(RpcError::Closed).at(object, AppendOrOffset::Append, 1);
        assert!(matches!(other, FsError::Remote { .. }), "{other:?}");
    }

    #[test]
    fn a_node_that_does_not_answer_is_an_i_o_error() {
        assert_eq!(remote(RpcError::Timeout(Waiting::Reply)).errno(), Errno::EIO);
        assert_eq!(remote(RpcError::Closed).errno(), Errno::EIO);
        assert!(remote(RpcError::Closed).is_of_lost_node());
        assert!(!remote(RpcError::Timeout(Waiting::Reply)).is_of_lost_node());
        assert!(remote(RpcError::Closed).leaves_open() && !remote(RpcError::Errno(Errno::EIO)).leaves_open());
    }
}

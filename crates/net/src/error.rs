//! What can go wrong with a call, what the user sees of it, and what is done about it.

use std::io;
use std::sync::Arc;

use burstfs_proto::DecodeError;
use burstfs_proto::frame::FrameError;
use burstfs_proto::hello::Refusal;
use burstfs_types::{Errno, Xid, limits};
use thiserror::Error;

use crate::auth::AuthError;

/// What a call was waiting for when its deadline came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Waiting {
    /// A place among the requests in flight.
    #[error("a place among the requests in flight")]
    Place,
    /// The connection.
    #[error("the connection")]
    Connection,
    /// The reply.
    #[error("the reply")]
    Reply,
}

/// Why a call failed.
#[derive(Clone, Debug, Error)]
pub enum RpcError {
    /// The service's own answer.
    #[error("{0}")]
    Errno(Errno),
    /// The deadline came.
    #[error("the deadline came while waiting for {0}")]
    Timeout(Waiting),
    /// The peer refuses this side.
    #[error("refused by the peer: {0}")]
    Refused(Refusal),
    /// The peer did not prove who it is, or this side cannot.
    #[error("no proof of identity: {0}")]
    Unauthenticated(AuthError),
    /// What the peer sent, or what the caller wants to send, is against the protocol.
    #[error("protocol error: {0}")]
    Protocol(ProtocolError),
    /// Nobody answers at the address.
    #[error("cannot connect: {0}")]
    Unreachable(io::ErrorKind),
    /// The channel was closed, or the peer ended the connection before it was of use.
    #[error("the connection is closed")]
    Closed,
}

/// Which rule was broken.
#[derive(Clone, Debug, Error)]
pub enum ProtocolError {
    /// The header is refused.
    #[error("header refused: {0}")]
    Header(FrameError),
    /// A reply where a request must be, or the other way round.
    #[error("{xid}, opcode {opcode:#06x}: a message of the wrong direction")]
    Direction {
        /// Of the message.
        xid: Xid,
        /// Of the message.
        opcode: u16,
    },
    /// A reply to nothing that was asked.
    #[error("{xid}, opcode {opcode:#06x}: a reply to no request")]
    UnknownReply {
        /// Of the reply.
        xid: Xid,
        /// Of the reply.
        opcode: u16,
    },
    /// A request that both sends and receives bulk data.
    #[error("{xid}, opcode {opcode:#06x}: a request that both sends and receives bulk data")]
    BothWays {
        /// Of the request.
        xid: Xid,
        /// Of the request.
        opcode: u16,
    },
    /// More bulk data in a reply than there is room for.
    #[error("{xid}, opcode {opcode:#06x}: {len} bytes of bulk data for {room} bytes of room")]
    Overrun {
        /// Of the reply.
        xid: Xid,
        /// Of the reply.
        opcode: u16,
        /// What came.
        len: usize,
        /// What was offered.
        room: usize,
    },
    /// Bulk data that changed on its way.
    #[error("{xid}, opcode {opcode:#06x}: crc32c of {len} bytes of bulk data is {actual:#010x}, not {expected:#010x}")]
    Checksum {
        /// Of the message.
        xid: Xid,
        /// Of the message.
        opcode: u16,
        /// Bytes of the bulk data.
        len: usize,
        /// By the header.
        expected: u32,
        /// By the bytes.
        actual: u32,
    },
    /// A piece of a message over RDMA that makes no sense.
    #[error("a piece of a message {0}")]
    Piece(&'static str),
    /// A body that the caller may not send.
    #[error("a body of {0} bytes is over the limit of {max}", max = limits::RPC_BODY_MAX_BYTES)]
    BodyTooLong(usize),
    /// Bulk data that the caller may not send or ask for.
    #[error("bulk data of {0} bytes is over the limit of {max}", max = limits::RPC_BULK_MAX_BYTES)]
    BulkTooLong(usize),
    /// A reply that is not what the RPC answers.
    #[error("{0}")]
    Reply(Arc<DecodeError>),
}

/// What is done about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Send the request again under its xid, on another connection.
    Resend,
    /// Try again to connect, after a pause.
    Reconnect,
    /// Tell the caller.
    Fail,
}

impl RpcError {
    /// What the user's system call sees.
    pub fn errno(&self) -> Errno {
        match self {
            RpcError::Errno(errno) => *errno,
            RpcError::Timeout(_) | RpcError::Unreachable(_) | RpcError::Closed => Errno::EIO,
            RpcError::Refused(refusal) => match refusal {
                Refusal::Uid(_) | Refusal::Credential(_) => Errno::EACCES,
                Refusal::Magic | Refusal::Version { .. } | Refusal::Instance | Refusal::Busy => Errno::EIO,
            },
            RpcError::Unauthenticated(_) => Errno::EACCES,
            RpcError::Protocol(_) => Errno::EIO,
        }
    }

    /// What a [`Channel`](crate::Channel) does about it before its caller hears of it.
    pub fn remedy(&self) -> Remedy {
        match self {
            RpcError::Errno(_) | RpcError::Timeout(_) => Remedy::Fail,
            // A daemon that restarts listens at the same address again; one that ends closes half-open connections.
            RpcError::Unreachable(_) | RpcError::Closed => Remedy::Reconnect,
            RpcError::Refused(refusal) => match refusal {
                Refusal::Busy => Remedy::Reconnect,
                Refusal::Magic
                | Refusal::Version { .. }
                | Refusal::Instance
                | Refusal::Uid(_)
                | Refusal::Credential(_) => Remedy::Fail,
            },
            RpcError::Unauthenticated(why) => match why {
                AuthError::Unavailable(_) => Remedy::Reconnect,
                AuthError::Invalid(_) | AuthError::Payload | AuthError::Uid { .. } => Remedy::Fail,
            },
            RpcError::Protocol(error) => match error {
                ProtocolError::Header(_)
                | ProtocolError::Direction { .. }
                | ProtocolError::UnknownReply { .. }
                | ProtocolError::BothWays { .. }
                | ProtocolError::Overrun { .. }
                | ProtocolError::Checksum { .. }
                | ProtocolError::Piece(_) => Remedy::Resend,
                ProtocolError::BodyTooLong(_) | ProtocolError::BulkTooLong(_) | ProtocolError::Reply(_) => Remedy::Fail,
            },
        }
    }
}

impl From<RpcError> for Errno {
    fn from(error: RpcError) -> Errno {
        error.errno()
    }
}

impl From<DecodeError> for RpcError {
    fn from(error: DecodeError) -> RpcError {
        RpcError::Protocol(ProtocolError::Reply(Arc::new(error)))
    }
}

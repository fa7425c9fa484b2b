//! The fixed header in front of every message after the hello: 32 bytes, little-endian.
//!
//! | offset | bytes | request | reply |
//! |---|---|---|---|
//! | 0 | 8 | xid | xid of the request |
//! | 8 | 2 | opcode | opcode of the request |
//! | 10 | 2 | 0 = request | 1 = reply |
//! | 12 | 4 | how far the client's oldest unanswered xid is behind this one | errno, 0 = success, 2^32 - 1 = [`DAMAGED`] |
//! | 16 | 4 | length of the body | same |
//! | 20 | 4 | length of the bulk segment that follows the body | same |
//! | 24 | 4 | bytes that the server may put into the client's memory | 0 |
//! | 28 | 4 | crc32c of the bulk data that the client sends, 0 where there is none | of what it receives; what came, if [`DAMAGED`] |
//!
//! The checksum is of the bulk data on whatever way it goes: behind the message, or beside it through a window of RDMA.

use burstfs_types::{Xid, limits};
use thiserror::Error;

/// Bytes of a header.
pub const HEADER_LEN: usize = 32;

/// A reply's status that says: the request's bulk data is not what its checksum says, and nothing was done.
pub const DAMAGED: u32 = u32::MAX;

/// Request or reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// From client to server.
    Request,
    /// From server to client.
    Reply,
}

/// A message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The request's number.
    pub xid: Xid,
    /// The request's opcode.
    pub opcode: u16,
    /// Request or reply.
    pub kind: Kind,
    /// In a reply Linux's errno, 0 for success, or [`DAMAGED`]; in a request the distance from `xid` down to the oldest xid that the
    /// client still waits for: replies to older ones need not be kept.
    pub status: u32,
    /// Bytes of the body.
    pub body_len: u32,
    /// Bytes of the bulk segment that follows it.
    pub bulk_len: u32,
    /// In a request: what the server may put into the client's memory, bytes.
    pub bulk_space: u32,
    /// crc32c of the bulk data.
    pub bulk_crc: u32,
}

/// Why a header is refused; the connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// Neither request nor reply.
    #[error("message kind {0} is not known")]
    Kind(u16),
    /// A body over the limit.
    #[error("a body of {0} bytes is over the limit of {max}", max = limits::RPC_BODY_MAX_BYTES)]
    BodyTooLong(u32),
    /// A bulk segment over the limit.
    #[error("bulk data of {0} bytes is over the limit of {max}", max = limits::RPC_BULK_MAX_BYTES)]
    BulkTooLong(u32),
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let kind: u16 = match self.kind {
            Kind::Request => 0,
            Kind::Reply => 1,
        };
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.xid.0.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.opcode.to_le_bytes());
        bytes[10..12].copy_from_slice(&kind.to_le_bytes());
        for (field, at) in
            [self.status, self.body_len, self.bulk_len, self.bulk_space, self.bulk_crc].iter().zip([12, 16, 20, 24, 28])
        {
            bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Reads a header and checks its lengths, before anything is allocated for them.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match u16::from_le_bytes([bytes[10], bytes[11]]) {
            0 => Kind::Request,
            1 => Kind::Reply,
            other => return Err(FrameError::Kind(other)),
        };
        let header = Header {
            xid: Xid(u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32),
            opcode: u16::from_le_bytes([bytes[8], bytes[9]]),
            kind,
            status: u32_at(12),
            body_len: u32_at(16),
            bulk_len: u32_at(20),
            bulk_space: u32_at(24),
            bulk_crc: u32_at(28),
        };
        if header.body_len as usize > limits::RPC_BODY_MAX_BYTES {
            return Err(FrameError::BodyTooLong(header.body_len));
        }
        for len in [header.bulk_len, header.bulk_space] {
            if len as usize > limits::RPC_BULK_MAX_BYTES {
                return Err(FrameError::BulkTooLong(len));
            }
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: [u8; HEADER_LEN]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        let header = Header {
            xid: Xid(7),
            opcode: 0x0101,
            kind: Kind::Request,
            status: 0,
            body_len: 5,
            bulk_len: 0,
            bulk_space: 0,
            bulk_crc: 0,
        };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        let long = Header { bulk_space: u32::MAX, ..header };
        assert_eq!(Header::decode(&long.encode()), Err(FrameError::BulkTooLong(u32::MAX)));
    }
}

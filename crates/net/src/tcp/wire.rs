//! Reading messages, the same for both sides.

use std::io;

use burstfs_proto::frame::{HEADER_LEN, Header, Kind};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;

use crate::error::ProtocolError;

/// Large enough for several small messages at once, small enough that little of a bulk segment is copied through it.
const BUFFER_BYTES: usize = 16 << 10;

/// Why reading ended.
pub(super) enum Ended {
    /// By the peer, between two messages.
    Finished,
    /// By the network or the peer, anywhere.
    Lost(io::Error),
    /// The peer broke a rule.
    Protocol(ProtocolError),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Lost(error)
    }
}

impl From<ProtocolError> for Ended {
    fn from(error: ProtocolError) -> Ended {
        Ended::Protocol(error)
    }
}

/// The receiving half of a connection.
pub(super) struct Incoming(BufReader<OwnedReadHalf>);

impl Incoming {
    pub(super) fn new(half: OwnedReadHalf) -> Incoming {
        Incoming(BufReader::with_capacity(BUFFER_BYTES, half))
    }

    /// The next header; its lengths are within the limits, and its direction is `kind`.
    pub(super) async fn header(&mut self, kind: Kind) -> Result<Header, Ended> {
        if self.0.fill_buf().await?.is_empty() {
            return Err(Ended::Finished);
        }
        let mut bytes = [0; HEADER_LEN];
        self.0.read_exact(&mut bytes).await?;
        let header = Header::decode(&bytes).map_err(ProtocolError::Header)?;
        if header.kind != kind {
            return Err(ProtocolError::Direction { xid: header.xid, opcode: header.opcode }.into());
        }
        Ok(header)
    }

    /// The body of the message with this header.
    pub(super) async fn body(&mut self, header: &Header) -> Result<Bytes, Ended> {
        let mut body = vec![0; len(header.body_len)];
        self.0.read_exact(&mut body).await?;
        Ok(Bytes::from(body))
    }

    /// A bulk segment, into `target`, which has its length; its checksum, which is taken piece by piece, while the bytes are
    /// in the processor's cache.
    pub(super) async fn bulk(&mut self, target: &mut [u8]) -> Result<u32, Ended> {
        let mut crc = 0;
        let mut done = 0;
        while done < target.len() {
            let read = self.0.read(&mut target[done..]).await?;
            if read == 0 {
                return Err(Ended::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            crc = crc32c::crc32c_append(crc, &target[done..done + read]);
            done += read;
        }
        Ok(crc)
    }
}

/// A length of the wire; fits on every machine that burstfs runs on.
pub(super) fn len(wire: u32) -> usize {
    usize::try_from(wire).unwrap_or(usize::MAX)
}

/// A length for the wire, which the limits have bounded before.
pub(super) fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

//! What is in the messages: pieces of at most one receive, each with a prefix.
//!
//! | offset | bytes | prefix of every piece |
//! |---|---|---|
//! | 0 | 1 | 0 = hello, 1 = message, 2 = nothing but the prefix |
//! | 1 | 1 | flags: 1 = more of this message follows, 2 = a window follows the header, 4 = bulk data was written to the window |
//! | 2 | 2 | receives that were posted again |
//! | 4 | 4 | 0 |
//!
//! A message is the header of `burstfs_proto::frame`, the window where there is one (address, key: 8 and 4 bytes, little-endian),
//! the body, and a bulk segment that is not moved through a window. The header's checksum is of the bulk data either way: the
//! device's own ends at the device, and says nothing of the memory behind it.

use burstfs_proto::frame::{HEADER_LEN, Header};
use burstfs_types::Xid;
use burstfs_verbs::Remote;
use bytes::Bytes;

use crate::error::ProtocolError;
use crate::region::{Region, Source};

/// Bytes of a receive, and so of the longest piece.
pub(super) const PIECE_BYTES: usize = 4096;
/// Bytes of a prefix.
pub(super) const PREFIX_LEN: usize = 8;
/// Bulk data up to this length goes with the message: cheaper than a window.
pub(super) const CARRIED_MAX_BYTES: usize = 4096;
/// Bytes of a window's description.
const WINDOW_LEN: usize = 12;

/// What a piece is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Part of the hello.
    Hello,
    /// Part of a request or reply.
    Message,
    /// Gives receives back.
    Nothing,
}

pub(super) const MORE: u8 = 1;
pub(super) const WINDOW: u8 = 2;
pub(super) const WRITTEN: u8 = 4;

/// The beginning of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Prefix {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) given_back: u16,
}

impl Prefix {
    pub(super) fn encode(self) -> [u8; PREFIX_LEN] {
        let kind = match self.kind {
            Kind::Hello => 0,
            Kind::Message => 1,
            Kind::Nothing => 2,
        };
        let [low, high] = self.given_back.to_le_bytes();
        [kind, self.flags, low, high, 0, 0, 0, 0]
    }

    /// The prefix and what follows it.
    pub(super) fn decode(piece: &[u8]) -> Result<(Prefix, &[u8]), ProtocolError> {
        let (prefix, rest) =
            piece.split_first_chunk::<PREFIX_LEN>().ok_or(ProtocolError::Piece("shorter than its prefix"))?;
        let kind = match prefix[0] {
            0 => Kind::Hello,
            1 => Kind::Message,
            2 => Kind::Nothing,
            _ => return Err(ProtocolError::Piece("of an unknown kind")),
        };
        if prefix[1] & !(MORE | WINDOW | WRITTEN) != 0 {
            return Err(ProtocolError::Piece("with unknown flags"));
        }
        let given_back = u16::from_le_bytes([prefix[2], prefix[3]]);
        Ok((Prefix { kind, flags: prefix[1], given_back }, rest))
    }
}

/// What follows a message's body, or goes beside the message.
#[derive(Debug, Default)]
pub(super) enum Carried {
    #[default]
    Nothing,
    Source(Source),
    Region(Region),
}

impl Carried {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Carried::Nothing => &[],
            Carried::Source(source) => source,
            Carried::Region(region) => region,
        }
    }
}

/// The bytes of a message that is sent, piece by piece.
#[derive(Debug)]
pub(super) struct Text {
    head: Vec<u8>,
    body: Bytes,
    carried: Carried,
    sent: usize,
}

impl Text {
    pub(super) fn new(header: &Header, body: Bytes, carried: Carried) -> Text {
        let mut head = Vec::with_capacity(HEADER_LEN + WINDOW_LEN);
        head.extend_from_slice(&header.encode());
        Text { head, body, carried, sent: 0 }
    }

    pub(super) fn hello(bytes: &[u8]) -> Text {
        Text { head: Vec::new(), body: Bytes::copy_from_slice(bytes), carried: Carried::Nothing, sent: 0 }
    }

    /// Says where the peer finds the request's memory. Before the first piece is sent.
    pub(super) fn set_window(&mut self, remote: Remote) {
        self.head.extend_from_slice(&remote.address.to_le_bytes());
        self.head.extend_from_slice(&remote.key.to_le_bytes());
    }

    pub(super) fn remaining(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum::<usize>() - self.sent
    }

    /// Fills `piece` with what comes next; it must not be longer than what remains.
    pub(super) fn fill(&mut self, piece: &mut [u8]) {
        let mut skip = self.sent;
        let mut at = 0;
        for part in self.parts() {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let len = (part.len() - skipped).min(piece.len() - at);
            piece[at..at + len].copy_from_slice(&part[skipped..skipped + len]);
            at += len;
        }
        self.sent += at;
    }

    fn parts(&self) -> [&[u8]; 3] {
        [&self.head, &self.body, self.carried.bytes()]
    }
}

/// A message that has arrived.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) window: Option<Remote>,
    /// Whether its bulk data was written to the window.
    pub(super) written: bool,
    pub(super) body: Bytes,
    /// Its bulk data, where it was carried.
    pub(super) bulk: Bytes,
}

/// The message that is arriving.
#[derive(Default)]
pub(super) struct Assembly {
    bytes: Vec<u8>,
    /// Of its first piece.
    flags: u8,
    len: usize,
}

impl Assembly {
    /// Takes the next piece; the message, where that was the last of it. Nothing is kept beyond what its header announces.
    pub(super) fn take(&mut self, prefix: Prefix, piece: &[u8]) -> Result<Option<Message>, ProtocolError> {
        if self.bytes.is_empty() {
            self.flags = prefix.flags;
            self.len = announced_len(prefix.flags, piece)?;
            self.bytes.reserve_exact(self.len);
        }
        if piece.is_empty() || self.bytes.len() + piece.len() > self.len {
            return Err(ProtocolError::Piece("that does not fit its message"));
        }
        self.bytes.extend_from_slice(piece);
        match (prefix.flags & MORE != 0, self.bytes.len() == self.len) {
            (true, false) => Ok(None),
            (false, true) => self.end().map(Some),
            _ => Err(ProtocolError::Piece("that does not fit its message")),
        }
    }

    fn end(&mut self) -> Result<Message, ProtocolError> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let header = header(&bytes)?;
        let mut at = HEADER_LEN;
        let window = (self.flags & WINDOW != 0).then(|| {
            let field = |from: usize, len: usize| {
                bytes[from..from + len].iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
            };
            let remote = Remote { address: field(at, 8), key: u32::try_from(field(at + 8, 4)).unwrap_or(0) };
            at += WINDOW_LEN;
            remote
        });
        let body_end = at + header.body_len as usize;
        let (body, bulk) = (bytes.slice(at..body_end), bytes.slice(body_end..));
        Ok(Message { header, window, written: self.flags & WRITTEN != 0, body, bulk })
    }
}

/// Bytes of the message that begins with this piece.
fn announced_len(flags: u8, piece: &[u8]) -> Result<usize, ProtocolError> {
    let header = header(piece)?;
    let elsewhere = flags & (WINDOW | WRITTEN) != 0;
    let bulk = if elsewhere { 0 } else { header.bulk_len as usize };
    if bulk > CARRIED_MAX_BYTES {
        return Err(ProtocolError::Piece("of a message that carries too much bulk data"));
    }
    let window = if flags & WINDOW != 0 { WINDOW_LEN } else { 0 };
    Ok(HEADER_LEN + window + header.body_len as usize + bulk)
}

fn header(bytes: &[u8]) -> Result<Header, ProtocolError> {
    let head = bytes.first_chunk::<HEADER_LEN>().ok_or(ProtocolError::Piece("shorter than its header"))?;
    Header::decode(head).map_err(ProtocolError::Header)
}

/// The number of the oldest request that the client waits for, as its header says.
pub(super) fn oldest(header: &Header) -> Xid {
    Xid(header.xid.0.saturating_sub(u64::from(header.status)))
}

#[cfg(test)]
mod tests {
    use burstfs_proto::frame;
    use proptest::prelude::*;

    use super::*;

    fn sent(header: Header, window: Option<Remote>, body: Vec<u8>, bulk: Vec<u8>, piece_max: usize) -> Vec<Vec<u8>> {
        let mut text = Text::new(&header, body.into(), Carried::Source(Source::from(bulk)));
        if let Some(window) = window {
            text.set_window(window);
        }
        let mut pieces = Vec::new();
        while text.remaining() > 0 {
            let mut piece = vec![0; text.remaining().min(piece_max)];
            text.fill(&mut piece);
            let mut flags = if window.is_some() { WINDOW } else { 0 };
            if text.remaining() > 0 {
                flags |= MORE;
            }
            let prefix = Prefix { kind: Kind::Message, flags, given_back: 0 };
            pieces.push([&prefix.encode()[..], &piece].concat());
        }
        pieces
    }

    fn request(body: usize, bulk: usize) -> Header {
        let len = |len| u32::try_from(len).unwrap();
        Header {
            xid: Xid(7),
            opcode: 0x0101,
            kind: frame::Kind::Request,
            status: 2,
            body_len: len(body),
            bulk_len: len(bulk),
            bulk_space: 0,
            bulk_crc: 0,
        }
    }

    proptest! {
        #[test]
        fn a_message_survives_its_pieces(body: Vec<u8>, bulk: Vec<u8>, window: Option<(u64, u32)>, piece in 48..200_usize) {
            let window = window.map(|(address, key)| Remote { address, key });
            let bulk = if window.is_some() { vec![] } else { bulk };
            let header = request(body.len(), bulk.len());
            let pieces = sent(header, window, body.clone(), bulk.clone(), piece);
            let mut assembly = Assembly::default();
            let mut whole = None;
            for piece in &pieces {
                prop_assert!(whole.is_none());
                let (prefix, rest) = Prefix::decode(piece).unwrap();
                whole = assembly.take(prefix, rest).unwrap();
            }
            let whole = whole.unwrap();
            prop_assert_eq!((whole.header, whole.window), (header, window));
            prop_assert_eq!((&whole.body[..], &whole.bulk[..]), (&body[..], &bulk[..]));
            prop_assert_eq!(oldest(&whole.header), Xid(5));
        }

        #[test]
        fn any_pieces_are_refused_or_kept_within_what_they_announce(pieces: Vec<Vec<u8>>) {
            let mut assembly = Assembly::default();
            for piece in &pieces {
                if let Ok((prefix, rest)) = Prefix::decode(piece)
                    && assembly.take(prefix, rest).is_err()
                {
                    break;
                }
                prop_assert!(assembly.bytes.len() <= assembly.len);
            }
        }
    }

    #[test]
    fn pieces_that_lie_are_refused() {
        let header = request(100, 0);
        let pieces = sent(header, None, vec![1; 100], vec![], 60);
        let take = |assembly: &mut Assembly, piece: &[u8], flags: Option<u8>| {
            let (prefix, rest) = Prefix::decode(piece).unwrap();
            assembly.take(Prefix { flags: flags.unwrap_or(prefix.flags), ..prefix }, rest)
        };
        // Ends too early, goes on too long, says nothing, carries what must go through a window.
        assert!(take(&mut Assembly::default(), &pieces[0], Some(0)).is_err());
        let mut assembly = Assembly::default();
        assert!(take(&mut assembly, &pieces[0], None).unwrap().is_none());
        assert!(take(&mut assembly, &pieces[1], None).unwrap().is_none());
        assert!(take(&mut assembly, &pieces[1], None).is_err());
        assert!(take(&mut Assembly::default(), &pieces[0][..PREFIX_LEN], None).is_err());
        let long = sent(request(0, CARRIED_MAX_BYTES + 1), None, vec![], vec![0; CARRIED_MAX_BYTES + 1], PIECE_BYTES);
        assert!(take(&mut Assembly::default(), &long[0], None).is_err());
    }
}

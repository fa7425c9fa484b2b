//! What must hold of any bytes that come from a network, a disk or a user: they are refused, or are a value that is the same after it
//! was written and read again. Nothing panics, and nothing is allocated that the bytes only claim.
//!
//! One function for each kind of bytes: the fuzz targets (`tests/fuzz`) call them with what they find, and an ordinary test with the corpus
//! and with damaged copies of it.

use burstfs_proto::batch::{BatchReply, BatchRequest};
use burstfs_proto::frame::{HEADER_LEN, Header};
use burstfs_proto::hello::{Challenge, Opening, Proof, Verdict};
use burstfs_proto::leases::{LeaseReply, LeaseRequest};
use burstfs_proto::mds::{MdsReply, MdsRequest};
use burstfs_proto::mgs::{MgsReply, MgsRequest};
use burstfs_proto::oss::{OssReply, OssRequest};
use burstfs_proto::stage::{StageReply, StageRequest};
use burstfs_types::{Acl, LayoutPolicy, Name, hostlist};

/// A kind of bytes, and what must hold of them.
pub type Target = (&'static str, fn(&[u8]));

/// All kinds, by the names of their fuzz targets and of their part of the corpus.
pub const TARGETS: [Target; 5] =
    [("requests", requests), ("replies", replies), ("frames", frames), ("hello", hello), ("values", values)];

/// An opcode, little-endian, and a body, as a server gets them.
pub fn requests(bytes: &[u8]) {
    let Some((opcode, body)) = opcode_and_body(bytes) else { return };
    macro_rules! request {
        ($($request:ident),*) => {
            $(if let Ok(request) = $request::decode(opcode, body) {
                let again = $request::decode(request.opcode(), &request.encode());
                assert!(again.is_ok_and(|again| again == request), "{request:?}");
            })*
        };
    }
    request!(MdsRequest, OssRequest, MgsRequest, StageRequest, BatchRequest, LeaseRequest);
}

/// An opcode and a body, as a client gets them.
pub fn replies(bytes: &[u8]) {
    let Some((opcode, body)) = opcode_and_body(bytes) else { return };
    macro_rules! reply {
        ($($reply:ident),*) => {
            $(if let Ok(reply) = $reply::decode(opcode, body) {
                let again = $reply::decode(opcode, &reply.encode());
                assert!(again.is_ok_and(|again| again == reply), "{reply:?}");
            })*
        };
    }
    reply!(MdsReply, OssReply, MgsReply, StageReply, BatchReply, LeaseReply);
}

fn opcode_and_body(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (opcode, body) = bytes.split_first_chunk()?;
    Some((u16::from_le_bytes(*opcode), body))
}

/// The header of a message.
pub fn frames(bytes: &[u8]) {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    if let Ok(decoded) = Header::decode(header) {
        assert_eq!(decoded.encode(), *header);
    }
}

/// What comes before a peer has proved who it is.
pub fn hello(bytes: &[u8]) {
    macro_rules! message {
        ($($message:ty),*) => {
            $(if let Ok(message) = burstfs_proto::decode::<$message>("hello", bytes) {
                let again = burstfs_proto::decode::<$message>("hello", &burstfs_proto::encode(&message));
                assert!(again.is_ok_and(|again| again == message), "{message:?}");
            })*
        };
    }
    message!(Opening, Challenge, Proof, Verdict);
}

/// What users write: names, access control lists, layouts, host lists.
pub fn values(bytes: &[u8]) {
    if let Ok(name) = Name::new(bytes) {
        assert_eq!(name.as_bytes(), bytes);
    }
    if let Ok(Some(acl)) = Acl::decode(bytes) {
        // Ids of entries that name nobody count for nothing, and are written as one.
        assert_eq!(Acl::decode(&acl.encode()), Ok(Some(acl.clone())));
        assert_eq!(acl.clone().with_bits(acl.bits()), acl);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(policy) = text.parse::<LayoutPolicy>() {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    if let Ok(hosts) = hostlist::expand(text) {
        assert_eq!(hostlist::expand(&hostlist::compress(&hosts)), Ok(hosts));
    }
}

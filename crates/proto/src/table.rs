//! The machinery of the RPC table: one `rpcs!` block per service declares opcode, class, request and reply; enums, names
//! and codecs derive from it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Which service a request is for: the high byte of the opcode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Service {
    /// The metadata service of one MDT.
    Mds,
    /// The object service of one OST.
    Oss,
    /// The instance's directory, on node 0.
    Mgs,
    /// The queue of staging work, on node 0.
    Stage,
    /// Several requests at once.
    Batch,
    /// The leases of one node's client.
    Leases,
}

/// What a lost connection means for a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Changes nothing: may run any number of times.
    ReadOnly,
    /// Changes something, and doing it twice is the same as once.
    Idempotent,
    /// Must not run twice: the server keeps its reply under (client, xid) until the client acknowledges it.
    Replayable,
}

/// One RPC: a request type with its reply.
pub trait Rpc: Serialize + DeserializeOwned + Send + 'static {
    /// What the service answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// The number on the wire.
    const OPCODE: u16;
    /// The name in logs and metrics.
    const NAME: &'static str;
    /// What a lost connection means for it.
    const CLASS: Class;
    /// Who answers it.
    const SERVICE: Service;
}

/// The reply to one request type, taken out of its service's enum of replies.
pub struct Answer<R: Rpc>(
    /// The reply.
    pub R::Reply,
);

/// Bytes that are not the message they should be.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The opcode is not in the table.
    #[error("unknown opcode {0:#06x}")]
    UnknownOpcode(u16),
    /// The body does not decode, or has bytes left over.
    #[error("body of {rpc} does not decode: {source}")]
    Body {
        /// The RPC's name.
        rpc: &'static str,
        /// The codec's word.
        source: postcard::Error,
    },
    /// Bytes behind the end of the message.
    #[error("body of {rpc} has {extra} bytes too many")]
    TrailingBytes {
        /// The RPC's name.
        rpc: &'static str,
        /// How many.
        extra: usize,
    },
}

/// Encodes a message's body.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // A `Vec` has no end and the messages have no serializer that fails: an error here is a bug of this crate.
    postcard::to_stdvec(message).unwrap_or_default()
}

/// Decodes a message's body, all of it. `rpc` names it in the error.
pub fn decode<T: DeserializeOwned>(rpc: &'static str, body: &[u8]) -> Result<T, DecodeError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|source| DecodeError::Body { rpc, source })?;
    if rest.is_empty() { Ok(message) } else { Err(DecodeError::TrailingBytes { rpc, extra: rest.len() }) }
}

/// Declares the RPCs of one service: an enum of requests, an enum of replies, and [`Rpc`] for each request type.
macro_rules! rpcs {
    (
        $(#[$request_doc:meta])* $request:ident, $(#[$reply_doc:meta])* $reply:ident, $service:ident;
        $($(#[$doc:meta])* $opcode:literal $class:ident $name:ident($message:ty) -> $answer:ty;)*
    ) => {
        $(#[$request_doc])*
        #[derive(Clone, PartialEq, Debug)]
        pub enum $request {
            $($(#[$doc])* $name($message),)*
        }

        $(#[$reply_doc])*
        // A reply lives for one hand-over; boxing the largest would cost an allocation for each of the small ones.
        #[allow(clippy::large_enum_variant)]
        #[derive(Clone, PartialEq, Debug)]
        pub enum $reply {
            $($(#[$doc])* $name($answer),)*
        }

        impl $request {
            /// Every RPC of the service: opcode, name, class.
            pub const TABLE: &'static [(u16, &'static str, $crate::Class)] =
                &[$(($opcode, stringify!($name), $crate::Class::$class),)*];

            /// The number on the wire.
            pub const fn opcode(&self) -> u16 {
                match self { $($request::$name(_) => $opcode,)* }
            }

            /// The name in logs and metrics.
            pub const fn name(&self) -> &'static str {
                match self { $($request::$name(_) => stringify!($name),)* }
            }

            /// What a lost connection means for the request.
            pub const fn class(&self) -> $crate::Class {
                match self { $($request::$name(_) => $crate::Class::$class,)* }
            }

            /// The request's body.
            pub fn encode(&self) -> Vec<u8> {
                match self { $($request::$name(message) => $crate::encode(message),)* }
            }

            /// The request `opcode` with this body.
            pub fn decode(opcode: u16, body: &[u8]) -> Result<$request, $crate::DecodeError> {
                match opcode {
                    $($opcode => $crate::decode(stringify!($name), body).map($request::$name),)*
                    other => Err($crate::DecodeError::UnknownOpcode(other)),
                }
            }
        }

        impl $reply {
            /// The reply's body.
            pub fn encode(&self) -> Vec<u8> {
                match self { $($reply::$name(message) => $crate::encode(message),)* }
            }

            /// The reply to the request `opcode`.
            pub fn decode(opcode: u16, body: &[u8]) -> Result<$reply, $crate::DecodeError> {
                match opcode {
                    $($opcode => $crate::decode(stringify!($name), body).map($reply::$name),)*
                    other => Err($crate::DecodeError::UnknownOpcode(other)),
                }
            }
        }

        $(
            impl $crate::Rpc for $message {
                type Reply = $answer;
                const OPCODE: u16 = $opcode;
                const NAME: &'static str = stringify!($name);
                const CLASS: $crate::Class = $crate::Class::$class;
                const SERVICE: $crate::Service = $crate::Service::$service;
            }

            impl From<$message> for $request {
                fn from(message: $message) -> $request {
                    $request::$name(message)
                }
            }

            impl TryFrom<$reply> for $crate::Answer<$message> {
                type Error = $reply;

                fn try_from(reply: $reply) -> Result<Self, $reply> {
                    match reply {
                        $reply::$name(answer) => Ok($crate::Answer(answer)),
                        #[allow(unreachable_patterns, reason = "a table may have one RPC only")]
                        other => Err(other),
                    }
                }
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use crate::batch::BatchRequest;
    use crate::mds::{GetAttr, MdsReply, MdsRequest};
    use crate::mgs::MgsRequest;
    use crate::oss::OssRequest;
    use crate::stage::StageRequest;
    use crate::{Answer, DecodeError};

    #[test]
    fn opcodes_and_names_are_unique() {
        let tables =
            [MdsRequest::TABLE, OssRequest::TABLE, MgsRequest::TABLE, StageRequest::TABLE, BatchRequest::TABLE];
        let mut opcodes = HashSet::new();
        for (high, table) in (1..).zip(tables) {
            for (opcode, name, _) in table {
                assert_eq!(opcode >> 8, high, "{name} is outside its service's range");
                assert!(opcodes.insert(opcode), "{name} shares its opcode");
            }
        }
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let request = MdsRequest::from(GetAttr { ino: burstfs_types::Ino::ROOT });
        let mut body = request.encode();
        assert_eq!(MdsRequest::decode(request.opcode(), &body).unwrap(), request);
        body.push(0);
        let refused = MdsRequest::decode(request.opcode(), &body);
        assert!(matches!(refused, Err(DecodeError::TrailingBytes { extra: 1, .. })));
    }

    #[test]
    fn an_answer_is_taken_only_from_its_own_reply() {
        assert!(Answer::<GetAttr>::try_from(MdsReply::Unlink(())).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bodies_never_panic(opcode in 0x0100_u16..0x0520, body: Vec<u8>) {
            let _ = MdsRequest::decode(opcode, &body);
            let _ = OssRequest::decode(opcode, &body);
            let _ = MgsRequest::decode(opcode, &body);
            let _ = StageRequest::decode(opcode, &body);
            let _ = BatchRequest::decode(opcode, &body);
            let _ = MdsReply::decode(opcode, &body);
        }
    }
}

//! The one reply of a request, the same over every transport: it is sent once, or given up on purpose; a service that is gone
//! without a word has failed, and its client hears so.

use burstfs_proto::frame::{Header, Kind};
use burstfs_types::{Errno, Xid, limits};
use bytes::Bytes;
use tracing::error;

use crate::transport::{Ending, Refused};

/// The way of a reply back to its client.
pub(crate) trait ReplyPath: Send + Sync + 'static {
    /// The bulk data that goes with it; nothing by default.
    type Put: Default;

    /// Sends the reply. On a connection that is over nobody waits for it.
    fn send(self, answer: Answer, put: Self::Put);
}

/// What a service says to a request.
pub(crate) struct Answer {
    pub(crate) xid: Xid,
    pub(crate) opcode: u16,
    /// The encoded reply, or why there is none.
    pub(crate) result: Result<Bytes, Refused>,
}

impl Answer {
    /// The frame's header, with `put` as bulk data.
    pub(crate) fn header(&self, put: &[u8]) -> Header {
        let ((status, told), body_len) = match &self.result {
            Ok(body) => ((0, 0), body.len()),
            Err(refused) => (refused.on_wire(), 0),
        };
        let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Header {
            xid: self.xid,
            opcode: self.opcode,
            kind: Kind::Reply,
            status,
            body_len: len(body_len),
            bulk_len: len(put.len()),
            bulk_space: 0,
            bulk_crc: if put.is_empty() { told } else { crc32c::crc32c(put) },
        }
    }

    /// The frame's body.
    pub(crate) fn into_body(self) -> Bytes {
        self.result.unwrap_or_default()
    }
}

/// A request's reply that is still to be sent. Dropped, it answers `EIO`.
pub(crate) struct ReplyOnce<P: ReplyPath> {
    xid: Xid,
    opcode: u16,
    /// Until it is answered.
    path: Option<P>,
}

impl<P: ReplyPath> ReplyOnce<P> {
    pub(crate) fn new(xid: Xid, opcode: u16, path: P) -> ReplyOnce<P> {
        ReplyOnce { xid, opcode, path: Some(path) }
    }

    /// The way of the reply, as long as it was not taken.
    pub(crate) fn path(&self) -> Option<&P> {
        self.path.as_ref()
    }

    pub(crate) fn path_mut(&mut self) -> Option<&mut P> {
        self.path.as_mut()
    }

    /// Ends the request; `put` goes with a reply that is no error.
    pub(crate) fn end(mut self, ending: Ending, put: P::Put) {
        match ending {
            Ending::Reply(result) => self.answer(result.map_err(Refused::Errno), put),
            Ending::Damaged { actual } => self.answer(Err(Refused::Damaged { actual }), put),
            Ending::Discard => self.path = None,
        }
    }

    fn answer(&mut self, result: Result<Vec<u8>, Refused>, put: P::Put) {
        let Some(path) = self.path.take() else { return };
        let result = self.checked(result);
        let put = if result.is_ok() { put } else { P::Put::default() };
        path.send(Answer { xid: self.xid, opcode: self.opcode, result }, put);
    }

    /// A reply that no client would accept is a bug of the service; its client gets an error instead of no connection.
    fn checked(&self, result: Result<Vec<u8>, Refused>) -> Result<Bytes, Refused> {
        let body = result?;
        if body.len() > limits::RPC_BODY_MAX_BYTES {
            error!(xid = %self.xid, opcode = self.opcode, bytes = body.len(), "a service's reply is over the limit");
            return Err(Refused::Errno(Errno::EIO));
        }
        Ok(body.into())
    }
}

impl<P: ReplyPath> Drop for ReplyOnce<P> {
    fn drop(&mut self) {
        self.answer(Err(Refused::Errno(Errno::EIO)), P::Put::default());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Said = (Result<Bytes, Refused>, usize);

    #[derive(Clone, Default)]
    struct Sent(Arc<Mutex<Vec<Said>>>);

    impl ReplyPath for Sent {
        type Put = usize;

        fn send(self, answer: Answer, put: usize) {
            self.0.lock().unwrap().push((answer.result, put));
        }
    }

    fn reply(sent: &Sent) -> ReplyOnce<Sent> {
        ReplyOnce::new(Xid(1), 2, sent.clone())
    }

    #[test]
    fn every_end_of_a_request_is_one_answer_or_none_on_purpose() {
        let sent = Sent::default();
        reply(&sent).end(Ending::Reply(Ok(vec![1])), 7);
        reply(&sent).end(Ending::Reply(Err(Errno::ENOSPC)), 7);
        reply(&sent).end(Ending::Reply(Ok(vec![0; limits::RPC_BODY_MAX_BYTES + 1])), 7);
        drop(reply(&sent));
        reply(&sent).end(Ending::Discard, 7);
        reply(&sent).end(Ending::Damaged { actual: 9 }, 7);
        let errno = |errno| (Err(Refused::Errno(errno)), 0);
        let expected = [
            (Ok(Bytes::from_static(&[1])), 7),
            errno(Errno::ENOSPC),
            errno(Errno::EIO),
            errno(Errno::EIO),
            (Err(Refused::Damaged { actual: 9 }), 0),
        ];
        assert_eq!(*sent.0.lock().unwrap(), expected);
    }
}

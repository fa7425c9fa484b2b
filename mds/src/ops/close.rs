//! Takes an open back.

use burstfs_proto::mds::Close;

use crate::namespace::{Namespace, OpError};

/// A file that is not registered as open is no error: a restart forgets the registrations.
pub(crate) fn close(ns: &mut Namespace<'_>, request: &Close) -> Result<(), OpError> {
    if ns.caller_opens == 0 {
        return Ok(());
    }
    ns.effects.closed = Some(request.ino);
    ns.release_orphan(request.ino, 1)
}

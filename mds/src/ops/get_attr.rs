//! Attributes.

use burstfs_proto::mds::GetAttr;
use burstfs_types::Attr;

use crate::namespace::{Namespace, OpError};

pub(crate) fn get_attr(ns: &mut Namespace<'_>, request: &GetAttr) -> Result<Attr, OpError> {
    Ok(ns.existing(request.ino)?.attr(request.ino))
}

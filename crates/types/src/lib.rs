//! The vocabulary that every crate of burstfs shares: ids, names, attributes, layouts, limits and error codes.
//!
//! Owns no behaviour beyond validation at construction: everything here is pure, has no I/O and no clock. A value of
//! one of these types is valid; bytes from a network, a disk or a user become one only through a checked constructor
//! (serde's `try_from` does the same on decoding).

mod acl;
mod amount;
mod attr;
mod code;
mod errno;
pub mod hostlist;
mod ids;
mod instance;
mod job_end;
mod layout;
pub mod limits;
mod metadata_policy;
mod name;
mod policy;
mod ready_made;
pub mod shards;

pub use acl::{ACL_ACCESS, ACL_DEFAULT, Acl, InvalidAcl, NO_ACL};
pub use amount::amount;
pub use attr::{Attr, DeviceNumber, FileKind, Timestamp};
pub use code::{Area, Code, Failure};
pub use errno::Errno;
pub use ids::{ClientId, Ino, MdtIndex, NodeIndex, ObjectId, OstIndex, StripeIndex, Xid};
pub use instance::{InstanceId, InvalidInstanceId};
pub use job_end::{InvalidJobEnd, JobEnd};
pub use layout::{Layout, LayoutError};
pub use metadata_policy::MetadataPolicy;
pub use name::{InvalidName, Name};
pub use policy::{LayoutPolicy, PolicyError, StripePattern};
pub use ready_made::ReadyMade;
pub use shards::Shards;

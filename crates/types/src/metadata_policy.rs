//! How an instance's metadata is spread over its MDTs.

use serde::{Deserialize, Serialize};

/// When the names of a directory are spread over several MDTs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataPolicy {
    /// A directory with more names than this is split; 0: none ever is, whatever else is said.
    pub split_names: u64,
    /// The same for a directory in which several nodes make names.
    pub split_contended_names: u64,
    /// Over at most so many MDTs.
    pub split_shards: u16,
}

impl Default for MetadataPolicy {
    /// A directory of one node's grows large first, since it is quickest in one place.
    fn default() -> MetadataPolicy {
        MetadataPolicy { split_names: 50_000, split_contended_names: 1_000, split_shards: 16 }
    }
}

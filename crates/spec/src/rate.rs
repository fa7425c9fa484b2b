//! Rates of transfer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::lex::Text;
use crate::size::Size;

/// Bytes in a second, at least one; over all nodes of the job together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(Size);

impl Rate {
    /// A size, perhaps with `/s` behind it.
    pub(crate) fn parse(value: &Text) -> Result<Rate, Fault> {
        let text = value.plain();
        let size = text.strip_suffix("/s").unwrap_or(&text).parse::<Size>();
        size.map(Rate).map_err(|error| {
            let message = format!("{}; a rate is a size in a second, for instance 500MiB/s", error.message);
            Fault::new(error.code, &value.span, message)
        })
    }

    /// So many bytes in a second.
    pub fn bytes_per_second(self) -> u64 {
        self.0.bytes()
    }
}

impl From<Size> for Rate {
    fn from(size: Size) -> Rate {
        Rate(size)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

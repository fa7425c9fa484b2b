//! Where a file's bytes live.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{OstIndex, StripeIndex, limits};

/// Stripe size and the ordered OSTs of a file: byte `b` lies in stripe `(b / stripe_size_bytes) % osts.len()`.
/// The arithmetic is in `burstfs-placement`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "RawLayout", into = "RawLayout")]
pub struct Layout {
    stripe_size_bytes: u32,
    osts: Vec<OstIndex>,
}

/// Why a layout is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LayoutError {
    /// Not a power of two within the limits.
    #[error("stripe size {0} is not a power of two from 64 KiB to 1 GiB")]
    StripeSize(u32),
    /// No OST, or too many.
    #[error("{0} stripes; a layout has 1 to {max}", max = limits::STRIPE_COUNT_MAX)]
    StripeCount(usize),
}

impl Layout {
    /// A layout over `osts`, in order.
    pub fn new(stripe_size_bytes: u32, osts: Vec<OstIndex>) -> Result<Layout, LayoutError> {
        check_stripe_size(stripe_size_bytes)?;
        if osts.is_empty() || osts.len() > limits::STRIPE_COUNT_MAX {
            return Err(LayoutError::StripeCount(osts.len()));
        }
        Ok(Layout { stripe_size_bytes, osts })
    }

    /// One stripe on one OST: layout `local`.
    pub fn on_one(ost: OstIndex) -> Layout {
        Layout { stripe_size_bytes: limits::STRIPE_SIZE_DEFAULT_BYTES, osts: vec![ost] }
    }

    /// Bytes of one stripe unit.
    pub fn stripe_size_bytes(&self) -> u32 {
        self.stripe_size_bytes
    }

    /// The OSTs, by stripe index. Never empty.
    pub fn osts(&self) -> &[OstIndex] {
        &self.osts
    }

    /// Each stripe with its OST.
    pub fn stripes(&self) -> impl Iterator<Item = (StripeIndex, OstIndex)> + '_ {
        (0..).map(StripeIndex::new).zip(self.osts.iter().copied())
    }
}

pub(crate) fn check_stripe_size(bytes: u32) -> Result<(), LayoutError> {
    let is_valid = bytes.is_power_of_two() && (1 << 16..=1 << 30).contains(&bytes);
    if is_valid { Ok(()) } else { Err(LayoutError::StripeSize(bytes)) }
}

#[derive(Serialize, Deserialize)]
struct RawLayout {
    stripe_size_bytes: u32,
    osts: Vec<OstIndex>,
}

impl TryFrom<RawLayout> for Layout {
    type Error = LayoutError;

    fn try_from(raw: RawLayout) -> Result<Layout, LayoutError> {
        Layout::new(raw.stripe_size_bytes, raw.osts)
    }
}

impl From<Layout> for RawLayout {
    fn from(layout: Layout) -> RawLayout {
        RawLayout { stripe_size_bytes: layout.stripe_size_bytes, osts: layout.osts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_odd_stripes() {
        let ost = vec![OstIndex::new(0)];
        assert_eq!(Layout::new(100_000, ost.clone()), Err(LayoutError::StripeSize(100_000)));
        assert_eq!(Layout::new(1 << 20, vec![]), Err(LayoutError::StripeCount(0)));
        assert!(Layout::new(1 << 20, ost).is_ok());
    }
}

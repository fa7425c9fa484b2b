//! What a file's bytes should be: a plain vector.

use proptest::prelude::*;

/// Where random operations go.
const FILE_MAX: u64 = 600_000;
/// Stripes of random files: small, so that they have many.
pub(crate) const STRIPE: u32 = 1 << 16;

/// Offsets and lengths that like to meet stripe and block boundaries.
pub(crate) fn position() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..FILE_MAX,
        (0..FILE_MAX / u64::from(STRIPE)).prop_map(|unit| unit * u64::from(STRIPE)),
        (0..FILE_MAX / 4096).prop_map(|block| block * 4096),
    ]
}

pub(crate) fn range(offset: u64, len: u64) -> std::ops::Range<usize> {
    offset as usize..(offset + len) as usize
}

/// What the operations have made of the file.
#[derive(Default)]
pub(crate) struct Model(pub(crate) Vec<u8>);

impl Model {
    pub(crate) fn put(&mut self, offset: u64, len: u64, fill: u8) {
        self.grow(offset + len);
        self.0[range(offset, len)].fill(fill);
    }

    pub(crate) fn grow(&mut self, size: u64) {
        self.0.resize(self.0.len().max(size as usize), 0);
    }

    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.0.len() as u64);
        if offset < end {
            self.0[range(offset, end - offset)].fill(0);
        }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> &[u8] {
        let from = (offset as usize).min(self.0.len());
        &self.0[from..(from + len).min(self.0.len())]
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

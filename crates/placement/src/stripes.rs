//! Stripe arithmetic.

use burstfs_types::{Layout, OstIndex, StripeIndex};

/// A range of a file's bytes that lies in one object without a gap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Which object.
    pub stripe: StripeIndex,
    /// Who holds it.
    pub ost: OstIndex,
    /// Where it begins in the object, bytes.
    pub object_offset: u64,
    /// Where it begins in the file, bytes.
    pub file_offset: u64,
    /// Bytes; never 0.
    pub len: u64,
}

/// The extents of a range, in file order; see [`extents`].
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    layout: &'a Layout,
    next: u64,
    end: u64,
}

/// The `len` bytes of a file from `offset` on, as they lie in its objects. One extent per stripe unit touched; where the
/// layout has one stripe the units follow one another in the object too, and the whole range is one extent. A range past
/// `u64::MAX` ends there.
pub fn extents(layout: &Layout, offset: u64, len: u64) -> Extents<'_> {
    Extents { layout, next: offset, end: offset.saturating_add(len) }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let left = self.end.checked_sub(self.next).filter(|left| *left > 0)?;
        let (size, count) = geometry(self.layout);
        let (unit, within) = (self.next / size, self.next % size);
        let len = if count == 1 { left } else { left.min(size - within) };
        let stripe = unit % count;
        let extent = Extent {
            stripe: StripeIndex::new(u16::try_from(stripe).ok()?),
            ost: *self.layout.osts().get(usize::try_from(stripe).ok()?)?,
            object_offset: unit / count * size + within,
            file_offset: self.next,
            len,
        };
        self.next += len;
        Some(extent)
    }
}

/// The file's size when its objects have these sizes: the end of the last byte that any of them holds. An object that is
/// left out, or of size 0, holds none.
pub fn file_size(layout: &Layout, object_sizes: impl IntoIterator<Item = (StripeIndex, u64)>) -> u64 {
    let ends = object_sizes.into_iter().filter_map(|(stripe, size)| {
        let last = size.checked_sub(1)?;
        Some(file_offset(layout, stripe, last).saturating_add(1))
    });
    ends.max().unwrap_or(0)
}

/// How many of the file's first `file_size` bytes the stripe's object holds: what to truncate it to. It is also the first
/// object offset whose byte lies at or behind the file offset `file_size`: where a seek begins in this object.
pub fn object_size(layout: &Layout, stripe: StripeIndex, file_size: u64) -> u64 {
    let (size, count) = geometry(layout);
    let row = size * count;
    let (rows, rest) = (file_size / row, file_size % row);
    rows * size + rest.saturating_sub(u64::from(stripe.get()) * size).min(size)
}

/// Where the object's byte `object_offset` lies in the file. Saturates at `u64::MAX` (a size that a peer invented).
pub fn file_offset(layout: &Layout, stripe: StripeIndex, object_offset: u64) -> u64 {
    let (size, count) = geometry(layout);
    let unit = (object_offset / size).saturating_mul(count).saturating_add(u64::from(stripe.get()));
    unit.saturating_mul(size).saturating_add(object_offset % size)
}

/// Stripe size in bytes and number of stripes; neither is 0, and their product is at most 2^41.
fn geometry(layout: &Layout) -> (u64, u64) {
    (u64::from(layout.stripe_size_bytes()), layout.osts().len() as u64)
}

#[cfg(test)]
mod tests {
    use burstfs_types::limits;
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 1 << 16;

    fn layout(stripe_size_bytes: u32, count: u16) -> Layout {
        // OST numbers unlike stripe numbers, so that one taken for the other shows.
        Layout::new(stripe_size_bytes, (0..count).map(|n| OstIndex::new(count - n + 100)).collect()).unwrap()
    }

    /// For every byte of a file of `len` bytes its stripe and object offset, found by dealing the bytes out one by one.
    fn deal(stripe_size: u64, count: u16, len: u64) -> Vec<(u16, u64)> {
        let mut filled = vec![0_u64; usize::from(count)];
        let (mut stripe, mut in_unit) = (0_u16, 0);
        (0..len)
            .map(|_| {
                if in_unit == stripe_size {
                    in_unit = 0;
                    stripe = if stripe + 1 == count { 0 } else { stripe + 1 };
                }
                let at = filled[usize::from(stripe)];
                filled[usize::from(stripe)] += 1;
                in_unit += 1;
                (stripe, at)
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn extents_are_what_dealing_out_bytes_gives(count in 1_u16..6, offset in 0..8 * UNIT, len in 0..6 * UNIT) {
            let layout = layout(1 << 16, count);
            let oracle = deal(UNIT, count, offset + len);
            let mut next = offset;
            for extent in extents(&layout, offset, len) {
                prop_assert_eq!(extent.file_offset, next);
                prop_assert!(extent.len > 0);
                prop_assert_eq!(extent.ost, layout.osts()[usize::from(extent.stripe.get())]);
                for byte in 0..extent.len {
                    let (stripe, at) = oracle[(next + byte) as usize];
                    prop_assert_eq!((extent.stripe.get(), extent.object_offset + byte), (stripe, at));
                }
                next += extent.len;
            }
            prop_assert_eq!(next, offset + len);
        }

        #[test]
        fn sizes_are_what_dealing_out_bytes_gives(count in 1_u16..6, len in 0..12 * UNIT) {
            let layout = layout(1 << 16, count);
            let oracle = deal(UNIT, count, len);
            let mut sizes = vec![0_u64; usize::from(count)];
            for (stripe, _) in &oracle {
                sizes[usize::from(*stripe)] += 1;
            }
            for (stripe, _) in layout.stripes() {
                prop_assert_eq!(object_size(&layout, stripe, len), sizes[usize::from(stripe.get())]);
            }
            let by_stripe = layout.stripes().map(|(stripe, _)| (stripe, sizes[usize::from(stripe.get())]));
            prop_assert_eq!(file_size(&layout, by_stripe), len);
        }

        #[test]
        fn a_sparse_file_ends_behind_its_last_byte(count in 1_u16..6, byte in 0..12 * UNIT) {
            let layout = layout(1 << 16, count);
            let (stripe, at) = deal(UNIT, count, byte + 1)[byte as usize];
            prop_assert_eq!(file_size(&layout, [(StripeIndex::new(stripe), at + 1)]), byte + 1);
        }
    }

    fn any_layout() -> impl Strategy<Value = Layout> {
        (16_u32..=30, 1..=limits::STRIPE_COUNT_MAX as u16).prop_map(|(log, count)| layout(1 << log, count))
    }

    proptest! {
        #[test]
        fn offsets_go_there_and_back(layout in any_layout(), offset in 0..limits::FILE_SIZE_MAX_BYTES, len in 1_u64..1 << 22) {
            let len = len.min(limits::FILE_SIZE_MAX_BYTES - offset);
            let mut covered = 0;
            for extent in extents(&layout, offset, len) {
                prop_assert_eq!(file_offset(&layout, extent.stripe, extent.object_offset), extent.file_offset);
                prop_assert_eq!(object_size(&layout, extent.stripe, extent.file_offset), extent.object_offset);
                let last = extent.len - 1;
                prop_assert_eq!(file_offset(&layout, extent.stripe, extent.object_offset + last), extent.file_offset + last);
                covered += extent.len;
            }
            prop_assert_eq!(covered, len);
        }

        #[test]
        fn a_truncation_gives_the_size_asked_for(layout in any_layout(), size in 0..=limits::FILE_SIZE_MAX_BYTES) {
            let sizes = layout.stripes().map(|(stripe, _)| (stripe, object_size(&layout, stripe, size)));
            let sizes: Vec<_> = sizes.collect();
            prop_assert_eq!(sizes.iter().map(|(_, size)| size).sum::<u64>(), size);
            prop_assert_eq!(file_size(&layout, sizes), size);
        }

        #[test]
        fn nothing_overflows(layout in any_layout(), offset: u64, len: u64, stripe: u16) {
            for extent in extents(&layout, offset, len).take(3) {
                prop_assert!(extent.len <= len);
            }
            let stripe = StripeIndex::new(stripe);
            let _ = (file_offset(&layout, stripe, offset), object_size(&layout, stripe, offset));
            let _ = file_size(&layout, [(stripe, offset)]);
        }
    }

    #[test]
    fn one_stripe_is_one_extent() {
        let layout = Layout::on_one(OstIndex::new(7));
        let all: Vec<_> = extents(&layout, 5, limits::FILE_SIZE_MAX_BYTES - 5).collect();
        let whole = Extent {
            stripe: StripeIndex::new(0),
            ost: OstIndex::new(7),
            object_offset: 5,
            file_offset: 5,
            len: limits::FILE_SIZE_MAX_BYTES - 5,
        };
        assert_eq!(all, [whole]);
    }
}

//! How logical volumes grow: by extents, as many at once as there are stripes, each as often as there are copies.

use crate::model::Bytes;

/// What a volume's growth is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// It grows by multiples of this.
    pub unit: Bytes,
    /// It takes this many times its growth, as numerator and denominator.
    pub taken: (u64, u64),
}

impl Rounding {
    /// From the fields of `lvs`. `None` for a type of volume that growd does not grow.
    pub fn of(segment_type: &str, extent: Bytes, stripes: u64, data_stripes: u64, copies: u64) -> Option<Self> {
        let (stripes, data_stripes, copies) = (stripes.max(1), data_stripes.max(1), copies.max(1));
        let (wide, taken) = match segment_type {
            "linear" | "thin" => (1, (1, 1)),
            "striped" | "raid0" | "raid0_meta" => (stripes, (1, 1)),
            // Each leg is a whole copy.
            "mirror" | "raid1" => (1, (stripes, 1)),
            _ if segment_type.starts_with("raid10") => (stripes / copies, (copies, 1)),
            _ if ["raid4", "raid5", "raid6"].iter().any(|kind| segment_type.starts_with(kind)) => {
                (data_stripes, (stripes, data_stripes))
            }
            _ => return None,
        };
        Some(Self { unit: Bytes::new(extent.get().saturating_mul(wide.max(1))), taken })
    }

    /// The least size of at least `wanted` that a volume of size `now` can grow to.
    pub fn round_up(self, now: Bytes, wanted: Bytes) -> Bytes {
        let unit = self.unit.get().max(1);
        now.saturating_add(wanted.saturating_sub(now).rounded_up_to(unit))
    }

    /// What a growth by this takes of the volume group.
    pub fn space(self, growth: Bytes) -> Bytes {
        let (times, parts) = self.taken;
        let space = u128::from(growth.get()) * u128::from(times) / u128::from(parts.max(1));
        Bytes::new(u64::try_from(space).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: Bytes = Bytes::mib(1);

    fn rounding(kind: &str, stripes: u64, data_stripes: u64, copies: u64) -> Option<(u64, (u64, u64))> {
        let rounding = Rounding::of(kind, MIB, stripes, data_stripes, copies)?;
        Some((rounding.unit.get() / MIB.get(), rounding.taken))
    }

    #[test]
    fn knows_stripes_and_copies() {
        assert_eq!(rounding("linear", 1, 1, 1), Some((1, (1, 1))));
        assert_eq!(rounding("thin", 0, 0, 1), Some((1, (1, 1))));
        assert_eq!(rounding("striped", 3, 3, 1), Some((3, (1, 1))));
        assert_eq!(rounding("raid1", 2, 2, 2), Some((1, (2, 1))));
        assert_eq!(rounding("raid10", 4, 4, 2), Some((2, (2, 1))));
        assert_eq!(rounding("raid5_ls", 3, 2, 1), Some((2, (3, 2))));
        assert_eq!(rounding("raid6_zr", 5, 3, 1), Some((3, (5, 3))));
        assert_eq!(rounding("cache", 1, 1, 1), None);
    }

    proptest! {
        #[test]
        fn rounds_to_the_least_that_is_enough(now: u64, wanted: u64, extents in 1..1_000_000_u64, stripes in 1..32_u64) {
            let rounding = Rounding::of("striped", Bytes::new(extents), stripes, stripes, 1).unwrap();
            let (now, wanted) = (Bytes::new(now), Bytes::new(wanted));
            let size = rounding.round_up(now, wanted);
            prop_assert!(size >= now && size >= wanted);
            let growth = size.saturating_sub(now);
            prop_assert!(growth < wanted.saturating_sub(now).saturating_add(rounding.unit));
            if size < Bytes::new(u64::MAX) {
                prop_assert_eq!(growth.get() % rounding.unit.get(), 0);
            }
        }
    }
}

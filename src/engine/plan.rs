//! What is left to do: from what the kernel says and the target, nothing else. A step that a crash interrupted is found
//! done or not done here, so there is no second account of it.

use crate::driver::{Sizes, Step};
use crate::model::Bytes;

/// The next step towards a size of at least `target`; `None` when nothing is left, also where the share is larger.
pub fn next_step(target: Bytes, sizes: Sizes) -> Option<Step> {
    match sizes {
        Sizes::Limit(limit) => (limit < target).then_some(Step::SetLimit { to: target }),
        Sizes::Volume { room, .. } if room < target => Some(Step::GrowVolume { to: target }),
        Sizes::Volume { filesystem, .. } => {
            filesystem.filter(|size| *size < target).map(|_| Step::GrowFilesystem { to: target })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_sizes() -> impl Strategy<Value = Sizes> {
        let bytes = || any::<u64>().prop_map(Bytes::new);
        prop_oneof![
            bytes().prop_map(Sizes::Limit),
            (bytes(), prop::option::of(bytes())).prop_map(|(room, filesystem)| Sizes::Volume { room, filesystem }),
        ]
    }

    /// A backend that rounds up.
    fn done(sizes: Sizes, step: Step, rounding: u64) -> Sizes {
        let rounded = |to: Bytes| Bytes::new(to.get().saturating_add(rounding));
        match (step, sizes) {
            (Step::SetLimit { to }, Sizes::Limit(limit)) => {
                assert!(to > limit);
                Sizes::Limit(rounded(to))
            }
            (Step::GrowVolume { to }, Sizes::Volume { room, filesystem }) => {
                assert!(to > room);
                Sizes::Volume { room: rounded(to), filesystem }
            }
            (Step::GrowFilesystem { to }, Sizes::Volume { room, filesystem: Some(filesystem) }) => {
                assert!(to > filesystem && to <= room);
                Sizes::Volume { room, filesystem: Some(room) }
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn reaches_the_target_in_two_steps_and_never_shrinks(
            sizes in any_sizes(), target in any::<u64>(), rounding in 0..1_u64 << 30,
        ) {
            let (target, before) = (Bytes::new(target), sizes);
            let mut sizes = sizes;
            let mut steps = 0;
            while let Some(step) = next_step(target, sizes) {
                sizes = done(sizes, step, rounding);
                steps += 1;
                prop_assert!(steps <= 2);
            }
            prop_assert!(sizes.usable() >= target && sizes.usable() >= before.usable());
        }
    }
}

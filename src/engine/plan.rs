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

        /// Killed at any moment, and with a step that somebody else did meanwhile: what is observed then decides alone.
        #[test]
        fn goes_on_from_whatever_was_left(
            sizes in any_sizes(), target in any::<u64>(), rounding in 0..1_u64 << 30, killed in prop::collection::vec(any::<bool>(), 8),
            grown in 0..1_u64 << 40,
        ) {
            let target = Bytes::new(target);
            let mut sizes = sizes;
            for done_before_the_kill in killed {
                let Some(step) = next_step(target, sizes) else { break };
                let before = sizes.usable();
                if done_before_the_kill {
                    sizes = done(sizes, step, rounding);
                }
                if let Sizes::Volume { room, filesystem } = sizes {
                    sizes = Sizes::Volume { room: room.saturating_add(Bytes::new(grown)), filesystem };
                }
                prop_assert!(sizes.usable() >= before);
            }
            while let Some(step) = next_step(target, sizes) {
                sizes = done(sizes, step, rounding);
            }
            prop_assert!(sizes.usable() >= target);
        }

        /// What a finding advises for a share that is half grown is the one step that is left.
        #[test]
        fn an_extend_to_the_room_of_a_half_grown_share_grows_the_file_system_alone(room: u64, lacking in 1..u64::MAX) {
            let (room, filesystem) = (Bytes::new(room), Bytes::new(room.saturating_sub(lacking)));
            let sizes = Sizes::Volume { room, filesystem: Some(filesystem) };
            let step = (filesystem < room).then_some(Step::GrowFilesystem { to: room });
            prop_assert_eq!(next_step(room, sizes), step);
        }
    }
}

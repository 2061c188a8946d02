//! What is left to do: from what the kernel says and the target, nothing else. A step that a crash interrupted is found
//! done or not done here, so there is no second account of it.

use crate::driver::Step;
use crate::model::Bytes;

/// The next step towards a size of at least `target`; `None` when nothing is left, also where the share is larger.
pub fn next_step(target: Bytes, size: Bytes) -> Option<Step> {
    (size < target).then_some(Step::SetLimit { to: target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reaches_the_target_and_never_shrinks(size in any::<u64>(), target in any::<u64>()) {
            let (before, target) = (Bytes::new(size), Bytes::new(target));
            let after = match next_step(target, before) {
                Some(Step::SetLimit { to }) => {
                    prop_assert!(to > before);
                    to
                }
                None => before,
            };
            prop_assert!(after >= target && after >= before);
            prop_assert_eq!(next_step(target, after), None);
        }
    }
}

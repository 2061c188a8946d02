//! How a limit is lowered, of whichever kind of quota: the rules, over what was asked and what the kernel said.

use std::path::Path;

use super::{Bounds, DriverError};
use crate::model::{Bytes, Refusal};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lowering {
    /// Nothing: the limit is as low already.
    There,
    /// The limit is lowered already and below what is in use, which a crash may leave: put the old one back.
    PutBack,
    /// Nothing, since more is in use.
    TooMuchInUse,
    Lower,
}

/// `to` is what was asked for, `limit` that size as the file system counts limits, which is not less.
pub(super) fn lowering(now: Bounds, limit: Bytes, to: Bytes) -> Lowering {
    if now.limit < limit || (now.limit == limit && now.used <= limit) {
        Lowering::There
    } else if now.limit == limit {
        Lowering::PutBack
    } else if now.used > to {
        Lowering::TooMuchInUse
    } else {
        Lowering::Lower
    }
}

/// Why a limit stays below what is in use, which no refusal may leave unsaid.
pub(super) fn not_put_back(location: &Path, limit: Bytes, used: Bytes, error: DriverError) -> DriverError {
    let (location, error) = (location.display(), error.into_refusal());
    let problem = format!("{location} has {used} in use and a lower limit, since {limit} was not put back: {error}");
    Refusal::Internal { problem }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lowered_only_above_what_is_in_use() {
        let decided = |limit, used| {
            let now = Bounds { limit: Bytes::new(limit), used: Bytes::new(used) };
            lowering(now, Bytes::new(8), Bytes::new(7))
        };
        assert_eq!((decided(4, 0), decided(4, 9)), (Lowering::There, Lowering::There), "somebody has set it lower");
        assert_eq!((decided(8, 8), decided(8, 9)), (Lowering::There, Lowering::PutBack));
        assert_eq!((decided(9, 7), decided(9, 8)), (Lowering::Lower, Lowering::TooMuchInUse));
    }
}

//! How a limit is lowered, of whichever kind of quota, and put back where somebody has written beyond it meanwhile: the one
//! place that decides to make anything smaller.
//!
//! A limit below what is in use loses no data: the kernel refuses new writes, nothing else. But no tenant asked for that.
//! What is in use can only be trusted once the new limit bounds it, so it is read again then.

use std::path::Path;
use std::time::Instant;

use super::promises::Promises;
use super::{Bounds, DriverError, Outcome, SpaceId};
use crate::model::{Bytes, Refusal, ShareId};

/// A share whose limit is lowered, and how that is done where it is.
pub(super) struct Lowered<'a> {
    pub share: ShareId,
    pub location: &'a Path,
    /// What was read last.
    pub now: Bounds,
    pub promises: &'a Promises,
    /// What it is promised of.
    pub space: &'a SpaceId,
    /// Sets the limit.
    pub write: &'a dyn Fn(Bytes) -> Result<(), DriverError>,
    /// Sets the limit that was there before, durably: a power cut must not leave the lower one to a job that failed.
    pub put_back: &'a dyn Fn(Bytes) -> Result<(), DriverError>,
    /// Reads limit and use again.
    pub look: &'a dyn Fn() -> Result<Bounds, DriverError>,
}

impl Lowered<'_> {
    /// `to` is what was asked for, `limit` that size as the file system counts limits, which is not less. A limit that is
    /// lowered already and below what is in use, which a crash may leave, becomes `from` again.
    pub fn lower(&self, from: Bytes, to: Bytes, limit: Bytes) -> Result<Outcome, DriverError> {
        let Bounds { limit: before, used } = self.now;
        let begun = Instant::now();
        let too_small = |used| Refusal::WouldLoseData { share: self.share, used, requested: to };
        match lowering(self.now, limit, to) {
            Lowering::There => return Ok(Outcome::AlreadyThere { size: before }),
            Lowering::PutBack => return Err(self.back_to(from, used, too_small(used).into())),
            Lowering::TooMuchInUse => return Err(too_small(used).into()),
            Lowering::Lower => (self.write)(limit)?,
        }
        match (self.look)() {
            Ok(new) if new.limit > limit => {
                let (location, reads) = (self.location.display(), new.limit);
                let problem = format!("the limit of {location} was set to {limit}, but reads {reads}");
                Err(Refusal::Internal { problem }.into())
            }
            Ok(new) if new.used > new.limit => Err(self.back_to(before, new.used, too_small(new.used).into())),
            Ok(new) => {
                self.promises.take(self.space, before.saturating_sub(new.limit), begun);
                Ok(Outcome::Changed { from: before, to: new.limit })
            }
            Err(unknown) => Err(self.back_to(before, used, unknown)),
        }
    }

    /// Puts a limit back and gives why; or says that it stays below what is in use, which no refusal may leave unsaid.
    fn back_to(&self, limit: Bytes, used: Bytes, why: DriverError) -> DriverError {
        let done = (self.put_back)(limit);
        self.promises.forget(self.space);
        let Err(error) = done else { return why };
        let (location, error) = (self.location.display(), error.into_refusal());
        let problem =
            format!("{location} has {used} in use and a lower limit, since {limit} was not put back: {error}");
        Refusal::Internal { problem }.into()
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lowering {
    /// Nothing: the limit is as low already.
    There,
    /// The limit is lowered already and below what is in use, which a crash may leave: put the old one back.
    PutBack,
    /// Nothing, since more is in use.
    TooMuchInUse,
    Lower,
}

fn lowering(now: Bounds, limit: Bytes, to: Bytes) -> Lowering {
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

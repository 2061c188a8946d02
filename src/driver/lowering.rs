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
    /// `from` is the limit as it was read when the shrink was accepted: above it somebody has raised it since, to a size
    /// that nobody asked to lower. `to` is what was asked for, `limit` that size as the file system counts limits, which is
    /// not less. A limit that is lowered already and below what is in use, which a crash may leave, becomes `from` again.
    pub fn lower(&self, from: Bytes, to: Bytes, limit: Bytes) -> Result<Outcome, DriverError> {
        let Bounds { limit: before, used } = self.now;
        if before > from {
            return Err(Refusal::CurrentSizeMismatch { share: self.share, current: before, expected: from }.into());
        }
        let begun = Instant::now();
        let too_small = |used| Refusal::WouldLoseData { share: self.share, used, requested: to };
        if before < limit || (before == limit && used <= limit) {
            return Ok(Outcome::AlreadyThere { size: before });
        }
        if before == limit {
            return Err(self.back_to(from, used, too_small(used).into()));
        }
        if used > to {
            return Err(too_small(used).into());
        }
        (self.write)(limit)?;
        match (self.look)() {
            Ok(new) if new.limit > limit => {
                let (location, reads) = (self.location.display(), new.limit);
                let problem = format!("the limit of {location} was set to {limit}, but reads {reads}");
                Err(Refusal::Internal { problem }.into())
            }
            Ok(new) if new.used > new.limit => Err(self.back_to(before, new.used, too_small(new.used).into())),
            Ok(new) => {
                self.promises.subtract(self.space, before.saturating_sub(new.limit), begun);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const SPACE: &str = "disk";

    /// What became of a limit that was 10 of a share with `used` in use, was read as `now` and was to be lowered to 8 (in
    /// blocks; 7 was asked for): every limit that was set, and what all limits add up to.
    /// `looks` is what is read after the change.
    fn lowered(
        now: (u64, u64),
        looks: Result<(u64, u64), &str>,
        put_back: Result<(), &str>,
    ) -> (Result<Outcome, Refusal>, Vec<(&'static str, u64)>, Bytes) {
        let bounds = |(limit, used)| Bounds { limit: Bytes::new(limit), used: Bytes::new(used) };
        let failed = |what: &str| DriverError::from(Refusal::Internal { problem: what.to_owned() });
        let (set, promises, space) = (RefCell::new(Vec::new()), Promises::default(), SpaceId(SPACE.to_owned()));
        let scanned = |sum| promises.sum(&space, || Ok::<_, ()>(Bytes::new(sum))).unwrap();
        scanned(100);
        let lowered = Lowered {
            share: ShareId::from_uuid(uuid::Uuid::nil()),
            location: Path::new("/srv/a"),
            now: bounds(now),
            promises: &promises,
            space: &space,
            write: &|limit| {
                set.borrow_mut().push(("set", limit.get()));
                Ok(())
            },
            put_back: &|limit| {
                set.borrow_mut().push(("put back", limit.get()));
                put_back.map_err(failed)
            },
            look: &|| looks.map(bounds).map_err(failed),
        };
        let outcome = lowered.lower(Bytes::new(10), Bytes::new(7), Bytes::new(8));
        // Where nobody knows what the limits add up to now, they are added up again.
        let promised = scanned(1000);
        (outcome.map_err(DriverError::into_refusal), set.into_inner(), promised)
    }

    fn would_lose(used: u64) -> Result<Outcome, Refusal> {
        let share = ShareId::from_uuid(uuid::Uuid::nil());
        Err(Refusal::WouldLoseData { share, used: Bytes::new(used), requested: Bytes::new(7) })
    }

    fn internal(problem: &str) -> Result<Outcome, Refusal> {
        Err(Refusal::Internal { problem: problem.to_owned() })
    }

    #[test]
    fn a_limit_is_lowered_read_again_and_no_longer_promised() {
        let done = |from| Ok(Outcome::Changed { from: Bytes::new(from), to: Bytes::new(8) });
        assert_eq!(lowered((10, 7), Ok((8, 8)), Ok(())), (done(10), vec![("set", 8)], Bytes::new(98)));
        assert_eq!(lowered((9, 0), Ok((8, 0)), Ok(())), (done(9), vec![("set", 8)], Bytes::new(99)));
    }

    #[test]
    fn a_limit_that_is_as_low_already_stays() {
        let there = |size| (Ok(Outcome::AlreadyThere { size: Bytes::new(size) }), vec![], Bytes::new(100));
        assert_eq!(lowered((8, 8), Err("not asked"), Ok(())), there(8));
        // Lower, as somebody has set it: also below what is in use.
        for used in [0, 9] {
            assert_eq!(lowered((4, used), Err("not asked"), Ok(())), there(4));
        }
    }

    #[test]
    fn a_limit_that_somebody_has_raised_meanwhile_stays() {
        let (outcome, set, promised) = lowered((30, 0), Err("not asked"), Ok(()));
        let share = ShareId::from_uuid(uuid::Uuid::nil());
        let mismatch = Refusal::CurrentSizeMismatch { share, current: Bytes::new(30), expected: Bytes::new(10) };
        assert_eq!((outcome, set, promised), (Err(mismatch), vec![], Bytes::new(100)));
    }

    #[test]
    fn whoever_is_in_the_way_keeps_the_old_limit() {
        for before in [10, 9] {
            assert_eq!(lowered((before, 8), Err("not asked"), Ok(())), (would_lose(8), vec![], Bytes::new(100)));
        }
        // Written between the look and the change.
        let put_back = vec![("set", 8), ("put back", 9)];
        assert_eq!(lowered((9, 7), Ok((8, 9)), Ok(())), (would_lose(9), put_back, Bytes::new(1000)));
        // Written before a crash, which came before the limit was put back.
        assert_eq!(
            lowered((8, 9), Err("not asked"), Ok(())),
            (would_lose(9), vec![("put back", 10)], Bytes::new(1000))
        );
    }

    #[test]
    fn a_limit_of_which_nothing_can_be_read_is_put_back() {
        let put_back = vec![("set", 8), ("put back", 10)];
        assert_eq!(lowered((10, 7), Err("no answer"), Ok(())), (internal("no answer"), put_back, Bytes::new(1000)));
    }

    #[test]
    fn a_limit_that_reads_higher_than_it_was_set_is_told_of() {
        let told = internal("the limit of /srv/a was set to 8B, but reads 9B");
        assert_eq!(lowered((10, 7), Ok((9, 7)), Ok(())), (told, vec![("set", 8)], Bytes::new(100)));
    }

    #[test]
    fn a_lower_limit_that_stays_is_never_left_unsaid() {
        let told = |used, limit| {
            let problem = "/srv/a has USEDB in use and a lower limit, since LIMITB was not put back: no room";
            internal(&problem.replace("USED", used).replace("LIMIT", limit))
        };
        let outcome = |now, looks| lowered(now, looks, Err("no room")).0;
        assert_eq!(outcome((10, 7), Ok((8, 9))), told("9", "10"));
        assert_eq!(outcome((10, 7), Err("no answer")), told("7", "10"));
        assert_eq!(outcome((8, 9), Err("not asked")), told("9", "10"));
    }
}

//! The one place where a limit is lowered, and put back where somebody has written beyond it meanwhile.
//!
//! A limit below what is in use loses no data: the kernel refuses new writes, nothing else. But no tenant asked for that.
//! What is in use can only be trusted once the new limit bounds it, so it is read again then.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::statfs::fstatfs;

use super::{ProjectQuota, Share};
use crate::driver::lowering::{Lowering, lowering, not_put_back};
use crate::driver::places::Pool;
use crate::driver::{Bounds, DriverError, Outcome, system};
use crate::model::{Bytes, Refusal, ShareId};
use crate::sys::journal;

impl ProjectQuota {
    pub(super) fn lower_limit(&self, share: ShareId, from: Bytes, to: Bytes) -> Result<Outcome, DriverError> {
        let base = self.base()?;
        let (found, pool) = (self.find(&base, share)?, &base.pool);
        let now = found.observed.shrinkable()?;
        let Bounds { limit: before, used } = now;
        let hard = in_blocks(pool, to)?;
        let too_small = |used| DriverError::from(Refusal::WouldLoseData { share, used, requested: to });
        match lowering(now, hard, to) {
            Lowering::There => return Ok(Outcome::AlreadyThere { size: before }),
            Lowering::PutBack => {
                self.put_back(pool, &found, from, used)?;
                return Err(too_small(used));
            }
            Lowering::TooMuchInUse => return Err(too_small(used)),
            Lowering::Lower => {}
        }
        let old = found.quota.ok_or_else(|| found.just_turned_off())?;
        // XFS ignores a hard limit below the soft one.
        let soft = if old.soft == old.hard { hard } else { old.soft.min(hard) };
        let begun = Instant::now();
        self.write_limits(pool, &found, hard, soft)?;
        let new = match found.read_again() {
            Ok(new) => new,
            Err(unknown) => {
                self.put_back(pool, &found, before, used)?;
                return Err(unknown);
            }
        };
        if new.hard > hard {
            let location = found.observed.location.display();
            let problem = format!("the limit of {location} was set to {hard}, but reads {}", new.hard);
            return Err(Refusal::Internal { problem }.into());
        }
        if new.used > new.hard {
            self.put_back(pool, &found, before, new.used)?;
            return Err(too_small(new.used));
        }
        self.promises.take(&pool.space_id(), before.saturating_sub(new.hard), begun);
        Ok(Outcome::Changed { from: before, to: new.hard })
    }

    /// Sets the limit that was there before, durably: a power cut must not leave the lower one to a job that failed.
    fn put_back(&self, pool: &Pool, found: &Share, hard: Bytes, used: Bytes) -> Result<(), DriverError> {
        // Of a soft limit that a crash separates from its old value only what is left of it is known.
        let soft = match found.quota {
            Some(old) if old.soft != old.hard => old.soft,
            _ => hard,
        };
        let done = self
            .write_limits(pool, found, hard, soft)
            .and_then(|()| journal::force(pool.fd.as_fd()).map_err(system("flush the journal at", &pool.path)));
        self.promises.forget(&pool.space_id());
        done.map_err(|error| not_put_back(&found.observed.location, hard, used, error))
    }
}

/// As the file system counts limits: XFS in its blocks. A limit that is set so reads the same.
fn in_blocks(pool: &Pool, size: Bytes) -> Result<Bytes, DriverError> {
    let block = fstatfs(&pool.fd).map_err(system("statfs", &pool.path))?.block_size();
    let block = u64::try_from(block).unwrap_or(1).max(1);
    Ok(Bytes::new(size.get().div_ceil(block).saturating_mul(block)))
}

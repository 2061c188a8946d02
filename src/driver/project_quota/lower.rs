//! Lowers a limit, as [`Lowered`] decides.

use std::os::fd::AsFd;

use nix::sys::statfs::fstatfs;

use super::ProjectQuota;
use crate::driver::lowering::Lowered;
use crate::driver::places::PoolDirectory;
use crate::driver::{Bounds, DriverError, Outcome, system};
use crate::model::{Bytes, ShareId};
use crate::sys::journal;

impl ProjectQuota {
    pub(super) fn lower_limit(&self, share: ShareId, from: Bytes, to: Bytes) -> Result<Outcome, DriverError> {
        let base = self.base()?;
        let (found, pool) = (self.find(&base, share)?, &base.pool);
        let now = found.observed.shrinkable()?;
        let old = found.known_quota()?;
        let own_soft = (old.soft != old.hard).then_some(old.soft);
        // XFS ignores a hard limit below the soft one.
        let write = |hard| self.write_limits(pool, &found, hard, own_soft.map_or(hard, |soft| soft.min(hard)));
        let put_back = |hard| {
            // After a crash the soft limit may be lowered already; what it was before, nobody knows then.
            self.write_limits(pool, &found, hard, own_soft.unwrap_or(hard))?;
            journal::force(pool.fd.as_fd()).map_err(system("flush the journal at", &pool.path))
        };
        let look = || found.read_again().map(|new| Bounds { limit: new.hard, used: new.used });
        let (location, promises, space) = (&found.observed.location, &self.promises, &pool.space_id());
        let lowered =
            Lowered { share, location, now, promises, space, write: &write, put_back: &put_back, look: &look };
        lowered.lower(from, to, in_blocks(pool, to)?)
    }
}

/// As the file system counts limits: XFS in its blocks. A limit that is set so reads the same.
fn in_blocks(pool: &PoolDirectory, size: Bytes) -> Result<Bytes, DriverError> {
    let block = fstatfs(&pool.fd).map_err(system("statfs", &pool.path))?.block_size();
    Ok(size.rounded_up_to(u64::try_from(block).unwrap_or(1).max(1)))
}

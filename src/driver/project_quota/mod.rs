//! Directories with a project quota, on XFS or ext4: a share's size is the hard limit of its project.
//!
//! Every answer is read from the kernel at the time of the call, through a descriptor of the share's own directory.
//! Nothing but [`ProjectQuota::lower_limit`] lowers a limit.

mod census;
mod findings;

use std::iter;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use self::census::Census;
pub use self::census::Censuses;
use self::findings::Case;
use super::lowering::Lowered;
use super::path_template::PathTemplate;
use super::places::{Ground, Opened, Places, PoolDirectory, quotas_unread};
use super::promises::Promises;
use super::{
    Assessment, Driver, DriverError, Observed, Outcome, Problem, Shares, Sizes, Space, Step, answer_each, system,
};
use crate::model::{Bytes, DriverKind, PoolName, ProjectLabel, Refusal, ShareId};
use crate::sys::file_system::{self, Kind};
use crate::sys::open_beneath::DIRECTORY;
use crate::sys::quotactl::{self, LIMIT_BLOCK, QuotaError, QuotaState};
use crate::sys::{fsxattr, journal};

const GROUND: Ground = Ground {
    way: DIRECTORY,
    what: "file system with project quotas",
    is_there: |pool| Ok(quotactl::state(pool.fd.as_fd())?.accounting),
    turn_on: |pool| {
        let fd = pool.fd.as_fd();
        // ext4 has its quotas off as long as it is read-only.
        match (file_system::kind(fd), file_system::is_read_only(fd), quotactl::state(fd)) {
            (Ok(Some(kind)), Ok(false), Ok(state)) => findings::turn_on(fd, kind, state),
            _ => None,
        }
    },
    holds: |pool, directory| Ok(fstat(directory)?.st_dev == pool.device),
};

/// A pool of directories on one file system.
pub struct ProjectQuota {
    places: Arc<Places>,
    census: Arc<Census>,
    censuses: Arc<Censuses>,
    promises: Arc<Promises>,
}

/// The pool's directory, and what holds for all shares on its file system.
struct Base {
    pool: PoolDirectory,
    /// `None` where it has no project quotas.
    kind: Option<Kind>,
    quotas: QuotaState,
    /// What is wrong when nothing can be changed through the pool's directory.
    read_only: Option<Problem>,
    /// That of the pool's directory, which whatever is made in it may inherit.
    project: u32,
    /// Of the other pools on it.
    others: Vec<(Arc<Census>, PoolDirectory)>,
}

/// A share that was found, and what its quota is.
struct Share {
    directory: OwnedFd,
    kind: Kind,
    observed: Observed,
    quota: Option<quotactl::Quota>,
}

impl Share {
    fn just_turned_off(&self) -> Refusal {
        let (location, problem) = (self.observed.location.clone(), "it was just turned off".to_owned());
        Refusal::QuotaNotEnforced { location, problem }
    }

    fn known_quota(&self) -> Result<quotactl::Quota, Refusal> {
        self.quota.ok_or_else(|| self.just_turned_off())
    }
}

impl ProjectQuota {
    /// `places` are the shares that are not where the template says. They belong to the pool as the others do and must
    /// be on its file system. `promises` and `censuses` are one for all pools of the daemon, since pools may share a file
    /// system.
    pub fn new(
        pool: PoolName,
        template: PathTemplate,
        places: Vec<(ShareId, PathBuf)>,
        promises: Arc<Promises>,
        censuses: Arc<Censuses>,
    ) -> Self {
        let places = Arc::new(Places::new(GROUND, pool, template, places));
        let census = censuses.0.join(Census::new(Arc::clone(&places)));
        Self { places, census, censuses, promises }
    }

    fn base(&self) -> Result<Base, DriverError> {
        self.look_around(self.places.open_pool()?)
    }

    fn look_around(&self, pool: PoolDirectory) -> Result<Base, DriverError> {
        let fd = pool.fd.as_fd();
        let kind = file_system::kind(fd).map_err(system("statfs", &pool.path))?;
        let quotas = kind.map_or(Ok(QuotaState::default()), |_| quotactl::state(fd));
        let quotas = quotas.map_err(quotas_unread(&pool.path))?;
        let others = self.censuses.0.beside(&self.places, &pool)?;
        let read_only = self.places.read_only_at(&pool.path, fd)?;
        let project = fsxattr::get(fd).map_or(0, |attributes| attributes.project_id);
        Ok(Base { pool, kind, quotas, read_only, project, others })
    }

    fn find(&self, base: &Base, share: ShareId) -> Result<Share, DriverError> {
        let Base { pool, kind, quotas: state, read_only, project: of_pool, others } = base;
        let Opened { fd: directory, path: location, project } = self.places.open_share(pool, share)?;
        let (fd, state) = (directory.as_fd(), *state);
        let kind = kind.ok_or_else(|| unsupported(pool))?;
        // One with a place of its own may be reached through another mount.
        let read_only = match self.places.is_explicit(share) {
            true => self.places.read_only_at(&location, fd)?,
            false => read_only.clone(),
        };
        let attributes = match fsxattr::get(fd) {
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => fsxattr::Attributes { project_id: 0, inherits: false },
            result => result.map_err(system("read the project of", &location))?,
        };
        // Before the quota, which is written from what is read now: a look at all shares leaves others time to change it.
        let censuses = iter::once((&self.census, pool)).chain(others.iter().map(|(census, pool)| (census, pool)));
        let twin = match attributes.project_id {
            0 => None,
            id if id == *of_pool => Some(pool.path.clone()),
            // One that cannot be looked for may be there.
            id => {
                censuses.map(|(census, pool)| census.twin(pool, share, id)).find_map(Result::transpose).transpose()?
            }
        };
        let quota = match attributes.project_id {
            _ if !state.accounting => None,
            // Whoever may not write may not read a quota of ext4 either.
            _ if read_only.is_some() && kind == Kind::Ext4 => None,
            0 => None,
            id => self.read_quota(fd, kind, id, &location)?,
        };
        let case =
            Case { location: &location, fd, kind, writable: read_only.is_none(), state, attributes, twin, quota };
        let problems = read_only.into_iter().chain(case.problems()).collect();
        let bounded = state.enforcement && attributes.inherits;
        let limit = quota.map(|quota| quota.hard).filter(|hard| bounded && *hard > Bytes::ZERO);
        let used = quota.map(|quota| quota.used);
        let (sizes, filesystem) = (limit.map(Sizes::Limit), kind.name());
        let observed = Observed { location, project, filesystem, sizes, used, problems };
        Ok(Share { directory, kind, observed, quota })
    }

    fn space_of(&self, pool: &PoolDirectory) -> Result<Space, DriverError> {
        let (id, fd) = (pool.space_id(), pool.fd.as_fd());
        let capacity = file_system::capacity(fd).map_err(system("measure", &pool.path))?;
        let kind = capacity.kind.ok_or_else(|| unsupported(pool))?;
        let promised = match self.promises.sum(&id, || promised(fd, kind)) {
            Ok(sum) => sum,
            Err(QuotaError::Off) => Bytes::ZERO,
            Err(QuotaError::System(errno)) => return Err(self.failed(fd, "sum the quotas of", &pool.path, errno)),
        };
        Ok(Space {
            id,
            filesystem: kind.name(),
            total: capacity.total,
            free: capacity.free,
            promised,
            thin: None,
            problems: Vec::new(),
        })
    }

    fn set_limit(&self, share: ShareId, to: Bytes) -> Result<Outcome, DriverError> {
        let base = self.base()?;
        let found = self.find(&base, share)?;
        found.observed.extendable()?;
        let old = found.known_quota()?;
        let Some((hard, soft)) = raised(old, to) else {
            return Ok(Outcome::AlreadyThere { size: old.hard });
        };
        let begun = Instant::now();
        self.write_limits(&base.pool, &found, hard, soft)?;
        // Counted even if the limit cannot be read back now.
        self.promises.add(&base.pool.space_id(), hard.saturating_sub(old.hard), begun);
        let location = &found.observed.location;
        let new = self.read_quota(found.directory.as_fd(), found.kind, old.id, location)?;
        let new = new.ok_or_else(|| found.just_turned_off())?;
        if new.hard < to {
            let problem = format!("the limit of {} was set to {hard}, but reads {}", location.display(), new.hard);
            return Err(Refusal::Internal { problem }.into());
        }
        Ok(Outcome::Changed { from: old.hard, to: new.hard })
    }

    fn write_limits(&self, pool: &PoolDirectory, found: &Share, hard: Bytes, soft: Bytes) -> Result<(), DriverError> {
        let old = found.known_quota()?;
        match quotactl::set_limits(found.directory.as_fd(), old.id, hard, soft) {
            Ok(()) => Ok(()),
            Err(QuotaError::Off) => Err(found.just_turned_off().into()),
            Err(QuotaError::System(Errno::ENOSPC | Errno::EDQUOT)) => {
                Err(self.places.full(pool.fd.as_fd(), hard.saturating_sub(old.hard)).into())
            }
            Err(QuotaError::System(Errno::ERANGE)) => {
                let what = format!("a limit of {hard} on {}", found.observed.filesystem);
                Err(Refusal::Unsupported { what }.into())
            }
            Err(QuotaError::System(errno)) => {
                Err(self.failed(pool.fd.as_fd(), "set the quota of", &found.observed.location, errno))
            }
        }
    }

    fn lower_limit(&self, share: ShareId, from: Bytes, to: Bytes) -> Result<Outcome, DriverError> {
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
            self.commit(pool)
        };
        // Also whether it still holds.
        let look = || self.find(&self.base()?, share)?.observed.shrinkable().map_err(DriverError::from);
        let (location, promises, space) = (&found.observed.location, &self.promises, &pool.space_id());
        let lowered =
            Lowered { share, location, now, promises, space, write: &write, put_back: &put_back, look: &look };
        lowered.lower(from, to, in_blocks(pool, to)?)
    }

    /// Brings all limits that were set to the disk.
    fn commit(&self, pool: &PoolDirectory) -> Result<(), DriverError> {
        let fd = pool.fd.as_fd();
        journal::force(fd).map_err(|errno| self.failed(fd, "flush the journal at", &pool.path, errno))
    }

    /// `None` when quota is off.
    fn read_quota(
        &self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        id: u32,
        location: &Path,
    ) -> Result<Option<quotactl::Quota>, DriverError> {
        match quotactl::get(fd, kind, id) {
            Ok(quota) => Ok(Some(quota)),
            Err(QuotaError::Off) => Ok(None),
            Err(QuotaError::System(errno)) => Err(self.failed(fd, "read the quota of", location, errno)),
        }
    }

    /// Why a system call failed on the file system of an open file.
    fn failed(&self, fd: BorrowedFd<'_>, operation: &'static str, object: &Path, errno: Errno) -> DriverError {
        match errno {
            Errno::EROFS => self.places.read_only().into(),
            // As an ext4 with errors=remount-ro gives, which Linux 6.12 and newer do not make read-only.
            Errno::EIO if journal::check_begins(fd).is_err() => findings::stopped(self.places.pool()).into(),
            errno => system(operation, object)(errno),
        }
    }

    fn flush(&self) -> Result<Base, DriverError> {
        let pool = self.places.open_pool()?;
        self.commit(&pool)?;
        self.look_around(pool)
    }
}

impl Driver for ProjectQuota {
    fn kind(&self) -> DriverKind {
        DriverKind::ProjectQuota
    }

    fn location(&self) -> String {
        self.places.template().to_string()
    }

    fn shares(&self, project: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
        self.places.list_of(&self.places.open_pool()?, project)
    }

    fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>> {
        answer_each(self.base(), shares, |base, share| Ok(self.find(base, *share)?.observed))
    }

    fn assess_all(&self, asked: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>> {
        let common = self.base().map(|base| (self.space_of(&base.pool), base));
        answer_each(common, asked, |(space, base), (share, target)| {
            let observed = self.find(base, *share)?.observed;
            let growth = round_up(*target).saturating_sub(observed.size().unwrap_or(Bytes::ZERO));
            Ok(Assessment { observed, growth: Ok(growth), space: space.clone()? })
        })
    }

    fn measure(&self, share: ShareId) -> Result<Sizes, DriverError> {
        Ok(self.find(&self.base()?, share)?.observed.extendable()?)
    }

    fn space(&self) -> Result<Space, DriverError> {
        let Base { pool, kind, quotas, read_only, .. } = self.base()?;
        if !quotas.accounting {
            self.places.list_mounted(&pool)?;
        }
        let mut space = self.space_of(&pool)?;
        let off = || kind.and_then(|kind| findings::not_enforced(&pool.path, pool.fd.as_fd(), kind, quotas));
        // As of a share, only looked at where it can be changed.
        space.problems.extend(read_only.or_else(off));
        Ok(space)
    }

    fn check_mounted(&self) -> Result<(), DriverError> {
        self.places.check_mounted(&self.places.open_pool()?)
    }

    fn refuses_changes(&self) -> Result<Option<Problem>, DriverError> {
        let Base { pool, kind, read_only, .. } = self.base()?;
        // Linux 6.12 and newer leave the mount as it is when the journal stops, older ones until somebody begins a change. XFS
        // that is shut down lets nobody look either.
        let is_asked = kind == Some(Kind::Ext4) && read_only.is_none();
        let fd = pool.fd.as_fd();
        let stopped = || Problem::blocking(findings::stopped(self.places.pool()), findings::start_again(fd));
        Ok((is_asked && journal::check_begins(fd).is_err()).then(stopped))
    }

    fn apply(&self, share: ShareId, step: Step) -> Result<Outcome, DriverError> {
        match step {
            Step::SetLimit { to } => self.set_limit(share, to),
            Step::LowerLimit { from, to } => self.lower_limit(share, from, to),
            Step::GrowVolume { .. } | Step::GrowFilesystem { .. } => Err(step.unknown_to(self.kind())),
        }
    }

    fn verify_all(&self, shares: &[ShareId]) -> Vec<Result<Bytes, DriverError>> {
        answer_each(self.flush(), shares, |base, share| Ok(self.find(base, *share)?.observed.known_size()?))
    }
}

/// The sum of the hard limits of all projects but 0, which holds the defaults.
fn promised(fd: BorrowedFd<'_>, kind: Kind) -> Result<Bytes, QuotaError> {
    let mut promised = Bytes::ZERO;
    let mut next = Some(1);
    while let Some(id) = next {
        let Some(quota) = quotactl::get_next(fd, kind, id)? else { break };
        promised = promised.saturating_add(quota.hard);
        // An id that does not grow would never end.
        next = quota.id.max(id).checked_add(1);
    }
    Ok(promised)
}

fn unsupported(pool: &PoolDirectory) -> Refusal {
    Refusal::Unsupported { what: format!("a share on a file system other than XFS and ext4 ({})", pool.path.display()) }
}

/// The hard and the soft limit that raise the hard one to at least `to`; `None` where it is that high already.
fn raised(old: quotactl::Quota, to: Bytes) -> Option<(Bytes, Bytes)> {
    if old.hard >= to {
        return None;
    }
    let hard = round_up(to);
    // A soft limit that was no limit of its own must not become one.
    Some((hard, if old.soft == old.hard { hard } else { old.soft }))
}

/// As the file system counts limits: XFS in its blocks. A limit that is set so reads the same.
fn in_blocks(pool: &PoolDirectory, size: Bytes) -> Result<Bytes, DriverError> {
    let block = fstatfs(&pool.fd).map_err(system("statfs", &pool.path))?.block_size();
    Ok(size.rounded_up_to(u64::try_from(block).unwrap_or(1).max(1)))
}

/// Limits count blocks; what was asked for is not more than what is set.
fn round_up(size: Bytes) -> Bytes {
    size.rounded_up_to(LIMIT_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_up_to_blocks() {
        for (size, rounded) in [(0, 0), (1, 1024), (1024, 1024), (1025, 2048)] {
            assert_eq!(round_up(Bytes::new(size)), Bytes::new(rounded));
        }
        assert_eq!(round_up(Bytes::new(u64::MAX)), Bytes::new(u64::MAX));
    }

    proptest! {
        #[test]
        fn limits_reach_the_target_and_never_fall(
            hard in 0..1_u64 << 62, soft in prop_oneof![Just(None), (0..1_u64 << 62).prop_map(Some)], to in 0..1_u64 << 62,
        ) {
            let old_soft = soft.unwrap_or(hard);
            let (hard_before, soft_before) = (Bytes::new(hard), Bytes::new(old_soft));
            let old = quotactl::Quota { id: 1, hard: hard_before, soft: soft_before, ..Default::default() };
            let to = Bytes::new(to);
            prop_assert_eq!(raised(old, to).is_none(), old.hard >= to);
            let Some((hard, soft)) = raised(old, to) else { return Ok(()) };
            prop_assert!(hard >= to && hard > old.hard && soft >= old.soft);
            prop_assert!(hard.saturating_sub(to) < Bytes::new(LIMIT_BLOCK));
            prop_assert_eq!(hard.get() % LIMIT_BLOCK, 0);
            // A job that goes on after a crash finds nothing to do.
            prop_assert_eq!(raised(quotactl::Quota { hard, soft, ..old }, to), None);
        }
    }
}

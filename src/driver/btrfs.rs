//! Subvolumes of btrfs: a share's size is the limit of what its quota group references.
//!
//! Every answer is read from the kernel at the time of the call.
//! Nothing but [`Btrfs::lower_limit`] lowers a limit. A group counts one subvolume: what tenants put into subvolumes of
//! their own, below the share, counts for those, and so do snapshots.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::syncfs;

use super::lowering::Lowered;
use super::path_template::PathTemplate;
use super::places::{Ground, Opened, Places, PoolDirectory, unsupported};
use super::promises::Promises;
use super::shell::Quoted;
use super::{
    Assessment, Bounds, Driver, DriverError, Observed, Outcome, Problem, Shares, Sizes, Space, SpaceId, Step,
    answer_each, system,
};
use crate::model::{Bytes, DriverKind, PoolName, ProjectLabel, Reason, Refusal, ShareId};
use crate::sys::btrfs::{self, Limits, Qgroup, QgroupId, QuotaState};
use crate::sys::file_system;
use crate::sys::open_beneath::DIRECTORY;

const FILESYSTEM: &str = "btrfs";

const GROUND: Ground = Ground {
    way: DIRECTORY,
    what: "btrfs with quotas",
    is_there: |pool| {
        let fd = pool.fd.as_fd();
        Ok(btrfs::is_btrfs(fd)? && btrfs::quota_state(fd)?.on)
    },
    turn_on: |pool| btrfs::is_btrfs(pool.fd.as_fd()).unwrap_or(false).then(|| turn_on(&pool.path)),
    holds: |pool, directory| {
        let id = btrfs::filesystem_id(pool.fd.as_fd())?;
        Ok(id.is_some() && btrfs::filesystem_id(directory) == Ok(id))
    },
};

/// A pool of subvolumes on one file system.
pub struct Btrfs {
    places: Places,
    promises: Arc<Promises>,
}

/// The pool's directory, and what holds for all shares on its file system.
struct Base {
    pool: PoolDirectory,
    /// `None` where it is not btrfs.
    quotas: Option<QuotaState>,
    /// What is wrong when nothing can be changed through the pool's directory.
    read_only: Option<Problem>,
}

/// Where a share is, and which quota it has.
struct Place {
    location: PathBuf,
    project: ProjectLabel,
    read_only: Option<Problem>,
    id: QgroupId,
}

/// A share that was found, and what its quota is.
struct Share {
    directory: OwnedFd,
    id: QgroupId,
    observed: Observed,
}

impl Btrfs {
    /// `places` are the shares that are not where the template says. They belong to the pool as the others do and must
    /// be on its file system. `promises` is one for all pools of the daemon, since pools may share a file system.
    pub fn new(
        pool: PoolName,
        template: PathTemplate,
        places: Vec<(ShareId, PathBuf)>,
        promises: Arc<Promises>,
    ) -> Self {
        Self { places: Places::new(GROUND, pool, template, places), promises }
    }

    fn base(&self) -> Result<Base, DriverError> {
        let pool = self.places.open_pool()?;
        let fd = pool.fd.as_fd();
        let is_btrfs = btrfs::is_btrfs(fd).map_err(system("statfs", &pool.path))?;
        let quotas = is_btrfs.then(|| btrfs::quota_state(fd)).transpose();
        let quotas = quotas.map_err(system("read the quota state of", &pool.path))?;
        let read_only = self.places.read_only_at(&pool.path, fd)?;
        Ok(Base { pool, quotas, read_only })
    }

    fn space_id(&self, base: &Base) -> Result<SpaceId, DriverError> {
        // On another file system the ioctl may mean something else.
        base.quotas.ok_or_else(|| self.places.not_mounted())?;
        let pool = &base.pool;
        let info = btrfs::devices::info(pool.fd.as_fd()).map_err(system("identify the file system of", &pool.path))?;
        Ok(SpaceId::of_btrfs(info.id))
    }

    fn find(&self, base: &Base, share: ShareId) -> Result<Share, DriverError> {
        let Opened { fd: directory, path: location, project } = self.places.open_share(&base.pool, share)?;
        let fd = directory.as_fd();
        let Some(state) = base.quotas else {
            let what = format!("a share on a file system other than btrfs ({})", location.display());
            return Err(Refusal::Unsupported { what }.into());
        };
        // One with a place of its own may be reached through another mount.
        let read_only = match self.places.is_explicit(share) {
            true => self.places.read_only_at(&location, fd)?,
            false => base.read_only.clone(),
        };
        let id = btrfs::qgroup_of(fd).map_err(system("find the subvolume of", &location))?;
        let id = id.ok_or_else(|| unsupported(share, &location, "a directory that is no subvolume"))?;
        let observed = self.observe_at(base, state, Place { location, project, read_only, id })?;
        Ok(Share { directory, id, observed })
    }

    /// What [`Self::find`] observes, without opening the share where that can be done, since it takes longest of all. Whatever
    /// is not as it should be is left to that function, which tells what it is.
    fn look(&self, base: &Base, share: ShareId) -> Result<Observed, DriverError> {
        if let Some(state) = base.quotas
            && let Some(name) = self.places.name_in_pool(share)
            && let Ok(Some(id)) = btrfs::qgroup_in(base.pool.fd.as_fd(), &name)
        {
            let (location, project) = (base.pool.path.join(name), ProjectLabel::default());
            return self.observe_at(base, state, Place { location, project, read_only: base.read_only.clone(), id });
        }
        Ok(self.find(base, share)?.observed)
    }

    fn observe_at(&self, base: &Base, state: QuotaState, place: Place) -> Result<Observed, DriverError> {
        let Place { location, project, read_only, id } = place;
        let fd = base.pool.fd.as_fd();
        let read = || -> Result<_, Errno> {
            let (qgroup, mut above) = (btrfs::qgroup(fd, id)?, Vec::new());
            let ancestors = if state.has_levels { btrfs::ancestors(fd, id)? } else { BTreeSet::new() };
            for ancestor in ancestors {
                above.extend(btrfs::qgroup(fd, ancestor)?.map(|qgroup| (ancestor, qgroup.limits)));
            }
            Ok((qgroup, above))
        };
        let (qgroup, above) = read().map_err(system("read the quota of", &location))?;
        let case = Case { location: &location, pool: &base.pool.path, id, state, qgroup, above };
        let problems = read_only.into_iter().chain(case.problems()).collect();
        let qgroup = qgroup.filter(|_| state.on);
        let sizes = qgroup.and_then(|qgroup| qgroup.limits.referenced).map(Sizes::Limit);
        let used = qgroup.map(|qgroup| qgroup.used.referenced);
        Ok(Observed { location, project, filesystem: FILESYSTEM, sizes, used, problems })
    }

    fn space_of(&self, base: &Base) -> Result<Space, DriverError> {
        let (id, pool) = (self.space_id(base)?, &base.pool);
        let fd = pool.fd.as_fd();
        let promised = self.promises.sum(&id, || promised(fd)).map_err(system("sum the quotas of", &pool.path))?;
        let capacity = file_system::capacity(fd).map_err(system("measure", &pool.path))?;
        let file_system::Capacity { total, free, .. } = capacity;
        Ok(Space { id, filesystem: FILESYSTEM, total, free, promised, thin: None, problems: Vec::new() })
    }

    fn set_limit(&self, share: ShareId, to: Bytes) -> Result<Outcome, DriverError> {
        let base = self.base()?;
        let found = self.find(&base, share)?;
        let old = found.observed.extendable()?.usable();
        if old >= to {
            return Ok(Outcome::AlreadyThere { size: old });
        }
        let (space, begun) = (self.space_id(&base)?, Instant::now());
        self.write_limit(&base.pool, &found, to, old)?;
        // Counted even if the limit cannot be read back now.
        self.promises.add(&space, to.saturating_sub(old), begun);
        let location = &found.observed.location;
        let new = btrfs::qgroup(found.directory.as_fd(), found.id).map_err(system("read the quota of", location))?;
        match new.and_then(|new| new.limits.referenced) {
            Some(new) if new >= to => Ok(Outcome::Changed { from: old, to: new }),
            new => {
                let reads = new.map_or_else(|| "none".to_owned(), |new| new.to_string());
                let problem = format!("the limit of {} was set to {to}, but reads {reads}", location.display());
                Err(Refusal::Internal { problem }.into())
            }
        }
    }

    /// Newer kernels (6.18; not yet 6.1) begin by taking a block from the quota of the subvolume that they are asked
    /// through, and refuse when it is used up. So through the share itself a limit that was reached could never be raised.
    /// The pool's own subvolume may be full as well, and its mount read-only where that of a share with a place of its
    /// own is not.
    fn write_limit(&self, pool: &PoolDirectory, found: &Share, to: Bytes, old: Bytes) -> Result<(), DriverError> {
        let location = &found.observed.location;
        let set_through = |fd: &OwnedFd| btrfs::limit_referenced(fd.as_fd(), found.id, to);
        let set = match set_through(&pool.fd) {
            Err(Errno::EDQUOT | Errno::EROFS) => set_through(&found.directory),
            set => set,
        };
        match set {
            Ok(()) => Ok(()),
            Err(Errno::ENOTCONN) => {
                let (location, problem) = (location.clone(), "quotas were just turned off".to_owned());
                Err(Refusal::QuotaNotEnforced { location, problem }.into())
            }
            Err(Errno::EDQUOT) => {
                let problem = format!(
                    "the limit of {} cannot be set: btrfs does that only through a subvolume with room in its quota, and \
                     neither that of the share nor that of {} has any left; raise one of the limits through another \
                     subvolume: `btrfs qgroup limit SIZE 0/ID PATH`",
                    location.display(),
                    pool.path.display()
                );
                Err(Refusal::Internal { problem }.into())
            }
            Err(Errno::ENOSPC) => Err(self.places.full(pool.fd.as_fd(), to.saturating_sub(old)).into()),
            Err(Errno::ERANGE) => Err(Refusal::Unsupported { what: format!("a limit of {to} on btrfs") }.into()),
            Err(errno) => Err(system("set the quota of", location)(errno)),
        }
    }

    /// What is in use is counted when a transaction is committed, and only once data has left the page cache: so before
    /// each look all is written out.
    fn lower_limit(&self, share: ShareId, from: Bytes, to: Bytes) -> Result<Outcome, DriverError> {
        let look = || -> Result<(Base, Share, Bounds), DriverError> {
            let unwritten = self.find(&self.base()?, share)?;
            unwritten.observed.shrinkable()?;
            syncfs(&unwritten.directory).map_err(system("write out", &unwritten.observed.location))?;
            let base = self.base()?;
            let found = self.find(&base, share)?;
            let bounds = found.observed.shrinkable()?;
            Ok((base, found, bounds))
        };
        let (base, found, now) = look()?;
        let (location, promises, space) = (&found.observed.location, &self.promises, &self.space_id(&base)?);
        let write = |limit| self.write_limit(&base.pool, &found, limit, now.limit);
        let put_back = |limit| {
            self.write_limit(&base.pool, &found, limit, limit)?;
            self.commit(&base)
        };
        let look = || look().map(|(.., bounds)| bounds);
        let lowered =
            Lowered { share, location, now, promises, space, write: &write, put_back: &put_back, look: &look };
        lowered.lower(from, to, to)
    }

    /// Brings all limits that were set to the disk.
    fn commit(&self, base: &Base) -> Result<(), DriverError> {
        // On another file system the ioctls of a commit may mean something else.
        base.quotas.ok_or_else(|| self.places.not_mounted())?;
        btrfs::commit(base.pool.fd.as_fd()).map_err(system("commit the changes to", &base.pool.path))
    }

    fn flush(&self) -> Result<Base, DriverError> {
        let base = self.base()?;
        self.commit(&base)?;
        Ok(base)
    }
}

impl Driver for Btrfs {
    fn kind(&self) -> DriverKind {
        DriverKind::Btrfs
    }

    fn location(&self) -> String {
        self.places.template().to_string()
    }

    fn shares(&self, project: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
        self.places.list_of(&self.places.open_pool()?, project)
    }

    fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>> {
        answer_each(self.base(), shares, |base, share| self.look(base, *share))
    }

    fn assess_all(&self, asked: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>> {
        let common = self.base().map(|base| (self.space_of(&base), base));
        answer_each(common, asked, |(space, base), (share, target)| {
            let observed = self.look(base, *share)?;
            let growth = target.saturating_sub(observed.size().unwrap_or(Bytes::ZERO));
            Ok(Assessment { observed, growth: Ok(growth), space: space.clone()? })
        })
    }

    fn measure(&self, share: ShareId) -> Result<Sizes, DriverError> {
        Ok(self.find(&self.base()?, share)?.observed.extendable()?)
    }

    fn space(&self) -> Result<Space, DriverError> {
        let base = self.base()?;
        let mut space = self.space_of(&base)?;
        space.problems.extend(base.read_only);
        if !base.quotas.is_some_and(|quotas| quotas.on) {
            let pool = &base.pool;
            self.places.list_mounted(pool)?;
            space.problems.push(quotas_are_off(&pool.path, &pool.path));
        }
        Ok(space)
    }

    fn check_mounted(&self) -> Result<(), DriverError> {
        self.places.check_mounted(&self.places.open_pool()?)
    }

    fn apply(&self, share: ShareId, step: Step) -> Result<Outcome, DriverError> {
        match step {
            Step::SetLimit { to } => self.set_limit(share, to),
            Step::LowerLimit { from, to } => self.lower_limit(share, from, to),
            Step::GrowVolume { .. } | Step::GrowFilesystem { .. } => Err(step.unknown_to(self.kind())),
        }
    }

    fn verify_all(&self, shares: &[ShareId]) -> Vec<Result<Bytes, DriverError>> {
        answer_each(self.flush(), shares, |base, share| Ok(self.look(base, *share)?.known_size()?))
    }
}

/// What all subvolumes may come to hold. Each snapshot begins with the limit of its origin. One that is read-only can
/// take nothing more: it counts with what it alone holds.
fn promised(fd: BorrowedFd<'_>) -> Result<Bytes, Errno> {
    let groups = btrfs::qgroups_of_subvolumes(fd)?;
    let promises = btrfs::subvolumes(fd)?.into_iter().filter_map(|(subvolume, read_only)| {
        let group = groups.get(&subvolume)?;
        if read_only { Some(group.used.exclusive) } else { group.limits.referenced }
    });
    Ok(promises.sum())
}

/// What is said of the pool and of each share in it: with one remedy, so that it is told once.
fn quotas_are_off(location: &Path, pool: &Path) -> Problem {
    let (location, problem) = (location.to_path_buf(), "quotas are off on its file system".to_owned());
    let remedy = format!("{}, and then set every limit again: they went with the quotas", turn_on(pool));
    Problem::blocking(Refusal::QuotaNotEnforced { location, problem }, remedy)
}

fn turn_on(pool: &Path) -> String {
    format!("btrfs quota enable {}", Quoted(pool))
}

/// All that was read of a share's quota.
struct Case<'a> {
    location: &'a Path,
    pool: &'a Path,
    id: QgroupId,
    state: QuotaState,
    qgroup: Option<Qgroup>,
    /// The groups that also count the share.
    above: Vec<(QgroupId, Limits)>,
}

impl Case<'_> {
    /// What is wrong, each with the command that heals it. The first blocking problem is what an extend is refused with.
    fn problems(&self) -> Vec<Problem> {
        let Self { location, id, state, .. } = self;
        let (shown, path) = (location.display(), Quoted(location));
        if !state.on {
            return vec![quotas_are_off(location, self.pool)];
        }
        let limits = self.qgroup.map(|qgroup| qgroup.limits);
        let Some(limit) = limits.and_then(|limits| limits.referenced) else {
            let refusal = Refusal::Unlimited { location: location.to_path_buf(), quota: format!("qgroup {id}") };
            return vec![Problem::blocking(refusal, format!("btrfs qgroup limit SIZE {path}"))];
        };
        let mut problems = Vec::new();
        if state.simple {
            let message = format!(
                "use of {shown} is not all that it holds: its quotas are simple ones, which leave out what was there \
                 before them and what a snapshot had from its origin"
            );
            // They are the only record of how large shares are.
            let keep = format!("btrfs qgroup show --raw -pcre {path} >limits");
            let again = format!("btrfs quota disable {path} && btrfs quota enable {path}");
            let remedy = format!("{keep} && {again}, which drops the limits of all shares: then set each again");
            problems.push(Problem::warning(Reason::QuotaNotEnforced, message, remedy));
        }
        if state.inconsistent || state.rescanning {
            let why = if state.rescanning { "use is being counted anew" } else { "use was not counted right" };
            let message = format!("the limit of {shown} may bite too early or too late: {why}");
            let remedy = format!("btrfs quota rescan -w {path}");
            problems.push(Problem::warning(Reason::QuotaNotEnforced, message, remedy));
        }
        if let Some(exclusive) = limits.and_then(|limits| limits.exclusive).filter(|exclusive| *exclusive < limit) {
            let message = format!(
                "{shown} may hold {exclusive} that no snapshot shares, which is below its limit of {limit}: writes may \
                 fail there first"
            );
            let remedy = format!("btrfs qgroup limit -e none {path}");
            problems.push(Problem::warning(Reason::SoftLimitFirst, message, remedy));
        }
        for (group, limits) in &self.above {
            for (option, theirs) in [("", limits.referenced), ("-e ", limits.exclusive)] {
                let Some(theirs) = theirs.filter(|theirs| *theirs < limit) else { continue };
                let message = format!(
                    "{shown} is in qgroup {group}, whose limit of {theirs} is below its own of {limit}: writes fail \
                     there first"
                );
                let remedy = format!("btrfs qgroup limit {option}{} {group} {path}", limit.get());
                problems.push(Problem::warning(Reason::SoftLimitFirst, message, remedy));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_down_before_quotas_are_turned_off() {
        let limits = Limits { referenced: Some(Bytes::gib(1)), ..Limits::default() };
        let case = Case {
            location: Path::new("/srv/a"),
            pool: Path::new("/srv"),
            id: QgroupId::of_subvolume(257),
            state: QuotaState { on: true, simple: true, ..QuotaState::default() },
            qgroup: Some(Qgroup { limits, used: btrfs::Use::default() }),
            above: Vec::new(),
        };
        let problems = case.problems();
        let [Problem { kind: Reason::QuotaNotEnforced, remedy, refusal: None, .. }] = problems.as_slice() else {
            panic!("{problems:?}")
        };
        let kept =
            remedy.strip_prefix("btrfs qgroup show --raw -pcre /srv/a >limits && btrfs quota disable /srv/a && ");
        assert!(kept.is_some_and(|rest| rest.contains("limits of all shares")), "{remedy}");
    }
}

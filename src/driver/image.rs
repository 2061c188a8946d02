//! Images: a share is a file with a file system on it, attached to a loop device and mounted, or without one.
//!
//! Needs nothing but root and a directory. The file grows first, then its loop device, then the file system: whatever a
//! crash leaves half done is seen by the three sizes and finished. A file that has all its blocks gets all of its new
//! ones; a sparse one stays sparse, and what it lacks counts as promised.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{S_IFMT, S_IFREG, off_t};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{fsync, ftruncate};

use super::filesystem::{Device, Mounts};
use super::neighbours::{Neighbour, Neighbours};
use super::path_template::PathTemplate;
use super::places::{Ground, Opened, Places, PoolDirectory, free, unsupported};
use super::shell::Quoted;
use super::{Assessment, Driver, DriverError, Observed, Outcome, Problem, Shares, Sizes, Space, SpaceId, Step, system};
use crate::model::{Bytes, DriverKind, PoolName, ProjectLabel, Reason, Refusal, ShareId};
use crate::sys::btrfs;
use crate::sys::file_system::{self, Capacity};
use crate::sys::loop_device::{LoopDevice, LoopDevices};
use crate::sys::open_beneath::{FILE, FILE_TO_READ};

/// Loop devices count whole ones, and `st_blocks` counts these, whatever the file system.
const SECTOR: u64 = 512;

/// Images grow in these: the largest block that a file system or a loop device here has.
const UNIT: u64 = 4096;

const GROUND: Ground = Ground {
    way: FILE,
    what: "file system",
    // Any will do, so that nothing tells whether the right one is mounted.
    is_there: |_| Ok(true),
    turn_on: |_| None,
    holds: |pool, other| match btrfs::filesystem_id(pool.fd.as_fd())? {
        Some(id) => Ok(btrfs::filesystem_id(other)? == Some(id)),
        None => Ok(fstat(other)?.st_dev == pool.device),
    },
};

/// A pool of images in one directory.
pub struct Image {
    places: Arc<Places>,
    images: Arc<Images>,
    /// Whether a file system may grow beyond what its makers had in mind.
    allow_any_growth: bool,
    /// Whether the pool promises its space more than once.
    overcommits: bool,
}

/// Where the images of all pools of the daemon are, since pools may share a file system.
#[derive(Default)]
pub struct Images(Neighbours<Places>);

impl Neighbour for Places {
    fn places(&self) -> &Places {
        self
    }
}

/// A share's file at one moment.
struct Share {
    pool: PoolDirectory,
    file: OwnedFd,
    size: Bytes,
    /// Blocks that it has, wherever they are.
    allocated: Bytes,
    /// `None` when something blocks it, which `observed` tells.
    attached: Option<Attached>,
    observed: Observed,
}

/// The loop device of a file, and what is on it.
type Attached = (LoopDevice, Device);

/// What the images of one question are attached to and mounted on.
type Around = (LoopDevices, Mounts);

impl Share {
    /// What it is attached to, unless something is wrong that a step must not build on.
    fn attached(&self) -> Result<&Attached, Refusal> {
        self.observed.extendable()?;
        let problem = || format!("{} is not attached", self.observed.location.display());
        self.attached.as_ref().ok_or_else(|| Refusal::Internal { problem: problem() })
    }
}

impl Image {
    /// `places` are the shares that are not where the template says. They belong to the pool as the others do and must
    /// be on its file system. `images` is one for all pools of the daemon.
    pub fn new(
        pool: PoolName,
        template: PathTemplate,
        places: Vec<(ShareId, PathBuf)>,
        allow_any_growth: bool,
        overcommits: bool,
        images: Arc<Images>,
    ) -> Self {
        let places = images.0.join(Places::new(GROUND, pool, template, places));
        Self { places, images, allow_any_growth, overcommits }
    }

    fn find(&self, share: ShareId) -> Result<Share, DriverError> {
        self.find_on(&Around::default(), share)
    }

    fn find_on(&self, around: &Around, share: ShareId) -> Result<Share, DriverError> {
        let pool = self.places.open_pool()?;
        let (opened, is_immutable) = match self.places.open_share(&pool, share) {
            Err(DriverError::System { source: Errno::EPERM, .. }) => {
                let opened = self.places.try_open(&pool, share, FILE_TO_READ)?;
                (opened.ok_or(Refusal::ShareNotFound { share })?, true)
            }
            opened => (opened?, false),
        };
        let Opened { fd: file, path: location, project } = opened;
        let look = || fstat(&file).map_err(system("stat", &location));
        if look()?.st_mode & S_IFMT != S_IFREG {
            return Err(unsupported(share, &location, "something other than a regular file").into());
        }
        let attached = self.look_at(around, share, &file, &location);
        // Read after the size of its device, which follows that of the file when somebody makes both larger at this moment.
        let (size, allocated) = sizes_of(&look()?);
        let mut problems = Vec::new();
        if is_immutable {
            let what = format!("growing {}, which is immutable or append-only (chattr +i, +a),", location.display());
            let remedy = format!("chattr -i -a {}", Quoted(&location));
            problems.push(Problem::blocking(Refusal::Unsupported { what }, remedy));
        }
        let attached = match attached.and_then(|attached| uncut(attached, size, &location)) {
            Ok(attached) => Some(attached),
            Err(error) => {
                problems.push(error.into_problem()?);
                None
            }
        };
        let device = attached.as_ref().map(|(_, device)| device);
        problems.extend(device.and_then(|device| {
            let short = || short_device(share, &location, size, device);
            device.obstacle(&location).or_else(short).or_else(|| device.half_grown(&location))
        }));
        let (sizes, used) = (device.map(Device::sizes), device.and_then(Device::used));
        let filesystem = device.map_or("", Device::filesystem);
        let observed = Observed { location, project, filesystem, sizes, used, problems };
        Ok(Share { pool, file, size, allocated, attached, observed })
    }

    /// What a file is attached to.
    ///
    /// # Errors
    /// [`DriverError::Unusable`] when it cannot be grown so.
    fn look_at(
        &self,
        (loop_devices, mounts): &Around,
        share: ShareId,
        file: &OwnedFd,
        location: &Path,
    ) -> Result<Attached, DriverError> {
        let mut found = loop_devices.of_file(file.as_fd()).map_err(system("find the loop device of", location))?;
        let shown = location.display();
        let path = Quoted(location);
        let unsupported = |what, remedy| Err(DriverError::unusable(Refusal::Unsupported { what }, remedy));
        let Some(device) = found.pop() else {
            let mut problem = format!("{shown} is attached to no loop device");
            let mut remedy = format!("mount -o loop {path} DIRECTORY");
            // As by rsync(1) or by a restore: whoever has it mounted goes on writing to a file that nobody finds again.
            if let Some(node) = loop_devices.of_removed(location) {
                let node = node.display();
                problem = format!("{problem}, but {node} shows the file that was there before it");
                remedy = format!(
                    "dd if={node} of=COPY keeps that one, which is gone once {node} is; then umount {node}, {remedy}"
                );
            }
            let refusal = Refusal::ShareNotMounted { share, pool: self.places.pool().clone(), problem };
            return Err(DriverError::unusable(refusal, remedy));
        };
        let node = device.node.display();
        if let Some(other) = found.pop() {
            let what = format!("growing {shown}, which is attached to {} and to {node},", other.node.display());
            return unsupported(what, format!("losetup -j {path}, then losetup -d for all but one"));
        }
        let attach_again = format!("losetup -d {node}, then losetup -f {path}");
        if device.shows_part {
            let what = format!("growing {shown}, of which {node} shows a part only (offset or size limit),");
            return unsupported(what, attach_again);
        }
        if device.read_only {
            return unsupported(format!("growing {shown}, which is attached to {node} read-only,"), attach_again);
        }
        let seen = Device::look(share, self.places.pool(), device.device, &device.node, location, mounts)?;
        Ok((device, seen))
    }

    fn grow_volume(&self, share: ShareId, to: Bytes) -> Result<Outcome, DriverError> {
        let found = self.find(share)?;
        let (looped, device) = found.attached()?;
        let location = &found.observed.location;
        let (before, wanted) = (device.size, round_up(device.least_size_for(to)));
        if wanted <= before {
            return Ok(Outcome::AlreadyThere { size: before });
        }
        // After a crash the file may have its size, and the device not.
        if found.size < wanted {
            self.grow_file(&found, wanted)?;
        }
        // The file system must not reach further on disk than its file does.
        fsync(&found.file).map_err(system("sync", location))?;
        let after = looped.follow_file().map_err(system("set the capacity of", &looped.node))?;
        if after < wanted {
            let problem = format!("{} has {after} where {wanted} was set", looped.node.display());
            return Err(Refusal::Internal { problem }.into());
        }
        Ok(Outcome::Changed { from: before, to: after })
    }

    /// Whether a file has all its blocks, and shall have them when it is larger.
    ///
    /// A file system that zeroes parts of its device makes holes there, as ext4 does for its inode tables, so a tenth may
    /// be missing. But where space is promised more than once, a sparse image that is nearly full must not be taken for
    /// such a file: it would take blocks that nobody writes yet.
    fn is_preallocated(&self, found: &Share) -> bool {
        let may_lack = if self.overcommits { 0 } else { found.size.get() / 10 };
        found.allocated.saturating_add(Bytes::new(may_lack)) >= found.size
    }

    /// Gives the file a size. When that fails it has the one that it had.
    fn grow_file(&self, found: &Share, to: Bytes) -> Result<(), DriverError> {
        let location = &found.observed.location;
        let asked = to.saturating_sub(found.size);
        let pool = found.pool.fd.as_fd();
        let refused = |errno| match errno {
            Errno::ENOSPC | Errno::EDQUOT => self.places.full(pool, asked).into(),
            Errno::EOPNOTSUPP => {
                let what = format!("growing {}, which has all its blocks, with all its blocks", location.display());
                Refusal::Unsupported { what }.into()
            }
            Errno::EFBIG => Refusal::Unsupported { what: format!("an image of {to} ({})", location.display()) }.into(),
            errno => system("grow", location)(errno),
        };
        let preallocated = self.is_preallocated(found);
        // A crash may have left some of the blocks behind the end of the file. They are not kept for a growth that cannot be.
        let behind = found.allocated.saturating_sub(found.size);
        // Sparse images should not fail because this one took the last blocks for a moment.
        if preallocated && free(pool).saturating_add(behind) < asked {
            let _ = give_back(&found.file, found.size);
            return Err(self.places.full(pool, asked).into());
        }
        // Its blocks come before its size: ext4 would move that with every part that it allocates, and leave it somewhere when
        // the space ends.
        let blocks = match preallocated {
            true => allocate(&found.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, found.size, asked),
            false => Ok(()),
        };
        let grown = blocks.and_then(|()| enlarge(&found.file, to));
        grown.map_err(|errno| {
            if preallocated {
                // Should this fail as well, the next attempt finds the blocks where it needs them.
                let _ = give_back(&found.file, found.size);
            }
            refused(errno)
        })
    }

    fn assess(&self, share: ShareId, target: Bytes) -> Result<Assessment, DriverError> {
        let Share { size, allocated, attached, observed, .. } = self.find(share)?;
        let growth = attached.map_or(Ok(Bytes::ZERO), |(_, device)| {
            // The device will be as large as its file, also where that has more than is asked for.
            let volume = round_up(device.least_size_for(target)).max(size);
            // Blocks that a crash has left behind its end are in use already.
            device.check_growth(volume, self.allow_any_growth).map(|()| volume.saturating_sub(size.max(allocated)))
        });
        Ok(Assessment { observed, growth, space: self.space()? })
    }

    fn verify(&self, share: ShareId) -> Result<Bytes, DriverError> {
        if let Some((_, device)) = &self.find(share)?.attached {
            device.flush()?;
        }
        // What came up since the growth does not undo it.
        Ok(self.find(share)?.observed.known_size()?)
    }
}

impl Driver for Image {
    fn kind(&self) -> DriverKind {
        DriverKind::Image
    }

    fn location(&self) -> String {
        self.places.template().to_string()
    }

    fn shares(&self, project: Option<&ProjectLabel>) -> Result<Shares, DriverError> {
        self.places.list_of(&self.places.open_pool()?, project)
    }

    fn observe_all(&self, shares: &[ShareId]) -> Vec<Result<Observed, DriverError>> {
        let around = Around::default();
        shares.iter().map(|share| Ok(self.find_on(&around, *share)?.observed)).collect()
    }

    fn assess_all(&self, asked: &[(ShareId, Bytes)]) -> Vec<Result<Assessment, DriverError>> {
        asked.iter().map(|(share, target)| self.assess(*share, *target)).collect()
    }

    /// What could be wrong with the share otherwise is looked at by the step that would suffer.
    fn measure(&self, share: ShareId) -> Result<Sizes, DriverError> {
        let observed = self.find(share)?.observed;
        Ok(observed.sizes.map_or_else(|| observed.extendable(), Ok)?)
    }

    /// What is in use counts as promised, whatever it is, and so does what images lack of their size.
    fn space(&self) -> Result<Space, DriverError> {
        let pool = self.places.open_pool()?;
        let fd = pool.fd.as_fd();
        let Capacity { total, free, kind } = file_system::capacity(fd).map_err(system("measure", &pool.path))?;
        let btrfs = btrfs::filesystem_id(fd).map_err(system("find the file system of", &pool.path))?;
        let mut promised = total.saturating_sub(free).saturating_add(lack(&self.places, &pool)?);
        for (places, other) in self.images.0.beside(&self.places, &pool)? {
            promised = promised.saturating_add(lack(&places, &other)?);
        }
        let filesystem = kind.map_or(if btrfs.is_some() { "btrfs" } else { "" }, |kind| kind.name());
        let id = btrfs.map_or_else(|| pool.space_id(), SpaceId::of_btrfs);
        Ok(Space { id, filesystem, total, free, promised, thin: None, problems: Vec::new() })
    }

    fn check_mounted(&self) -> Result<(), DriverError> {
        self.places.check_mounted(&self.places.open_pool()?)
    }

    fn apply(&self, share: ShareId, step: Step) -> Result<Outcome, DriverError> {
        match step {
            Step::GrowVolume { to } => self.grow_volume(share, to),
            Step::GrowFilesystem { to } => self.find(share)?.attached()?.1.grow_filesystem(to),
            Step::SetLimit { .. } | Step::LowerLimit { .. } => Err(step.unknown_to(self.kind())),
        }
    }

    fn verify_all(&self, shares: &[ShareId]) -> Vec<Result<Bytes, DriverError>> {
        shares.iter().map(|share| self.verify(*share)).collect()
    }
}

/// How much the images of a pool lack of their size.
fn lack(places: &Places, pool: &PoolDirectory) -> Result<Bytes, DriverError> {
    let mut lack = Bytes::ZERO;
    for share in places.list(pool)?.iter().copied() {
        // What is no image promises nothing; its own share says what is wrong.
        let opened = places.try_open(pool, share, FILE_TO_READ)?;
        let Some(Ok(status)) = opened.map(|opened| fstat(opened.fd)) else { continue };
        let (size, allocated) = sizes_of(&status);
        lack = lack.saturating_add(size.saturating_sub(allocated));
    }
    Ok(lack)
}

/// Refuses a file that is smaller than its device: what is written behind its end fails or is lost already.
fn uncut(attached: Attached, size: Bytes, location: &Path) -> Result<Attached, DriverError> {
    let (LoopDevice { node, .. }, device) = &attached;
    if size >= device.size {
        return Ok(attached);
    }
    let (location, node, has) = (location.display(), node.display(), device.size);
    let what = format!("growing {location}, which was cut to {size} while {node} has {has},");
    Err(DriverError::unusable(Refusal::Unsupported { what }, "bring its last part back from a backup".to_owned()))
}

/// Somebody made the file larger, or a crash came before its device followed.
fn short_device(share: ShareId, location: &Path, size: Bytes, device: &Device) -> Option<Problem> {
    let (room, usable) = (device.room(size), device.sizes().usable());
    // The device counts whole sectors.
    (room > usable && size.get() / SECTOR > device.size.get() / SECTOR).then(|| {
        let (location, has) = (location.display(), device.size);
        let message = format!("{location} has {size} where its loop device has {has}, and users {usable} of {room}");
        Problem::warning(Reason::HalfGrown, message, format!("growctl extend {share} {}B --wait", room.get()))
    })
}

fn sizes_of(status: &FileStat) -> (Bytes, Bytes) {
    let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
    (Bytes::new(bytes(status.st_size)), Bytes::new(bytes(status.st_blocks).saturating_mul(SECTOR)))
}

/// Allocates what a part of a file lacks of its blocks. It becomes as large as that unless told to keep its size, and never
/// smaller.
fn allocate(file: &OwnedFd, flags: FallocateFlags, from: Bytes, length: Bytes) -> Result<(), Errno> {
    loop {
        match fallocate(file, flags, offset(from), offset(length)) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Gives a file a size by its last byte, which at most allocates one block: ftruncate(2) would cut what somebody else has
/// made larger meanwhile.
fn enlarge(file: &OwnedFd, to: Bytes) -> Result<(), Errno> {
    let last = Bytes::new(1);
    match allocate(file, FallocateFlags::empty(), to.saturating_sub(last), last) {
        Err(Errno::EOPNOTSUPP) if sizes_of(&fstat(file)?).0 < to => ftruncate(file, offset(to)),
        Err(Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// Frees blocks behind the end of a file: setting the size that it has does that on XFS, ext4 and btrfs. A file that
/// somebody else has grown meanwhile is left as it is.
fn give_back(file: &OwnedFd, size: Bytes) -> Result<(), Errno> {
    if sizes_of(&fstat(file)?).0 == size { ftruncate(file, offset(size)) } else { Ok(()) }
}

fn offset(size: Bytes) -> off_t {
    off_t::try_from(size.get()).unwrap_or(off_t::MAX)
}

fn round_up(size: Bytes) -> Bytes {
    size.rounded_up_to(UNIT).min(Bytes::MAX_FILE)
}

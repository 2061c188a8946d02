//! Finds a mount of the file system that is on a block device, and opens its root.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::dev_t;
use nix::sys::stat::{fstat, major, minor};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use uuid::Uuid;

use crate::driver::places::{self, WHY_READ_ONLY};
use crate::driver::shell::Quoted;
use crate::sys::btrfs::devices;
use crate::sys::mountinfo::{self, Mount, above};
use crate::sys::open_beneath::{DIRECTORY, open_without_links};

/// What mountinfo says of a device.
pub(super) enum Found {
    Writable {
        root: OwnedFd,
        mount: Mount,
    },
    /// It is mounted, but it cannot be grown through any of its mounts; the problem goes on from "that".
    Unusable {
        filesystem: String,
        problem: String,
        remedy: String,
    },
    /// A kind that growd does not grow is mounted.
    Foreign {
        filesystem: String,
    },
    Nothing,
}

/// Which file system to look for.
enum Wanted {
    /// `st_dev` of its files.
    Device(dev_t),
    /// btrfs has a device number of its own for each subvolume, so it is known by its id.
    Btrfs([u8; 16]),
}

impl Wanted {
    fn may_be(&self, mount: &Mount) -> bool {
        match self {
            Self::Device(device) => mount.device == *device,
            Self::Btrfs(_) => mount.filesystem == "btrfs",
        }
    }

    fn is(&self, root: BorrowedFd<'_>) -> Result<bool, Errno> {
        match self {
            Self::Device(device) => Ok(fstat(root)?.st_dev == *device),
            Self::Btrfs(id) => Ok(devices::info(root)?.id == *id),
        }
    }
}

/// What is mounted on the node, at the moment when it is asked first: read once for all volumes that a question is about,
/// since there may be a thousand mounts. What it leads to is looked at when it is opened, so that nothing else is taken for
/// it later.
#[derive(Default)]
pub struct Mounts(OnceCell<Result<Known, Errno>>);

struct Known {
    all: Vec<Mount>,
    /// Ids of the btrfs that are mounted, by the numbers of their devices, as `7:0`.
    btrfs: HashMap<String, [u8; 16]>,
}

impl Mounts {
    /// Finds the mount that shows most of the device's file system and is writable. Bind mounts will do. `node` is the name of
    /// the device, and a check of the file system is run on `location`.
    pub(super) fn find(&self, device: dev_t, node: &Path, location: &Path) -> Result<Found, Errno> {
        let known = self.0.get_or_init(|| Ok(Known { all: mountinfo::read()?, btrfs: btrfs_devices() }));
        let Known { all, btrfs } = known.as_ref().map_err(|errno| *errno)?;
        let number = format!("{}:{}", major(device), minor(device));
        let wanted = btrfs.get(&number).map_or(Wanted::Device(device), |id| Wanted::Btrfs(*id));
        let mut mounts: Vec<&Mount> = all.iter().filter(|mount| wanted.may_be(mount)).collect();
        // Of many btrfs it most likely is the one whose source has the name of the device.
        mounts.sort_by_cached_key(|mount| (mount.root.components().count(), mount.source != node));
        let mut unusable = None;
        for mount in mounts {
            if !["xfs", "ext4", "ext3", "ext2", "btrfs"].iter().any(|known| mount.filesystem == *known) {
                return Ok(Found::Foreign { filesystem: mount.filesystem.to_string_lossy().into_owned() });
            }
            let place = mount.mount_point.display().to_string();
            let (problem, remedy) = match open_root(mount, &wanted) {
                Ok(Root::Writable(root)) => return Ok(Found::Writable { root, mount: mount.clone() }),
                Ok(Root::ReadOnly) if mount.all_read_only => {
                    (format!("is mounted read-only at {place}"), mend(mount, location))
                }
                // A remount on the node would change nothing, where systemd has made it so for growd alone.
                Ok(Root::ReadOnly) => {
                    let remedy = places::make_writable(Quoted(&mount.mount_point));
                    (format!("is read-only for growd at {place}: {WHY_READ_ONLY}"), remedy)
                }
                // Any btrfs was looked at, so this says nothing.
                Ok(Root::Another) if matches!(wanted, Wanted::Btrfs(_)) => continue,
                missed => match (above(all, &mount.mount_point).filter(|top| top.id != mount.id), missed) {
                    (Some(top), _) => {
                        let remedy = format!("umount {}", Quoted(&top.mount_point));
                        (format!("is mounted at {place}, where another mount covers it"), remedy)
                    }
                    (None, Err(errno)) => {
                        let remedy = format!("umount {}, then mount it again", Quoted(&mount.mount_point));
                        (format!("is mounted at {place}, which cannot be opened: {errno}"), remedy)
                    }
                    // It was unmounted just now.
                    (None, Ok(_)) => continue,
                },
            };
            let filesystem = mount.filesystem.to_string_lossy().into_owned();
            unusable.get_or_insert(Found::Unusable { filesystem, problem, remedy });
        }
        Ok(unusable.unwrap_or(Found::Nothing))
    }
}

/// What heals a file system that is read-only. One that has met an error the kernel makes so, and lets nobody undo that
/// before it is mounted anew.
fn mend(mount: &Mount, location: &Path) -> String {
    let (place, location) = (Quoted(&mount.mount_point), Quoted(location));
    let check = match mount.filesystem.to_str() {
        Some("xfs") => "xfs_repair",
        Some("btrfs") => "btrfs check",
        _ => "e2fsck -f",
    };
    format!(
        "mount -o remount,rw {place}; if that is refused, umount {place} && {check} {location}, then mount it again"
    )
}

enum Root {
    Writable(OwnedFd),
    ReadOnly,
    Another,
}

/// Opens what is at the mount point now, which need not be this mount.
fn open_root(mount: &Mount, wanted: &Wanted) -> Result<Root, Errno> {
    let root = open_without_links(&mount.mount_point, DIRECTORY)?;
    match wanted.is(root.as_fd()) {
        Ok(true) if fstatvfs(&root)?.flags().contains(FsFlags::ST_RDONLY) => Ok(Root::ReadOnly),
        Ok(true) => Ok(Root::Writable(root)),
        Ok(false) | Err(Errno::ENOTTY) => Ok(Root::Another),
        Err(errno) => Err(errno),
    }
}

/// The ids of the mounted btrfs by the numbers of their devices: from `/sys/fs/btrfs/ID/devices/NAME`, which stays right when
/// a device is renamed, as the source in mountinfo does not.
fn btrfs_devices() -> HashMap<String, [u8; 16]> {
    // The directory is missing where no btrfs was ever mounted, and entries may go while they are read.
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut ids = HashMap::new();
    for filesystem in list(Path::new("/sys/fs/btrfs")) {
        // There are others, as `features`.
        let id = filesystem.file_name().and_then(|name| Uuid::try_parse(name.to_str()?).ok());
        let Some(id) = id else { continue };
        let numbers = list(&filesystem.join("devices")).flat_map(|device| fs::read_to_string(device.join("dev")));
        ids.extend(numbers.map(|number| (number.trim_end().to_owned(), id.into_bytes())));
    }
    ids
}

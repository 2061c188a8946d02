//! Subvolumes and quota groups of btrfs: ioctls of `linux/btrfs.h`, items of `linux/btrfs_tree.h`, see btrfs-ioctl(2).
//!
//! What quotas say is read from the tree that holds them, as the btrfs command does. A limit is in it as soon as it is
//! set; use and the state of the quotas are written there when a transaction is committed, every 30 seconds unless
//! mounted otherwise.

pub mod devices;
mod subvolume;
mod tree_search;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use uuid::Uuid;

pub use self::subvolume::{qgroup_in, qgroup_of};
use self::tree_search::{ANY, Key, SMALL, first_of, number, search};
use super::errno;
use crate::model::Bytes;

/// BTRFS_FIRST_FREE_OBJECTID: the inode of a subvolume's top directory.
const FIRST_FREE_OBJECTID: u64 = 256;
/// BTRFS_FS_TREE_OBJECTID: the subvolume that all others are in.
const TOP_LEVEL: u64 = 5;
/// A quota group's id has 48 bits for that of its subvolume.
const LAST_SUBVOLUME: u64 = (1 << QgroupId::LEVEL_SHIFT) - 1;

/// BTRFS_ROOT_TREE_OBJECTID
const ROOT_TREE: u64 = 1;
/// BTRFS_QUOTA_TREE_OBJECTID
const QUOTA_TREE: u64 = 8;

/// BTRFS_ROOT_ITEM_KEY, with a `struct btrfs_root_item`.
const ROOT_ITEM: u32 = 132;
/// Which 64-bit number of that `flags` are, and BTRFS_ROOT_SUBVOL_RDONLY in them.
const ROOT_ITEM_FLAGS: usize = 208 / 8;
const ROOT_READ_ONLY: u64 = 1 << 0;
/// BTRFS_ROOT_BACKREF_KEY: a subvolume that has a place in another one.
const ROOT_BACKREF: u32 = 144;
/// BTRFS_QGROUP_STATUS_KEY, with a `struct btrfs_qgroup_status_item`.
const QGROUP_STATUS: u32 = 240;
/// BTRFS_QGROUP_INFO_KEY, with a `struct btrfs_qgroup_info_item`.
const QGROUP_INFO: u32 = 242;
/// BTRFS_QGROUP_LIMIT_KEY, with a `struct btrfs_qgroup_limit_item`.
const QGROUP_LIMIT: u32 = 244;
/// BTRFS_QGROUP_RELATION_KEY: from a child to its parent, and another one back.
const QGROUP_RELATION: u32 = 246;

/// BTRFS_QGROUP_STATUS_FLAG_*
const STATUS_ON: u64 = 1 << 0;
const STATUS_RESCAN: u64 = 1 << 1;
const STATUS_INCONSISTENT: u64 = 1 << 2;
const STATUS_SIMPLE: u64 = 1 << 3;

/// BTRFS_QGROUP_LIMIT_*
const LIMIT_MAX_RFER: u64 = 1 << 0;
const LIMIT_MAX_EXCL: u64 = 1 << 1;

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct LimitArguments {
    qgroupid: u64,
    flags: u64,
    max_rfer: u64,
    max_excl: u64,
    rsv_rfer: u64,
    rsv_excl: u64,
}

// The sizes are part of the ioctls' numbers, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<LimitArguments>() == 48);

/// BTRFS_IOCTL_MAGIC
const MAGIC: u8 = 0x94;

mod raw {
    use super::MAGIC;

    nix::ioctl_write_ptr!(wait_sync, MAGIC, 22, u64);
    nix::ioctl_read!(start_sync, MAGIC, 24, u64);
    // Declared as one that reads, although it writes.
    nix::ioctl_read!(qgroup_limit, MAGIC, 43, super::LimitArguments);
}

/// Whether an open file is on btrfs. The other functions here must be called only then: elsewhere the same numbers may
/// mean something else.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_btrfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

/// Which btrfs an open file is on; `None` on another file system. A device number tells nothing: each subvolume has its own.
///
/// # Errors
/// Those of fstatfs(2) and of the ioctl.
pub fn filesystem_id(fd: BorrowedFd<'_>) -> Result<Option<[u8; 16]>, Errno> {
    if is_btrfs(fd)? { devices::info(fd).map(|info| Some(info.id)) } else { Ok(None) }
}

/// What keeps a btrfs from being resized, as `balance` or `balance paused`: `/sys/fs/btrfs/ID/exclusive_operation`. `None`
/// when nothing does, and where the kernel, older than 5.10, does not tell.
///
/// # Errors
/// Those of the ioctl and of reading the file.
pub fn exclusive_operation(fd: BorrowedFd<'_>) -> Result<Option<String>, Errno> {
    let id = Uuid::from_bytes(devices::info(fd)?.id);
    match fs::read_to_string(format!("/sys/fs/btrfs/{id}/exclusive_operation")).map_err(errno) {
        Ok(text) => Ok(Some(text.trim_end().to_owned()).filter(|operation| operation != "none")),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Id of a quota group: a level, and at level 0 the id of a subvolume. Written `0/257`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QgroupId(u64);

impl QgroupId {
    const LEVEL_SHIFT: u32 = 48;

    pub const fn of_subvolume(id: u64) -> Self {
        Self(id)
    }

    const fn level(self) -> u64 {
        self.0 >> Self::LEVEL_SHIFT
    }
}

impl fmt::Display for QgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level(), self.0 & LAST_SUBVOLUME)
    }
}

/// What holds for the quotas of a whole file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotaState {
    /// Limits exist and hold.
    pub on: bool,
    /// Use is being counted anew.
    pub rescanning: bool,
    /// Use was counted wrong, and is until the next rescan.
    pub inconsistent: bool,
    /// Simple quotas, which count for who has written it what was written since they were turned on, and nothing else.
    pub simple: bool,
    /// Some groups count what others do: a subvolume's may have [`ancestors`].
    pub has_levels: bool,
}

/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn quota_state(fd: BorrowedFd<'_>) -> Result<QuotaState, Errno> {
    // version, generation, flags
    let flags = quota_item(fd, QGROUP_STATUS, 0, |item| number(item, 2))?.unwrap_or(0);
    let info = |offset| Key { objectid: 0, kind: QGROUP_INFO, offset };
    let above = first_of(fd, QUOTA_TREE, info(LAST_SUBVOLUME + 1), info(u64::MAX), |_| ())?;
    Ok(QuotaState { has_levels: above.is_some(), ..QuotaState::of_flags(flags) })
}

impl QuotaState {
    fn of_flags(flags: u64) -> Self {
        let is_set = |flag| flags & flag != 0;
        let (on, rescanning) = (is_set(STATUS_ON), is_set(STATUS_RESCAN));
        let (inconsistent, simple) = (is_set(STATUS_INCONSISTENT), is_set(STATUS_SIMPLE));
        Self { on, rescanning, inconsistent, simple, has_levels: false }
    }
}

/// Limits of a quota group; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of all that its subvolumes hold, metadata included.
    pub referenced: Option<Bytes>,
    /// Of what no other subvolume holds as well.
    pub exclusive: Option<Bytes>,
}

impl Limits {
    fn read(item: &[u8]) -> Option<Self> {
        let flags = number(item, 0)?;
        let limit = |flag, index| Some((flags & flag != 0).then_some(Bytes::new(number(item, index)?)));
        Some(Self { referenced: limit(LIMIT_MAX_RFER, 1)?, exclusive: limit(LIMIT_MAX_EXCL, 2)? })
    }
}

/// What a quota group counts, as of the last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub referenced: Bytes,
    pub exclusive: Bytes,
}

impl Use {
    fn read(item: &[u8]) -> Option<Self> {
        // generation, referenced, the same compressed, exclusive
        Some(Self { referenced: Bytes::new(number(item, 1)?), exclusive: Bytes::new(number(item, 3)?) })
    }
}

/// A quota group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qgroup {
    pub limits: Limits,
    pub used: Use,
}

/// `None` when there is no such group, or when quotas are off.
///
/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn qgroup(fd: BorrowedFd<'_>, id: QgroupId) -> Result<Option<Qgroup>, Errno> {
    let limits = quota_item(fd, QGROUP_LIMIT, id.0, Limits::read)?;
    let used = quota_item(fd, QGROUP_INFO, id.0, Use::read)?;
    Ok(limits.zip(used).map(|(limits, used)| Qgroup { limits, used }))
}

/// All quota groups that also count what this one counts.
///
/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn ancestors(fd: BorrowedFd<'_>, id: QgroupId) -> Result<BTreeSet<QgroupId>, Errno> {
    let mut found = BTreeSet::new();
    let mut to_ask = vec![id];
    while let Some(child) = to_ask.pop() {
        let relation = |offset| Key { objectid: child.0, kind: QGROUP_RELATION, offset };
        search::<SMALL>(fd, QUOTA_TREE, relation(0), relation(u64::MAX), |key, _| {
            let parent = QgroupId(key.offset);
            // The other end of a relation may be a child. Levels only rise here, so this ends.
            if parent.level() > child.level() && found.insert(parent) {
                to_ask.push(parent);
            }
        })?;
    }
    Ok(found)
}

/// The quota groups of all subvolumes, by the subvolume's id. Those of deleted ones may outlive them.
///
/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn qgroups_of_subvolumes(fd: BorrowedFd<'_>) -> Result<BTreeMap<u64, Qgroup>, Errno> {
    let (mut uses, mut groups) = (BTreeMap::new(), BTreeMap::new());
    let first = Key { objectid: 0, kind: QGROUP_INFO, offset: 0 };
    let last = Key { objectid: 0, kind: QGROUP_LIMIT, offset: LAST_SUBVOLUME };
    search::<ANY>(fd, QUOTA_TREE, first, last, |key, item| match key.kind {
        QGROUP_INFO => uses.extend(Use::read(item).map(|used| (key.offset, used))),
        QGROUP_LIMIT => {
            let both = Limits::read(item).zip(uses.get(&key.offset).copied());
            groups.extend(both.map(|(limits, used)| (key.offset, Qgroup { limits, used })));
        }
        _ => {}
    })?;
    Ok(groups)
}

/// All subvolumes that are not deleted, and whether they are read-only.
///
/// # Errors
/// Those of the ioctl: `EPERM` without CAP_SYS_ADMIN.
pub fn subvolumes(fd: BorrowedFd<'_>) -> Result<BTreeMap<u64, bool>, Errno> {
    let (mut read_only, mut found) = (false, BTreeMap::from([(TOP_LEVEL, false)]));
    let first = Key { objectid: FIRST_FREE_OBJECTID, kind: 0, offset: 0 };
    let last = Key { objectid: LAST_SUBVOLUME, kind: ROOT_BACKREF, offset: u64::MAX };
    search::<ANY>(fd, ROOT_TREE, first, last, |key, item| match key.kind {
        ROOT_ITEM => read_only = number(item, ROOT_ITEM_FLAGS).is_some_and(|flags| flags & ROOT_READ_ONLY != 0),
        // Follows the item of the same root.
        ROOT_BACKREF => drop(found.insert(key.objectid, read_only)),
        _ => {}
    })?;
    Ok(found)
}

/// Sets the limit of what is referenced, and nothing else of the group.
///
/// # Errors
/// `ENOTCONN` when quotas are off, `ENOENT` when there is no such group, `ERANGE` above the largest size of a file:
/// the greatest number would be no limit. `EPERM`, `EROFS`, `ENOSPC`.
pub fn limit_referenced(fd: BorrowedFd<'_>, id: QgroupId, limit: Bytes) -> Result<(), Errno> {
    if limit > Bytes::MAX_FILE {
        return Err(Errno::ERANGE);
    }
    let mut arguments = LimitArguments {
        qgroupid: id.0,
        flags: LIMIT_MAX_RFER,
        max_rfer: limit.get(),
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads a structure of this very layout.
    unsafe { raw::qgroup_limit(fd.as_raw_fd(), &raw mut arguments) }.map(drop)
}

/// When a commit that was asked for has not begun by then, it is asked for again. The kernel forgets one that is asked for
/// while its thread goes to sleep after the one before, and begins with it at the next interval, which is half a minute
/// (`transaction_kthread()` in its fs/btrfs/disk-io.c looks whether one is wanted, then sleeps, and may be woken between).
const COMMIT_BEGINS: Duration = Duration::from_millis(20);

/// Brings every change of metadata that was made before the call to stable storage, without writing out data that only
/// the page cache has, unless mounted with `flushoncommit`. An fsync would not do: it writes a log of the file alone.
///
/// # Errors
/// Those of the ioctls: `EIO`, `EROFS`.
pub fn commit(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // The other thread has ended when this returns: nobody shall find the file system busy through it afterwards.
    std::thread::scope(|scope| {
        let (begun, has_begun) = channel::<()>();
        let ask_again = move || {
            while has_begun.recv_timeout(COMMIT_BEGINS) == Err(RecvTimeoutError::Timeout) {
                // What counts is the result of the call that waits.
                let _ = begin_commit(fd);
            }
        };
        // Without it, a commit that was forgotten takes half a minute.
        let _ = std::thread::Builder::new().spawn_scoped(scope, ask_again);
        let transaction = begin_commit(fd)?;
        drop(begun);
        // SAFETY: the descriptor is open for the time of the call, and the kernel reads a 64-bit number.
        unsafe { raw::wait_sync(fd.as_raw_fd(), &raw const transaction) }.map(drop)
    })
}

fn begin_commit(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut transaction = 0;
    // SAFETY: the descriptor is open for the time of the call, and the kernel fills a 64-bit number.
    unsafe { raw::start_sync(fd.as_raw_fd(), &raw mut transaction) }?;
    Ok(transaction)
}

/// What `read` makes of an item of a quota group; `None` when there is none, or no tree of quotas.
fn quota_item<T>(
    fd: BorrowedFd<'_>,
    kind: u32,
    offset: u64,
    read: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, Errno> {
    let key = Key { objectid: 0, kind, offset };
    Ok(first_of(fd, QUOTA_TREE, key, key, read)?.flatten())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn tells_btrfs_from_others() {
        assert_eq!(is_btrfs(File::open("/proc").unwrap().as_fd()), Ok(false));
    }

    #[test]
    fn simple_quotas_are_told_from_others() {
        let full = QuotaState { on: true, ..QuotaState::default() };
        assert_eq!(QuotaState::of_flags(0b0001), full);
        assert_eq!(QuotaState::of_flags(0b1001), QuotaState { simple: true, ..full });
        assert_eq!(QuotaState::of_flags(0b0101), QuotaState { inconsistent: true, ..full });
    }

    #[test]
    fn qgroups_are_written_as_the_command_does() {
        assert_eq!(QgroupId::of_subvolume(257).to_string(), "0/257");
        assert_eq!(QgroupId((1 << 48) | 100).to_string(), "1/100");
    }

    #[test]
    fn a_limit_counts_only_with_its_flag() {
        let item = |flags: u64| [flags, 5, 7, 0, 0].map(u64::to_le_bytes).concat();
        let read = |flags| Limits::read(&item(flags)).unwrap();
        let (five, seven) = (Some(Bytes::new(5)), Some(Bytes::new(7)));
        assert_eq!(read(0), Limits::default());
        assert_eq!(read(1), Limits { referenced: five, exclusive: None });
        assert_eq!(read(3), Limits { referenced: five, exclusive: seven });
        assert_eq!(Limits::read(&item(3)[..20]), None);
    }

    proptest! {
        #[test]
        fn never_panics(item: Vec<u8>) {
            Limits::read(&item);
            Use::read(&item);
        }
    }
}

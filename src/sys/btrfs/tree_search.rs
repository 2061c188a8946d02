//! Reads the trees that btrfs keeps its metadata in: ioctl BTRFS_IOC_TREE_SEARCH_V2 of `linux/btrfs.h`.
//!
//! What the items are is in `linux/btrfs_tree.h`. Only their numbers are read, which are little-endian.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Default)]
struct SearchKey {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    more_unused: [u64; 4],
}

/// Room for any item, since a tree's block has at most 64 KiB.
pub(super) const ANY: usize = 1 << 16;
/// Room for an item of a quota group, and not so much that clearing it would take longer than the search.
pub(super) const SMALL: usize = 256;

/// `struct btrfs_ioctl_search_args_v2`, whose last member has no length of its own, with room for that.
#[repr(C)]
struct SearchArguments<const ROOM: usize> {
    key: SearchKey,
    buffer_size: u64,
    buffer: [u8; ROOM],
}

/// Size of the C structure, without what follows it. It is part of the ioctl's number.
const SEARCH_ARGUMENTS: usize = 112;

/// `struct btrfs_ioctl_search_header`: precedes each item.
const SEARCH_HEADER: usize = 32;

// The sizes are part of the ioctl's number, so a wrong one would be another ioctl.
const _: () = assert!(size_of::<SearchKey>() == 104);
const _: () = assert!(std::mem::offset_of!(SearchArguments<ANY>, buffer) == SEARCH_ARGUMENTS);

mod raw {
    nix::ioctl_readwrite_bad!(
        tree_search_v2,
        nix::request_code_readwrite!(super::super::MAGIC, 17, super::SEARCH_ARGUMENTS),
        // What they all begin with.
        super::SearchArguments<0>
    );
}

/// Where an item is in a tree. Items are in the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub objectid: u64,
    pub kind: u32,
    pub offset: u64,
}

impl Key {
    const LAST: Self = Self { objectid: u64::MAX, kind: u8::MAX as u32, offset: u64::MAX };

    /// The smallest key that is greater.
    fn next(self) -> Option<Self> {
        let Self { objectid, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            Some(Self { objectid, kind, offset })
        } else if kind < u8::MAX.into() {
            Some(Self { objectid, kind: kind + 1, offset: 0 })
        } else {
            Some(Self { objectid: objectid.checked_add(1)?, kind: 0, offset: 0 })
        }
    }
}

impl<const ROOM: usize> SearchArguments<ROOM> {
    fn new() -> Self {
        Self { key: SearchKey::default(), buffer_size: ROOM as u64, buffer: [0; ROOM] }
    }

    /// The first items from a key to another, in their order: as many as are asked for and as fit. A tree that is not there
    /// has none.
    fn fetch(
        &mut self,
        fd: BorrowedFd<'_>,
        tree_id: u64,
        first: Key,
        last: Key,
        most: u32,
    ) -> Result<impl Iterator<Item = (Key, &[u8])>, Errno> {
        self.key = SearchKey {
            tree_id,
            min_objectid: first.objectid,
            max_objectid: last.objectid,
            min_offset: first.offset,
            max_offset: last.offset,
            max_transid: u64::MAX,
            min_type: first.kind,
            max_type: last.kind,
            nr_items: most,
            ..SearchKey::default()
        };
        // SAFETY: the descriptor is open for the time of the call. The kernel reads and fills a structure of this very
        // layout, and writes no more behind it than the size that it is told, which is that of the buffer.
        match unsafe { raw::tree_search_v2(fd.as_raw_fd(), (&raw mut *self).cast()) } {
            Err(Errno::ENOENT) => self.key.nr_items = 0,
            result => drop(result?),
        }
        Ok(items(&self.buffer).take(self.key.nr_items as usize))
    }
}

/// What `read` makes of the first item from a key to another, if there is one, in the tree of quotas: its items are small.
///
/// # Errors
/// Those of the ioctl.
pub(super) fn first_of<T>(
    fd: BorrowedFd<'_>,
    tree_id: u64,
    first: Key,
    last: Key,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<Option<T>, Errno> {
    // One is asked for, and no end is told: otherwise the kernel looks through the rest of the leaf for others that fit.
    let mut arguments = SearchArguments::<SMALL>::new();
    let next = arguments.fetch(fd, tree_id, first, Key::LAST, 1)?.next();
    Ok(next.filter(|(key, _)| *key <= last).map(|(_, item)| read(item)))
}

/// Calls `each` with all items from a key to another, in their order.
///
/// # Errors
/// Those of the ioctl: `EOVERFLOW` for an item that does not fit.
pub(super) fn search<const ROOM: usize>(
    fd: BorrowedFd<'_>,
    tree_id: u64,
    first: Key,
    last: Key,
    mut each: impl FnMut(Key, &[u8]),
) -> Result<(), Errno> {
    let mut arguments = Box::new(SearchArguments::<ROOM>::new());
    let mut from = Some(first);
    while let Some(min) = from.filter(|min| *min <= last) {
        let mut reached = None;
        for (key, item) in arguments.fetch(fd, tree_id, min, last, u32::MAX)? {
            each(key, item);
            reached = Some(key);
        }
        // Without progress it would never end.
        from = reached.filter(|reached| *reached >= min).and_then(Key::next);
    }
    Ok(())
}

/// Reads items with their headers, up to what is not whole.
fn items(mut bytes: &[u8]) -> impl Iterator<Item = (Key, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_at_checked(SEARCH_HEADER)?;
        // transid, objectid, offset, and two of 32 bits: type, length. These are in the machine's order.
        let wide = |index: usize| header.get(8 * index..)?.first_chunk().copied().map(u64::from_ne_bytes);
        let half = |offset: usize| header.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes);
        let key = Key { objectid: wide(1)?, kind: half(24)?, offset: wide(2)? };
        let (item, rest) = rest.split_at_checked(half(28)?.try_into().ok()?)?;
        bytes = rest;
        Some((key, item))
    })
}

/// One of the 64-bit numbers of an item.
pub(super) fn number(item: &[u8], index: usize) -> Option<u64> {
    item.get(8 * index..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_follow_each_other() {
        let key = |objectid, kind, offset| Key { objectid, kind, offset };
        for (this, next) in [
            (key(1, 2, 3), Some(key(1, 2, 4))),
            (key(1, 2, u64::MAX), Some(key(1, 3, 0))),
            (key(1, 255, u64::MAX), Some(key(2, 0, 0))),
            (key(u64::MAX, 255, u64::MAX), None),
        ] {
            assert_eq!(this.next(), next);
            assert!(next.is_none_or(|next| next > this));
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            items(&bytes).count();
        }

        #[test]
        fn reads_items_one_after_the_other(all: Vec<(u64, u8, u64, Vec<u8>)>) {
            let mut bytes = Vec::new();
            for (objectid, kind, offset, item) in &all {
                bytes.extend([9, *objectid, *offset].map(u64::to_ne_bytes).concat());
                bytes.extend([u32::from(*kind), item.len() as u32].map(u32::to_ne_bytes).concat());
                bytes.extend(item);
            }
            let read = items(&bytes).map(|(key, item)| (key.objectid, key.kind as u8, key.offset, item.to_vec()));
            prop_assert_eq!(read.collect::<Vec<_>>(), all);
        }
    }
}

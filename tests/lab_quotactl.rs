//! The quota system call on real file systems, and what it answers when quota is off.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use growd::model::Bytes;
use growd::sys::quotactl::{self, QuotaError, QuotaState};
use nix::errno::Errno;
use support::{Filesystem, Kind, LAST_PROJECT, on_both};

const MIB: u64 = 1 << 20;

#[test]
fn limits_and_use_are_read_as_they_were_set() {
    on_both(|filesystem| {
        let share = filesystem.create_share("a", 42, 3 * MIB);
        filesystem.create_share("b", LAST_PROJECT, 5 * MIB);
        let directory = File::open(share).unwrap();
        let (fd, kind) = (directory.as_fd(), filesystem.kind());
        let on = QuotaState { accounting: true, enforcement: true };
        assert_eq!(quotactl::state(fd), Ok(on));
        for hard in [Bytes::mib(4), Bytes::mib(6)] {
            quotactl::set_limits(fd, 42, hard, Bytes::mib(2)).unwrap();
            let quota = quotactl::get(fd, kind, 42).unwrap();
            assert_eq!((quota.hard, quota.soft, quota.id), (hard, Bytes::mib(2), 42));
            assert_eq!((quota.hard.get(), quota.used.get()), (filesystem.hard_limit(42), filesystem.used(42)));
            assert_eq!(quotactl::get_next(fd, kind, 1), Ok(Some(quota)));
        }
        assert_eq!(quotactl::get_next(fd, kind, 43).unwrap().unwrap().id, LAST_PROJECT);
        assert_eq!(quotactl::get_next(fd, kind, LAST_PROJECT + 1), Ok(None));
        let nobody = quotactl::Quota { id: 4242, ..quotactl::Quota::default() };
        assert_eq!(quotactl::get(fd, kind, 4242), Ok(nobody));
    });
}

#[test]
fn quota_that_is_off_is_told_from_a_project_without_a_record() {
    for filesystem in [Filesystem::xfs("ubda", "noquota"), Filesystem::ext4_without_quota_feature("ubdb")] {
        let directory = File::open(filesystem.path()).unwrap();
        let (fd, kind) = (directory.as_fd(), filesystem.kind());
        assert_eq!(quotactl::state(fd), Ok(QuotaState::default()));
        assert_eq!(quotactl::get(fd, kind, 42), Err(QuotaError::Off));
        assert_eq!(quotactl::get_next(fd, kind, 1), Err(QuotaError::Off));
        assert_eq!(quotactl::set_limits(fd, 42, Bytes::mib(1), Bytes::ZERO), Err(QuotaError::Off));
    }
}

#[test]
fn a_frozen_xfs_is_read_and_a_frozen_ext4_lets_its_readers_wait() {
    on_both(|filesystem| {
        let directory = File::open(filesystem.create_share("a", 42, MIB)).unwrap();
        filesystem.freeze();
        assert!(quotactl::state(directory.as_fd()).unwrap().enforcement);
        let ask = || {
            let (fd, kind) = (directory.as_fd(), filesystem.kind());
            let (one, next) = (quotactl::get(fd, kind, 42), quotactl::get_next(fd, kind, 1));
            assert_eq!((one.unwrap().hard, next.unwrap().unwrap().id), (Bytes::mib(1), 42));
        };
        match filesystem.kind() {
            Kind::Xfs => {
                ask();
                filesystem.thaw();
            }
            Kind::Ext4 => std::thread::scope(|scope| {
                let reader = scope.spawn(ask);
                std::thread::sleep(Duration::from_millis(500));
                assert!(!reader.is_finished(), "the kernel does not take Q_GETQUOTA for a write any more");
                filesystem.thaw();
                reader.join().unwrap();
            }),
        }
    });
}

#[test]
fn a_read_only_xfs_is_read_and_ext4_says_why_not() {
    on_both(|filesystem| {
        let share = filesystem.create_share("a", 42, MIB);
        let hard = || quotactl::get(File::open(&share).unwrap().as_fd(), filesystem.kind(), 42).map(|quota| quota.hard);
        let state = || quotactl::state(File::open(&share).unwrap().as_fd()).unwrap().enforcement;
        let (read, refused) = (Ok(Bytes::mib(1)), Err(QuotaError::System(Errno::EROFS)));
        let is_xfs = filesystem.kind() == Kind::Xfs;

        let mount = filesystem.read_only_mount();
        assert!(state(), "the mount is read-only, the file system is not");
        assert_eq!(hard(), if is_xfs { read } else { refused });
        drop(mount);

        filesystem.remount("ro");
        assert_eq!(state(), is_xfs, "ext4 has its quotas off as long as it is read-only");
        assert_eq!(hard(), if is_xfs { read } else { refused });
        filesystem.remount("rw");
        assert_eq!((state(), hard()), (true, read));
    });
}

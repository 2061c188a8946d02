//! The quota system calls on real file systems: both routes to the kernel, and what it answers when quota is off.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use growd::model::Bytes;
use growd::sys::quotactl::{self, QuotaError, QuotaState, Route};
use nix::errno::Errno;
use support::{Filesystem, Kind, LAST_PROJECT, PRJQUOTA};

const MIB: u64 = 1 << 20;

/// Runs a test on both file systems, one after the other.
fn on_both(test: impl Fn(&Filesystem)) {
    test(&Filesystem::xfs("ubda", PRJQUOTA));
    test(&Filesystem::ext4("ubdb", PRJQUOTA));
}

#[test]
fn both_routes_say_and_do_the_same() {
    on_both(|filesystem| {
        let share = filesystem.create_share("a", 42, 3 * MIB);
        filesystem.create_share("b", LAST_PROJECT, 5 * MIB);
        let directory = File::open(share).unwrap();
        let (fd, kind) = (directory.as_fd(), filesystem.kind());
        for (route, hard) in [(Route::Descriptor, Bytes::mib(4)), (Route::Device, Bytes::mib(6))] {
            let on = QuotaState { accounting: true, enforcement: true };
            assert_eq!(quotactl::state(fd, route), Ok(on), "{route:?}");
            quotactl::set_limits(fd, route, 42, hard, Bytes::mib(2)).unwrap();
            for route in [Route::Best, Route::Descriptor, Route::Device] {
                let quota = quotactl::get(fd, kind, route, 42).unwrap();
                assert_eq!((quota.hard, quota.soft, quota.id), (hard, Bytes::mib(2), 42));
                assert_eq!(quota.used.get(), filesystem.used(42));
                assert_eq!(quotactl::get_next(fd, kind, route, 1), Ok(Some(quota)));
                assert_eq!(quotactl::get_next(fd, kind, route, 43).unwrap().unwrap().id, LAST_PROJECT);
                assert_eq!(quotactl::get_next(fd, kind, route, LAST_PROJECT + 1), Ok(None));
                let nobody = quotactl::Quota { id: 4242, ..quotactl::Quota::default() };
                assert_eq!(quotactl::get(fd, kind, route, 4242), Ok(nobody));
            }
        }
        assert_eq!(filesystem.hard_limit(42), 6 * MIB);
    });
}

#[test]
fn quota_that_is_off_is_told_from_a_project_without_a_record() {
    for filesystem in [Filesystem::xfs("ubda", "noquota"), Filesystem::ext4_without_quota_feature("ubdb")] {
        let directory = File::open(filesystem.path()).unwrap();
        for route in [Route::Best, Route::Descriptor, Route::Device] {
            let (fd, kind) = (directory.as_fd(), filesystem.kind());
            assert_eq!(quotactl::state(fd, route), Ok(QuotaState::default()), "{route:?}");
            assert_eq!(quotactl::get(fd, kind, route, 42), Err(QuotaError::Off), "{route:?}");
            assert_eq!(quotactl::get_next(fd, kind, route, 1), Err(QuotaError::Off), "{route:?}");
            let set = quotactl::set_limits(fd, route, 42, Bytes::mib(1), Bytes::ZERO);
            assert_eq!(set, Err(QuotaError::Off), "{route:?}");
        }
    }
}

#[test]
fn a_frozen_xfs_is_read_and_a_frozen_ext4_lets_its_readers_wait() {
    on_both(|filesystem| {
        let directory = File::open(filesystem.create_share("a", 42, MIB)).unwrap();
        for route in [Route::Descriptor, Route::Device] {
            filesystem.freeze();
            assert!(quotactl::state(directory.as_fd(), route).unwrap().enforcement);
            let ask = |file: File| {
                let (fd, kind) = (file.as_fd(), filesystem.kind());
                let (one, next) = (quotactl::get(fd, kind, route, 42), quotactl::get_next(fd, kind, route, 1));
                assert_eq!((one.unwrap().hard, next.unwrap().unwrap().id), (Bytes::mib(1), 42));
            };
            let file = directory.try_clone().unwrap();
            match filesystem.kind() {
                Kind::Xfs => {
                    ask(file);
                    filesystem.thaw();
                }
                Kind::Ext4 => std::thread::scope(|scope| {
                    let reader = scope.spawn(|| ask(file));
                    std::thread::sleep(Duration::from_millis(500));
                    assert!(!reader.is_finished(), "the kernel does not take Q_GETQUOTA for a write any more");
                    filesystem.thaw();
                    reader.join().unwrap();
                }),
            }
        }
    });
}

#[test]
fn a_read_only_xfs_is_read_and_ext4_says_why_not() {
    on_both(|filesystem| {
        let share = filesystem.create_share("a", 42, MIB);
        let hard = |route| {
            quotactl::get(File::open(&share).unwrap().as_fd(), filesystem.kind(), route, 42).map(|quota| quota.hard)
        };
        let state = || quotactl::state(File::open(&share).unwrap().as_fd(), Route::Best).unwrap().enforcement;
        let (read, refused) = (Ok(Bytes::mib(1)), Err(QuotaError::System(Errno::EROFS)));
        let is_xfs = filesystem.kind() == Kind::Xfs;

        let mount = filesystem.read_only_mount();
        assert!(state(), "the mount is read-only, the file system is not");
        assert_eq!(hard(Route::Descriptor), if is_xfs { read } else { refused });
        assert_eq!(hard(Route::Device), read, "the device knows nothing of mounts");
        drop(mount);

        filesystem.remount("ro");
        assert_eq!(state(), is_xfs, "ext4 has its quotas off as long as it is read-only");
        assert_eq!(hard(Route::Descriptor), if is_xfs { read } else { refused });
        assert_eq!(hard(Route::Device), if is_xfs { read } else { Err(QuotaError::Off) });
        filesystem.remount("rw");
        assert_eq!((state(), hard(Route::Descriptor)), (true, read));
    });
}

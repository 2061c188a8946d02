//! The quota system calls on real file systems: both routes to the kernel, and what it answers when quota is off.

// A test fails by panicking, also in the functions that it shares with others.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;

use growd::model::Bytes;
use growd::sys::quotactl::{self, QuotaError, QuotaState, Route};
use support::{Filesystem, PRJQUOTA};

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
        filesystem.create_share("b", 77, 5 * MIB);
        let directory = File::open(share).unwrap();
        let fd = directory.as_fd();
        for (route, hard) in [(Route::Descriptor, Bytes::mib(4)), (Route::Device, Bytes::mib(6))] {
            let on = QuotaState { accounting: true, enforcement: true };
            assert_eq!(quotactl::state(fd, route), Ok(on), "{route:?}");
            quotactl::set_limits(fd, route, 42, hard, Bytes::mib(2)).unwrap();
            for route in [Route::Best, Route::Descriptor, Route::Device] {
                let quota = quotactl::get(fd, route, 42).unwrap();
                assert_eq!((quota.hard, quota.soft, quota.id), (hard, Bytes::mib(2), 42));
                assert_eq!(quota.used.get(), filesystem.used(42));
                assert_eq!(quotactl::get_next(fd, route, 1), Ok(Some(quota)));
                assert_eq!(quotactl::get_next(fd, route, 43).unwrap().map(|quota| quota.id), Some(77));
                assert_eq!(quotactl::get_next(fd, route, 78), Ok(None));
                let nobody = quotactl::ProjectQuota { id: 4242, ..quotactl::ProjectQuota::default() };
                assert_eq!(quotactl::get(fd, route, 4242), Ok(nobody));
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
            let fd = directory.as_fd();
            assert_eq!(quotactl::state(fd, route), Ok(QuotaState::default()), "{route:?}");
            assert_eq!(quotactl::get(fd, route, 42), Err(QuotaError::Off), "{route:?}");
            assert_eq!(quotactl::get_next(fd, route, 1), Err(QuotaError::Off), "{route:?}");
            let set = quotactl::set_limits(fd, route, 42, Bytes::mib(1), Bytes::ZERO);
            assert_eq!(set, Err(QuotaError::Off), "{route:?}");
        }
    }
}

#[test]
fn a_frozen_file_system_tells_the_state_and_lets_limits_wait() {
    on_both(|filesystem| {
        let share = filesystem.create_share("a", 42, MIB);
        let directory = File::open(share).unwrap();
        for route in [Route::Descriptor, Route::Device] {
            filesystem.freeze();
            let fd = directory.try_clone().unwrap();
            let state = std::thread::spawn(move || quotactl::state(fd.as_fd(), route).unwrap());
            let fd = directory.try_clone().unwrap();
            let get = std::thread::spawn(move || quotactl::get(fd.as_fd(), route, 42).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(500));
            let finished = (state.is_finished(), get.is_finished());
            filesystem.thaw();
            // The kernel takes Q_GETQUOTA for a command that writes.
            assert_eq!(finished, (true, false), "{route:?}");
            assert!(state.join().unwrap().enforcement);
            assert_eq!(get.join().unwrap().hard, Bytes::mib(1));
        }
    });
}

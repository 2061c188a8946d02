//! A limit that was verified survives a power cut, and one that was only set does not: without the second half, the
//! first would prove nothing. So does one that was put back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/power_cut.rs"]
mod power_cut;

use std::sync::Arc;

use growd::driver::project_quota::ProjectQuota;
use growd::driver::{Driver, Step};
use growd::model::{Bytes, Reason, ShareId};
use power_cut::{Disks, cut};
use support::driver::OfOneShare;
use support::{Filesystem, Kind, fill, lab};

const SHARE: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
const PROJECT: u32 = 42;
const BEFORE: Bytes = Bytes::mib(4);
const AFTER: Bytes = Bytes::mib(8);

/// With `lazytime` the kernel keeps its own changes of timestamps in memory, and the journal is forced by one. ext4's
/// commits of its own accord wait for longer than this takes, and its `fast_commit` may write less than everything.
const DISKS: [(Kind, &str, &str); 4] = [
    (Kind::Xfs, "ubda", "prjquota"),
    (Kind::Ext4, "ubdb", "prjquota,commit=300"),
    (Kind::Xfs, "ubdc", "prjquota,lazytime,noatime"),
    (Kind::Ext4, "ubdd", "prjquota,commit=300,lazytime,noatime"),
];
const FAST_COMMIT: &str = "ubdd";

#[test]
fn a_verified_limit_survives_a_power_cut_and_one_that_was_only_set_does_not() {
    let disks = Disks::blank();
    disks.run_until_cut("in_the_lab_a_limit_is_set", &[]);
    disks.run_until_cut("in_the_lab_it_is_lost_and_another_is_set_and_verified", &[]);
    disks.run("in_the_lab_it_is_still_there", &[]);
}

#[test]
fn an_old_limit_that_was_put_back_survives_a_power_cut() {
    let disks = Disks::blank();
    disks.run_until_cut("in_the_lab_a_limit_below_what_is_in_use_is_put_back", &[]);
    disks.run("in_the_lab_it_is_still_there", &[]);
}

/// Nobody may touch such a directory, not even its timestamps: the limit reaches the disk all the same.
#[test]
fn a_limit_in_a_pool_whose_directory_may_not_be_changed_survives_a_power_cut() {
    let disks = Disks::blank();
    disks.run_until_cut("in_the_lab_a_limit_is_verified_in_a_directory_that_may_not_be_changed", &[]);
    disks.run("in_the_lab_it_is_still_there", &[]);
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_a_limit_is_set() {
    let pools = new_pools(BEFORE);
    lab::run("sync", &[]);
    for pool in &pools {
        set_limit(pool);
    }
    cut();
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_it_is_lost_and_another_is_set_and_verified() {
    let pools = pools_with(BEFORE);
    for driver in pools.each_ref().map(set_limit) {
        assert_eq!(driver.verify(SHARE.parse().unwrap()).unwrap(), AFTER);
    }
    cut();
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_it_is_still_there() {
    pools_with(AFTER);
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_a_limit_below_what_is_in_use_is_put_back() {
    let pools = new_pools(AFTER);
    for pool in &pools {
        assert_eq!(fill(&pool.path().join(SHARE).join("data"), 6 << 20).unwrap(), 6 << 20);
        pool.set_limits(PROJECT, 0, BEFORE.get());
    }
    lab::run("sync", &[]);
    for pool in &pools {
        let shrink = Step::LowerLimit { from: AFTER, to: BEFORE };
        let refused = driver(pool).apply(SHARE.parse().unwrap(), shrink).unwrap_err();
        assert_eq!(refused.into_refusal().reason(), Reason::WouldLoseData);
    }
    cut();
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_a_limit_is_verified_in_a_directory_that_may_not_be_changed() {
    let pools = new_pools(BEFORE);
    for (pool, attribute) in pools.iter().zip(["+i", "+i", "+a", "+a"]) {
        lab::run("chattr", &[attribute, pool.path().to_str().unwrap()]);
    }
    // From here on there is nothing to write but the limit.
    lab::run("sync", &[]);
    for driver in pools.each_ref().map(set_limit) {
        assert_eq!(driver.verify(SHARE.parse().unwrap()).unwrap(), AFTER);
    }
    cut();
}

/// Fresh file systems, each with a share of this size.
fn new_pools(limit: Bytes) -> [Filesystem; 4] {
    DISKS.map(|(kind, disk, options)| {
        let filesystem = Filesystem::make(kind, disk, options);
        if disk == FAST_COMMIT {
            filesystem.unmount();
            lab::run("tune2fs", &["-O", "fast_commit", filesystem.device().to_str().unwrap()]);
            filesystem.mount(options);
        }
        filesystem.create_share(SHARE, PROJECT, limit.get());
        filesystem
    })
}

/// The file systems that the last lab left behind, with this limit on each.
#[track_caller]
fn pools_with(limit: Bytes) -> [Filesystem; 4] {
    let pools = DISKS.map(|(kind, disk, options)| Filesystem::left_behind(kind, disk, options));
    let limits = pools.each_ref().map(|pool| Bytes::new(pool.hard_limit(PROJECT)));
    assert_eq!(limits, [limit; 4], "{DISKS:?}");
    pools
}

fn driver(filesystem: &Filesystem) -> ProjectQuota {
    let template = format!("{}/{{share_id}}", filesystem.path().display()).parse().unwrap();
    ProjectQuota::new("pool".parse().unwrap(), template, vec![], Arc::default(), Arc::default())
}

fn set_limit(filesystem: &Filesystem) -> ProjectQuota {
    let share: ShareId = SHARE.parse().unwrap();
    let driver = driver(filesystem);
    driver.apply(share, Step::SetLimit { to: AFTER }).unwrap();
    assert_eq!(driver.observe(share).unwrap().size(), Some(AFTER));
    driver
}

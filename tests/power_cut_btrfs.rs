//! A limit of a subvolume that was verified survives a power cut, and one that was only set does not: without the
//! second half, the first would prove nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/power_cut.rs"]
mod power_cut;

use growd::driver::{Driver, Step};
use growd::model::{Bytes, ShareId};
use power_cut::{Disks, cut};
use support::btrfs::Btrfs;
use support::lab;

const SHARE: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
const BEFORE: Bytes = Bytes::mib(4);
const AFTER: Bytes = Bytes::mib(8);

#[test]
fn a_verified_limit_survives_a_power_cut_and_one_that_was_only_set_does_not() {
    let disks = Disks::blank();
    disks.run_until_cut("in_the_lab_a_limit_is_set", &[]);
    disks.run_until_cut("in_the_lab_it_is_lost_and_another_is_set_and_verified", &[]);
    disks.run("in_the_lab_it_is_still_there", &[]);
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_a_limit_is_set() {
    let filesystem = Btrfs::new("ubda");
    filesystem.create_share(SHARE, BEFORE.get());
    lab::run("sync", &[]);
    set_limit(&filesystem);
    cut();
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_it_is_lost_and_another_is_set_and_verified() {
    let filesystem = left_behind_with(BEFORE);
    assert_eq!(set_limit(&filesystem).verify(SHARE.parse().unwrap()).unwrap(), AFTER);
    cut();
}

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_it_is_still_there() {
    left_behind_with(AFTER);
}

/// The file system that the last lab left behind, with this limit.
#[track_caller]
fn left_behind_with(limit: Bytes) -> Btrfs {
    let filesystem = Btrfs::left_behind("ubda");
    assert_eq!(filesystem.limit(&filesystem.path().join(SHARE)), Some(limit.get()));
    filesystem
}

fn set_limit(filesystem: &Btrfs) -> growd::driver::btrfs::Btrfs {
    let share: ShareId = SHARE.parse().unwrap();
    let template = format!("{}/{{share_id}}", filesystem.path().display()).parse().unwrap();
    let driver = growd::driver::btrfs::Btrfs::new("pool".parse().unwrap(), template, vec![], Default::default());
    driver.apply(share, Step::SetLimit { to: AFTER }).unwrap();
    assert_eq!(driver.observe(share).unwrap().size(), Some(AFTER));
    driver
}

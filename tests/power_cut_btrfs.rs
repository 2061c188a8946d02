//! A limit of a subvolume that was verified survives a power cut, and one that was only set does not: without the
//! second half, the first would prove nothing. So does one that was put back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/power_cut.rs"]
mod power_cut;

use growd::driver::{Driver, Step};
use growd::model::{Bytes, Reason, ShareId};
use power_cut::{Disks, cut};
use support::btrfs::Btrfs;
use support::driver::OfOneShare;
use support::{fill, lab};

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
fn an_old_limit_that_was_put_back_survives_a_power_cut() {
    let disks = Disks::blank();
    disks.run_until_cut("in_the_lab_a_limit_below_what_is_in_use_is_put_back", &[]);
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

#[test]
#[ignore = "runs on a lab node, which the other test boots"]
fn in_the_lab_a_limit_below_what_is_in_use_is_put_back() {
    let filesystem = Btrfs::new("ubda");
    let share = filesystem.create_share(SHARE, AFTER.get());
    assert_eq!(fill(&share.join("data"), 6 << 20).unwrap(), 6 << 20);
    filesystem.btrfs(&["qgroup", "limit", &BEFORE.get().to_string()], &share);
    lab::run("sync", &[]);
    assert_eq!(filesystem.limit_on_disk(&filesystem.subvolume_id(&share)), BEFORE.get());
    let shrink = Step::LowerLimit { from: AFTER, to: BEFORE };
    let refused = driver(&filesystem).apply(SHARE.parse().unwrap(), shrink).unwrap_err();
    assert_eq!(refused.into_refusal().reason(), Reason::WouldLoseData);
    cut();
}

/// The file system that the last lab left behind, with this limit.
#[track_caller]
fn left_behind_with(limit: Bytes) -> Btrfs {
    let filesystem = Btrfs::left_behind("ubda");
    assert_eq!(filesystem.limit(&filesystem.path().join(SHARE)), Some(limit.get()));
    filesystem
}

fn driver(filesystem: &Btrfs) -> growd::driver::btrfs::Btrfs {
    let template = format!("{}/{{share_id}}", filesystem.path().display()).parse().unwrap();
    growd::driver::btrfs::Btrfs::new("pool".parse().unwrap(), template, vec![], Default::default())
}

fn set_limit(filesystem: &Btrfs) -> growd::driver::btrfs::Btrfs {
    let share: ShareId = SHARE.parse().unwrap();
    let driver = driver(filesystem);
    driver.apply(share, Step::SetLimit { to: AFTER }).unwrap();
    assert_eq!(driver.observe(share).unwrap().size(), Some(AFTER));
    driver
}

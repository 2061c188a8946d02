//! btrfs of this machine's own kernel, which may be newer than the lab's. Since some version between the two, btrfs sets no
//! limit through a subvolume whose own quota is used up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/btrfs_race.rs"]
mod btrfs_race;
#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use btrfs_race::a_writer_that_is_faster_keeps_its_data_and_the_old_limit;
use daemon::{Daemon, MIB, btrfs_pool, share};
use growd::driver::{Driver, Step};
use growd::model::{Bytes, Reason, ShareId};
use support::btrfs::Btrfs;
use support::driver::OfOneShare;
use support::{fill, lab};

/// `None` where this machine can have none, which is said past libtest, since it keeps what a test that passes prints.
fn here() -> Option<Btrfs> {
    let mut console = std::io::stderr();
    let say = |why: &&str| writeln!(console, "NOT TESTED on this machine's own kernel: {why}").unwrap();
    Btrfs::here().inspect_err(say).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_has_reached_its_limit_or_is_beyond_it_is_extended() {
    let Some(fs) = here() else { return };
    let dir = tempfile::tempdir().unwrap();
    let places = [1, 2].map(|n| fs.create_share(&share(n), 16 * MIB));
    fill(&places[0].join("data"), 64 * MIB).unwrap();
    beyond_its_limit(&fs, &places[1], MIB);
    let daemon = Daemon::start(dir.path(), &btrfs_pool(&fs)).await;
    let clients = daemon.clients().await;
    for (n, place) in (1..).zip(&places) {
        assert_eq!(clients.extended(n, 32 * MIB).await.size_after_bytes, Some(32 * MIB));
        assert_eq!(fs.limit(place), Some(32 * MIB));
        assert_eq!(fill(&place.join("more"), 8 * MIB).unwrap(), 8 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_faster_than_a_shrink_keeps_its_data_and_the_old_limit() {
    let Some(fs) = here() else { return };
    a_writer_that_is_faster_keeps_its_data_and_the_old_limit(&fs).await;
}

#[test]
fn a_pool_whose_own_subvolume_is_full_sets_limits_as_long_as_its_share_is_not_full_too() {
    let Some(fs) = here() else { return };
    let pool = fs.create_share("pool", 4 * MIB);
    let id: ShareId = share(1).parse().unwrap();
    let place = fs.create_share(&format!("pool/{id}"), 16 * MIB);
    beyond_its_limit(&fs, &pool, MIB);
    let template = format!("{}/{{share_id}}", pool.display()).parse().unwrap();
    let driver = growd::driver::btrfs::Btrfs::new("pool".parse().unwrap(), template, vec![], Arc::default());
    let set = |size| driver.apply(id, Step::SetLimit { to: Bytes::new(size) });
    assert_eq!(set(32 * MIB).unwrap().to_string(), "16MiB -> 32MiB");

    beyond_its_limit(&fs, &place, MIB);
    // What one kernel refuses, another does.
    if let Err(error) = set(64 * MIB) {
        let refusal = error.into_refusal();
        let told = refusal.to_string();
        assert_eq!(refusal.reason(), Reason::Internal, "{told}");
        assert!(told.contains("room in its quota") && told.contains(pool.to_str().unwrap()), "{told}");
        assert_eq!(fs.limit(&place), Some(MIB));
        set_limit(&fs, &pool, 4 * MIB);
        set(64 * MIB).unwrap();
    }
    assert_eq!(fs.limit(&place), Some(64 * MIB));
}

/// Newer kernels tell of a subvolume that is not open, also where the name leads elsewhere.
#[test]
fn only_a_subvolume_in_the_pool_itself_is_a_share() {
    let Some(fs) = here() else { return };
    let name = |n| fs.path().join(share(n));
    fs.create_share(&share(1), 16 * MIB);
    symlink(name(1), name(2)).unwrap();
    fs::create_dir(name(3)).unwrap();
    fs::write(name(4), "").unwrap();
    let covered = fs.create_share(&share(5), 16 * MIB);
    lab::run("mount", &["--bind", name(1).to_str().unwrap(), covered.to_str().unwrap()]);

    let template = format!("{}/{{share_id}}", fs.path().display()).parse().unwrap();
    let driver = growd::driver::btrfs::Btrfs::new("pool".parse().unwrap(), template, vec![], Arc::default());
    let told = |n| match driver.observe(share(n).parse().unwrap()) {
        Ok(observed) => observed.size().map_or("no size".to_owned(), |size| size.to_string()),
        Err(error) => error.into_refusal().to_string(),
    };
    let told = [1, 2, 3, 4, 5, 6].map(told);
    lab::run("umount", &[covered.to_str().unwrap()]);
    let parts = [
        "16MiB",
        "a symbolic link",
        "a directory that is no subvolume",
        "other than a directory",
        "another mount",
        "in no pool",
    ];
    for (told, part) in told.iter().zip(parts) {
        assert!(told.contains(part), "{told}: {part}");
    }
    let uncovered = driver.observe(share(5).parse().unwrap()).unwrap();
    assert_eq!(uncovered.size(), Some(Bytes::mib(16)));
}

/// Writes 2 MiB into a subvolume and sets a limit below that.
fn beyond_its_limit(fs: &Btrfs, subvolume: &Path, limit: u64) {
    assert_eq!(fill(&subvolume.join("beyond"), 2 * MIB).unwrap(), 2 * MIB);
    set_limit(fs, subvolume, limit);
    let counts = fs.qgroup(subvolume);
    assert!(counts.used > limit && counts.limit == Some(limit), "{counts:?} in {}", subvolume.display());
}

/// Of a subvolume that may be full, asked for through the one that it is in.
fn set_limit(fs: &Btrfs, subvolume: &Path, size: u64) {
    let group = format!("0/{}", fs.subvolume_id(subvolume));
    lab::run("btrfs", &["qgroup", "limit", &size.to_string(), &group, fs.path().to_str().unwrap()]);
}

//! growd beside others: pools that share a file system, and administrators who change a share at the same moment.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use daemon::{Daemon, MIB, assert_refused, eventually, share};
use growd::driver::project_quota::ProjectQuota;
use growd::driver::{self, Driver, Outcome, Step};
use growd::model::{Bytes, Reason, ShareId};
use growd::sys::quotactl;
use growd::wire::proto::JobState;
use support::btrfs::Btrfs;
use support::image::{Image, KINDS, pool};
use support::{Filesystem, PRJQUOTA, lab};

const SPARSE: u64 = 3 << 30;

/// A pool of another name.
fn others(directory: &Path) -> String {
    pool(directory, "").replace("\"images\"", "\"others\"")
}

fn template(directory: &Path, tail: &str) -> String {
    format!("{}/{{share_id}}{tail}", directory.display())
}

/// Makes an image larger, and all that is in it, as an administrator does.
fn grow_by_hand(image: &Image, size: u64) {
    File::options().write(true).open(&image.path).unwrap().set_len(size).unwrap();
    lab::run("losetup", &["-c", &image.devices()[0]]);
    lab::run("xfs_growfs", &["-d", image.mount_point().to_str().unwrap()]);
}

/// What the images of the other pool lack of their size is promised, though nobody has asked growd for that pool since.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_comes_to_the_file_system_of_another_counts_there_at_once() {
    lab::require();
    let ground = Filesystem::xfs("ubda", "");
    let [own, theirs] = ["own", "theirs"].map(|name| ground.path().join(name));
    let _image = {
        fs::create_dir(&own).unwrap();
        Image::mounted(&own, &share(1), 320 * MIB, false, KINDS[0].1)
    };
    for (at, way) in ["made", "mounted", "linked"].into_iter().enumerate() {
        let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/mnt").unwrap());
        let link = place.path().join("link");
        let configured = match way {
            "made" => theirs.clone(),
            "mounted" => place.path().to_owned(),
            _ => {
                fs::create_dir(&theirs).unwrap();
                symlink(&theirs, &link).unwrap();
                link
            }
        };
        let daemon = Daemon::start(dir.path(), &(pool(&own, "") + &others(&configured))).await;
        let clients = daemon.clients().await;
        // From here on growd knows which pool has the share, and asks no other.
        let more = 16 * MIB * (at as u64 + 1);
        let job = clients.extend(&share(1), 320 * MIB + more).await.unwrap();
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded, "{way}");
        if way != "linked" {
            fs::create_dir(&theirs).unwrap();
        }
        if way == "mounted" {
            lab::run("mount", &["--bind", theirs.to_str().unwrap(), configured.to_str().unwrap()]);
        }
        let sparse = Image::blank(&theirs, &share(2), SPARSE, false);
        let refused = clients.extend(&share(1), 2 << 30).await;
        drop(daemon);
        if way == "mounted" {
            lab::run("umount", &[configured.to_str().unwrap()]);
        }
        drop(sparse);
        fs::remove_dir(&theirs).unwrap();
        assert_refused(&refused.expect_err(way), "POOL_FULL");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_in_subvolumes_of_one_btrfs_promise_its_space_once() {
    lab::require();
    let (ground, dir) = (Btrfs::new("ubdc"), tempfile::tempdir().unwrap());
    let [own, theirs] = ["own", "theirs"].map(|name| ground.create_share(name, 100 << 30));
    let _images = [(&own, 1, 100 * MIB), (&theirs, 2, SPARSE)]
        .map(|(place, n, size)| Image::blank(place, &share(n), size, false));
    let daemon = Daemon::start(dir.path(), &(pool(&own, "") + &others(&theirs))).await;
    let clients = daemon.clients().await;
    for name in ["images", "others"] {
        let pool = clients.pool(name).await;
        assert!(pool.promised_bytes >= SPARSE + 100 * MIB, "{pool:?}");
        assert_eq!(pool.filesystem, "btrfs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_nobody_may_change_takes_its_space_all_the_same() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubdb", ""), tempfile::tempdir().unwrap());
    let image = Image::blank(ground.path(), &share(1), SPARSE, false);
    let path = image.path.to_str().unwrap();
    lab::run("chattr", &["+i", path]);
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let promised = daemon.clients().await.pool("images").await.promised_bytes;
    lab::run("chattr", &["-i", path]);
    assert!(promised >= SPARSE, "{promised}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_grows_during_a_look_was_not_cut() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubdb", ""), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, KINDS[0].1);
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "overcommit = 4")).await;
    let clients = daemon.clients().await;
    // The first is the question to the loop device which file it shows.
    let log = dir.path().join("calls");
    let injected = daemon.inject_and_log("ioctl:delay_enter=30s", &log).await;
    let asked = tokio::spawn({
        let clients = clients.clone();
        async move { clients.extend(&share(1), 640 * MIB).await }
    });
    eventually(async || fs::read_to_string(&log).unwrap(), |calls| calls.contains("ioctl(")).await;
    grow_by_hand(&image, 480 * MIB);
    drop(injected);
    let job = asked.await.unwrap().unwrap();
    assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    assert_eq!((image.size(), image.device_size()), (640 * MIB, 640 * MIB));
}

/// growd has a growth of before brought to its place first, which takes a while, and then asks XFS for a size: a smaller
/// one than it has would shrink it.
#[tokio::test(flavor = "multi_thread")]
async fn an_xfs_that_somebody_grows_at_the_same_moment_does_not_shrink() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubdb", ""), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, KINDS[0].1);
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "overcommit = 4")).await;
    let clients = daemon.clients().await;
    grow_by_hand(&image, 480 * MIB);
    let log = dir.path().join("calls");
    let injected = daemon.inject_and_log("syncfs:delay_enter=60s", &log).await;
    let job = clients.extend(&share(1), 500 * MIB).await.unwrap();
    eventually(async || fs::read_to_string(&log).unwrap(), |calls| calls.contains("syncfs(")).await;
    // In the same allocation group, of which XFS can give back a part.
    grow_by_hand(&image, 560 * MIB);
    let at_work = clients.job(&job.job_id).await;
    assert!(at_work.state() == JobState::Running && at_work.steps.last().unwrap().name == "grow_filesystem");
    drop(injected);
    let job = clients.end_of(&job.job_id).await;
    assert_eq!((job.state(), job.size_after_bytes), (JobState::Succeeded, Some(560 * MIB)), "{job:?}");
    assert_eq!((image.size(), image.device_size()), (560 * MIB, 560 * MIB));
}

#[test]
fn a_step_on_an_image_that_is_blocked_says_why() {
    let ground = Filesystem::ext4("ubdb", "");
    let image = Image::blank(ground.path(), &share(1), 100 * MIB, false);
    let place = template(ground.path(), ".img").parse().unwrap();
    let driver = driver::image::Image::new("images".parse().unwrap(), place, vec![], false, false, Arc::default());
    let id: ShareId = share(1).parse().unwrap();
    let refusal = || driver.apply(id, Step::GrowFilesystem { to: Bytes::gib(1) }).unwrap_err().into_refusal();
    let detached = refusal();
    assert_eq!(detached.reason(), Reason::NotMounted);
    assert!(detached.to_string().contains("is attached to no loop device"), "{detached}");
    image.attach(&[]);
    image.attach(&[]);
    assert_eq!(refusal().reason(), Reason::Unsupported);
}

#[test]
fn a_limit_that_somebody_raises_during_a_look_at_all_shares_stays() {
    for filesystem in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        let place = filesystem.create_share(&share(1), 42, 8 * MIB);
        for n in 2..10_000 {
            fs::create_dir(filesystem.path().join(share(n))).unwrap();
        }
        let (kind, fd, limit) = (filesystem.kind(), File::open(&place).unwrap(), Bytes::mib(64));
        // growd may be faster, since nobody can see that it looks.
        let is_raised_during_the_look = || {
            filesystem.set_limits(42, 0, 8 * MIB);
            let template = template(filesystem.path(), "").parse().unwrap();
            let driver = ProjectQuota::new("pool".parse().unwrap(), template, vec![], Arc::default(), Arc::default());
            let (is_at_work, outcome) = std::thread::scope(|scope| {
                let step = || driver.apply(share(1).parse().unwrap(), Step::SetLimit { to: Bytes::mib(16) });
                let growd = scope.spawn(step);
                std::thread::sleep(Duration::from_millis(50));
                let is_at_work = !growd.is_finished();
                quotactl::set_limits(fd.as_fd(), 42, limit, limit).unwrap();
                (is_at_work, growd.join().unwrap().unwrap())
            });
            assert_eq!(filesystem.hard_limit(42), 64 * MIB, "{kind:?}: {outcome:?}");
            is_at_work && outcome == Outcome::AlreadyThere { size: limit }
        };
        assert!((0..20).any(|_| is_raised_during_the_look()), "{kind:?}: it was faster each time");
    }
}

//! What keeps a file system from growing at all, on images and on volumes: it is told before anybody asks, nothing is begun
//! that cannot end, and once it is healed the extend goes through.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/volumes.rs"]
mod volumes;

use std::fs::{self, File};
use std::process::Command;
use std::sync::Arc;

use daemon::{Clients, Daemon, MIB, assert_refused, share};
use growd::driver::lvm::{Lvm, VolumeGroup, find_lvm};
use growd::driver::{self, Driver, Step};
use growd::model::{Bytes, Reason, ShareId};
use growd::wire::proto::Finding;
use support::btrfs::pause_a_balance;
use support::driver::OfOneShare;
use support::image::{Image, KINDS, pool};
use support::{Filesystem, lab};
use volumes::{Group, shell};

/// An extend is refused for what is the only finding of the share, and of the node about it.
async fn only_finding(clients: &Clients, n: u32, reason: &str) -> Finding {
    let refused = clients.extend(&share(n), 2048 * MIB).await.unwrap_err();
    assert_refused(&refused, reason);
    let mut found = clients.share(&share(n)).await.findings;
    assert_eq!(found.len(), 1, "{found:?}");
    let finding = found.remove(0);
    assert_eq!((finding.kind.as_str(), finding.message.as_str()), (reason, refused.message()));
    assert!(clients.diagnose().await.findings.contains(&finding), "{finding:?}");
    finding
}

/// Root of a container may lack it.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_capability_that_growing_takes_nothing_is_begun() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let config = Daemon::configure(dir.path(), &pool(ground.path(), ""));
    let drop_it = |capability| ["setpriv".to_owned(), format!("--bounding-set=-{capability}")];
    // Of a user namespace it has all, which are none of the node's.
    let contain = ["unshare", "--user", "--map-root-user"].map(str::to_owned);
    let [xfs, ext4, btrfs] = KINDS;
    for ((kind, mkfs), capability, launcher) in [
        (xfs, "CAP_SYS_ADMIN", drop_it("sys_admin").as_slice()),
        (ext4, "CAP_SYS_RESOURCE", drop_it("sys_resource").as_slice()),
        (btrfs, "CAP_SYS_ADMIN", drop_it("sys_admin").as_slice()),
        (ext4, "CAP_SYS_RESOURCE", contain.as_slice()),
    ] {
        let image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, mkfs);
        let mut growd = Command::new(&launcher[0])
            .args(&launcher[1..])
            .args([env!("CARGO_BIN_EXE_growd"), "run", "--config"])
            .arg(&config)
            .spawn()
            .unwrap();
        let clients = Clients::when_ready(&format!("unix:{}/sock", dir.path().display())).await;
        let missing = format!("{kind} on {} without {capability}", image.devices()[0]);
        let told = only_finding(&clients, 1, "UNSUPPORTED").await;
        assert_eq!(told.message, format!("growing {missing} is not supported here"));
        assert!(told.remedy.contains("CapabilityBoundingSet="), "{told:?}");
        assert_eq!((image.size(), image.device_size()), (320 * MIB, 320 * MIB), "{kind}");
        // That an extend would finish what is half grown is not true, and is not told.
        File::options().write(true).open(&image.path).unwrap().set_len(640 * MIB).unwrap();
        assert_eq!(only_finding(&clients, 1, "UNSUPPORTED").await, told);
        lab::run("losetup", &["-c", &image.devices()[0]]);
        assert_eq!(only_finding(&clients, 1, "UNSUPPORTED").await, told);
        growd.kill().unwrap();
        growd.wait().unwrap();
        // A growd that has it heals that.
        let mut daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
        daemon.clients().await.extended(1, 640 * MIB).await;
        assert!(daemon.terminate());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_that_has_to_be_checked_first() {
    let (ground, group) = (Filesystem::xfs("ubda", ""), Group::on("vg", &["ubdb"]));
    let image = Image::blank(ground.path(), &share(1), 320 * MIB, false);
    image.format("mkfs.ext4 -q -F -b 4096");
    lab::run("tune2fs", &["-O", "^resize_inode", image.path.to_str().unwrap()]);
    image.mount("loop");
    let mut volume = group.create(2, "-L 320m").formatted("mkfs.ext4 -q -b 4096");
    volume.unmount();
    shell(&format!("tune2fs -O ^resize_inode {}", volume.node().display()));
    volume.mount();
    let daemon = Daemon::start(group.dir(), &(pool(ground.path(), "") + &group.pool(""))).await;
    let clients = daemon.clients().await;
    for (n, place, location) in [
        (1, image.mount_point(), image.path.display().to_string()),
        (2, volume.path(), format!("/dev/{}", volume.full_name())),
    ] {
        let told = only_finding(&clients, n, "UNSUPPORTED").await;
        assert!(told.message.starts_with("growing ext4 with reserved descriptor blocks"), "{told:?}");
        let (unmount, check) = told.remedy.split_once(", then mount").unwrap().0.split_once(" && ").unwrap();
        assert_eq!((unmount, check), (&*format!("umount {}", place.display()), &*format!("e2fsck -f {location}")));
    }
    assert_eq!((image.size(), volume.size()), (320 * MIB, 320 * MIB));
    image.unmount();
    volume.unmount();
    for device in [&image.path, &volume.node()] {
        // It says 1 when it has mended something.
        shell(&format!("e2fsck -fy {} || test $? = 1", device.display()));
    }
    image.mount("loop");
    volume.mount();
    assert_eq!(clients.diagnose().await.findings, []);
    for n in [1, 2] {
        clients.extended(n, 640 * MIB).await;
    }
}

/// With orphans and an error: it can be read, and the kernel lets nobody write to it before it was checked. So is ext4 with
/// errors=remount-ro when it has found itself damaged, before Linux 6.12.
#[tokio::test(flavor = "multi_thread")]
async fn ext4_that_is_read_only_until_it_is_checked() {
    let (ground, group) = (Filesystem::xfs("ubda", ""), Group::on("vg", &["ubdb"]));
    let image = Image::blank(ground.path(), &share(1), 320 * MIB, false);
    image.format("mkfs.ext4 -q -F");
    let mut volume = group.create(2, "-L 320m").formatted("mkfs.ext4 -q");
    volume.unmount();
    for device in [&image.path, &volume.node()] {
        for value in ["last_orphan 12", "state 2"] {
            lab::run("debugfs", &["-w", "-R", &format!("ssv {value}"), device.to_str().unwrap()]);
        }
    }
    let damaged = tempfile::tempdir_in("/mnt").unwrap();
    let daemon = Daemon::start(group.dir(), &(pool(ground.path(), "") + &group.pool(""))).await;
    let clients = daemon.clients().await;
    for (n, node, location) in [
        (1, image.attach(&[]), image.path.display().to_string()),
        (2, volume.node().display().to_string(), format!("/dev/{}", volume.full_name())),
    ] {
        let place = damaged.path().join("a share");
        fs::create_dir_all(&place).unwrap();
        lab::run("mount", &["-o", "ro", &node, place.to_str().unwrap()]);
        let told = only_finding(&clients, n, "NOT_MOUNTED").await;
        assert!(told.message.ends_with(&format!("ext4 that is mounted read-only at {}", place.display())), "{told:?}");
        let (remount, check) = told.remedy.split_once("; if that is refused, ").unwrap();
        assert_eq!(remount, format!("mount -o remount,rw '{}'", place.display()));
        shell(&format!("! {remount}"));
        let check = check.strip_suffix(", then mount it again").unwrap();
        assert_eq!(check, format!("umount '{}' && e2fsck -f {location}", place.display()));
        // It says 1 when it has mended something.
        shell(&format!("{} || test $? = 1", check.replace("-f", "-fy")));
    }
    image.detach();
    image.mount("loop");
    volume.mount();
    assert_eq!(clients.diagnose().await.findings, []);
    for n in [1, 2] {
        clients.extended(n, 640 * MIB).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_with_a_balance_that_is_paused() {
    let (ground, group) = (Filesystem::xfs("ubda", ""), Group::on("vg", &["ubdb"]));
    let image = Image::mounted(ground.path(), &share(1), 1024 * MIB, false, "mkfs.btrfs -q -f");
    let volume = group.create(2, "-L 1g").formatted("mkfs.btrfs -q");
    let daemon = Daemon::start(group.dir(), &(pool(ground.path(), "") + &group.pool(""))).await;
    let clients = daemon.clients().await;
    for (n, pool, place) in [(1, "images", image.mount_point()), (2, "vg", volume.path())] {
        pause_a_balance(place);
        let told = only_finding(&clients, n, "NOT_MOUNTED").await;
        let one = format!("share {} of pool {pool} is not ready: btrfs on /dev/", share(n));
        assert!(told.message.starts_with(&one), "{told:?}");
        // Whoever extends sees the message alone.
        for command in ["resume", "cancel"].map(|word| format!("btrfs balance {word} {}", place.display())) {
            assert!(told.message.contains(&command) && told.remedy.contains(&command), "{told:?}");
        }
    }
    drop(daemon);
    // A step begins nothing either. What was grown before the balance stays a success.
    let template = format!("{}/{{share_id}}.img", ground.path().display()).parse().unwrap();
    let images = driver::image::Image::new("images".parse().unwrap(), template, vec![], false, false, Arc::default());
    let vg = VolumeGroup::new("vg".to_owned(), find_lvm(), Arc::default());
    let vg =
        Lvm::new("vg".parse().unwrap(), Arc::new(vg), "share-{share_id}".parse().unwrap(), Vec::new(), None, false);
    let drivers: [&dyn Driver; 2] = [&images, &vg];
    for (n, driver) in (1..).zip(drivers) {
        let (id, to): (ShareId, _) = (share(n).parse().unwrap(), Bytes::mib(1200));
        let refused = driver.apply(id, Step::GrowVolume { to }).unwrap_err().into_refusal();
        assert_eq!(refused.reason(), Reason::NotMounted);
        assert_eq!((driver.measure(id).unwrap().usable(), driver.verify(id).unwrap()), (Bytes::gib(1), Bytes::gib(1)));
    }
    let (id, to) = (share(1).parse().unwrap(), Bytes::mib(1200));
    let refused = images.apply(id, Step::GrowFilesystem { to }).unwrap_err().into_refusal();
    assert_eq!(refused.reason(), Reason::NotMounted);
    assert_eq!((image.size(), volume.size()), (1024 * MIB, 1024 * MIB));
    for place in [image.mount_point(), volume.path()] {
        lab::run("btrfs", &["balance", "cancel", place.to_str().unwrap()]);
    }
    let daemon = Daemon::start(group.dir(), &(pool(ground.path(), "") + &group.pool(""))).await;
    let clients = daemon.clients().await;
    assert_eq!(clients.diagnose().await.findings, []);
    for n in [1, 2] {
        clients.extended(n, 1200 * MIB).await;
    }
}

/// As an admin closes a share by, while those who have it mounted still write.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_made_read_only_under_its_mount() {
    let group = Group::on("vg", &["ubdb"]);
    let (ground, volume) = (Filesystem::xfs("ubda", ""), group.create(2, "-L 320m").formatted("mkfs.ext4 -q"));
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, "mkfs.ext4 -q -F");
    let daemon = Daemon::start(group.dir(), &(pool(ground.path(), "") + &group.pool(""))).await;
    let clients = daemon.clients().await;
    shell(&format!("blockdev --setro {}; lvchange -q --permission r {}", image.devices()[0], volume.full_name()));
    for n in [1, 2] {
        let told = only_finding(&clients, n, "NOT_MOUNTED").await;
        assert!(told.message.ends_with("is read-only, though it is mounted writable"), "{told:?}");
        let size = || if n == 1 { image.device_size() } else { volume.size() };
        assert_eq!(size(), 320 * MIB);
        shell(&told.remedy);
        clients.extended(n, 640 * MIB).await;
        assert_eq!(size(), 640 * MIB);
    }
}

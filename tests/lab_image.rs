//! Shares that are images on loop devices, through the daemon: grown while they are mounted, refused with a reason,
//! found half grown and healed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;

use daemon::{Clients, Daemon, MIB, assert_refused, eventually, metadata, share};
use growd::driver::Driver;
use growd::model::Bytes;
use growd::wire::proto::{Job, JobState};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use support::btrfs::Btrfs;
use support::image::{Image, KINDS, pool};
use support::mapped_disk::MappedDisk;
use support::writer::Writer;
use support::{Filesystem, fill, lab};

async fn fails(clients: &Clients, n: u32, size: u64) -> String {
    let job = clients.extend(&share(n), size).await.unwrap();
    let job = clients.end_of(&job.job_id).await;
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    job.error.unwrap().reason
}

fn steps(job: &Job) -> Vec<&str> {
    job.steps.iter().map(|step| step.name.as_str()).collect()
}

/// Every file system in images of both kinds, on a file system of its own kind or another.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_image_grows_under_its_writer() {
    lab::require();
    let (xfs, ext4, btrfs) = (Filesystem::xfs("ubda", ""), Filesystem::ext4("ubdb", ""), Btrfs::new("ubdc"));
    let grounds = [xfs.path(), ext4.path(), btrfs.path()];
    for (at, (kind, mkfs)) in KINDS.into_iter().enumerate() {
        for preallocated in [false, true] {
            let ground = grounds[(at + usize::from(preallocated)) % 3];
            println!("{kind} on {}, preallocated: {preallocated}", ground.display());
            grows(ground, kind, mkfs, preallocated).await;
        }
    }
}

async fn grows(ground: &Path, kind: &str, mkfs: &str, preallocated: bool) {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::mounted(ground, &share(1), 320 * MIB, preallocated, mkfs);
    assert_eq!(image.is_preallocated(), preallocated);
    let more = if preallocated { "" } else { "overcommit = 2" };
    let mut daemon = Daemon::start(dir.path(), &pool(ground, more)).await;
    let clients = daemon.clients().await;
    let (data, seed) = (image.mount_point().join("data"), image.mount_point().join("seed"));
    fs::write(&seed, (0..MIB).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
    let writer = Writer::start(&image.mount_point().join("log"));
    // What becomes free when all is written out may take some more.
    let (most, rest) = (fill(&data, 1000 * MIB).unwrap(), fill(&data, MIB).unwrap());
    assert!(most > 100 * MIB && rest < MIB, "{kind} is full");
    let written = most + rest;
    let sums = || lab::run("md5sum", &[seed.to_str().unwrap(), data.to_str().unwrap()]);
    let before = sums();

    // No whole number of anything.
    let job = clients.extended(1, 700 * MIB + 12345).await;
    assert_eq!(steps(&job), ["grow_volume", "grow_filesystem", "verify"]);
    assert_eq!(fill(&data, 100 * MIB).unwrap(), 100 * MIB, "{kind} has room");
    assert_refused(&clients.extend(&share(1), 700 * MIB).await.unwrap_err(), "SIZE_NOT_GREATER");
    clients.extended(1, 800 * MIB).await;
    assert!(writer.finish() > 0);

    // What was there before is at the start of the file still.
    File::options().write(true).open(&data).unwrap().set_len(written).unwrap();
    assert_eq!(sums(), before);
    assert!(image.size() >= 800 * MIB && image.size() == image.device_size());
    assert_eq!(image.is_preallocated(), preallocated, "{} of {}", image.allocated(), image.size());
    assert_eq!(clients.diagnose().await.findings, []);
    assert!(daemon.terminate());
    // The loop device went with its mount, as mount(8) had asked for.
    image.unmount();
    assert_eq!(image.devices(), [""; 0]);
    image.check(kind);
    image.mount("loop");
    assert_eq!(sums(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_file_system_grows_with_its_device() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::blank(ground.path(), &share(1), 10 * MIB, false);
    let device = image.attach(&[]);
    fs::write(&device, "tenant").unwrap();
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let job = daemon.clients().await.extended(1, 20 * MIB).await;
    assert_eq!(steps(&job), ["grow_volume", "verify"]);
    assert_eq!((image.size(), image.device_size()), (20 * MIB, 20 * MIB));
    assert_eq!(fs::read(&image.path).unwrap()[..6], *b"tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_grown_is_refused_and_stays_as_it_is() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::blank(ground.path(), &share(1), 100 * MIB, false);
    image.format("mkfs.ext4 -q -F");
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let clients = daemon.clients().await;
    let refused = async |reason: &str, remedy: &str| {
        assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), reason);
        assert_eq!(image.size(), 100 * MIB);
        let found = clients.diagnose().await.findings;
        assert!(found.iter().any(|finding| finding.kind == reason && finding.remedy.contains(remedy)), "{found:?}");
    };
    let path = image.path.to_str().unwrap();
    let told = async || clients.extend(&share(1), 200 * MIB).await.unwrap_err().message().to_owned();
    let one_share = format!("share {} of pool images is not ready: ", share(1));
    refused("NOT_MOUNTED", &format!("mount -o loop {path} ")).await;
    assert_eq!(told().await, format!("{one_share}{path} is attached to no loop device"));
    image.attach(&[]);
    refused("NOT_MOUNTED", "mount /dev/loop").await;
    assert!(told().await.starts_with(&format!("{one_share}/dev/loop")), "{}", told().await);
    image.attach(&[]);
    refused("UNSUPPORTED", "losetup -j").await;
    image.detach();
    for options in [["-o", "4096"].as_slice(), &["--sizelimit", "67108864"], &["-r"]] {
        image.attach(options);
        refused("UNSUPPORTED", "losetup -d").await;
        image.detach();
    }
    image.mount("loop,ro");
    refused("UNSUPPORTED", "losetup -d").await;
    image.unmount();

    // Somebody cut the file: the device does not know.
    image.mount("loop");
    File::options().write(true).open(&image.path).unwrap().set_len(90 * MIB).unwrap();
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "UNSUPPORTED");
    assert_eq!((image.size(), image.device_size()), (90 * MIB, 100 * MIB));
    File::options().write(true).open(&image.path).unwrap().set_len(100 * MIB).unwrap();
    // Neither name is needed to find the device.
    fs::rename(&image.path, ground.path().join("elsewhere")).unwrap();
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "SHARE_NOT_FOUND");
    symlink("elsewhere", &image.path).unwrap();
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "UNSUPPORTED");
    fs::remove_file(&image.path).unwrap();
    fs::create_dir(&image.path).unwrap();
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "UNSUPPORTED");
    fs::remove_dir(&image.path).unwrap();
    lab::run("mkfifo", &[path]);
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "UNSUPPORTED");
    fs::rename(ground.path().join("elsewhere"), &image.path).unwrap();
    let read_only = ground.read_only_mount();
    assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "NOT_MOUNTED");
    drop(read_only);
    assert_eq!((image.size(), image.device_size()), (100 * MIB, 100 * MIB));
    clients.extended(1, 200 * MIB).await;
}

/// As whoever guards it against a slip does.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_immutable_is_told_with_its_size() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 100 * MIB, false, "mkfs.ext4 -q -F");
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let clients = daemon.clients().await;
    for attribute in ["+i", "+a"] {
        lab::run("chattr", &[attribute, image.path.to_str().unwrap()]);
        assert_refused(&clients.extend(&share(1), 200 * MIB).await.unwrap_err(), "UNSUPPORTED");
        let told = clients.share(&share(1)).await;
        assert_eq!(told.size_bytes, Some(100 * MIB));
        lab::run("sh", &["-c", &told.findings[0].remedy]);
    }
    clients.extended(1, 200 * MIB).await;
}

/// Tenants write to the old one, and a mount in the same place would hide what they wrote.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_replaced_while_it_is_mounted_is_told_with_what_is_mounted() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 100 * MIB, false, "mkfs.ext4 -q -F");
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let clients = daemon.clients().await;
    let (node, copy) = (image.devices()[0].clone(), ground.path().join("copy"));
    fs::copy(&image.path, &copy).unwrap();
    fs::rename(&copy, &image.path).unwrap();
    let refused = clients.extend(&share(1), 200 * MIB).await.unwrap_err();
    assert_refused(&refused, "NOT_MOUNTED");
    assert!(refused.message().ends_with(&format!("{node} shows the file that was there before it")), "{refused:?}");
    let remedy = clients.share(&share(1)).await.findings[0].remedy.clone();
    assert!(remedy.starts_with(&format!("dd if={node} of=COPY ")), "{remedy}");
    lab::run("umount", &[&node]);
    image.mount("loop");
    clients.extended(1, 200 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sparse_images_lack_is_promised() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let images = [1, 2].map(|n| Image::mounted(ground.path(), &share(n), 1024 * MIB, false, "mkfs.xfs -q -f"));
    // Another pool on the same file system.
    let other = Image::blank(ground.path(), &format!("other-{}", share(9)), 300 * MIB, false);
    let others = pool(ground.path(), "").replace("{share_id}", "other-{share_id}").replace("images", "others");
    let mut daemon = Daemon::start(dir.path(), &format!("{}{others}", pool(ground.path(), ""))).await;
    let clients = daemon.clients().await;
    let now = clients.pool("images").await;
    let lack: u64 = images.iter().chain([&other]).map(|image| image.size() - image.allocated()).sum();
    assert!(lack > 2200 * MIB);
    assert!(now.promised_bytes.abs_diff(now.total_bytes - now.free_bytes + lack) < 8 * MIB, "{now:?}");
    assert_eq!(now.filesystem, "xfs");

    // 2 of nearly 4 GiB are promised: one more GiB fits, and then another does not.
    clients.extended(1, 2048 * MIB).await;
    let refused = clients.extend(&share(2), 2048 * MIB).await.unwrap_err();
    assert_refused(&refused, "POOL_FULL");
    assert_eq!(metadata(&refused, "asked_bytes"), (1024 * MIB).to_string());
    assert_eq!((images[1].size(), images[1].device_size()), (1024 * MIB, 1024 * MIB));
    assert!(daemon.terminate());

    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "overcommit = 4")).await;
    let clients = daemon.clients().await;
    clients.extended(2, 3072 * MIB).await;
    let free = clients.pool("images").await.free_bytes;
    // Blocks cannot be promised twice: what has all of its own needs new ones.
    let full = Image::mounted(ground.path(), &share(3), 320 * MIB, true, "mkfs.xfs -q -f");
    assert_eq!(fails(&clients, 3, 320 * MIB + free).await, "POOL_FULL");
    assert_eq!((full.size(), full.device_size()), (320 * MIB, 320 * MIB));
    assert!(clients.pool("images").await.free_bytes > free - 340 * MIB);
    clients.extended(3, 640 * MIB).await;
    assert!(full.allocated() >= 640 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_growth_leaves_the_file_as_it_was() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::mounted(ground.path(), &share(1), 320 * MIB, true, "mkfs.xfs -q -f");
    let sparse = Image::mounted(ground.path(), &share(2), 320 * MIB, false, "mkfs.xfs -q -f");
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let clients = daemon.clients().await;
    for (n, image, call, reason) in [
        (1, &image, "fallocate:error=ENOSPC", "POOL_FULL"),
        (1, &image, "fallocate:error=EOPNOTSUPP", "UNSUPPORTED"),
        (1, &image, "fallocate:error=EIO:when=2", "INTERNAL"),
        (2, &sparse, "fallocate:error=ENOSPC", "POOL_FULL"),
        (2, &sparse, "fallocate:error=EFBIG", "UNSUPPORTED"),
    ] {
        let injected = daemon.inject(call).await;
        assert_eq!(fails(&clients, n, 640 * MIB).await, reason, "{call}");
        drop(injected);
        assert_eq!((image.size(), image.device_size()), (320 * MIB, 320 * MIB), "{call}");
    }
    assert!(image.allocated() < 321 * MIB, "{} are allocated still", image.allocated());
    // ext4 allocates as far as it gets, and keeps that behind the end of the file until its size is set: here it is what a
    // crash has left.
    lab::run("fallocate", &["--keep-size", "--length", "640M", image.path.to_str().unwrap()]);
    assert!(image.allocated() >= 600 * MIB && image.size() == 320 * MIB);
    let injected = daemon.inject("fallocate:error=ENOSPC").await;
    assert_eq!(fails(&clients, 1, 640 * MIB).await, "POOL_FULL");
    drop(injected);
    assert!(image.allocated() < 321 * MIB, "{} are allocated still", image.allocated());
    // A sparse one needs no blocks.
    let injected = daemon.inject("fallocate:error=EOPNOTSUPP").await;
    clients.extended(2, 480 * MIB).await;
    drop(injected);
    for n in [1, 2] {
        clients.extended(n, 640 * MIB).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_grown_image_is_found_and_healed() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    for (kind, mkfs) in KINDS {
        let image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, mkfs);
        let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
        let clients = daemon.clients().await;
        for (size, device_follows) in [(640, false), (960, true)] {
            File::options().write(true).open(&image.path).unwrap().set_len(size * MIB).unwrap();
            if device_follows {
                lab::run("losetup", &["-c", &image.devices()[0]]);
            }
            let found = clients.diagnose().await.findings;
            let [finding] = found.as_slice() else { panic!("{kind}: {found:?}") };
            assert_eq!(finding.kind, "HALF_GROWN");
            let words: Vec<&str> = finding.remedy.split(' ').collect();
            let ["growctl", "extend", id, wanted, "--wait"] = words.as_slice() else { panic!("{finding:?}") };
            assert_eq!(*id, share(1));
            let job = clients.extended(1, wanted.strip_suffix('B').unwrap().parse().unwrap()).await;
            let expected: &[&str] = if device_follows {
                &["grow_filesystem", "verify"]
            } else {
                &["grow_volume", "grow_filesystem", "verify"]
            };
            assert_eq!(steps(&job), expected, "{kind}");
            assert_eq!((image.size(), image.device_size()), (size * MIB, size * MIB));
            assert_eq!(clients.diagnose().await.findings, [], "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_somebody_enlarges_at_the_same_moment_is_not_cut() {
    lab::require();
    let (ground, dir) = (Filesystem::ext4("ubda", ""), tempfile::tempdir().unwrap());
    let images =
        [true, false].map(|full| Image::mounted(ground.path(), &share(u32::from(full)), 320 * MIB, full, KINDS[0].1));
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "overcommit = 4")).await;
    let clients = daemon.clients().await;
    for (n, call) in [(1, "fallocate:delay_exit=60s"), (0, "fallocate,ftruncate:delay_enter=60s")] {
        let image = &images[usize::from(n == 0)];
        let log = dir.path().join(format!("calls-{n}"));
        let injected = daemon.inject_and_log(call, &log).await;
        let job = clients.extend(&share(n), 640 * MIB).await.unwrap();
        if n == 1 {
            // It has its blocks, and is about to get its size.
            eventually(|| async { image.allocated() }, |allocated| *allocated >= 600 * MIB).await;
        } else {
            eventually(async || fs::read_to_string(&log).unwrap(), |calls| calls.contains('(')).await;
        }
        File::options().write(true).open(&image.path).unwrap().set_len(960 * MIB).unwrap();
        drop(injected);
        let job = clients.end_of(&job.job_id).await;
        assert_eq!(
            (job.state(), image.size(), image.device_size()),
            (JobState::Succeeded, 960 * MIB, 960 * MIB),
            "{job:?}"
        );
    }
}

/// As after the server of an NFS or the process of a FUSE is gone: nobody can ask that file for anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_device_on_a_file_system_that_is_gone_is_another_matter() {
    lab::require();
    let (ground, gone) = (Filesystem::xfs("ubda", ""), Filesystem::xfs("ubdb", ""));
    let dir = tempfile::tempdir().unwrap();
    let foreign = Image::blank(gone.path(), "foreign", 10 * MIB, false);
    let device = foreign.attach(&[]);
    let _image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, KINDS[0].1);
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let clients = daemon.clients().await;
    lab::run("xfs_io", &["-x", "-c", "shutdown", gone.path().to_str().unwrap()]);
    assert!(fs::metadata(&foreign.path).is_err());
    let found = clients.diagnose().await.findings;
    let ended = match clients.extend(&share(1), 640 * MIB).await {
        Ok(job) => Ok(clients.end_of(&job.job_id).await.state()),
        Err(refusal) => Err(refusal),
    };
    drop(daemon);
    lab::run("losetup", &["-d", &device]);
    drop(foreign);
    // Its root cannot be asked either, so that nobody would see that it is mounted.
    gone.unmount();
    assert_eq!(found, []);
    assert_eq!(ended.unwrap(), JobState::Succeeded);
}

#[test]
fn a_list_asks_each_loop_device_once_and_reads_the_mounts_once() {
    lab::require();
    let ground = Filesystem::xfs("ubda", "");
    let images: Vec<Image> = (1..=8).map(|n| Image::blank(ground.path(), &share(n), MIB, false)).collect();
    images.iter().for_each(|image| drop(image.attach(&[])));
    let template = format!("{}/{{share_id}}.img", ground.path().display()).parse().unwrap();
    let driver = growd::driver::image::Image::new("a".parse().unwrap(), template, vec![], false, false, Arc::default());
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let [devices, _mounts] =
        ["/dev", "/proc/self/mountinfo"].map(|path| opened.add_watch(path, AddWatchFlags::IN_OPEN).unwrap());
    let observed = driver.observe_all(&driver.shares(None).unwrap());
    assert_eq!(observed.len(), 8);
    assert!(observed.iter().all(|image| image.as_ref().unwrap().size() == Some(Bytes::mib(1))), "{observed:?}");
    let (loops, tables): (Vec<_>, Vec<_>) =
        opened.read_events().unwrap().into_iter().partition(|event| event.wd == devices);
    // Each is then opened twice as that of its image.
    assert!(loops.len() <= 3 * 8 && tables.len() == 1, "{loops:?} {tables:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_partitions_is_refused() {
    lab::require();
    let (ground, dir) = (Filesystem::xfs("ubda", ""), tempfile::tempdir().unwrap());
    let image = Image::blank(ground.path(), &share(1), 400 * MIB, false);
    // A table with one partition, from sector 2048 to the end.
    let mut table = [0; 512];
    let sectors = u32::try_from(400 * MIB / 512 - 2048).unwrap();
    table[446..462]
        .copy_from_slice(&[&[0, 0, 0, 0, 0x83, 0, 0, 0][..], &2048_u32.to_le_bytes(), &sectors.to_le_bytes()].concat());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    File::options().write(true).open(&image.path).unwrap().write_all_at(&table, 0).unwrap();
    let device = image.attach(&["-P"]);
    lab::run("mkfs.xfs", &["-q", &format!("{device}p1")]);
    lab::run("mount", &[&format!("{device}p1"), image.mount_point().to_str().unwrap()]);
    let daemon = Daemon::start(dir.path(), &pool(ground.path(), "")).await;
    let refused = daemon.clients().await.extend(&share(1), 800 * MIB).await.unwrap_err();
    assert_refused(&refused, "UNSUPPORTED");
    assert!(refused.message().contains(&format!("{}p1", device.trim_start_matches("/dev/"))), "{refused:?}");
    assert_eq!(image.size(), 400 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_disk_hangs_holds_up_no_pool_on_another() {
    lab::require();
    let ground = Filesystem::xfs("ubda", "");
    let disk = MappedDisk::over("ubdb");
    let stuck = Filesystem::xfs(&disk.path(), "");
    let (dir, place) = (tempfile::tempdir().unwrap(), stuck.path().join("images"));
    fs::create_dir(&place).unwrap();
    let _image = Image::mounted(ground.path(), &share(1), 320 * MIB, false, KINDS[0].1);
    let other = pool(&place, "").replace("\"images\"", "\"stuck\"");
    let daemon = Daemon::start(dir.path(), &(pool(ground.path(), "") + &other)).await;
    let clients = daemon.clients().await;
    // Both are known from here on.
    assert!(clients.pool("stuck").await.total_bytes > 0);
    clients.extended(1, 400 * MIB).await;
    // What the kernel has in memory it would answer without the disk.
    stuck.mount_again("");
    let hang = disk.hang();
    clients.extended(1, 480 * MIB).await;
    drop(hang);
}

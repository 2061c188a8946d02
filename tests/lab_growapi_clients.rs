//! OpenStack's own clients, unpatched, against the real growapi and growd on a lab node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/front.rs"]
mod front;

#[path = "support/venv.rs"]
mod venv;

use daemon::{Daemon, create_shares, pool, project, share};
use front::{Front, NOBODY, node};
use support::{Filesystem, PRJQUOTA, lab};
use venv::{file, printed, program, said};

const GIB: u64 = 1 << 30;

async fn with_one_share(dir: &std::path::Path) -> (Filesystem, Daemon, Front) {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    create_shares(&fs, 1, 2 * GIB);
    // Limits may promise more than the small disks of the lab have.
    let daemon = Daemon::start(dir, &pool(&fs, "overcommit = 1000")).await;
    let front = Front::start(dir, &format!("{NOBODY}{}", node("n0", &daemon.dir.join("sock"))));
    (fs, daemon, front)
}

#[tokio::test(flavor = "multi_thread")]
async fn openstack_share_resize_waits_and_show_tells() {
    let dir = tempfile::tempdir().unwrap();
    let (fs, _daemon, front) = with_one_share(dir.path()).await;
    let endpoint = format!("http://{}/v2/p", front.address);
    let none = ["--os-auth-type", "none", "--os-endpoint", &endpoint];
    let token = ["--os-auth-type", "admin_token", "--os-token", "x", "--os-endpoint", &endpoint];
    let share = share(1);

    // The action's name is os-extend at the one version, and extend at that which client and growapi agree on.
    let old = ["--os-share-api-version", "2.6", "share", "resize", &share, "3", "--wait"];
    printed(program("openstack").args(none).args(old));
    assert_eq!(fs.hard_limit(project(1)), 3 * GIB);
    printed(program("openstack").args(token).args(["share", "resize", &share, "4", "--wait"]));
    assert_eq!(fs.hard_limit(project(1)), 4 * GIB);

    let shown = printed(program("openstack").args(none).args(["share", "show", "-f", "json", &share]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["size"], &shown["status"], &shown["id"]),
        (&4.into(), &"available".into(), &share.clone().into())
    );

    let refused = |size: &str| {
        let resize = ["share", "resize", &daemon::share(1), size].map(str::to_owned);
        let output = program("openstack").args(token).args(resize).output().unwrap();
        assert!(!output.status.success(), "{}", said(&output));
        said(&output)
    };
    let text = refused("2147483648");
    assert!(text.contains("2147483648 is greater than the maximum of 2147483647"), "{text}");

    // A smaller size: os-shrink at the one version, shrink at the other.
    printed(program("openstack").args(token).args(["share", "resize", &share, "3", "--wait"]));
    assert_eq!(fs.hard_limit(project(1)), 3 * GIB);
    let old = ["--os-share-api-version", "2.6", "share", "resize", &share, "2", "--wait"];
    printed(program("openstack").args(none).args(old));
    assert_eq!(fs.hard_limit(project(1)), 2 * GIB);
    lab::run("fallocate", &["-l", "1500M", fs.path().join(&share).join("data").to_str().unwrap()]);
    let text = refused("1");
    assert!(text.contains("Share resize failed: "), "{text}");
    assert!(text.contains("cannot be made 1GiB: 1500MiB of it are in use"), "{text}");
    assert_eq!(fs.hard_limit(project(1)), 2 * GIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_extend_shrink_and_print_the_error_text() {
    let dir = tempfile::tempdir().unwrap();
    let (fs, daemon, front) = with_one_share(dir.path()).await;
    let job = daemon.clients().await.extend(&share(1), 3 * GIB).await.unwrap();
    daemon.clients().await.end_of(&job.job_id).await;

    let base = format!("http://{}", front.address);
    let text = printed(program("python").arg(file("clients.py")).args([&base, &share(1)]));
    let lines: Vec<&str> = text.lines().collect();
    let [manila, manila_shrink, sdk_above] = lines.as_slice() else { panic!("{text}") };
    let problem = "New size for extend must be greater than current size. (current: 3, extended: 1).";
    assert!(manila.starts_with("python-manilaclient: ") && manila.contains(problem), "{text}");
    assert!(sdk_above.contains("2147483648 is greater than the maximum of 2147483647"), "{text}");
    let problem = "New size for shrink must be less than current size and greater than 0 (current: 4, new: 4).";
    assert!(manila_shrink.contains(problem), "{text}");
    assert_eq!(fs.hard_limit(project(1)), 4 * GIB);
}

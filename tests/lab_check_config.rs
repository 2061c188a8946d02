//! What is wrong with pools as the node has them: `growd check-config` tells it, and so does the log of a start and of a
//! reload.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use daemon::{Daemon, eventually, pool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Filesystem, PRJQUOTA, lab};

/// Pools below a file system of their own: one that is right, and one for everything that may be wrong.
fn pools(fs: &Filesystem) -> String {
    let below = |name: &str, driver: &str, more: &str| {
        let path = fs.path().join(name);
        if name != "gone" {
            fs::create_dir(&path).unwrap();
        }
        format!("[[pool]]\nname = {name:?}\ndriver = {driver:?}\npath = \"{}/{{share_id}}\"\n{more}\n", path.display())
    };
    [
        below("gone", "project-quota", ""),
        below("good", "project-quota", "reserve = \"1MiB\""),
        below("nothing", "project-quota", "reserve = \"1TiB\""),
        below("odd", "btrfs", ""),
    ]
    .concat()
}

/// The problems of [`pools`].
fn problems(fs: &Filesystem) -> [String; 3] {
    let path = |name: &str| fs.path().join(name).display().to_string();
    [
        format!("pool \"gone\": {} does not exist: is its file system mounted?", path("gone")),
        "pool \"nothing\": its reserve of 1TiB leaves nothing of ".to_owned(),
        format!("pool \"odd\": pool odd is not ready: no btrfs with quotas is mounted at {}", path("odd")),
    ]
}

fn check(config: &Path, under: &[&str]) -> (Option<i32>, String, String) {
    let words = [under, &[env!("CARGO_BIN_EXE_growd"), "check-config", "--config"]].concat();
    let output = Command::new(words[0]).args(&words[1..]).arg(config).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_pools_is_told_before_and_at_a_start() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let config = Daemon::configure(dir.path(), &pools(&fs));
    let (code, out, err) = check(&config, &[]);
    assert!(code == Some(1) && out.starts_with("pool good: xfs of ") && out.lines().count() == 1, "{out}{err}");
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 3, "{err}");
    for (line, problem) in lines.iter().zip(problems(&fs)) {
        assert!(line.starts_with(&problem), "{problem}: {err}");
    }

    // The log says the same at a start.
    let log = dir.path().join("log");
    let mut growd = Command::new(env!("CARGO_BIN_EXE_growd"))
        .args(["run", "--config"])
        .arg(&config)
        .env("RUST_LOG", "warn")
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let logged = async || problems(&fs).map(|problem| fs::read_to_string(&log).unwrap().matches(&problem).count());
    eventually(logged, |counts| *counts == [1, 1, 1]).await;
    // And at a reload.
    kill(Pid::from_raw(growd.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    eventually(logged, |counts| *counts == [2, 2, 2]).await;
    growd.kill().unwrap();
    growd.wait().unwrap();
}

#[test]
fn a_file_in_the_place_of_a_directory_that_growd_would_make_is_told() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    File::create(&file).unwrap();
    let text = fs::read_to_string(Daemon::configure(dir.path(), &pool(&fs, ""))).unwrap();
    for (key, below) in [("state_dir", "/state"), ("state_dir", "/file"), ("listen", "/sock")] {
        let config = dir.path().join("wrong.toml");
        let (right, wrong) = match below {
            "/file" => ("/state", "/file".to_owned()),
            below => (below, format!("/file/below{below}")),
        };
        fs::write(&config, text.replace(right, &wrong)).unwrap();
        let (code, _, err) = check(&config, &[]);
        assert_eq!((code, err), (Some(1), format!("{key}: {} is not a directory\n", file.display())), "{wrong}");
    }
}

#[test]
fn a_system_call_that_fails_is_told_with_its_error() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    let config = Daemon::configure(dir.path(), &pool(&fs, ""));
    assert_eq!(check(&config, &[]).0, Some(0));
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=quotactl_fd:error=EPERM"];
    let (code, _, err) = check(&config, &strace);
    let problem = format!("pool \"home\": read the quota state of {}: EPERM", fs.path().display());
    assert!(code == Some(1) && err.contains(&problem), "{err}");
}

//! The real growctl against the real daemon: every verb for people and for programs, and the documented exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

use std::process::{Command, Output};

use daemon::{Daemon, MIB, TURNS, create_shares, pool, project, share};
use serde_json::Value;
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};

struct Growctl(String);

struct Told {
    args: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Growctl {
    fn of(daemon: &Daemon) -> Self {
        Self(daemon.endpoint())
    }

    /// `args` as they would be typed.
    fn run(&self, args: &str) -> Told {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_growctl"))
            .args(args.split_whitespace())
            .env("GROWD_ENDPOINT", &self.0)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Told { args: args.to_owned(), code: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// What programs are told on success.
    fn json(&self, args: &str) -> Value {
        let told = self.run(&format!("{args} --output json")).exits(0);
        serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{args}: {error}\n{}", told.out))
    }
}

impl Told {
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "growctl {}\n{}{}", self.args, self.out, self.err);
        self
    }

    /// A refusal with its exit code: reason and next step for people.
    fn refused(self, code: i32, reason: &str) -> Self {
        let told = self.exits(code);
        assert!(told.err.starts_with(&format!("error: {reason}: ")), "growctl {}\n{}", told.args, told.err);
        assert!(told.err.contains("\n  next: "), "growctl {}\n{}", told.args, told.err);
        assert_eq!(told.out, "", "growctl {}", told.args);
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_says_what_is_true() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 3, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let growctl = Growctl::of(&daemon);
    let (one, two) = (share(1), share(2));

    let dry = growctl.json(&format!("extend {one} 16MiB --dry-run"));
    assert_eq!((&dry["job_id"], &dry["requested_size_bytes"]), (&Value::from(""), &Value::from(16 * MIB)));
    assert_eq!(fs.hard_limit(project(1)), 8 * MIB);
    let id = uuid::Uuid::new_v4();
    let extend = format!("extend {one} 16MiB --wait --expect-current 8MiB --request-id {id} --project blue");
    let job = growctl.json(&extend);
    let job_id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!((&job["state"], &job["size_after_bytes"]), (&Value::from("SUCCEEDED"), &Value::from(16 * MIB)));
    assert_eq!(fs.hard_limit(project(1)), 16 * MIB);
    assert_eq!(growctl.json(&extend)["job_id"], job["job_id"], "a request id gave two jobs");
    let other = growctl.json(&format!("extend {two} 9MiB"));
    let watched = growctl.json(&format!("job {} --watch", other["job_id"].as_str().unwrap()));
    assert_eq!(watched["state"], "SUCCEEDED");
    assert_eq!(fs.hard_limit(project(2)), 9 * MIB);

    let node = growctl.json("node");
    assert_eq!((&node["state"], &node["kept_jobs"]), (&Value::from("SERVING"), &Value::from(2)));
    let pools = growctl.json("pools");
    assert_eq!((&pools["pools"][0]["name"], &pools["pools"][0]["shares"]), (&Value::from("home"), &Value::from(3)));
    let shares = growctl.json("shares --pool home");
    let sizes: Vec<u64> =
        shares["shares"].as_array().unwrap().iter().map(|s| s["size_bytes"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [16 * MIB, 9 * MIB, 8 * MIB]);
    let told = growctl.json(&format!("share {one}"));
    assert_eq!((&told["status"], &told["last_job_id"]), (&Value::from("AVAILABLE"), &Value::from(&*job_id)));
    assert_eq!(growctl.json(&format!("job {job_id}")), job);
    let listed = |filter: &str| growctl.json(&format!("jobs {filter}"))["jobs"].as_array().unwrap().len();
    assert_eq!((listed(""), listed("--project blue"), listed(&format!("--share {two}"))), (2, 1, 1));
    assert_eq!((listed("--state succeeded"), listed("--state failed"), listed("--limit 1")), (2, 0, 1));
    assert_eq!(growctl.json("doctor")["findings"], Value::Array(Vec::new()));

    let shrunk = growctl.json(&format!("shrink {two} 6MiB --wait --project blue"));
    assert_eq!((&shrunk["kind"], &shrunk["size_after_bytes"]), (&Value::from("SHRINK"), &Value::from(6 * MIB)));
    assert_eq!(fs.hard_limit(project(2)), 6 * MIB);

    // For people: the same things in words.
    let verbs = [
        ("node".to_owned(), "SERVING"),
        ("pools".to_owned(), "home"),
        ("shares".to_owned(), "16MiB"),
        (format!("share {one}"), "AVAILABLE"),
        (format!("extend {one} 17MiB --dry-run"), "would be accepted; nothing was changed"),
        (format!("extend {one} 17MiB --wait"), "SUCCEEDED"),
        (format!("shrink {one} 12MiB --dry-run"), "would be accepted; nothing was changed"),
        (format!("shrink {one} 12MiB --wait"), "lower_limit"),
        ("jobs".to_owned(), "SUCCEEDED"),
        (format!("job {job_id}"), "set_limit"),
        (format!("job {job_id} --watch"), "verify"),
        ("doctor".to_owned(), "no findings"),
    ];
    for (args, word) in verbs {
        let told = growctl.run(&args).exits(0);
        assert!(told.out.contains(word), "growctl {args}\n{}", told.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_documented_exit_codes() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 8 * MIB);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let growctl = Growctl::of(&daemon);
    let (one, nobody) = (share(1), share(9));
    support::fill(&fs.path().join(&one).join("data"), 5 * MIB).unwrap();
    let id = uuid::Uuid::new_v4();
    growctl.run(&format!("extend {one} 9MiB --wait --request-id {id}")).exits(0);
    let job = growctl.json("jobs")["jobs"][0]["job_id"].as_str().unwrap().to_owned();

    let cases = [
        (format!("extend {one} 8MiB"), 3, "SIZE_NOT_GREATER"),
        (format!("extend {one} 9MiB"), 3, "SIZE_NOT_GREATER"),
        (format!("shrink {one} 9MiB"), 3, "SIZE_NOT_SMALLER"),
        (format!("shrink {one} 4MiB"), 5, "WOULD_LOSE_DATA"),
        (format!("shrink {one} 8MiB --request-id {id}"), 5, "REQUEST_ID_REUSED"),
        (format!("shrink {nobody} 1MiB"), 4, "SHARE_NOT_FOUND"),
        ("shares --pool elsewhere".to_owned(), 3, "INVALID_REQUEST"),
        (format!("extend {nobody} 10MiB"), 4, "SHARE_NOT_FOUND"),
        (format!("share {nobody}"), 4, "SHARE_NOT_FOUND"),
        (format!("job {nobody}"), 4, "JOB_NOT_FOUND"),
        (format!("job {nobody} --watch"), 4, "JOB_NOT_FOUND"),
        (format!("cancel {nobody}"), 4, "JOB_NOT_FOUND"),
        (format!("extend {one} 10MiB --expect-current 8MiB"), 5, "CURRENT_SIZE_MISMATCH"),
        (format!("extend {one} 10MiB --request-id {id}"), 5, "REQUEST_ID_REUSED"),
        (format!("cancel {job}"), 5, "JOB_NOT_QUEUED"),
        (format!("extend {one} 1PiB"), 6, "POOL_FULL"),
    ];
    for (args, code, reason) in cases {
        growctl.run(&args).refused(code, reason);
        let told = growctl.run(&format!("{args} -o json")).exits(code);
        let error: Value = serde_json::from_str(&told.err).unwrap();
        assert_eq!(error["error"]["reason"], reason, "growctl {args}");
    }
    let sizes = growctl.run(&format!("extend {one} 8MiB")).refused(3, "SIZE_NOT_GREATER").err;
    assert!(sizes.contains("9MiB") && sizes.contains("8MiB"), "{sizes}");
    for args in [format!("extend {one} 10GB"), "share ../..".to_owned(), format!("extend {one}"), "grow".to_owned()] {
        growctl.run(&args).exits(2);
    }
    assert_eq!(fs.hard_limit(project(1)), 9 * MIB, "a refusal changed the size");

    fs.set_limits(project(1), 4 * MIB, 9 * MIB);
    let told = growctl.run("doctor").exits(1);
    assert!(told.out.contains("SOFT_LIMIT_FIRST") && told.out.contains("xfs_quota"), "{}", told.out);
    let told = growctl.run("doctor -o json").exits(1);
    let findings: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(findings["findings"][0]["kind"], "SOFT_LIMIT_FIRST");
    fs.set_limits(project(1), 0, 9 * MIB);
    growctl.run("doctor").exits(0);
    let file = fs.path().join(share(9));
    std::fs::write(&file, "").unwrap();
    let told = growctl.run("doctor").exits(1);
    assert!(told.out.starts_with("UNSUPPORTED  pool home  share "), "{}", told.out);
    assert!(told.out.contains("  remedy: move what is in the place of the share out of the pool\n"), "{}", told.out);
    std::fs::remove_file(file).unwrap();
    growctl.run("doctor").exits(0);

    assert!(daemon.terminate());
    growctl.run("node").refused(7, "UNREACHABLE");
    growctl.run("node --endpoint growd.sock").refused(2, "INVALID_ENDPOINT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_is_cancelled_and_whoever_waits_for_it_is_told() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, TURNS + 1, 8 * MIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, "")).await;
    let clients = daemon.clients().await;
    let growctl = Growctl::of(&daemon);

    let hang = clients.hang(&disk).await;
    clients.fill_turns(9 * MIB).await;
    growctl.run(&format!("extend {} 10MiB", share(1))).refused(5, "SHARE_BUSY");
    let waits = Command::new(env!("CARGO_BIN_EXE_growctl"))
        .args(["--endpoint", &daemon.endpoint(), "extend", &share(TURNS + 1), "9MiB", "--wait"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    daemon::eventually(|| clients.node(), |node| node.queued_jobs == 1).await;
    let queued = growctl.json(&format!("jobs --share {}", share(TURNS + 1)));
    let job = queued["jobs"][0]["job_id"].as_str().unwrap();
    assert_eq!(queued["jobs"][0]["state"], "QUEUED");
    assert_eq!(growctl.json(&format!("cancel {job}"))["state"], "CANCELLED");
    growctl.run(&format!("job {job} --watch")).exits(8);
    let waited = waits.wait_with_output().unwrap();
    assert_eq!(waited.status.code(), Some(8), "{waited:?}");
    drop(hang);
    for job in growctl.json("jobs --limit 100")["jobs"].as_array().unwrap() {
        let ended = clients.end_of(job["job_id"].as_str().unwrap()).await;
        assert_eq!(ended.size_after_bytes.is_some(), ended.share_id != share(TURNS + 1), "{ended:?}");
    }
    assert_eq!(fs.hard_limit(project(TURNS + 1)), 8 * MIB, "a cancelled job changed the size");
    assert_eq!(fs.hard_limit(project(TURNS)), 9 * MIB);
}

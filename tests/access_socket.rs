//! The unix socket: callers are users and groups, and root is always admin. Runs as root, to become others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use access::*;

/// Numbers that nobody has.
const USER: &str = "54321";
const GROUP: &str = "54322";

struct Ran {
    exit: Option<i32>,
    err: String,
}

/// Runs growctl as a user without groups but these, from where everybody can run it.
fn growctl(growd: &Growd, groups: &[&str], arguments: &[&str]) -> Ran {
    let program = growd.dir.path().join("growctl");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_growctl"), &program).unwrap();
        fs::set_permissions(growd.dir.path(), Permissions::from_mode(0o755)).unwrap();
    }
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={}", groups.join(",")) };
    let output = Command::new("setpriv")
        .args([format!("--reuid={USER}"), format!("--regid={USER}"), groups])
        .arg(program)
        .args(arguments)
        .env("GROWD_ENDPOINT", growd.socket())
        .output()
        .unwrap();
    Ran { exit: output.status.code(), err: String::from_utf8_lossy(&output.stderr).into_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_let_in_as_far_as_its_role_goes() {
    assert!(nix::unistd::geteuid().is_root(), "this test becomes other users, so it runs as root");
    let access = |text: &str| format!("[access]\n{text}\n{}", pool("home"));
    let growd = Growd::start(tempfile::tempdir().unwrap(), &pool("home")).await;
    let extend = ["extend", SHARE, "1GiB"];

    // Nobody but root is named: others cannot even connect.
    let outside = growctl(&growd, &[], &["node"]);
    assert_eq!(outside.exit, Some(3), "{}", outside.err);
    assert!(outside.err.contains("Permission denied"), "{}", outside.err);
    assert!(outside.err.contains("as a member of the socket's group"), "{}", outside.err);

    // Somebody is named: everybody can connect, and is told apart.
    growd.configure(&access("readers = [\"user:12345\"]"));
    assert!(growd.reload().await);
    let other = growctl(&growd, &[], &["node"]);
    assert_eq!(other.exit, Some(3), "{}", other.err);
    assert!(other.err.contains("FORBIDDEN: uid=54321 pid="), "{}", other.err);

    growd.configure(&access(&format!("readers = [\"user:{USER}\"]\noperators = [\"group:{GROUP}\"]")));
    assert!(growd.reload().await);
    let reads = growctl(&growd, &[], &["node"]);
    assert_eq!(reads.exit, Some(0), "{}", reads.err);
    let changes = growctl(&growd, &[], &extend);
    assert_eq!(changes.exit, Some(3), "{}", changes.err);
    assert!(changes.err.contains("which takes the role operator"), "{}", changes.err);
    let doctor = growctl(&growd, &[GROUP], &["doctor"]);
    assert!(doctor.exit == Some(3) && doctor.err.contains("FORBIDDEN"), "{}", doctor.err);

    // A supplementary group counts, as the kernel had it when the caller connected.
    let operates = growctl(&growd, &[GROUP], &extend);
    assert!(operates.exit == Some(5) && operates.err.contains("NOT_MOUNTED"), "{}", operates.err);
    let record = growd.audit().pop().unwrap();
    assert!(record["who"].as_str().unwrap().starts_with("uid=54321 pid="), "{record}");

    growd.configure(&access(""));
    assert!(growd.reload().await);
    assert_eq!(growctl(&growd, &[GROUP], &["node"]).exit, Some(3));
    assert!(
        node(&growd::wire::client::connect(&growd.socket(), None).await.unwrap()).await.is_ok(),
        "root is always admin"
    );
}

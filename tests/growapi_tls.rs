//! The real growapi in front of a real growd over TCP: both show certificates, and only the right ones are a way in.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;

#[path = "support/front.rs"]
mod front;

use access::*;
use front::{Front, NOBODY, until};
use growd::wire::client::Credentials;

/// growd knows growapi as an operator and another client as a reader. Its pool has no quotas.
async fn fixture() -> (Growd, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let roles = "[access]\nreaders = [\"cn:reader\"]\noperators = [\"cn:growapi\"]\n";
    let path = dir.path().join("shares");
    std::fs::create_dir(&path).unwrap();
    let pool =
        format!("[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"{}/{{share_id}}\"\n", path.display());
    let config = format!("{}{roles}{pool}", tcp(&authority.node(), &authority));
    (Growd::start(dir, &config).await, authority)
}

fn config(growd: &Growd, own: &Credentials) -> String {
    let node = format!("[[node]]\nname = \"n0\"\nendpoint = \"{}\"\n", growd.https());
    let [certificate, key, ca] = [&own.certificate, &own.key, &own.ca].map(|path| path.display().to_string());
    let tls = format!("[tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\nca = \"{ca}\"\n");
    format!("node_timeout = \"5s\"\n{NOBODY}{node}{tls}")
}

/// What growapi answers to a look at a share and to an extend of it, which is in no file system with quotas: the status, and
/// whether it says that growd has told it so.
fn answers(front: &Front) -> [(u16, bool); 2] {
    [front.get(&format!("/v2/p/shares/{SHARE}")), front.extend(SHARE, 3)]
        .map(|answer| (answer.status, answer.body.contains("The storage node cannot tell of the share.")))
}

const TOLD: [(u16, bool); 2] = [(503, true); 2];

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_called_with_the_certificate_of_the_configuration() {
    let (growd, authority) = fixture().await;
    let dir = tempfile::tempdir().unwrap();
    let own = authority.client("growapi");
    let front = Front::start(dir.path(), &config(&growd, &own));
    assert_eq!(answers(&front), TOLD);

    // Certificates are read again with the configuration: one that growd does not believe, and the right one.
    let theirs = Authority::new(dir.path(), "theirs");
    let foreign = Credentials { ca: own.ca.clone(), ..theirs.client("growapi") };
    front.reload(dir.path(), &config(&growd, &foreign));
    until(|| answers(&front), |answers| answers.iter().all(|(status, told)| [502, 503].contains(status) && !told));
    front.reload(dir.path(), &config(&growd, &own));
    until(|| answers(&front), |answers| *answers == TOLD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_show_the_right_certificate_is_not_believed() {
    let (growd, authority) = fixture().await;
    let theirs = Authority::new(growd.dir.path(), "theirs");
    let dir = tempfile::tempdir().unwrap();
    let front =
        Front::start(dir.path(), &config(&growd, &Credentials { ca: theirs.ca(), ..authority.client("growapi") }));
    assert_eq!(answers(&front), [(503, false); 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_growapi_itself_may_not_do_is_no_fault_of_the_tenant() {
    let (growd, authority) = fixture().await;
    let dir = tempfile::tempdir().unwrap();
    let reader = Front::start(dir.path(), &config(&growd, &authority.client("reader")));
    assert_eq!(answers(&reader)[0], TOLD[0]);
    let stranger = tempfile::tempdir().unwrap();
    let stranger_front = Front::start(stranger.path(), &config(&growd, &authority.client("stranger")));
    stranger_front.get(&format!("/v2/p/shares/{SHARE}")).refused(502);
    until(|| stranger_front.has_logged("denies growapi the call, since [access]"), |is| *is);
}

#[test]
fn a_configuration_without_its_certificates_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let own = authority.client("growapi");
    let check = |tls: &Credentials| {
        let text = format!(
            "{NOBODY}[[node]]\nname = \"n0\"\nendpoint = \"https://127.0.0.1:7070\"\n[tls]\ncertificate = \"{}\"\nkey = \"{}\"\nca = \"{}\"\n",
            tls.certificate.display(),
            tls.key.display(),
            tls.ca.display()
        );
        let path = dir.path().join("check.toml");
        std::fs::write(&path, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_growapi"));
        let output = command.arg("check-config").arg("--config").arg(&path).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&own), (true, String::new()));
    let (passed, problem) = check(&Credentials { key: dir.path().join("nothing"), ..own.clone() });
    assert!(!passed && problem.contains("nothing"), "{problem}");
    let (passed, problem) = check(&Credentials { key: own.ca.clone(), ..own });
    assert!(!passed && problem.contains("usable PEM"), "{problem}");
}

//! SIGHUP and changed certificates: what follows at once, what stays as it was, and that nobody's call is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use access::*;
use growd::wire::client::{self, Credentials};
use growd::wire::limits::STRANGERS_STREAMS_MOST;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn start(config: &str) -> (Growd, Channel) {
    let growd = Growd::start(tempfile::tempdir().unwrap(), config).await;
    let channel = client::connect(&growd.socket(), None).await.unwrap();
    (growd, channel)
}

fn messages(growd: &Growd, level: &str) -> Vec<String> {
    let log = growd.log().into_iter().filter(|line| line["level"] == level);
    log.map(|line| line["fields"]["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_follow_the_configuration() {
    let (growd, channel) = start(&[pool("a"), pool("b")].concat()).await;
    assert_eq!(pools(&channel).await, ["a", "b"]);
    growd.configure(&[pool("c"), pool("b")].concat());
    assert_eq!(pools(&channel).await, ["a", "b"], "nobody has asked for it yet");
    assert!(growd.reload().await);
    assert_eq!(pools(&channel).await, ["c", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_pool_that_can_be_read_growd_is_not_healthy() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let path = format!("{}/{{share_id}}.img", images.display());
    let there = format!("[[pool]]\nname = \"there\"\ndriver = \"image\"\npath = \"{path}\"\n");
    let growd = Growd::start(dir, &[pool("missing"), there].concat()).await;
    let health = HealthClient::new(client::connect(&growd.socket(), None).await.unwrap());
    let until = async |service: &str, expected: ServingStatus| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.clone().watch(request).await.unwrap().into_inner();
        let told = async { while watch.message().await.unwrap().unwrap().status() != expected {} };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{service:?} never becomes {expected:?}"));
    };
    let of_shares = ["", "growd.v1.ShareService"];
    for service in of_shares {
        until(service, ServingStatus::Serving).await;
    }

    // A reload looks at once.
    let away = images.with_file_name("away");
    fs::rename(&images, &away).unwrap();
    assert!(growd.reload().await);
    for service in of_shares {
        until(service, ServingStatus::NotServing).await;
    }
    for service in ["growd.v1.JobService", "growd.v1.NodeService"] {
        until(service, ServingStatus::Serving).await;
    }
    fs::rename(&away, &images).unwrap();
    for service in of_shares {
        until(service, ServingStatus::Serving).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_changes_nothing_and_its_problems_are_told_by_line() {
    let (growd, channel) = start(&pool("a")).await;
    growd.configure(&format!("{}resrve = \"1GiB\"\n[access]\nreaders = [\"user:0\", \"root\"]\n", pool("b")));
    assert!(!growd.reload().await);
    assert_eq!(pools(&channel).await, ["a"]);
    let file = growd.dir.path().join("growd.toml");
    let expected = [
        "7:1: unknown key \"resrve\" in [[pool]]; did you mean \"reserve\"?",
        "9:22: readers: \"root\" is not user:NAME, group:NAME, uri:URI, dns:NAME, cn:NAME or anonymous",
    ];
    let mut expected = expected.map(|problem| format!("configuration: {}:{problem}", file.display())).to_vec();
    expected.push("the configuration has not been read anew: the earlier one stays".to_owned());
    assert_eq!(messages(&growd, "ERROR"), expected);

    fs::remove_file(&file).unwrap();
    assert!(!growd.reload().await);
    assert_eq!(pools(&channel).await, ["a"]);
    growd.configure(&pool("b"));
    assert!(growd.reload().await);
    assert_eq!(pools(&channel).await, ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_a_restart_is_told_and_the_rest_is_followed() {
    let (growd, channel) = start(&pool("a")).await;
    // No other test listens at this address.
    let keys = "max_active_jobs = 7\n[tcp]\nlisten = \"127.0.0.2:{port}\"\ninsecure = true\n[retention]\njobs = 9\n";
    growd.configure(&[keys, &pool("b")].concat());
    for times in 1..=2 {
        assert!(growd.reload().await);
        let warned = messages(&growd, "WARN");
        for key in ["[tcp]", "max_active_jobs", "[retention]"] {
            let line = format!("{key} has changed in the configuration, which growd follows at its next start");
            assert_eq!(warned.iter().filter(|warning| **warning == line).count(), times, "{warned:#?}");
        }
    }
    assert_eq!(pools(&channel).await, ["b"]);
    assert!(client::connect(&format!("http://127.0.0.2:{}", growd.address.port()), None).await.is_err());
}

/// Or growd would not start with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_takes_a_restart_has_its_files_looked_at_before() {
    let (growd, channel) = start(&pool("a")).await;
    let authority = Authority::new(growd.dir.path(), "ours");
    let node = authority.node();
    growd.configure(&[tcp(&node, &authority), pool("b")].concat());
    assert!(growd.reload().await);
    fs::remove_file(&node.key).unwrap();
    growd.configure(&[tcp(&node, &authority), pool("c")].concat());
    assert!(!growd.reload().await);
    assert_eq!(pools(&channel).await, ["b"]);
}

/// A channel, and how often it has connected: a connection that ends in good order costs no call.
async fn counted(growd: &Growd, client: &Credentials) -> (Channel, Arc<AtomicU32>) {
    let [ca, certificate, key] = [&client.ca, &client.certificate, &client.key].map(|file| fs::read(file).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let tls = tls.identity(Identity::from_pem(certificate, key));
    let (connections, address) = (Arc::new(AtomicU32::new(0)), growd.address);
    let count = Arc::clone(&connections);
    let connect = tower::service_fn(move |_| {
        count.fetch_add(1, Relaxed);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(growd.https()).unwrap().tls_config(tls).unwrap();
    (endpoint.connect_with_connector(connect).await.unwrap(), connections)
}

/// What growd refuses an extend with, right after a reload that ends the connection of a stranger: a call that meets the
/// end is not answered, and made again.
async fn refusal(channel: &Channel) -> String {
    for _ in 0..10 {
        let reason = reason(&extend(channel).await);
        if !reason.is_empty() {
            return reason;
        }
    }
    panic!("growd does not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_follow_on_connections_that_are_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let (tcp, pool) = (tcp(&authority.node(), &authority), pool("a"));
    let config = |access: &str| format!("{tcp}[access]\n{access}\n{pool}");
    let growd = Growd::start(dir, &config("")).await;
    let client = authority.client("api");
    let stranger = client::connect(&growd.https(), Some(&client)).await.unwrap();
    assert_eq!(reason(&extend(&stranger).await), "FORBIDDEN");
    growd.configure(&config("operators = [\"cn:api\"]"));
    assert!(growd.reload().await);
    assert_eq!(refusal(&stranger).await, "NOT_MOUNTED");

    let (known, connections) = counted(&growd, &client).await;
    assert_eq!(reason(&extend(&known).await), "NOT_MOUNTED");
    for (access, expected) in [("readers = [\"cn:api\"]", "FORBIDDEN"), ("admins = [\"cn:api\"]", "NOT_MOUNTED")] {
        growd.configure(&config(access));
        assert!(growd.reload().await);
        assert_eq!(reason(&extend(&known).await), expected, "{access}");
    }
    // A slip takes nothing away.
    growd.configure(&config("operators = [\"group:no-such-group\"]"));
    assert!(!growd.reload().await);
    assert_eq!(reason(&extend(&known).await), "NOT_MOUNTED");
    assert_eq!(connections.load(Relaxed), 1, "a reload has ended the connection of a caller with a role");
    let unknown = "configuration: [access]: group:no-such-group is not known on this host, and has no role";
    assert!(messages(&growd, "ERROR").iter().any(|error| error == unknown), "{:?}", messages(&growd, "ERROR"));
}

/// With the role come as many calls at once as a caller with a role may have.
#[tokio::test(flavor = "multi_thread")]
async fn who_gets_a_role_is_a_stranger_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let (tcp, pool) = (tcp(&authority.node(), &authority), pool("a"));
    let growd = Growd::start(dir, &[&*tcp, &pool].concat()).await;
    let channel = client::connect(&growd.https(), Some(&authority.client("api"))).await.unwrap();
    let watch = async || {
        // The pool is not there.
        let request = HealthCheckRequest { service: "growd.v1.JobService".to_owned() };
        let mut watch = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watch
    };
    let mut watched = vec![watch().await];
    // Who may call what stays as it was, and so do the connections.
    growd.configure(&[&*tcp, &pool, &crate::pool("b")].concat());
    assert!(growd.reload().await);
    for _ in 1..STRANGERS_STREAMS_MOST {
        watched.push(watch().await);
    }
    growd.configure(&[&*tcp, "[access]\nreaders = [\"cn:api\"]\n", &pool].concat());
    assert!(growd.reload().await);
    // A client with calls at hand tries the connection that ends once more, and tells that it has not sent the call.
    let connects_again = async { while node(&channel).await.is_err_and(|status| status.code() == Code::Cancelled) {} };
    timeout(PATIENCE, connects_again).await.expect("the call waits for the other ones to end");
    node(&channel).await.unwrap();
    // What was at hand goes on.
    let pid = nix::unistd::Pid::from_raw(growd.pid().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    for mut watch in watched {
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_unknown_at_the_start_keeps_growd_from_nothing() {
    let access = "[access]\noperators = [\"user:no-such-user\"]\n";
    let (growd, channel) = start(&[access, &pool("a")].concat()).await;
    assert_eq!(pools(&channel).await, ["a"]);
    let unknown = "[access]: user:no-such-user is not known on this host, and has no role";
    assert!(messages(&growd, "WARN").iter().any(|warning| warning == unknown));
}

/// As certificates are renewed: the new file takes the place of the old one in one step.
fn replace(old: &Credentials, new: &Credentials) {
    fs::rename(&new.certificate, &old.certificate).unwrap();
    fs::rename(&new.key, &old.key).unwrap();
    fs::rename(&new.ca, &old.ca).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_hold_for_new_connections_and_break_no_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(dir.path(), "old"), Authority::new(dir.path(), "new"));
    let config = format!("{}[access]\nreaders = [\"cn:api\"]\n{}", tcp(&old.node(), &old), pool("a"));
    // The files of the old authority are about to become those of the new one; the clients keep copies.
    let keep = |credentials: Credentials, name: &str| {
        let ca = dir.path().join(name);
        fs::copy(&credentials.ca, &ca).unwrap();
        Credentials { ca, ..credentials }
    };
    let (old_client, new_client) = (keep(old.client("api"), "old.pem"), keep(new.client("api"), "new.pem"));
    let node_files = Credentials {
        ca: old.ca(),
        certificate: dir.path().join("old/node.pem"),
        key: dir.path().join("old/node.key"),
    };
    let growd = Growd::start(dir, &config).await;
    let channel = client::connect(&growd.https(), Some(&old_client)).await.unwrap();
    node(&channel).await.unwrap();
    assert!(growd.node(&new_client).await.is_err());

    // Half of a change, and rubbish: the earlier ones stay.
    let intact = fs::read(&node_files.key).unwrap();
    for bad in ["rubbish", ""] {
        fs::write(&node_files.key, bad).unwrap();
        assert_eq!(growd.node(&old_client).await, Ok(()));
    }
    let kept =
        |line: &Value| line["fields"]["message"].as_str().is_some_and(|text| text.contains("the earlier ones stay"));
    let line = growd.until_logged(kept).await;
    assert!(line["fields"]["error"].as_str().unwrap().contains("node.key"), "{line}");
    fs::write(&node_files.key, intact).unwrap();
    assert_eq!(growd.node(&old_client).await, Ok(()));

    replace(&node_files, &new.node());
    assert_eq!(growd.node(&new_client).await, Ok(()));
    // It would believe growd, but is believed no more itself.
    assert!(growd.node(&Credentials { ca: new_client.ca.clone(), ..old_client }).await.is_err());
    node(&channel).await.expect("the connection of before is broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_files_are_taken_at_a_reload_unless_they_are_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(dir.path(), "old"), Authority::new(dir.path(), "new"));
    let rest = format!("[access]\nreaders = [\"cn:api\"]\n{}", pool("a"));
    let growd = Growd::start(dir, &format!("{}{rest}", tcp(&old.node(), &old))).await;
    let bad = Credentials { key: "/nowhere/node.key".into(), ..new.node() };
    growd.configure(&format!("{}{rest}{}", tcp(&bad, &new), pool("b")));
    assert!(!growd.reload().await);
    let channel = client::connect(&growd.socket(), None).await.unwrap();
    assert_eq!(pools(&channel).await, ["a"], "half of a bad configuration was followed");
    let told = messages(&growd, "ERROR");
    assert!(
        told[0].starts_with("configuration: [tcp] of the configuration: cannot read /nowhere/node.key"),
        "{told:?}"
    );
    assert_eq!(growd.node(&old.client("api")).await, Ok(()));

    growd.configure(&format!("{}{rest}", tcp(&new.node(), &new)));
    assert!(growd.reload().await);
    assert_eq!(growd.node(&new.client("api")).await, Ok(()));
    assert!(growd.node(&old.client("api")).await.is_err());
}

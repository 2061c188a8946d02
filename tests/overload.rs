//! More connections than anybody needs, and connections that say nothing: growd goes on answering the others, and has its
//! files and its memory back afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;
mod store;

#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use access::{Authority, Growd, PATIENCE, node, pool, tcp};
use growd::model::JobState;
use growd::wire::client;
use growd::wire::limits::{CONNECTIONS_MOST, HANDSHAKES_MOST, SCRAPERS_MOST};
use growd::wire::proto::GetJobRequest;
use growd::wire::proto::job_service_client::JobServiceClient;
use http2::{PREFACE, Raw};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use process::Usage;
use store::Home;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CONNECTIONS: usize = 10_000;

/// Lets this process and the growd that it starts open as many files as these tests need.
fn raise_the_limit_of_files() {
    let needed = CONNECTIONS_MOST + 2048;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed))
            .unwrap_or_else(|error| panic!("cannot open {needed} files, the hard limit is {hard}: {error}"));
    }
}

fn socket(growd: &Growd) -> PathBuf {
    growd.dir.path().join("sock")
}

/// growd with one job in its store, and the id of that.
async fn start(config: &str) -> (Growd, String) {
    raise_the_limit_of_files();
    let home = Home::new();
    let job = store::job(JobState::Succeeded);
    home.store(std::slice::from_ref(&job)).await;
    (Growd::start(home.dir, config).await, job.id.to_string())
}

async fn is_answered(channel: &Channel, job_id: &str) {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    let answer = tokio::time::timeout(PATIENCE, JobServiceClient::new(channel.clone()).get_job(request)).await;
    assert_eq!(answer.expect("a status query hangs").unwrap().into_inner().job_id, job_id);
}

/// Waits until growd has not many more files open than it had.
async fn until_files_are_given_back(growd: &Growd, before: Usage) {
    store::until("the files are given back", || Usage::of(growd.pid()).files <= before.files + 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_are_open_and_others_are_answered() {
    let (growd, job_id) = start(&pool("a")).await;
    let first = client::connect(&growd.socket(), None).await.unwrap();
    is_answered(&first, &job_id).await;
    let before = Usage::of(growd.pid());
    let mut open = Vec::new();
    while open.len() < CONNECTIONS {
        let mut connections = JoinSet::new();
        for _ in 0..100 {
            let socket = socket(&growd);
            connections.spawn(async move {
                let mut raw = Raw::greet(&socket, &[]).await.unwrap();
                raw.hear().await.expect("growd greets");
                raw
            });
        }
        open.extend(connections.join_all().await);
        if open.len().is_multiple_of(1000) {
            is_answered(&first, &job_id).await;
        }
    }
    let full = Usage::of(growd.pid());
    assert!(full.files >= CONNECTIONS as u64, "{full}");
    let one_more = client::connect(&growd.socket(), None).await.unwrap();
    for channel in [&first, &one_more] {
        is_answered(channel, &job_id).await;
    }
    println!("before: {before}\nwith {CONNECTIONS} connections: {full}");
    let each = (full.resident - before.resident) / CONNECTIONS as u64;
    assert!(each < 64, "a connection that does nothing takes {each} KiB");

    // Above what growd takes there is an end at once.
    let mut turned_away = 0;
    while open.len() + turned_away < CONNECTIONS_MOST as usize + 100 {
        match Raw::greet(&socket(&growd), &[]).await {
            Ok(mut raw) => match raw.hear().await {
                Some(_) => open.push(raw),
                None => turned_away += 1,
            },
            Err(_) => turned_away += 1,
        }
    }
    assert!(turned_away >= 100, "{turned_away} were turned away");
    growd.until_logged(|line| line["fields"]["most"] == CONNECTIONS_MOST).await;
    is_answered(&first, &job_id).await;

    drop(open);
    until_files_are_given_back(&growd, before).await;
    is_answered(&client::connect(&growd.socket(), None).await.unwrap(), &job_id).await;
    println!("afterwards: {}", Usage::of(growd.pid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_begin_is_closed() {
    let tcp = "[tcp]\nlisten = \"127.0.0.1:{port}\"\ninsecure = true\n[access]\nreaders = [\"anonymous\"]\n";
    let (growd, job_id) = start(&[tcp, &pool("a")].concat()).await;
    let before = Usage::of(growd.pid());
    let mut half_open = Vec::new();
    for n in 0..2000 {
        let mut raw = Raw::connect(&socket(&growd)).await.unwrap();
        raw.say(&PREFACE[..n % PREFACE.len()]).await.unwrap();
        half_open.push(raw);
    }
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(growd.address).await.unwrap());
    }
    is_answered(&client::connect(&growd.socket(), None).await.unwrap(), &job_id).await;
    is_answered(&client::connect(&format!("http://{}", growd.address), None).await.unwrap(), &job_id).await;
    for mut raw in half_open {
        // growd has greeted already.
        while raw.hear().await.is_some() {}
    }
    until_files_are_given_back(&growd, before).await;
    // growd has closed them, and not they themselves.
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_handshakes_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let config = format!("{}[access]\nreaders = [\"cn:reader\"]\n{}", tcp(&authority.node(), &authority), pool("a"));
    let (growd, _) = start(&config).await;
    let before = Usage::of(growd.pid());
    let mut silent = Vec::new();
    for _ in 0..2 * HANDSHAKES_MOST {
        silent.push(TcpStream::connect(growd.address).await.unwrap());
    }
    // It waits until the first of them have used up their time, which is shorter than anybody's patience.
    let reader = authority.client("reader");
    let served = tokio::time::timeout(PATIENCE, async {
        while let Err(error) = growd.node(&reader).await {
            println!("not yet: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    served.await.expect("nobody gets in any more");
    node(&client::connect(&growd.socket(), None).await.unwrap()).await.unwrap();
    until_files_are_given_back(&growd, before).await;
}

/// They would take all files that growd may open: anybody on the node reaches the port of the metrics.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_for_metrics_are_few_and_are_closed() {
    let (growd, job_id) = start(&["[metrics]\nlisten = \"127.0.0.1:{port}\"\n", &pool("a")].concat()).await;
    let connect = || {
        let stream = std::net::TcpStream::connect(growd.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let before = Usage::of(growd.pid());
    let idle: Vec<_> = (0..2 * SCRAPERS_MOST).map(|_| connect()).collect();
    // Behind all of them.
    let mut scraper = connect();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: growd\r\nConnection: close\r\n\r\n").unwrap();
    is_answered(&client::connect(&growd.socket(), None).await.unwrap(), &job_id).await;
    let mut first = [0; 1];
    scraper.read_exact(&mut first).unwrap();
    let files = Usage::of(growd.pid()).files;
    assert!(files <= before.files + SCRAPERS_MOST as u64 + 8, "{files} files are open, {} were", before.files);
    for mut stream in idle {
        assert_eq!(stream.read(&mut first).unwrap(), 0, "an idle connection is not closed");
    }
}

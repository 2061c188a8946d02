//! Requests that never come whole: growd ends each in time, and until then the memory that all of them hold is what
//! limits.rs says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;

#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;

use std::time::Instant;

use access::{Growd, node, pool};
use futures_util::future::join_all;
use growd::wire::client;
use growd::wire::limits::*;
use http2::*;
use process::Usage;
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

const REFUSED_STREAM: u32 = 7;
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// The connections of a caller with a role.
const CONNECTIONS: usize = 8;

/// As many headers as growd takes, each with 32 bytes that count though nobody sends them.
fn many_headers() -> Vec<(String, String)> {
    (0..HEADERS_MOST / 40).map(|n| (format!("x-{n:03}"), String::new())).collect()
}

/// Begins as many calls on each connection, all but the last byte of each, and waits until growd has ended them; what
/// growd took at most for each, in bytes.
async fn nearly_whole(
    growd: &Growd,
    callers: &[Caller],
    calls: u32,
    path: &str,
    headers: &[(String, String)],
) -> usize {
    let others = client::connect(&growd.socket(), None).await.unwrap();
    node(&others).await.unwrap();
    let (before, begin) = (Usage::of(growd.pid()), Instant::now());
    let mut ends = Vec::new();
    for caller in callers {
        for _ in 0..calls {
            ends.push(caller.begin(path, headers, MESSAGE_MOST, MESSAGE_MOST - 1).await);
        }
    }
    let ends = join_all(ends);
    tokio::pin!(ends);
    let ended = tokio::select! {
        biased;
        ended = &mut ends => ended,
        () = async {
            loop {
                node(&others).await.expect("others are answered");
                tokio::time::sleep(REQUEST_LIMIT / 100).await;
            }
        } => unreachable!(),
    };
    let count = ended.len();
    assert!(ended.iter().all(|code| *code == Code::DeadlineExceeded), "{ended:?}");
    assert!(begin.elapsed() >= REQUEST_LIMIT, "{:?}", begin.elapsed());
    let after = Usage::of(growd.pid());
    let each = (after.peak - before.resident) as usize * 1024 / count;
    println!("{count} calls of {path}, ended after {:?}: from {before} to {after}, {each} bytes each", begin.elapsed());
    each
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_caller_with_a_role() {
    for path in ["/growd.v1.JobService/GetJob", CHECK] {
        let growd = Growd::start(tempfile::tempdir().unwrap(), &pool("a")).await;
        let socket = growd.dir.path().join("sock");
        let callers =
            join_all((0..CONNECTIONS).map(async |_| Caller::greet(UnixStream::connect(&socket).await.unwrap()).await));
        let each = nearly_whole(&growd, &callers.await, STREAMS_MOST, path, &[]).await;
        assert!(each <= REQUEST_COST / 4, "{each} bytes for a request without headers to speak of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_callers_without_a_role() {
    let config = format!("[tcp]\nlisten = \"127.0.0.1:{{port}}\"\ninsecure = true\n{}", pool("a"));
    let growd = Growd::start(tempfile::tempdir().unwrap(), &config).await;
    let connect = || TcpStream::connect(growd.address);
    let mut raw = Raw(connect().await.unwrap());
    raw.say(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    for n in 0..=STRANGERS_STREAMS_MOST {
        raw.say(&frame(HEADERS, END_HEADERS, 2 * n + 1, &call_headers(CHECK))).await.unwrap();
    }
    let refused = raw.until(|frame| frame.kind == RST_STREAM).await.expect("a refusal");
    assert_eq!((refused.stream, refused.code()), (2 * STRANGERS_STREAMS_MOST + 1, REFUSED_STREAM));

    // This one is there as well.
    let callers = join_all((1..STRANGERS_MOST).map(async |_| Caller::greet(connect().await.unwrap()).await)).await;
    let mut more = Raw(connect().await.unwrap());
    let _ = more.say(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    assert!(more.hear().await.is_none(), "one more caller without a role is let in");
    growd.until_logged(|line| line["fields"]["of"] == "callers without a role").await;
    let each = nearly_whole(&growd, &callers, STRANGERS_STREAMS_MOST, CHECK, &many_headers()).await;
    assert!(each <= REQUEST_COST, "{each} bytes for a request");
}

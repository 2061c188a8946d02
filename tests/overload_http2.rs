//! Clients that break or abuse HTTP/2: each hears so or loses its connection, growd's memory is bounded, and others are
//! answered all the time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod access;
mod store;

#[path = "support/http2.rs"]
mod http2;
#[path = "support/process.rs"]
mod process;

use std::path::PathBuf;

use access::{Growd, PATIENCE, pool, reason};
use futures_util::future::join_all;
use growd::model::JobState;
use growd::wire::client;
use growd::wire::limits::{ERRORS_MOST, FRAME_MOST, HEADERS_MOST, MESSAGE_MOST, RESETS_MOST, STREAMS_MOST};
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, GetJobRequest, ListJobsRequest};
use http2::*;
use process::Usage;
use prost::Message;
use store::Home;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

/// Codes of RFC 9113, 7.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

const GET_JOB: &str = "/growd.v1.JobService/GetJob";
const LIST_JOBS: &str = "/growd.v1.JobService/ListJobs";
/// What is there besides the contract. Anybody may ask for the health.
const BESIDES: [&str; 3] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// How many frames a flood has.
const FLOOD: usize = 200_000;
/// What one offender may cost, in KiB.
const COST_MOST: u64 = 32 << 10;

/// A growd, a well-behaved client of it, and what growd takes.
struct Node {
    growd: Growd,
    job_id: String,
    channel: Channel,
    before: Usage,
}

impl Node {
    async fn start() -> Self {
        Self::with_jobs(1).await
    }

    async fn with_jobs(count: usize) -> Self {
        let home = Home::new();
        let jobs: Vec<_> = (0..count).map(|_| store::job(JobState::Succeeded)).collect();
        home.store_in_groups(count, &jobs).await;
        let growd = Growd::start(home.dir, &pool("a")).await;
        let channel = client::connect(&growd.socket(), None).await.unwrap();
        let mut node = Self { before: Usage::of(growd.pid()), growd, job_id: jobs[0].id.to_string(), channel };
        node.answers_others().await;
        node.before = Usage::of(node.growd.pid());
        node
    }

    fn socket(&self) -> PathBuf {
        self.growd.dir.path().join("sock")
    }

    async fn offender(&self) -> Raw {
        Raw::greet(&self.socket(), &[]).await.unwrap()
    }

    async fn answers_others(&self) {
        let request = GetJobRequest { job_id: self.job_id.clone() };
        let answer = timeout(PATIENCE, JobServiceClient::new(self.channel.clone()).get_job(request)).await;
        assert_eq!(answer.expect("others wait").unwrap().into_inner().job_id, self.job_id);
    }

    /// After an offence: others are answered, and memory is bounded also at its highest.
    async fn is_well(&self, after: &str) {
        self.answers_others().await;
        let now = Usage::of(self.growd.pid());
        println!("{after}: {now}");
        assert!(now.peak <= self.before.peak + COST_MOST, "{after}: from {} to {now}", self.before);
    }

    /// A message of GetJob.
    fn question(&self) -> Vec<u8> {
        GetJobRequest { job_id: self.job_id.clone() }.encode_to_vec()
    }
}

/// Says it again and again until growd does not listen any more, and for how often that was.
async fn flood(raw: &mut Raw, words: &[u8], times: usize) -> usize {
    for said in 0..times {
        match timeout(PATIENCE, raw.0.write_all(words)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return said,
        }
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http2_ends_the_connection() {
    let node = Node::start().await;
    let settings = frame(SETTINGS, 0, 0, &[]);
    let with = |more: &[u8]| [PREFACE, &settings, more].concat();
    let half = (1_u32 << 31) - 1;
    let cases: [(&str, Vec<u8>, &[u32]); 8] = [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: growd\r\n\r\n".to_vec(), &[PROTOCOL_ERROR]),
        ("noise", (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(), &[PROTOCOL_ERROR]),
        ("noise after the preface", with(&[0xff; 512]), &[FRAME_SIZE_ERROR]),
        ("a frame that is too large", with(&frame(DATA, 0, 1, &[0; 16_385])), &[FRAME_SIZE_ERROR]),
        ("headers of no stream", with(&frame(HEADERS, END_HEADERS, 0, &[])), &[PROTOCOL_ERROR]),
        ("data of a stream that is not there", with(&frame(DATA, 0, 5, b"x")), &[PROTOCOL_ERROR]),
        ("settings of a wrong length", with(&frame(SETTINGS, 0, 0, &[0; 5])), &[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        ("a window that is too large", with(&frame(WINDOW_UPDATE, 0, 0, &half.to_be_bytes())), &[FLOW_CONTROL_ERROR]),
    ];
    for (name, words, codes) in cases {
        let mut raw = Raw::connect(&node.socket()).await.unwrap();
        raw.say(&words).await.unwrap();
        // What growd says last may be lost with what it has not read.
        let code = raw.end().await;
        assert!(code.is_none_or(|code| codes.contains(&code)), "{name}: {code:?}");
        node.is_well(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_bounded() {
    let node = Node::start().await;
    let floods = [("settings", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])), ("pings", frame(PING, 0, 0, &[7; 8]))];
    // Nobody reads the answers. At once, since growd reads no further then, and closes the connection only when a ping of
    // its own has no answer.
    join_all(floods.each_ref().map(async |(name, frame)| {
        let mut raw = node.offender().await;
        let said = flood(&mut raw, frame, FLOOD).await;
        assert!((100..FLOOD).contains(&said), "{said} {name} were taken, for whose answers there is no place");
        node.is_well(&format!("{said} {name} without reading")).await;
    }))
    .await;
    for (name, frame) in floods {
        // All answers are read.
        let raw = node.offender().await;
        let (mut answers, mut words) = raw.0.into_split();
        let reader = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await });
        let sent = timeout(PATIENCE, async {
            for _ in 0..FLOOD / 100 {
                if words.write_all(&frame.repeat(100)).await.is_err() {
                    return;
                }
            }
        });
        sent.await.expect("growd does not go on");
        node.is_well(&format!("{FLOOD} {name}")).await;
        drop(words);
        let _ = reader.await;
    }

    let mut raw = node.offender().await;
    raw.say(&frame(HEADERS, END_HEADERS, 1, &call_headers(GET_JOB))).await.unwrap();
    flood(&mut raw, &frame(DATA, 0, 1, &[]), FLOOD).await;
    let code = raw.end().await;
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "empty data: {code:?}");
    node.is_well("empty data").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_resets_streams_all_the_time_loses_the_connection() {
    let node = Node::start().await;
    // All in one piece, so that growd finds more of them than it takes.
    let mut raw = node.offender().await;
    let resets = (0..100 * RESETS_MOST as u32).flat_map(|n| {
        let stream = 2 * n + 1;
        let headers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &call_headers(GET_JOB));
        [headers, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    let _ = raw.say(&resets.collect::<Vec<u8>>()).await;
    let code = raw.end().await;
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "rapid reset: {code:?}");
    node.is_well("rapid reset").await;

    // The client's errors let growd reset them.
    let mut raw = node.offender().await;
    let mut heard = 0;
    for n in 0..10 * ERRORS_MOST as u32 {
        let stream = 2 * n + 1;
        let headers = frame(HEADERS, END_HEADERS, stream, &call_headers(GET_JOB));
        let too_large = frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
        if raw.say(&[headers, too_large].concat()).await.is_err() {
            break;
        }
        heard += 1;
    }
    let code = raw.end().await;
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "made to reset: {code:?}");
    node.is_well(&format!("made to reset, {heard} said")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_or_too_many_are_not_kept() {
    let node = Node::start().await;
    // No end of headers, ever.
    let mut raw = node.offender().await;
    raw.say(&frame(HEADERS, 0, 1, &call_headers(GET_JOB))).await.unwrap();
    let more = frame(CONTINUATION, 0, 1, &header("x", &"y".repeat(8000)));
    let said = flood(&mut raw, &more, FLOOD / 100).await;
    assert!(said < FLOOD / 100, "growd takes headers without end");
    let code = raw.end().await;
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "endless headers: {code:?}");
    node.is_well(&format!("{said} continuations")).await;
    let mut raw = node.offender().await;
    raw.say(&frame(HEADERS, 0, 1, &call_headers(GET_JOB))).await.unwrap();
    let said = flood(&mut raw, &frame(CONTINUATION, 0, 1, &[]), FLOOD).await;
    assert!(said < FLOOD, "growd takes empty continuations without end");
    node.is_well(&format!("{said} empty continuations")).await;

    // More than growd takes, in order: the stream is answered so, and the connection goes on.
    let mut raw = node.offender().await;
    let long = header("x", &"y".repeat(HEADERS_MOST as usize / 2));
    raw.say(&frame(HEADERS, END_STREAM, 1, &call_headers(GET_JOB))).await.unwrap();
    raw.say(&[frame(CONTINUATION, 0, 1, &long), frame(CONTINUATION, END_HEADERS, 1, &long)].concat()).await.unwrap();
    let answer = raw.until(|frame| frame.kind == HEADERS && frame.stream == 1).await.expect("an answer");
    // `:status` with the text 431 in the code of RFC 7541, B.
    assert!(answer.payload.starts_with(&[0x48, 0x83, 0x69, 0x90, 0xff]), "not 431: {:?}", answer.payload);
    raw.say(&call(3, GET_JOB, &node.question())).await.unwrap();
    raw.until(|frame| frame.kind == DATA && frame.stream == 3).await.expect("the connection goes on");
    node.is_well("headers that are too many").await;

    // What a client of gRPC hears of it.
    let mut request = tonic::Request::new(GetJobRequest { job_id: node.job_id.clone() });
    request.metadata_mut().insert("x-long", "y".repeat(2 * HEADERS_MOST as usize).parse().unwrap());
    let refused = JobServiceClient::new(node.channel.clone()).get_job(request).await.unwrap_err();
    println!("metadata that is too long: {:?} {:?}", refused.code(), refused.message());
    assert!(matches!(refused.code(), Code::Internal | Code::Unknown | Code::ResourceExhausted), "{refused:?}");
    node.is_well("metadata that is too long").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_long_are_refused_and_not_kept() {
    let node = Node::start().await;
    let mut shares = ShareServiceClient::new(node.channel.clone());
    for length in [MESSAGE_MOST, 8 << 20] {
        let request = ExtendShareRequest { project_id: "x".repeat(length), ..Default::default() };
        let refused = shares.extend_share(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        assert!(refused.message().contains(&MESSAGE_MOST.to_string()), "{refused:?}");
        node.is_well(&format!("a message of {length} bytes")).await;
    }
    // The longest that is read is refused for what it says.
    let request = ExtendShareRequest { project_id: "x".repeat(MESSAGE_MOST - 16), ..Default::default() };
    assert_eq!(reason(&shares.extend_share(request).await.unwrap_err()), "INVALID_SHARE_ID");

    // One that is too long is refused before it has come, by each service.
    for path in BESIDES.into_iter().chain([GET_JOB]) {
        // The reflection of tonic ends its answers with success, whatever ends the questions.
        let expected = if path.contains("reflection") { Code::Ok } else { Code::OutOfRange };
        let caller = Caller::greet(UnixStream::connect(node.socket()).await.unwrap()).await;
        assert_eq!(caller.begin(path, &[], MESSAGE_MOST + 1, 0).await.await, expected, "{path}");
    }
    node.is_well("messages that would be too long").await;

    // Messages that are promised and never come.
    let mut raw = node.offender().await;
    for n in 0..STREAMS_MOST {
        let stream = 2 * n + 1;
        let promise = [&[0], &(MESSAGE_MOST as u32).to_be_bytes()[..]].concat();
        let begin = [frame(HEADERS, END_HEADERS, stream, &call_headers(GET_JOB)), frame(DATA, 0, stream, &promise)];
        raw.say(&begin.concat()).await.unwrap();
    }
    node.is_well("messages that do not come").await;
    // There is no room for more streams, and growd says so.
    let stream = 2 * STREAMS_MOST + 1;
    raw.say(&call(stream, GET_JOB, &node.question())).await.unwrap();
    let answer = raw.until(|frame| frame.kind == RST_STREAM && frame.stream == stream).await.expect("a refusal");
    assert_eq!(answer.code(), REFUSED_STREAM);
    node.is_well("more streams than there may be").await;
}

/// Each stream asks without end and reads no answer: nothing but the window of the connection stops them all.
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_nobody_reads_are_bounded() {
    let node = Node::start().await;
    // No room for any answer.
    let mut raw = Raw::greet(&node.socket(), &[0, 4, 0, 0, 0, 0]).await.unwrap();
    raw.until(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0).await.expect("more room than before it");
    // `list_services: ""`, as often as a frame has room for it.
    let questions = [0, 0, 0, 0, 2, 0x3a, 0].repeat(FRAME_MOST as usize / 7);
    // A frame of each is read, the others are not: twice what there is room for.
    for n in 0..16 {
        let stream = 2 * n + 1;
        let flood = [
            vec![frame(HEADERS, END_HEADERS, stream, &call_headers(BESIDES[1]))],
            vec![frame(DATA, 0, stream, &questions); 3],
        ];
        if raw.say(&flood.concat().concat()).await.is_err() {
            break;
        }
    }
    let _ = raw.say(&frame(PING, 0, 0, &[7; 8])).await;
    let end = raw.until(|frame| frame.kind == GOAWAY || frame.kind == PING && frame.flags & ACK != 0).await;
    assert!(end.is_none_or(|end| end.kind == GOAWAY && end.code() == FLOW_CONTROL_ERROR), "growd takes all of it");
    node.is_well("questions that nobody reads").await;
}

/// Each stream asks for the longest answer and never reads it.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_bounded() {
    let node = Node::with_jobs(1000).await;
    let question = ListJobsRequest { page_size: 1000, ..Default::default() }.encode_to_vec();
    // No room for any data at all.
    let mut raw = Raw::greet(&node.socket(), &[0, 4, 0, 0, 0, 0]).await.unwrap();
    for n in 0..STREAMS_MOST {
        raw.say(&call(2 * n + 1, LIST_JOBS, &question)).await.unwrap();
    }
    for _ in 0..STREAMS_MOST {
        raw.until(|frame| frame.kind == HEADERS).await.expect("an answer begins");
    }
    node.answers_others().await;
    let full = Usage::of(node.growd.pid());
    println!("{STREAMS_MOST} answers of 1000 jobs that nobody reads: from {} to {full}", node.before);
    // An answer has some 200 KiB here, in a buffer of up to twice as much.
    assert!(full.peak < node.before.peak + u64::from(STREAMS_MOST) * 1024, "from {} to {full}", node.before);
    drop(raw);
    store::until("the connection is given up", || Usage::of(node.growd.pid()).files <= node.before.files).await;
    node.answers_others().await;
}

/// A caller that is gone without a word keeps its connection open for a while, and what it holds there as long.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_a_ping_loses_the_connection() {
    let node = Node::start().await;
    let (mut gone, mut there) = (node.offender().await, node.offender().await);
    let answering = tokio::spawn(async move {
        let ping = there.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await.expect("a ping");
        there.say(&frame(PING, ACK, 0, &ping.payload)).await.unwrap();
        there
    });
    gone.until(|frame| frame.kind == PING && frame.flags & ACK == 0).await.expect("a ping");
    while gone.hear().await.is_some() {}
    let mut there = answering.await.unwrap();
    there.say(&call(1, GET_JOB, &node.question())).await.unwrap();
    there.until(|frame| frame.kind == DATA).await.expect("an answer");
}

//! What the log and a collector of spans tell of a request: one trace from the caller through the RPC, the job and its
//! steps, also over a restart; and how much is told, which changes while growd runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/json_log.rs"]
mod json_log;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use daemon::{Clients, Daemon, MIB, TURNS, assert_refused, create_shares, eventually, pool, request, share};
use growd::wire::proto::{CancelJobRequest, ExtendShareRequest, Job, JobState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, PRJQUOTA, lab};
use tonic::Request;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// growd with a log of its own, in JSON.
struct Logged<'a> {
    dir: &'a Path,
    child: Child,
}

impl<'a> Logged<'a> {
    async fn start(dir: &'a Path, config: &str) -> (Self, Clients) {
        let file = Daemon::configure(dir, config);
        let log = fs::File::options().append(true).create(true).open(dir.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_growd"))
            .args(["run", "--log-format", "json", "--config"])
            .arg(file)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let clients = Clients::when_ready(&format!("unix:{}/sock", dir.display())).await;
        (Self { dir, child }, clients)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().unwrap();
    }

    fn lines(&self) -> Vec<Value> {
        json_log::lines(&self.dir.join("log"))
    }

    fn lines_of(&self, message: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["fields"]["message"] == message).collect()
    }
}

impl Drop for Logged<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn called_from(request: ExtendShareRequest, traceparent: &str) -> Request<ExtendShareRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request
}

async fn extend(clients: &Clients, n: u32, size: u64, traceparent: &str) -> Job {
    let request = called_from(request(&share(n), size), traceparent);
    clients.shares.clone().extend_share(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn each_line_of_a_job_names_it_and_its_trace() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    create_shares(&fs, 2, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let (growd, clients) = Logged::start(dir.path(), &pool(&fs, "")).await;

    let job = extend(&clients, 1, 16 * MIB, &traceparent()).await;
    assert_eq!(job.traceparent, traceparent());
    let ended = clients.end_of(&job.job_id).await;
    assert_eq!((ended.state(), ended.traceparent), (JobState::Succeeded, traceparent()));
    // What is no traceparent is none, and no reason to refuse anything.
    let other = extend(&clients, 2, 16 * MIB, "00-0-0-0").await;
    assert_eq!(clients.end_of(&other.job_id).await.traceparent, "");

    let [first, second] = growd.lines_of("step done").try_into().unwrap();
    for (line, job, n) in [(&first, &job, 1), (&second, &other, 2)] {
        let mut spans = line["spans"].as_array().unwrap().clone();
        let traced = spans[0].as_object_mut().unwrap().remove("trace");
        assert_eq!(traced, (n == 1).then(|| TRACE.into()));
        assert_eq!(spans[0], json!({"name": "job", "job": job.job_id, "share": share(n)}), "{line}");
        assert_eq!(spans[1], json!({"name": "step", "step": "set_limit"}));
    }
    // The end is seen before it is told to the log.
    eventually(async || growd.lines_of("job succeeded").len(), |lines| *lines == 2).await;
    let ends = growd.lines_of("job succeeded");
    for (line, job) in ends.iter().zip([&job, &other]) {
        assert_eq!(line["span"]["job"], json!(job.job_id), "{line}");
        assert_eq!(line["fields"]["size"], json!(16 * MIB), "{line}");
    }
    let [accepted, _] = growd.lines_of("extend accepted").try_into().unwrap();
    let rpc = json!({"name": "rpc", "method": "growd.v1.ShareService/ExtendShare", "trace": TRACE});
    assert_eq!(accepted["span"], rpc, "{accepted}");
    growd.end(Signal::SIGTERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_is_told_to_have_ended_also_where_that_could_not_be_written_at_first() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    create_shares(&fs, TURNS + 2, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let (growd, clients) = Logged::start(dir.path(), &pool(&fs, "")).await;
    let hang = clients.hang(&disk).await;
    clients.fill_turns(16 * MIB).await;
    let at_once = extend(&clients, TURNS + 1, 16 * MIB, &traceparent()).await;
    let later = extend(&clients, TURNS + 2, 16 * MIB, &traceparent()).await;
    let cancel = async |job: &Job| {
        let request = CancelJobRequest { job_id: job.job_id.clone() };
        clients.jobs.clone().cancel_job(request).await
    };

    cancel(&at_once).await.unwrap();
    let (state, away) = (dir.path().join("state"), dir.path().join("away"));
    fs::rename(&state, &away).unwrap();
    assert_refused(&cancel(&later).await.unwrap_err(), "STORE_UNAVAILABLE");
    fs::rename(&away, &state).unwrap();
    eventually(async || growd.lines_of("job cancelled").len(), |lines| *lines == 2).await;
    for (line, job) in growd.lines_of("job cancelled").iter().zip([&at_once, &later]) {
        let span = json!({"name": "job", "job": job.job_id, "share": job.share_id, "trace": TRACE});
        assert_eq!(line["span"], span, "{line}");
    }
    let names_later = |line: &Value| line["span"]["job"] == later.job_id || line["fields"]["job"] == later.job_id;
    let last = growd.lines().into_iter().rfind(names_later).unwrap();
    assert_eq!(last["fields"]["message"], "job cancelled", "the refusal is not the last word");
    drop(hang);
    growd.end(Signal::SIGTERM);
}

#[tokio::test]
async fn the_level_follows_the_configuration_while_growd_runs() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    create_shares(&fs, 1, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(&fs, "");
    let (growd, clients) = Logged::start(dir.path(), &format!("[log]\nlevel = \"warn\"\n{pool}")).await;
    let grow = async || {
        let size = clients.share(&share(1)).await.size_bytes.unwrap();
        clients.extended(1, size + MIB).await;
        growd.lines().len()
    };
    assert_eq!(grow().await, 1, "{:?}", growd.lines());
    assert_eq!(growd.lines()[0]["target"], "audit", "who changed what is told at every level");

    Daemon::configure(dir.path(), &format!("[log]\nlevel = \"warn,growd::engine=info\"\n{pool}"));
    growd.signal(Signal::SIGHUP);
    let targets = || {
        let lines = growd.lines().into_iter().filter(|line| line["target"] != "audit");
        lines.map(|line| line["target"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let others = async || {
        grow().await;
        targets().len()
    };
    eventually(others, |lines| *lines > 0).await;
    assert!(targets().iter().all(|target| target.starts_with("growd::engine")), "{:?}", targets());

    Daemon::configure(dir.path(), &format!("[log]\nlevel = \"debug\"\n{pool}"));
    growd.signal(Signal::SIGHUP);
    let reads = || {
        let lines = growd.lines();
        let spans = lines.iter().filter_map(|line| line["span"]["method"].as_str());
        spans.filter(|method| method.ends_with("/GetNode")).count()
    };
    let read = async || {
        clients.node().await;
        reads()
    };
    eventually(read, |reads| *reads > 0).await;

    Daemon::configure(dir.path(), &pool);
    growd.signal(Signal::SIGHUP);
    eventually(async || growd.lines_of("the configuration was read anew").len(), |lines| *lines >= 2).await;
    let before = reads();
    clients.node().await;
    assert_eq!(reads(), before, "without the key it is info again");
}

#[tokio::test]
async fn a_job_keeps_its_trace_over_a_kill() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    create_shares(&fs, TURNS + 1, 8 * MIB);
    let dir = tempfile::tempdir().unwrap();
    let (growd, clients) = Logged::start(dir.path(), &pool(&fs, "")).await;
    let hang = clients.hang(&disk).await;
    // It waits behind these. One at work could have set its limit already, and would have no step left after the kill.
    clients.fill_turns(16 * MIB).await;
    let job = extend(&clients, TURNS + 1, 16 * MIB, &traceparent()).await;
    growd.signal(Signal::SIGKILL);
    // A process in the middle of a system call dies when that has ended.
    drop(hang);
    drop(growd);
    let (growd, clients) = Logged::start(dir.path(), &pool(&fs, "")).await;
    let ended = clients.end_of(&job.job_id).await;
    assert_eq!((ended.state(), ended.attempt, ended.traceparent), (JobState::Succeeded, 2, traceparent()));
    let resumed = growd.lines_of("step done");
    assert!(resumed.iter().any(|line| line["spans"][0]["trace"] == TRACE), "{resumed:#?}");
}

#[cfg(feature = "otlp")]
mod exported {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use std::sync::{Arc, Mutex};
    use tonic::{Response, Status};

    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<Span>>>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let of_resource = request.into_inner().resource_spans.into_iter();
            let spans = of_resource.flat_map(|all| all.scope_spans).flat_map(|all| all.spans);
            self.0.lock().unwrap().extend(spans);
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    impl Collector {
        async fn start(port: u16) -> Self {
            let collector = Self::default();
            let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
            tokio::spawn(server.serve(([127, 0, 0, 1], port).into()));
            collector
        }

        /// The one span with this name and a field of this value.
        fn span(&self, name: &str, field: &str, value: &str) -> Span {
            let spans = self.0.lock().unwrap();
            let fits = |span: &&Span| {
                let has = |key: &str| span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone();
                span.name == name && has(field).and_then(|any| any.value) == Some(Value::StringValue(value.to_owned()))
            };
            let found: Vec<_> = spans.iter().filter(fits).cloned().collect();
            let [span] = found.as_slice() else { panic!("{name} {field}={value}: {spans:#?}") };
            span.clone()
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn rpc_job_and_steps_are_one_trace() {
        lab::require();
        let fs = Filesystem::xfs("ubda", PRJQUOTA);
        create_shares(&fs, 2, 8 * MIB);
        let dir = tempfile::tempdir().unwrap();
        let collector = Collector::start(4317).await;
        let config = format!("[traces]\nendpoint = \"http://127.0.0.1:4317\"\n{}", pool(&fs, ""));
        let (growd, clients) = Logged::start(dir.path(), &config).await;
        let called = extend(&clients, 1, 16 * MIB, &traceparent()).await;
        let own = clients.extend(&share(2), 16 * MIB).await.unwrap();
        for job in [&called, &own] {
            assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
        }
        // What is left is sent at the end.
        growd.end(Signal::SIGTERM);

        for (job, trace, caller) in [(&called, Some(TRACE), CALLER), (&own, None, "")] {
            let of_job = collector.span("job", "job", &job.job_id);
            let trace = trace.map_or_else(|| hex(&of_job.trace_id), str::to_owned);
            let rpc = hex(&of_job.parent_span_id);
            assert_eq!(job.traceparent, format!("00-{trace}-{rpc}-01"));
            let spans = collector.0.lock().unwrap().clone();
            let rpc = spans.iter().find(|span| hex(&span.span_id) == rpc).unwrap();
            assert_eq!(
                (rpc.name.as_str(), hex(&rpc.trace_id), hex(&rpc.parent_span_id)),
                ("rpc", trace.clone(), caller.to_owned())
            );
            let mut steps: Vec<_> = spans.iter().filter(|span| span.parent_span_id == of_job.span_id).collect();
            steps.sort_by_key(|step| step.start_time_unix_nano);
            let steps: Vec<_> = steps.iter().map(|step| (step.name.as_str(), hex(&step.trace_id))).collect();
            assert_eq!(steps, [("step", trace.clone()), ("step", trace)]);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cancelled_job_is_one_span_of_its_trace() {
        lab::require();
        let disk = MappedDisk::over("ubda");
        let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
        create_shares(&fs, TURNS + 1, 8 * MIB);
        let dir = tempfile::tempdir().unwrap();
        let collector = Collector::start(4319).await;
        let config = format!("[traces]\nendpoint = \"http://127.0.0.1:4319\"\n{}", pool(&fs, ""));
        let (growd, clients) = Logged::start(dir.path(), &config).await;
        let hang = clients.hang(&disk).await;
        clients.fill_turns(16 * MIB).await;
        let job = extend(&clients, TURNS + 1, 16 * MIB, &traceparent()).await;
        let request = CancelJobRequest { job_id: job.job_id.clone() };
        clients.jobs.clone().cancel_job(request).await.unwrap();
        drop(hang);
        growd.end(Signal::SIGTERM);
        assert_eq!(hex(&collector.span("job", "job", &job.job_id).trace_id), TRACE);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_after_a_restart_is_marked_in_the_trace_of_its_caller() {
        lab::require();
        let disk = MappedDisk::over("ubda");
        let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
        create_shares(&fs, 1, 8 * MIB);
        let dir = tempfile::tempdir().unwrap();
        let collector = Collector::start(4318).await;
        let config = format!("[traces]\nendpoint = \"http://127.0.0.1:4318\"\n{}", pool(&fs, ""));
        let (growd, clients) = Logged::start(dir.path(), &config).await;
        let hang = clients.hang(&disk).await;
        let job = extend(&clients, 1, 16 * MIB, &traceparent()).await;
        growd.signal(Signal::SIGKILL);
        drop(hang);
        drop(growd);
        let (growd, clients) = Logged::start(dir.path(), &config.replace("\"home\"", "\"other\"")).await;
        assert_eq!(clients.end_of(&job.job_id).await.error.unwrap().reason, "NOT_MOUNTED");
        growd.end(Signal::SIGTERM);
        let of_job = collector.span("job", "job", &job.job_id);
        assert_eq!(format!("00-{}-{}-01", hex(&of_job.trace_id), hex(&of_job.parent_span_id)), job.traceparent);
        assert_eq!(hex(&of_job.trace_id), TRACE);
        let status = of_job.status.unwrap();
        assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "NOT_MOUNTED"));
    }
}

//! The share API through growapi against the same calls directly to growd, over gRPC: a share's details, and an extend
//! until it is accepted.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, GetShareRequest, ListSharesRequest, ShareStatus};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::growd::{Growd, quota_pool, share_id};
use crate::lab_node::{Filesystem, PRJQUOTA};
use crate::results::{Results, Row, Series, Spread, Target, milliseconds, rounds};

const CLIENTS: [usize; 2] = [1, 64];
const ROUNDS: usize = 6;
/// Calls of all clients together in one round, of details and of extends.
const GETS: usize = 1280;
/// Each round promises them a GiB more, and the disk has 4.
const EXTENDS: usize = 128;
const GIB: u64 = 1 << 30;

pub fn run(results: &mut Results) {
    let runtime = Runtime::new().unwrap();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let shares: Vec<(String, u32)> = (0..EXTENDS).map(|n| (share_id(n), 100 + u32::try_from(n).unwrap())).collect();
    fs.create_shares(&shares, GIB);
    // On a disk and not on a tmpfs, where a flush would cost nothing.
    let state = Filesystem::ext4_without_quota_feature("ubdd");
    let dir = tempfile::tempdir().unwrap();
    // Limits may promise more than the small disks of the lab have.
    let pool = quota_pool("home", fs.path(), "overcommit = 1000");
    let growd = runtime.block_on(Growd::start(dir.path(), &state.path().join("growd"), &pool));
    let growapi = Growapi::start(dir.path(), growd.endpoint());

    results.heading("The share API");
    let header = ["what", "way", "clients", "median", "p99", "per second"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    // Both ways grow the same shares, one after the other.
    let mut size = 1;
    for (what, calls, extends) in [("details", GETS, false), ("extend, accepted", EXTENDS, true)] {
        for clients in CLIENTS {
            let mut contenders = [("growapi", Some(&growapi)), ("direct", None)].map(|(name, api)| {
                let clients = (0..clients).map(|n| Caller {
                    shares: (0..EXTENDS).filter(|share| share % clients == n).map(share_id).collect(),
                    channel: runtime.block_on(growd.connect()),
                    http: Client::builder(TokioExecutor::new()).build_http(),
                    base: api.map(|api| api.base.clone()),
                });
                Contender { name, clients: clients.collect(), series: Series::default() }
            });
            let mut round = |contender: &Contender| {
                size += u64::from(extends);
                let (took, wall) = contender.round(&runtime, calls / clients, extends.then_some(size));
                runtime.block_on(ended(growd.connect(), if extends { size * GIB } else { 0 }));
                (took, wall)
            };
            rounds(&mut contenders, 1, |contender| drop(round(contender)));
            rounds(&mut contenders, ROUNDS, |contender| {
                let (took, wall) = round(contender);
                contender.series.add(took, wall);
            });
            table.extend(contenders.iter().map(|contender| contender.cells(what)));
            compare(results, what, &contenders);
        }
    }
    results.table(&table);
    results.note(
        "Each client has a connection of its own, and clients, growapi and growd share the one CPU of the lab. An extend \
         raises a share by a GiB and is measured until it is accepted. The client goes on with its next share at once, \
         while the jobs run; the next round begins when all have ended.",
    );
}

fn compare(results: &mut Results, what: &str, contenders: &[Contender; 2]) {
    let clients = contenders[0].clients.len();
    let [through, direct] = contenders.each_ref().map(|contender| &contender.series);
    let target = |target| if clients > 1 { target } else { Target::None };
    results.row(Row {
        path: format!("growapi, {what}, {clients} clients: throughput"),
        ours: format!("{:.0}/s", through.throughput()),
        baseline: format!("direct {:.0}/s", direct.throughput()),
        ratio: through.throughput_by(direct),
        target: target(Target::AtLeast(0.6)),
    });
    let Spread { median, low, high } = through.duration_by(direct);
    results.row(Row {
        path: format!("growapi, {what}, {clients} clients: added to the median, in direct calls"),
        ours: milliseconds(through.median()),
        baseline: format!("direct {}", milliseconds(direct.median())),
        ratio: Spread { median: median - 1.0, low: low - 1.0, high: high - 1.0 },
        target: target(Target::AtMost(1.0)),
    });
}

/// Waits until all jobs have ended, and panics if a share is smaller than it should be then.
async fn ended(channel: impl Future<Output = Channel>, size: u64) {
    let mut shares = ShareServiceClient::new(channel.await);
    loop {
        let page = ListSharesRequest { page_size: 1000, ..Default::default() };
        let all = shares.list_shares(page).await.unwrap().into_inner().shares;
        assert_eq!(all.len(), EXTENDS);
        if all.iter().all(|share| share.status() == ShareStatus::Available) {
            assert!(all.iter().all(|share| share.size_bytes >= Some(size)));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Clone)]
struct Caller {
    shares: Vec<String>,
    channel: Channel,
    http: Client<HttpConnector, Full<Bytes>>,
    /// URL of the shares of a project; `None` for direct calls.
    base: Option<String>,
}

impl Caller {
    async fn get(&self, share: &str) {
        match &self.base {
            Some(base) => {
                let request = Request::get(format!("{base}/{share}")).body(Full::default()).unwrap();
                assert_eq!(self.send(request).await, StatusCode::OK);
            }
            None => {
                let request = GetShareRequest { share_id: share.to_owned() };
                ShareServiceClient::new(self.channel.clone()).get_share(request).await.unwrap();
            }
        }
    }

    /// Until it is accepted.
    async fn extend(&self, share: &str, size: u64) {
        match &self.base {
            Some(base) => {
                let body = format!("{{\"os-extend\": {{\"new_size\": {size}}}}}");
                let request = Request::post(format!("{base}/{share}/action"));
                let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::from(body)).unwrap();
                assert_eq!(self.send(request).await, StatusCode::ACCEPTED);
            }
            None => {
                // growapi gives each request an id.
                let request = ExtendShareRequest {
                    share_id: share.to_owned(),
                    new_size_bytes: size * GIB,
                    request_id: Some(uuid::Uuid::new_v4().to_string()),
                    ..Default::default()
                };
                ShareServiceClient::new(self.channel.clone()).extend_share(request).await.unwrap();
            }
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> StatusCode {
        let answer = self.http.request(request).await.unwrap();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        status
    }
}

struct Contender {
    name: &'static str,
    clients: Vec<Caller>,
    series: Series,
}

impl Contender {
    /// Every client makes its calls one after the other: asks for its shares, or extends them to a size in GiB.
    fn round(&self, runtime: &Runtime, each: usize, size: Option<u64>) -> (Vec<Duration>, Duration) {
        let begin = Instant::now();
        let took = runtime.block_on(async {
            let mut clients = tokio::task::JoinSet::new();
            for caller in self.clients.iter().cloned() {
                clients.spawn(async move {
                    let mut took = Vec::new();
                    for share in caller.shares.iter().cycle().take(each) {
                        let begin = Instant::now();
                        match size {
                            Some(size) => caller.extend(share, size).await,
                            None => caller.get(share).await,
                        }
                        took.push(begin.elapsed());
                    }
                    took
                });
            }
            clients.join_all().await.concat()
        });
        (took, begin.elapsed())
    }

    fn cells(&self, what: &str) -> Vec<String> {
        vec![
            what.to_owned(),
            self.name.to_owned(),
            self.clients.len().to_string(),
            milliseconds(self.series.median()),
            self.series.tail(99.0),
            format!("{:.0}", self.series.throughput()),
        ]
    }
}

/// growapi, optimized, with its log at the default level in a file.
struct Growapi {
    child: Child,
    base: String,
}

impl Growapi {
    fn start(dir: &Path, node: &str) -> Self {
        let config = dir.join("growapi.toml");
        let nobody = "[identity]\nkind = \"none\"\n";
        let text = format!("listen = \"127.0.0.1:0\"\n{nobody}[[node]]\nname = \"n\"\nendpoint = {node:?}\n");
        std::fs::write(&config, text).unwrap();
        let log = dir.join("growapi.log");
        let child = Command::new(env!("CARGO_BIN_EXE_growapi"))
            .args(["run", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut growapi = Self { child, base: String::new() };
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let said = std::fs::read_to_string(&log).unwrap();
            let address = said.split_once("growapi is ready address=").and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((address, _)) = address {
                growapi.base = format!("http://{}/v2/p/shares", address.split(' ').next().unwrap());
                return growapi;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("growapi did not become ready");
    }
}

impl Drop for Growapi {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

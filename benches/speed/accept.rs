//! ExtendShare until the job is durable, and until it has succeeded, against bare services that commit a record of the same
//! size and answer.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use growd::wire::client;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::baselines::{Baseline, Kind};
use crate::ground::Ground;
use crate::growd::{Growd, Took, accept, share_id, succeeded};
use crate::results::{Results, Row, Series, Target, milliseconds, rounds};

const MANY: usize = 128;
const ROUNDS: usize = 15;
/// Calls of a client in a round, when it is the only one.
const CALLS_ALONE: usize = 20;
/// By how much each extend grows a share: a block, the least that XFS counts limits in.
const GROWTH: u64 = 4096;
const FIRST_SIZE: u64 = 1 << 20;

/// A service, and clients with connections of their own.
struct Contender {
    name: &'static str,
    /// Whether its jobs run, and are waited for.
    is_growd: bool,
    channels: Vec<Channel>,
    accepted: Series,
    finished: Series,
}

pub fn in_lab(results: &mut Results) {
    on(&Ground::lab(), results);
}

pub fn here(results: &mut Results) {
    Ground::here().iter().for_each(|ground| on(ground, results));
}

fn on(ground: &Ground, results: &mut Results) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let shares: Vec<(String, u32)> = (0..MANY).map(|n| (share_id(n), 100 + u32::try_from(n).unwrap())).collect();
    ground.create_shares(&shares, FIRST_SIZE);
    let dir = tempfile::tempdir().unwrap();
    let pool = ground.pool("home", ground.path());
    let growd = runtime.block_on(Growd::start(dir.path(), &ground.state().join("growd"), &pool));
    let mut size = FIRST_SIZE + GROWTH;
    let job = runtime.block_on(async {
        let channel = growd.connect().await;
        let job = accept(channel.clone(), &share_id(0), size).await;
        succeeded(channel, job.clone()).await;
        job
    });
    let bare = |kind, name: &str| Baseline::start(kind, &ground.state().join(name), &job, &Default::default());
    let (floor, sled_floor) = (bare(Kind::Floor, "floor"), bare(Kind::SledFloor, "sled-floor"));
    let servers =
        [("growd", growd.endpoint().to_owned()), ("floor", floor.endpoint()), ("sled-floor", sled_floor.endpoint())];

    results.heading(&format!("ExtendShare ({})", ground.name()));
    let header = ["server", "clients", "accepted, median", "p99", "per second", "finished, median"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for (clients, calls) in [(1, CALLS_ALONE), (MANY, 1)] {
        let mut contenders = servers.each_ref().map(|(name, endpoint)| Contender {
            name,
            is_growd: *name == "growd",
            channels: (0..clients).map(|_| runtime.block_on(client::connect(endpoint, None)).unwrap()).collect(),
            accepted: Series::default(),
            finished: Series::default(),
        });
        rounds(&mut contenders, 1, |contender| drop(contender.round(&runtime, calls, &mut size)));
        rounds(&mut contenders, ROUNDS, |contender| contender.measure(&runtime, calls, &mut size));
        compare(results, ground.name(), &contenders);
        table.extend(contenders.iter().map(Contender::cells));
    }
    for share in &shares {
        assert!(ground.limit(share) > FIRST_SIZE, "share {share:?} did not grow");
    }
    results.table(&table);
    results.note(&format!(
        "\"Accepted\" is ExtendShare answered, the job durable; \"finished\" is from the request to SUCCEEDED seen through \
         WatchJob. The floor appends the job's message to a file and calls fdatasync once for all that wait, the sled-floor \
         inserts it into sled and flushes; then they answer, and no job runs. The message has {} bytes, about what growd's \
         record takes with its key. {MANY} clients send one extend each at the same time, each of a share of its own; the \
         throughput is that of the acceptances, and growd's first jobs run meanwhile on the same CPUs. All have ended when \
         the next round begins.",
        job.encoded_len()
    ));
}

impl Contender {
    fn measure(&mut self, runtime: &Runtime, calls: usize, size: &mut u64) {
        let (took, wall) = self.round(runtime, calls, size);
        let (accepted, finished) = took.into_iter().unzip();
        self.accepted.add(accepted, wall);
        self.finished.add(finished, wall);
    }

    /// All clients send an extend at the same time, so often; the time until the last of them is accepted counts.
    fn round(&self, runtime: &Runtime, calls: usize, size: &mut u64) -> (Vec<Took>, Duration) {
        let (mut took, mut wall) = (Vec::new(), Duration::ZERO);
        for _ in 0..calls {
            *size += GROWTH;
            let begin = Instant::now();
            let accepts = self.channels.iter().enumerate().map(|(n, channel)| {
                let (share, size) = (share_id(n), *size);
                async move {
                    let begin = Instant::now();
                    let job = accept(channel.clone(), &share, size).await;
                    (begin, begin.elapsed(), channel, job)
                }
            });
            let jobs = runtime.block_on(join_all(accepts));
            wall += begin.elapsed();
            let ends = jobs.into_iter().map(async |(begin, accepted, channel, job)| {
                if self.is_growd {
                    succeeded(channel.clone(), job).await;
                }
                (accepted, begin.elapsed())
            });
            took.extend(runtime.block_on(join_all(ends)));
        }
        (took, wall)
    }

    fn cells(&self) -> Vec<String> {
        let finished = if self.is_growd { milliseconds(self.finished.median()) } else { "-".to_owned() };
        vec![
            self.name.to_owned(),
            self.channels.len().to_string(),
            milliseconds(self.accepted.median()),
            self.accepted.tail(99.0),
            format!("{:.0}", self.accepted.throughput()),
            finished,
        ]
    }
}

fn compare(results: &mut Results, ground: &str, contenders: &[Contender; 3]) {
    let [growd, bare @ ..] = contenders;
    let clients = growd.channels.len();
    for contender in contenders {
        results.throughput(&format!("extend accepted, {ground}: {}", contender.name), clients, &contender.accepted);
        if clients == 1 {
            results.latency(&format!("extend accepted, {ground}: {}", contender.name), &contender.accepted);
        }
    }
    if clients > 1 {
        for (contender, target) in bare.iter().zip([0.6, 0.9]) {
            results.row(Row {
                path: format!("ExtendShare accepted, {ground}, {clients} clients: throughput"),
                ours: format!("{:.0}/s", growd.accepted.throughput()),
                baseline: format!("{} {:.0}/s", contender.name, contender.accepted.throughput()),
                ratio: growd.accepted.throughput_by(&contender.accepted),
                target: Target::AtLeast(target),
            });
        }
        return;
    }
    results.latency(&format!("extend finished, {ground}: growd"), &growd.finished);
    let floor = &bare[0].accepted;
    for (what, series, target) in [("accepted", &growd.accepted, 1.5), ("finished", &growd.finished, 2.3)] {
        results.row(Row {
            path: format!("ExtendShare {what}, {ground}, 1 client: median"),
            ours: milliseconds(series.median()),
            baseline: format!("floor {}", milliseconds(floor.median())),
            ratio: series.duration_by(floor),
            target: Target::AtMost(target),
        });
    }
}

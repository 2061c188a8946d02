//! Extends by growd against the commands that administrators raise a project's limit with, beside each other on the
//! same file system.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::growd::{Growd, Took, extend, quota_pool, share_id};
use crate::lab_node::{Filesystem, Kind, PRJQUOTA};
use crate::results::{Results, Row, Series, Target, milliseconds, rounds};

const ROUNDS: usize = 10;
const MANY: usize = 16;
/// Calls of each client in a round.
const CALLS_ALONE: usize = 10;
const CALLS_OF_MANY: usize = 2;
/// By how much each extend grows a share: a block, the least that XFS counts limits in.
const GROWTH: u64 = 4096;
const FIRST_SIZE: u64 = 1 << 20;

/// One way to raise a limit.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Growd,
    Command,
}

/// Shares with sizes of their own, one for each client.
struct Contender {
    way: Way,
    shares: Vec<Share>,
    /// At growd until the job is accepted and durable, at the commands until they have ended.
    first: Series,
    /// At growd until the job has succeeded, which includes `first`.
    finished: Series,
}

struct Share {
    id: String,
    project: u32,
    size: u64,
    channel: Channel,
}

pub fn run(results: &mut Results) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    results.heading("Quota extend");
    let header = ["path", "clients", "median", "p99", "per second"];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    for fs in [Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA)] {
        // On a disk and not on a tmpfs, where a flush would cost nothing.
        let state = Filesystem::ext4_without_quota_feature("ubdd");
        let dir = tempfile::tempdir().unwrap();
        let pool = quota_pool("home", fs.path(), "");
        let growd = runtime.block_on(Growd::start(dir.path(), &state.path().join("growd"), &pool));
        for (clients, calls) in [(1, CALLS_ALONE), (MANY, CALLS_OF_MANY)] {
            let mut contenders = contenders(&fs, clients, &runtime, &growd);
            rounds(&mut contenders, 1, |contender| drop(contender.round(&runtime, &fs, 2)));
            rounds(&mut contenders, ROUNDS, |contender| contender.measure(&runtime, &fs, calls));
            for contender in &contenders {
                contender.check(&fs);
            }
            compare(results, &mut table, &contenders, fs.kind());
        }
    }
    results.table(&table);
    results.note(
        "\"Accepted\" is ExtendShare answered, the job durable; \"finished\" is from the request to SUCCEEDED seen through \
         WatchJob: limit set, journal forced, end of the job durable. The command makes nothing durable, checks no \
         capacity and keeps no record. Processes start slower on User-mode Linux than on hardware, and so do system calls.",
    );
}

fn contenders(fs: &Filesystem, clients: usize, runtime: &Runtime, growd: &Growd) -> Vec<Contender> {
    // A project of its own for every share of every call of this function.
    let first = |way: usize| u32::try_from(clients * 1000 + way * 100 + 1).unwrap();
    let share = |project: u32| {
        let id = share_id(project as usize);
        fs.create_share(&id, project, FIRST_SIZE);
        Share { id, project, size: FIRST_SIZE, channel: runtime.block_on(growd.connect()) }
    };
    let ways = [Way::Growd, Way::Command].into_iter().enumerate();
    let contender = |(index, way)| {
        let projects = first(index)..first(index) + u32::try_from(clients).unwrap();
        Contender { way, shares: projects.map(share).collect(), first: Series::default(), finished: Series::default() }
    };
    ways.map(contender).collect()
}

impl Contender {
    fn measure(&mut self, runtime: &Runtime, fs: &Filesystem, calls: usize) {
        let begin = Instant::now();
        let took = self.round(runtime, fs, calls);
        let wall = begin.elapsed();
        let (first, finished) = took.into_iter().unzip();
        self.first.add(first, wall);
        self.finished.add(finished, wall);
    }

    /// Every client extends its share so often, one call after the other; the clients go on beside each other.
    fn round(&mut self, runtime: &Runtime, fs: &Filesystem, calls: usize) -> Vec<Took> {
        let targets = |share: &mut Share| {
            let from = share.size;
            share.size += calls as u64 * GROWTH;
            (1..=calls as u64).map(move |call| from + call * GROWTH)
        };
        if self.way == Way::Growd {
            return runtime.block_on(async {
                let mut clients = tokio::task::JoinSet::new();
                for share in &mut self.shares {
                    let (sizes, id, channel) = (targets(share), share.id.clone(), share.channel.clone());
                    clients.spawn(async move {
                        let mut took = Vec::new();
                        for size in sizes {
                            took.push(extend(channel.clone(), &id, size).await);
                        }
                        took
                    });
                }
                clients.join_all().await.into_iter().flatten().collect()
            });
        }
        let took = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for share in &mut self.shares {
                let (sizes, project, took) = (targets(share), share.project, &took);
                scope.spawn(move || {
                    for size in sizes {
                        let duration = command(fs, project, size);
                        took.lock().unwrap().push((duration, duration));
                    }
                });
            }
        });
        took.into_inner().unwrap()
    }

    /// Whoever has not raised the limits has not been measured.
    fn check(&self, fs: &Filesystem) {
        for share in &self.shares {
            assert_eq!(fs.hard_limit(share.project), share.size, "project {}", share.project);
        }
    }
}

/// Sets a limit with the file system's own tool and returns how long that took.
fn command(fs: &Filesystem, project: u32, size: u64) -> Duration {
    let mount_point = fs.path().display().to_string();
    let project = project.to_string();
    let mut command = match fs.kind() {
        Kind::Xfs => {
            let mut command = Command::new("xfs_quota");
            command.args(["-x", "-c", &format!("limit -p bhard={size} {project}"), &mount_point]);
            command
        }
        Kind::Ext4 => {
            let mut command = Command::new("setquota");
            command.args(["-P", &project, "0", &(size / 1024).to_string(), "0", "0", &mount_point]);
            command
        }
    };
    let begin = Instant::now();
    let output = command.output().unwrap();
    let took = begin.elapsed();
    assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {output:?}");
    took
}

fn compare(results: &mut Results, table: &mut Vec<Vec<String>>, contenders: &[Contender], kind: Kind) {
    let (system, tool, targets) = match kind {
        Kind::Xfs => ("XFS", "xfs_quota", [15.0, 40.0].map(Target::AtLeast)),
        Kind::Ext4 => ("ext4", "setquota", [Target::None; 2]),
    };
    let [ours, theirs] = [&contenders[0], &contenders[1]];
    let clients = ours.shares.len();
    let mut cells = |name: &str, series: &Series, is_whole: bool| {
        let per_second = format!("{:.0}", series.throughput());
        table.push(vec![
            format!("{system}: {name}"),
            clients.to_string(),
            milliseconds(series.median()),
            series.tail(99.0),
            // Nothing begins before the last job has finished, so accepting alone has no throughput.
            if is_whole { per_second } else { "-".to_owned() },
        ]);
    };
    cells("growd, accepted", &ours.first, false);
    cells("growd, finished", &ours.finished, true);
    cells(tool, &theirs.finished, true);
    results.row(Row {
        path: format!("quota extend, {system}, finished, {clients} clients: throughput"),
        ours: format!("{:.0}/s", ours.finished.throughput()),
        baseline: format!("{tool} {:.0}/s", theirs.finished.throughput()),
        ratio: ours.finished.throughput_by(&theirs.finished),
        target: targets[usize::from(clients > 1)],
    });
    for (name, contender) in [("growd, finished", ours), (tool, theirs)] {
        results.throughput(&format!("quota extend, {system}: {name}"), clients, &contender.finished);
        if clients == 1 && kind == Kind::Xfs {
            results.latency(&format!("quota extend: {name}"), &contender.finished);
        }
    }
}

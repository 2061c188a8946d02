//! SIGKILL at each moment of a whole life of growd: before and after every system call by which it changes a file or a
//! limit. The life opens the store, recovers, accepts, commits, takes its steps, removes old jobs and drains. After each
//! kill everything that was acknowledged is there and ends, with the kernel's sizes.
//!
//! GROWD_ROUNDS says how many moments are tried, one from each of as many equal parts of the life, which has about 150:
//! more than that is each of them. GROWD_SEED chooses the same ones again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/seed.rs"]
mod seed;
#[path = "support/traced.rs"]
mod traced;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use daemon::{Clients, Daemon, MIB, project, request, share, unless_killed};
use futures_util::future::join_all;
use growd::wire::proto::{ExtendShareRequest, Job, JobState, ListJobsRequest};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use seed::{Random, rounds};
use support::{Filesystem, PRJQUOTA, lab};
use traced::{Call, End};

/// What changes something that outlives growd.
const CALLS: [Call; 14] = [
    ("fdatasync", libc::SYS_fdatasync, always),
    ("fsync", libc::SYS_fsync, always),
    ("fallocate", libc::SYS_fallocate, always),
    ("ftruncate", libc::SYS_ftruncate, always),
    ("mkdir", libc::SYS_mkdir, always),
    ("pwrite64", libc::SYS_pwrite64, always),
    ("quotactl_fd", libc::SYS_quotactl_fd, sets),
    ("rename", libc::SYS_rename, always),
    ("renameat", libc::SYS_renameat, always),
    ("renameat2", libc::SYS_renameat2, always),
    ("sync_file_range", libc::SYS_sync_file_range, always),
    ("unlink", libc::SYS_unlink, always),
    ("unlinkat", libc::SYS_unlinkat, always),
    ("utimensat", libc::SYS_utimensat, always),
];

fn always(_: &libc::user_regs_struct) -> bool {
    true
}

/// Whether a quotactl_fd(2) is Q_SETQUOTA (linux/quota.h) and no question.
fn sets(registers: &libc::user_regs_struct) -> bool {
    registers.rsi & 0xffff_ff00 == 0x8000_0800
}

const USUAL_ROUNDS: usize = 12;
const SHARES: u32 = 2;
/// What the shares have at the start of a life, and what they are extended to: by jobs that an earlier growd was killed
/// with, and then twice.
const BEGIN: u64 = 4 * MIB;
const LEFT: u64 = 8 * MIB;
const FIRST: u64 = 12 * MIB;
const SECOND: u64 = 16 * MIB;
/// Jobs that are kept; growd removes others when they are 100 more than this.
const KEPT: usize = 20;
const OLD: usize = 124;

/// Shares on both file systems, and the state of a growd that was killed in the middle of their jobs.
struct Node {
    xfs: Filesystem,
    ext4: Filesystem,
    dir: PathBuf,
    left: Vec<Job>,
}

/// What callers were told in a life.
#[derive(Default)]
struct Told {
    accepted: Vec<Job>,
    /// The size that a share was seen to have at the end of a job.
    sizes: BTreeMap<String, u64>,
}

impl Node {
    async fn new(dir: &Path) -> Self {
        let (xfs, ext4) = (Filesystem::xfs("ubda", PRJQUOTA), Filesystem::ext4("ubdb", PRJQUOTA));
        for n in 1..=SHARES {
            let fs = if n.is_multiple_of(2) { &xfs } else { &ext4 };
            fs.create_share(&share(n), project(n), MIB);
        }
        let mut node = Self { xfs, ext4, dir: dir.to_owned(), left: Vec::new() };
        let mut daemon = Daemon::start(dir, &node.config(1000)).await;
        let clients = daemon.clients().await;
        for round in 1..=OLD as u64 / u64::from(SHARES) {
            for job in ask(&clients, 0, MIB + round * 4096).await {
                clients.end_of(&job.unwrap().job_id).await;
            }
        }
        // Jobs are in the middle of their work when growd is killed.
        let slow = daemon.inject("utimensat:delay_enter=20000000").await;
        node.left = ask(&clients, 1, LEFT).await.into_iter().map(Result::unwrap).collect();
        daemon.kill();
        drop(slow);
        Daemon::configure(dir, &node.config(KEPT));
        lab::run("mv", &[&node.path("state"), &node.path("template")]);
        node
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir.display())
    }

    fn config(&self, kept: usize) -> String {
        let pool = |name: &str, fs: &Filesystem| daemon::pool(fs, "overcommit = 100.0").replace("home", name);
        format!("{}{}[retention]\njobs = {kept}\n", pool("xfs", &self.xfs), pool("ext4", &self.ext4))
    }

    fn fs(&self, n: u32) -> &Filesystem {
        if n.is_multiple_of(2) { &self.xfs } else { &self.ext4 }
    }

    fn limit(&self, n: u32) -> u64 {
        self.fs(n).hard_limit(project(n))
    }

    /// As it was when the earlier growd was killed, before any of its jobs had begun.
    fn reset(&self) {
        let (state, template) = (self.path("state"), self.path("template"));
        lab::run("sh", &["-ec", &format!("rm -rf {state}; cp -a {template} {state}")]);
        for n in 1..=SHARES {
            self.fs(n).set_limits(project(n), BEGIN, BEGIN);
        }
    }

    /// A life that ends at its nth moment, or with a drain when it has fewer.
    async fn live(&self, nth: Option<usize>) -> (End, BTreeMap<&'static str, usize>, Told) {
        let config = self.path("growd.toml");
        let program = Path::new(env!("CARGO_BIN_EXE_growd"));
        let mut traced = traced::start(program, &["run", "--config", &config], &CALLS, nth);
        let mut told = Told::default();
        let endpoint = format!("unix:{}", self.path("sock"));
        let (end, counts) = tokio::select! {
            end = &mut traced.end => end.unwrap(),
            clients = Clients::when_ready(&endpoint) => {
                self.load(&clients, &mut told).await;
                // It may be dead already.
                let _ = kill(traced.pid, Signal::SIGTERM);
                traced.end.await.unwrap()
            }
        };
        (end, counts, told)
    }

    /// Follows the jobs that were left, then extends all shares twice, or as far as growd lives. The last jobs are under
    /// way when this returns.
    async fn load(&self, clients: &Clients, told: &mut Told) {
        for job in &self.left {
            let Some(ended) = clients.end_or_death(&job.job_id).await else { return };
            told.sizes.insert(ended.share_id, ended.size_after_bytes.unwrap());
        }
        for (wave, size) in [(2, FIRST), (3, SECOND)] {
            let answers = ask(clients, wave, size).await.into_iter();
            let accepted: Vec<Job> = answers.filter_map(|answer| unless_killed(answer, &[])).collect();
            told.accepted.extend(accepted.clone());
            if size == SECOND || accepted.len() < SHARES as usize {
                return;
            }
            for job in accepted {
                let Some(ended) = clients.end_or_death(&job.job_id).await else { return };
                told.sizes.insert(ended.share_id, ended.size_after_bytes.unwrap());
            }
        }
    }

    /// What a new growd makes of it.
    async fn check(&self, told: &Told, when: &str) -> u64 {
        for n in 1..=SHARES {
            let (limit, least) = (self.limit(n), told.sizes.get(&share(n)).copied().unwrap_or(BEGIN));
            assert!(
                [BEGIN, LEFT, FIRST, SECOND].contains(&limit) && limit >= least,
                "{when}: {limit}, {least} was told"
            );
        }
        let daemon = Daemon::start(&self.dir, &self.config(KEPT)).await;
        let clients = daemon.clients().await;
        let mut resumed = 0;
        for job in self.left.iter().chain(&told.accepted) {
            let ended = clients.end_of(&job.job_id).await;
            assert_eq!((ended.state(), asked(&ended)), (JobState::Succeeded, asked(job)), "{when}");
            assert!(ended.revision >= job.revision, "{when}: {job:?} {ended:?}");
            resumed += u64::from(ended.attempt > job.attempt);
        }
        // Whoever had no answer asks again with the same id, and so does whoever had one.
        for (wave, size) in [(1, LEFT), (2, FIRST), (3, SECOND)] {
            for job in ask(&clients, wave, size).await {
                let job = job.unwrap_or_else(|refusal| panic!("{when}: {refusal}"));
                let known = self.left.iter().chain(&told.accepted).find(|known| known.request_id == job.request_id);
                assert!(known.is_none_or(|known| known.job_id == job.job_id), "{when}: {known:?} {job:?}");
                assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded, "{when}");
            }
        }
        for n in 1..=SHARES {
            assert_eq!((self.limit(n), clients.share(&share(n)).await.size_bytes), (SECOND, Some(SECOND)), "{when}");
        }
        let listed = clients.list_jobs(ListJobsRequest { page_size: 1000, ..Default::default() }).await.jobs;
        assert!(listed.windows(2).all(|pair| pair[0].job_id > pair[1].job_id), "{when}: newest first");
        assert!(listed.len() >= 3 * SHARES as usize && listed.len() <= KEPT + 101, "{when}: {} jobs", listed.len());
        assert_eq!(clients.diagnose().await.findings, [], "{when}");
        resumed
    }
}

/// Extends all shares at once; a wave has the same request ids whenever it comes, except for wave 0.
async fn ask(clients: &Clients, wave: u64, size: u64) -> Vec<Result<Job, tonic::Status>> {
    let ask = |n: u32| {
        let id = uuid::Uuid::from_u128(u128::from(wave) << 64 | u128::from(n)).to_string();
        clients.ask(ExtendShareRequest { request_id: (wave > 0).then_some(id), ..request(&share(n), size) })
    };
    join_all((1..=SHARES).map(ask)).await
}

/// What was asked for, and when.
fn asked(job: &Job) -> impl PartialEq + std::fmt::Debug + use<> {
    let ids = (job.job_id.clone(), job.share_id.clone(), job.request_id.clone());
    (ids, job.size_before_bytes, job.requested_size_bytes, job.requested_by.clone(), job.created_at)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_moment_of_a_life_nothing_is_lost() {
    lab::require();
    let mut random = Random::from_environment();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(dir.path()).await;
    node.reset();
    let (end, counts, told) = node.live(None).await;
    assert!(matches!(end, End::Exited(0)), "{end:?}");
    assert_eq!(told.accepted.len(), 2 * SHARES as usize, "both waves are accepted when nothing kills growd");
    node.check(&told, "not killed").await;
    let moments: usize = counts.values().sum();
    println!("a life has {moments} moments: {counts:?}");

    let rounds = rounds(USUAL_ROUNDS).min(moments);
    let (mut killed, mut resumed) = (BTreeMap::new(), 0);
    for round in 0..rounds {
        let (from, to) = (round * moments / rounds, (round + 1) * moments / rounds);
        let nth = 1 + from + random.below(to - from);
        node.reset();
        let (end, _, told) = node.live(Some(nth)).await;
        let when = format!("moment {nth}: {end:?}");
        match end {
            End::Killed(call) => *killed.entry(call).or_insert(0) += 1,
            // A life that came to its end before that many calls.
            End::Exited(code) => assert_eq!(code, 0, "{when}"),
        }
        resumed += node.check(&told, &when).await;
        println!("round {round}, {when}: nothing lost");
    }
    let kills: usize = killed.values().sum();
    println!("{kills} kills, {resumed} times an accepted job was unfinished; nothing was lost: {killed:?}");
    assert!(2 * kills >= rounds && resumed > 0, "too few to show anything");
}

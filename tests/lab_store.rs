//! The store on real file systems: which flushes reach the kernel, and what a full disk does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/seed.rs"]
mod seed;

mod store;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Clients, Daemon, assert_refused, create_shares, eventually, pool, share};
use growd::model::{Job, JobId, JobState as State};
use growd::store::StoreError;
use growd::wire::proto::{GetJobRequest, JobState};
use seed::rounds;
use store::{KEEP_ALL, PATIENCE, Running, job, open, until};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, lab};
use tonic_health::pb::health_check_response::ServingStatus;

const MIB: u64 = 1 << 20;

/// A program under strace, with what moves data over sockets and what flushes files in the trace. The program itself is
/// the child, so that signals reach it.
fn traced(program: &str, trace: &Path) -> Command {
    let mut command = Command::new("strace");
    let calls = "trace=sync_file_range,fdatasync,fsync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";
    command.args(["-D", "-f", "-y", "-s", "65536", "-e", calls, "-o"]).arg(trace).arg(program).stdin(Stdio::null());
    command
}

/// The whole trace of a program that has ended. strace writes its last lines a moment after.
async fn complete(trace: &Path, ended: u32) -> String {
    let ended = ended.to_string();
    let ends = |line: &str| line.split_once(' ').is_some_and(|(pid, rest)| pid == ended && rest.contains("+++ "));
    let read = || String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned();
    until("the trace ends", || read().lines().any(ends)).await;
    read()
}

fn sync_file_range_calls(trace: &str) -> usize {
    trace.lines().filter(|line| line.contains(" sync_file_range(")).count()
}

/// The first line from `from` on that has a text in the data it moved, not in the name of a file.
fn moved(lines: &[&str], from: usize, text: &str) -> usize {
    let has = |line: &&str| line.split_once('"').is_some_and(|(_, data)| data.contains(text));
    let found = lines[from..].iter().position(has);
    from + found.unwrap_or_else(|| panic!("{text} does not go over the socket: the trace shows nothing"))
}

/// Where in a trace an fdatasync of a file has come back with success. strace parts a call in two lines when another
/// thread's comes in between.
fn flushes(lines: &[&str], file: &Path) -> Vec<usize> {
    let file = format!("<{}>", file.display());
    let mut under_way = HashMap::new();
    let mut done = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let (pid, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        if call.starts_with("fdatasync(") {
            under_way.insert(pid, call.contains(&file));
        }
        let ends = call.starts_with("fdatasync(") || call.starts_with("<... fdatasync resumed>");
        if ends && call.ends_with("= 0") && under_way.remove(pid) == Some(true) {
            done.push(at);
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extend_is_answered_after_fdatasync_and_no_sync_file_range_reaches_the_kernel() {
    lab::require();
    let pool = Filesystem::xfs("ubda", "prjquota");
    let disk = Filesystem::ext4("ubdd", "");
    let dir = disk.path();
    let share = &daemon::share(1);
    pool.create_share(share, 101, 8 * MIB);
    let config = Daemon::configure(dir, &daemon::pool(&pool, ""));
    let traces = tempfile::tempdir().unwrap();
    let trace = traces.path().join("growd");
    let child = traced(env!("CARGO_BIN_EXE_growd"), &trace).args(["run", "--config"]).arg(config).spawn();
    let mut growd = Running(child.unwrap());
    let clients = Clients::when_ready(&format!("unix:{}/sock", dir.display())).await;
    let accepted = clients.extend(share, 16 * MIB).await.unwrap();
    assert_eq!(clients.end_of(&accepted.job_id).await.state(), JobState::Succeeded);
    assert_eq!(pool.hard_limit(101), 16 * MIB);
    assert!(growd.terminate().success());

    let trace = complete(&trace, growd.0.id()).await;
    let lines: Vec<&str> = trace.lines().collect();
    let asked = moved(&lines, 0, share);
    let answered = moved(&lines, asked, &accepted.job_id);
    let flushes = flushes(&lines, &dir.join("state/jobs/db"));
    let before_the_answer = flushes.iter().filter(|at| (asked..answered).contains(at)).count();
    assert!(before_the_answer >= 1, "asked in line {asked}, answered in {answered}, flushed in {flushes:?}");
    assert_eq!(sync_file_range_calls(&trace), 0);
    println!("{} flushes of the store, {before_the_answer} between the request and its answer", flushes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_file_range_that_reaches_the_kernel_would_be_seen() {
    lab::require();
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut other = traced("xfs_io", &trace);
    other.args(["-f", "-c", "pwrite 0 4096", "-c", "sync_range -w 0 4096"]).arg(dir.path().join("file"));
    let mut other = Running(other.spawn().unwrap());
    assert!(other.ended(PATIENCE).success());
    assert_eq!(sync_file_range_calls(&complete(&trace, other.0.id()).await), 1);
}

/// Takes all space of a file system; removing the files gives it back.
fn take_all_space(dir: &Path) -> Vec<PathBuf> {
    let mut fillers = Vec::new();
    let mut size = 1_u64 << 30;
    while size >= 4096 {
        let filler = dir.join(format!("filler-{}", fillers.len()));
        let taken = Command::new("fallocate").args(["-l", &size.to_string()]).arg(&filler).output().unwrap();
        if !taken.status.success() {
            size /= 2;
        }
        if filler.exists() {
            fillers.push(filler);
        }
    }
    fillers
}

async fn survives_a_full_disk(fs: Filesystem) {
    let state = fs.path().join("state");
    let (store, _) = open(&state, KEEP_ALL).unwrap();
    let mut acknowledged: Vec<Job> = (0..20).map(|_| job(State::Queued)).collect();
    store.commit(acknowledged.clone()).await.unwrap();
    let mut refused: Vec<Job> = Vec::new();
    let rounds = rounds(2);
    for round in 1..=rounds {
        let fillers = take_all_space(fs.path());
        // What the database has allocated already takes some more.
        loop {
            assert!(acknowledged.len() < 50_000, "the disk does not become full");
            // Of different numbers: a node of the tree may have just become too large with the last of them.
            let jobs: Vec<Job> = (0..=acknowledged.len() % 40).map(|_| job(State::Queued)).collect();
            match store.commit(jobs.clone()).await {
                Ok(()) => acknowledged.extend(jobs),
                Err(error) => {
                    assert!(matches!(error, StoreError::Write { .. }), "{error}");
                    refused.extend(jobs);
                    break;
                }
            }
        }
        assert!(store.failure().borrow().is_some());
        let again = job(State::Queued);
        store.commit(vec![again.clone()]).await.unwrap_err();
        refused.push(again);
        assert_eq!(store.kept(), acknowledged.len());
        for job in &acknowledged {
            assert_eq!(store.get(job.id).unwrap().as_ref(), Some(job), "a read failed while the disk was full");
        }
        println!("filling {round}: {} jobs acknowledged, {} refused", acknowledged.len(), refused.len());
        fillers.iter().for_each(|filler| std::fs::remove_file(filler).unwrap());
        until("the store can be written again", || store.failure().borrow().is_none()).await;
        if round < rounds {
            let after = job(State::Queued);
            store.commit(vec![after.clone()]).await.unwrap();
            acknowledged.push(after);
        }
    }
    // Nothing was committed since the last recovery: its commit numbers must not look as if they were on disk.
    store.close().await;
    drop(store);
    let (store, unfinished) = open(&state, KEEP_ALL).unwrap();
    acknowledged.sort_unstable_by_key(|job| job.id);
    assert!(unfinished == acknowledged, "{} jobs came back of {}", unfinished.len(), acknowledged.len());
    assert!(refused.iter().all(|job| store.get(job.id).unwrap().is_none()));
    store.close().await;
}

async fn starts_once_there_is_room(fs: Filesystem) {
    let state = fs.path().join("state");
    let mut jobs: Vec<Job> = (0..20).map(|_| job(State::Queued)).collect();
    jobs.sort_unstable_by_key(|job| job.id);
    let (store, _) = open(&state, KEEP_ALL).unwrap();
    store.commit(jobs.clone()).await.unwrap();
    store.close().await;
    drop(store);
    let fillers = take_all_space(fs.path());
    for _ in 0..3 {
        let Err(refused) = open(&state, KEEP_ALL) else { panic!("there is room: this shows nothing") };
        // From the second on it is the copy of what the first has begun to change that there is no room for.
        let told = format!("{:#}", anyhow::Error::from(refused));
        println!("{told}");
        assert!(told.contains("No space left") || told.contains("StorageFull"), "{told}");
        assert!(!told.contains("damaged") && !told.contains("set-aside"), "{told}");
    }
    fillers.iter().for_each(|filler| std::fs::remove_file(filler).unwrap());
    let (store, unfinished) = open(&state, KEEP_ALL).unwrap();
    assert!(unfinished == jobs, "{} jobs came back of {}", unfinished.len(), jobs.len());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk_says_so_and_the_next_one_has_every_job() {
    lab::require();
    starts_once_there_is_room(Filesystem::xfs("ubdb", "")).await;
    starts_once_there_is_room(Filesystem::ext4("ubdc", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_xfs_loses_nothing_that_was_acknowledged() {
    lab::require();
    survives_a_full_disk(Filesystem::xfs("ubdb", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ext4_loses_nothing_that_was_acknowledged() {
    lab::require();
    survives_a_full_disk(Filesystem::ext4("ubdc", "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_what_must_be_read_waits_for_a_disk_that_hangs_and_nobody_else_does() {
    lab::require();
    let shares = Filesystem::xfs("ubda", "prjquota");
    create_shares(&shares, 1, MIB);
    let disk = MappedDisk::over("ubdd");
    let home = Filesystem::ext4(&disk.path(), "");
    let (state, away) = (home.path().join("state"), home.path().join("away"));
    // Far more than one page of sled's.
    let jobs: Vec<Job> = (0..2000).map(|_| job(State::Succeeded)).collect();
    let (store, _) = open(&state, KEEP_ALL).unwrap();
    store.commit(jobs.clone()).await.unwrap();
    store.close().await;
    drop(store);
    let workers = [("TOKIO_WORKER_THREADS", "2")];
    let mut growd = Daemon::start_with(home.path(), &pool(&shares, ""), &workers).await;
    let clients = growd.clients().await;
    let last = clients.extended(1, 2 * MIB).await;
    // A start reads everything. What growd opens again while it runs it reads when it is asked for.
    std::fs::rename(&state, &away).unwrap();
    assert_refused(&clients.extend(&share(1), 3 * MIB).await.unwrap_err(), "STORE_UNAVAILABLE");
    std::fs::rename(&away, &state).unwrap();
    eventually(|| clients.healths(), |healths| healths.iter().all(|health| *health == ServingStatus::Serving)).await;
    lab::run("sync", &[]);
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();

    let hang = disk.hang();
    let ask = |id: JobId| {
        let mut jobs = clients.jobs.clone();
        tokio::spawn(async move { jobs.get_job(GetJobRequest { job_id: id.to_string() }).await })
    };
    // Not all of them in the pages that sled needed when it opened.
    let asked: Vec<JobId> = jobs.iter().step_by(200).map(|job| job.id).collect();
    let mut waits = Vec::new();
    for id in &asked {
        // One at a time: were a thread of the runtime held up by the first, nothing else would wake another.
        waits.push(ask(*id));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let others = async { (clients.healths().await, clients.share(&share(1)).await, clients.node().await) };
    let (_, share, _) =
        tokio::time::timeout(PATIENCE / 4, others).await.expect("they wait for a disk that is not theirs");
    assert_eq!((share.size_bytes, share.last_job_id), (Some(2 * MIB), last.job_id));
    assert!(waits.iter().any(|wait| !wait.is_finished()), "this shows nothing: all was in memory");
    drop(hang);
    for (wait, id) in waits.into_iter().zip(asked) {
        assert_eq!(wait.await.unwrap().unwrap().into_inner().job_id, id.to_string());
    }
    assert!(growd.terminate());
    drop(home);
}

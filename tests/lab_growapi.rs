//! The whole way on a lab node: HTTP to the real growapi, gRPC to the real growd, and a quota that the kernel holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/front.rs"]
mod front;

use std::path::Path;

use daemon::{Daemon, create_shares, pool, project, request, share};
use front::{Answer, Front, JSON, NOBODY, node, until};
use growd::wire::proto::{ExtendShareRequest, ListJobsRequest};
use nix::sys::signal::Signal;
use support::mapped_disk::{Hang, MappedDisk};
use support::{Filesystem, PRJQUOTA, lab};

const GIB: u64 = 1 << 30;
/// Limits may promise more than the small disks of the lab have.
const GENEROUS: &str = "overcommit = 1000";

fn front(dir: &Path, daemons: &[&Daemon]) -> Front {
    let nodes = daemons.iter().enumerate();
    let nodes: String = nodes.map(|(n, daemon)| node(&format!("n{n}"), &daemon.dir.join("sock"))).collect();
    Front::start(dir, &format!("{NOBODY}{nodes}"))
}

/// Lets the disk hang, as [`daemon::Clients::hang`] does, below shares that are larger than its are.
async fn hang<'a>(daemon: &Daemon, disk: &'a MappedDisk) -> Hang<'a> {
    let check = ExtendShareRequest { validate_only: true, ..request(&share(1), 8 * GIB) };
    daemon.clients().await.ask(check).await.unwrap();
    disk.hang()
}

fn status(front: &Front, n: u32) -> (String, u64) {
    let share = front.share(&share(n));
    (share["status"].as_str().unwrap().to_owned(), share["size"].as_u64().unwrap())
}

/// Follows the details, as clients do, until the share is available with the size; nothing else may be seen before than
/// the old size while it is extending.
fn becomes(front: &Front, n: u32, old: u64, new: u64) {
    until(
        || {
            let seen = status(front, n);
            assert!([("extending".to_owned(), old), ("available".to_owned(), new)].contains(&seen), "{seen:?}");
            seen
        },
        |seen| seen.0 == "available",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extend_is_accepted_carried_out_and_told() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 3, 2 * GIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, GENEROUS)).await;
    let mut front = front(dir.path(), &[&daemon]);

    front.extend(&share(1), 3).accepted();
    becomes(&front, 1, 2, 3);
    assert_eq!(fs.hard_limit(project(1)), 3 * GIB);
    for (size, extended) in [("3", 3), ("2", 2), ("0", 0)] {
        let answer = front.act(&share(1), &format!("{{\"extend\": {{\"new_size\": {size}}}}}"));
        let problem = "New size for extend must be greater than current size.";
        let message = format!("Invalid input received: {problem} (current: 3, extended: {extended}).");
        assert_eq!(answer.refused(400), message);
    }
    front.extend(&share(9), 3).refused(404);
    front.get(&format!("/v2/p/shares/{}", share(9))).refused(404);
    // What is in use, and no more than that, stands in the way of a smaller size.
    support::lab::run("fallocate", &["-l", "1500M", fs.path().join(share(1)).join("data").to_str().unwrap()]);
    let shrink = |size: u64| front.act(&share(1), &format!("{{\"os-shrink\": {{\"new_size\": {size}}}}}"));
    let problem = "New size for shrink must be less than current size and greater than 0";
    for size in [3, 4, 0] {
        let message = format!("Invalid input received: {problem} (current: 3, new: {size}).");
        assert_eq!(shrink(size).refused(400), message);
    }
    assert!(shrink(1).refused(409).contains("cannot be made 1GiB: 1500MiB of it are in use"));
    assert_eq!(status(&front, 1), ("available".to_owned(), 3));
    shrink(2).accepted();
    let shrunk = until(|| status(&front, 1), |seen| seen.0 != "shrinking");
    assert_eq!((shrunk, fs.hard_limit(project(1))), (("available".to_owned(), 2), 2 * GIB));
    front.act(&share(9), "{\"shrink\": {\"new_size\": 1}}").refused(404);
    // A size between two is rounded down, and bytes are compared.
    daemon.clients().await.extend(&share(2), 2 * GIB + 4096).await.unwrap();
    becomes(&front, 2, 2, 2);
    assert!(front.extend(&share(2), 2).refused(400).contains("(current: 2, extended: 2)"));
    front.extend(&share(2), 3).accepted();

    // The largest size that the API knows can be asked for.
    let refusal = front.extend(&share(3), 2_147_483_647).refused(409);
    assert!(refusal.contains("pool home cannot give 2147483645GiB"), "{refusal}");

    let listed = front.get("/v2/p/shares/detail?limit=2").json();
    assert_eq!(listed["shares"][0]["id"], share(1));
    let next = listed["shares_links"][0]["href"].as_str().unwrap();
    let next = front.get(next.strip_prefix(&format!("http://{}", front.address)).unwrap()).json();
    assert_eq!((&next["shares"][0]["id"], next["shares"].as_array().unwrap().len()), (&share(3).into(), 1));
    assert!(front.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_extends_at_once_one_is_accepted_and_a_repetition_is_no_second_job() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 3, 2 * GIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, GENEROUS)).await;
    let clients = daemon.clients().await;
    let mut first = front(dir.path(), &[&daemon]);
    let other = tempfile::tempdir().unwrap();
    let second = front(other.path(), &[&daemon]);

    let hang = hang(&daemon, &disk).await;
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let fronts = [&first, &second].into_iter().cycle().take(8);
        let calls: Vec<_> = fronts.map(|front| scope.spawn(move || front.extend(&share(1), 3))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(202), count(409)), (1, 7), "{answers:?}");
    answers.iter().filter(|answer| answer.status == 409).for_each(|answer| drop(answer.refused(409)));

    // The caller does not hear the answer, and asks again: through another growapi, and after a restart of the first.
    let path = format!("/v2/p/shares/{}/action", share(2));
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let id = ("X-OpenStack-Request-ID", "req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11");
    let headers = [JSON, id, ("traceparent", traceparent)];
    let body = b"{\"os-extend\": {\"new_size\": 3}}";
    drop(first.send("POST", &path, &headers, body));
    second.ask("POST", &path, &headers, body).accepted();
    assert!(first.terminate());
    let first = front(dir.path(), &[&daemon]);
    first.ask("POST", &path, &headers, body).accepted();
    assert_eq!((status(&first, 1), status(&second, 2)), (("extending".to_owned(), 2), ("extending".to_owned(), 2)));
    drop(hang);
    for n in [1, 2] {
        becomes(&first, n, 2, 3);
        assert_eq!(fs.hard_limit(project(n)), 3 * GIB);
    }
    first.ask("POST", &path, &headers, body).accepted();
    let jobs = clients.list_jobs(ListJobsRequest::default()).await.jobs;
    assert_eq!(jobs.len(), 2);
    let repeated = jobs.iter().find(|job| job.share_id == share(2)).unwrap();
    assert_eq!(repeated.request_id, "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11");
    assert_eq!((repeated.project_id.as_str(), repeated.traceparent.as_str()), ("p", traceparent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_extend_is_told_and_the_share_can_be_extended_again() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    create_shares(&fs, 1, 2 * GIB);
    let daemon = Daemon::start(dir.path(), &pool(&fs, GENEROUS)).await;
    let front = front(dir.path(), &[&daemon]);

    let broken = daemon.inject("quotactl_fd:error=EIO").await;
    // It may be anybody's, for all that growapi knows, or nobody's.
    let cannot_tell = "The storage node cannot tell of the share.";
    assert_eq!(front.extend(&share(1), 3).refused(503), cannot_tell);
    drop(broken);
    assert_eq!(status(&front, 1), ("available".to_owned(), 2));
    let broken = daemon.inject("quotactl_fd:error=EIO").await;
    assert_ne!(front.extend(&share(1), 3).refused(500), cannot_tell);
    drop(broken);
    let broken = daemon.inject("fsync:error=EIO").await;
    front.extend(&share(1), 3).accepted();
    let failed = until(|| front.share(&share(1)), |share| share["status"] != "extending");
    assert_eq!(failed["status"], "extending_error");
    let told = failed["error_message"].as_str().unwrap();
    assert!(told.starts_with("The storage node of the share has met an error. Its operators find which by the job 0"));
    drop(broken);
    front.extend(&share(1), 4).accepted();
    until(|| status(&front, 1), |seen| *seen == ("available".to_owned(), 4));
    assert_eq!(fs.hard_limit(project(1)), 4 * GIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_trouble_answers_for_its_own_shares_only() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let others = Filesystem::xfs("ubdb", PRJQUOTA);
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    create_shares(&fs, 2, GIB);
    others.create_shares(&[(share(11), project(11)), (share(12), project(12))], GIB);
    let limited = format!("max_active_jobs = 1\n{}", pool(&fs, GENEROUS));
    let mut daemon = Daemon::start(dir.path(), &limited).await;
    let other = Daemon::start(other_dir.path(), &pool(&others, "overcommit = 2")).await;
    let front = front(dir.path(), &[&daemon, &other]);

    // Disks of the lab have 4 GiB.
    assert!(front.extend(&share(11), 100).refused(409).contains("pool home cannot give 99GiB"));
    others.mount_again("pqnoenforce");
    assert!(front.extend(&share(11), 2).refused(409).contains("is not enforced"));
    others.mount_again(PRJQUOTA);

    let hang = hang(&daemon, &disk).await;
    front.extend(&share(1), 2).accepted();
    let full = front.extend(&share(2), 2);
    full.refused(503);
    assert!(full.header("retry-after").is_some(), "{full:?}");
    daemon.begin_to_terminate();
    until(|| front.extend(&share(2), 2).refused(503), |message| message.contains("shutting down"));
    front.extend(&share(11), 2).accepted();
    drop(hang);
    assert!(daemon.ended_in_order());
    let down = front.get(&format!("/v2/p/shares/{}", share(1)));
    down.refused(503);
    assert!(down.header("retry-after").is_some(), "{down:?}");
    front.extend(&share(12), 2).accepted();

    daemon.start_again().await;
    until(|| front.get(&format!("/v2/p/shares/{}", share(1))).status, |status| *status == 200);
    becomes(&front, 1, 1, 2);
    daemon.signal(Signal::SIGSTOP);
    front.get(&format!("/v2/p/shares/{}", share(1))).refused(504);
    front.extend(&share(1), 3).refused(504);
    becomes(&front, 12, 1, 2);
    daemon.signal(Signal::SIGCONT);
    // What was asked while the node was stopped may be carried out, or be no job: its caller was told neither.
    until(|| front.extend(&share(1), 4).status, |status| *status == 202);
    until(|| status(&front, 1), |seen| *seen == ("available".to_owned(), 4));
}

//! Shares whose places say their project, on a real file system: the real growd, and the real growapi in front of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

mod support;

#[path = "support/daemon.rs"]
mod daemon;

#[path = "support/front.rs"]
mod front;

use std::os::unix::fs::symlink;

use daemon::{Clients, Daemon, assert_refused, project, request, share, shrink_request};
use front::{Answer, Front, JSON, NOBODY, node, until};
use growd::wire::proto::{ExtendShareRequest, JobState, ListSharesRequest, ShrinkShareRequest};
use support::mapped_disk::MappedDisk;
use support::{Filesystem, Kind, PRJQUOTA, lab};

const GIB: u64 = 1 << 30;

/// Projects "a" and "b" with the shares 1 and 2, and 3; in the way of both lie things that are no projects.
fn with_projects(fs: &Filesystem) {
    for (label, n) in [("a", 1), ("a", 2), ("b", 3)] {
        std::fs::create_dir_all(fs.path().join(label)).unwrap();
        fs.create_share(&format!("{label}/{}", share(n)), project(n), 2 * GIB);
    }
    std::fs::create_dir_all(fs.path().join(".trash").join(share(8))).unwrap();
    std::fs::create_dir(fs.path().join("legacy+")).unwrap();
    fs.create_share("legacy+/finance", project(4), 2 * GIB);
}

fn pool(fs: &Filesystem) -> String {
    format!(
        "[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\npath = \"{0}/{{project_id}}/{{share_id}}\"\n\
         overcommit = 1000\n[[share]]\nid = \"{1}\"\npool = \"home\"\npath = \"{0}/legacy+/finance\"\n",
        fs.path().display(),
        share(4)
    )
}

/// All shares of a list, two to a page, with what their places say.
async fn listed(clients: &Clients, of: Option<&str>) -> Vec<(String, String)> {
    let request = ListSharesRequest { page_size: 2, project_id: of.map(str::to_owned), ..Default::default() };
    clients.list_all_shares(request).await.into_iter().map(|share| (share.share_id, share.project_id)).collect()
}

async fn places_say_whose_a_share_is(kind: Kind, disk: &str) {
    let fs = Filesystem::make(kind, disk, PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    with_projects(&fs);
    let daemon = Daemon::start(dir.path(), &pool(&fs)).await;
    let clients = daemon.clients().await;
    let of = |n, label: &str| (share(n), label.to_owned());
    assert_eq!(listed(&clients, None).await, [of(1, "a"), of(2, "a"), of(3, "b"), of(4, "")]);
    assert_eq!(listed(&clients, Some("a")).await, [of(1, "a"), of(2, "a")]);
    assert_eq!(listed(&clients, Some("")).await, [of(4, "")]);
    assert_eq!(listed(&clients, Some("c")).await, []);
    assert_eq!(listed(&clients, Some("../a")).await, []);
    let told = clients.share(&share(3)).await;
    assert_eq!((told.project_id.as_str(), told.findings.len()), ("b", 0), "{told:?}");
    assert!(told.location.ends_with(&format!("/b/{}", share(3))), "{}", told.location);
    assert_eq!(clients.pool("home").await.shares, 4);

    // For another project the share is not there.
    let extend = |n, label: &str, size| ExtendShareRequest { project_id: label.to_owned(), ..request(&share(n), size) };
    let shrink = |n, label: &str, size| {
        let project_id = label.to_owned();
        ShrinkShareRequest { project_id, ..shrink_request(&share(n), size) }
    };
    assert_refused(&clients.ask(extend(3, "a", 3 * GIB)).await.unwrap_err(), "SHARE_NOT_FOUND");
    assert_refused(&clients.ask_to_shrink(shrink(3, "a", GIB)).await.unwrap_err(), "SHARE_NOT_FOUND");
    assert_eq!(fs.hard_limit(project(3)), 2 * GIB);
    for (n, label) in [(3, "b"), (2, ""), (4, "anybody")] {
        let job = clients.ask(extend(n, label, 3 * GIB)).await.unwrap();
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
        assert_eq!(fs.hard_limit(project(n)), 3 * GIB);
    }

    // Nothing that a tenant could put there leads elsewhere.
    let outside = tempfile::Builder::new().prefix("outside-").tempdir_in("/mnt").unwrap();
    std::fs::create_dir(outside.path().join(share(7))).unwrap();
    symlink(outside.path(), fs.path().join("c")).unwrap();
    symlink("a", fs.path().join("d")).unwrap();
    symlink(format!("../a/{}", share(1)), fs.path().join("b").join(share(6))).unwrap();
    assert_refused(&clients.extend(&share(7), 3 * GIB).await.unwrap_err(), "SHARE_NOT_FOUND");
    assert_refused(&clients.extend(&share(6), 3 * GIB).await.unwrap_err(), "UNSUPPORTED");
    assert_eq!(listed(&clients, Some("c")).await, []);
    assert_eq!(listed(&clients, Some("d")).await, []);

    // It moves, is there twice, and shares its quota with one of another project.
    let place = |label: &str, n| fs.path().join(label).join(share(n));
    std::fs::create_dir(fs.path().join("e")).unwrap();
    std::fs::create_dir(place("e", 3)).unwrap();
    assert_eq!(clients.share(&share(3)).await.project_id, "b");
    std::fs::remove_dir(place("b", 3)).unwrap();
    assert_eq!(clients.share(&share(3)).await.project_id, "e");
    std::fs::create_dir(place("e", 1)).unwrap();
    listed(&clients, None).await;
    let told = clients.diagnose().await.findings;
    let told = told.iter().find(|finding| finding.share_id == share(1)).unwrap();
    let (twice, heal) = (" as well is not supported here", "take it out of one of them,");
    assert!(told.message.ends_with(twice) && told.remedy.starts_with(heal), "{told:?}");
    let refusal = clients.extend(&share(1), 3 * GIB).await.unwrap_err();
    assert_refused(&refusal, "UNSUPPORTED");
    assert!(daemon::metadata(&refusal, "other_place").ends_with(&share(1)), "{refusal:?}");
    std::fs::remove_dir(place("e", 1)).unwrap();
    fs.set_project(&place("e", 3), project(1));
    let fresh = tempfile::tempdir().unwrap();
    let other = Daemon::start(fresh.path(), &pool(&fs)).await;
    let refusal = other.clients().await.extend(&share(1), 3 * GIB).await.unwrap_err();
    assert_refused(&refusal, "PROJECT_ID_SHARED");
    assert!(daemon::metadata(&refusal, "other_location").ends_with(&format!("/e/{}", share(3))), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_project_a_share_with_a_job_is_not_there_either() {
    lab::require();
    let disk = MappedDisk::over("ubda");
    let fs = Filesystem::xfs(&disk.path(), PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    with_projects(&fs);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs)).await;
    let clients = daemon.clients().await;
    let id = Some(uuid::Uuid::from_u128(7).to_string());
    let extend = |n, label: &str| ExtendShareRequest { project_id: label.to_owned(), ..request(&share(n), 3 * GIB) };
    // What growd sums once a minute shall not wait for the disk.
    clients.ask(ExtendShareRequest { validate_only: true, ..extend(1, "a") }).await.unwrap();
    let hang = disk.hang();
    // One by the project itself, one by somebody who names none.
    let with_id = ExtendShareRequest { request_id: id.clone(), ..extend(1, "a") };
    let own = clients.ask(with_id.clone()).await.unwrap();
    let others = clients.ask(extend(2, "")).await.unwrap();
    for (n, job) in [(1, &own), (2, &others)] {
        let check = ExtendShareRequest { validate_only: true, ..extend(n, "b") };
        let with_its_id = ExtendShareRequest { request_id: id.clone(), ..extend(n, "b") };
        for request in [extend(n, "b"), check, with_its_id] {
            assert_refused(&clients.ask(request).await.unwrap_err(), "SHARE_NOT_FOUND");
        }
        let shrink = ShrinkShareRequest { project_id: "b".to_owned(), ..shrink_request(&share(n), GIB) };
        assert_refused(&clients.ask_to_shrink(shrink).await.unwrap_err(), "SHARE_NOT_FOUND");
        for label in ["a", ""] {
            let busy = clients.ask(extend(n, label)).await.unwrap_err();
            assert_refused(&busy, "SHARE_BUSY");
            assert_eq!(daemon::metadata(&busy, "job_id"), job.job_id);
        }
    }
    assert_eq!(clients.ask(with_id.clone()).await.unwrap().job_id, own.job_id);
    for reused in [
        ExtendShareRequest { project_id: String::new(), ..with_id.clone() },
        ExtendShareRequest { request_id: id, ..extend(3, "b") },
    ] {
        assert_refused(&clients.ask(reused).await.unwrap_err(), "REQUEST_ID_REUSED");
    }
    drop(hang);
    for job in [own, others] {
        assert_eq!(clients.end_of(&job.job_id).await.state(), JobState::Succeeded);
    }
    assert!(daemon.terminate());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_xfs_and_ext4() {
    lab::require();
    places_say_whose_a_share_is(Kind::Xfs, "ubda").await;
    places_say_whose_a_share_is(Kind::Ext4, "ubdb").await;
}

fn act(front: &Front, label: &str, n: u32, body: &str) -> Answer {
    front.ask("POST", &format!("/v2/{label}/shares/{}/action", share(n)), &[JSON], body.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_and_change_what_is_theirs() {
    lab::require();
    let fs = Filesystem::xfs("ubda", PRJQUOTA);
    let dir = tempfile::tempdir().unwrap();
    with_projects(&fs);
    let mut daemon = Daemon::start(dir.path(), &pool(&fs)).await;
    let owner = "[[owner]]\nproject = \"a\"\npool = \"home\"\n";
    let front = Front::start(dir.path(), &format!("{NOBODY}{}{owner}", node("n0", &daemon.dir.join("sock"))));
    let list = |label: &str| -> Vec<String> {
        let body = front.get(&format!("/v2/{label}/shares")).json();
        body["shares"].as_array().unwrap().iter().map(|share| share["id"].as_str().unwrap().to_owned()).collect()
    };
    // Where nobody is asked who they are, everybody is a member of any project.
    assert_eq!(list("b"), [share(3)]);
    assert_eq!(list("a"), [share(4), share(1), share(2)]);
    front.get(&format!("/v2/a/shares/{}", share(3))).refused(404);
    act(&front, "a", 3, "{\"os-extend\": {\"new_size\": 3}}").refused(404);
    act(&front, "a", 3, "{\"os-shrink\": {\"new_size\": 1}}").refused(404);
    assert_eq!(fs.hard_limit(project(3)), 2 * GIB);
    for (kind, size) in [("os-extend", 4), ("os-shrink", 1)] {
        act(&front, "b", 3, &format!("{{\"{kind}\": {{\"new_size\": {size}}}}}")).accepted();
        let shown = || front.get(&format!("/v2/b/shares/{}", share(3))).json()["share"].clone();
        let shown = until(shown, |share| share["status"] == "available");
        assert_eq!((&shown["size"], &shown["project_id"]), (&size.into(), &"b".into()));
        assert_eq!(fs.hard_limit(project(3)), size * GIB);
    }

    // Another project has it too, and growd has forgotten who had it first. Neither hears of the other.
    std::fs::create_dir(fs.path().join("a").join(share(3))).unwrap();
    assert!(daemon.terminate());
    daemon.start_again().await;
    let twice = "The storage node has the share in two places, and nothing tells which of them is meant.";
    let path = format!("/v2/b/shares/{}", share(3));
    let told = until(|| front.get(&path), |answer| ![502, 503].contains(&answer.status));
    assert_eq!(told.refused(501), twice);
    assert_eq!(act(&front, "b", 3, "{\"os-extend\": {\"new_size\": 5}}").refused(501), twice);
    for label in ["a", "b"] {
        let listed = front.get(&format!("/v2/{label}/shares/detail")).json()["shares"].clone();
        let listed = listed.as_array().unwrap().iter().find(|listed| listed["id"] == share(3)).unwrap().clone();
        let told = "The storage node does not support this for the share as it is.";
        assert_eq!((&listed["status"], &listed["error_message"]), (&"error".into(), &told.into()), "{listed}");
    }
}

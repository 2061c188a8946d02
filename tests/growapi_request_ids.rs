//! The real growapi in front of simulated nodes: what a request id makes of requests that are repeated or belong to a series.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/front.rs"]
mod front;
#[path = "growapi/simulated.rs"]
mod simulated;

use front::{Answer, JSON, until};
use growd::wire::proto::{JobState, ShareStatus};
use simulated::{Cluster, GIB, Mood, Servers, one_node, refusal, share};
use tonic::Code;

#[test]
fn a_request_is_one_job_however_often_it_is_sent() {
    let (mut cluster, front) = one_node();
    let sent = |id: &str, size: u64| {
        let body = format!("{{\"os-extend\": {{\"new_size\": {size}}}}}");
        let path = format!("/v2/p/shares/{}/action", share(1));
        front.ask("POST", &path, &[JSON, ("X-OpenStack-Request-ID", id)], body.as_bytes())
    };
    let id = "req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
    for _ in 0..2 {
        let answer = sent(id, 3);
        answer.accepted();
        assert_eq!(answer.header("x-openstack-request-id"), Some(id));
    }
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), 1);
    front.extend(&share(1), 3).refused(409);

    // The node dies after it has taken the extend and before it has answered.
    let finish = |cluster: &Cluster| {
        cluster.nodes[0].with(|state| state.shares.get_mut(&share(1)).unwrap().set_status(ShareStatus::Available));
    };
    finish(&cluster);
    cluster.nodes[0].with(|state| state.mood = Mood::SilentAfterExtend);
    let waiting = front.send(
        "POST",
        &format!("/v2/p/shares/{}/action", share(1)),
        &[JSON],
        b"{\"os-extend\": {\"new_size\": 4}}",
    );
    until(|| cluster.nodes[0].with(|state| state.jobs.len()), |jobs| *jobs == 2);
    cluster.servers = None;
    let servers = Servers::new();
    servers.serve(&cluster.socket(0), &cluster.nodes[0]);
    Answer::read(waiting).accepted();
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), 2);

    // One id for a series of requests is what some clients have.
    finish(&cluster);
    let reused = refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", 409, &[]);
    cluster.nodes[0].with(|state| state.mood = Mood::Refusing(reused));
    sent(id, 5).refused(409);
    let asked = cluster.nodes[0].with(|state| state.extends.clone());
    let by_id = asked.iter().rposition(|asked| asked.request_id.as_deref() == id.strip_prefix("req-")).unwrap();
    assert!(asked[by_id].new_size_bytes == 5 * GIB && by_id + 1 < asked.len(), "not asked with another id: {asked:?}");
}

/// Clients use one id for a series of requests, and ask again for what has failed.
#[test]
fn what_has_ended_without_success_is_asked_for_again_with_the_same_id() {
    let (cluster, front) = one_node();
    let path = format!("/v2/p/shares/{}/action", share(1));
    let id = ("X-OpenStack-Request-ID", "req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11");
    for (n, state) in
        [(1, JobState::Failed), (2, JobState::Cancelled), (3, JobState::Succeeded), (3, JobState::Succeeded)]
    {
        // The second is a repetition whose first answer was lost.
        for _ in 0..2 {
            front.ask("POST", &path, &[JSON, id], b"{\"os-extend\": {\"new_size\": 3}}").accepted();
        }
        cluster.nodes[0].with(|node| {
            assert_eq!(node.jobs.len(), n, "before {state:?}");
            let share = node.shares.get_mut(&share(1)).unwrap();
            share.set_status(ShareStatus::Available);
            share.size_bytes = Some(2 * GIB);
            node.jobs.values_mut().for_each(|job| job.set_state(state));
        });
    }
}

/// Some clients have one id for all that they ask. Each request of such a series is one job, and so is its repetition.
#[test]
fn a_series_of_requests_with_one_id_is_as_many_jobs() {
    let (cluster, front) = one_node();
    cluster.nodes[0].hold(&share(2), "home", 2 * GIB);
    let asked = |n: usize, action: &str, size: u64| {
        let path = format!("/v2/p/shares/{}/action", share(n));
        let body = format!("{{\"{action}\": {{\"new_size\": {size}}}}}");
        let id = ("X-OpenStack-Request-ID", "req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11");
        front.ask("POST", &path, &[JSON, id], body.as_bytes())
    };
    let series = [
        (1, "extend", 3),
        (1, "extend", 4),
        (2, "extend", 4),
        (1, "shrink", 3),
        (1, "extend", 4),
        (2, "extend", 5),
        (1, "shrink", 2),
        (1, "extend", 3),
        (1, "shrink", 2),
        (1, "extend", 3),
    ];
    for (done, (n, action, size)) in series.into_iter().enumerate() {
        // Again while the job is at work, and again when it has ended: the answers may have been lost.
        for state in ["new", "at work", "ended", "ended"] {
            asked(n, action, size).accepted();
            let newest = cluster.nodes[0].with(|state| state.jobs.values().next_back().unwrap().clone());
            let jobs = cluster.nodes[0].with(|state| state.jobs.len());
            assert_eq!((jobs, newest.requested_size_bytes), (done + 1, size * GIB), "{action} {size}, {state}");
            if state == "at work" {
                cluster.nodes[0].finish(&share(n));
            }
        }
    }
    // What others ask meanwhile does not make a repetition a new request.
    front.extend(&share(1), 5).accepted();
    cluster.nodes[0].finish(&share(1));
    asked(1, "extend", 3).accepted();
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), series.len() + 1);
    assert!(asked(1, "shrink", 6).refused(400).contains("(current: 5, new: 6)"));
}

/// As clients make them that count.
#[test]
fn ids_that_begin_alike_are_ids_of_their_own() {
    let (cluster, front) = one_node();
    let path = format!("/v2/p/shares/{}/action", share(1));
    for (jobs, n, size) in [(1, 1, 5), (2, 2, 6), (2, 1, 5), (2, 2, 6), (3, 1, 7), (4, 2, 8), (4, 1, 7), (4, 2, 8)] {
        let id = format!("req-00000000-0000-4000-8000-{n:012}");
        let body = format!("{{\"os-extend\": {{\"new_size\": {size}}}}}");
        front.ask("POST", &path, &[JSON, ("X-OpenStack-Request-ID", &id)], body.as_bytes()).accepted();
        assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), jobs, "{size} with {id}");
        cluster.nodes[0].finish(&share(1));
    }
}

/// Nobody can tell an admin's cancellation of this very request from that of an earlier one.
#[test]
fn a_job_that_was_cancelled_before_its_request_was_answered_is_not_begun_again() {
    let (mut cluster, front) = one_node();
    cluster.nodes[0].with(|state| state.mood = Mood::SilentAfterExtend);
    let path = format!("/v2/p/shares/{}/action", share(1));
    let id = ("X-OpenStack-Request-ID", "req-6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11");
    let body = b"{\"os-extend\": {\"new_size\": 3}}";
    let waiting = front.send("POST", &path, &[JSON, id], body);
    until(|| cluster.nodes[0].with(|state| state.jobs.len()), |jobs| *jobs == 1);
    cluster.nodes[0].with(|state| {
        let share = state.shares.get_mut(&share(1)).unwrap();
        share.set_status(ShareStatus::Available);
        share.size_bytes = Some(2 * GIB);
        state.jobs.values_mut().for_each(|job| job.set_state(JobState::Cancelled));
    });
    cluster.servers = None;
    let servers = Servers::new();
    servers.serve(&cluster.socket(0), &cluster.nodes[0]);
    let answer = Answer::read(waiting);
    answer.refused(503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), 1);
    front.ask("POST", &path, &[JSON, id], body).accepted();
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), 2);
}

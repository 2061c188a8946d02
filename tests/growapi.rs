//! The real growapi in front of simulated nodes: every form of input, every status, lists, and nodes in every mood.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/front.rs"]
mod front;
#[path = "support/ports.rs"]
mod ports;
#[path = "growapi/simulated.rs"]
mod simulated;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use front::{Answer, Front, JSON, NOBODY, node, until};
use growd::wire::proto::{Job, JobError, JobState, ShareStatus};
use serde_json::{Value, json};
use simulated::{Cluster, GIB, Mood, one_node, refusal, share};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

#[test]
fn every_form_of_input_has_its_answer() {
    let (cluster, front) = one_node();
    let current = |size: &str| {
        let problem = "New size for extend must be greater than current size.";
        format!("Invalid input received: {problem} (current: 2, extended: {size}).")
    };
    let invalid = |value: &str, problem: &str| {
        format!("Invalid input for field/attribute new_size. Value: {value}. {value} {problem}")
    };
    for (size, message) in [
        ("2", current("2")),
        ("1", current("1")),
        ("0", current("0")),
        ("\"1\"", current("1")),
        ("-1", invalid("-1", "is less than the minimum of 0")),
        ("2147483648", invalid("2147483648", "is greater than the maximum of 2147483647")),
        ("1.5", invalid("1.5", "is not of type 'integer', 'string'")),
        ("null", invalid("None", "is not of type 'integer', 'string'")),
    ] {
        for name in ["os-extend", "extend"] {
            let answer = front.act(&share(1), &format!("{{\"{name}\": {{\"new_size\": {size}}}}}"));
            assert_eq!(answer.refused(400), message, "{size}");
        }
    }
    assert_eq!(front.act(&share(1), "{}").refused(400), "Malformed request body");
    assert_eq!(front.act(&share(1), "{\"os-foo\": {}}").refused(400), "There is no such action: os-foo");
    assert_eq!(front.act(&share(1), "").refused(400), "There is no such action: None");
    for unknown in [share(9), "no-uuid".to_owned(), "%00".to_owned(), "%FF".to_owned()] {
        assert!(front.extend(&unknown, 3).refused(404).ends_with("could not be found."), "{unknown}");
        let shown = front.get(&format!("/v2/p/shares/{unknown}"));
        assert_eq!(shown.refused(404), "The resource could not be found.", "{unknown}");
    }
    assert_eq!(front.extend(&share(9), 3).refused(404), "Resource could not be found.");
    assert!(cluster.nodes[0].with(|state| state.jobs.is_empty()), "a refused request made a job");

    for (size, bytes) in [("3", 3 * GIB), ("\"4\"", 4 * GIB), ("5.0", 5 * GIB), ("2147483647", 2_147_483_647 * GIB)] {
        cluster.nodes[0].with(|state| state.shares.get_mut(&share(1)).unwrap().set_status(ShareStatus::Available));
        front.act(&share(1), &format!("{{\"os-extend\": {{\"new_size\": {size}}}}}")).accepted();
        let asked = cluster.nodes[0].with(|state| state.extends.last().unwrap().clone());
        assert_eq!((asked.new_size_bytes, asked.project_id.as_str()), (bytes, "p"));
    }
}

#[test]
fn what_can_be_no_project_is_refused_before_a_node_is_asked() {
    let (cluster, front) = one_node();
    let long = "a".repeat(60_000);
    for project in [long.as_str(), &"a".repeat(256), "a%0Ab", "%00"] {
        for path in ["shares", "shares/detail", &format!("shares/{}", share(1))] {
            assert_eq!(front.get(&format!("/v2/{project}/{path}")).refused(400), "Malformed request url");
        }
        let action = format!("/v2/{project}/shares/{}/action", share(1));
        let answer = front.ask("POST", &action, &[JSON], b"{\"os-extend\": {\"new_size\": 3}}");
        assert_eq!(answer.refused(400), "Malformed request url");
        let message = front.get(&format!("/v2/p/shares?all_tenants=1&project_id={project}")).refused(400);
        assert!(message.starts_with("project_id ") && message.len() < 300, "{message}");
    }
    assert_eq!(cluster.calls(), 0);
    for project in ["a".repeat(255), "%C3%BC".repeat(255)] {
        assert_eq!(front.get(&format!("/v2/{project}/shares/{}", share(1))).status, 200);
    }
}

#[test]
fn a_shrink_has_the_answers_of_the_api() {
    let (cluster, front) = one_node();
    let id = share(1);
    let shrink = |size: &str| front.act(&id, &format!("{{\"os-shrink\": {{\"new_size\": {size}}}}}"));
    for (size, new) in [("2", "2"), ("3", "3"), ("0", "0"), ("\"2\"", "2"), ("2147483647", "2147483647")] {
        let problem = "New size for shrink must be less than current size and greater than 0";
        let message = format!("Invalid input received: {problem} (current: 2, new: {new}).");
        assert_eq!(shrink(size).refused(400), message, "{size}");
    }
    assert!(shrink("-1").refused(400).ends_with("-1 is less than the minimum of 0"));
    assert!(cluster.nodes[0].with(|state| state.jobs.is_empty()), "a refused request made a job");
    for (status, reason, code, told) in [
        (501, "UNSUPPORTED", Code::Unimplemented, "The storage node does not support this for the share as it is."),
        (409, "WOULD_LOSE_DATA", Code::FailedPrecondition, "refused with WOULD_LOSE_DATA"),
    ] {
        cluster.nodes[0].with(|state| state.mood = Mood::Refusing(refusal(code, reason, status, &[])));
        assert_eq!(shrink("1").refused(status), told);
    }
    cluster.nodes[0].with(|state| state.mood = Mood::Right);

    front.act(&id, "{\"shrink\": {\"new_size\": 1}}").accepted();
    let asked = cluster.nodes[0].with(|state| state.shrinks.last().unwrap().clone());
    assert_eq!((asked.new_size_bytes, asked.project_id.as_str()), (GIB, "p"));
    let seen = front.share(&id);
    assert_eq!((&seen["status"], &seen["size"]), (&json!("shrinking"), &json!(2)));
    shrink("1").refused(409);
    front.extend(&id, 3).refused(409);
    for (reason, status, told) in [
        (
            "INTERNAL",
            "shrinking_error",
            "The storage node of the share has met an error. Its operators find which by the job JOB.",
        ),
        ("WOULD_LOSE_DATA", "shrinking_possible_data_loss_error", "why"),
    ] {
        let job_id = cluster.nodes[0].with(|state| {
            let share = state.shares.get_mut(&id).unwrap();
            share.set_status(ShareStatus::ShrinkingError);
            share.size_bytes = Some(2 * GIB);
            let job: &mut Job = state.jobs.get_mut(&share.last_job_id).unwrap();
            job.set_state(JobState::Failed);
            job.error = Some(JobError { reason: reason.to_owned(), message: "why".to_owned(), ..JobError::default() });
            share.last_job_id.clone()
        });
        let seen = front.share(&id);
        assert_eq!((&seen["status"], &seen["size"]), (&json!(status), &json!(2)));
        assert_eq!(seen["error_message"], told.replace("JOB", &job_id));
    }
    front.extend(&id, 3).accepted();
}

#[test]
fn sizes_between_two_are_rounded_down_and_compared_exactly() {
    let (cluster, front) = one_node();
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB + GIB / 2);
    assert_eq!(front.share(&share(1))["size"], 2);
    assert!(front.extend(&share(1), 2).refused(400).ends_with("(current: 2, extended: 2)."));
    front.extend(&share(1), 3).accepted();
}

#[test]
fn every_status_can_be_provoked() {
    let (cluster, front) = one_node();
    let id = share(1);
    let path = format!("/v2/p/shares/{id}");
    let action = format!("{path}/action");

    for (method, path) in [("DELETE", path.as_str()), ("PUT", &action), ("GET", &action), ("POST", "/v2/p/shares")] {
        let answer = front.ask(method, path, &[], &[]);
        answer.refused(405);
        assert!(answer.header("allow").is_some(), "{answer:?}");
    }
    let message = front.ask("GET", &path, &[("X-OpenStack-Manila-API-Version", "2.100")], &[]).refused(406);
    assert_eq!(message, "Version 2.100 is not supported by the API. Minimum is 2.0 and maximum is 2.99.");
    front.ask("GET", &path, &[("OpenStack-API-Version", "shared-file-system abc")], &[]).refused(400);
    front.ask("POST", &action, &[JSON], &[b' '; 114_689]).refused(413);
    let fits = format!("{{\"os-extend\": {{\"new_size\": 1}}}}{}", " ".repeat(114_688 - 30));
    front.act(&id, &fits).refused(400);
    front.get("/v2/p/nothing").refused(404);
    front.act(&share(9), "{\"shrink\": {\"new_size\": 1}}").refused(404);

    let mut slow = front.connect();
    let head =
        format!("POST {action} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n");
    slow.write_all(format!("{head}{{\"os-ext").as_bytes()).unwrap();
    let answer = Answer::read(slow);
    answer.refused(408);
    assert_eq!(answer.header("connection"), Some("close"));

    let mut full = ErrorDetails::with_error_info("QUEUE_FULL", "growd", [("http_status".to_owned(), "503".to_owned())]);
    full.set_retry_info(Some(std::time::Duration::from_secs(7)));
    for (status, refused) in [
        (409, refusal(Code::Aborted, "SHARE_BUSY", 409, &[])),
        (409, refusal(Code::ResourceExhausted, "POOL_FULL", 409, &[])),
        (409, refusal(Code::FailedPrecondition, "QUOTA_NOT_ENFORCED", 409, &[])),
        (500, refusal(Code::Internal, "INTERNAL", 500, &[])),
        (501, refusal(Code::Unimplemented, "UNSUPPORTED", 501, &[])),
        (502, refusal(Code::PermissionDenied, "FORBIDDEN", 403, &[])),
        (502, Status::internal("no reason")),
        (503, Status::with_error_details(Code::Unavailable, "full", full)),
        (504, Status::deadline_exceeded("late")),
    ] {
        cluster.nodes[0].with(|state| state.mood = Mood::Refusing(refused));
        let answer = front.extend(&id, 3);
        answer.refused(status);
        assert_eq!(answer.header("retry-after"), (status == 503).then_some("7"));
    }
    cluster.nodes[0].with(|state| state.mood = Mood::Right);
    front.extend(&id, 3).accepted();
    front.extend(&id, 4).refused(409);
}

#[test]
fn versions_are_told_and_echoed() {
    let (cluster, front) = one_node();
    for path in ["/", "/v2", "/v2/"] {
        let answer = front.get(path);
        let version = &answer.json()["versions"][0];
        assert_eq!((answer.status, &version["min_version"], &version["version"]), (200, &json!("2.0"), &json!("2.99")));
        assert_eq!(version["links"][0]["href"], format!("http://{}/v2/", front.address));
    }
    let path = format!("/v2/p/shares/{}", share(1));
    let answer = front.ask("GET", &path, &[("X-OpenStack-Manila-API-Version", "2.7")], &[]);
    assert_eq!(answer.header("x-openstack-manila-api-version"), Some("2.7"));
    assert!(answer.header("vary").is_some_and(|vary| vary.contains("X-OpenStack-Manila-API-Version")));
    let answer = front.ask("GET", &path, &[("OpenStack-API-Version", "shared-file-system 2.98")], &[]);
    assert_eq!(answer.header("openstack-api-version"), Some("shared-file-system 2.98"));
    assert_eq!(front.get(&path).header("x-openstack-manila-api-version"), Some("2.0"));
    let exports = front.get(&format!("{path}/export_locations"));
    assert_eq!((exports.status, exports.json()), (200, json!({"export_locations": []})));
    let document = front.get("/openapi.json").json();
    assert!(document["paths"]["/v2/{project_id}/shares/{share_id}/action"]["post"].is_object());

    // Behind a proxy its clients reach it at another address.
    let url = "https://share.example.org";
    front.reload(cluster.dir.path(), &format!("public_url = \"{url}\"\n{NOBODY}{}", cluster.config()));
    let of_version = || front.get("/v2/").json()["versions"][0]["links"][0]["href"].clone();
    until(of_version, |href| *href == format!("{url}/v2/"));
    assert_eq!(front.share(&share(1))["links"][0]["href"], format!("{url}{path}"));
}

#[test]
fn status_and_size_change_together_and_a_failure_is_told() {
    let (cluster, front) = one_node();
    let id = share(1);
    let seen = || {
        let share = front.share(&id);
        (share["status"].as_str().unwrap().to_owned(), share["size"].as_u64().unwrap(), share["error_message"].clone())
    };
    assert_eq!(seen(), ("available".to_owned(), 2, Value::Null));
    front.extend(&id, 3).accepted();
    assert_eq!(seen(), ("extending".to_owned(), 2, Value::Null));
    let detail = front.get("/v2/p/shares/detail").json();
    assert_eq!((&detail["shares"][0]["status"], &detail["shares"][0]["size"]), (&json!("extending"), &json!(2)));
    cluster.nodes[0].with(|state| {
        let share = state.shares.get_mut(&id).unwrap();
        share.set_status(ShareStatus::ExtendingError);
        share.size_bytes = Some(2 * GIB);
        let job: &mut Job = state.jobs.get_mut(&share.last_job_id).unwrap();
        job.set_state(JobState::Failed);
        let (reason, message) = ("POOL_FULL".to_owned(), "the pool is full".to_owned());
        job.error = Some(JobError { reason, message, retryable: true });
    });
    assert_eq!(seen(), ("extending_error".to_owned(), 2, json!("the pool is full")));
    front.extend(&id, 3).accepted();
    cluster.nodes[0].with(|state| state.shares.get_mut(&id).unwrap().set_status(ShareStatus::Available));
    assert_eq!(seen(), ("available".to_owned(), 3, Value::Null));
}

#[test]
fn lists_are_of_a_status() {
    let (cluster, front) = one_node();
    (2..=3).for_each(|n| cluster.nodes[0].hold(&share(n), "home", 2 * GIB));
    front.extend(&share(2), 3).accepted();
    let listed = |query: &str| {
        let answer = front.get(&format!("/v2/p/shares?{query}")).json();
        let shares = answer["shares"].as_array().unwrap().iter().map(|share| share["id"].as_str().unwrap().to_owned());
        (shares.collect::<Vec<_>>(), answer["shares_links"][0]["href"].is_string())
    };
    let shares = |all: &[usize]| all.iter().map(|n| share(*n)).collect::<Vec<_>>();
    for (query, expected) in [
        ("status=available", &[1, 3][..]),
        ("status=extending", &[2]),
        ("status=error", &[]),
        ("status=available&offset=1", &[3]),
    ] {
        assert_eq!(listed(query), (shares(expected), false), "{query}");
    }
    assert_eq!(listed("status=available&limit=1"), (shares(&[1]), true));
    assert_eq!(listed(&format!("status=available&limit=1&marker={}", share(1))), (shares(&[3]), false));
}

#[test]
fn a_client_that_takes_no_answers_is_given_up() {
    let (_cluster, front) = one_node();
    let mut stream = front.connect();
    stream.set_write_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let many = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let error = loop {
        if let Err(error) = stream.write_all(&many) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    assert_eq!(front.share(&share(1))["size"], 2);
}

/// One that has no more to say may close its side, and one that has no patience goes away: a proxy does so for its clients.
#[test]
fn a_request_whose_client_has_closed_is_carried_out_and_told_in_the_log() {
    let (cluster, front) = one_node();
    let path = format!("/v2/p/shares/{}", share(1));
    let body = b"{\"os-extend\": {\"new_size\": 3}}";
    let waiting = front.send("POST", &format!("{path}/action"), &[JSON], body);
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    Answer::read(waiting).accepted();

    front.reload(cluster.dir.path(), &format!("node_timeout = \"2s\"\n{NOBODY}{}", cluster.config()));
    until(|| front.has_logged("the configuration was read again"), |is| *is);
    assert_eq!(front.share(&share(1))["size"], 2);
    cluster.nodes[0].with(|state| state.mood = Mood::Silent);
    let calls = cluster.calls();
    let gone = front.send("GET", &path, &[], &[]);
    until(|| cluster.calls(), |now| *now > calls);
    drop(gone);
    until(|| front.has_logged("status=504"), |is| *is);
}

#[test]
fn a_request_at_hand_is_answered_before_growapi_goes() {
    let cluster = Cluster::new(1);
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB);
    // With the usual request_timeout, since this client takes its time.
    let mut front = Front::start(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    let path = format!("/v2/p/shares/{}/action", share(1));
    let kind = "Content-Type: application/json\r\nContent-Length: 31\r\nExpect: 100-continue";
    let mut waiting = front.connect();
    waiting.write_all(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\n\r\n").as_bytes()).unwrap();
    // Until growapi has read the head it may still close an idle connection.
    let mut told = *b"HTTP/1.1 100 Continue\r\n\r\n";
    waiting.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    waiting.write_all(b"{\"os-extend\": ").unwrap();
    front.begin_to_terminate();
    until(|| TcpStream::connect(front.address).is_err(), |is_gone| *is_gone);
    waiting.write_all(b"{\"new_size\": 3} }").unwrap();
    Answer::read(waiting).accepted();
    assert!(front.ended_in_order());
    assert_eq!(cluster.nodes[0].with(|state| state.jobs.len()), 1);
}

#[test]
fn the_configuration_is_read_again_and_a_refused_one_changes_nothing() {
    let cluster = Cluster::new(2);
    cluster.nodes[1].hold(&share(2), "home", GIB);
    let first = format!("{NOBODY}{}", node("n00", &cluster.socket(0)));
    let front = Front::start(cluster.dir.path(), &first);
    front.get(&format!("/v2/p/shares/{}", share(2))).refused(404);
    front.reload(cluster.dir.path(), &format!("{NOBODY}{}", cluster.config()));
    until(|| front.get(&format!("/v2/p/shares/{}", share(2))).status, |status| *status == 200);
    front.reload(cluster.dir.path(), "[[node]]\nname = \"x\"\n");
    until(|| front.has_logged("the configuration is refused and the one before stays"), |is| *is);
    assert_eq!(front.share(&share(2))["size"], 1);
}

#[test]
fn metrics_count_by_routes_and_not_by_what_clients_make_up() {
    let cluster = Cluster::new(1);
    cluster.nodes[0].hold(&share(1), "home", 2 * GIB);
    let (address, _reserved) = ports::reserve_port();
    let metrics = format!("[metrics]\nlisten = \"{address}\"\n");
    let front = Front::start(cluster.dir.path(), &format!("{metrics}{NOBODY}{}", cluster.config()));
    (0..2).for_each(|_| drop(front.share(&share(1))));
    front.extend(&share(9), 3).refused(404);
    front.ask("BREW", "/coffee", &[], &[]).refused(404);
    let scraped = front.ask_at(address, "/metrics");
    for sample in [
        "growapi_requests_total{method=\"GET\",route=\"/v2/{project_id}/shares/{share_id}\",status=\"200\"} 2",
        "growapi_requests_total{method=\"POST\",route=\"/v2/{project_id}/shares/{share_id}/action\",status=\"404\"} 1",
        "growapi_requests_total{method=\"other\",route=\"other\",status=\"404\"} 1",
        "growapi_request_duration_seconds_count{method=\"GET\",route=\"/v2/{project_id}/shares/{share_id}\"} 2",
        "growapi_node_up{node=\"n00\"} 1",
        "growapi_known_shares 1",
        "growapi_config_last_reload_successful 1",
    ] {
        assert!(scraped.body.lines().any(|line| line == sample), "{sample}: {}", scraped.body);
    }
    front.get("/metrics").refused(404);
    let reloads_followed = || {
        let scraped = front.ask_at(address, "/metrics").body;
        scraped.lines().find_map(|line| line.strip_prefix("growapi_config_last_reload_successful ")).unwrap().to_owned()
    };
    front.reload(cluster.dir.path(), "[[node]]\nname = \"x\"\n");
    until(reloads_followed, |followed| followed == "0");
    front.reload(cluster.dir.path(), &format!("{metrics}{NOBODY}{}", cluster.config()));
    until(reloads_followed, |followed| followed == "1");
}

#[test]
fn what_is_no_http_is_not_answered_as_if_it_were() {
    let (_cluster, front) = one_node();
    let mut stream = front.connect();
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
    assert_eq!(front.share(&share(1))["size"], 2);
}

//! The real growctl against a server with canned answers on a unix socket: arguments, output, exit codes, reconnecting.

// A test that cannot set itself up has nothing to report but where it stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "growctl/canned.rs"]
mod canned;
#[path = "growctl/doctor.rs"]
mod doctor;

use canned::*;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use growd::wire::proto::*;
use serde_json::Value;
use tonic::{Code, Status};

#[test]
fn every_verb_answers_people_and_programs() {
    let fixture = Fixture::new();
    fixture.script(|script| {
        script.jobs = 2;
        script.extend = VecDeque::from([act(JobState::Queued), act(JobState::Queued)]);
    });
    let verbs: [(&[&str], &str, &str, Value); 9] = [
        (&["node"], "host:                n1\n", "/hostname", "n1".into()),
        (&["pools"], "100GiB", "/pools/0/total_bytes", (100 * GIB).into()),
        (&["shares"], REQUEST, "/shares/1/share_id", REQUEST.into()),
        (&["share", SHARE], "used:        1GiB, 50%\n", "/used_bytes", GIB.into()),
        (&["extend", SHARE, "3GiB"], "state:          QUEUED\n", "/state", "QUEUED".into()),
        (&["jobs"], "SUCCEEDED", "/jobs/1/size_after_bytes", (3 * GIB).into()),
        (&["job", JOB], "state:          FAILED\n", "/job_id", JOB.into()),
        (&["cancel", JOB], "state:          CANCELLED\n", "/state", "CANCELLED".into()),
        (&["doctor"], "no findings\n", "/findings", Value::Array(Vec::new())),
    ];
    for (args, in_table, pointer, value) in verbs {
        let table = fixture.run(args).exits(0);
        assert!(table.out.contains(in_table), "{args:?}: {table:#?}");
        let json = fixture.run(&[args, &["--output", "json"]].concat()).exits(0);
        assert_eq!(json.json().pointer(pointer), Some(&value), "{args:?}: {json:#?}");
        assert!(table.err.is_empty() && json.err.is_empty(), "{args:?}: {table:#?} {json:#?}");
    }
}

#[test]
fn extend_passes_on_what_was_typed() {
    let fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from(vec![act(JobState::Queued); 3]));
    let all = ["--expect-current", "2GiB", "--request-id", REQUEST, "--project", "Süd"];
    fixture.run(&[&["extend", SHARE, "1.5TiB"], &all[..]].concat()).exits(0);
    let bare = fixture.run(&["extend", SHARE, "3GiB"]).exits(0);
    let dry = fixture.run(&["extend", SHARE, "3GiB", "--dry-run"]).exits(0);
    assert!(dry.out.starts_with("would be accepted; nothing was changed\n"), "{dry:#?}");

    let asked = fixture.script(|script| script.extends.clone());
    let expected = ExtendShareRequest {
        share_id: SHARE.to_owned(),
        new_size_bytes: 3 << 39,
        expected_current_size_bytes: Some(2 * GIB),
        request_id: Some(REQUEST.to_owned()),
        project_id: "Süd".to_owned(),
        validate_only: false,
    };
    assert_eq!(asked[0], expected);
    let made_up = asked[1].request_id.clone().unwrap();
    assert_eq!(uuid::Uuid::parse_str(&made_up).unwrap().get_version_num(), 4);
    assert!(bare.out.contains(&made_up), "{bare:#?}");
    assert!(asked[2].validate_only && asked[2].request_id.is_none());
}

#[test]
fn a_dry_run_with_the_id_of_an_earlier_request_shows_its_job() {
    let fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from(vec![act(JobState::Failed); 2]));
    let dry_run = ["extend", SHARE, "3GiB", "--dry-run", "--request-id", REQUEST];
    let table = fixture.run(&dry_run).exits(8);
    assert!(table.out.contains("state:          FAILED\n"), "{table:#?}");
    assert!(table.err.starts_with("the request id stands for a job already"), "{table:#?}");
    let json = fixture.run(&[&dry_run[..], &["-o", "json"]].concat()).exits(8);
    assert_eq!(json.json()["job_id"], JOB);
    json.error();
}

#[test]
fn shrink_asks_with_the_same_words_and_tells_what_is_in_use() {
    let fixture = Fixture::new();
    let in_use = [("used_bytes", "2147483648"), ("requested_bytes", "1073741824"), ("share_id", SHARE)];
    let refused = refusal(Code::FailedPrecondition, "WOULD_LOSE_DATA", &in_use);
    fixture.script(|script| script.extend = VecDeque::from([act(JobState::Queued), Act::Refuse(refused)]));
    let all = ["--expect-current", "2GiB", "--request-id", REQUEST, "--project", "p"];
    fixture.run(&[&["shrink", SHARE, "1GiB"], &all[..]].concat()).exits(0);
    let ran = fixture.run(&["shrink", SHARE, "1GiB"]).exits(5);
    assert!(ran.err.contains("used: 2GiB"), "{ran:#?}");
    assert!(ran.err.contains("requested: 1GiB"), "{ran:#?}");
    assert!(ran.err.contains("next: remove data from the share"), "{ran:#?}");
    let asked = fixture.script(|script| script.shrinks.clone());
    let expected = ShrinkShareRequest {
        share_id: SHARE.to_owned(),
        new_size_bytes: GIB,
        expected_current_size_bytes: Some(2 * GIB),
        request_id: Some(REQUEST.to_owned()),
        project_id: "p".to_owned(),
        validate_only: false,
    };
    assert_eq!(asked[0], expected);
    assert!(fixture.script(|script| script.extends.is_empty()));
}

#[test]
fn lists_follow_pages_and_pass_on_filters() {
    let fixture = Fixture::new();
    fixture.script(|script| script.jobs = 1_200);
    let filter = ["--share", SHARE, "--state", "failed", "--project", "p"];
    let some = fixture.run(&[&["jobs", "--limit", "700"], &filter[..]].concat()).exits(0);
    assert_eq!(some.out.lines().count(), 701);
    assert_eq!(some.err, "the newest 700 are shown; --limit shows more\n");
    let asked = fixture.script(|script| std::mem::take(&mut script.job_lists));
    let sizes: Vec<_> = asked.iter().map(|list| (list.page_size, list.page_token.as_str())).collect();
    assert_eq!(sizes, [(500, ""), (200, "500")]);
    assert!(asked.iter().all(|list| list.share_id == SHARE && list.project_id == "p"));
    assert!(asked.iter().all(|list| list.state() == JobState::Failed));

    let all = fixture.run(&["jobs", "--limit", "5000", "-o", "json"]).exits(0);
    assert_eq!(all.json()["jobs"].as_array().unwrap().len(), 1_200);
    assert_eq!(fixture.run(&["jobs"]).exits(0).out.lines().count(), 51);

    fixture.run(&["shares", "--pool", "home"]).exits(0);
    let pools = fixture.script(|script| script.share_lists.iter().map(|list| list.pool.clone()).collect::<Vec<_>>());
    assert_eq!(pools, ["home", "home"]);
}

#[test]
fn an_empty_list_has_no_lines() {
    let fixture = Fixture::new();
    let jobs = fixture.run(&["jobs"]).exits(0);
    assert_eq!((jobs.out.as_str(), jobs.err.as_str()), ("", "no jobs\n"));
    let shares = fixture.run(&["shares", "--pool", "empty"]).exits(0);
    assert_eq!((shares.out.as_str(), shares.err.as_str()), ("", "no shares\n"));
    let json = fixture.run(&["shares", "--pool", "empty", "-o", "json"]).exits(0);
    assert_eq!(json.json()["shares"], Value::Array(Vec::new()));
}

#[test]
fn bad_usage_is_told_before_growd_is_called() {
    for (args, hint) in [
        (&["extend", SHARE, "3GB"][..], "write \"3GiB\" instead"),
        (&["extend", SHARE, "3"], "has no unit"),
        (&["extend", SHARE, "3.2GiB"], "write 3277MiB"),
        (&["extend", SHARE, "0GiB"], "must be above 0"),
        (&["shrink", SHARE, "1GB"], "write \"1GiB\" instead"),
        (&["extend", SHARE, "3GiB", "--request-id", "7"], "is not a UUID"),
        (&["extend", SHARE, "3GiB", "--expect-current", "2G"], "write \"2GiB\" instead"),
        (&["share", "../etc"], "\"../etc\" is not a UUID"),
        (&["job", "6d0ad3f47c5e4c0e9a3e0c2d2f7c9a11"], "is not the UUID of a job"),
        (&["jobs", "--state", "done"], "possible values: QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED"),
        (&["jobs", "--limit", "0"], "0 is not in"),
        (&["shares", "--pool", "a/b"], "is not a pool name"),
        (&["node", "--timeout", "soon"], "--timeout"),
        (&["node", "--endpoint", "growd.sock"], "write unix:/path or https://host:port"),
        (&["node", "--endpoint", "https://localhost:1"], "give --ca, --cert and --key"),
        (
            &[
                "node",
                "--endpoint",
                "https://localhost:1",
                "--ca",
                "/nowhere",
                "--cert",
                "/nowhere",
                "--key",
                "/nowhere",
            ],
            "cannot read /nowhere",
        ),
        (&[], "jobs, job, cancel, doctor, help]"),
    ] {
        let ran = Ran::from(growctl("unix:/nowhere/growd.sock", args).output().unwrap()).exits(2);
        assert!(ran.err.contains(hint) && ran.out.is_empty(), "{args:?}: {ran:#?}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let help = Ran::from(growctl("", &["--help"]).output().unwrap()).exits(0).out;
    for code in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "130"] {
        assert!(help.lines().any(|line| line.starts_with(&format!("  {code:<5}"))), "{code}: {help}");
    }
}

#[test]
fn a_refusal_tells_reason_sizes_next_step_and_its_exit_code() {
    let fixture = Fixture::new();
    let sizes = [("current_size_bytes", "2147483648"), ("new_size_bytes", "1073741824"), ("share_id", SHARE)];
    let full = [("free_bytes", "1073741824"), ("asked_bytes", "3221225472"), ("reserved_bytes", "0")];
    for (status, exit, in_error) in [
        (refusal(Code::InvalidArgument, "SIZE_NOT_GREATER", &sizes), 3, "current size: 2GiB"),
        (refusal(Code::InvalidArgument, "SIZE_NOT_GREATER", &sizes), 3, "new size: 1GiB"),
        (refusal(Code::PermissionDenied, "FORBIDDEN", &[]), 3, "error: FORBIDDEN: "),
        (refusal(Code::NotFound, "SHARE_NOT_FOUND", &[]), 4, "`growctl shares`"),
        (refusal(Code::Aborted, "SHARE_BUSY", &[("job_id", JOB)]), 5, &format!("`growctl job {JOB} --watch`")),
        (refusal(Code::FailedPrecondition, "QUOTA_NOT_ENFORCED", &[]), 5, "turn the quotas of the file system on"),
        (refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", &[]), 5, "--request-id"),
        (refusal(Code::ResourceExhausted, "POOL_FULL", &full), 6, "asked: 3GiB"),
        (refusal(Code::Unavailable, "DRAINING", &[]), 7, "systemctl status growd"),
        (refusal(Code::Internal, "INTERNAL", &[]), 1, "journalctl -u growd"),
        (Status::unknown("odd"), 1, "error: UNKNOWN: odd"),
    ] {
        fixture.script(|script| script.extend = VecDeque::from(vec![Act::Refuse(status.clone()); 2]));
        let ran = fixture.run(&["extend", SHARE, "1GiB"]).exits(exit);
        assert!(ran.err.contains(in_error) && ran.out.is_empty(), "{in_error}: {ran:#?}");
        assert!(ran.err.contains("\n  next: "), "{ran:#?}");
        let error = fixture.run(&["extend", SHARE, "1GiB", "-o", "json"]).exits(exit).error();
        assert_eq!(error["message"], status.message());
        assert!(error["next"].is_string() && error["metadata"].is_object() && error["code"].is_string(), "{error}");
    }
    // A refusal is an answer: it is not asked again.
    assert_eq!(fixture.script(|script| script.extends.len()), 22);
    let other = fixture.run(&["cancel", REQUEST]).exits(5);
    assert!(other.err.contains("JOB_NOT_QUEUED"), "{other:#?}");
    fixture.run(&["job", REQUEST]).exits(4);
    fixture.run(&["share", REQUEST]).exits(4);
}

#[test]
fn without_growd_it_says_where_it_looked_and_what_to_do() {
    let fixture = Fixture::new();
    let ran = Ran::from(growctl("unix:///nowhere/growd.sock", &["node"]).output().unwrap()).exits(7);
    assert!(ran.err.contains("cannot connect to unix:///nowhere/growd.sock: No such file"), "{ran:#?}");
    assert!(ran.err.contains("systemctl status growd"), "{ran:#?}");
    // Nobody listens on port 1.
    let ran = fixture.run(&["node", "--endpoint", "http://127.0.0.1:1", "-o", "json"]).exits(7);
    assert_eq!(ran.error()["reason"], "UNREACHABLE");
}

#[test]
fn no_answer_in_time_ends_the_call_and_names_the_request_id() {
    let fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from([Act::Hang]));
    let ran = fixture.run(&["extend", SHARE, "3GiB", "--timeout", "3s"]).exits(7);
    let id = fixture.script(|script| script.extends[0].request_id.clone()).unwrap();
    assert!(ran.err.contains("did not answer within 3s; growd may have accepted"), "{ran:#?}");
    assert!(ran.err.contains(&format!("--request-id {id}")), "{ran:#?}");
}

#[test]
fn wait_follows_the_job_to_its_end() {
    let fixture = Fixture::new();
    fixture.script(|script| {
        script.extend = VecDeque::from(vec![act(JobState::Queued); 3]);
        let end = |state| vec![act(JobState::Queued), act(JobState::Running), act(JobState::Running), act(state)];
        script.watch = [JobState::Succeeded, JobState::Failed, JobState::Cancelled].map(end).into();
    });
    let done = fixture.run(&["extend", SHARE, "3GiB", "--wait"]).exits(0);
    assert_eq!(done.err, "QUEUED\nRUNNING\nSUCCEEDED\n");
    assert!(done.out.contains("size after:     3GiB\n"), "{done:#?}");
    let failed = fixture.run(&["extend", SHARE, "3GiB", "--wait", "-o", "json"]).exits(8);
    assert_eq!(failed.json()["state"], "FAILED");
    assert!(failed.error()["message"].as_str().unwrap().contains("failed"), "{failed:#?}");
    let cancelled = fixture.run(&["job", JOB, "--watch"]).exits(8);
    assert!(cancelled.err.contains("error: JOB_CANCELLED: "), "{cancelled:#?}");
}

#[test]
fn watch_of_an_unknown_job_ends_at_once() {
    let fixture = Fixture::new();
    let unknown = Act::Refuse(refusal(Code::NotFound, "JOB_NOT_FOUND", &[]));
    fixture.script(|script| script.watch = VecDeque::from([vec![unknown]]));
    let ran = fixture.run(&["job", JOB, "--watch"]).exits(4);
    assert!(ran.err.starts_with("error: JOB_NOT_FOUND"), "{ran:#?}");
}

#[test]
fn waiting_outlives_a_restart_of_growd() {
    let mut fixture = Fixture::new();
    fixture.script(|script| {
        script.extend = VecDeque::from([act(JobState::Queued)]);
        script.watch = VecDeque::from([
            // Killed, then a server that still starts, then one that shuts down in between.
            vec![act(JobState::Running), Act::Hang],
            vec![Act::Refuse(refusal(Code::Unavailable, "STORE_UNAVAILABLE", &[]))],
            vec![act(JobState::Running)],
            vec![act(JobState::Running), act(JobState::Succeeded)],
        ]);
    });
    let mut command = fixture.command(&["extend", SHARE, "3GiB", "--wait"]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = BufReader::new(waiting.stderr.take().unwrap()).lines();
    assert_eq!(progress.next().unwrap().unwrap(), "RUNNING");
    fixture.restart_server();
    let later: Vec<String> = progress.map(Result::unwrap).collect();
    // And why.
    assert!(later[0].starts_with("the connection to growd was lost: "), "{later:#?}");
    let words = "refused with STORE_UNAVAILABLE; the job goes on, asking again";
    assert!(later.iter().any(|line| line == words), "{later:#?}");
    assert_eq!(later.last().unwrap(), "SUCCEEDED");
    let ran = Ran::from(waiting.wait_with_output().unwrap()).exits(0);
    assert!(ran.out.contains("state:          SUCCEEDED\n"), "{ran:#?}");
    assert_eq!(fixture.script(|script| (script.watches, script.extends.len())), (4, 1));
}

#[test]
fn an_extend_without_an_answer_is_asked_again_as_the_same_request() {
    let mut fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from([Act::Hang, act(JobState::Queued)]));
    let mut command = fixture.command(&["extend", SHARE, "3GiB"]);
    let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fixture.until(|script| script.extends.len() == 1);
    fixture.restart_server();
    let ran = Ran::from(asking.wait_with_output().unwrap()).exits(0);
    let asked = fixture.script(|script| script.extends.clone());
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0], asked[1]);
    assert!(ran.out.contains(&asked[0].request_id.clone().unwrap()), "{ran:#?}");
}

/// It was accepted before the connection was lost, for all that growctl knows.
#[test]
fn an_extend_that_meets_a_growd_which_starts_stays_without_an_answer() {
    let mut fixture = Fixture::new();
    let starting = Act::Refuse(refusal(Code::Unavailable, "STORE_UNAVAILABLE", &[]));
    fixture.script(|script| {
        script.extend = VecDeque::from([Act::Hang, starting.clone(), starting.clone(), starting]);
    });
    let mut command = fixture.command(&["extend", SHARE, "3GiB", "-o", "json"]);
    let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fixture.until(|script| script.extends.len() == 1);
    fixture.restart_server();
    let error = Ran::from(asking.wait_with_output().unwrap()).exits(7).error();
    let asked = fixture.script(|script| script.extends.clone());
    // Those that came while nobody listened are attempts too.
    assert!((2..=4).contains(&asked.len()), "{asked:#?}");
    assert_eq!(error["reason"], "STORE_UNAVAILABLE");
    assert!(error["message"].as_str().unwrap().contains("may have accepted"), "{error}");
    let id = asked[0].request_id.clone().unwrap();
    assert!(error["next"].as_str().unwrap().contains(&format!("--request-id {id}")), "{error}");
}

/// It may be on disk, and then runs after a restart of growd.
#[test]
fn an_extend_that_growd_could_not_write_names_the_request_id() {
    let fixture = Fixture::new();
    let unwritten = Act::Refuse(refusal(Code::Unavailable, "STORE_UNAVAILABLE", &[]));
    fixture.script(|script| script.extend = VecDeque::from([unwritten]));
    let ran = fixture.run(&["extend", SHARE, "3GiB"]).exits(7);
    let asked = fixture.script(|script| script.extends.clone());
    let next = format!("next: repeat it with --request-id {}: ", asked[0].request_id.as_deref().unwrap());
    assert!(ran.err.contains(&next) && ran.err.contains("`growctl node`"), "{ran:#?}");
    assert_eq!(asked.len(), 1);
}

/// growd looks the request id up before it says so.
#[test]
fn a_refusal_after_a_loss_is_an_answer() {
    for reason in ["QUEUE_FULL", "STUCK"] {
        let mut fixture = Fixture::new();
        let refused = Act::Refuse(refusal(Code::Unavailable, reason, &[]));
        fixture.script(|script| script.extend = VecDeque::from([Act::Hang, refused]));
        let mut command = fixture.command(&["extend", SHARE, "3GiB", "-o", "json"]);
        let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        fixture.until(|script| script.extends.len() == 1);
        fixture.restart_server();
        let error = Ran::from(asking.wait_with_output().unwrap()).exits(7).error();
        assert_eq!(error["message"], format!("refused with {reason}"), "{error}");
        assert_eq!((error["reason"].as_str(), fixture.script(|script| script.extends.len())), (Some(reason), 2));
    }
}

#[test]
fn pools_whose_shares_are_missing_are_named() {
    let fixture = Fixture::new();
    fixture.script(|script| script.unreadable_pools = vec!["old".to_owned(), "vols".to_owned()]);
    let table = fixture.run(&["shares"]).exits(0);
    assert_eq!((table.out.lines().count(), table.err.lines().count()), (3, 1));
    assert!(table.err.starts_with("warning: the shares of old, vols are missing"), "{table:#?}");
    let json = fixture.run(&["shares", "-o", "json"]).exits(0);
    assert_eq!(json.json()["unreadable_pools"], serde_json::json!(["old", "vols"]));
    assert_eq!(json.err, "");
}

#[test]
fn an_extend_that_stays_without_an_answer_names_the_request_id() {
    let mut fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from([Act::Hang]));
    let mut command = fixture.command(&["extend", SHARE, "3GiB", "--request-id", REQUEST, "-o", "json"]);
    let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fixture.until(|script| script.extends.len() == 1);
    fixture.server = None;
    let error = Ran::from(asking.wait_with_output().unwrap()).exits(7).error();
    assert_eq!(error["reason"], "CONNECTION_LOST");
    assert!(error["next"].as_str().unwrap().contains(&format!("--request-id {REQUEST}")), "{error}");
}

#[test]
fn interrupting_stops_the_waiting_only() {
    let fixture = Fixture::new();
    fixture.script(|script| script.watch = VecDeque::from([vec![act(JobState::Running), Act::Hang]]));
    let mut command = fixture.command(&["job", JOB, "--watch"]);
    let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fixture.until(|script| script.watches == 1);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ran = Ran::from(waiting.wait_with_output().unwrap()).exits(130);
    assert!(ran.err.contains(&format!("job {JOB} goes on")), "{ran:#?}");
    assert!(ran.err.contains(&format!("`growctl job {JOB} --watch`")), "{ran:#?}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fixture = Fixture::new();
    fixture.script(|script| script.jobs = 5_000);
    let mut command = fixture.command(&["jobs", "--limit", "5000"]);
    let mut writing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(writing.stdout.take());
    let ran = Ran::from(writing.wait_with_output().unwrap()).exits(0);
    assert_eq!(ran.err, "");
}

#[test]
fn output_that_cannot_be_written_is_no_fault_of_growctl() {
    let fixture = Fixture::new();
    fixture.script(|script| script.extend = VecDeque::from([act(JobState::Queued)]));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = Ran::from(fixture.command(&["extend", SHARE, "3GiB"]).stdout(full).output().unwrap()).exits(1);
    assert!(ran.err.contains("cannot write the output: No space left on device"), "{ran:#?}");
    assert!(ran.err.contains("free space") && ran.err.contains("a job that was accepted goes on"), "{ran:#?}");
}

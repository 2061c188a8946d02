//! The real growd while its store is being opened, beside another growd, and after a SIGKILL.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use growd::model::JobState;
use growd::wire::client;
use growd::wire::proto::job_service_client::JobServiceClient;
use growd::wire::proto::{self, GetJobRequest};
use store::*;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

/// A connection as soon as the socket answers.
async fn connected(socket: &Path) -> Channel {
    let begin = Instant::now();
    loop {
        match client::connect(&format!("unix:{}", socket.display()), None).await {
            Ok(channel) => return channel,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Of what needs no pool: these growds have none that is there.
async fn health(channel: &Channel) -> ServingStatus {
    let request = HealthCheckRequest { service: "growd.v1.JobService".to_owned() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

async fn serving(socket: &Path) -> Channel {
    let channel = connected(socket).await;
    let begin = Instant::now();
    while health(&channel).await != ServingStatus::Serving {
        assert!(begin.elapsed() < PATIENCE, "growd does not begin to serve");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    channel
}

async fn get(channel: &Channel, job_id: &str) -> Result<proto::Job, Status> {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    JobServiceClient::new(channel.clone()).get_job(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_opened_growd_answers_that_it_is_starting() {
    let home = Home::new();
    let job = job(JobState::Succeeded);
    home.store(std::slice::from_ref(&job)).await;
    // Reading a pipe takes until somebody writes, so the opening lasts exactly as long as this test wants.
    let mark = home.state().join("jobs.mark");
    let text = std::fs::read_to_string(&mark).unwrap();
    std::fs::remove_file(&mark).unwrap();
    nix::unistd::mkfifo(&mark, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();

    let mut growd = home.start();
    let channel = connected(&home.socket()).await;
    assert_eq!(health(&channel).await, ServingStatus::NotServing);
    let refusal = get(&channel, &job.id.to_string()).await.unwrap_err();
    let reason = refusal.get_error_details().error_info().map(|info| info.reason.clone());
    assert_eq!((refusal.code(), reason.as_deref()), (Code::Unavailable, Some("STORE_UNAVAILABLE")));
    assert!(refusal.message().contains("growd is starting"), "{refusal:?}");

    let writing = tokio::task::spawn_blocking(move || {
        std::fs::OpenOptions::new().write(true).open(mark).unwrap().write_all(text.as_bytes()).unwrap();
    });
    writing.await.unwrap();
    let channel = serving(&home.socket()).await;
    assert_eq!(get(&channel, &job.id.to_string()).await.unwrap().requested_by, CALLER);
    assert!(growd.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_growd_is_refused_and_leaves_the_first_its_socket() {
    let home = Home::new();
    let mut first = home.start();
    serving(&home.socket()).await;

    let other_store = home.configure("store.toml", &home.socket(), &home.dir.path().join("other"));
    let other_socket = home.configure("socket.toml", &home.dir.path().join("other-sock"), &home.state());
    let pid = first.0.id();
    let in_use = format!("is in use by process {pid}");
    for (config, expected) in [
        (home.config(), in_use.as_str()),
        (other_socket, in_use.as_str()),
        (other_store, "another process listens on it; stop it first"),
    ] {
        let second = growd(&["run"], &config);
        assert_eq!(second.status.code(), Some(1), "{second:?}");
        assert!(err(&second).contains(expected), "{}", err(&second));
        serving(&home.socket()).await;
    }
    for command in ["verify", "export", "set-aside"] {
        let refused = home.growd(&["store", command]);
        assert_eq!((refused.status.code(), out(&refused).as_str()), (Some(1), ""), "{command}");
        assert!(err(&refused).contains(&in_use), "{command}: {}", err(&refused));
    }
    assert!(first.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_killed_growd_is_replaced_and_a_file_is_not() {
    let home = Home::new();
    let mut first = home.start();
    serving(&home.socket()).await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(home.socket().exists(), "nothing is left over: this test shows nothing");
    let mut second = home.start();
    serving(&home.socket()).await;
    assert!(second.terminate().success());

    std::fs::remove_file(home.socket()).unwrap();
    std::fs::write(home.socket(), "precious").unwrap();
    let third = home.growd(&["run"]);
    assert_eq!(third.status.code(), Some(1), "{third:?}");
    assert!(err(&third).contains("it is not a socket"), "{}", err(&third));
    assert_eq!(std::fs::read_to_string(home.socket()).unwrap(), "precious");
}

#[test]
fn a_state_directory_that_growd_may_not_make_is_told_as_that() {
    let home = Home::new();
    let config = home.configure("none.toml", &home.socket(), Path::new("/proc/growd/state"));
    let refused = growd(&["run"], &config);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(err(&refused).contains("state_dir outside of /var/lib/growd must be there"), "{}", err(&refused));
}

#[test]
fn a_wrong_command_line_and_the_help_have_their_exit_codes() {
    let home = Home::new();
    let help = home.growd(&["--help"]);
    assert!(help.status.success() && out(&help).contains("Exit codes: 0 done"), "{help:?}");
    assert_eq!(home.growd(&["store", "nonsense"]).status.code(), Some(2));
    let nothing = home.growd(&[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(err(&nothing).contains("[subcommands: run, check-config, store, help]"), "{}", err(&nothing));
}

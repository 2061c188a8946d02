//! What growd and growapi print, also when there is no room for it and when its reader is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod store;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use growd::model::JobState;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::*;

/// A store with a job, beside a configuration with a pool that is there.
async fn home() -> Home {
    let home = Home::new();
    home.store(&[job(JobState::Succeeded)]).await;
    let text = std::fs::read_to_string(home.config()).unwrap();
    let images = home.dir.path().join("{share_id}.img");
    let text = text.replace("project-quota", "image").replace("/nowhere/{share_id}", images.to_str().unwrap());
    std::fs::write(home.config(), text).unwrap();
    home
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn without_reader() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

fn growd(home: &Home, arguments: &[&str], out: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_growd"));
    command.args(arguments).arg("--config").arg(home.config()).stdin(Stdio::null());
    command.stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

fn hash_token(out: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_growapi"));
    command.arg("hash-token").stdin(Stdio::piped()).stdout(out).stderr(Stdio::piped());
    let mut growapi = command.spawn().unwrap();
    growapi.stdin.take().unwrap().write_all("0123456789abcdef".repeat(4).as_bytes()).unwrap();
    growapi.wait_with_output().unwrap()
}

const COMMANDS: [&[&str]; 5] = [
    &["check-config"],
    &["check-config", "--drop-in"],
    &["store", "verify"],
    &["store", "export"],
    &["store", "set-aside"],
];

#[tokio::test]
async fn a_full_disk_is_told_as_the_outputs() {
    let home = home().await;
    let told = "cannot write the output: No space left on device (os error 28)\n";
    for command in COMMANDS {
        let ran = growd(&home, command, full());
        assert_eq!(ran.status.code(), Some(1), "{command:?}: {ran:?}");
        let aside = std::fs::read_dir(home.state()).unwrap().map(|entry| entry.unwrap().path());
        let aside = aside.into_iter().find(|path| path.to_string_lossy().contains("set-aside"));
        let already = aside.map(|aside| format!("the store is in {} now: ", aside.display())).unwrap_or_default();
        assert_eq!(already.is_empty(), command != ["store", "set-aside"], "{command:?}");
        assert_eq!(err(&ran), format!("growd: {already}{told}"), "{command:?}");
    }
    let ran = hash_token(full());
    assert_eq!((ran.status.code(), err(&ran)), (Some(1), format!("growapi: {told}")));
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let home = home().await;
    for command in COMMANDS {
        let ran = growd(&home, command, without_reader());
        assert_eq!((ran.status.code(), err(&ran).as_str()), (Some(0), ""), "{command:?}");
    }
    let ran = hash_token(without_reader());
    assert_eq!((ran.status.code(), err(&ran).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_damaged_store_is_told_to_whoever_reads_no_more_of_its_export() {
    let home = home().await;
    std::fs::write(home.state().join("jobs.mark"), "commit 1000000\n").unwrap();
    let ran = growd(&home, &["store", "export"], without_reader());
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    assert!(err(&ran).starts_with("growd: the export is not complete; 1 problems"), "{}", err(&ran));
}

#[test]
fn without_a_stderr_the_exit_code_is_all_that_is_said() {
    for program in [env!("CARGO_BIN_EXE_growd"), env!("CARGO_BIN_EXE_growapi")] {
        let status = Command::new(program).args(["check-config", "--config", "/nowhere"]).stderr(full()).status();
        assert_eq!(status.unwrap().code(), Some(1), "{program}");
    }
    let home = Home::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_growd"));
    let status = command.args(["check-config", "--config"]).arg(home.config()).stderr(full()).status();
    assert_eq!(status.unwrap().code(), Some(1), "a pool is not there");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nobody_and_what_it_lacks_is_told() {
    let home = home().await;
    let socket = format!("unix:{}", home.dir.path().join("sock").display());
    for (format, told) in [("human", " lines are lost here"), ("json", "\"message\":\"lines are lost here")] {
        let (mut reader, log) = std::io::pipe().unwrap();
        fcntl(&log, FcntlArg::F_SETPIPE_SZ(8192)).unwrap();
        // It ends although it hangs.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "100", env!("CARGO_BIN_EXE_growd"), "run", "--log-format", format, "--config"]);
        let mut growd = command.arg(home.config()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        drop(command);
        // Each refusal is logged.
        let ask = || {
            let mut growctl = Command::new("timeout");
            growctl.args(["30", env!("CARGO_BIN_EXE_growctl"), "--endpoint", &socket]);
            let asked = growctl.args(["extend", "00000000-0000-4000-8000-000000000001", "1GiB"]).output().unwrap();
            asked.status.code()
        };
        let begun = std::time::Instant::now();
        while ask() != Some(4) {
            assert!(begun.elapsed() < PATIENCE, "growd does not answer");
        }
        assert_eq!((0..20).map(|_| ask()).collect::<Vec<_>>(), vec![Some(4); 20]);
        let read = reader.read(&mut [0; 8192]).unwrap();
        assert!(read > 3000, "it was full: {read}");
        assert_eq!(ask(), Some(4));
        kill(Pid::from_raw(growd.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(growd.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.lines().any(|line| line.contains(told)), "{rest}");
    }
}

#[test]
fn what_is_wrong_with_a_level_is_said_once() {
    let home = Home::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_growd"));
    let ran = command.args(["run", "--config"]).arg(home.config()).env("RUST_LOG", "garbage=loud").output().unwrap();
    let level = "(off, error, warn, info, debug, trace) or such as \"info,growd::driver=debug\"";
    assert_eq!(err(&ran), format!("growd: RUST_LOG: \"garbage=loud\" is not a level {level}\n"));
}

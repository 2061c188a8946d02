//! A state directory with jobs made through the library, the real growd on it, and what its files are.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use growd::meters::Meters;
use growd::model::{Bytes, DriverKind, Job, JobId, JobKind, JobState, RequestId, ShareId};
use growd::store::{Claimed, OpenError, Retention, Store};
use uuid::Uuid;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const KEEP_ALL: Retention = Retention { age: Duration::MAX, jobs: usize::MAX };
/// In every record, and easy to find in the files.
pub const CALLER: &str = "uid=0 caller-to-be-found";

/// A job that was accepted at a time, with a request id of its own.
pub fn job_of(accepted: SystemTime, state: JobState) -> Job {
    let millis = accepted.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let random = Uuid::new_v4().into_bytes();
    let id = uuid::Builder::from_unix_timestamp_millis(millis, random[6..].try_into().unwrap()).into_uuid();
    Job {
        id: JobId::from_uuid(id),
        kind: JobKind::Extend,
        share: ShareId::from_uuid(Uuid::from_u128(7)),
        pool: "home".parse().unwrap(),
        driver: DriverKind::ProjectQuota,
        state,
        size_before: Bytes::gib(1),
        requested_size: Bytes::gib(2),
        promised: Bytes::gib(1),
        expected_size: None,
        size_after: None,
        steps: Vec::new(),
        error: None,
        attempt: 1,
        revision: 1,
        requested_by: CALLER.to_owned(),
        project: "".parse().unwrap(),
        request_id: Some(RequestId::from_uuid(Uuid::new_v4())),
        trace: None,
        created_at: accepted,
        started_at: None,
        finished_at: None,
    }
}

pub fn job(state: JobState) -> Job {
    job_of(SystemTime::now(), state)
}

/// Writes a record into a database behind growd's back, as another version of growd might.
pub fn write_other_format(db: &sled::Db, of: JobId) {
    let key = [b"j", of.as_uuid().as_bytes().as_slice()].concat();
    let mut value = vec![9, 0, 0, 0, 0, 0, 0, 0, 9];
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&key);
    hasher.update(&value);
    value.extend_from_slice(&hasher.finalize().to_be_bytes());
    db.insert(key, value).unwrap();
    db.flush().unwrap();
}

/// Opens a store as growd does.
pub fn open(state: &Path, retention: Retention) -> Result<(Store, Vec<Job>), OpenError> {
    Claimed::of(state)?.open(retention, Arc::new(Meters::new().unwrap()))
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until nobody has a file locked: a process that another test was starting has the lock too, until it is the program
/// that it is to be. It would have one that was tried here as well, so another program tries.
pub async fn until_free(file: &Path) {
    let is_free = || std::process::Command::new("flock").arg("-n").arg(file).arg("true").status().unwrap().success();
    until("nobody has the lock", is_free).await;
}

/// A directory with `growd.toml`, the socket, and the state directory.
pub struct Home {
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        home.configure("growd.toml", &home.socket(), &home.state());
        home
    }

    /// Writes a configuration with a pool that is not there: what these tests ask for needs none.
    pub fn configure(&self, name: &str, socket: &Path, state: &Path) -> PathBuf {
        let text = format!(
            "listen = \"unix:{}\"\nstate_dir = \"{}\"\n[[pool]]\nname = \"home\"\ndriver = \"project-quota\"\n\
             path = \"/nowhere/{{share_id}}\"\n",
            socket.display(),
            state.display()
        );
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("growd.toml")
    }

    /// Commits jobs through the library, one group each, and closes the store.
    pub async fn store(&self, jobs: &[Job]) {
        self.store_in_groups(1, jobs).await;
    }

    /// The same with more jobs in a group.
    pub async fn store_in_groups(&self, size: usize, jobs: &[Job]) {
        let (store, _) = open(&self.state(), KEEP_ALL).unwrap();
        for group in jobs.chunks(size) {
            store.commit(group.to_vec()).await.unwrap();
        }
        store.close().await;
        drop(store);
        until_free(&self.state().join("lock")).await;
    }

    /// Runs a growd that is expected to end.
    pub fn growd(&self, arguments: &[&str]) -> Output {
        growd(arguments, &self.config())
    }

    pub fn start(&self) -> Running {
        start(&self.config())
    }

    /// Every file that belongs to the store, with what it holds. The lock notes the process that had it last.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        collect(&self.state(), &mut files);
        files.remove(&self.state().join("lock"));
        files
    }
}

fn collect(dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.insert(path.clone(), Vec::new());
            collect(&path, files);
        } else {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

fn command(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_growd"));
    command.args(arguments).arg("--config").arg(config).env("RUST_LOG", "warn,audit=off").stdin(Stdio::null());
    command
}

pub fn growd(arguments: &[&str], config: &Path) -> Output {
    let mut child =
        command(arguments, config).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map(Running).unwrap();
    let out = child.0.stdout.take().unwrap();
    let err = child.0.stderr.take().unwrap();
    let read = |mut from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let status = child.ended(PATIENCE);
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

pub fn start(config: &Path) -> Running {
    Running(command(&["run"], config).spawn().unwrap())
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A growd that is killed when the test is over.
pub struct Running(pub Child);

impl Running {
    pub fn ended(&mut self, patience: Duration) -> std::process::ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < patience, "growd does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.ended(PATIENCE)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

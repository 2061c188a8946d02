//! The real growapi on a port of its own, and a plain HTTP client for it.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a busy machine; a test that hangs shall fail.
const PATIENCE: Duration = Duration::from_secs(60);

pub const JSON: (&str, &str) = ("Content-Type", "application/json");

pub struct Front {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Front {
    /// Starts growapi with a configuration (TOML) without `listen`, which is written to `growapi.toml` in the directory.
    pub fn start(dir: &Path, config: &str) -> Self {
        configure(dir, config);
        let mut child = Command::new(env!("CARGO_BIN_EXE_growapi"))
            .args(["run", "--config"])
            .arg(dir.join("growapi.toml"))
            .envs([("RUST_LOG", "info"), ("NO_COLOR", "1")])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "growapi did not become ready");
            eprint!("{line}");
            if let Some((_, rest)) = line.split_once("growapi is ready address=") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let front = Self { child, address, log: Arc::clone(&lines) };
        // A log that nobody reads would stop growapi some day.
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| {
                eprintln!("{line}");
                lines.lock().unwrap().push(line);
            });
        });
        front
    }

    /// Whether a line since it became ready has these words.
    pub fn has_logged(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Lets growapi read its configuration again, which takes a moment.
    pub fn reload(&self, dir: &Path, config: &str) {
        configure(dir, config);
        self.signal(nix::sys::signal::Signal::SIGHUP);
    }

    /// Sends SIGTERM: requests at hand are answered, and no new ones are taken.
    pub fn begin_to_terminate(&self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
    }

    /// Waits for the end of the process; whether it was in order.
    pub fn ended_in_order(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    /// SIGTERM; whether growapi then ended in order.
    pub fn terminate(&mut self) -> bool {
        self.begin_to_terminate();
        self.ended_in_order()
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    /// The same at another address of growapi's.
    pub fn ask_at(&self, address: SocketAddr, path: &str) -> Answer {
        Answer::read(send(address, "GET", path, &[], &[]))
    }

    /// Sends a request and leaves its answer to whoever wants it.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        send(self.address, method, path, headers, body)
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], &[])
    }

    /// POST of an action.
    pub fn act(&self, share: &str, body: &str) -> Answer {
        self.ask("POST", &format!("/v2/p/shares/{share}/action"), &[JSON], body.as_bytes())
    }

    /// POST of os-extend to a size in GiB.
    pub fn extend(&self, share: &str, size: u64) -> Answer {
        self.act(share, &format!("{{\"os-extend\": {{\"new_size\": {size}}}}}"))
    }

    /// The details of a share.
    pub fn share(&self, share: &str) -> Value {
        let answer = self.get(&format!("/v2/p/shares/{share}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["share"].clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut stream = connect(address);
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server that refuses a long body may close before it has read all of it.
    let _ = stream.write_all(body);
    stream
}

fn configure(dir: &Path, config: &str) {
    std::fs::write(dir.join("growapi.toml"), format!("listen = \"127.0.0.1:0\"\n{config}")).unwrap();
}

/// The table of a node on a unix socket.
pub fn node(name: &str, socket: &Path) -> String {
    format!("[[node]]\nname = \"{name}\"\nendpoint = \"unix:{}\"\n", socket.display())
}

pub const NOBODY: &str = "[identity]\nkind = \"none\"\n";

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Reads until the server closes.
    pub fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A close with unread data of ours is a reset, after the answer.
        let end = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}, {end:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The text in the wrapper, after a look at the rest of what every refusal has.
    #[track_caller]
    pub fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let wrapper = match status {
            400 => "badRequest",
            401 => "error",
            403 => "forbidden",
            404 => "itemNotFound",
            405 => "badMethod",
            409 => "conflictingRequest",
            413 => "overLimit",
            503 => "serviceUnavailable",
            _ => "computeFault",
        };
        let json = self.json();
        assert_eq!(json[wrapper]["code"], status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert!(self.header("x-openstack-request-id").is_some_and(|id| id.starts_with("req-")), "{self:?}");
        json[wrapper]["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn accepted(&self) {
        assert_eq!((self.status, self.body.as_str(), self.header("content-length")), (202, "", Some("0")), "{self:?}");
        assert!(self.header("x-openstack-request-id").is_some_and(|id| id.starts_with("req-")), "{self:?}");
    }
}

/// Asks again until the answer is as wanted.
pub fn until<T: std::fmt::Debug>(ask: impl Fn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let begin = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "it stays {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

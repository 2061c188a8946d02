//! A Keystone in this process: tokens in memory, over plain HTTP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

#[derive(Default)]
pub struct State {
    /// Project, role and end of each token.
    pub tokens: BTreeMap<String, (String, String, SystemTime)>,
    pub password: String,
    /// How often a token was asked about, and a password was taken.
    pub validations: usize,
    pub logins: usize,
    pub broken: bool,
}

#[derive(Clone)]
pub struct IdentityService {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl IdentityService {
    pub fn start(password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = State { password: password.to_owned(), ..State::default() };
        let service = Self { address: listener.local_addr().unwrap(), state: Arc::new(Mutex::new(state)) };
        let served = service.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let service = served.clone();
                std::thread::spawn(move || service.answer(stream));
            }
        });
        service
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub fn give(&self, token: &str, project: &str, role: &str, lives: Duration) {
        let entry = (project.to_owned(), role.to_owned(), SystemTime::now() + lives);
        self.with(|state| state.tokens.insert(token.to_owned(), entry));
    }

    fn answer(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            let headers = lines.iter().filter_map(|line| line.split_once(": "));
            headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let (status, subject, answer) = match lines[0].split("/auth/tokens").next().unwrap() {
            "POST /v3" => self.log_in(&serde_json::from_slice(&body).unwrap()),
            "GET /v3" => self.validate(&header("x-auth-token").unwrap(), &header("x-subject-token").unwrap()),
            _ => (404, None, json!({})),
        };
        let text = answer.to_string();
        let subject = subject.map(|token| format!("X-Subject-Token: {token}\r\n")).unwrap_or_default();
        let head =
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{subject}Content-Length: {}\r\n\r\n", text.len());
        let _ = (&stream).write_all(format!("{head}{text}").as_bytes());
    }

    fn log_in(&self, body: &Value) -> (u16, Option<String>, Value) {
        let user = &body["auth"]["identity"]["password"]["user"];
        assert_eq!((&user["name"], &user["domain"]["name"]), (&json!("growapi"), &json!("Default")));
        assert_eq!(body["auth"]["scope"]["project"]["name"], "service");
        let right = self.with(|state| {
            state.logins += 1;
            user["password"] == state.password
        });
        if !right {
            return (401, None, json!({}));
        }
        let token = format!("service-{}", uuid::Uuid::new_v4());
        self.give(&token, "service", "admin", Duration::from_secs(3600));
        (201, Some(token), json!({"token": {}}))
    }

    fn validate(&self, own: &str, subject: &str) -> (u16, Option<String>, Value) {
        self.with(|state| {
            state.validations += 1;
            let now = SystemTime::now();
            if state.broken || subject.is_empty() {
                return (500, None, json!({}));
            }
            if !state.tokens.get(own).is_some_and(|(project, _, until)| project == "service" && now < *until) {
                return (401, None, json!({}));
            }
            match state.tokens.get(subject).filter(|(_, _, until)| now < *until) {
                None => (404, None, json!({})),
                Some((project, role, until)) => {
                    let expires = humantime::format_rfc3339_micros(*until).to_string();
                    let roles = [json!({"id": "r", "name": role})];
                    let token = json!({"project": {"id": project}, "roles": roles, "expires_at": expires});
                    (200, None, json!({"token": token}))
                }
            }
        })
    }
}

//! A real growd on the host with its log in a file, certificates made for the test, and clients of every kind.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test panics")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use growd::wire::client::{self, Credentials};
use growd::wire::proto::node_service_client::NodeServiceClient;
use growd::wire::proto::share_service_client::ShareServiceClient;
use growd::wire::proto::{ExtendShareRequest, GetNodeRequest, ListPoolsRequest};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;

#[path = "../support/json_log.rs"]
mod json_log;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/refusals.rs"]
pub mod refusals;
pub use ports::reserve_port;
pub use refusals::reason;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SHARE: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";

/// An authority of certificates, with files in a directory of its own.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate for growd on 127.0.0.1.
    pub fn node(&self) -> Credentials {
        self.sign("node", ExtendedKeyUsagePurpose::ServerAuth, |params| {
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        })
    }

    /// A client whose common name is the name.
    pub fn client(&self, name: &str) -> Credentials {
        self.client_with(name, |_| {})
    }

    pub fn client_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth, change)
    }

    pub fn sign(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credentials {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let file = name.replace('/', "-");
        let files = [format!("{file}.pem"), format!("{file}.key")].map(|file| self.dir.join(file));
        fs::write(&files[0], params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        let [certificate, key] = files;
        Credentials { ca: self.ca(), certificate, key }
    }
}

pub struct Growd {
    child: Child,
    pub dir: tempfile::TempDir,
    pub address: SocketAddr,
    // Held for its Drop, after growd was killed.
    _reservation: UnixListener,
}

impl Growd {
    /// Starts growd with this behind `listen` and `state_dir`; `{port}` is a port of its own.
    pub async fn start(dir: tempfile::TempDir, config: &str) -> Self {
        let (address, reservation) = reserve_port();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        write_config(dir.path(), address, config);
        let child = Command::new(env!("CARGO_BIN_EXE_growd"))
            .args(["run", "--log-format", "json", "--config"])
            .arg(dir.path().join("growd.toml"))
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let growd = Self { child, dir, address, _reservation: reservation };
        growd.until_logged(|line| line["fields"]["message"] == "growd is ready").await;
        growd
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn configure(&self, config: &str) {
        write_config(self.dir.path(), self.address, config);
    }

    /// SIGHUP, and waits for what growd says of it.
    pub async fn reload(&self) -> bool {
        let ends =
            ["the configuration was read anew", "the configuration has not been read anew: the earlier one stays"];
        let said = |growd: &Self| {
            let log = growd.log();
            ends.map(|end| log.iter().filter(|line| line["fields"]["message"] == end).count())
        };
        let before = said(self);
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        let begin = Instant::now();
        loop {
            let now = said(self);
            if now != before {
                return now[0] > before[0];
            }
            assert!(begin.elapsed() < PATIENCE, "growd does not read its configuration anew");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All whole lines so far.
    pub fn log(&self) -> Vec<Value> {
        json_log::lines(&self.dir.path().join("log"))
    }

    /// The records of the audit.
    pub fn audit(&self) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["target"] == "audit").map(|line| line["fields"].clone()).collect()
    }

    /// The first line like this, as soon as it is there.
    pub async fn until_logged(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            if let Some(line) = self.log().into_iter().find(|line| wanted(line)) {
                return line;
            }
            assert!(begin.elapsed() < PATIENCE, "not in the log: {:#?}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn socket(&self) -> String {
        format!("unix:{}/sock", self.dir.path().display())
    }

    pub fn https(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The first call on a connection of its own: why it failed, from the handshake or from growd.
    pub async fn node(&self, credentials: &Credentials) -> Result<(), String> {
        let channel = client::connect(&self.https(), Some(credentials)).await.map_err(|error| format!("{error:?}"))?;
        node(&channel).await.map_err(|status| match reason(&status) {
            reason if reason.is_empty() => format!("{status:?}"),
            reason => reason,
        })
    }
}

impl Drop for Growd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(dir: &Path, address: SocketAddr, config: &str) {
    let text = format!(
        "listen = \"unix:{0}/sock\"\nstate_dir = \"{0}/state\"\n{1}",
        dir.display(),
        config.replace("{port}", &address.port().to_string())
    );
    fs::write(dir.join("growd.toml"), text).unwrap();
}

/// A pool that is not there: what these tests ask for needs none.
pub fn pool(name: &str) -> String {
    format!("[[pool]]\nname = \"{name}\"\ndriver = \"project-quota\"\npath = \"/nowhere/{name}/{{share_id}}\"\n")
}

/// `[tcp]` with the certificate of growd and the authority of its clients.
pub fn tcp(node: &Credentials, clients: &Authority) -> String {
    format!(
        "[tcp]\nlisten = \"127.0.0.1:{{port}}\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n",
        node.certificate.display(),
        node.key.display(),
        clients.ca().display()
    )
}

pub async fn node(channel: &Channel) -> Result<(), Status> {
    NodeServiceClient::new(channel.clone()).get_node(GetNodeRequest {}).await.map(drop)
}

pub async fn pools(channel: &Channel) -> Vec<String> {
    let pools = NodeServiceClient::new(channel.clone()).list_pools(ListPoolsRequest {}).await.unwrap().into_inner();
    pools.pools.into_iter().map(|pool| pool.name).collect()
}

/// Asks for an extend of a share that there is not.
pub async fn extend(channel: &Channel) -> Status {
    let request = ExtendShareRequest { share_id: SHARE.to_owned(), new_size_bytes: 1 << 30, ..Default::default() };
    ShareServiceClient::new(channel.clone()).extend_share(request).await.unwrap_err()
}

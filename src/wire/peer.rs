//! The other end of a connection: who it is, as the kernel or a verified certificate says, and where.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::certificate;
use crate::model::Identity;
use crate::sys::accounts;

#[derive(Debug, Default)]
pub struct Peer {
    /// Empty when nothing is known.
    pub identities: Vec<Identity>,
    /// For people: who it is, and from where.
    pub name: String,
}

impl Peer {
    /// `SO_PEERCRED` and `SO_PEERGROUPS`: what the process was when it connected.
    pub fn of_unix(stream: &UnixStream) -> Self {
        let Ok(credentials) = stream.peer_cred() else {
            return Self { identities: Vec::new(), name: "unknown".to_owned() };
        };
        let mut identities = vec![Identity::User(credentials.uid()), Identity::Group(credentials.gid())];
        identities.extend(accounts::peer_groups(stream.as_fd()).unwrap_or_default().into_iter().map(Identity::Group));
        let name = match credentials.pid() {
            Some(pid) => format!("uid={} pid={pid}", credentials.uid()),
            None => format!("uid={}", credentials.uid()),
        };
        Self { identities, name }
    }

    pub fn of_tls(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Self {
        let chain = stream.get_ref().1.peer_certificates();
        let identities = chain.and_then(<[_]>::first).map(certificate::identities).unwrap_or_default();
        let name = match identities.first() {
            Some(identity) => format!("{identity} from {address}"),
            None => format!("a certificate without a name from {address}"),
        };
        Self { identities, name }
    }

    pub fn of_plain_tcp(address: SocketAddr) -> Self {
        Self { identities: vec![Identity::Anonymous], name: format!("anonymous from {address}") }
    }

    /// Whether it is somebody: an anonymous caller may have a role and is nobody still.
    pub fn is_known(&self) -> bool {
        !matches!(self.identities.as_slice(), [] | [Identity::Anonymous])
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

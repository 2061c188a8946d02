//! Ports for servers that have to be told theirs.

use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};

/// A free port, which no other test takes as long as the reservation lives: that is a name without a file, which one
/// process of the machine can have. The kernel gives none of these ports out by itself.
pub fn reserve_port() -> (SocketAddr, UnixListener) {
    let mut ports = 20_000..32_000;
    let reserved = ports.find_map(|port| {
        let name = UnixAddress::from_abstract_name(format!("growd-test-port-{port}")).unwrap();
        let reservation = UnixListener::bind_addr(&name).ok()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        TcpListener::bind(address).ok().map(|_| (address, reservation))
    });
    reserved.expect("a free port")
}

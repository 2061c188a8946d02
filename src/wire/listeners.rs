//! Where connections come from: the unix socket, and a TCP port with TLS or without. Each becomes one kind of
//! connection that knows its peer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::peer::Peer;
use super::tls::Tls;
use super::turned_away::TurnedAway;
use crate::meters::Meters;

/// Handshakes at once, and how long each may take: whoever connects and says nothing must not keep the others out.
const HANDSHAKES_MOST: usize = 256;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// After an accept that failed for want of files or memory, which the next would too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

pub struct Connection {
    io: Pin<Box<dyn Io>>,
    peer: Arc<Peer>,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

/// All connections, until the stream is dropped.
pub fn connections(
    unix: UnixListener,
    tcp: Option<(TcpListener, Option<Arc<Tls>>)>,
    meters: Arc<Meters>,
) -> ReceiverStream<io::Result<Connection>> {
    // One is enough: the kernel's own queue holds those that wait.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept_unix(unix, sender.clone()));
    match tcp {
        Some((listener, Some(tls))) => drop(tokio::spawn(accept_tls(listener, tls, sender, meters))),
        Some((listener, None)) => drop(tokio::spawn(accept_plain(listener, sender))),
        None => {}
    }
    ReceiverStream::new(receiver)
}

type Sender = mpsc::Sender<io::Result<Connection>>;

/// `None` when nobody takes connections any more.
async fn accepted<T>(
    sender: &Sender,
    failures: &TurnedAway,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> Option<T> {
    loop {
        let answer = tokio::select! {
            () = sender.closed() => return None,
            answer = poll_fn(&mut accept) => answer,
        };
        match answer {
            Ok(stream) => return Some(stream),
            Err(error) => {
                if let Some(count) = failures.count() {
                    warn!(%error, %count, "a connection could not be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept_unix(listener: UnixListener, sender: Sender) {
    let failures = TurnedAway::default();
    while let Some((stream, _)) = accepted(&sender, &failures, |cx| listener.poll_accept(cx)).await {
        let peer = Arc::new(Peer::of_unix(&stream));
        let _ = sender.send(Ok(Connection { io: Box::pin(stream), peer })).await;
    }
}

async fn accept_plain(listener: TcpListener, sender: Sender) {
    let failures = TurnedAway::default();
    while let Some((stream, address)) = accepted(&sender, &failures, |cx| listener.poll_accept(cx)).await {
        let _ = stream.set_nodelay(true);
        let peer = Arc::new(Peer::of_plain_tcp(address));
        let _ = sender.send(Ok(Connection { io: Box::pin(stream), peer })).await;
    }
}

async fn accept_tls(listener: TcpListener, tls: Arc<Tls>, sender: Sender, meters: Arc<Meters>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MOST));
    let (failures, bad_handshakes) = (TurnedAway::default(), TurnedAway::default());
    let turn_away = Arc::new(move |address: SocketAddr, error: &str| {
        meters.turned_away("HANDSHAKE");
        if let Some(count) = bad_handshakes.count() {
            warn!(target: "audit", who = %address, error, turned_away = %count, "turned away: the TLS handshake failed");
        }
    });
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Some((stream, address)) = accepted(&sender, &failures, |cx| listener.poll_accept(cx)).await else { return };
        let (tls, sender, turn_away) = (Arc::clone(&tls), sender.clone(), Arc::clone(&turn_away));
        tokio::spawn(async move {
            match timeout(HANDSHAKE_LIMIT, shake_hands(&tls, stream, address)).await {
                Ok(Ok(connection)) => {
                    let _ = sender.send(Ok(connection)).await;
                }
                Ok(Err(error)) => turn_away(address, &error.to_string()),
                Err(_) => turn_away(address, "it took too long"),
            }
            drop(place);
        });
    }
}

async fn shake_hands(tls: &Tls, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
    let _ = stream.set_nodelay(true);
    let stream = TlsAcceptor::from(tls.current()).accept(stream).await?;
    let peer = Arc::new(Peer::of_tls(&stream, address));
    Ok(Connection { io: Box::pin(stream), peer })
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

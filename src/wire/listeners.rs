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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::limits::{HANDSHAKE_LIMIT, HANDSHAKES_MOST, PREFACE_LIMIT};
use super::peer::Peer;
use super::tls::Tls;
use super::turned_away::TurnedAway;
use crate::meters::Meters;

/// Bytes of the preface with which a client of HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// After an accept that failed for want of files or memory, which the next would too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

pub struct Connection {
    io: Pin<Box<dyn Io>>,
    peer: Arc<Peer>,
    /// Until the preface has come: what of it is missing, and the end of the patience.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    /// Of the listener; given back with the connection.
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(io: impl Io + 'static, peer: Peer, place: OwnedSemaphorePermit) -> Self {
        let preface = Some((PREFACE, Box::pin(sleep(PREFACE_LIMIT))));
        Self { io: Box::pin(io), peer: Arc::new(peer), preface, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

/// All connections, until the stream is dropped; at most so many of each listener. Whoever comes then is turned away: an
/// end at once is better told from a growd that hangs than a wait.
pub fn connections(
    unix: UnixListener,
    tcp: Option<(TcpListener, Option<Arc<Tls>>)>,
    most: usize,
    meters: &Arc<Meters>,
) -> ReceiverStream<io::Result<Connection>> {
    // One is enough: the kernel's own queue holds those that wait.
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept_unix(unix, Door::new(&sender, most, meters)));
    match tcp {
        Some((listener, Some(tls))) => drop(tokio::spawn(accept_tls(listener, tls, Door::new(&sender, most, meters)))),
        Some((listener, None)) => drop(tokio::spawn(accept_plain(listener, Door::new(&sender, most, meters)))),
        None => {}
    }
    ReceiverStream::new(receiver)
}

type Sender = mpsc::Sender<io::Result<Connection>>;

/// What a listener's connections come through.
struct Door {
    sender: Sender,
    places: Arc<Semaphore>,
    most: usize,
    failures: TurnedAway,
    above_most: TurnedAway,
    meters: Arc<Meters>,
}

impl Door {
    fn new(sender: &Sender, most: usize, meters: &Arc<Meters>) -> Self {
        Self {
            sender: sender.clone(),
            places: Arc::new(Semaphore::new(most)),
            most,
            failures: TurnedAway::default(),
            above_most: TurnedAway::default(),
            meters: Arc::clone(meters),
        }
    }

    /// `None` when nobody takes connections any more.
    async fn accepted<T>(
        &self,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Option<(T, OwnedSemaphorePermit)> {
        loop {
            let answer = tokio::select! {
                () = self.sender.closed() => return None,
                answer = poll_fn(&mut accept) => answer,
            };
            match (answer, Arc::clone(&self.places).try_acquire_owned()) {
                (Ok(stream), Ok(place)) => return Some((stream, place)),
                (Ok(_), Err(_)) => {
                    self.meters.turned_away("CONNECTIONS");
                    if let Some(count) = self.above_most.count() {
                        warn!(most = self.most, turned_away = %count, "turned away: there are as many connections as may be");
                    }
                }
                (Err(error), _) => {
                    if let Some(count) = self.failures.count() {
                        warn!(%error, %count, "a connection could not be accepted");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn accept_unix(listener: UnixListener, door: Door) {
    while let Some(((stream, _), place)) = door.accepted(|cx| listener.poll_accept(cx)).await {
        let peer = Peer::of_unix(&stream);
        let _ = door.sender.send(Ok(Connection::new(stream, peer, place))).await;
    }
}

async fn accept_plain(listener: TcpListener, door: Door) {
    while let Some(((stream, address), place)) = door.accepted(|cx| listener.poll_accept(cx)).await {
        let _ = stream.set_nodelay(true);
        let _ = door.sender.send(Ok(Connection::new(stream, Peer::of_plain_tcp(address), place))).await;
    }
}

async fn accept_tls(listener: TcpListener, tls: Arc<Tls>, door: Door) {
    let hands = Arc::new(Semaphore::new(HANDSHAKES_MOST));
    let (bad_handshakes, meters) = (TurnedAway::default(), Arc::clone(&door.meters));
    let turn_away = Arc::new(move |address: SocketAddr, error: &str| {
        meters.turned_away("HANDSHAKE");
        if let Some(count) = bad_handshakes.count() {
            warn!(target: "audit", who = %address, error, turned_away = %count, "turned away: the TLS handshake failed");
        }
    });
    while let Ok(hand) = Arc::clone(&hands).acquire_owned().await {
        let Some(((stream, address), place)) = door.accepted(|cx| listener.poll_accept(cx)).await else { return };
        let (tls, sender, turn_away) = (Arc::clone(&tls), door.sender.clone(), Arc::clone(&turn_away));
        tokio::spawn(async move {
            match timeout(HANDSHAKE_LIMIT, shake_hands(&tls, stream, address, place)).await {
                Ok(Ok(connection)) => {
                    let _ = sender.send(Ok(connection)).await;
                }
                Ok(Err(error)) => turn_away(address, &error.to_string()),
                Err(_) => turn_away(address, "it took too long"),
            }
            drop(hand);
        });
    }
}

async fn shake_hands(
    tls: &Tls,
    stream: TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    let _ = stream.set_nodelay(true);
    let stream = TlsAcceptor::from(tls.current()).accept(stream).await?;
    let peer = Peer::of_tls(&stream, address);
    Ok(Connection::new(stream, peer, place))
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let connection = &mut *self;
        let Some((missing, patience)) = &mut connection.preface else {
            return connection.io.as_mut().poll_read(cx, buffer);
        };
        if patience.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let answer = connection.io.as_mut().poll_read(cx, buffer);
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            connection.preface = None;
        }
        answer
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

    /// To a connection that says so, h2 writes a message below 1 KiB and the end of its stream at once. To one that takes
    /// several buffers it writes the message first when it has 256 bytes, so that a client is woken twice
    /// (`CHAIN_THRESHOLD` in its src/codec/framed_write.rs).
    fn is_write_vectored(&self) -> bool {
        false
    }
}

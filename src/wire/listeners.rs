//! Where connections come from: the unix socket, and a TCP port with TLS or without. Each becomes one kind of
//! connection that knows its peer.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::gate::Guard;
use super::limits::{ACCEPT_PAUSE, HANDSHAKE_LIMIT, HANDSHAKES_MOST, PREFACE_LIMIT, strangers};
use super::log_limit::LogLimit;
use super::peer::Peer;
use super::tls::Tls;
use crate::meters::Meters;

/// Bytes of the preface with which a client of HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// A bound TCP port; without TLS everybody who reaches it is an anonymous caller.
pub struct Tcp {
    pub listener: TcpListener,
    pub tls: Option<Arc<Tls>>,
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

pub struct Connection {
    io: Pin<Box<dyn Io>>,
    peer: Arc<Peer>,
    /// Until the preface has come: what of it is missing, and the end of the patience.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    /// Given back with the connection.
    _slots: Held,
}

/// A slot among all connections of a listener, and one among those of strangers.
type Held = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Connection {
    fn new(io: impl Io + 'static, peer: Peer, slots: Held) -> Self {
        let preface = Some((PREFACE, Box::pin(sleep(PREFACE_LIMIT))));
        Self { io: Box::pin(io), peer: Arc::new(peer), preface, _slots: slots }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

/// By what their callers were when they connected.
pub struct Connections {
    /// Of those with a role.
    pub known: ReceiverStream<io::Result<Connection>>,
    pub strangers: mpsc::Receiver<io::Result<Connection>>,
}

/// All connections, until the streams are dropped; at most so many of each listener, of which few are of strangers.
/// Whoever comes then is turned away: an end at once is better told from a growd that hangs than a wait.
pub fn connections(
    unix: UnixListener,
    tcp: Option<Tcp>,
    most: usize,
    guard: &Arc<Guard>,
    meters: &Arc<Meters>,
) -> Connections {
    // One is enough: the kernel's own queue holds those that wait.
    let ((known, of_known), (stranger, of_strangers)) = (mpsc::channel(1), mpsc::channel(1));
    let door = || Door {
        known: known.clone(),
        stranger: stranger.clone(),
        slots: Slots::new("anybody", most, meters),
        slots_of_strangers: Slots::new("callers without a role", strangers(most), meters),
        guard: Arc::clone(guard),
        failures: LogLimit::default(),
    };
    tokio::spawn(accept_unix(unix, door()));
    match tcp {
        Some(Tcp { listener, tls: Some(tls) }) => {
            drop(tokio::spawn(accept_tls(listener, tls, Arc::new(door()), Arc::clone(meters))))
        }
        Some(Tcp { listener, tls: None }) => drop(tokio::spawn(accept_plain(listener, door()))),
        None => {}
    }
    Connections { known: ReceiverStream::new(of_known), strangers: of_strangers }
}

/// So many connections may be there at once.
struct Slots {
    of: &'static str,
    most: usize,
    free: Arc<Semaphore>,
    turned_away: LogLimit,
    meters: Arc<Meters>,
}

impl Slots {
    fn new(of: &'static str, most: usize, meters: &Arc<Meters>) -> Self {
        let free = Arc::new(Semaphore::new(most));
        Self { of, most, free, turned_away: LogLimit::default(), meters: Arc::clone(meters) }
    }

    /// `None` when the connection is one too many.
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.free).try_acquire_owned().ok();
        if slot.is_none() {
            self.meters.turned_away("CONNECTIONS");
            if let Some(count) = self.turned_away.count() {
                let (of, most) = (self.of, self.most);
                warn!(of, most, turned_away = %count, "turned away: there are as many connections as may be");
            }
        }
        slot
    }
}

type Sender = mpsc::Sender<io::Result<Connection>>;

/// What a listener's connections come through.
struct Door {
    known: Sender,
    stranger: Sender,
    slots: Slots,
    slots_of_strangers: Slots,
    guard: Arc<Guard>,
    failures: LogLimit,
}

impl Door {
    async fn admit(&self, io: impl Io + 'static, peer: Peer, slot: OwnedSemaphorePermit) {
        let (sender, of_strangers) = if self.guard.knows(&peer) {
            (&self.known, None)
        } else {
            let Some(slot) = self.slots_of_strangers.take() else { return };
            (&self.stranger, Some(slot))
        };
        let _ = sender.send(Ok(Connection::new(io, peer, (slot, of_strangers)))).await;
    }

    /// `None` when nobody takes connections any more.
    async fn accepted<T>(
        &self,
        mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Option<(T, OwnedSemaphorePermit)> {
        loop {
            let answer = tokio::select! {
                () = self.known.closed() => return None,
                answer = poll_fn(&mut accept) => answer,
            };
            match answer {
                Ok(stream) => {
                    if let Some(slot) = self.slots.take() {
                        return Some((stream, slot));
                    }
                }
                Err(error) => {
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
    while let Some(((stream, _), slot)) = door.accepted(|cx| listener.poll_accept(cx)).await {
        let peer = Peer::of_unix(&stream);
        door.admit(stream, peer, slot).await;
    }
}

async fn accept_plain(listener: TcpListener, door: Door) {
    while let Some(((stream, address), slot)) = door.accepted(|cx| listener.poll_accept(cx)).await {
        let _ = stream.set_nodelay(true);
        door.admit(stream, Peer::of_plain_tcp(address), slot).await;
    }
}

async fn accept_tls(listener: TcpListener, tls: Arc<Tls>, door: Arc<Door>, meters: Arc<Meters>) {
    let hands = Arc::new(Semaphore::new(HANDSHAKES_MOST));
    let bad_handshakes = LogLimit::default();
    let turn_away = Arc::new(move |address: SocketAddr, error: &str| {
        meters.turned_away("HANDSHAKE");
        if let Some(count) = bad_handshakes.count() {
            warn!(target: "audit", who = %address, error, turned_away = %count, "turned away: the TLS handshake failed");
        }
    });
    while let Ok(hand) = Arc::clone(&hands).acquire_owned().await {
        let Some(((stream, address), slot)) = door.accepted(|cx| listener.poll_accept(cx)).await else { return };
        let (tls, door, turn_away) = (Arc::clone(&tls), Arc::clone(&door), Arc::clone(&turn_away));
        tokio::spawn(async move {
            match timeout(HANDSHAKE_LIMIT, shake_hands(&tls, stream)).await {
                Ok(Ok(stream)) => {
                    let peer = Peer::of_tls(&stream, address);
                    door.admit(stream, peer, slot).await;
                }
                Ok(Err(error)) => turn_away(address, &error.to_string()),
                Err(_) => turn_away(address, "it took too long"),
            }
            drop(hand);
        });
    }
}

async fn shake_hands(tls: &Tls, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    TlsAcceptor::from(tls.current()).accept(stream).await
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

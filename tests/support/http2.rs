//! HTTP/2 by hand (RFC 9113, and RFC 7541 for headers): what no client would send.

// Every test binary compiles its own copy of this module and uses a part of it.
#![allow(dead_code)]

use std::io;
use std::path::Path;
use std::time::Duration;

use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::codegen::Bytes;
use tonic::codegen::http::Request;
use tonic::{Code, Status};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What a connection without anything to read has said all that it will.
const SILENCE: Duration = Duration::from_secs(60);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// One header as a literal that nobody remembers (RFC 7541, 6.2.2).
pub fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        // A string's length has a prefix of 7 bits (RFC 7541, 5.1).
        let mut bytes = Vec::new();
        let mut rest = text.len();
        if rest < 127 {
            bytes.push(rest as u8);
        } else {
            bytes.push(127);
            rest -= 127;
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// The headers of a call of gRPC.
pub fn call_headers(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "growd"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    headers.map(|(name, value)| header(name, value)).concat()
}

/// A whole call with a message of protobuf.
pub fn call(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(message);
    [frame(HEADERS, END_HEADERS, stream, &call_headers(path)), frame(DATA, END_STREAM, stream, &body)].concat()
}

/// A connection that keeps to the rules, so that its calls may last.
pub struct Caller(SendRequest<Bytes>);

impl Caller {
    pub async fn greet(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self(client)
    }

    /// Begins a call that promises a message of so many bytes, and sends so many of them and no more; the code that ends
    /// it.
    pub async fn begin(
        &self,
        path: &str,
        headers: &[(String, String)],
        promised: usize,
        sent: usize,
    ) -> impl Future<Output = Code> + Send + use<> {
        let mut request = Request::post(format!("http://growd{path}")).header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut client = self.0.clone().ready().await.unwrap();
        let (answer, mut words) = client.send_request(request.body(()).unwrap(), false).unwrap();
        let begun = [&[0], &u32::try_from(promised).unwrap().to_be_bytes()[..], &vec![b'x'; sent]].concat();
        words.send_data(begun.into(), false).unwrap();
        let path = path.to_owned();
        async move {
            let ended = timeout(SILENCE, async {
                let (head, mut body) = answer.await.unwrap().into_parts();
                while body.data().await.is_some() {}
                let trailers = body.trailers().await.unwrap();
                Status::from_header_map(&trailers.unwrap_or(head.headers)).unwrap().code()
            });
            let code = ended.await.unwrap_or_else(|_| panic!("{path} is not refused"));
            // Only now: growd would hear of it.
            drop(words);
            code
        }
    }
}

/// A connection that says what it is told to, and nothing of its own.
pub struct Raw<S = UnixStream>(pub S);

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl Raw<UnixStream> {
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        UnixStream::connect(socket).await.map(Self)
    }

    /// With preface and settings sent.
    pub async fn greet(socket: &Path, settings: &[u8]) -> io::Result<Self> {
        let mut raw = Self::connect(socket).await?;
        raw.say(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await?;
        Ok(raw)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame; `None` when the connection is closed.
    pub async fn hear(&mut self) -> Option<Frame> {
        timeout(SILENCE, self.read()).await.expect("growd neither answers nor closes the connection").ok()
    }

    async fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Listens until a frame is like this. `None` when the connection is closed before.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.hear().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// The code of the GOAWAY with which the connection ends; `None` when it ends without one. A reset of the connection
    /// may have thrown away what was sent before it.
    pub async fn end(&mut self) -> Option<u32> {
        let code = self.until(|frame| frame.kind == GOAWAY).await?.code();
        while self.hear().await.is_some() {}
        Some(code)
    }
}

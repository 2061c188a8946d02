//! The limits of connections and requests, each with its reason.
//!
//! What is not set here, since tonic has no setting for it, is h2's own: it answers the pings and settings of a client
//! one at a time and reads no further until they are sent, takes no more CONTINUATION frames than a list of headers of
//! [`HEADERS_MOST`] can need, and no more than 100 empty frames of data; up to 400 KiB of an answer wait for a client
//! that does not read.

use std::time::Duration;

/// The largest request that is read: the longest legal one has less than 2 KiB. What has come of one is kept until the
/// rest has.
pub const MESSAGE_MOST: usize = 4 << 10;
/// How long a request may take to come whole: until then it holds its headers, its message and one of the streams of its
/// connection. Those of a client on a slow line come within a second.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// All headers of a request, with 32 bytes for each (RFC 9113, 6.5.2). A gRPC client sends less than 1 KiB; tracing adds
/// some. A request with more is answered with 431.
pub const HEADERS_MOST: u32 = 16 << 10;
/// A frame; HTTP/2 allows no less (RFC 9113, 4.2), and no request has any use for more.
pub const FRAME_MOST: u32 = 16 << 10;
/// Streams of one connection at once, RFC 9113 recommends at least 100 (6.5.2); a client with more calls lets them wait.
/// For each stream a request of up to [`REQUEST_COST`] or an answer of up to some hundred KiB may be held.
pub const STREAMS_MOST: u32 = 256;
/// The same for a caller that had no role when it connected, who can call nothing but the health service.
pub const STRANGERS_STREAMS_MOST: u32 = 4;
/// What a request takes at most while it comes: its message, and its headers with their places in the table of headers,
/// which are several times their text when there are as many as [`HEADERS_MOST`] allows.
pub const REQUEST_COST: usize = 128 << 10;
/// What one stream may send before it is read: about as much as a client may send before it has heard of a limit (RFC
/// 9113, 6.9.2). It bounds no message, since each is read as it comes.
pub const STREAM_WINDOW: u32 = 64 << 10;
/// What all streams of a connection may send before it is read, which bounds only what comes for whoever goes on asking
/// for reflection without taking the answers. It cannot be much less: h2 takes as many small frames of data at once as half of
/// it has room for when each counts as 256 bytes, and a client may well begin [`STREAMS_MOST`] calls in a moment.
pub const CONNECTION_WINDOW: u32 = 256 << 10;
/// Streams that were reset before growd has come to accept them; above it the connection is closed. Each costs more than
/// it costs the client ("rapid reset", CVE-2023-44487), and no client gives up so many calls within a moment.
pub const RESETS_MOST: usize = 20;
/// Streams that growd has reset for an error of the client, in the life of a connection: no correct client makes any,
/// and each costs an answer ("MadeYouReset", CVE-2025-8671).
pub const ERRORS_MOST: usize = 128;
/// A caller that is gone without a word is noticed by this, and its streams end.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Handshakes of TLS at once, and how long each may take: whoever connects and says nothing must not keep the others out.
pub const HANDSHAKES_MOST: usize = 256;
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take for the preface of HTTP/2 (RFC 9113, 3.4), with which it begins: pings begin only then.
pub const PREFACE_LIMIT: Duration = Duration::from_secs(10);

/// After an accept that failed for want of files or memory, which the next would too.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections of scrapers of metrics at once; more wait in the listener's queue. There are one or two Prometheus.
pub const SCRAPERS_MOST: usize = 32;
/// How long a scraper may take for the head of a request, waiting for the next one included, and to take what it is sent.
pub const SCRAPE_LIMIT: Duration = Duration::from_secs(10);

/// Connections of one listener at once, so that the callers of the TCP port cannot keep those of the socket out. An API
/// tier has one or a few for each of its processes.
pub const CONNECTIONS_MOST: u64 = 10_240;
/// So many of them may be of callers without a role, which is enough for probes of health: with [`STRANGERS_STREAMS_MOST`]
/// requests each they hold 128 MiB at most, and cannot keep out callers with a role.
pub const STRANGERS_MOST: usize = 256;
/// Files for all but connections: the store, pools, tools of the host. What a program has without asking for more.
const FILES_KEPT: u64 = 1024;

/// The files that must be open at once for as many connections as there may be.
pub const fn files(listeners: u64) -> u64 {
    FILES_KEPT + listeners * CONNECTIONS_MOST
}

/// The connections of one listener that so many open files leave room for.
pub fn connections(files: u64, listeners: u64) -> u64 {
    (files.saturating_sub(FILES_KEPT) / listeners).clamp(1, CONNECTIONS_MOST)
}

/// How many of so many connections of one listener may be of callers without a role.
pub fn strangers(connections: usize) -> usize {
    connections.div_ceil(2).min(STRANGERS_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest() {
        assert_eq!(connections(files(2), 2), CONNECTIONS_MOST);
        assert_eq!(connections(u64::MAX, 1), CONNECTIONS_MOST);
        assert_eq!(connections(4096, 2), 1536);
        assert_eq!(connections(256, 1), 1);
        assert_eq!([1, 100, 10_000].map(strangers), [1, 50, STRANGERS_MOST]);
    }

    /// As docs/limits.md says.
    #[test]
    fn what_requests_hold_before_they_are_whole() {
        let hold = |connections, streams: u32| connections * streams as usize * REQUEST_COST;
        assert_eq!(hold(STRANGERS_MOST, STRANGERS_STREAMS_MOST), 128 << 20);
        assert_eq!(hold(1, STREAMS_MOST), 32 << 20);
    }
}

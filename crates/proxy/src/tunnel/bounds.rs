//! How much one end of a shared connection may make the other hold, and how a dead one is noticed.

use std::time::Duration;

use hyper::client::conn::http2;
use hyper::server::conn as server;
use hyper_util::rt::TokioTimer;

use crate::relay::READ;
use crate::snapshot::Limits;
use crate::worker::LocalExec;

/// Streams of a connection at a time; beyond it another is opened (reference mtls 8.4).
pub(crate) const STREAMS: usize = 100;
/// Longest frame of data that is taken. A read of the other side's, which fills TLS records and goes in one write: with
/// HTTP/2's default, every frame would be a full record and one of its last nine bytes, each in a write of their own.
pub(crate) const FRAME: u32 = READ as u32;
/// What a peer may send on a stream before somebody has read it: whole frames, or every round would have a short one.
pub(crate) const STREAM_WINDOW: u32 = 4 * FRAME;
/// And on a connection. No less than all its streams together: else a few that nobody reads would stop their
/// neighbours.
pub(crate) const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;
/// Streams that may be taken back in one flight. Applications that end at once take back all of theirs, which must not
/// cost their neighbours the connection; h2's own bound of 20 would.
pub(crate) const TAKEN_BACK: usize = STREAMS;
/// What a stream may have written that the connection has not yet; whole frames, too.
pub(crate) const SEND_BUFFER: usize = 2 * READ;
/// How long a peer that took no more than one stream a connection is not asked again to take many.
pub(crate) const SINGLE_FOR: Duration = Duration::from_secs(60);
/// How often a peer with streams under way is asked whether it is still there, and how long it may take to say so.
pub(crate) const PING: Duration = Duration::from_secs(10);
pub(crate) const PONG: Duration = Duration::from_secs(20);

/// The bounds of a client's connection for HTTP/1.1 requests.
pub(crate) fn bound_client(builder: &mut http2::Builder<LocalExec>, limits: &Limits) {
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(head_list(limits))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
}

/// The bounds of a server's connection for HTTP/1.1 requests.
pub(crate) fn bound_server(builder: &mut server::http2::Builder<LocalExec>, limits: &Limits) {
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS as u32)
        .max_pending_accept_reset_streams(TAKEN_BACK)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(head_list(limits));
}

/// A head of HTTP/1.1's size: HTTP/2 counts 32 bytes more for each of its lines (RFC 9113 section 6.5.2), of which HTTP/1.1
/// has no more than 100.
pub(crate) fn head_list(limits: &Limits) -> u32 {
    u32::try_from(limits.head_bytes).unwrap_or(u32::MAX).saturating_add(128 * 32)
}

//! How much one end of a shared connection may make the other hold, and how a dead one is noticed.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use h2::{Ping, PingPong, client};
use hyper::server::conn as server;
use tokio::time::{sleep, timeout};

use crate::http::write_first::Progress;
use crate::relay::READ;
use crate::snapshot::Limits;
use crate::worker::LocalExec;

/// Requests of a connection at a time; beyond it another is opened (reference mtls 8.4).
pub(crate) const STREAMS: usize = 100;
/// And byte streams, which are few and long where they matter, and want larger windows.
pub(crate) const BYTE_STREAMS: usize = 16;
/// Longest frame of data that is taken. A read of the other side's, which fills TLS records and goes in one write: with
/// HTTP/2's default, every frame would be a full record and one of its last nine bytes, each in a write of their own.
pub(crate) const FRAME: u32 = READ as u32;
/// What a peer may send of a request or answer before somebody has read it, where there is room for it: whole frames, or
/// every round would have a short one.
const STREAM_WINDOW: u32 = 4 * FRAME;
/// And of a byte stream. A sender that has to wait for the window leaves what it reads from waiting as well, and everybody
/// is woken up again for each: with half of it, bulk costs seven percent more CPU, with an eighth a quarter more. Twice as
/// much saves nothing more.
const BYTE_STREAM_WINDOW: u32 = 32 * FRAME;
/// And where there is none: less than HTTP/2's default, and enough for a stream to go on.
const SMALL_WINDOW: u32 = 16 * 1024;
/// What all peers of a worker together may send before somebody has read it, save small windows.
const WINDOWS: usize = 256 << 20;
/// A connection gets so much of what is left, so that something is left for those that come.
const SHARE: usize = 8;
/// Streams that may be taken back in one flight. Applications that end at once take back all of theirs, which must not
/// cost their neighbours the connection; h2's own bound of 20 would.
pub(crate) const TAKEN_BACK: usize = STREAMS;
/// What a stream may have written that the connection has not yet; whole frames, too.
pub(crate) const SEND_BUFFER: usize = 2 * READ;
/// How long a peer that took no more than one stream a connection is not asked again to take many.
pub(crate) const SINGLE_FOR: Duration = Duration::from_secs(60);
/// How often a peer with streams under way that says nothing is asked whether it is still there; and how long it may go on
/// to say nothing at all, in two such spans at most.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(20);

/// What is left of a worker's windows.
///
/// Bytes that nobody reads are held where they arrived, so windows are what bounds them. A stream's window cannot be taken
/// back, so every connection gets windows by what is left when it is opened, and keeps them to its end: the first few 256
/// KiB a stream (the first of bytes: two MiB), the twentieth about 32 (128), and from then on 16. So a worker holds no more than 256
/// MiB and 16 KiB for each stream, whatever its peers send; and no stream ever waits for another one to be read.
#[derive(Debug, Clone)]
pub(crate) struct Windows(Rc<Cell<usize>>);

impl Default for Windows {
    fn default() -> Self {
        Self(Rc::new(Cell::new(WINDOWS)))
    }
}

impl Windows {
    /// The windows of one connection that carries requests.
    pub(crate) fn take(&self) -> Window {
        self.take_for(STREAMS, STREAM_WINDOW)
    }

    /// The windows of one connection that carries bytes.
    pub(crate) fn take_for_bytes(&self) -> Window {
        self.take_for(BYTE_STREAMS, BYTE_STREAM_WINDOW)
    }

    fn take_for(&self, streams: usize, most: u32) -> Window {
        let left = self.0.get();
        let share = u32::try_from(left / SHARE / streams).unwrap_or(most).min(most);
        let stream = if share > FRAME { share - share % FRAME } else { share };
        if stream < SMALL_WINDOW {
            return Window { stream: SMALL_WINDOW, streams, held: 0, of: self.0.clone() };
        }
        let held = stream as usize * streams;
        self.0.set(left.saturating_sub(held));
        Window { stream, streams, held, of: self.0.clone() }
    }
}

/// What the peer of one connection may send before somebody has read it; to be kept as long as the connection.
#[derive(Debug)]
pub(crate) struct Window {
    stream: u32,
    streams: usize,
    held: usize,
    of: Rc<Cell<usize>>,
}

impl Window {
    /// Of each stream.
    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    /// Of the connection. No less than all its streams together: else a few that nobody reads would stop their
    /// neighbours.
    pub(super) fn connection(&self) -> u32 {
        self.stream.saturating_mul(self.streams as u32)
    }

    /// What the heads of small frames may cost that nobody has read (`data_frame_budget`: up to 255 bytes a frame). h2's own
    /// bound, and where windows are small no less than all of them full of frames of 64 bytes: a few streams of those that
    /// nobody reads would end the connection for all.
    pub(super) fn frames(&self) -> usize {
        let full = 3 * SMALL_WINDOW as usize * self.streams;
        full.max(self.connection() as usize / 2)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.of.set(self.of.get().saturating_add(self.held));
    }
}

/// The bounds of a client's connection for HTTP/1.1 requests.
pub(crate) fn bound_client(builder: &mut client::Builder, limits: &Limits, window: &Window) {
    builder
        .initial_window_size(window.stream())
        .initial_connection_window_size(window.connection())
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(head_list(limits));
}

/// The bounds of a server's connection for HTTP/1.1 requests.
pub(crate) fn bound_server(
    builder: &mut server::http2::Builder<LocalExec>,
    limits: &Limits,
    window: &Window,
) {
    builder
        .initial_stream_window_size(window.stream())
        .initial_connection_window_size(window.connection())
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS as u32)
        .max_pending_accept_reset_streams(TAKEN_BACK)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(head_list(limits));
}

/// Ends when a peer says nothing any more while the connection is in use. What counts is anything that it says: on a slow
/// link a question may wait long behind what is under way, and so may its answer.
pub(crate) async fn is_there(mut ping: PingPong, is_used: impl Fn() -> bool, progress: &Progress) {
    loop {
        sleep(PING).await;
        if progress.take_heard() || !is_used() {
            continue;
        }
        let mut pong = pin!(ping.ping(Ping::opaque()));
        loop {
            match timeout(PONG, pong.as_mut()).await {
                Ok(Ok(_)) => break,
                Err(_) if progress.take_heard() => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

/// A head of HTTP/1.1's size: HTTP/2 counts 32 bytes more for each of its lines (RFC 9113 section 6.5.2), of which HTTP/1.1
/// has no more than 100.
pub(crate) fn head_list(limits: &Limits) -> u32 {
    u32::try_from(limits.head_bytes).unwrap_or(u32::MAX).saturating_add(128 * 32)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::http::write_first::WriteFirst;

    /// A peer that never answers a PING is there while it says anything else, and gone once it does not.
    #[tokio::test(start_paused = true)]
    async fn a_peer_is_there_while_it_says_anything() {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let (near, mut far) = duplex(1 << 16);
        let opened = WriteFirst::open(&client::Builder::new(), near).await;
        let (_sender, progress, mut connection) = opened.expect("a connection");
        let ping = connection.ping_pong().expect("nobody else has it");
        let began = Instant::now();
        let peer = async {
            far.write_all(&SETTINGS).await.expect("open");
            while began.elapsed() < Duration::from_secs(300) {
                sleep(Duration::from_secs(15)).await;
                far.write_all(&WINDOW_UPDATE).await.expect("open");
            }
            // It reads, and says nothing.
            let _ = far.read_to_end(&mut Vec::new()).await;
        };
        tokio::select! {
            () = is_there(ping, || true, &progress) => {}
            ended = connection => panic!("{ended:?}"),
            () = peer => panic!("the connection was given up by itself"),
        }
        let after = began.elapsed();
        assert!(after > Duration::from_secs(300), "given up after {after:?}");
        assert!(after < Duration::from_secs(360), "given up after {after:?}");
    }

    #[test]
    fn many_connections_share_what_a_worker_may_hold_and_give_it_back() {
        let windows = Windows::default();
        let few: Vec<Window> = (0..3).map(|_| windows.take()).collect();
        assert!(few.iter().all(|window| window.stream() == STREAM_WINDOW));
        let many: Vec<Window> = (0..500).map(|_| windows.take()).collect();
        // A stream can always go on, and never has to wait for its neighbours.
        assert!(many.iter().all(|window| window.stream() >= SMALL_WINDOW));
        assert!(many.iter().all(|window| window.connection() as usize >= window.stream() as usize * STREAMS));
        let beyond_small = |window: &Window| (window.stream() - SMALL_WINDOW) as usize * STREAMS;
        let held: usize = few.iter().chain(&many).map(beyond_small).sum();
        assert!(held <= WINDOWS, "{held}");
        assert_eq!(many.last().map(Window::stream), Some(SMALL_WINDOW));
        drop((few, many));
        assert_eq!(windows.take().stream(), STREAM_WINDOW, "what was held has not come back");
        assert_eq!(windows.take_for_bytes().stream(), BYTE_STREAM_WINDOW);
        let bytes: Vec<Window> = (0..200).map(|_| windows.take_for_bytes()).collect();
        assert!(
            bytes
                .iter()
                .all(|window| window.connection() as usize == window.stream() as usize * BYTE_STREAMS)
        );
        let held: usize = bytes.iter().map(|window| window.held).sum();
        assert!(held <= WINDOWS, "{held}");
        assert_eq!(bytes.last().map(Window::stream), Some(SMALL_WINDOW));
    }
}

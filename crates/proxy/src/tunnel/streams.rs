//! The called side of connections whose streams are bytes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use h2::{Reason, server};
use http::{Method, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::bounds::{BYTE_STREAMS, FRAME, SEND_BUFFER, TAKEN_BACK};
use super::bytes::{ByteStream, Counted};
use super::renewal::{Renewals, is_renewal};
use crate::departure::Stage;
use crate::http::linger::Lingering;
use crate::open::{Fate, Open};
use crate::snapshot::Direction;
use crate::stream::Stream;
use crate::worker::Worker;

/// How long a connection that is leaving waits for streams that its caller opened before it knew.
const LULL: Duration = Duration::from_secs(2);

/// What happens next on a connection.
enum Next<T> {
    Stream(T),
    Drain,
    End,
}

/// Gives every stream of a connection to `each`, which judges it. When the connection may not go on, no more are taken
/// (GOAWAY), and those that are open go on until they end or are cut themselves.
pub(crate) async fn serve_streams(worker: &Worker, io: Stream, open: Rc<Open>, each: impl Fn(ByteStream)) {
    let local = if worker.recorder.logs_everything() { io.local_addr() } else { None };
    let renewals = Renewals::new(io.binding());
    let window = worker.windows.take_for_bytes();
    let handshake = server::Builder::new()
        .initial_window_size(window.stream())
        .initial_connection_window_size(window.connection())
        .data_frame_budget(window.frames())
        // And the one on which certificates are shown.
        .max_concurrent_streams(BYTE_STREAMS as u32 + 1)
        .max_pending_accept_reset_streams(TAKEN_BACK)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(1024)
        .handshake(Lingering::new(io));
    let Ok(Ok(mut connection)) = timeout(worker.config.limits.handshake, handshake).await else { return };
    let departure = worker.departure(Direction::Inbound);
    let mut leaving = pin!(departure.reached(Stage::Leaves));
    let mut is_draining = false;
    let streams = Arc::new(AtomicUsize::new(0));
    let mut lull = pin!(sleep(LULL));
    loop {
        let next = poll_fn(|cx| {
            // Looked at whenever a stream has ended, too: that wakes the connection.
            if is_draining {
                match streams.load(Relaxed) {
                    0 if lull.as_mut().poll(cx).is_ready() => renewals.end(),
                    0 => {}
                    _ => lull.as_mut().reset(Instant::now() + LULL),
                }
            }
            if !is_draining && leaving.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Drain);
            }
            if !is_draining && let Poll::Ready(Fate::Cut(_) | Fate::Drains) = open.poll_fate(cx) {
                return Poll::Ready(Next::Drain);
            }
            connection.poll_accept(cx).map(|accepted| match accepted {
                Some(Ok(stream)) => Next::Stream(stream),
                // How it ended, its streams know.
                Some(Err(_)) | None => Next::End,
            })
        });
        match next.await {
            // A peer that takes no notice of GOAWAY gains nothing by that.
            Next::Stream((_, mut respond)) if open.barred().is_some() => {
                respond.send_reset(Reason::REFUSED_STREAM)
            }
            Next::Stream((request, mut respond)) => {
                let mut response = Response::new(());
                if is_renewal(request.method()) {
                    let (facts, tls) = (open.facts.clone(), worker.shared.tls.clone());
                    renewals.serve(request.into_body(), respond, facts, tls);
                    continue;
                }
                if *request.method() != Method::CONNECT {
                    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                    let _ = respond.send_response(response, true);
                    continue;
                }
                // Nothing that the request says is read: identity, SNI and destination are the connection's. It is
                // answered before it is judged, as a TCP connection is accepted before.
                if let Ok(send) = respond.send_response(response, false) {
                    each(ByteStream::accepted(send, request.into_body(), local, Counted::new(&streams)));
                }
            }
            Next::Drain => {
                is_draining = true;
                lull.as_mut().reset(Instant::now() + LULL);
                connection.graceful_shutdown();
            }
            Next::End => return,
        }
    }
}

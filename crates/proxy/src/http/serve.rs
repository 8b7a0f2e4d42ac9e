//! Serves HTTP on an accepted connection until it ends, or until policy ends it.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::departure::{Departure, Stage};
use crate::http::body::Body;
use crate::open::{Fate, Open};
use crate::snapshot::Direction;
use crate::sniff::Prefixed;
use crate::stream::Stream;
use crate::worker::{LocalExec, Worker};

/// Answers requests of one connection.
pub(crate) trait Handler: 'static {
    /// Answers one request; never fails, since a failure is an answer too.
    fn call(self: Rc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + 'static;
}

/// Serves until the peer closes; `open` says when the connection has to end earlier.
pub(crate) async fn serve_http<H: Handler>(
    worker: &Worker,
    io: Prefixed<Stream>,
    is_http2: bool,
    open: Option<Rc<Open>>,
    handler: Rc<H>,
) {
    let limits = &worker.config.limits;
    let io = TokioIo::new(io);
    // Only inbound connections are judged while they live.
    let departure = worker.departure(if open.is_some() { Direction::Inbound } else { Direction::Outbound });
    let is_used = Cell::new(false);
    if is_http2 {
        let service = service_fn(|request| {
            is_used.set(true);
            let answer = handler.clone().call(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http2::Builder::new(LocalExec)
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .serve_connection(io, service);
        // A caller that has connected just now gets an answer before it is sent away.
        let may_end = |stage| stage == Stage::Ends || is_used.get();
        drive(pin!(connection), open, departure, |c| c.graceful_shutdown(), may_end).await;
    } else {
        let service = service_fn(|request: Request<Incoming>| {
            let is_tunnel = request.method() == Method::CONNECT;
            let answer = handler.clone().call(request);
            async move {
                let mut response = answer.await;
                let goes_on = is_tunnel || response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if departure.stage() != Stage::Stays && !goes_on {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        // hyper's own bound of 100 header lines is Envoy's, and set explicitly it costs an allocation a head.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.request_head)
            .auto_date_header(false)
            .max_header_size(limits.head_bytes)
            .pipeline_flush(true)
            .serve_connection(io, service)
            .with_upgrades();
        let may_end = |stage| stage == Stage::Ends;
        drive(pin!(connection), open, departure, |c| c.graceful_shutdown(), may_end).await;
    }
}

/// Polls the connection, and tells it to end when its fate says so, or when it is to leave and `may_end`.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    open: Option<Rc<Open>>,
    departure: &Departure,
    drain: fn(Pin<&mut C>),
    may_end: impl Fn(Stage) -> bool,
) {
    let mut watch = departure.watch();
    let mut stage = Stage::Stays;
    let mut is_draining = false;
    poll_fn(|cx| {
        if !is_draining
            && let Some(open) = &open
            && let Poll::Ready(fate) = open.poll_fate(cx)
        {
            match fate {
                Fate::Cut(_) => return Poll::Ready(()),
                Fate::Drains | Fate::Lives => {
                    is_draining = true;
                    drain(connection.as_mut());
                }
            }
        }
        while let Poll::Ready(next) = watch.poll(cx) {
            stage = next;
        }
        if !is_draining && stage != Stage::Stays && may_end(stage) {
            is_draining = true;
            drain(connection.as_mut());
        }
        // How a connection ended is known to those who waited for something on it.
        connection.as_mut().poll(cx).map(|_| ())
    })
    .await;
}

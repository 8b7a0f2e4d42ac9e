//! Serves HTTP on an accepted connection until it ends, or until policy ends it.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::departure::{Departure, Stage};
use crate::http::body::Body;
use crate::http::linger::Lingering;
use crate::http::pace::{Pace, Paced, TooMuch};
use crate::http::websocket;
use crate::open::{Fate, Open};
use crate::snapshot::{Direction, Limits};
use crate::sniff::Prefixed;
use crate::stream::Stream;
use crate::tunnel;
use crate::worker::{LocalExec, Worker};

/// Answers requests of one connection.
pub(crate) trait Handler: 'static {
    /// Answers one request; never fails, since a failure is an answer too.
    fn call(self: Rc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + 'static;
}

/// What an HTTP/1.1 connection of either side reads ahead, and what waits to be written, at most; a head has to fit into it.
pub(crate) const BUFFER: usize = 128 * 1024;

/// Serves until the peer closes; `open` says when the connection has to end earlier. The answer says if it was too much
/// for us.
pub(crate) async fn serve_http<H: Handler>(
    worker: &Worker,
    io: Prefixed<Stream>,
    is_http2: bool,
    open: Option<Rc<Open>>,
    handler: Rc<H>,
) -> Option<TooMuch> {
    let limits = &worker.config.limits;
    let pace = Pace::new(Instant::now());
    // Only inbound connections are judged while they live.
    let departure = worker.departure(if open.is_some() { Direction::Inbound } else { Direction::Outbound });
    let is_used = Cell::new(false);
    let judged = open.clone();
    let is_leaving =
        || departure.stage() != Stage::Stays || judged.as_ref().is_some_and(|open| open.is_leaving());
    let is_leaving = &is_leaving;
    if is_http2 {
        let is_of_many = io.get_ref().is_of_many();
        let service = service_fn(|mut request| {
            is_used.set(true);
            let under_way = pace.begin();
            let is_websocket = !is_of_many && websocket::unfold(worker, &mut request);
            let handler = handler.clone();
            async move {
                // Boxed: hyper and tokio move the task of a stream some four times, and this is most of it.
                let mut response = Box::pin(handler.call(request)).await;
                if is_websocket {
                    response = websocket::fold(response);
                }
                Ok::<_, Infallible>(response.map(|body| body.during(under_way)))
            }
        });
        let mut builder = http2::Builder::new(LocalExec);
        builder
            .auto_date_header(false)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
        let window = is_of_many.then(|| worker.windows.take());
        match &window {
            Some(window) => tunnel::bound_server(&mut builder, limits, window),
            None => drop(builder.enable_connect_protocol()),
        }
        let connection = builder.serve_connection(TokioIo::new(Lingering::new(io)), service);
        // A caller that has connected just now gets an answer before it is sent away.
        let may_end = |stage| stage == Stage::Ends || is_used.get();
        drive(
            pin!(connection),
            open,
            departure,
            (&pace, limits, is_http2),
            |c| c.graceful_shutdown(),
            may_end,
        )
        .await
    } else {
        let is_switched = Arc::<AtomicBool>::default();
        let asked = Cell::new(None);
        let switched = &is_switched;
        let service = service_fn(|request: Request<Incoming>| {
            if let Some(on_upgrade) = request.extensions().get::<OnUpgrade>() {
                asked.set(Some(on_upgrade.clone()));
            }
            let is_tunnel = request.method() == Method::CONNECT;
            let under_way = pace.begin();
            let handler = handler.clone();
            // Called in here, so that the future of the answer is held once and not twice.
            async move {
                let mut response = handler.call(request).await.map(|body| body.during(under_way));
                let status = response.status();
                let goes_on = status == StatusCode::SWITCHING_PROTOCOLS || is_tunnel && status.is_success();
                if goes_on {
                    switched.store(true, Ordering::Relaxed);
                }
                if is_leaving() && !goes_on {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        // hyper's own bound of 100 header lines is Envoy's, and set explicitly it costs an allocation a head. Its
        // `pipeline_flush` is not for us: with it, what waits to be written has no bound, and answers are lost if the
        // caller has sent more than the connection is to serve.
        let connection = http1::Builder::new()
            .auto_date_header(false)
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER)
            .serve_connection(
                TokioIo::new(Paced::new(Lingering::unless(io, is_switched.clone()), &pace)),
                service,
            )
            .with_upgrades();
        let may_end = |stage| stage == Stage::Ends;
        let ended = drive(
            pin!(connection),
            open,
            departure,
            (&pace, limits, is_http2),
            |c| c.graceful_shutdown(),
            may_end,
        )
        .await;
        // Once another protocol was asked for, hyper ends no connection itself, also if that was refused.
        if !is_switched.load(Ordering::Relaxed)
            && let Some(asked) = asked.take()
        {
            let end = async {
                if let Ok(left) = asked.await {
                    let _ = TokioIo::new(left).shutdown().await;
                }
            };
            let _ = Box::pin(timeout(limits.request_head, end)).await;
        }
        ended
    }
}

/// Polls the connection, and tells it to end when its fate says so, when it is to leave and `may_end`, or when it takes too
/// long.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    open: Option<Rc<Open>>,
    departure: &Departure,
    (pace, limits, is_http2): (&Pace, &Limits, bool),
    drain: fn(Pin<&mut C>),
    may_end: impl Fn(Stage) -> bool,
) -> Option<TooMuch> {
    let mut look_again = pin!(tokio::time::sleep(limits.request_head.min(limits.idle_caller)));
    let mut watch = departure.watch();
    let mut stage = Stage::Stays;
    let mut is_draining = false;
    poll_fn(|cx| {
        if !is_draining
            && let Some(open) = &open
            && let Poll::Ready(fate) = open.poll_fate(cx)
        {
            match fate {
                Fate::Cut(_) => return Poll::Ready(None),
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
        pace.watch(cx);
        while pace.is_storm() || look_again.as_mut().poll(cx).is_ready() {
            match pace.verdict(limits, Instant::now()) {
                Ok(left) => look_again.as_mut().reset(tokio::time::Instant::now() + left),
                Err(TooMuch::Idle) if !is_draining => {
                    is_draining = true;
                    drain(connection.as_mut());
                    look_again.as_mut().reset(tokio::time::Instant::now() + limits.request_head);
                }
                // Streams that were requests once go on, and nothing new comes.
                Err(TooMuch::Idle) if is_http2 => {
                    look_again.as_mut().reset(tokio::time::Instant::now() + limits.idle_caller);
                }
                Err(too_much) => return Poll::Ready(Some(too_much)),
            }
        }
        // How a connection ended is known to those who waited for something on it.
        connection.as_mut().poll(cx).map(|_| None)
    })
    .await
}

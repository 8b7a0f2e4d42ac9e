//! Hands a judged request to an upstream and its response back.

use std::rc::Rc;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use maille_telemetry::{RefusalKind, ResponseFlags};

use crate::http::body::Body;
use crate::http::exchange::Exchange;
use crate::http::head::{self, Malformed};
use crate::http::reply;
use crate::http::upgrade::Switching;
use crate::pool::{Answer, NotSent, Pool, SendError};
use crate::record::Refused;
use crate::worker::Worker;

/// Set by Envoy where a bound on connections or requests was reached.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Makes a checked request ready to be sent with `version`; its body counts into `exchange`.
pub(crate) fn prepare(
    request: &mut Request<Body>,
    exchange: &mut Exchange,
    version: Version,
) -> Result<(), Malformed> {
    if !request.body().is_empty() {
        request.body_mut().count_into(exchange.request_body());
    }
    let is_from_http2 = request.version() == Version::HTTP_2;
    request.extensions_mut().clear();
    head::adapt(request, version)?;
    if is_from_http2 && version != Version::HTTP_2 && !request.body().is_empty() {
        let headers = request.headers_mut();
        if !headers.contains_key(http::header::CONTENT_LENGTH) {
            // hyper takes a body of unknown length for none if the method rarely has one.
            headers.insert(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Ok(())
}

/// A request that was not answered by its upstream.
pub(crate) struct Failed {
    pub(crate) error: SendError,
    pub(crate) exchange: Box<Exchange>,
    /// Not a byte of it was sent, or it has no effect: another upstream may be tried.
    pub(crate) request: Option<Box<Request<Body>>>,
    pub(crate) switching: Option<Switching>,
}

/// Sends a request and makes the upstream's response the caller's. The request is boxed from here on: each of the futures
/// that it goes through would hold it twice.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    request: Box<Request<Body>>,
    mut exchange: Box<Exchange>,
    switching: Option<Switching>,
    downstream: Version,
) -> Result<Response<Body>, Box<Failed>> {
    exchange.sent(pool.upstream.address);
    let Answer { mut response, lease } = match pool.send(worker, request).await {
        Ok(answer) => answer,
        Err(NotSent { error, request }) => {
            return Err(Box::new(Failed { error, exchange, request, switching }));
        }
    };
    // Only now is it known who answered.
    if let Some(edge) = pool.edge(worker) {
        exchange.set_edge(edge);
    }
    exchange.answered(&response);
    let local = lease.local();
    exchange.sent(pool.upstream.reached_from(local));
    exchange.sent_from(local);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(switching) = switching else {
            let error = SendError::Protocol("it switched protocols unasked".to_owned());
            return Err(Box::new(Failed { error, exchange, request: None, switching }));
        };
        switching.start(worker.clone(), hyper::upgrade::on(&mut response), lease.proof());
        head::clean_response(response.headers_mut(), true);
        exchange.complete();
        return Ok(response.map(|_| Body::empty()));
    }
    head::clean_response(response.headers_mut(), false);
    *response.version_mut() = downstream;
    response.extensions_mut().clear();
    Ok(response.map(|incoming| Body::response(incoming, lease, exchange)))
}

/// Answers in place of an upstream that did not, in Envoy's words, and records why.
pub(crate) fn fail(error: &SendError, exchange: Box<Exchange>) -> Response<Body> {
    let prefix = "upstream connect error or disconnect/reset before headers. reset reason:";
    let details = "upstream_reset_before_response_started";
    let (status, text, kind, flags, details) = match error {
        SendError::Connect(error) => {
            let why = error.for_caller();
            let text = format!("{prefix} remote connection failure, transport failure reason: {why}");
            let details = format!("{details}{{remote_connection_failure|{why}}}");
            (StatusCode::SERVICE_UNAVAILABLE, text, error.kind(), error.flags(), details)
        }
        SendError::Reset(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{prefix} connection termination"),
            RefusalKind::UpstreamFailed,
            ResponseFlags::UpstreamClosed,
            format!("{details}{{connection_termination}}"),
        ),
        SendError::StreamReset(reason) => {
            let why = match *reason {
                h2::Reason::REFUSED_STREAM => "remote refused stream reset",
                _ => "remote reset",
            };
            (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{prefix} {why}"),
                RefusalKind::UpstreamFailed,
                ResponseFlags::UpstreamReset,
                format!("{details}{{{}}}", why.replace(' ', "_")),
            )
        }
        SendError::Protocol(_) => (
            StatusCode::BAD_GATEWAY,
            format!("{prefix} protocol error"),
            RefusalKind::UpstreamFailed,
            ResponseFlags::UpstreamProtocolError,
            format!("{details}{{protocol_error}}"),
        ),
        SendError::Overflow(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{prefix} overflow"),
            RefusalKind::Overload,
            ResponseFlags::UpstreamOverflow,
            format!("{details}{{overflow}}"),
        ),
    };
    let tls = match error {
        SendError::Connect(error) => error.tls(),
        _ => None,
    };
    let refused = Refused::new(kind, error.to_string()).with_flags(flags).with_tls(tls).with_details(details);
    let mut response = refusal(exchange.is_grpc, &refused, status, &text);
    if matches!(error, SendError::Overflow(_)) {
        response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
    }
    refuse_with(response, &refused, exchange)
}

/// Refuses a request with an answer of the proxy's own, and records why.
pub(crate) fn refuse(
    refused: &Refused,
    exchange: Box<Exchange>,
    status: StatusCode,
    text: &str,
) -> Response<Body> {
    refuse_with(refusal(exchange.is_grpc, refused, status, text), refused, exchange)
}

/// An answer of the proxy's own.
pub(crate) fn refusal(is_grpc: bool, refused: &Refused, status: StatusCode, text: &str) -> Response<Body> {
    let mut response = reply::local(is_grpc, status, text);
    if refused.kind() == RefusalKind::BadRequest {
        // Who sends one malformed request is not trusted to agree with us where the next begins. hyper leaves the
        // field out of HTTP/2.
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Refuses a request with an answer that is there already, and records why.
pub(crate) fn refuse_with(
    mut response: Response<Body>,
    refused: &Refused,
    mut exchange: Box<Exchange>,
) -> Response<Body> {
    if exchange.worker().explains() {
        response.headers_mut().insert(reply::REASON, reply::reason(refused.reason()));
    }
    exchange.answered(&response);
    exchange.response_bytes = http_body::Body::size_hint(response.body()).lower();
    exchange.refused(refused);
    response
}

//! Hands a judged request to an upstream and its response back.

use std::rc::Rc;

use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use maille_telemetry::{RefusalKind, RequestLine, ResponseFlags};

use crate::http::body::Body;
use crate::http::exchange::Exchange;
use crate::http::head::{self, Malformed};
use crate::http::reply;
use crate::http::upgrade::Switching;
use crate::pool::{Answer, NotSent, Pool, SendError};
use crate::record::Refused;
use crate::worker::Worker;

/// Makes a checked request ready to be sent with `version`; its body counts into `exchange`.
pub(crate) fn prepare(
    request: Request<Incoming>,
    exchange: &mut Exchange,
    version: Version,
) -> Result<Request<Body>, Malformed> {
    let (parts, incoming) = request.into_parts();
    let body = if http_body::Body::is_end_stream(&incoming) {
        Body::empty()
    } else {
        Body::request(incoming, exchange.request_body())
    };
    let is_from_http2 = parts.version == Version::HTTP_2;
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().clear();
    head::adapt(&mut request, version)?;
    if is_from_http2 && version != Version::HTTP_2 && !request.body().is_empty() {
        let headers = request.headers_mut();
        if !headers.contains_key(http::header::CONTENT_LENGTH) {
            // hyper takes a body of unknown length for none if the method rarely has one.
            headers.insert(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    Ok(request)
}

/// A request that was not answered by its upstream.
pub(crate) struct Failed {
    pub(crate) error: SendError,
    pub(crate) exchange: Exchange,
    /// Not a byte of it was sent: another upstream may be tried.
    pub(crate) request: Option<Request<Body>>,
    pub(crate) switching: Option<Switching>,
}

/// Sends a request and makes the upstream's response the caller's.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    request: Request<Body>,
    mut exchange: Exchange,
    switching: Option<Switching>,
    downstream: Version,
) -> Result<Response<Body>, Box<Failed>> {
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
    exchange.code = response.status().as_u16();
    exchange.response_bytes = head::head_bytes(response.headers());
    exchange.note_grpc_status(response.headers());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(switching) = switching else {
            let error = SendError::Protocol("it switched protocols unasked".to_owned());
            return Err(Box::new(Failed { error, exchange, request: None, switching }));
        };
        switching.start(worker.clone(), hyper::upgrade::on(&mut response));
        head::clean_response(response.headers_mut(), true, false);
        exchange.complete();
        return Ok(response.map(|_| Body::empty()));
    }
    let is_http2 = downstream == Version::HTTP_2;
    head::clean_response(response.headers_mut(), false, is_http2);
    *response.version_mut() = downstream;
    response.extensions_mut().clear();
    Ok(response.map(|incoming| Body::response(incoming, lease, exchange)))
}

/// Answers in place of an upstream that did not, in Envoy's words, and records why.
pub(crate) fn fail(
    worker: &Worker,
    line: &RequestLine<'_>,
    error: &SendError,
    mut exchange: Exchange,
) -> Response<Body> {
    let prefix = "upstream connect error or disconnect/reset before headers. reset reason:";
    let (status, text, kind, flags) = match error {
        SendError::Connect(error) => {
            let text = format!(
                "{prefix} remote connection failure, transport failure reason: {}",
                error.for_caller()
            );
            (StatusCode::SERVICE_UNAVAILABLE, text, error.kind(), error.flags())
        }
        SendError::Reset(_) => {
            let text = format!("{prefix} connection termination");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                text,
                RefusalKind::UpstreamFailed,
                ResponseFlags::UpstreamClosed,
            )
        }
        SendError::Protocol(_) => {
            let text = format!("{prefix} protocol error");
            (StatusCode::BAD_GATEWAY, text, RefusalKind::UpstreamFailed, ResponseFlags::UpstreamProtocolError)
        }
    };
    let tls = match error {
        SendError::Connect(error) => error.tls(),
        SendError::Reset(_) | SendError::Protocol(_) => None,
    };
    let refused = Refused::new(kind, error.to_string()).with_flags(flags).with_tls(tls);
    exchange.flags = flags;
    refuse(worker, line, &refused, exchange, status, &text)
}

/// Refuses a request with an answer of the proxy's own, and records why.
pub(crate) fn refuse(
    worker: &Worker,
    line: &RequestLine<'_>,
    refused: &Refused,
    mut exchange: Exchange,
    status: StatusCode,
    text: &str,
) -> Response<Body> {
    let mut response = reply::local(exchange.is_grpc, status, text);
    if refused.kind() == RefusalKind::BadRequest {
        // Who sends one malformed request is not trusted to agree with us where the next begins. hyper leaves the
        // field out of HTTP/2.
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.code = response.status().as_u16();
    exchange.flags = refused.flags();
    exchange.note_grpc_status(response.headers());
    exchange.response_bytes = head::head_bytes(response.headers()) + text.len() as u64;
    if let Some(edge) = exchange.edge() {
        worker.recorder.refused_request(edge, line, &exchange.outcome(), &refused.refusal());
    }
    exchange.forget();
    response
}

/// What a log line says of a request, kept until it is answered; made without copying text.
pub(crate) struct Line {
    method: http::Method,
    uri: http::Uri,
    host: Option<HeaderValue>,
}

impl Line {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(http::header::HOST).cloned(),
        }
    }

    pub(crate) fn borrow(&self) -> RequestLine<'_> {
        let host = self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        RequestLine {
            method: self.method.as_str(),
            authority: self.uri.authority().map_or(host, |authority| authority.as_str()),
            path: self.uri.path(),
        }
    }
}

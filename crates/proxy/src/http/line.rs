//! What a log line says of a request, kept until it is answered; made without copying text.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};
use maille_telemetry::{Marks, RequestLine, Way};

use crate::worker::Worker;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where requests come from: one connection, and the worker that serves it.
pub(crate) trait Origin {
    fn worker(&self) -> &Rc<Worker>;

    /// The connection's addresses and server name.
    fn way(&self) -> Way<'_>;
}

/// The request line, and what else is logged if everything is.
pub(crate) struct Line {
    method: http::Method,
    uri: http::Uri,
    host: Option<HeaderValue>,
    version: Version,
    more: Option<Box<More>>,
}

/// What is known only for the sake of a log of everything.
#[derive(Default)]
struct More {
    forwarded_for: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    upstream: Option<(SocketAddr, Instant)>,
    upstream_local: Option<SocketAddr>,
    upstream_time: Option<Duration>,
}

impl Line {
    pub(crate) fn of<B>(request: &Request<B>, logs_everything: bool) -> Self {
        let headers = request.headers();
        let more = || {
            Box::new(More {
                forwarded_for: last(headers, &FORWARDED_FOR),
                user_agent: last(headers, &header::USER_AGENT),
                request_id: last(headers, &REQUEST_ID),
                ..More::default()
            })
        };
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: headers.get(header::HOST).cloned(),
            version: request.version(),
            more: logs_everything.then(more),
        }
    }

    /// It goes to `upstream` now.
    pub(crate) fn sent(&mut self, upstream: SocketAddr) {
        if let Some(more) = &mut self.more {
            more.upstream = Some((upstream, Instant::now()));
        }
    }

    /// The own end of the connection that it went over.
    pub(crate) fn sent_from(&mut self, local: Option<SocketAddr>) {
        if let Some(more) = &mut self.more {
            more.upstream_local = local;
        }
    }

    /// The upstream has answered.
    pub(crate) fn answered(&mut self) {
        if let Some(more) = &mut self.more {
            more.upstream_time = more.upstream.map(|(_, sent)| sent.elapsed());
        }
    }

    /// From the way out to the first of the answer, if that was measured.
    pub(crate) fn upstream_time(&self) -> Option<Duration> {
        self.more.as_ref()?.upstream_time
    }

    pub(crate) fn authority(&self) -> &str {
        match self.uri.authority() {
            Some(authority) => authority.as_str(),
            None => text(self.host.as_ref()),
        }
    }

    /// As telemetry takes it.
    pub(crate) fn borrow<'a>(&'a self, way: Way<'a>, marks: Marks<'a>) -> RequestLine<'a> {
        let more = self.more.as_deref();
        RequestLine {
            method: self.method.as_str(),
            authority: self.authority(),
            path: self.uri.path(),
            protocol: if self.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            forwarded_for: text(more.and_then(|more| more.forwarded_for.as_ref())),
            user_agent: text(more.and_then(|more| more.user_agent.as_ref())),
            request_id: text(more.and_then(|more| more.request_id.as_ref())),
            marks,
            way: Way {
                upstream: more.and_then(|more| more.upstream).map(|(address, _)| address),
                upstream_local: more.and_then(|more| more.upstream_local),
                ..way
            },
        }
    }
}

fn last(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    headers.get_all(name).iter().next_back().cloned()
}

fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|value| value.to_str().ok()).unwrap_or_default()
}

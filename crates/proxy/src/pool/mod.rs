//! Upstream HTTP connections that are kept, per worker: one pool per upstream and HTTP version.
//!
//! A request takes a connection out and its response body gives it back when the last byte has passed, so a
//! connection never carries two HTTP/1.1 requests at a time. HTTP/2 connections are shared. Connections made under an
//! older certificate or trust are not used for new requests.

mod bounds;
mod errors;
mod http2;
mod lease;
mod pools;
mod shared;
mod single;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, Version};
use maille_telemetry::Edge;
use maille_tls::ClientAlpn;

use crate::balance::{Counted, Room};
use crate::connect::{Connected, Security, Upstream, connect};
use crate::http::body::Body;
use crate::http::received::Received;
use crate::record::{self, Called};
use crate::tunnel;
use crate::worker::Worker;

pub(crate) use errors::SendError;
pub(crate) use lease::Lease;
pub(crate) use pools::Pools;

/// The connections to one upstream that speak one version of HTTP.
pub(crate) struct Pool {
    pub(crate) upstream: Upstream,
    pub(crate) version: Version,
    /// Whom requests go to; none for the own workload, whose requests are recorded as the caller's.
    called: Option<Called>,
    idle: RefCell<Vec<single::Idle>>,
    shared: RefCell<Vec<shared::SharedConnection>>,
    opening: tokio::sync::Mutex<()>,
    failed: RefCell<Option<(Instant, SendError)>>,
    active: Cell<usize>,
    edge: RefCell<Option<Rc<Edge>>>,
    /// It was to take many streams over one connection, and does not.
    is_single_until: Cell<Option<Instant>>,
    /// Where a rule has bounds.
    room: Option<Arc<Room>>,
}

/// A response, and the connection it is still being read from.
pub(crate) struct Answer {
    pub(crate) response: Response<Received>,
    pub(crate) lease: Lease,
}

/// What could not be sent; the request comes back if not a byte of it left, or if it has no effect and may be sent again.
pub(crate) struct NotSent {
    pub(crate) error: SendError,
    pub(crate) request: Option<Box<Request<Body>>>,
}

impl Pool {
    /// Requests under way.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }

    /// Who is called, for telemetry; the identity is known once a connection was opened.
    pub(crate) fn edge(&self, worker: &Worker) -> Option<Rc<Edge>> {
        let known = self.edge.borrow().clone();
        known.or_else(|| self.make_edge(worker, None, ""))
    }

    fn make_edge(
        &self,
        worker: &Worker,
        identity: Option<&maille_core::Identity>,
        key_exchange: &'static str,
    ) -> Option<Rc<Edge>> {
        let called = self.called.as_ref()?;
        let current = worker.shared.tls.current();
        let labels = record::outbound_labels(
            &worker.snapshot().inbound,
            current.svid().identity(),
            called,
            identity,
            self.upstream.security.proven(),
            maille_telemetry::Protocol::Http,
        );
        let labels = maille_telemetry::ConnectionLabels { key_exchange, ..labels };
        let edge = Rc::new(worker.recorder.edge(&labels));
        self.edge.replace(Some(edge.clone()));
        Some(edge)
    }

    /// Sends a request that fits the pool's version, opening a connection if none is free.
    pub(crate) async fn send(
        self: &Rc<Self>,
        worker: &Worker,
        request: Box<Request<Body>>,
    ) -> Result<Answer, NotSent> {
        if self.version == Version::HTTP_2 {
            Box::pin(self.send_http2(worker, request)).await
        } else if self.multiplexes() {
            Box::pin(self.send_many(worker, request)).await
        } else {
            self.send_http1(worker, request).await
        }
    }

    fn generation(&self, worker: &Worker) -> u64 {
        self.upstream.security.generation(|| worker.shared.tls.generation())
    }

    /// Whether the upstream takes HTTP/1.1 requests as streams, as far as is known.
    fn multiplexes(&self) -> bool {
        matches!(self.upstream.security, Security::Mutual { multiplexes: true, .. })
            && self.is_single_until.get().is_none_or(|until| until <= Instant::now())
            && self.upstream.terms.as_ref().is_none_or(|terms| terms.lets_share())
    }

    /// Sends an HTTP/1.1 request as a stream of a shared connection, if it can go so.
    async fn send_many(
        self: &Rc<Self>,
        worker: &Worker,
        mut request: Box<Request<Body>>,
    ) -> Result<Answer, NotSent> {
        // What is rare is boxed: every request's future would carry it.
        if !tunnel::pack(&mut request) {
            return Box::pin(self.send_http1(worker, request)).await;
        }
        match self.send_http2(worker, request).await {
            Err(NotSent { error, request: Some(mut request) }) => {
                tunnel::unpack(&mut request);
                match self.multiplexes() {
                    true => Err(NotSent { error, request: Some(request) }),
                    false => Box::pin(self.send_http1(worker, request)).await,
                }
            }
            outcome => outcome,
        }
    }

    async fn open(
        &self,
        worker: &Worker,
        alpn: ClientAlpn,
        counted: Option<Counted>,
    ) -> Result<Connected, SendError> {
        let mut connected = connect(worker, &self.upstream, alpn).await?;
        connected.counted = counted;
        if connected.identity.is_some() {
            self.make_edge(worker, connected.identity.as_ref(), connected.key_exchange());
        }
        Ok(connected)
    }

    /// Drops connections that were not used for `idle` or belong to an older generation; says whether any are left.
    fn sweep(&self, idle: Duration, generation: u64) -> bool {
        let generation = self.upstream.security.generation(|| generation);
        let terms = self.upstream.terms.as_ref();
        let idle = terms.map_or(idle, |terms| terms.http_idle(idle));
        let has_single = self.sweep_single(idle, generation, terms);
        let has_shared = self.sweep_shared(idle, generation, terms);
        self.active.get() > 0 || has_single || has_shared
    }
}

/// A copy of a request that may be sent twice: no body, and no effect by its method (RFC 9110 section 9.2.1).
fn copy_if_safe(request: &Request<Body>) -> Option<Box<Request<Body>>> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !is_safe || !request.body().is_empty() || request.headers().contains_key(http::header::UPGRADE) {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(Box::new(copy))
}

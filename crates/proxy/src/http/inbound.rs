//! Requests to the own workload.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use maille_policy::{RequestAttributes, RuleId};
use maille_telemetry::{Connection, ConnectionLabels, Edge, RefusalKind};

use crate::connect::{Security, Upstream};
use crate::http::body::Body;
use crate::http::exchange::Exchange;
use crate::http::forward::{self, Line};
use crate::http::head::{self, Headers};
use crate::http::serve::Handler;
use crate::http::upgrade::Switching;
use crate::http::{reply, xfcc};
use crate::open::{Open, UpgradeRequest};
use crate::record::{self, Refused};
use crate::worker::Worker;

/// Requests of a connection that ask the registry for a caller it did not know.
const LOOKS_FOR_CALLER: u8 = 16;

/// One inbound connection that carries HTTP.
pub(crate) struct InboundHttp {
    worker: Rc<Worker>,
    open: Rc<Open>,
    edge: RefCell<Rc<Edge>>,
    /// The rule that allowed the last request, and what it is counted on: mostly the next one's too.
    allowed: RefCell<Option<(RuleId, Rc<Edge>)>>,
    /// Requests left at which the registry is asked again who the caller is.
    looks_for_caller: Cell<u8>,
    /// What upstream is told of the caller's certificate.
    element: Option<HeaderValue>,
    /// Counted as open until the last request and upgraded stream are gone.
    _connection: Connection,
}

impl InboundHttp {
    pub(crate) fn new(
        worker: Rc<Worker>,
        open: Rc<Open>,
        connection: Connection,
        element: Option<HeaderValue>,
    ) -> Self {
        let edge = connection.edge().clone();
        let is_named = !edge.labels().source.workload.name.is_empty();
        Self {
            worker,
            open,
            edge: RefCell::new(Rc::new(edge)),
            allowed: RefCell::default(),
            looks_for_caller: Cell::new(if is_named { 0 } else { LOOKS_FOR_CALLER }),
            element,
            _connection: connection,
        }
    }

    /// What requests are counted on. The first of a connection may come before the registry has said who the
    /// caller is; a long connection is not left nameless for that.
    fn edge(&self) -> Rc<Edge> {
        let looks = self.looks_for_caller.get();
        if looks > 0 {
            self.looks_for_caller.set(looks - 1);
            let edge = self.edge.borrow().clone();
            let from = edge.labels().source.address;
            let caller = from.and_then(|from| self.worker.destinations.workload_at(from));
            let identity = self.open.facts.identity.as_ref();
            if let Some(source) = caller.and_then(|caller| record::caller(&caller, identity, from)) {
                let labels = ConnectionLabels { source, ..edge.labels().clone() };
                self.edge.replace(Rc::new(self.worker.recorder.edge(&labels)));
                self.allowed.replace(None);
                self.looks_for_caller.set(0);
            }
        }
        self.edge.borrow().clone()
    }

    /// What the request is counted on if policy allows it, else why it does not.
    fn judge(&self, request: &Request<Incoming>) -> Result<Rc<Edge>, Refused> {
        let headers = Headers(request.headers());
        let attributes = RequestAttributes {
            method: request.method().as_str(),
            host: head::authority(request),
            path: head::path(request),
            remote_ip: maille_policy::forwarded_for(&headers),
            headers: &headers,
            claims: None,
        };
        self.open.with_policy(|policy| {
            let decision = policy.decide_http(&attributes);
            match Refused::unless_allowed(policy, Some(&attributes), &decision) {
                Some(refused) => Err(refused),
                None => Ok(self.edge_of(decision.policy)),
            }
        })
    }

    /// What requests are counted on that this rule allows; without one, no ALLOW policy is there.
    fn edge_of(&self, rule: Option<&RuleId>) -> Rc<Edge> {
        let Some(rule) = rule else { return self.edge.borrow().clone() };
        let mut allowed = self.allowed.borrow_mut();
        match &*allowed {
            Some((last, edge)) if last == rule => edge.clone(),
            _ => {
                let edge = self.worker.recorder.allowed_by(&self.edge.borrow(), record::policy_ref(rule));
                let edge = Rc::new(edge);
                *allowed = Some((rule.clone(), edge.clone()));
                edge
            }
        }
    }

    fn destination(&self) -> SocketAddr {
        self.open.facts.destination
    }
}

impl Handler for InboundHttp {
    /// Head → request decision → delivery to the application → record.
    async fn call(self: Rc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let worker = &self.worker;
        let is_grpc = head::is_grpc(request.headers());
        let head_bytes = head::head_bytes(request.headers());
        let mut exchange = Exchange::new(Some(self.edge()), Instant::now(), is_grpc, head_bytes);
        let normalization = worker.path_normalization();
        let upgrade = match head::check(&mut request, normalization) {
            Ok(upgrade) => upgrade,
            Err(malformed) => {
                let refused = Refused::new(RefusalKind::BadRequest, malformed.to_string());
                let line = Line::of(&request);
                return forward::refuse(worker, &line.borrow(), &refused, exchange, malformed.status(), "");
            }
        };
        xfcc::apply(request.headers_mut(), self.element.as_ref());
        match self.judge(&request) {
            Ok(edge) => exchange.set_edge(edge),
            Err(refused) => {
                let line = Line::of(&request);
                let status = StatusCode::FORBIDDEN;
                return forward::refuse(worker, &line.borrow(), &refused, exchange, status, reply::DENIED);
            }
        }
        if *request.method() == Method::CONNECT {
            let reason = "CONNECT is not forwarded: a proxy for one workload has nowhere else to go";
            let refused = Refused::new(RefusalKind::BadRequest, reason.to_owned());
            let line = Line::of(&request);
            return forward::refuse(worker, &line.borrow(), &refused, exchange, StatusCode::NOT_FOUND, "");
        }
        let switching = upgrade.map(|_| Switching {
            downstream: hyper::upgrade::on(&mut request),
            judged_by: Some((
                self.open.facts.clone(),
                UpgradeRequest {
                    method: request.method().clone(),
                    host: head::authority(&request).to_owned(),
                    path: head::path(&request).to_owned(),
                    headers: request.headers().clone(),
                },
            )),
            keep: self.clone(),
        });
        let version = request.version();
        let upstream = Upstream { address: self.destination(), security: Security::Deliver };
        let pool = worker.pools.pool(upstream, version, || None);
        let line = Line::of(&request);
        let request = match forward::prepare(request, &mut exchange, version) {
            Ok(request) => request,
            Err(malformed) => {
                let refused = Refused::new(RefusalKind::BadRequest, malformed.to_string());
                return forward::refuse(worker, &line.borrow(), &refused, exchange, malformed.status(), "");
            }
        };
        match forward::send(worker, &pool, request, exchange, switching, version).await {
            Ok(response) => response,
            Err(failed) => forward::fail(worker, &line.borrow(), &failed.error, failed.exchange),
        }
    }
}

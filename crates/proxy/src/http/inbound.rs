//! Requests to the own workload.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use maille_policy::{Claims, RequestAttributes, RuleId};
use maille_telemetry::{Connection, ConnectionLabels, Edge, RefusalKind, Way};

use crate::authorizer::{self, Answer, AskedFor, ForCaller};
use crate::http::body::Body;
use crate::http::exchange::Exchange;
use crate::http::forward;
use crate::http::head::{self, Headers, Malformed};
use crate::http::line::Origin;
use crate::http::serve::Handler;
use crate::http::token::{self, NoGood, Token};
use crate::http::upgrade::Switching;
use crate::http::{reply, xfcc};
use crate::marks::Marked;
use crate::open::{Asked, Open, Upgraded};
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

/// A request that may go to the application.
struct Admitted {
    request: Box<Request<Body>>,
    /// The caller's side and by what it is judged, if the request asks to become a stream.
    switching: Option<Switching>,
    /// What an external authorizer adds to the answer.
    for_caller: Option<ForCaller>,
}

/// A request that goes no further.
struct Stopped {
    response: Response<Body>,
    refused: Refused,
}

impl Stopped {
    fn new(exchange: &Exchange, status: StatusCode, text: &str, refused: Refused) -> Box<Self> {
        Box::new(Self { response: forward::refusal(exchange.is_grpc, &refused, status, text), refused })
    }

    fn malformed(exchange: &Exchange, malformed: Malformed) -> Box<Self> {
        let refused = Refused::new(RefusalKind::BadRequest, malformed.to_string());
        Self::new(exchange, malformed.status(), "", refused)
    }

    /// Reference authorization 16.
    fn unauthenticated(exchange: &Exchange, no_good: NoGood) -> Box<Self> {
        let NoGood { status, text, challenge, refused } = no_good;
        let mut stopped = Self::new(exchange, status, text, refused);
        if let Some(challenge) = challenge {
            stopped.response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        stopped
    }
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

    /// Checked head → token → header changes → CUSTOM → AUDIT, dry-run, DENY and ALLOW.
    async fn admit(
        self: &Rc<Self>,
        mut request: Request<Incoming>,
        wants_upgrade: bool,
        exchange: &mut Exchange,
    ) -> Result<Admitted, Box<Stopped>> {
        xfcc::apply(request.headers_mut(), self.element.as_ref());
        let token = self.authenticate(&mut request, wants_upgrade, exchange)?;
        let downstream = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let (request, asked) = self.ask(request, token.claims.as_deref()).await?;
        let (asked, for_caller) = asked.unzip();
        self.judge(&request, token.claims.as_deref(), exchange).map_err(|mut stopped| {
            if let Some(for_caller) = &for_caller {
                for_caller.apply(stopped.response.headers_mut());
            }
            stopped
        })?;
        if *request.method() == Method::CONNECT {
            let reason = "CONNECT is not forwarded: a proxy for one workload has nowhere else to go";
            let refused = Refused::new(RefusalKind::BadRequest, reason.to_owned());
            return Err(Stopped::new(exchange, StatusCode::NOT_FOUND, "", refused));
        }
        let switching = downstream.map(|downstream| self.switching(downstream, &request, token, asked));
        Ok(Admitted { request, switching, for_caller })
    }

    /// A token that is no good ends the request before any policy is asked (reference authorization 3).
    fn authenticate(
        &self,
        request: &mut Request<Incoming>,
        wants_upgrade: bool,
        exchange: &Exchange,
    ) -> Result<Token, Box<Stopped>> {
        let is_tls = self.open.facts.identity.is_some();
        token::verify(&self.worker, request, is_tls, wants_upgrade)
            .map_err(|no_good| Stopped::unauthenticated(exchange, *no_good))
    }

    /// Asks whom a CUSTOM rule wants asked, if one matches.
    async fn ask(
        &self,
        request: Request<Incoming>,
        claims: Option<&Claims>,
    ) -> Result<(Box<Request<Body>>, Option<(Asked, ForCaller)>), Box<Stopped>> {
        let ask = self.open.with_policy(|policy| {
            // Without CUSTOM policies that is all.
            if !policy.needs().asks {
                return None;
            }
            let headers = Headers(request.headers());
            policy.ask_http(&attributes(&request, &headers, claims)).map(AskedFor::from)
        });
        let Some(ask) = ask else { return Ok((Box::new(request.map(Body::from)), None)) };
        let asked = Asked::now(&self.worker.snapshot(), ask.clone());
        // Boxed, since every request's future would carry it.
        let asking = Box::pin(authorizer::ask_http(&self.worker, ask, &self.open.facts, request));
        match asking.await {
            Answer::Allowed(request, for_caller) => Ok((Box::new(request), Some((asked, for_caller)))),
            Answer::Denied { response, refused } => Err(Box::new(Stopped { response, refused })),
        }
    }

    /// Marks the request, and decides about it; it counts from now on for the rule that allows it.
    fn judge(
        &self,
        request: &Request<Body>,
        claims: Option<&Claims>,
        exchange: &mut Exchange,
    ) -> Result<(), Box<Stopped>> {
        let headers = Headers(request.headers());
        let attributes = attributes(request, &headers, claims);
        let refused = self.open.with_policy(|policy| {
            if let Some(marks) = Marked::of_http(policy, &attributes) {
                exchange.mark(marks);
            }
            let decision = policy.decide_http(&attributes);
            let refused = Refused::unless_allowed(policy, Some(&attributes), &decision);
            if refused.is_none() {
                exchange.set_edge(self.edge_of(decision.policy));
            }
            refused
        });
        match refused {
            None => Ok(()),
            Some(refused) => Err(Stopped::new(exchange, StatusCode::FORBIDDEN, reply::DENIED, refused)),
        }
    }

    fn switching(
        self: &Rc<Self>,
        downstream: OnUpgrade,
        request: &Request<Body>,
        token: Token,
        asked: Option<Asked>,
    ) -> Switching {
        let facts = self.open.facts.clone();
        let upgraded = Upgraded::new(facts, copy_of_head(request), self.edge.borrow().clone(), token, asked);
        Switching { downstream, judged_by: Some(Box::new(upgraded)), keep: self.clone() }
    }

    /// Hands it to the application.
    async fn deliver(&self, admitted: Admitted, mut exchange: Box<Exchange>) -> Response<Body> {
        let Admitted { mut request, switching, for_caller } = admitted;
        let version = request.version();
        let upstream = self.worker.delivery(self.open.facts.destination);
        let pool = self.worker.pools.pool(upstream, version, || None);
        if let Err(malformed) = forward::prepare(&mut request, &mut exchange, version) {
            return stop(*Stopped::malformed(&exchange, malformed), exchange);
        }
        let sent = forward::send(&self.worker, &pool, request, exchange, switching, version).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(failed) => forward::fail(&failed.error, failed.exchange),
        };
        if let Some(for_caller) = for_caller {
            for_caller.apply(response.headers_mut());
        }
        response
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
}

impl Origin for InboundHttp {
    fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    fn way(&self) -> Way<'_> {
        self.open.facts.way()
    }
}

impl Handler for InboundHttp {
    /// Head → admission (token, CUSTOM, policy) → delivery to the application → record.
    async fn call(self: Rc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let (started, head_bytes) = (Instant::now(), head::head_bytes(request.headers()));
        let checked = head::check(&mut request, self.worker.path_normalization());
        let mut exchange = Exchange::new(self.clone(), Some(self.edge()), &request, started, head_bytes);
        // A peer that takes no notice of GOAWAY gains nothing by that.
        if let Some(barred) = self.open.closed_to_requests(&self.worker.shared.tls) {
            let stopped =
                Stopped::new(&exchange, StatusCode::SERVICE_UNAVAILABLE, "", Refused::clone(&barred));
            return stop(*stopped, exchange);
        }
        let admitted = match checked {
            Ok(upgrade) => self.admit(request, upgrade.is_some(), &mut exchange).await,
            Err(malformed) => Err(Stopped::malformed(&exchange, malformed)),
        };
        match admitted {
            Ok(admitted) => self.deliver(admitted, exchange).await,
            Err(stopped) => stop(*stopped, exchange),
        }
    }
}

fn stop(stopped: Stopped, exchange: Box<Exchange>) -> Response<Body> {
    forward::refuse_with(stopped.response, &stopped.refused, exchange)
}

/// What policy sees of a request.
pub(crate) fn attributes<'a, B>(
    request: &'a Request<B>,
    headers: &'a Headers<'a>,
    claims: Option<&'a Claims>,
) -> RequestAttributes<'a> {
    RequestAttributes {
        method: request.method().as_str(),
        host: head::authority(request),
        path: head::path(request),
        remote_ip: maille_policy::forwarded_for(headers),
        headers,
        claims,
    }
}

fn copy_of_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

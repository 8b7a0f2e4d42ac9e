//! Upstream HTTP connections that are kept, per worker: one pool per upstream and HTTP version.
//!
//! A request takes a connection out and its response body gives it back when the last byte has passed, so a
//! connection never carries two HTTP/1.1 requests at a time. HTTP/2 connections are shared. Connections made under an
//! older certificate or trust are not used for new requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use maille_telemetry::Edge;
use maille_tls::ClientAlpn;

use crate::balance::{Busy, Counted, Held, Kept, Room, Terms, What};
use crate::connect::{ConnectError, Connected, Security, Upstream, connect};
use crate::http::body::Body;
use crate::http::serve::BUFFER;
use crate::record::{self, Called};
use crate::tunnel;
use crate::worker::{LocalExec, Worker};

/// Streams that an HTTP/2 connection carries before another is opened: Envoy's default is 100 as well.
const STREAMS: usize = 100;
/// A connection unused for longer may have been closed meanwhile, so a copy of the request is kept.
const STALE_AFTER: Duration = Duration::from_millis(50);

/// Why a request got no response.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the upstream closed the connection before it answered: {0}")]
    Reset(String),
    #[error("the upstream reset the stream before it answered: {0}")]
    StreamReset(h2::Reason),
    #[error("the upstream's answer is no valid HTTP: {0}")]
    Protocol(String),
    /// Nothing was sent: a bound of a DestinationRule is reached.
    #[error("{0}")]
    Overflow(&'static str),
}

impl SendError {
    /// Whether it took no time to find out, so that trying again costs little.
    pub(crate) fn is_quick(&self) -> bool {
        !matches!(self, Self::Connect(ConnectError::Timeout { .. } | ConnectError::Ordered { .. }))
    }
}

/// The connections to one upstream that speak one version of HTTP.
pub(crate) struct Pool {
    pub(crate) upstream: Upstream,
    pub(crate) version: Version,
    /// Whom requests go to; none for the own workload, whose requests are recorded as the caller's.
    called: Option<Called>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<SharedConnection>>,
    opening: tokio::sync::Mutex<()>,
    failed: RefCell<Option<(Instant, SendError)>>,
    active: Cell<usize>,
    edge: RefCell<Option<Rc<Edge>>>,
    /// It was to take many streams over one connection, and does not.
    is_single_until: Cell<Option<Instant>>,
    /// Where a rule has bounds.
    room: Option<Arc<Room>>,
}

/// A bound that holds for requests of both versions.
const TOO_MANY_WAIT: SendError =
    SendError::Overflow("as many requests wait for a connection as http1MaxPendingRequests allows");

/// What a request may do that needs a connection.
#[derive(Default)]
struct Turn {
    /// Use this one.
    idle: Option<Idle>,
    /// Open another one.
    counted: Option<Counted>,
    /// Until then it counts as one that waits.
    _pending: Option<Held>,
}

/// A shared connection, the number of its streams, and whether it is new.
type Taken = (http2::SendRequest<Body>, Rc<Streams>, bool);

/// The streams of a shared connection.
#[derive(Default)]
struct Streams {
    count: Cell<usize>,
    /// The own end, if it is worth knowing.
    local: Option<SocketAddr>,
    life: Life,
}

/// When a connection was opened and how many requests it has carried, where a rule bounds that.
#[derive(Debug, Default)]
struct Life(Option<(Instant, Cell<u32>)>);

impl Life {
    fn under(terms: Option<&Arc<Terms>>) -> Self {
        Self(terms.map(|_| (Instant::now(), Cell::new(0))))
    }

    /// Another request goes over it.
    fn count(&self) {
        if let Some((_, served)) = &self.0 {
            served.set(served.get() + 1);
        }
    }

    /// Whether yet another one may.
    fn goes_on(&self, terms: Option<&Arc<Terms>>) -> bool {
        match (&self.0, terms) {
            (Some((opened, served)), Some(terms)) => terms.lets_reuse(*opened, served.get()),
            _ => true,
        }
    }
}

impl Streams {
    fn get(&self) -> usize {
        self.count.get()
    }

    fn set(&self, count: usize) {
        self.count.set(count);
    }
}

struct Idle {
    sender: http1::SendRequest<Body>,
    generation: u64,
    local: Option<SocketAddr>,
    since: Instant,
    life: Life,
}

struct SharedConnection {
    sender: http2::SendRequest<Body>,
    generation: u64,
    streams: Rc<Streams>,
    since: Instant,
}

/// A connection in use by one exchange.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    sender: Option<http1::SendRequest<Body>>,
    streams: Option<Rc<Streams>>,
    generation: u64,
    /// The own end of an HTTP/1.1 connection, if it is worth knowing.
    local: Option<SocketAddr>,
    limit: usize,
    life: Life,
    /// It counts as a request under way.
    request: Option<Held>,
}

impl Lease {
    /// The own end of the connection, where everything is logged.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        self.streams.as_ref().map_or(self.local, |streams| streams.local)
    }

    /// The response has been read to its end: the connection may serve another request.
    pub(crate) fn give_back(mut self) {
        if let Some(sender) = self.sender.take()
            && !sender.is_closed()
            && self.life.goes_on(self.pool.upstream.terms.as_ref())
        {
            let mut idle = self.pool.idle.borrow_mut();
            if idle.len() < self.limit {
                let (generation, local) = (self.generation, self.local);
                let life = std::mem::take(&mut self.life);
                idle.push(Idle { sender, generation, local, since: Instant::now(), life });
            }
            drop(idle);
            if let Some(room) = &self.pool.room {
                room.free();
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.active.set(self.pool.active.get().saturating_sub(1));
        if let Some(streams) = &self.streams {
            streams.set(streams.get().saturating_sub(1));
            if let Some(room) = &self.pool.room {
                room.free();
            }
        }
    }
}

/// A response, and the connection it is still being read from.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
}

/// What could not be sent; the request comes back if not a byte of it left.
pub(crate) struct NotSent {
    pub(crate) error: SendError,
    pub(crate) request: Option<Request<Body>>,
}

impl Pool {
    /// Requests under way.
    pub(crate) fn active(&self) -> usize {
        self.active.get()
    }

    /// Who is called, for telemetry; the identity is known once a connection was opened.
    pub(crate) fn edge(&self, worker: &Worker) -> Option<Rc<Edge>> {
        let known = self.edge.borrow().clone();
        known.or_else(|| self.make_edge(worker, None))
    }

    fn make_edge(&self, worker: &Worker, identity: Option<&maille_core::Identity>) -> Option<Rc<Edge>> {
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
        let edge = Rc::new(worker.recorder.edge(&labels));
        self.edge.replace(Some(edge.clone()));
        Some(edge)
    }

    /// Sends a request that fits the pool's version, opening a connection if none is free.
    pub(crate) async fn send(
        self: &Rc<Self>,
        worker: &Worker,
        request: Request<Body>,
    ) -> Result<Answer, NotSent> {
        if self.version == Version::HTTP_2 {
            Box::pin(self.send_http2(worker, request)).await
        } else if self.multiplexes() {
            Box::pin(self.send_many(worker, request)).await
        } else {
            self.send_http1(worker, request).await
        }
    }

    fn lease(self: &Rc<Self>, worker: &Worker, generation: u64) -> Lease {
        self.active.set(self.active.get() + 1);
        Lease {
            pool: self.clone(),
            sender: None,
            streams: None,
            generation,
            local: None,
            limit: worker.config.limits.idle_upstreams,
            life: Life::default(),
            request: None,
        }
    }

    /// As [`Pool::lease`], unless there are as many requests under way as there may be.
    fn lease_within_bounds(self: &Rc<Self>, worker: &Worker, generation: u64) -> Result<Lease, SendError> {
        let mut lease = self.lease(worker, generation);
        if let Some(terms) = &self.upstream.terms {
            let full = SendError::Overflow("as many requests are under way as http2MaxRequests allows");
            lease.request = Some(terms.take(What::Request).ok_or(full)?);
        }
        Ok(lease)
    }

    /// Waits, where connections are bounded, until one is free or another one may be opened.
    async fn turn(&self, worker: &Worker) -> Result<Turn, SendError> {
        let (Some(terms), Some(room)) = (&self.upstream.terms, &self.room) else {
            return Ok(Turn::default());
        };
        // Those who wait already go first.
        if !room.is_waited_for()
            && let Some(idle) = self.take_idle(self.generation(worker))
        {
            return Ok(Turn { idle: Some(idle), ..Turn::default() });
        }
        let pending = Some(terms.take(What::Pending).ok_or(TOO_MANY_WAIT)?);
        let mut has_waited = !room.is_waited_for();
        loop {
            if has_waited {
                if let Some(idle) = self.take_idle(self.generation(worker)) {
                    return Ok(Turn { idle: Some(idle), ..Turn::default() });
                }
                if let Some(counted) = room.connection(terms) {
                    return Ok(Turn { idle: None, counted: Some(counted), _pending: pending });
                }
            }
            room.freed().await;
            has_waited = true;
        }
    }

    fn generation(&self, worker: &Worker) -> u64 {
        self.upstream.security.generation(|| worker.shared.tls.generation())
    }

    async fn send_http1(
        self: &Rc<Self>,
        worker: &Worker,
        mut request: Request<Body>,
    ) -> Result<Answer, NotSent> {
        let generation = self.generation(worker);
        let mut lease = match self.lease_within_bounds(worker, generation) {
            Ok(lease) => lease,
            Err(error) => return Err(NotSent { error, request: Some(request) }),
        };
        loop {
            let mut turn = match &self.room {
                None => Turn::default(),
                Some(_) => match self.turn(worker).await {
                    Ok(turn) => turn,
                    Err(error) => return Err(NotSent { error, request: Some(request) }),
                },
            };
            let reused = match &self.room {
                None => self.take_idle(generation),
                Some(_) => turn.idle.take(),
            };
            let (mut sender, idle_for) = match reused {
                Some(idle) => {
                    lease.local = idle.local;
                    lease.life = idle.life;
                    (idle.sender, Some(idle.since.elapsed()))
                }
                // Boxed, since it is rare and large: every request's future would carry it.
                None => match Box::pin(self.open_http1(worker, turn.counted.take())).await {
                    Ok((sender, generation, local)) => {
                        lease.generation = generation;
                        lease.local = local;
                        lease.life = Life::under(self.upstream.terms.as_ref());
                        (sender, None)
                    }
                    Err(error) => return Err(NotSent { error, request: Some(request) }),
                },
            };
            drop(turn);
            if !sender.is_ready()
                && let Err(error) = sender.ready().await
            {
                match idle_for {
                    Some(_) => continue,
                    None => return Err(NotSent { error: self.failure(&error), request: Some(request) }),
                }
            }
            let copy = match idle_for {
                Some(age) if age > STALE_AFTER => {
                    let copy = copy_if_safe(&request);
                    if copy.is_none() {
                        // It cannot be sent twice, so that what the kernel knows of the connection's end by now must be
                        // known here, too: the next turn of the loop has asked it.
                        tokio::task::yield_now().await;
                        if sender.is_closed() {
                            continue;
                        }
                    }
                    copy
                }
                _ => None,
            };
            lease.life.count();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    lease.sender = Some(sender);
                    return Ok(Answer { response, lease });
                }
                Err(mut failure) => {
                    if let Some(unsent) = failure.take_message() {
                        if idle_for.is_none() {
                            return Err(NotSent {
                                error: self.failure(failure.error()),
                                request: Some(unsent),
                            });
                        }
                        request = unsent;
                    } else if let Some(copy) = copy
                        && is_stale(failure.error())
                    {
                        request = copy;
                    } else {
                        return Err(NotSent { error: self.failure(failure.error()), request: None });
                    }
                }
            }
        }
    }

    async fn send_http2(
        self: &Rc<Self>,
        worker: &Worker,
        mut request: Request<Body>,
    ) -> Result<Answer, NotSent> {
        let generation = self.generation(worker);
        let mut lease = match self.lease_within_bounds(worker, generation) {
            Ok(lease) => lease,
            Err(error) => return Err(NotSent { error, request: Some(request) }),
        };
        loop {
            let (mut sender, streams, is_fresh) = match self.take_or_open_shared(worker, generation).await {
                Ok(taken) => taken,
                Err(error) => return Err(NotSent { error, request: Some(request) }),
            };
            streams.set(streams.get() + 1);
            streams.life.count();
            lease.streams = Some(streams.clone());
            // Between our own proxies streams are not refused, and a copy has its price.
            let copy = if self.version == Version::HTTP_2 { copy_if_safe(&request) } else { None };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Answer { response, lease }),
                Err(mut failure) => {
                    streams.set(streams.get().saturating_sub(1));
                    lease.streams = None;
                    match failure.take_message() {
                        Some(unsent) if !is_fresh => request = unsent,
                        unsent => {
                            // Refused, it may go to another endpoint, so often and no more.
                            let request = unsent.or_else(|| copy.filter(|_| is_refused(failure.error())));
                            return Err(NotSent { error: self.failure(failure.error()), request });
                        }
                    }
                }
            }
        }
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
        mut request: Request<Body>,
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

    /// A connection with a free stream, and whether it is a new one. Requests that find none wait for one of them to open
    /// it, and share its failure: a burst must not open, or wait for, a connection each.
    async fn take_or_open_shared(&self, worker: &Worker, generation: u64) -> Result<Taken, SendError> {
        if let Some((sender, streams)) = self.take_shared(generation) {
            return Ok((sender, streams, false));
        }
        let asked = Instant::now();
        let _pending = match &self.upstream.terms {
            Some(terms) => Some(terms.take(What::Pending).ok_or(TOO_MANY_WAIT)?),
            None => None,
        };
        let _one_at_a_time = self.opening.lock().await;
        let counted = loop {
            if let Some((sender, streams)) = self.take_shared(self.generation(worker)) {
                return Ok((sender, streams, false));
            }
            if let Some((when, error)) = &*self.failed.borrow()
                && *when >= asked
            {
                return Err(error.clone());
            }
            let (Some(terms), Some(room)) = (&self.upstream.terms, &self.room) else { break None };
            match room.connection(terms) {
                Some(counted) => break Some(counted),
                // Whoever waits for the lock waits behind this one.
                None => room.freed().await,
            }
        };
        match self.open_http2(worker, counted).await {
            Ok((sender, streams)) => Ok((sender, streams, true)),
            Err(error) => {
                self.failed.replace(Some((Instant::now(), error.clone())));
                Err(error)
            }
        }
    }

    fn take_idle(&self, generation: u64) -> Option<Idle> {
        let mut all = self.idle.borrow_mut();
        while let Some(idle) = all.pop() {
            if idle.generation == generation && !idle.sender.is_closed() && self.may_reuse(&idle) {
                return Some(idle);
            }
        }
        None
    }

    /// Whether a rule lets a connection that was unused for a while take another request.
    fn may_reuse(&self, idle: &Idle) -> bool {
        let Some(terms) = &self.upstream.terms else { return true };
        idle.since.elapsed() < terms.http_idle(Duration::MAX) && idle.life.goes_on(Some(terms))
    }

    fn take_shared(&self, generation: u64) -> Option<(http2::SendRequest<Body>, Rc<Streams>)> {
        let mut all = self.shared.borrow_mut();
        let terms = self.upstream.terms.as_ref();
        all.retain(|c| c.generation == generation && !c.sender.is_closed() && c.streams.life.goes_on(terms));
        let most = terms.and_then(|terms| terms.pool.streams).map_or(STREAMS, |most| most as usize);
        let free = all.iter_mut().find(|c| c.streams.get() < most)?;
        free.since = Instant::now();
        Some((free.sender.clone(), free.streams.clone()))
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
            self.make_edge(worker, connected.identity.as_ref());
        }
        Ok(connected)
    }

    async fn open_http1(
        &self,
        worker: &Worker,
        counted: Option<Counted>,
    ) -> Result<(http1::SendRequest<Body>, u64, Option<SocketAddr>), SendError> {
        let connected = self.open(worker, ClientAlpn::Http1, counted).await?;
        self.shake_http1(worker, connected).await
    }

    async fn shake_http1(
        &self,
        worker: &Worker,
        connected: Connected,
    ) -> Result<(http1::SendRequest<Body>, u64, Option<SocketAddr>), SendError> {
        let local = connected.local(worker);
        let limits = &worker.config.limits;
        // hyper's own bound of 100 header lines is Envoy's, and set explicitly it costs an allocation a head.
        let (sender, connection) = http1::Builder::new()
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(Kept::new(connected.stream, connected.counted)))
            .await
            .map_err(|e| self.failure(&e))?;
        tokio::task::spawn_local(async move {
            // How it ended reaches whoever waits for a response.
            let _ = connection.with_upgrades().await;
        });
        Ok((sender, connected.generation, local))
    }

    async fn open_http2(
        &self,
        worker: &Worker,
        counted: Option<Counted>,
    ) -> Result<(http2::SendRequest<Body>, Rc<Streams>), SendError> {
        let is_of_many = self.version != Version::HTTP_2;
        let alpn = if is_of_many { ClientAlpn::ManyHttp1 } else { ClientAlpn::Http2 };
        let connected = self.open(worker, alpn, counted).await?;
        if is_of_many && !connected.stream.is_of_many() {
            return Err(self.keep_single(worker, connected).await);
        }
        let local = connected.local(worker);
        let limits = &worker.config.limits;
        let mut builder = http2::Builder::new(LocalExec);
        builder
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
        if is_of_many {
            tunnel::bound_client(&mut builder, limits);
        }
        let io = TokioIo::new(Kept::new(connected.stream, connected.counted));
        let (sender, connection) = builder.handshake(io).await.map_err(|e| self.failure(&e))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        let life = Life::under(self.upstream.terms.as_ref());
        let streams = Rc::new(Streams { local, life, ..Streams::default() });
        self.shared.borrow_mut().push(SharedConnection {
            sender: sender.clone(),
            generation: connected.generation,
            streams: streams.clone(),
            since: Instant::now(),
        });
        Ok((sender, streams))
    }

    /// Uses a connection whose peer has not selected many streams for what it was opened with besides: HTTP/1.1.
    async fn keep_single(&self, worker: &Worker, connected: Connected) -> SendError {
        self.is_single_until.set(Some(Instant::now() + tunnel::SINGLE_FOR));
        match self.shake_http1(worker, connected).await {
            Ok((sender, generation, local)) => {
                let life = Life::under(self.upstream.terms.as_ref());
                self.idle.borrow_mut().push(Idle { sender, generation, local, since: Instant::now(), life });
                SendError::Protocol("the upstream takes one stream a connection".to_owned())
            }
            Err(error) => error,
        }
    }

    /// Why a connection failed. A server outside that does not accept our certificate says so only now.
    fn failure(&self, error: &hyper::Error) -> SendError {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let refusal = cause
                .downcast_ref::<std::io::Error>()
                .and_then(|io| self.upstream.security.refusal_by_peer(self.upstream.address, io));
            if let Some(refusal) = refusal {
                return refusal.into();
            }
            source = cause.source();
        }
        match (reset(error), &self.upstream.security) {
            // Of an HTTP/2 connection's error only the text is left.
            (SendError::Reset(why), Security::Ordered { order, .. }) => SendError::Reset(format!(
                "{why} (DestinationRule {}: a server that does not take the client certificate may end connections so)",
                order.rule
            )),
            (error, _) => error,
        }
    }

    /// Drops connections that were not used for `idle` or belong to an older generation; says whether any are left.
    fn sweep(&self, idle: Duration, generation: u64) -> bool {
        let generation = self.upstream.security.generation(|| generation);
        let terms = self.upstream.terms.as_ref();
        let idle = terms.map_or(idle, |terms| terms.http_idle(idle));
        self.idle.borrow_mut().retain(|c| {
            let is_current = c.generation == generation && !c.sender.is_closed();
            is_current && c.since.elapsed() < idle && c.life.goes_on(terms)
        });
        // Dropping the last handle of a shared connection lets streams under way finish.
        self.shared.borrow_mut().retain(|c| {
            let is_current =
                c.generation == generation && !c.sender.is_closed() && c.streams.life.goes_on(terms);
            is_current && (c.streams.get() > 0 || c.since.elapsed() < idle)
        });
        self.active.get() > 0 || !self.idle.borrow().is_empty() || !self.shared.borrow().is_empty()
    }
}

/// A copy of a request that may be sent twice: no body, and no effect by its method (RFC 9110 section 9.2.1).
fn copy_if_safe(request: &Request<Body>) -> Option<Request<Body>> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !is_safe || !request.body().is_empty() || request.headers().contains_key(http::header::UPGRADE) {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether the upstream says that it has done nothing about a request: it refused the stream (RFC 9113 section 8.7), or
/// went away before it (section 6.8: streams beyond the last that GOAWAY names fail with it, others do not).
fn is_refused(error: &hyper::Error) -> bool {
    of_stream(error).is_some_and(|error| {
        let is_refusal = error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away();
        error.is_remote() && is_refusal
    })
}

fn of_stream(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Whether the connection had been closed before the upstream could have answered.
fn is_stale(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn reset(error: &hyper::Error) -> SendError {
    if error.is_parse() {
        return SendError::Protocol(error.to_string());
    }
    let stream = of_stream(error).filter(|error| error.is_reset() && error.is_remote());
    if let Some(reason) = stream.and_then(h2::Error::reason) {
        return SendError::StreamReset(reason);
    }
    match std::error::Error::source(error) {
        Some(source) => SendError::Reset(format!("{error}: {source}")),
        None => SendError::Reset(error.to_string()),
    }
}

/// All pools of a worker.
#[derive(Default)]
pub(crate) struct Pools {
    /// Opaque connections, which are in no pool.
    pub(crate) busy: Busy,
    all: RefCell<HashMap<(Upstream, Version), Rc<Pool>, foldhash::fast::RandomState>>,
}

impl Pools {
    /// The pool of an upstream; `called` is asked only when the upstream is new.
    pub(crate) fn pool(
        &self,
        upstream: Upstream,
        version: Version,
        called: impl FnOnce() -> Option<Called>,
    ) -> Rc<Pool> {
        let mut all = self.all.borrow_mut();
        let key = (upstream, version);
        if let Some(pool) = all.get(&key) {
            return pool.clone();
        }
        let pool = Rc::new(Pool {
            upstream: key.0.clone(),
            version,
            called: called(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: tokio::sync::Mutex::new(()),
            failed: RefCell::default(),
            active: Cell::new(0),
            edge: RefCell::default(),
            is_single_until: Cell::default(),
            room: key.0.terms.is_some().then(Arc::default),
        });
        all.insert(key, pool.clone());
        pool
    }

    /// Forgets what nobody has used for `idle`, and connections of older certificates or trust.
    pub(crate) fn sweep(&self, idle: Duration, generation: u64) {
        self.all.borrow_mut().retain(|_, pool| pool.sweep(idle, generation) || Rc::strong_count(pool) > 1);
    }
}

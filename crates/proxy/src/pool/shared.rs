//! Connections that carry many requests: HTTP/2, and streams between two proxies of the mesh.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::client;
use http::{Request, Version};
use maille_tls::ClientAlpn;

use super::bounds::{Life, TOO_MANY_WAIT};
use super::errors::is_refused;
use super::http2::{Failure, Http2};
use super::{Answer, NotSent, Pool, SendError, copy_if_safe};
use crate::balance::{Counted, Kept, Terms, What};
use crate::connect::Connected;
use crate::http::body::Body;
use crate::http::write_first::WriteFirst;
use crate::server_proof::{self, ServerProof};
use crate::tunnel;
use crate::worker::Worker;

/// Streams that an HTTP/2 connection carries before another is opened: Envoy's default is 100 as well.
const STREAMS: usize = 100;
/// What a stream may have written that the connection has not yet.
const SEND_BUFFER: usize = 1 << 20;

/// A shared connection, the number of its streams, and whether it is new.
type Taken = (Http2, Rc<Streams>, bool);

/// The streams of a shared connection.
#[derive(Default)]
pub(super) struct Streams {
    count: Cell<usize>,
    /// The own end, if it is worth knowing.
    pub(super) local: Option<SocketAddr>,
    pub(super) proof: Option<Rc<ServerProof>>,
    pub(super) life: Life,
}

impl Streams {
    pub(super) fn get(&self) -> usize {
        self.count.get()
    }

    pub(super) fn set(&self, count: usize) {
        self.count.set(count);
    }
}

/// A connection that many requests share.
pub(super) struct SharedConnection {
    sender: Http2,
    generation: u64,
    streams: Rc<Streams>,
    since: Instant,
}

impl SharedConnection {
    /// Whether it is open, and more requests may go over it: it is made of the certificate and trust of now on both sides.
    fn is_good(&self, generation: u64, terms: Option<&Arc<Terms>>) -> bool {
        self.generation == generation
            && !self.sender.is_over()
            && self.streams.life.goes_on(terms)
            && server_proof::holds(self.streams.proof.as_ref())
    }
}

impl Pool {
    pub(super) async fn send_http2(
        self: &Rc<Self>,
        worker: &Worker,
        mut request: Box<Request<Body>>,
    ) -> Result<Answer, NotSent> {
        let generation = self.generation(worker);
        let mut lease = match self.lease_within_bounds(worker, generation) {
            Ok(lease) => lease,
            Err(error) => return Err(NotSent { error, request: Some(request) }),
        };
        loop {
            let (sender, streams, is_fresh) = match self.take_shared(generation) {
                Some((sender, streams)) => (sender, streams, false),
                // Boxed, since it is rare and large: every request's future would carry it.
                None => match Box::pin(self.open_shared(worker)).await {
                    Ok(taken) => taken,
                    Err(error) => return Err(NotSent { error, request: Some(request) }),
                },
            };
            streams.set(streams.get() + 1);
            streams.life.count();
            lease.streams = Some(streams.clone());
            // A copy has its price: between our own proxies streams are not refused, and what the own workload refuses goes
            // nowhere else.
            let goes_elsewhere = self.version == Version::HTTP_2 && self.called.is_some();
            let copy = if goes_elsewhere { copy_if_safe(&request) } else { None };
            let failure = match sender.send(request).await {
                Ok(response) => return Ok(Answer { response, lease }),
                Err(failure) => failure,
            };
            streams.set(streams.get().saturating_sub(1));
            lease.streams = None;
            match failure {
                Failure::Unsent(_, unsent) if !is_fresh => request = unsent,
                Failure::Unsent(error, unsent) => {
                    return Err(NotSent { error: self.failure_of_stream(&error), request: Some(unsent) });
                }
                Failure::Sent(error) => {
                    // Refused, it may go to another endpoint, so often and no more.
                    let request = copy.filter(|_| is_refused(&error));
                    return Err(NotSent { error: self.failure_of_stream(&error), request });
                }
            }
        }
    }

    /// A connection with a free stream, and whether it is a new one, for a request that found none. Such requests wait for one
    /// of them to open it, and share its failure: a burst must not open, or wait for, a connection each.
    async fn open_shared(&self, worker: &Worker) -> Result<Taken, SendError> {
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

    fn take_shared(&self, generation: u64) -> Option<(Http2, Rc<Streams>)> {
        let mut all = self.shared.borrow_mut();
        let terms = self.upstream.terms.as_ref();
        all.retain(|c| c.is_good(generation, terms));
        let most = terms.and_then(|terms| terms.pool.streams).map_or(STREAMS, |most| most as usize);
        let free = all.iter_mut().find(|c| c.streams.get() < most.min(c.sender.most_streams()))?;
        free.since = Instant::now();
        Some((free.sender.clone(), free.streams.clone()))
    }

    async fn open_http2(
        &self,
        worker: &Worker,
        counted: Option<Counted>,
    ) -> Result<(Http2, Rc<Streams>), SendError> {
        let is_of_many = self.version != Version::HTTP_2;
        let alpn = if is_of_many { ClientAlpn::ManyHttp1 } else { ClientAlpn::Http2 };
        let connected = self.open(worker, alpn, counted).await?;
        if is_of_many && !connected.stream.is_of_many() {
            return Err(self.keep_single(worker, connected).await);
        }
        let local = connected.local(worker);
        let limits = &worker.config.limits;
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(STREAMS)
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
        let window = is_of_many.then(|| worker.windows.take());
        if let Some(window) = &window {
            tunnel::bound_client(&mut builder, limits, window);
        }
        let Connected { stream, generation, proof, counted, identity: _ } = connected;
        let opened = WriteFirst::open(&builder, Kept::new(stream, counted)).await;
        let connection = opened.map_err(|e| self.failure_of_stream(&e))?;
        let life = Life::under(self.upstream.terms.as_ref());
        let streams = Rc::new(Streams { local, proof, life, ..Streams::default() });
        let sender = Http2::run(connection, &streams, window);
        self.shared.borrow_mut().push(SharedConnection {
            sender: sender.clone(),
            generation,
            streams: streams.clone(),
            since: Instant::now(),
        });
        Ok((sender, streams))
    }

    /// As for those of one request at a time; a connection with streams is in use.
    pub(super) fn sweep_shared(&self, idle: Duration, generation: u64, terms: Option<&Arc<Terms>>) -> bool {
        let mut all = self.shared.borrow_mut();
        // Dropping the last handle of a shared connection lets streams under way finish.
        all.retain(|c| c.is_good(generation, terms) && (c.streams.get() > 0 || c.since.elapsed() < idle));
        !all.is_empty()
    }
}

//! Connections that carry one HTTP/1.1 request at a time.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use maille_tls::ClientAlpn;

use super::bounds::{Life, Turn};
use super::errors::is_stale;
use super::{Answer, NotSent, Pool, SendError, copy_if_safe};
use crate::balance::{Counted, Kept, Terms};
use crate::connect::Connected;
use crate::http::body::Body;
use crate::http::received::Received;
use crate::http::serve::BUFFER;
use crate::server_proof::{self, ServerProof};
use crate::tunnel;
use crate::worker::Worker;

/// A connection unused for longer is asked if it was closed meanwhile, where its request could not be sent again.
const STALE_AFTER: Duration = Duration::from_millis(5);

/// Marks a request that has been sent to an upstream before, which must not happen to it a third time (RFC 9110 section
/// 9.2.2), wherever it goes next.
#[derive(Clone)]
struct Repeated;

/// A connection that waits for its next request.
pub(super) struct Idle {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) generation: u64,
    pub(super) local: Option<SocketAddr>,
    pub(super) proof: Option<Rc<ServerProof>>,
    pub(super) since: Instant,
    pub(super) life: Life,
}

impl Idle {
    /// Whether it is open, and made of the certificate and trust of now on both sides.
    fn is_good(&self, generation: u64) -> bool {
        self.generation == generation && !self.sender.is_closed() && server_proof::holds(self.proof.as_ref())
    }
}

impl Pool {
    pub(super) async fn send_http1(
        self: &Rc<Self>,
        worker: &Worker,
        mut request: Box<Request<Body>>,
    ) -> Result<Answer, NotSent> {
        let generation = self.generation(worker);
        let mut lease = match self.lease_within_bounds(worker, generation) {
            Ok(lease) => lease,
            Err(error) => return Err(NotSent { error, request: Some(request) }),
        };
        let mut is_repeated = request.extensions().get::<Repeated>().is_some();
        loop {
            let mut turn = match &self.room {
                None => Turn::default(),
                Some(_) => match self.turn(worker).await {
                    Ok(turn) => turn,
                    Err(error) => return Err(NotSent { error, request: Some(request) }),
                },
            };
            let reused = match &self.room {
                // What closed one connection may well have closed the others: with bounds, one less is kept.
                Some(_) if is_repeated && turn.idle.is_some() => continue,
                None if is_repeated => None,
                Some(_) => turn.idle.take(),
                None => self.take_idle(generation),
            };
            let (one, idle_for) = match reused {
                Some(idle) => {
                    let idle_for = idle.since.elapsed();
                    (idle, Some(idle_for))
                }
                // Boxed, since it is rare and large: every request's future would carry it.
                None => match Box::pin(self.open_http1(worker, turn.counted.take())).await {
                    Ok(fresh) => (fresh, None),
                    Err(error) => return Err(NotSent { error, request: Some(request) }),
                },
            };
            let Idle { mut sender, generation, local, proof, since: _, life } = one;
            lease.generation = generation;
            (lease.local, lease.proof, lease.life) = (local, proof, life);
            drop(turn);
            if !sender.is_ready()
                && let Err(error) = sender.ready().await
            {
                match idle_for {
                    Some(_) => continue,
                    None => return Err(NotSent { error: self.failure(&error), request: Some(request) }),
                }
            }
            // The upstream may close a connection just as a request goes to it. One that has no effect is sent again then, once.
            let copy = match idle_for {
                Some(_) if !is_repeated => copy_if_safe(&request),
                _ => None,
            };
            if copy.is_none() && idle_for.is_some_and(|age| age > STALE_AFTER) {
                // What the kernel knows of the connection's end by now must be known here, too: the next turn of the loop
                // has asked it.
                tokio::task::yield_now().await;
                if sender.is_closed() {
                    continue;
                }
            }
            lease.life.count();
            match sender.try_send_request(*request).await {
                Ok(response) => {
                    lease.sender = Some(sender);
                    return Ok(Answer { response: response.map(Received::Plain), lease });
                }
                Err(mut failure) => {
                    if let Some(unsent) = failure.take_message() {
                        if idle_for.is_none() {
                            return Err(NotSent {
                                error: self.failure(failure.error()),
                                request: Some(Box::new(unsent)),
                            });
                        }
                        request = Box::new(unsent);
                    } else if let Some(copy) = copy
                        && is_stale(failure.error())
                    {
                        (request, is_repeated) = (copy, true);
                        request.extensions_mut().insert(Repeated);
                    } else {
                        return Err(NotSent { error: self.failure(failure.error()), request: None });
                    }
                }
            }
        }
    }

    pub(super) fn take_idle(&self, generation: u64) -> Option<Idle> {
        let mut all = self.idle.borrow_mut();
        while let Some(idle) = all.pop() {
            if idle.is_good(generation) && self.may_reuse(&idle) {
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

    async fn open_http1(&self, worker: &Worker, counted: Option<Counted>) -> Result<Idle, SendError> {
        let connected = self.open(worker, ClientAlpn::Http1, counted).await?;
        self.shake_http1(worker, connected).await
    }

    async fn shake_http1(&self, worker: &Worker, connected: Connected) -> Result<Idle, SendError> {
        let local = connected.local(worker);
        let limits = &worker.config.limits;
        let Connected { stream, generation, proof, counted, identity: _ } = connected;
        // hyper's own bound of 100 header lines is Envoy's, and set explicitly it costs an allocation a head.
        let (sender, connection) = http1::Builder::new()
            .max_header_size(limits.head_bytes)
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(Kept::new(stream, counted)))
            .await
            .map_err(|e| self.failure(&e))?;
        tokio::task::spawn_local(async move {
            // How it ended reaches whoever waits for a response.
            let _ = connection.with_upgrades().await;
        });
        let life = Life::under(self.upstream.terms.as_ref());
        Ok(Idle { sender, generation, local, proof, since: Instant::now(), life })
    }

    /// Uses a connection whose peer has not selected many streams for what it was opened with besides: HTTP/1.1.
    pub(super) async fn keep_single(&self, worker: &Worker, connected: Connected) -> SendError {
        self.is_single_until.set(Some(Instant::now() + tunnel::SINGLE_FOR));
        match self.shake_http1(worker, connected).await {
            Ok(idle) => {
                self.idle.borrow_mut().push(idle);
                SendError::Protocol("the upstream takes one stream a connection".to_owned())
            }
            Err(error) => error,
        }
    }

    /// Drops connections that were not used for `idle` or belong to an older generation; says whether any are left.
    pub(super) fn sweep_single(&self, idle: Duration, generation: u64, terms: Option<&Arc<Terms>>) -> bool {
        let mut all = self.idle.borrow_mut();
        all.retain(|c| c.is_good(generation) && c.since.elapsed() < idle && c.life.goes_on(terms));
        !all.is_empty()
    }
}

//! What the servers of upstream connections have proved, judged again while the connections are open.
//!
//! A server is verified in the handshake; its connection may outlive its certificate, or the trust by which that was
//! verified. Then nothing new goes over it: the next request or stream meets the server in a handshake of its own. What is
//! under way goes the way of the other direction ([`crate::open`], design: what must always be true, 5): requests finish,
//! and streams are cut, unless the server has proved a renewed certificate inside the connection ([`crate::tunnel`]).
//!
//! For a server outside the mesh, which a DestinationRule wants verified, only its own certificate's end counts, and
//! streams under way go on: it has no identity that policy stands on, and no way to prove a renewed one.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use maille_core::Identity;
use maille_pki::leaf_facts;
use maille_telemetry::RefusalKind;
use maille_tls::{Binding, Current, Negotiated, RenewalError, TlsContext};
use rustls::ClientConnection;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;

use crate::open::{self, PROVES_WITHIN};
use crate::record::Refused;

/// A server whose certificate ends sooner is asked for its renewed one: three rounds of housekeeping.
const AHEAD: Duration = Duration::from_secs(15);

/// What the server of one connection has proved.
#[derive(Debug)]
pub(crate) struct ServerProof {
    /// In the mesh: the names of which it must have one.
    expected: Option<Arc<[String]>>,
    /// With a server of the mesh; what is agreed with others is a DestinationRule's.
    agreed: Option<Negotiated>,
    stands_on: RefCell<Shown>,
    refused: RefCell<Option<Rc<Refused>>>,
    /// The server can prove a renewed certificate inside the connection.
    can_renew: Cell<bool>,
    /// The connection carries one stream of opaque bytes and nothing else.
    is_tcp: Cell<bool>,
    /// Since when no root of now stands behind what it showed last.
    doubted: Cell<Option<Instant>>,
    lost: Notify,
}

/// The certificate that the server showed last.
#[derive(Debug)]
struct Shown {
    /// Kept where it may have to be verified again.
    chain: Rc<[CertificateDer<'static>]>,
    expires: SystemTime,
    /// From then on a renewed one is asked for.
    due: SystemTime,
    /// The trust by which it was verified.
    generation: u64,
}

impl Shown {
    fn new(chain: &[CertificateDer<'static>], keeps: bool, generation: u64) -> Option<Self> {
        let facts = leaf_facts(chain.first()?).ok()?;
        let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
        let ahead = AHEAD.max(life / 4).min(life / 2);
        Some(Self {
            chain: if keeps { chain.into() } else { Rc::default() },
            expires: facts.not_after,
            due: facts.not_after.checked_sub(ahead).unwrap_or(SystemTime::UNIX_EPOCH),
            generation,
        })
    }

    /// The moment that counts: now, or at the latest one before the end of what may outlive it.
    fn judged_at(&self, now: SystemTime, outlives_it: bool) -> UnixTime {
        let last = self.expires.checked_sub(Duration::from_secs(1)).filter(|_| outlives_it);
        let at = last.map_or(now, |last| now.min(last));
        UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

impl ServerProof {
    /// Of a server of the mesh, that was verified to have one of the `expected` names by the trust of `generation`.
    pub(crate) fn of_mesh(
        connection: &ClientConnection,
        expected: &Arc<[String]>,
        generation: u64,
    ) -> Option<Rc<Self>> {
        Self::new(connection, Some(expected.clone()), generation)
    }

    /// Of a server outside, that was verified as a DestinationRule wants.
    pub(crate) fn outside(connection: &ClientConnection) -> Option<Rc<Self>> {
        Self::new(connection, None, 0)
    }

    fn new(
        connection: &ClientConnection,
        expected: Option<Arc<[String]>>,
        generation: u64,
    ) -> Option<Rc<Self>> {
        let shown = Shown::new(connection.peer_certificates()?, expected.is_some(), generation)?;
        Some(Rc::new(Self {
            agreed: expected.is_some().then(|| Negotiated::of(connection)),
            expected,
            stands_on: RefCell::new(shown),
            refused: RefCell::default(),
            can_renew: Cell::default(),
            is_tcp: Cell::default(),
            doubted: Cell::default(),
            lost: Notify::new(),
        }))
    }

    /// The server can prove a renewed certificate inside the connection.
    pub(crate) fn can_be_renewed(&self) {
        self.can_renew.set(true);
    }

    /// The connection carries one stream of opaque bytes and nothing else.
    pub(crate) fn carries_tcp(&self) {
        self.is_tcp.set(true);
    }

    /// Whether something new may go over the connection. A change of trust is no question here: connections that were made
    /// under an older one get nothing new at all.
    pub(crate) fn holds(&self) -> bool {
        let is_trusted = self.refused.borrow().is_none() && self.doubted.get().is_none();
        is_trusted && SystemTime::now() < self.stands_on.borrow().expires
    }

    /// Whether the server should have a renewed certificate by now.
    pub(crate) fn is_due(&self) -> bool {
        self.doubted.get().is_some() || self.stands_on.borrow().due <= SystemTime::now()
    }

    /// Judges a renewed certificate that the server shows inside the connection.
    pub(crate) fn renew(
        &self,
        binding: &Binding,
        message: &[u8],
        identity: &Identity,
        current: &Current,
    ) -> Result<(), RenewalError> {
        let chain = current.accept_server_renewal(binding, message, identity, UnixTime::now())?;
        if let Some(shown) = Shown::new(&chain, true, current.generation()) {
            self.stands_on.replace(shown);
            self.doubted.set(None);
        }
        Ok(())
    }

    /// Verifies the certificate shown last by the clock, and by the trust of now once for each change of it; and what was
    /// agreed upon by the settings of now. Opaque bytes of a server that cannot prove a renewed certificate outlive it where
    /// the mesh says so, as in the other direction.
    fn judge(&self, current: &Current, keeps_tcp: bool) {
        let Some(expected) = &self.expected else { return };
        if let Some(refused) = open::disallowed(self.agreed.as_ref(), current) {
            return self.lose(refused);
        }
        let mut shown = self.stands_on.borrow_mut();
        let now = SystemTime::now();
        let outlives_it = keeps_tcp && self.is_tcp.get() && !self.can_renew.get();
        let refused = if shown.expires <= now && !outlives_it {
            "the server's certificate has expired, and it has proved no renewed one".to_owned()
        } else if shown.generation < current.generation() {
            match current.recheck_server(&shown.chain, expected, shown.judged_at(now, outlives_it)) {
                Ok(()) => {
                    shown.generation = current.generation();
                    self.doubted.set(None);
                    return;
                }
                Err(refusal) if self.can_renew.get() && refusal.reason.is_of_roots() => {
                    let since = self.doubted.get().unwrap_or_else(Instant::now);
                    self.doubted.set(Some(since));
                    if since.elapsed() < PROVES_WITHIN {
                        return;
                    }
                    refusal.to_string()
                }
                Err(refusal) => refusal.to_string(),
            }
        } else {
            return;
        };
        self.lose(Refused::new(RefusalKind::ServerIdentity, refused));
    }

    fn lose(&self, refused: Refused) {
        self.refused.replace(Some(Rc::new(refused)));
        self.lost.notify_waiters();
    }

    /// Waits until the server is believed no more.
    pub(crate) async fn lost(&self) -> Rc<Refused> {
        loop {
            // Before looking, so that nothing is missed in between.
            let lost = self.lost.notified();
            if let Some(refused) = &*self.refused.borrow() {
                return refused.clone();
            }
            lost.await;
        }
    }
}

/// As [`ServerProof::holds`]; a connection without TLS stands on nothing.
pub(crate) fn holds(proof: Option<&Rc<ServerProof>>) -> bool {
    proof.is_none_or(|proof| proof.holds())
}

/// As [`ServerProof::lost`]; never without a proof.
pub(crate) async fn lost(proof: Option<&ServerProof>) -> Rc<Refused> {
    match proof {
        Some(proof) => proof.lost().await,
        None => std::future::pending().await,
    }
}

/// What the servers of a worker's open connections have proved.
#[derive(Default)]
pub(crate) struct Servers(RefCell<Vec<Weak<ServerProof>>>);

impl Servers {
    /// Judges a server while anybody holds its proof.
    pub(crate) fn enter(&self, proof: &Rc<ServerProof>) {
        self.0.borrow_mut().push(Rc::downgrade(proof));
    }

    /// Ends what stands on certificates that have expired or are trusted no more.
    pub(crate) fn judge(&self, tls: &TlsContext, keeps_tcp: bool) {
        let current = tls.current();
        self.0.borrow_mut().retain(|proof| match proof.upgrade() {
            Some(proof) if proof.refused.borrow().is_none() => {
                proof.judge(&current, keeps_tcp);
                true
            }
            Some(_) | None => false,
        });
    }
}

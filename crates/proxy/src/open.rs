//! Connections that are open, and their judgement while they live.
//!
//! A policy holds for the whole life of a connection. Each worker knows its inbound connections; when the snapshot changes
//! it asks the new policy about each of them. Opaque and upgraded streams that are no longer allowed are cut, those whose
//! token has expired or is no good any more too, and those that a CUSTOM rule of now concerns are asked about again; on an
//! HTTP connection that no request could pass any more, requests under way finish and the connection closes (HTTP/2:
//! GOAWAY).

mod upgraded;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use maille_core::{Identity, MtlsMode};
use maille_policy::{ConnectionAttributes, ConnectionPolicy};
use maille_telemetry::{RefusalKind, Way};
use maille_tls::{Current, Refusal, TlsContext};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::authorizer::{self, AskedFor};
use crate::record::{self, Refused};
use crate::snapshot::Snapshot;
use crate::worker::Worker;

pub(crate) use upgraded::{Asked, Upgraded};

/// Streams of a worker that external authorizers are asked about again at the same time; others wait for their turn.
const ASKING_AGAIN: usize = 256;

/// What is fixed when an inbound connection has been accepted.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Who the peer proved to be.
    pub(crate) identity: Option<Identity>,
    /// The socket's peer.
    pub(crate) peer: SocketAddr,
    /// As dialled.
    pub(crate) destination: SocketAddr,
    /// Of the ClientHello.
    pub(crate) sni: Option<String>,
    /// Of TLS that this proxy accepted; empty without.
    pub(crate) key_exchange: &'static str,
    /// The certificates that the peer showed.
    pub(crate) proof: Option<Proof>,
}

/// What an identity stands on, kept to judge it again. Clones are of one connection: what renews one renews all.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    /// From the peer's own certificate upwards, as shown in the handshake.
    pub(crate) chain: Rc<[CertificateDer<'static>]>,
    stands_on: Rc<RefCell<Shown>>,
    /// The peer can prove a renewed certificate inside the connection.
    can_renew: Rc<Cell<bool>>,
}

/// The certificate that a peer showed last.
#[derive(Debug)]
struct Shown {
    chain: Rc<[CertificateDer<'static>]>,
    valid: Validity,
    /// The trust by which it was verified.
    generation: u64,
    /// Since when no root of now stands behind it.
    doubted: Option<Instant>,
}

/// How long a connection whose peer can prove a renewed certificate inside it is left alone when its root was withdrawn:
/// the peer's proxy learns of the same at about the same time, and shows its certificate with its next housekeeping or the
/// one after. Nothing new is taken from it meanwhile. Whoever is revoked is cut at once.
pub(crate) const PROVES_WITHIN: Duration = Duration::from_secs(12);

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Validity {
    /// Of a peer's own certificate.
    pub(crate) fn of(leaf: &CertificateDer<'_>) -> Result<Self, maille_pki::Error> {
        let facts = maille_pki::leaf_facts(leaf)?;
        Ok(Self { not_before: facts.not_before, not_after: facts.not_after })
    }

    /// Whether no more than a tenth of its life is left: it should have been renewed long since.
    fn is_about_to_end(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after.duration_since(now).is_ok_and(|left| left <= life / 10)
    }

    /// `now`, or the last moment before the end.
    fn at(&self, now: SystemTime) -> SystemTime {
        self.not_after.checked_sub(Duration::from_secs(1)).map_or(now, |last| now.min(last))
    }
}

impl Proof {
    /// A chain that was verified by the trust of `generation`.
    pub(crate) fn new(chain: Rc<[CertificateDer<'static>]>, valid: Validity, generation: u64) -> Self {
        let stands_on =
            Rc::new(RefCell::new(Shown { chain: chain.clone(), valid, generation, doubted: None }));
        Self { chain, stands_on, can_renew: Rc::default() }
    }

    /// The peer can prove a renewed certificate inside the connection.
    pub(crate) fn can_be_renewed(&self) {
        self.can_renew.set(true);
    }

    /// The peer has shown another certificate of its identity.
    pub(crate) fn renew(&self, chain: Rc<[CertificateDer<'static>]>, valid: Validity, generation: u64) {
        self.stands_on.replace(Shown { chain, valid, generation, doubted: None });
    }

    fn valid(&self) -> Validity {
        self.stands_on.borrow().valid
    }

    /// Verifies the certificate shown last by the trust of now, once for each change of it; as of a moment when it was
    /// valid, if its end does not count.
    fn recheck(&self, current: &Current, outlives_it: bool) -> Result<(), Refusal> {
        let mut shown = self.stands_on.borrow_mut();
        if shown.generation < current.generation() {
            let now = SystemTime::now();
            let at = if outlives_it { shown.valid.at(now) } else { now };
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            match current.recheck_client(&shown.chain, UnixTime::since_unix_epoch(at)) {
                Ok(_) => {
                    shown.generation = current.generation();
                    shown.doubted = None;
                }
                Err(refusal) if self.can_renew.get() && refusal.reason.is_of_roots() => {
                    let since = *shown.doubted.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PROVES_WITHIN {
                        return Err(refusal);
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// Whether no root of now stands behind the certificate shown last, and the peer has time to prove another one.
    fn is_doubted(&self) -> bool {
        self.stands_on.borrow().doubted.is_some()
    }
}

fn other_key_exchange(agreed: &str, current: &Current) -> Refused {
    let allowed = current.parameters().offered().join(", ");
    let reason = format!(
        "the key exchange of the connection is {agreed}, and the mesh now allows {allowed} alone (meshMTLS.ecdhCurves)"
    );
    Refused::new(RefusalKind::PolicyChanged, reason)
}

fn expired() -> Refused {
    let reason = "the peer's certificate has expired; it must connect again with a renewed one";
    Refused::new(RefusalKind::CertificateExpired, reason.to_owned())
}

fn doubted() -> Refused {
    let reason = "no root that is trusted now stands behind the certificate that the peer showed last; it must connect again \
                  with its renewed one";
    Refused::new(RefusalKind::CertificateRevoked, reason.to_owned())
}

impl Facts {
    pub(crate) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            identity: self.identity.as_ref(),
            source_ip: self.peer.ip(),
            remote_ip: self.peer.ip(),
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
            sni: self.sni.as_deref(),
        }
    }

    /// What the log says of it.
    pub(crate) fn way(&self) -> Way<'_> {
        Way {
            downstream_local: Some(self.destination),
            downstream_remote: Some(self.peer),
            server_name: self.sni.as_deref().unwrap_or_default(),
            ..Way::default()
        }
    }
}

/// What a connection carries, which is what it is judged by.
pub(crate) enum Carries {
    /// Opaque bytes.
    Tcp,
    /// HTTP requests, each judged by itself as well.
    Http,
    /// Streams of bytes, each judged as a connection of its own.
    Streams,
    /// The bytes after an upgrade, judged by the request that asked for it.
    Upgraded(Box<Upgraded>),
}

/// What is to become of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) enum Fate {
    /// It goes on.
    #[default]
    Lives,
    /// Requests under way finish, then it closes.
    Drains,
    /// It closes now, for this reason.
    Cut(Rc<Refused>),
}

/// One open inbound connection.
pub(crate) struct Open {
    pub(crate) facts: Facts,
    carries: Carries,
    policy: RefCell<ConnectionPolicy>,
    /// Whom a CUSTOM rule wanted asked last; only of streams.
    asked: RefCell<Option<Asked>>,
    /// Why nothing new may come on it, although what is under way may finish.
    barred: RefCell<Option<Rc<Refused>>>,
    fate: RefCell<Fate>,
    waker: RefCell<Option<Waker>>,
}

impl Open {
    pub(crate) fn new(facts: Facts, carries: Carries, policy: ConnectionPolicy) -> Self {
        let asked = match &carries {
            Carries::Upgraded(upgraded) => upgraded.asked.clone(),
            Carries::Tcp | Carries::Http | Carries::Streams => None,
        };
        Self {
            facts,
            carries,
            policy: RefCell::new(policy),
            asked: RefCell::new(asked),
            barred: RefCell::default(),
            fate: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    /// Runs `decide` with the policy in force; it must not wait.
    pub(crate) fn with_policy<T>(&self, decide: impl FnOnce(&ConnectionPolicy) -> T) -> T {
        decide(&self.policy.borrow())
    }

    /// Judges again by a new snapshot. Says whom to ask about it, if a CUSTOM rule now wants somebody asked who has not
    /// been.
    fn judge(&self, worker: &Worker, snapshot: &Snapshot) -> Option<AskedFor> {
        let policy = snapshot.policy.on_connection(&self.facts.attributes());
        self.policy.replace(policy);
        let no_good = || match &self.carries {
            Carries::Upgraded(upgraded) => upgraded.review(worker, snapshot),
            Carries::Tcp | Carries::Http | Carries::Streams => None,
        };
        if let Some(refused) = self.refused_mode(snapshot).or_else(no_good) {
            self.bar(refused);
            return None;
        }
        // Each request is judged by the policy itself, so nothing has to be barred.
        match self.refusal() {
            Some(refused) => {
                self.end(refused);
                None
            }
            None => self.ask(snapshot),
        }
    }

    /// Why nothing new may come on the connection, if nothing may: it is ending, and a peer decides for itself when it
    /// takes notice of that.
    pub(crate) fn barred(&self) -> Option<Rc<Refused>> {
        self.barred.borrow().clone()
    }

    /// Why the peer's identity does not hold any more, if it does not: its certificate has expired, or the roots have
    /// changed since it was verified. The handshake may have taken long, or been a while ago.
    pub(crate) fn unproven(&self, tls: &TlsContext) -> Option<Refused> {
        let proof = self.facts.proof.as_ref()?;
        if proof.valid().not_after <= SystemTime::now() {
            return Some(expired());
        }
        let current = tls.current();
        // A handshake that took long may have begun when another was allowed.
        if !current.parameters().allows(self.facts.key_exchange) {
            return Some(other_key_exchange(self.facts.key_exchange, &current));
        }
        match proof.recheck(&current, false) {
            Ok(()) if proof.is_doubted() => Some(doubted()),
            Ok(()) => None,
            Err(refusal) => Some(record::peer_lost(&refusal)),
        }
    }

    /// Whether it carries bytes of a peer that cannot prove a renewed certificate inside it: it ends with the one that it
    /// was opened with, unless the mesh says to keep it.
    fn is_tcp_of_other(&self) -> bool {
        let is_other = self.facts.proof.as_ref().is_some_and(|proof| !proof.can_renew.get());
        matches!(self.carries, Carries::Tcp) && is_other
    }

    /// Whom a CUSTOM rule wants asked about a stream, unless they have been with the same rule and settings.
    pub(crate) fn ask(&self, snapshot: &Snapshot) -> Option<AskedFor> {
        let policy = self.policy.borrow();
        // Without CUSTOM policies that is all.
        let asked = if policy.needs().asks {
            let ask = match &self.carries {
                Carries::Tcp => policy.ask_tcp().map(AskedFor::from),
                Carries::Http | Carries::Streams => None,
                Carries::Upgraded(upgraded) => {
                    upgraded.with_attributes(|attributes| policy.ask_http(attributes).map(AskedFor::from))
                }
            };
            ask.map(|ask| Asked::now(snapshot, ask))
        } else {
            None
        };
        let mut last = self.asked.borrow_mut();
        if *last == asked {
            return None;
        }
        *last = asked;
        last.as_ref().map(|asked| asked.ask.clone())
    }

    /// Asks about an open stream, and cuts it if it is refused.
    async fn ask_again(&self, worker: &Rc<Worker>, ask: AskedFor) {
        let Ok(_turn) = worker.open.asking.acquire().await else { return };
        let answer = match &self.carries {
            Carries::Tcp => authorizer::ask_tcp(worker, ask.clone(), &self.facts).await,
            Carries::Http | Carries::Streams => Ok(()),
            Carries::Upgraded(upgraded) => {
                authorizer::ask_about_stream(worker, ask.clone(), &self.facts, upgraded.request()).await
            }
        };
        // What was asked because of a rule that has changed since, another answer decides.
        let is_current = self.asked.borrow().as_ref().is_some_and(|asked| asked.ask == ask);
        if let Err(refused) = answer
            && is_current
        {
            self.end(refused);
        }
    }

    /// Records that it was cut.
    pub(crate) fn record_cut(&self, worker: &Worker, refused: &Refused) {
        if let Carries::Upgraded(upgraded) = &self.carries {
            upgraded.record_cut(worker, refused);
        }
    }

    /// Why the mode in force does not allow the connection, if it does not: it is plaintext and the port STRICT.
    pub(crate) fn refused_mode(&self, snapshot: &Snapshot) -> Option<Refused> {
        let port = self.facts.destination.port();
        let is_refused = self.facts.identity.is_none() && snapshot.inbound.mode_of(port) == MtlsMode::Strict;
        is_refused.then(|| {
            let reason = format!("port {port} is STRICT now and the connection is plaintext");
            Refused::new(RefusalKind::PolicyChanged, reason)
        })
    }

    /// Why the policy in force does not allow the connection to go on, if it does not.
    fn refusal(&self) -> Option<Refused> {
        let policy = self.policy.borrow();
        match &self.carries {
            Carries::Tcp => Refused::unless_allowed(&policy, None, &policy.decide_tcp()),
            Carries::Streams => None,
            Carries::Http if policy.can_allow_http() => None,
            Carries::Http => {
                let reason = "no request on this connection could be allowed any more";
                Some(Refused::new(RefusalKind::PolicyChanged, reason.to_owned()))
            }
            Carries::Upgraded(upgraded) => upgraded.with_attributes(|attributes| {
                Refused::unless_allowed(&policy, Some(attributes), &policy.decide_http(attributes))
            }),
        }
    }

    /// Ends the connection because of what holds for everything on it.
    fn bar(&self, refused: Refused) {
        self.barred.replace(Some(Rc::new(refused.clone())));
        self.end(refused);
    }

    /// Ends the connection as its kind demands.
    fn end(&self, refused: Refused) {
        match self.carries {
            Carries::Http | Carries::Streams => self.decree(Fate::Drains),
            Carries::Tcp | Carries::Upgraded(_) => self.decree(Fate::Cut(Rc::new(refused))),
        }
    }

    /// Lets requests under way finish; streams are left alone.
    pub(crate) fn drain(&self) {
        if matches!(self.carries, Carries::Http | Carries::Streams) {
            self.decree(Fate::Drains);
        }
    }

    fn decree(&self, fate: Fate) {
        self.fate.replace(fate);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Ready as soon as the connection may not simply go on.
    pub(crate) fn poll_fate(&self, cx: &mut Context<'_>) -> Poll<Fate> {
        let fate = self.fate.borrow().clone();
        if !matches!(fate, Fate::Lives) {
            return Poll::Ready(fate);
        }
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until the connection may not simply go on.
    pub(crate) async fn fate(&self) -> Fate {
        std::future::poll_fn(|cx| self.poll_fate(cx)).await
    }
}

/// A worker's open inbound connections.
pub(crate) struct OpenConnections {
    asking: tokio::sync::Semaphore,
    next: Cell<u64>,
    rechecked: Cell<u64>,
    /// Some peers have time to prove another certificate, and are looked at again.
    doubts: Cell<bool>,
    all: RefCell<HashMap<u64, Rc<Open>, foldhash::fast::RandomState>>,
}

impl Default for OpenConnections {
    fn default() -> Self {
        Self {
            asking: tokio::sync::Semaphore::new(ASKING_AGAIN),
            next: Cell::default(),
            rechecked: Cell::default(),
            doubts: Cell::default(),
            all: RefCell::default(),
        }
    }
}

impl OpenConnections {
    /// Adds a connection; it is judged until the entry is dropped.
    pub(crate) fn enter(self: &Rc<Self>, open: Open) -> Entry {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let open = Rc::new(open);
        self.all.borrow_mut().insert(id, open.clone());
        Entry { id, open, all: self.clone() }
    }

    /// Judges every connection by a new snapshot.
    pub(crate) fn judge(&self, worker: &Rc<Worker>) {
        let all: Vec<Rc<Open>> = self.all.borrow().values().cloned().collect();
        for open in all {
            self.judge_one(worker, &open);
        }
    }

    /// Judges one connection by the snapshot of now.
    pub(crate) fn judge_one(&self, worker: &Rc<Worker>, open: &Rc<Open>) {
        if let Some(ask) = open.judge(worker, &worker.snapshot()) {
            let (worker, open) = (worker.clone(), open.clone());
            tokio::task::spawn_local(async move { open.ask_again(&worker, ask).await });
        }
    }

    /// Ends the connections whose peer's certificate has expired: HTTP finishes its requests, streams are cut; and the
    /// streams whose token has.
    pub(crate) fn expire(&self, now: SystemTime, keeps_tcp: bool) {
        let all = self.all.borrow();
        for open in all.values().filter(|open| matches!(*open.fate.borrow(), Fate::Lives)) {
            if open.facts.proof.as_ref().is_some_and(|proof| proof.valid().not_after <= now)
                && !(keeps_tcp && open.is_tcp_of_other())
            {
                open.bar(expired());
            } else if let Carries::Upgraded(upgraded) = &open.carries
                && let Some(refused) = upgraded.expiry(now)
            {
                open.end(refused);
            }
        }
    }

    /// How many connections are about to end with the certificate of their peer.
    pub(crate) fn count_ending(&self, now: SystemTime) -> u64 {
        let all = self.all.borrow();
        let is_ending = |open: &&Rc<Open>| {
            let proof = open.facts.proof.as_ref();
            open.is_tcp_of_other() && proof.is_some_and(|proof| proof.valid().is_about_to_end(now))
        };
        all.values().filter(is_ending).count() as u64
    }

    /// Ends the connections whose peer is trusted no more, after the roots have changed.
    pub(crate) fn recheck(&self, tls: &TlsContext, keeps_tcp: bool) {
        if self.rechecked.replace(tls.generation()) == tls.generation() && !self.doubts.take() {
            return;
        }
        let current = tls.current();
        let all = self.all.borrow();
        for open in all.values() {
            let Some(proof) = &open.facts.proof else { continue };
            if !current.parameters().allows(open.facts.key_exchange) {
                open.bar(other_key_exchange(open.facts.key_exchange, &current));
                continue;
            }
            if let Err(refusal) = proof.recheck(&current, keeps_tcp && open.is_tcp_of_other()) {
                open.bar(record::peer_lost(&refusal));
            } else if proof.is_doubted() {
                self.doubts.set(true);
            }
        }
    }

    /// Lets every HTTP connection finish what it has begun.
    pub(crate) fn drain(&self) {
        for open in self.all.borrow().values() {
            open.drain();
        }
    }
}

/// Keeps a connection under judgement.
pub(crate) struct Entry {
    id: u64,
    pub(crate) open: Rc<Open>,
    all: Rc<OpenConnections>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.all.borrow_mut().remove(&self.id);
    }
}

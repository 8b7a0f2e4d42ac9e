//! Connections that are open, and their judgement while they live.
//!
//! A policy holds for the whole life of a connection. Each worker knows its inbound connections; when the snapshot changes
//! it asks the new policy about each of them. Opaque and upgraded streams that are no longer allowed are cut, those whose
//! token has expired or is no good any more too, and those that a CUSTOM rule of now concerns are asked about again; on an
//! HTTP connection that no request could pass any more, requests under way finish and the connection closes (HTTP/2:
//! GOAWAY).

mod proof;
mod upgraded;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use maille_core::{Identity, MtlsMode};
use maille_policy::{ConnectionAttributes, ConnectionPolicy};
use maille_telemetry::{RefusalKind, Way};
use maille_tls::{Current, Negotiated, TlsContext};

use crate::authorizer::{self, AskedFor};
use crate::record::{self, Refused};
use crate::snapshot::Snapshot;
use crate::worker::Worker;

pub(crate) use proof::{PROVES_WITHIN, Proof, Validity};
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
    /// Of TLS that this proxy accepted.
    pub(crate) agreed: Option<Negotiated>,
    /// The certificates that the peer showed.
    pub(crate) proof: Option<Proof>,
}

/// Why what the ends agreed upon is not allowed any more, if it is not; without TLS there is nothing to allow.
pub(crate) fn disallowed(agreed: Option<&Negotiated>, current: &Current) -> Option<Refused> {
    let (agreed, parameters) = (agreed?, current.parameters());
    if parameters.allows(agreed) {
        return None;
    }
    let (allowed, version) = (parameters.offered().join(", "), parameters.oldest_version());
    let reason = format!(
        "the version and key exchange of the connection are {agreed}, and the mesh now allows {version} at least (meshMTLS.\
         minProtocolVersion) and of key exchanges {allowed} alone (meshMTLS.ecdhCurves)"
    );
    Some(Refused::new(RefusalKind::PolicyChanged, reason))
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
    since: SystemTime,
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
            since: SystemTime::now(),
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

    /// Why no request may come on the connection, if none may. Asked for each of them, so that none passes that came after
    /// its caller's certificate has ended, or lost its root, but before anybody looks after open connections; costs two
    /// comparisons while all is well. A request in the last moments still passes, and the connection goes with it: its
    /// caller then need not find it closed. One that was opened in the last moments stays to the end.
    pub(crate) fn closed_to_requests(&self, tls: &TlsContext) -> Option<Rc<Refused>> {
        if let Some(barred) = self.barred() {
            return Some(barred);
        }
        let now = SystemTime::now();
        if let Some(refused) = self.unproven_at(tls, now) {
            self.bar(refused);
            return self.barred();
        }
        let is_late =
            |valid: Validity| valid.is_in_last_moments(now) && !valid.is_in_last_moments(self.since);
        if self.facts.proof.as_ref().is_some_and(|proof| is_late(proof.valid())) {
            self.drain();
        }
        None
    }

    /// Why the peer's identity does not hold any more, if it does not: its certificate has expired, or the roots have
    /// changed since it was verified. The handshake may have taken long, or been a while ago.
    pub(crate) fn unproven(&self, tls: &TlsContext) -> Option<Refused> {
        self.unproven_at(tls, SystemTime::now())
    }

    fn unproven_at(&self, tls: &TlsContext, now: SystemTime) -> Option<Refused> {
        let proof = self.facts.proof.as_ref()?;
        if proof.valid().not_after <= now {
            return Some(expired());
        }
        if proof.is_of(tls.generation()) {
            return None;
        }
        let current = tls.current();
        // A handshake that took long may have begun when another was allowed.
        if let Some(refused) = disallowed(self.facts.agreed.as_ref(), &current) {
            return Some(refused);
        }
        match proof.recheck(&current, false) {
            Ok(()) if proof.is_doubted() => Some(doubted()),
            Ok(()) => None,
            Err(refusal) => Some(record::peer_lost(&refusal)),
        }
    }

    /// When it ends with the certificate of its peer, if it is not ending already.
    fn ends(&self, keeps_tcp: bool) -> Option<SystemTime> {
        let proof = self.facts.proof.as_ref()?;
        let is_exempt = keeps_tcp && self.is_tcp_of_other();
        (!is_exempt && matches!(*self.fate.borrow(), Fate::Lives)).then(|| proof.valid().not_after)
    }

    /// Whether the connection is not simply to go on.
    pub(crate) fn is_leaving(&self) -> bool {
        !matches!(*self.fate.borrow(), Fate::Lives)
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
            if open.ends(keeps_tcp).is_some_and(|end| end <= now) {
                open.bar(expired());
            } else if let Carries::Upgraded(upgraded) = &open.carries
                && let Some(refused) = upgraded.expiry(now)
            {
                open.end(refused);
            }
        }
    }

    /// When the next connection ends with the certificate of its peer.
    pub(crate) fn next_end(&self, now: SystemTime, keeps_tcp: bool) -> Option<SystemTime> {
        let all = self.all.borrow();
        all.values().filter_map(|open| open.ends(keeps_tcp)).filter(|end| *end > now).min()
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
            if let Some(refused) = disallowed(open.facts.agreed.as_ref(), &current) {
                open.bar(refused);
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

#[cfg(test)]
mod tests;

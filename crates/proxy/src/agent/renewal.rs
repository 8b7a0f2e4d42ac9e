//! The own certificate is kept current: when a new one is asked for, and what happens while there is none to be had.
//!
//! It is due at half of its life (reference mtls 5.7), by whichever clock says so first, and sooner when there is another
//! authority, other roots or another trust domain, or when the clock was set. It cannot come to a standstill: a failed
//! attempt is repeated for ever, nothing but the token on disk is needed for it, and a fresh token is tried at once.

use std::sync::Arc;
use std::time::Duration;

use maille_core::TrustDomain;
use maille_pki::{fingerprint, renew_at, signer_of};
use maille_telemetry::Registry;
use maille_tls::Skew;
use maille_xds::Backoff;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::clock::{Clocks, Reading};
use super::facts_in_force::FactsInForce;
use super::identity::{self, IssueError};
use super::in_use::News;
use super::options::ProxyOptions;
use super::stamp::Stamp;
use super::state::{Credential, StateStore};

/// How often the clocks are looked at, and the files while there is something wrong.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_AT_FILES_EVERY: Duration = Duration::from_millis(250);
/// The wait after a failed attempt, and the longest one without a certificate and with one (reference mtls 5.7).
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT_WITHOUT: Duration = Duration::from_secs(3);
const MAX_WAIT_WITH: Duration = Duration::from_secs(150);
/// The longest after the authority has said that this workload may have none: somebody may take that back at any moment, and
/// the workload is out of the mesh until it is asked again.
const MAX_WAIT_DENIED: Duration = Duration::from_secs(5);
/// Renewals that all proxies of a mesh have reason for at the same moment are spread over so long.
const MAX_SPREAD: Duration = Duration::from_secs(2);
/// An authority that hands out certificates without a life is not asked without a pause.
const MIN_DUE: Duration = Duration::from_millis(500);

/// What keeps the certificate current.
pub(crate) struct Renewer {
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) store: Option<Arc<StateStore>>,
    pub(crate) telemetry: Arc<Registry>,
    pub(crate) facts: Arc<Mutex<FactsInForce>>,
    pub(crate) news: Arc<News>,
    pub(crate) clocks: Arc<dyn Clocks>,
    /// Holds the certificate in use.
    pub(crate) sender: watch::Sender<Option<Arc<Credential>>>,
}

/// Why a certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Due,
    ClockSet,
    OtherAuthority,
    OtherRoots,
    Revoked,
}

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Self::Due => "half of its life is over",
            Self::ClockSet => "the clock was set",
            Self::OtherAuthority => "the mesh has another signing certificate or trust domain",
            Self::OtherRoots => "the mesh has other roots",
            Self::Revoked => "it has been revoked",
        }
    }
}

/// How long a certificate lives, counted from when it was obtained: authorities date certificates back, and half of a
/// short life would be over already (reference mtls 5.7).
#[derive(Debug, Clone, Copy)]
struct Life {
    from: Reading,
    length: Duration,
    due: Duration,
}

impl Life {
    /// Of a certificate that was just obtained; its end is on the authority's clock.
    fn of_new(credential: &Credential, skew: Option<Skew>, from: Reading, jitter: f64) -> Self {
        let start = skew.map_or(from.wall, |skew| skew.at_authority(from.wall));
        let length = credential.svid.not_after().duration_since(start).unwrap_or_default();
        Self::new(from, length, jitter)
    }

    /// Of one that was kept: nobody knows any more when it was obtained.
    fn of_kept(credential: &Credential, now: Reading, jitter: f64) -> Self {
        let svid = &credential.svid;
        let age = now.wall.duration_since(credential.obtained).unwrap_or_default();
        let from = Reading { wall: credential.obtained, elapsed: now.elapsed.saturating_sub(age) };
        Self::new(from, svid.not_after().duration_since(credential.obtained).unwrap_or_default(), jitter)
    }

    fn new(from: Reading, length: Duration, jitter: f64) -> Self {
        let due = renew_at(from.wall, from.wall + length, jitter).duration_since(from.wall);
        Self { from, length, due: due.unwrap_or_default().max(MIN_DUE) }
    }

    fn until_due(&self, now: Reading) -> Option<Duration> {
        self.due.checked_sub(now.since(&self.from)).filter(|left| !left.is_zero())
    }

    fn left(&self, now: Reading) -> Option<Duration> {
        self.length.checked_sub(now.since(&self.from)).filter(|left| !left.is_zero())
    }

    /// How far the clock must have been set to be worth a renewal. Less is a correction.
    fn shock(&self) -> Duration {
        (self.length / 20).clamp(Duration::from_secs(2), Duration::from_secs(60))
    }

    fn spread(&self) -> Duration {
        (self.length / 20).min(MAX_SPREAD)
    }

    /// The wait after a failure: short lives must not be slept through.
    fn max_wait(&self, now: Reading) -> Duration {
        match self.left(now) {
            Some(left) => (left / 8).clamp(Duration::from_millis(200), MAX_WAIT_WITH),
            None => MAX_WAIT_WITHOUT,
        }
    }
}

/// What the mesh says about certificates of the own trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The mesh's trust domain, once it is known.
    pub(crate) trust_domain: Option<TrustDomain>,
    /// Fingerprint of the certificate that signs now; `None`: whoever does is fine.
    pub(crate) signer: Option<String>,
    /// Fingerprints of the roots, once the control plane has said them.
    pub(crate) roots: Option<Vec<String>>,
    /// Why the certificate in use is believed no more, if it is revoked.
    pub(crate) revoked: Option<String>,
}

/// What this proxy makes of it. An authority that does not do what the mesh says is not asked about it again and again.
struct Demands {
    answered: Wanted,
    again: Option<Duration>,
    backoff: Backoff,
}

impl Demands {
    fn new() -> Self {
        Self { answered: Wanted::default(), again: None, backoff: Backoff::new(FIRST_WAIT, MAX_WAIT_WITH) }
    }

    /// Whether a certificate is to be renewed for the sake of what is wanted; `is_met` says whether it is as wanted.
    fn judge(&mut self, wanted: &Wanted, is_met: bool, now: Reading) -> Option<Reason> {
        let before = std::mem::replace(&mut self.answered, wanted.clone());
        if !is_met {
            let of = |of: &Wanted| (of.signer.clone(), of.trust_domain.clone(), of.revoked.clone());
            if of(&before) != of(wanted) {
                self.backoff.reset();
            } else if self.again.is_some_and(|again| now.elapsed < again) {
                return None;
            }
            self.again = Some(now.elapsed + self.backoff.next_wait(rand::random()));
            let is_revoked = wanted.revoked.is_some();
            return Some(if is_revoked { Reason::Revoked } else { Reason::OtherAuthority });
        }
        self.again = None;
        self.backoff.reset();
        // What came first came with the certificate, or soon after it.
        (before.roots.is_some() && before.roots != wanted.roots).then_some(Reason::OtherRoots)
    }
}

/// The longest wait after a failed attempt.
fn longest_wait(life: Option<&Life>, error: &IssueError, now: Reading) -> Duration {
    let longest = life.map_or(MAX_WAIT_WITHOUT, |life| life.max_wait(now));
    if error.is_denial() { longest.min(MAX_WAIT_DENIED) } else { longest }
}

impl Renewer {
    /// Keeps a certificate of the own identity in use for ever. Starts with the one that is there.
    pub(crate) async fn run(self) {
        let mut demands = Demands::new();
        let kept = self.sender.borrow().clone();
        let now = self.clocks.read();
        let mut life = kept.map(|kept| Life::of_kept(&kept, now, jitter()));
        loop {
            if let Some(life) = &life {
                let reason = self.reason(life, &mut demands).await;
                info!(reason = reason.text(), "renewing the certificate");
            }
            life = Some(self.renew(life.as_ref()).await);
        }
    }

    /// Waits until there is a reason to renew.
    async fn reason(&self, life: &Life, demands: &mut Demands) -> Reason {
        let mut news = self.news.subscribe();
        let mut looked = self.clocks.read();
        let (mut wanted, mut is_met) = self.wanted();
        let reason = loop {
            let now = self.clocks.read();
            let Some(left) = life.until_due(now) else { return Reason::Due };
            if now.set_since(&looked) > life.shock() {
                break Reason::ClockSet;
            }
            looked = now;
            if let Some(reason) = demands.judge(&wanted, is_met, now) {
                break reason;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
                Ok(()) = news.changed() => (wanted, is_met) = self.wanted(),
            }
        };
        // So that not all proxies of a mesh or a machine ask at once.
        tokio::time::sleep(life.spread().mul_f64(rand::random_range(0.0..1.0))).await;
        reason
    }

    /// What the mesh wants, and whether the certificate in use is so.
    fn wanted(&self) -> (Wanted, bool) {
        let facts = self.facts.lock();
        let wanted = facts.wanted();
        let Some(held) = facts.credential() else { return (wanted, true) };
        let svid = &held.svid;
        let is_of_domain =
            wanted.trust_domain.as_ref().is_none_or(|domain| domain == svid.identity().trust_domain());
        let is_of_signer = wanted.signer.as_ref().is_none_or(|signer| {
            signer_of(svid.chain(), facts.own_roots()).is_some_and(|found| fingerprint(found) == *signer)
        });
        let is_met = is_of_domain && is_of_signer && wanted.revoked.is_none();
        (wanted, is_met)
    }

    /// Asks until there is a new certificate, and puts it in use.
    async fn renew(&self, before: Option<&Life>) -> Life {
        let mut wait = FIRST_WAIT;
        let mut warned = None;
        loop {
            let files = self.files();
            let held = self.sender.borrow().clone();
            let asked = self.clocks.read();
            let outcome = identity::ask(&self.options, held.as_ref().map(|c| &c.svid), &*self.clocks).await;
            let now = self.clocks.read();
            if let Some(skew) = outcome.skew {
                skew.publish();
                self.telemetry.gauges().clock_skew(skew.seconds());
                if skew.is_worth_saying() {
                    warn!("{skew}");
                }
            }
            match outcome.credential {
                Ok(credential) => {
                    let life = Life::of_new(&credential, outcome.skew, now, jitter());
                    self.put_in_use(credential);
                    return life;
                }
                Err(error) => {
                    self.failed(&error, before, now, &mut warned);
                    let pause =
                        wait.min(longest_wait(before, &error, now)).mul_f64(rand::random_range(0.8..1.2));
                    wait = if self.pause(pause, &files, asked).await { FIRST_WAIT } else { wait * 2 };
                    wait = wait.min(MAX_WAIT_WITH);
                }
            }
        }
    }

    fn put_in_use(&self, credential: Credential) {
        let svid = &credential.svid;
        info!(identity = %svid.identity(), serial = svid.serial(), "workload certificate obtained");
        self.telemetry.gauges().identity(svid.identity().to_string());
        self.telemetry.gauges().certificate_renewed(svid.not_after(), self.clocks.read().wall);
        note_roots(&self.telemetry, &credential);
        if let Some(store) = &self.store
            && let Err(error) = store.save_credential(&credential)
        {
            warn!(%error, "the certificate is not kept for a restart");
        }
        self.sender.send_replace(Some(Arc::new(credential)));
        self.news.renewal_ended(String::new());
    }

    /// Says what is wrong and what to do, ever louder.
    fn failed(&self, error: &IssueError, life: Option<&Life>, now: Reading, warned: &mut Option<u32>) {
        self.telemetry.gauges().certificate_failed();
        self.news.renewal_ended(error.to_string());
        let advice = error.advice(&self.options);
        let Some(life) = life else {
            return warn!(%error, advice, "no workload certificate");
        };
        let Some(left) = life.left(now) else {
            if warned.replace(0) != Some(0) {
                error!("the workload certificate has expired: every peer of the mesh refuses this workload");
            }
            return error!(%error, advice, "certificate not renewed");
        };
        for part in [8, 4] {
            if left <= life.length / part && warned.is_none_or(|known| known < part) {
                *warned = Some(part);
                error!(
                    expires_in_s = left.as_secs(),
                    "less than 1/{part} of the certificate's life is left, and it cannot be renewed"
                );
                break;
            }
        }
        warn!(%error, advice, expires_in_s = left.as_secs(), "certificate not renewed");
    }

    /// What an attempt depends on besides the authority: another token or other roots may be all that it needs.
    fn files(&self) -> [Option<Stamp>; 2] {
        [&self.options.token_file, &self.options.root_file].map(|path| Stamp::of(path))
    }

    /// Waits, but not while there is something new to try: a file has changed, the clock was set, the machine slept, or the
    /// certificate in use is revoked no more. Says whether there is.
    async fn pause(&self, wait: Duration, files: &[Option<Stamp>; 2], asked: Reading) -> bool {
        let started = self.clocks.read();
        let mut looked = started;
        let is_revoked = || self.facts.lock().own_revocation().is_some();
        let was_revoked = is_revoked();
        if started.set_since(&asked) > MAX_SPREAD {
            return true;
        }
        loop {
            let Some(left) = wait.checked_sub(looked.elapsed.saturating_sub(started.elapsed)) else {
                return false;
            };
            tokio::time::sleep(left.min(LOOK_AT_FILES_EVERY)).await;
            let now = self.clocks.read();
            let is_free = was_revoked && !is_revoked();
            if is_free || self.files() != *files || now.set_since(&looked) > MAX_SPREAD {
                return true;
            }
            looked = now;
            if left <= LOOK_AT_FILES_EVERY {
                return false;
            }
        }
    }
}

/// Tells telemetry when the first of the roots ends that came with a certificate.
pub(crate) fn note_roots(telemetry: &Registry, credential: &Credential) {
    let ends = credential.roots.iter().filter_map(|root| Some(maille_pki::leaf_facts(root).ok()?.not_after));
    if let Some(first) = ends.min() {
        telemetry.gauges().roots_loaded(first);
    }
}

fn jitter() -> f64 {
    rand::random_range(-1.0..=1.0)
}

#[cfg(test)]
mod tests;

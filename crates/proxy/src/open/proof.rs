//! What the peer of an open inbound connection has proved, and for how long that holds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use maille_tls::{Current, Refusal};
use rustls::pki_types::{CertificateDer, UnixTime};

/// What an identity stands on, kept to judge it again. Clones are of one connection: what renews one renews all.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    /// From the peer's own certificate upwards, as shown in the handshake.
    pub(crate) chain: Rc<[CertificateDer<'static>]>,
    stands_on: Rc<RefCell<Shown>>,
    /// The peer can prove a renewed certificate inside the connection.
    pub(super) can_renew: Rc<Cell<bool>>,
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

/// Connections that carry requests leave so long before the certificate of their caller ends, with an answer: callers that
/// send in the very moment in which a connection is closed lose a request.
pub(super) const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Validity {
    /// Of a peer's own certificate.
    pub(crate) fn of(leaf: &CertificateDer<'_>) -> Result<Self, maille_pki::Error> {
        let facts = maille_pki::leaf_facts(leaf)?;
        Ok(Self { not_before: facts.not_before, not_after: facts.not_after })
    }

    /// Whether no more than a tenth of its life is left: it should have been renewed long since.
    pub(super) fn is_about_to_end(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after.duration_since(now).is_ok_and(|left| left <= life / 10)
    }

    /// Whether the end is so near that another request would hardly come before it.
    pub(super) fn is_in_last_moments(&self, now: SystemTime) -> bool {
        self.not_after.duration_since(now).is_ok_and(|left| left <= LAST_MOMENTS) && self.is_about_to_end(now)
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

    pub(super) fn valid(&self) -> Validity {
        self.stands_on.borrow().valid
    }

    /// Whether it has been verified by the trust of `generation`, and was found good.
    pub(super) fn is_of(&self, generation: u64) -> bool {
        let shown = self.stands_on.borrow();
        shown.generation == generation && shown.doubted.is_none()
    }

    /// Verifies the certificate shown last by the trust of now, once for each change of it; as of a moment when it was
    /// valid, if its end does not count.
    pub(super) fn recheck(&self, current: &Current, outlives_it: bool) -> Result<(), Refusal> {
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
    pub(super) fn is_doubted(&self) -> bool {
        self.stands_on.borrow().doubted.is_some()
    }
}

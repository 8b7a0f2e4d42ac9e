use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use maille_core::{Identity, TrustDomain};
use maille_pki::{CertificateDer, LeafFacts, TrustBundles, leaf_facts};
use rustls_pki_types::{TrustAnchor, UnixTime};

use crate::error::SetupError;
use crate::refusal::{Presenter, Reason, Refusal};
use crate::revoked::{Lists, Revoked};

/// Whom a proxy believes: the roots of each trust domain, and the trust domains from which it
/// accepts clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Roots per trust domain.
    pub bundles: TrustBundles,
    /// Trust domains whose clients may connect (SN-9); one without a bundle admits nobody.
    pub accepted_domains: BTreeSet<TrustDomain>,
    /// Who has lost its right before its certificate ends.
    pub revoked: Arc<Revoked>,
}

impl Trust {
    /// The trust of a mesh: its own trust domain, its aliases (which are other names of the same
    /// domain, and so are verified by its roots unless they have their own), and every domain
    /// for which there is a bundle (SN-9, SN-12).
    pub fn of_mesh(
        mut bundles: TrustBundles,
        trust_domain: &TrustDomain,
        aliases: &[TrustDomain],
    ) -> Result<Self, SetupError> {
        let own = bundles.roots(trust_domain).to_vec();
        if own.is_empty() {
            return Err(SetupError::NoRoots(trust_domain.clone()));
        }
        for alias in aliases {
            if bundles.roots(alias).is_empty() {
                bundles.insert(alias.clone(), own.clone())?;
            }
        }
        let accepted_domains = bundles.iter().map(|(domain, _)| domain.clone()).collect();
        Ok(Self { bundles, accepted_domains, revoked: Arc::default() })
    }

    /// The same, but for those who are revoked.
    pub fn without(self, revoked: Arc<Revoked>) -> Self {
        Self { revoked, ..self }
    }
}

/// [`Trust`], ready for path validation.
#[derive(Debug)]
pub(crate) struct Anchors {
    by_domain: BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>,
    accepted: BTreeSet<TrustDomain>,
    revoked: Arc<Revoked>,
    lists: Option<Lists>,
}

impl Anchors {
    pub(crate) fn new(trust: &Trust) -> Result<Self, SetupError> {
        let mut by_domain = BTreeMap::new();
        for (domain, roots) in trust.bundles.iter() {
            let anchors = roots
                .iter()
                .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| SetupError::Root { trust_domain: domain.clone(), reason: e.to_string() })?;
            by_domain.insert(domain.clone(), anchors);
        }
        let lists = Lists::new(&trust.revoked, &trust.bundles);
        let (accepted, revoked) = (trust.accepted_domains.clone(), trust.revoked.clone());
        Ok(Self { by_domain, accepted, revoked, lists })
    }

    /// Verifies a client: chain to the bundle of its trust domain, which must be accepted, and the
    /// leaf rules (SN-8, SN-9, SF-2).
    pub(crate) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, Refusal> {
        let facts = read(Presenter::Client, leaf)?;
        let judged = (|| {
            let identity = facts.identity()?;
            let domain = identity.trust_domain();
            if !self.accepted.contains(domain) {
                let accepted = self.accepted.iter().cloned().collect();
                return Err(Reason::TrustDomain { found: domain.clone(), accepted });
            }
            let path = self.verify_path(domain, leaf, &facts, intermediates, now, Presenter::Client);
            self.unless_revoked(path, &facts, Some(&identity))?;
            Ok(identity)
        })();
        judged.map_err(|reason| refuse(Presenter::Client, &facts, reason))
    }

    /// Verifies a server: chain to the mesh's roots and at least one of the expected names; an
    /// empty list expects none in particular (SN-2, SN-3, SN-5). A certificate without a SPIFFE name
    /// is verified by the roots of the `own` trust domain.
    pub(crate) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        own: &TrustDomain,
        expected: &Arc<[String]>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let facts = read(Presenter::Server, leaf)?;
        let judged = (|| {
            facts.check_end_entity()?;
            // A server may carry DNS names only (SN-5); one URI makes it an SVID, two are refused.
            let identity = if facts.uris.is_empty() { None } else { Some(facts.identity()?) };
            let domain = identity.as_ref().map_or(own, Identity::trust_domain);
            let path = self.verify_path(domain, leaf, &facts, intermediates, now, Presenter::Server);
            self.unless_revoked(path, &facts, identity.as_ref())?;
            if !expected.is_empty() && !expected.iter().any(|name| facts.is_named(name)) {
                return Err(Reason::Name { expected: expected.clone() });
            }
            Ok(())
        })();
        judged.map_err(|reason| refuse(Presenter::Server, &facts, reason))
    }

    /// A certificate that is revoked is refused for that, also where its root is gone too: who only lacks a root may be given
    /// time to prove another certificate.
    fn unless_revoked(
        &self,
        path: Result<(), Reason>,
        facts: &LeafFacts,
        identity: Option<&Identity>,
    ) -> Result<(), Reason> {
        match path {
            Err(reason) if !reason.is_of_roots() => Err(reason),
            path => self.revoked.refuses(facts, identity).map_or(path, Err),
        }
    }

    fn verify_path(
        &self,
        domain: &TrustDomain,
        leaf: &CertificateDer<'_>,
        facts: &LeafFacts,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        presenter: Presenter,
    ) -> Result<(), Reason> {
        let anchors = self.by_domain.get(domain).ok_or_else(|| Reason::NoBundle(domain.clone()))?;
        let (usage, purpose) = match presenter {
            Presenter::Client => (webpki::KeyUsage::client_auth(), "clientAuth"),
            Presenter::Server => (webpki::KeyUsage::server_auth(), "serverAuth"),
        };
        // Of several paths one may be good, so this is asked of each; what it says of the last one is told.
        let revoked = RefCell::new(None);
        let judge = |path: &webpki::VerifiedPath<'_>| match &self.lists {
            Some(lists) => lists.judge(facts, path).map_err(|reason| {
                revoked.replace(Some(reason));
                webpki::Error::CertRevoked
            }),
            None => Ok(()),
        };
        webpki::EndEntityCert::try_from(leaf)
            .and_then(|parsed| {
                let algorithms = webpki::ALL_VERIFICATION_ALGS;
                let each = Some(&judge as &dyn Fn(&webpki::VerifiedPath<'_>) -> Result<(), webpki::Error>);
                parsed.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, each).map(drop)
            })
            .map_err(|e| match revoked.take() {
                Some(reason) => reason,
                None => Self::explain(e, domain, anchors.len(), purpose),
            })
    }

    fn explain(error: webpki::Error, domain: &TrustDomain, roots: usize, purpose: &'static str) -> Reason {
        match error {
            webpki::Error::CertExpired { time, not_after } => {
                Reason::Expired { not_after: system_time(not_after), now: system_time(time) }
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                Reason::NotYetValid { not_before: system_time(not_before), now: system_time(time) }
            }
            // The roots of two meshes, or of one before and after a rotation, have the same
            // name: then a root is found, and the signature is not its own.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Reason::UnknownIssuer { trust_domain: domain.clone(), roots }
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => Reason::Purpose(purpose),
            other => Reason::Path(other.to_string()),
        }
    }
}

fn read(presenter: Presenter, leaf: &CertificateDer<'_>) -> Result<LeafFacts, Refusal> {
    leaf_facts(leaf).map_err(|e| Refusal {
        presenter,
        claimed: Vec::new(),
        serial: String::new(),
        reason: Reason::Unreadable(e.to_string()),
    })
}

fn refuse(presenter: Presenter, facts: &LeafFacts, reason: Reason) -> Refusal {
    Refusal { presenter, claimed: facts.names().collect(), serial: facts.serial.clone(), reason }
}

fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs())
}

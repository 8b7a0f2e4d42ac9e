//! Whom applications are told to believe: what the proxy itself believes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use maille_core::TrustDomain;
use maille_pki::CertificateDer;
use maille_proto::facts as wire;
use maille_tls::Revoked;
use maille_xds::type_urls;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use crate::agent::facts_in_force::FactsInForce;

/// Roots and keys in force, by trust domain; aliases of the own domain are among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Believed {
    /// X.509 roots.
    pub(super) roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// JWK Sets that JWT-SVIDs verify by.
    pub(super) keys: BTreeMap<TrustDomain, Bytes>,
    /// Revocation lists, DER.
    pub(super) crls: Vec<Bytes>,
    /// Who has lost its right.
    pub(super) revoked: Arc<Revoked>,
}

/// What is believed now; nothing until the proxy has a certificate.
pub(super) type BelievedWatch = watch::Receiver<Arc<Believed>>;

/// Keeps `sender` at what is in force, for ever.
pub(super) async fn follow(
    facts: Arc<Mutex<FactsInForce>>,
    mut news: watch::Receiver<()>,
    sender: watch::Sender<Arc<Believed>>,
) {
    loop {
        news.mark_unchanged();
        let now = Believed::of(&facts.lock());
        sender.send_if_modified(|known| {
            let changes = **known != now;
            if changes {
                *known = Arc::new(now);
            }
            changes
        });
        if news.changed().await.is_err() {
            return;
        }
    }
}

impl Believed {
    /// Roots as handshakes use them, and what else was told.
    fn of(facts: &FactsInForce) -> Self {
        let Some(tls) = facts.tls() else { return Self::default() };
        let tls = tls.current();
        let own = tls.svid().identity().trust_domain();
        let roots: BTreeMap<_, _> =
            tls.trust().bundles.iter().map(|(domain, roots)| (domain.clone(), roots.to_vec())).collect();
        let (mut keys, mut crls) = (BTreeMap::new(), Vec::new());
        for (kind, _, received) in facts.received() {
            let body = received.body.as_slice();
            // What is in force was readable when it came.
            match kind {
                type_urls::TRUST_BUNDLE => {
                    let Ok(bundle) = wire::TrustBundle::decode(body) else { continue };
                    let Ok(domain) = TrustDomain::parse(&bundle.trust_domain) else { continue };
                    if !bundle.jwks.is_empty() && roots.contains_key(&domain) {
                        keys.insert(domain, bundle.jwks);
                    }
                }
                type_urls::REVOCATIONS => {
                    crls.extend(wire::Revocations::decode(body).into_iter().flat_map(|told| told.crls));
                }
                _ => {}
            }
        }
        // Other names of the own domain are verified by its keys, as by its roots (SN-12).
        if let Some(set) = keys.get(own).cloned() {
            let own_roots = roots.get(own);
            for (alias, _) in roots.iter().filter(|(_, of_alias)| Some(*of_alias) == own_roots) {
                keys.entry(alias.clone()).or_insert_with(|| set.clone());
            }
        }
        Self { roots, keys, crls, revoked: tls.trust().revoked.clone() }
    }
}

/// A trust domain as the SPIFFE ID that messages name it by.
pub(super) fn domain_id(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

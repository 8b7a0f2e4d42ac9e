//! Everything the control plane said, made into what the data path reads.
//!
//! One place takes resources in, checks each, keeps the last good ones, and puts a new snapshot or new trust in force when
//! something changed. It does no I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use maille_core::TrustDomain;
use maille_pki::{CertificateDer, Svid, TrustBundles};
use maille_policy::authentication::{Authentication, RequestAuthentication};
use maille_policy::{Authorization, PolicySet, TrustContext};
use maille_telemetry::Registry;
use maille_tls::{Revoked, TlsContext, Trust};
use maille_xds::{Rejection, Update, type_urls};
use prost::Message;
use rustls::pki_types::UnixTime;
use tracing::{error, warn};

use super::destinations::Destinations;
use super::identity::is_same_account;
use super::in_use::fingerprints;
use super::options::ProxyOptions;
use super::renewal::Wanted;
use super::state::{Credential, StoredResource};
use super::status::{Need, Readiness};
use crate::facts;
use crate::snapshot::{Inbound, MeshSettings, Shared, Snapshot, SnapshotCell};

/// Name of the one `MeshSettings` resource.
const MESH: &str = "mesh";

/// Received resources kept beyond those of held destinations, before the rest is looked through: own facts, and
/// destinations given up since.
const MAX_STALE: usize = 1024;

/// See the module's text.
pub(crate) struct FactsInForce {
    options: Arc<ProxyOptions>,
    telemetry: Arc<Registry>,
    readiness: Arc<Readiness>,
    destinations: Arc<Destinations>,
    credential: Option<Arc<Credential>>,
    settings: Option<MeshSettings>,
    inbound: Option<Arc<Inbound>>,
    authorizations: BTreeMap<String, Authorization>,
    /// All parts of the first answer have come: a set of policies is only safe when complete.
    authorization_is_complete: bool,
    authentications: BTreeMap<String, RequestAuthentication>,
    /// As with policies: without all rules about tokens, headers that only a token may set could be forged.
    authentication_is_complete: bool,
    bundles: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// What signs SVIDs of each now, by fingerprint; empty where whoever does is fine.
    signers: BTreeMap<TrustDomain, String>,
    revoked: Arc<Revoked>,
    /// Why the own certificate is revoked, by what is in force.
    own_revoked: Option<String>,
    /// The serial number of one that the control plane refused as revoked.
    refused_serial: Option<String>,
    policy: Option<Arc<PolicySet>>,
    authentication: Option<Arc<Authentication>>,
    snapshot: Option<Arc<SnapshotCell>>,
    tls: Option<Arc<TlsContext>>,
    /// As received, by type and name, for the next start and the admin port.
    raw: BTreeMap<(String, String), Received>,
}

/// A resource in force, as it came.
pub(crate) struct Received {
    pub(crate) version: String,
    pub(crate) body: Vec<u8>,
    pub(crate) at: SystemTime,
}

/// What an update touched.
#[derive(Debug, Default, Clone, Copy)]
struct Touched {
    snapshot: bool,
    policy: bool,
    authentication: bool,
    trust: bool,
}

impl FactsInForce {
    /// Nothing yet.
    pub(crate) fn new(
        options: Arc<ProxyOptions>,
        telemetry: Arc<Registry>,
        readiness: Arc<Readiness>,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            options,
            telemetry,
            readiness,
            destinations,
            credential: None,
            settings: None,
            inbound: None,
            authorizations: BTreeMap::new(),
            authorization_is_complete: false,
            authentications: BTreeMap::new(),
            authentication_is_complete: false,
            bundles: BTreeMap::new(),
            signers: BTreeMap::new(),
            revoked: Arc::default(),
            own_revoked: None,
            refused_serial: None,
            policy: None,
            authentication: None,
            snapshot: None,
            tls: None,
            raw: BTreeMap::new(),
        }
    }

    /// What the workers share, once everything is there.
    pub(crate) fn shared(&self) -> Option<Shared> {
        Some(Shared {
            snapshot: self.snapshot.clone()?,
            destinations: self.destinations.clone(),
            tls: self.tls.clone()?,
            telemetry: self.telemetry.clone(),
        })
    }

    /// Everything in force as it came, sorted by type and name, for the admin port; but for credentials, which are
    /// nobody's to see. Destinations that were given
    /// up may still be among it.
    pub(crate) fn received(&self) -> impl Iterator<Item = (&str, &str, &Received)> {
        let all = self.raw.iter().filter(|((type_url, _), _)| type_url != type_urls::CREDENTIAL);
        all.map(|((type_url, name), received)| (type_url.as_str(), name.as_str(), received))
    }

    /// What the mesh says about certificates like the own one.
    pub(crate) fn wanted(&self) -> Wanted {
        let own = self.credential.as_ref().map(|credential| credential.svid.identity().trust_domain());
        let roots = own.and_then(|own| self.bundles.get(own));
        let signer = own.and_then(|own| self.signers.get(own)).filter(|signer| !signer.is_empty());
        Wanted {
            trust_domain: self.settings.as_ref().map(|settings| settings.trust_domain.clone()),
            signer: signer.cloned(),
            roots: roots.map(|roots| fingerprints(roots)),
            revoked: self.own_revocation(),
        }
    }

    /// By which certificates like the own one are verified.
    pub(crate) fn own_roots(&self) -> &[CertificateDer<'static>] {
        let Some(credential) = &self.credential else { return &[] };
        self.bundles.get(credential.svid.identity().trust_domain()).unwrap_or(&credential.roots)
    }

    /// What handshakes use, once there is a certificate.
    pub(crate) fn tls(&self) -> Option<&Arc<TlsContext>> {
        self.tls.as_ref()
    }

    /// `Revocations.version` that handshakes are judged by; empty: none.
    pub(crate) fn revocations_version(&self) -> String {
        self.tls.as_ref().map(|tls| tls.current().trust().revoked.version().to_owned()).unwrap_or_default()
    }

    /// Why the own certificate is believed by nobody any more, if it is revoked: another one is needed at once.
    pub(crate) fn own_revocation(&self) -> Option<String> {
        let refused = || {
            let own = self.credential.as_ref()?.svid.serial();
            let is_it = self.refused_serial.as_deref() == Some(own);
            is_it.then(|| "the control plane does not believe it any more".to_owned())
        };
        self.own_revoked.clone().or_else(refused)
    }

    /// The control plane believes the own certificate no more. What is in force here may not say so yet.
    pub(crate) fn own_was_refused(&mut self) {
        self.refused_serial = self.credential.as_ref().map(|credential| credential.svid.serial().to_owned());
    }

    /// The control plane has accepted the own certificate; what it said of it before holds no more.
    pub(crate) fn accepted(&mut self) {
        self.refused_serial = None;
    }

    /// Why peers that know what is known here believe one of the own certificates no more, if it is revoked.
    pub(crate) fn revocation_of(&self, svid: &Svid) -> Option<String> {
        let current = self.tls.as_ref()?.current();
        let reason = current.recheck_client(svid.chain(), UnixTime::now()).err()?.reason;
        reason.is_revocation().then(|| reason.to_string())
    }

    /// Judges the own certificate as peers do.
    fn judge_own(&mut self) {
        let judged = self.tls.as_ref().and_then(|tls| self.revocation_of(tls.current().svid()));
        if let Some(reason) = judged.as_ref().filter(|_| judged != self.own_revoked) {
            warn!(reason, "the own certificate is revoked; another one is asked for");
        }
        self.own_revoked = judged;
    }

    /// The certificate in use.
    pub(crate) fn credential(&self) -> Option<&Arc<Credential>> {
        self.credential.as_ref()
    }

    /// Roots in force, per trust domain.
    pub(crate) fn roots(&self) -> BTreeMap<TrustDomain, Vec<CertificateDer<'static>>> {
        let mut roots = self.bundles.clone();
        // Until the control plane has said whom to trust, the authority's own roots are all there is (reference
        // mtls 5.6). A bundle of the own domain takes their place.
        if let Some(credential) = &self.credential {
            let own = credential.svid.identity().trust_domain().clone();
            roots.entry(own).or_insert_with(|| credential.roots.clone());
        }
        roots
    }

    /// Puts a certificate in use.
    pub(crate) fn set_credential(&mut self, credential: Arc<Credential>) {
        if let Some(tls) = &self.tls
            && let Err(e) = tls.replace_svid(credential.svid.clone())
        {
            error!(error = %e, "the new certificate cannot be used; the old one stays");
            return;
        }
        self.telemetry.gauges().certificate_loaded(credential.svid.not_after());
        self.readiness.certified_until(credential.svid.not_after());
        self.credential = Some(credential);
        self.put_trust_in_force();
        self.put_snapshot_in_force();
    }

    /// Takes one update in. What is rejected stays as it was.
    pub(crate) fn apply(&mut self, update: Update) -> Result<(), Vec<Rejection>> {
        let Update { type_url, resources, removed, more_follows } = update;
        let mut rejections = Vec::new();
        let mut touched = Touched::default();
        for resource in resources {
            match self.take(&type_url, &resource.name, &resource.body.value, &mut touched) {
                Ok(()) => {
                    let key = (type_url.clone(), resource.name);
                    let (version, body) = (resource.version, resource.body.value);
                    self.raw.insert(key, Received { version, body, at: SystemTime::now() });
                }
                Err(reason) => rejections.push(Rejection::new(resource.name, reason)),
            }
        }
        for name in removed {
            match self.remove(&type_url, &name, &mut touched) {
                Ok(()) => {
                    self.raw.remove(&(type_url.clone(), name));
                }
                Err(reason) => rejections.push(Rejection::new(name, reason)),
            }
        }
        if type_url == type_urls::AUTHORIZATION && !more_follows && !self.authorization_is_complete {
            self.authorization_is_complete = true;
            touched.policy = true;
        }
        if type_url == type_urls::REQUEST_AUTHENTICATION && !more_follows && !self.authentication_is_complete
        {
            self.authentication_is_complete = true;
            touched.authentication = true;
        }
        if touched.trust {
            self.put_trust_in_force();
        }
        if touched.policy {
            self.policy = None;
        }
        if touched.authentication {
            self.authentication = None;
        }
        if touched.snapshot || touched.policy || touched.authentication {
            self.put_snapshot_in_force();
        }
        let held = self.destinations.len();
        self.telemetry.gauges().destinations(held as u64);
        if self.raw.len() > held + MAX_STALE {
            self.forget_unheld();
        }
        if rejections.is_empty() { Ok(()) } else { Err(rejections) }
    }

    fn take(&mut self, type_url: &str, name: &str, body: &[u8], touched: &mut Touched) -> Result<(), String> {
        match type_url {
            type_urls::MESH_SETTINGS => {
                if name != MESH {
                    return Err(format!("mesh settings are named '{MESH}'"));
                }
                let mut settings = facts::mesh_settings(&decode(body)?).map_err(|e| e.to_string())?;
                if let Some(known) = &self.settings
                    && known.extension_providers == settings.extension_providers
                {
                    // Who was asked is not asked again because of it.
                    settings.extension_providers = known.extension_providers.clone();
                }
                self.settings = Some(settings);
                // Aliases are part of whom we trust and of what policies mean.
                *touched = Touched { snapshot: true, policy: true, trust: true, ..*touched };
            }
            type_urls::INBOUND => {
                let inbound = facts::inbound(&decode(body)?).map_err(|e| e.to_string())?;
                self.check_own(name, &inbound)?;
                self.inbound = Some(Arc::new(inbound));
                touched.snapshot = true;
            }
            type_urls::AUTHORIZATION => {
                let policy = facts::authorization(&decode(body)?);
                self.authorizations.insert(name.to_owned(), policy);
                touched.policy = true;
            }
            type_urls::REQUEST_AUTHENTICATION => {
                let rules = facts::request_authentication(&decode(body)?);
                self.authentications.insert(name.to_owned(), rules);
                touched.authentication = true;
            }
            type_urls::TRUST_BUNDLE => {
                let message = decode::<maille_proto::facts::TrustBundle>(body)?;
                let (domain, roots) = facts::trust_bundle(&message).map_err(|e| e.to_string())?;
                // Checked alone first, so that one bad bundle does not spoil the others.
                TrustBundles::new().insert(domain.clone(), roots.clone()).map_err(|e| e.to_string())?;
                if domain.as_str() != name {
                    return Err(format!("it is the bundle of {domain}"));
                }
                self.signers.insert(domain.clone(), message.signer);
                self.bundles.insert(domain, roots);
                // The snapshot is what workers hear of: they judge open connections by the trust of then.
                *touched = Touched { snapshot: true, trust: true, ..*touched };
            }
            type_urls::REVOCATIONS => {
                if name != MESH {
                    return Err(format!("revocations are named '{MESH}'"));
                }
                let revoked = facts::revocations(&decode(body)?).map_err(|e| e.to_string())?;
                self.revoked = Arc::new(revoked);
                *touched = Touched { snapshot: true, trust: true, ..*touched };
            }
            type_urls::DESTINATION => {
                let checked = decode(body).and_then(|m| facts::destination(&m).map_err(|e| e.to_string()));
                match checked {
                    Ok(destination) => self.destinations.update(name, destination),
                    Err(reason) => {
                        self.destinations.refuse(name, &reason);
                        return Err(reason);
                    }
                }
            }
            type_urls::CREDENTIAL => {
                let credential: maille_proto::facts::Credential = decode(body)?;
                if credential.name != name {
                    return Err("it bears another name".to_owned());
                }
                self.destinations.credentials().update(&credential)?;
            }
            other => return Err(format!("resources of type {other} are not known here")),
        }
        Ok(())
    }

    fn remove(&mut self, type_url: &str, name: &str, touched: &mut Touched) -> Result<(), String> {
        match type_url {
            type_urls::AUTHORIZATION => {
                self.authorizations.remove(name);
                touched.policy = true;
            }
            type_urls::REQUEST_AUTHENTICATION => {
                self.authentications.remove(name);
                touched.authentication = true;
            }
            type_urls::TRUST_BUNDLE => {
                if let Ok(domain) = TrustDomain::parse(name) {
                    self.bundles.remove(&domain);
                    self.signers.remove(&domain);
                    *touched = Touched { snapshot: true, trust: true, ..*touched };
                }
            }
            type_urls::REVOCATIONS => {
                self.revoked = Arc::default();
                *touched = Touched { snapshot: true, trust: true, ..*touched };
            }
            type_urls::DESTINATION => self.destinations.remove(name),
            type_urls::CREDENTIAL => self.destinations.credentials().remove(name),
            // Serving on with the last good facts is right when the control plane loses sight of the Pod for a
            // moment; there is nothing sensible to put in their place.
            type_urls::INBOUND | type_urls::MESH_SETTINGS => {
                return Err("a proxy cannot be without it".to_owned());
            }
            other => return Err(format!("resources of type {other} are not known here")),
        }
        Ok(())
    }

    /// Facts of another workload would be enforced in the wrong place.
    fn check_own(&self, name: &str, inbound: &Inbound) -> Result<(), String> {
        let own = self.options.uid();
        if name != own || *inbound.workload.uid != *own {
            return Err(format!("it is of {}, but this proxy is of {own}", inbound.workload.uid));
        }
        match &inbound.workload.identity {
            Some(identity) if !is_same_account(identity, &self.options.identity) => {
                Err(format!("its identity is {identity}, but this workload is {}", self.options.identity))
            }
            _ => Ok(()),
        }
    }

    fn put_trust_in_force(&mut self) {
        let Some(credential) = &self.credential else { return };
        let own = credential.svid.identity().trust_domain();
        let mut bundles = TrustBundles::new();
        for (domain, roots) in self.roots() {
            if let Err(e) = bundles.insert(domain.clone(), roots) {
                error!(trust_domain = %domain, error = %e, "trust bundle not used");
            }
        }
        let aliases = self.settings.as_ref().map(|s| s.trust_domain_aliases.as_slice()).unwrap_or_default();
        let parameters = self.settings.as_ref().map(|s| s.tls.clone()).unwrap_or_default();
        let trust = Trust::of_mesh(bundles, own, aliases).map(|trust| trust.without(self.revoked.clone()));
        let outcome = trust.and_then(|trust| {
            let (tls, first) = match &self.tls {
                None => {
                    let first = Arc::new(TlsContext::new(credential.svid.clone(), trust)?);
                    (first.clone(), Some(first))
                }
                Some(tls) => {
                    if tls.current().trust() != &trust {
                        tls.replace_trust(trust)?;
                    }
                    (tls.clone(), None)
                }
            };
            if tls.current().parameters() != &parameters {
                tls.replace_parameters(parameters)?;
            }
            Ok(first)
        });
        match outcome {
            Ok(Some(first)) => {
                self.tls = Some(first);
                self.readiness.met(Need::Trust);
            }
            Ok(None) => {}
            Err(e) => error!(error = %e, "trust not changed; what was in force stays"),
        }
        self.judge_own();
    }

    fn put_snapshot_in_force(&mut self) {
        if self.settings.is_some() {
            self.readiness.met(Need::MeshSettings);
        }
        if self.inbound.is_some() {
            self.readiness.met(Need::Inbound);
        }
        if self.authorization_is_complete {
            self.readiness.met(Need::Authorization);
        }
        if self.authentication_is_complete {
            self.readiness.met(Need::Authentication);
        }
        let is_complete = self.authorization_is_complete && self.authentication_is_complete;
        let (Some(settings), Some(inbound), true) = (&self.settings, &self.inbound, is_complete) else {
            return;
        };
        let policy = match &self.policy {
            Some(policy) => policy.clone(),
            None => {
                let policies: Vec<_> = self.authorizations.values().cloned().collect();
                let trust = TrustContext {
                    trust_domain: settings.trust_domain.clone(),
                    aliases: settings.trust_domain_aliases.clone(),
                    root_namespace: settings.root_namespace.clone(),
                };
                let (policy, problems) = PolicySet::compile(&policies, &trust);
                for problem in problems {
                    // Not a rejection: the policy is in force, in the way that refuses.
                    warn!(%problem, "policy cannot be read in full");
                }
                let policy = Arc::new(policy);
                self.policy = Some(policy.clone());
                policy
            }
        };
        let authentication = match &self.authentication {
            Some(authentication) => authentication.clone(),
            None => {
                let rules: Vec<_> = self.authentications.values().cloned().collect();
                let (authentication, problems) = Authentication::compile(&rules);
                for problem in problems {
                    // Not a rejection: the rule is in force, in the way that refuses.
                    warn!(%problem, "tokens cannot be verified in full");
                }
                let authentication = Arc::new(authentication);
                self.authentication = Some(authentication.clone());
                authentication
            }
        };
        let next = Snapshot {
            settings: settings.clone(),
            inbound: inbound.clone(),
            policy,
            authentication,
            generation: 0,
        };
        match &self.snapshot {
            Some(cell) => cell.replace(next),
            None => self.snapshot = Some(Arc::new(SnapshotCell::new(next))),
        }
        if let Some(cell) = &self.snapshot {
            self.telemetry.gauges().config_generation(cell.load().generation);
        }
    }

    /// Everything held, as it was received: own facts first, destinations last.
    pub(crate) fn stored(&mut self) -> Vec<StoredResource> {
        // An incomplete set of policies must not look complete after a restart.
        if !self.authorization_is_complete || !self.authentication_is_complete {
            return Vec::new();
        }
        self.forget_unheld();
        let all = self.raw.iter().map(|((type_url, name), received)| StoredResource {
            type_url: type_url.clone(),
            name: name.clone(),
            version: received.version.clone(),
            body: received.body.clone(),
        });
        let mut stored: Vec<_> = all.collect();
        stored.sort_by_key(|r| r.type_url == type_urls::DESTINATION);
        stored
    }

    /// Drops what was received of destinations that were given up since.
    fn forget_unheld(&mut self) {
        let held = self.destinations.names();
        self.raw.retain(|(type_url, name), _| match type_url.as_str() {
            type_urls::DESTINATION => held.contains(name),
            type_urls::CREDENTIAL => self.destinations.credentials().holds(name),
            _ => true,
        });
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, String> {
    M::decode(body).map_err(|e| format!("not readable: {e}"))
}

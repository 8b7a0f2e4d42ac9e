use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maille_config::mesh::{self, AccessLog, CaCertificate, ExtensionProvider, MeshTls, PathNormalization};
use maille_core::TrustDomain;

use super::World;
use super::changes::{ChangeSet, Key};
use super::names::service_named;

/// What holds for the whole mesh: what the control plane was started with, and what the ConfigMap `istio` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// The domain in which this mesh issues identities.
    pub trust_domain: TrustDomain,
    /// Other names of the same domain (SN-12).
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace of mesh-wide policy.
    pub root_namespace: String,
    /// The namespace that the control plane itself is in, which no configuration changes.
    pub system_namespace: String,
    /// `svc` names end in this.
    pub cluster_domain: String,
    /// Whether unknown destinations are passed through.
    pub registry_only: bool,
    /// Whether proxies deliver to the loopback address in place of the one that was called.
    pub deliver_to_localhost: bool,
    /// How paths are normalized before they are judged and forwarded.
    pub path_normalization: PathNormalization,
    /// What proxies write to their access log.
    pub access_log: AccessLog,
    /// How long proxies wait for first bytes that tell a protocol; `None`: as long as it takes.
    pub protocol_detection_timeout: Option<Duration>,
    /// Whom CUSTOM policies may ask.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Whom the mesh believes beside its own authority.
    pub ca_certificates: Vec<CaCertificate>,
    /// What mutual TLS may negotiate.
    pub mesh_tls: MeshTls,
    /// Whether refusals tell callers their reason.
    pub explain_in_response: bool,
    /// Whether TCP connections outlive the certificate of a peer that cannot prove another one.
    pub keep_expired_tcp: bool,
    /// The trust domain where the ConfigMap names none.
    default_trust_domain: TrustDomain,
}

impl MeshConfig {
    /// Istio's defaults, in this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            trust_domain_aliases: Vec::new(),
            root_namespace: maille_core::ROOT_NAMESPACE.to_owned(),
            system_namespace: maille_core::ROOT_NAMESPACE.to_owned(),
            cluster_domain: maille_core::CLUSTER_DOMAIN.to_owned(),
            registry_only: false,
            deliver_to_localhost: false,
            path_normalization: PathNormalization::default(),
            access_log: AccessLog::default(),
            protocol_detection_timeout: None,
            extension_providers: Vec::new(),
            ca_certificates: Vec::new(),
            mesh_tls: MeshTls::default(),
            explain_in_response: false,
            keep_expired_tcp: false,
            default_trust_domain: trust_domain,
        }
    }

    /// This mesh as a ConfigMap says it is. Nothing of an earlier ConfigMap stays.
    pub fn configured(&self, mesh: mesh::MeshConfig) -> Self {
        // Taken apart by name, so that a field added to the model cannot be forgotten here.
        let mesh::MeshConfig {
            root_namespace,
            trust_domain,
            trust_domain_aliases,
            path_normalization,
            registry_only,
            deliver_to_localhost,
            // What proxies are started with is injection's business, not theirs to hear later.
            default_config: _,
            access_log,
            protocol_detection_timeout,
            extension_providers,
            ca_certificates,
            mesh_tls,
            explain_in_response,
            keep_expired_tcp,
        } = mesh;
        let trust_domain = trust_domain.unwrap_or_else(|| self.default_trust_domain.clone());
        Self {
            trust_domain_aliases: other_names(&trust_domain, trust_domain_aliases),
            trust_domain,
            root_namespace,
            path_normalization,
            registry_only,
            deliver_to_localhost,
            access_log,
            protocol_detection_timeout,
            extension_providers,
            ca_certificates,
            mesh_tls,
            explain_in_response,
            keep_expired_tcp,
            system_namespace: self.system_namespace.clone(),
            cluster_domain: self.cluster_domain.clone(),
            default_trust_domain: self.default_trust_domain.clone(),
        }
    }

    /// The mesh's trust domain and the other names of it.
    pub fn own_names(&self) -> impl Iterator<Item = &TrustDomain> {
        std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases)
    }

    /// Whether this trust domain is the mesh's, or another name of it.
    pub fn is_own(&self, domain: &TrustDomain) -> bool {
        *domain == self.trust_domain || self.trust_domain_aliases.contains(domain)
    }
}

/// The domain is no alias of itself, and an alias counts once.
fn other_names(domain: &TrustDomain, aliases: Vec<TrustDomain>) -> Vec<TrustDomain> {
    let mut names: Vec<TrustDomain> = Vec::with_capacity(aliases.len());
    for alias in aliases {
        if alias != *domain && !names.contains(&alias) {
            names.push(alias);
        }
    }
    names
}

impl World {
    /// Whether the registry has exactly this host, whoever may see it.
    pub fn is_registered(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let service = service_named(&host, None, &self.config.cluster_domain);
        service.is_some_and(|name| self.service(&name).is_some()) || self.is_claimed(&Key::host(&host), &host)
    }

    /// Which of the mesh's external authorizers the registry knows: part of the settings' fact.
    pub(super) fn registered_providers(&self) -> Vec<bool> {
        self.config.extension_providers.iter().map(|provider| self.is_registered(&provider.host)).collect()
    }

    pub(super) fn set_config(&mut self, mesh: mesh::MeshConfig, changes: &mut ChangeSet) {
        let new = self.config.configured(mesh);
        if new == *self.config {
            return;
        }
        let old = std::mem::replace(&mut self.config, Arc::new(new));
        changes.add(Key::Settings);
        // Policies, identities and secure naming all depend on these; whoever's facts stay the same is sent nothing.
        if old.root_namespace != self.config.root_namespace
            || old.trust_domain != self.config.trust_domain
            || old.trust_domain_aliases != self.config.trust_domain_aliases
        {
            changes.add_everything();
        }
        if old.trust_domain != self.config.trust_domain {
            self.rename_own_roots(old.trust_domain.as_str());
        }
    }

    /// The authority stays the same when the domain it signs for is named anew. As an alias the old name is verified by
    /// the same roots.
    fn rename_own_roots(&mut self, old: &str) {
        let roots: &mut BTreeMap<_, _> = Arc::make_mut(&mut self.roots);
        if let Some(own) = roots.remove(old) {
            roots.insert(self.config.trust_domain.to_string(), own);
        }
    }
}

//! Facts, derived from the world by pure functions.
//!
//! What each fact says is defined by `facts.proto`; the rules come from the reference: what a workload accepts
//! (mtls 1.2), how a client reaches an endpoint (mtls 2.1), whose identity it may prove (mtls 3.1),
//! which policies apply (authorization 2).

mod authentication;
mod authorization;
mod credential;
mod destination;
mod entry;
mod inbound;
mod mesh;
mod order;
mod revocation;
mod service;
mod traffic;

use std::collections::BTreeSet;
use std::sync::Arc;

use maille_core::{MtlsMode, PortProtocol};
use maille_proto::facts as wire;
use maille_xds::Resource;

pub use authentication::Authentication;
pub(crate) use authentication::public_keys;
pub use authorization::Policy;
pub use credential::credential;
pub use destination::destination;
pub use inbound::inbound;
pub use mesh::{SETTINGS_NAME, mesh_settings, provider_problem, trust_bundle};
pub use revocation::{REVOCATIONS_NAME, revocations};

use crate::world::{MeshConfig, Pod};

#[cfg(test)]
mod any_address_tests;
#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod tests;

/// A derived message in its wire form, with the version of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    type_url: &'static str,
    version: String,
    bytes: Vec<u8>,
}

impl Fact {
    /// Encodes a message. The version is a hash of the bytes: equal facts have equal versions whoever derives
    /// them and when, so that a proxy resumes across restarts of the control plane. The hash is a
    /// cryptographic one because people who may write one policy must not be able to craft a change that proxies
    /// take for no change.
    pub fn of(type_url: &'static str, message: &impl prost::Message) -> Self {
        let bytes = message.encode_to_vec();
        Self { type_url, version: version_of(&bytes), bytes }
    }

    /// The fact as a resource of this name.
    pub fn resource(&self, name: impl Into<String>) -> Arc<Resource> {
        Arc::new(Resource {
            name: name.into(),
            version: self.version.clone(),
            body: prost_types::Any { type_url: self.type_url.to_owned(), value: self.bytes.clone() },
        })
    }
}

/// A hash of a content.
fn version_of(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// What is known of a pod, for telemetry and explanations.
pub fn workload(pod: &Pod, config: &MeshConfig) -> wire::Workload {
    let label = |key: &str| pod.labels.get(key).filter(|value| !value.is_empty()).cloned();
    wire::Workload {
        uid: pod.name.to_string(),
        namespace: pod.name.namespace.clone(),
        workload_name: pod.workload_name.clone(),
        identity: Some(wire::Identity {
            trust_domain: config.trust_domain.to_string(),
            namespace: pod.name.namespace.clone(),
            service_account: pod.service_account.clone(),
        }),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        // Istio's fallbacks (reference cli-and-telemetry, source_canonical_service).
        canonical_name: label("service.istio.io/canonical-name")
            .or_else(|| label("app.kubernetes.io/name"))
            .or_else(|| label("app"))
            .unwrap_or_else(|| pod.workload_name.clone()),
        canonical_revision: label("service.istio.io/canonical-revision")
            .or_else(|| label("app.kubernetes.io/version"))
            .or_else(|| label("version"))
            .unwrap_or_else(|| "latest".to_owned()),
        app: label("app").unwrap_or_default(),
        meshed: pod.meshed,
        multiplexes: pod.meshed && pod.multiplexes,
    }
}

fn host_name(name: &maille_core::NamespacedName, config: &MeshConfig) -> String {
    format!("{}.{}.svc.{}", name.name, name.namespace, config.cluster_domain)
}

/// Names of which a server may prove one (SN-1): the identities of accounts (namespace, name) and what is said beside
/// them, and every identity again for each alias of the trust domain; sorted.
fn with_aliases<'a>(
    config: &MeshConfig,
    accounts: impl IntoIterator<Item = (&'a str, &'a str)>,
    said: impl IntoIterator<Item = &'a String>,
) -> Vec<String> {
    let domains = || std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    let mut names = BTreeSet::new();
    for (namespace, account) in accounts {
        names.extend(domains().map(|domain| format!("spiffe://{domain}/ns/{namespace}/sa/{account}")));
    }
    for name in said {
        names.insert(name.clone());
        let path = name.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        if let Some((_, path)) = path {
            names.extend(config.trust_domain_aliases.iter().map(|alias| format!("spiffe://{alias}/{path}")));
        }
    }
    names.into_iter().collect()
}

fn protocol(protocol: PortProtocol) -> wire::Protocol {
    match protocol {
        PortProtocol::Auto => wire::Protocol::Auto,
        PortProtocol::Http => wire::Protocol::Http,
        PortProtocol::Http2 => wire::Protocol::Http2,
        PortProtocol::Tcp => wire::Protocol::Tcp,
    }
}

fn mtls_mode(mode: MtlsMode) -> i32 {
    match mode {
        MtlsMode::Disable => wire::MtlsMode::Disable,
        MtlsMode::Permissive => wire::MtlsMode::Permissive,
        MtlsMode::Strict => wire::MtlsMode::Strict,
    }
    .into()
}

/// What a policy is attached to instead of workloads, for people.
fn targets(
    list: Option<&Vec<maille_config::istio::TargetRef>>,
    single: Option<&maille_config::istio::TargetRef>,
) -> String {
    let all = list.into_iter().flatten().chain(single);
    let named: Vec<String> = all.map(|target| format!("{} '{}'", target.kind, target.name)).collect();
    named.join(", ")
}

//! The mesh's configuration, as it is in force: what the ConfigMap `istio` of the control plane's namespace says under
//! `mesh` (Istio's `MeshConfig`), checked and with defaults filled in.

mod check;
mod config_map;
mod fields;
mod providers;
mod spec;
#[cfg(test)]
mod tests;
mod tls;
mod trust;

use std::collections::BTreeMap;
use std::time::Duration;

use maille_core::TrustDomain;

use crate::proxy_config::ProxyConfig;
pub use check::check;
pub(crate) use config_map::check_object;
pub use tls::MeshTls;

/// Name of the ConfigMap, in namespace `istio-system`.
pub const CONFIG_MAP: &str = "istio";

/// Its key, YAML.
pub const CONFIG_KEY: &str = "mesh";

/// What of `MeshConfig` the mesh knows. A field left out has Istio's default.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshConfig {
    /// `rootNamespace`: where mesh-wide policy lives; default `istio-system`.
    pub root_namespace: String,
    /// `trustDomain`; `None`: as the control plane was started.
    pub trust_domain: Option<TrustDomain>,
    /// `trustDomainAliases`.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// `pathNormalization.normalization` (reference authorization 10.3); default BASE.
    pub path_normalization: PathNormalization,
    /// `outboundTrafficPolicy.mode` is `REGISTRY_ONLY`; default ALLOW_ANY.
    pub registry_only: bool,
    /// `inboundTrafficPolicy.mode` is `LOCALHOST`: requests go to 127.0.0.1 or ::1, in place of the address that was
    /// called; default PASSTHROUGH.
    pub deliver_to_localhost: bool,
    /// `defaultConfig`: what holds for every proxy whose Pod does not say otherwise.
    pub default_config: ProxyConfig,
    /// `accessLogFile` and `accessLogEncoding`.
    pub access_log: AccessLog,
    /// `protocolDetectionTimeout`; `None` (`0s`, the default): as long as it takes.
    pub protocol_detection_timeout: Option<Duration>,
    /// `extensionProviders`, those for external authorization; names are unique.
    pub extension_providers: Vec<ExtensionProvider>,
    /// `caCertificates`: whom the mesh believes beside its own authority.
    pub ca_certificates: Vec<CaCertificate>,
    /// `meshMTLS`: what mutual TLS of the mesh may negotiate.
    pub mesh_tls: MeshTls,
    /// `maille.explainInResponse`, which Istio does not have: refusals carry their reason in a response
    /// header. Default false: callers learn of policies what their refusals show.
    pub explain_in_response: bool,
    /// `maille.keepExpiredTcp`, which Istio does not have: TCP connections of and to peers that cannot prove a renewed
    /// certificate outlive the one that they were opened with. Default false: they are cut when it ends.
    pub keep_expired_tcp: bool,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            root_namespace: maille_core::ROOT_NAMESPACE.to_owned(),
            trust_domain: None,
            trust_domain_aliases: Vec::new(),
            path_normalization: PathNormalization::default(),
            registry_only: false,
            deliver_to_localhost: false,
            default_config: ProxyConfig::default(),
            access_log: AccessLog::default(),
            protocol_detection_timeout: None,
            extension_providers: Vec::new(),
            ca_certificates: Vec::new(),
            mesh_tls: MeshTls::default(),
            explain_in_response: false,
            keep_expired_tcp: false,
        }
    }
}

/// `pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// The path as it came.
    None,
    /// Canonicalised; also `DEFAULT`.
    #[default]
    Base,
    /// And runs of slashes are one.
    MergeSlashes,
    /// And escaped slashes are slashes.
    DecodeAndMergeSlashes,
}

/// What the access log of a proxy holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Refusals only (`accessLogFile` empty, the default).
    #[default]
    Refusals,
    /// Everything, as text (`accessLogFile: /dev/stdout`).
    Text,
    /// Everything, as JSON.
    Json,
}

/// Roots of other authorities: given, or told by their trust domain (reference mtls 5.6, 6.4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaCertificate {
    /// `pem`. Beside `spiffe_bundle_url`, which Istio does not have: what the endpoint is verified by until the first
    /// bundle has come, and what is believed until then.
    pub pem: Option<String>,
    /// `spiffeBundleUrl`: where the bundle is fetched. Without `pem` the endpoint proves its host name to the operating
    /// system's roots (`https_web`), with `pem` its SPIFFE ID to the bundle (`https_spiffe`).
    pub spiffe_bundle_url: Option<String>,
    /// `endpointSpiffeId`, which Istio does not have: the identity that the endpoint proves; `None`: that of a Maille
    /// control plane in the trust domain.
    pub endpoint_spiffe_id: Option<String>,
    /// `trustDomains` that these roots are of; none: the mesh's own.
    pub trust_domains: Vec<TrustDomain>,
}

/// One external authorizer (reference authorization 15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionProvider {
    /// Its name in `spec.provider.name`.
    pub name: String,
    /// Fully qualified host, without the `[namespace/]` in front.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// For one check; default 600 s.
    pub timeout: Duration,
    /// Whether a provider that fails counts as one that allows.
    pub fail_open: bool,
    /// HTTP status of a refusal because the provider failed; default 403.
    pub status_on_error: u16,
    /// What of the body is sent; `None`: nothing.
    pub body: Option<CheckBody>,
    /// How it is asked.
    pub kind: ProviderKind,
}

/// `includeRequestBodyInCheck`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckBody {
    /// Bytes of the body that are read before asking.
    pub max_request_bytes: u32,
    /// Whether a longer body is sent in part; else it is answered 413.
    pub allow_partial_message: bool,
    /// Whether gRPC gets bytes rather than text.
    pub pack_as_bytes: bool,
}

/// Which protocol an authorizer speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderKind {
    /// Envoy's `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
    /// Envoy's HTTP form.
    Http(HttpProvider),
}

/// What is special to `envoyExtAuthzHttp`. Header lists are exact names, `prefix*` or `*suffix`, without case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named by Istio")]
pub struct HttpProvider {
    pub path_prefix: String,
    pub include_request_headers_in_check: Vec<String>,
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    pub headers_to_upstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_deny: Vec<String>,
    pub headers_to_downstream_on_allow: Vec<String>,
}

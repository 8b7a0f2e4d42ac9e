//! How a proxy is started and ends: Istio's `ProxyConfig`, as it stands in the mesh configuration (`defaultConfig`) and in
//! the annotation `proxy.istio.io/config` of a Pod (reference mtls 4.2, 7.4, 7.7).

mod fields;

use std::time::Duration;

use serde_json::{Map, Value};

use crate::check::View;
use crate::diagnostic::{Diagnostic, Severity};
use crate::field_error::FieldError;
use crate::yaml;

/// The annotation of a Pod, YAML.
pub const ANNOTATION: &str = "proxy.istio.io/config";

/// What of `ProxyConfig` this mesh knows. What is absent is left to the mesh's, and there to the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `holdApplicationUntilProxyStarts`; default false.
    pub hold_application_until_proxy_starts: Option<bool>,
    /// `concurrency`: worker threads; 0, the default: one per processor.
    pub concurrency: Option<u16>,
    /// `drainDuration`: how long connections are told to end; default 45 s.
    pub drain_duration: Option<Duration>,
    /// `terminationDrainDuration`: how long a proxy stays after SIGTERM; default 5 s.
    pub termination_drain_duration: Option<Duration>,
    /// `proxyMetadata.ISTIO_META_DNS_CAPTURE`: whether the proxy answers the application's DNS queries; default false.
    pub dns_capture: Option<bool>,
    /// `proxyMetadata.ISTIO_META_DNS_AUTO_ALLOCATE`. Without effect, as in Istio by now: ServiceEntries always get
    /// addresses (SE-15).
    pub dns_auto_allocate: Option<bool>,
    /// `proxyMetadata.EXIT_ON_ZERO_ACTIVE_CONNECTIONS`: after SIGTERM the proxy stays until the last connection has
    /// ended; default false.
    pub exit_on_zero_active_connections: Option<bool>,
    /// `proxyMetadata.MINIMUM_DRAIN_DURATION`: with the former, how long it stays in any case; default 5 s.
    pub minimum_drain_duration: Option<Duration>,
    /// `proxyMetadata.SECRET_TTL`: the life that the proxy asks for its certificates (reference mtls 5.6); default 24 h.
    pub secret_ttl: Option<Duration>,
    /// `proxyMetadata.MAILLE_WORKLOAD_API`: whether the application gets certificates of its own by the SPIFFE Workload
    /// API (reference mtls 6.3); default true.
    pub workload_api: Option<bool>,
}

impl ProxyConfig {
    /// What holds for a Pod: its own values, else the mesh's.
    #[must_use]
    pub fn over(&self, mesh: &Self) -> Self {
        Self {
            hold_application_until_proxy_starts: self
                .hold_application_until_proxy_starts
                .or(mesh.hold_application_until_proxy_starts),
            concurrency: self.concurrency.or(mesh.concurrency),
            drain_duration: self.drain_duration.or(mesh.drain_duration),
            termination_drain_duration: self.termination_drain_duration.or(mesh.termination_drain_duration),
            dns_capture: self.dns_capture.or(mesh.dns_capture),
            dns_auto_allocate: self.dns_auto_allocate.or(mesh.dns_auto_allocate),
            exit_on_zero_active_connections: self
                .exit_on_zero_active_connections
                .or(mesh.exit_on_zero_active_connections),
            minimum_drain_duration: self.minimum_drain_duration.or(mesh.minimum_drain_duration),
            secret_ttl: self.secret_ttl.or(mesh.secret_ttl),
            workload_api: self.workload_api.or(mesh.workload_api),
        }
    }
}

/// Reads and checks the annotation's YAML; an empty text says nothing. All errors, not the first; lines count within the
/// text. As strict as [`crate::mesh::check`].
pub fn check(text: &str) -> Result<ProxyConfig, Vec<Diagnostic>> {
    let (document, value) = match yaml::plain(ANNOTATION, text)? {
        Some(document) => {
            let value = document.value.clone();
            (Some(document), value)
        }
        None => (None, Value::Object(Map::new())),
    };
    let mut errors = Vec::new();
    let config = read(&View::new(&value), &mut errors);
    match document {
        Some(document) if !errors.is_empty() => Err(document.diagnostics(errors, Severity::Error)),
        // Nothing has no errors.
        _ => Ok(config),
    }
}

/// Reads a `ProxyConfig`, with field paths in the object that it is part of. Absent: nothing is said.
pub(crate) fn read(config: &View<'_>, errors: &mut Vec<FieldError>) -> ProxyConfig {
    fields::read(config, errors)
}

#[cfg(test)]
mod tests;

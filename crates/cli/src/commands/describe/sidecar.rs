//! The Sidecar that narrows what a Pod's proxy knows (reference mtls 4.3).

use maille_config::istio::{OutboundMode, SidecarSpec};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::sidecar::{in_force, outbound_mode};
use maille_proto::facts as wire;

use super::Report;
use super::facts::Facts;
use super::pod::Proxy;
use super::security::labels_of;

/// The Sidecar, what it lets see, and whether the proxy keeps to what it says of the unknown.
pub(super) fn effective(facts: &Facts, pod: &Pod, proxy: &Proxy, report: &mut Report) {
    let labels = labels_of(pod);
    let Some(sidecar) = in_force(&facts.sidecars, &facts.root_namespace, &facts.namespace, &labels) else {
        return;
    };
    let name = sidecar.metadata.name.as_deref().unwrap_or_default();
    let namespace = sidecar.metadata.namespace.as_deref().unwrap_or_default();
    report.line(format!("Effective Sidecar: {name}.{namespace}"));
    report.line(format!("   Egress hosts: {}", egress(&sidecar.spec)));
    let Some(mode) = outbound_mode(&sidecar.spec) else { return };
    let (wanted, shown) = match mode {
        OutboundMode::RegistryOnly => (wire::mesh_settings::OutboundPolicy::RegistryOnly, "REGISTRY_ONLY"),
        OutboundMode::AllowAny => (wire::mesh_settings::OutboundPolicy::AllowAny, "ALLOW_ANY"),
    };
    report.line(format!("   Outbound traffic policy: {shown}"));
    let held = proxy.dump.facts.as_ref().and_then(|facts| facts.mesh_settings.as_ref());
    if held.is_some_and(|settings| settings.outbound_policy() != wanted) {
        report.warn("", format!("Proxy is stale; its outbound traffic policy is not {shown}"));
    }
}

/// Hosts that are seen.
fn egress(spec: &SidecarSpec) -> String {
    if spec.egress.is_empty() {
        return "*/*".to_owned();
    }
    let hosts = spec.egress.iter().flat_map(|listener| &listener.hosts);
    hosts.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_egress_everything_is_seen() {
        let shown = |spec: serde_json::Value| egress(&serde_json::from_value(spec).expect("a spec"));
        assert_eq!(shown(serde_json::json!({})), "*/*");
        assert_eq!(shown(serde_json::json!({"egress": [{"hosts": ["./*", "a/b.c"]}]})), "./*, a/b.c");
    }
}

//! Istio's kinds as they come from the API.
//!
//! The API's admission refuses what cannot be read. If something unreadable is stored all the same (an
//! older schema, an admission that was off), it is taken in its strictest sense and reported, since leaving
//! it out could open what it was meant to close.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use maille_config::istio;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::objects;

/// A PeerAuthentication; an unreadable one demands STRICT.
pub(crate) fn peer_authentication(object: objects::PeerAuthentication) -> istio::PeerAuthentication {
    let spec = read(&object.metadata, "PeerAuthentication", &object.spec).unwrap_or_else(|| {
        istio::PeerAuthenticationSpec {
            selector: selector(&object.spec),
            mtls: Some(istio::MutualTls { mode: istio::MutualTlsMode::Strict }),
            port_level_mtls: None,
        }
    });
    istio::PeerAuthentication { metadata: lean(object.metadata), spec, status: None }
}

/// An AuthorizationPolicy; an unreadable one denies everything to those it selects.
pub(crate) fn authorization_policy(object: objects::AuthorizationPolicy) -> istio::AuthorizationPolicy {
    let spec = read(&object.metadata, "AuthorizationPolicy", &object.spec).unwrap_or_else(|| {
        istio::AuthorizationPolicySpec {
            selector: selector(&object.spec),
            action: istio::Action::Deny,
            rules: vec![istio::Rule::default()],
            ..Default::default()
        }
    });
    istio::AuthorizationPolicy { metadata: lean(object.metadata), spec, status: None }
}

/// A RequestAuthentication; an unreadable one has no keys, so that every token at the usual places fails, and calls
/// without a token go on to the authorization policies.
pub(crate) fn request_authentication(object: objects::RequestAuthentication) -> istio::RequestAuthentication {
    let spec = read(&object.metadata, "RequestAuthentication", &object.spec).unwrap_or_else(|| {
        istio::RequestAuthenticationSpec {
            selector: selector(&object.spec),
            target_refs: field(&object.spec, "targetRefs"),
            target_ref: field(&object.spec, "targetRef"),
            jwt_rules: vec![istio::JwtRule::default()],
        }
    });
    istio::RequestAuthentication { metadata: lean(object.metadata), spec, status: None }
}

/// A DestinationRule; an unreadable one closes the ports of its host.
pub(crate) fn destination_rule(object: objects::DestinationRule) -> istio::DestinationRule {
    let metadata = lean(object.metadata);
    let spec = read(&metadata, "DestinationRule", &object.spec).unwrap_or_else(|| {
        let tls = istio::ClientTlsSettings {
            mode: istio::ClientTlsMode::Mutual,
            // Certificates that are not to be had: no connection is good enough.
            credential_name: "unreadable://".to_owned(),
            ..Default::default()
        };
        istio::DestinationRuleSpec {
            host: field(&object.spec, "host").unwrap_or_default(),
            traffic_policy: Some(istio::TrafficPolicy { tls: Some(tls), ..Default::default() }),
            export_to: field(&object.spec, "exportTo").unwrap_or_default(),
            workload_selector: field(&object.spec, "workloadSelector"),
            ..Default::default()
        }
    });
    istio::DestinationRule { metadata, spec, status: None }
}

/// A ServiceEntry; an unreadable one has its hosts and no way to reach them.
pub(crate) fn service_entry(object: objects::ServiceEntry) -> istio::ServiceEntry {
    let metadata = lean(object.metadata);
    let spec = read(&metadata, "ServiceEntry", &object.spec).unwrap_or_else(|| istio::ServiceEntrySpec {
        hosts: field(&object.spec, "hosts").unwrap_or_default(),
        addresses: field(&object.spec, "addresses").unwrap_or_default(),
        export_to: field(&object.spec, "exportTo").unwrap_or_default(),
        resolution: istio::Resolution::Static,
        ..Default::default()
    });
    // Of the status the world looks at the addresses alone (reference mtls 4.2).
    let addresses = object.status.get("addresses").cloned();
    let status = addresses.map(|addresses| serde_json::json!({ "addresses": addresses }));
    istio::ServiceEntry { metadata, spec, status }
}

/// A WorkloadEntry; an unreadable one is nowhere.
pub(crate) fn workload_entry(object: objects::WorkloadEntry) -> istio::WorkloadEntry {
    let labels = object.metadata.labels.clone();
    let spec = read(&object.metadata, "WorkloadEntry", &object.spec).unwrap_or_default();
    istio::WorkloadEntry { metadata: ObjectMeta { labels, ..lean(object.metadata) }, spec, status: None }
}

/// A Sidecar; an unreadable one lets its workloads know nothing.
pub(crate) fn sidecar(object: objects::Sidecar) -> istio::Sidecar {
    let spec = read(&object.metadata, "Sidecar", &object.spec).unwrap_or_else(|| istio::SidecarSpec {
        workload_selector: field(&object.spec, "workloadSelector"),
        egress: vec![istio::EgressListener { hosts: vec!["~/*".to_owned()], ..Default::default() }],
        outbound_traffic_policy: Some(istio::OutboundTrafficPolicy {
            mode: Some(istio::OutboundMode::RegistryOnly),
            egress_proxy: None,
        }),
        ..Default::default()
    });
    let partial = spec.egress.iter().any(|listener| {
        let captured = listener.capture_mode.is_none_or(|mode| mode == istio::CaptureMode::Default);
        listener.port.is_some() || !listener.bind.is_empty() || !captured
    });
    if partial || !spec.ingress.is_empty() {
        // The embedded API refuses these; a cluster's may have let them in.
        let name = objects::name_of(&object.metadata);
        tracing::warn!(%name, "of this Sidecar, ingress and the ports, binds and capture modes of egress are not enforced");
    }
    istio::Sidecar { metadata: lean(object.metadata), spec, status: None }
}

/// One field alone, if at least that can be read.
fn field<T: DeserializeOwned>(spec: &Value, name: &str) -> Option<T> {
    spec.get(name).and_then(|value| T::deserialize(value).ok())
}

fn read<T: DeserializeOwned + Default>(metadata: &ObjectMeta, kind: &str, spec: &Value) -> Option<T> {
    if spec.is_null() {
        return Some(T::default());
    }
    match T::deserialize(spec) {
        Ok(spec) => Some(spec),
        Err(error) => {
            let name = objects::name_of(metadata);
            tracing::error!(%name, kind, %error, "object cannot be read; it is enforced in its strictest sense");
            None
        }
    }
}

/// The selector alone, if at least that can be read; else everything in scope.
fn selector(spec: &Value) -> Option<istio::WorkloadSelector> {
    spec.get("selector").and_then(|s| serde::Deserialize::deserialize(s).ok())
}

/// What of the metadata has a meaning for policy: names, age, annotations and labels that change the meaning.
fn lean(metadata: ObjectMeta) -> ObjectMeta {
    let annotations = metadata.annotations.map(|mut annotations| {
        annotations.retain(|key, _| key == "istio.io/dry-run");
        annotations
    });
    let labels = metadata.labels.map(|mut labels| {
        labels.retain(|key, _| key == "networking.istio.io/enable-autoallocate-ip");
        labels
    });
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        creation_timestamp: metadata.creation_timestamp,
        annotations: annotations.filter(|a| !a.is_empty()),
        labels: labels.filter(|l| !l.is_empty()),
        ..ObjectMeta::default()
    }
}

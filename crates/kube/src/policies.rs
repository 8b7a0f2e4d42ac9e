//! Istio's security kinds as they come from the API.
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

/// What of the metadata has a meaning for policy: names, age, annotations that change the meaning.
fn lean(metadata: ObjectMeta) -> ObjectMeta {
    let annotations = metadata.annotations.map(|mut annotations| {
        annotations.retain(|key, _| key == "istio.io/dry-run");
        annotations
    });
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        creation_timestamp: metadata.creation_timestamp,
        annotations: annotations.filter(|a| !a.is_empty()),
        ..ObjectMeta::default()
    }
}

//! The gate: one object in, a checked object or all its mistakes out.

mod attachment;
mod authorization;
mod authorization_warnings;
mod client_tls;
mod conditions;
mod destination_rule;
mod export;
mod jwks;
mod kubernetes;
mod metadata;
mod path_template;
mod peer_authentication;
mod pod;
mod request_authentication;
mod service_entry;
mod service_entry_endpoints;
mod sidecar;
mod traffic;
mod values;
mod view;
mod workload_entry;
mod workloads;

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::field_error::{FieldError, FieldErrorKind};
use crate::kinds::{self, Enforcement, Kind};
use crate::path::FieldPath;
use crate::{decode, istio, suggest};
pub(crate) use values::header_name;
pub(crate) use view::{View, snake_case};
pub use workloads::{MAX_INDEXED_COMPLETIONS, parse_indexes};

/// A checked object.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "objects are looked at one by one, as they are written")]
pub enum Object {
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(istio::PeerAuthentication),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(istio::AuthorizationPolicy),
    /// `security.istio.io` RequestAuthentication.
    RequestAuthentication(istio::RequestAuthentication),
    /// `networking.istio.io` DestinationRule.
    DestinationRule(istio::DestinationRule),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(istio::ServiceEntry),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(istio::WorkloadEntry),
    /// `networking.istio.io` Sidecar.
    Sidecar(istio::Sidecar),
    /// One of Kubernetes' own kinds, which decodes strictly into its `k8s-openapi` type; without `null` members.
    Kubernetes(Value),
}

/// Checks one object of a known kind: unknown fields, wrong types, values no field may have, and what nothing enforces
/// yet. All errors, not the first.
///
/// The ConfigMap `istio` of the control plane's namespace is checked as [`crate::mesh::check`] checks it.
///
/// The rules are Istio's admission (reference authorization 18, mtls 1.1) and, for Kubernetes' own kinds,
/// the part of Kubernetes' validation that the mesh relies on.
pub fn check(object: &Value) -> Result<Object, Vec<FieldError>> {
    let root = FieldPath::root();
    let Some(members) = object.as_object() else {
        let error = FieldError::new(root, FieldErrorKind::Type, "an object is a mapping of fields")
            .help("begin with apiVersion:, kind: and metadata:");
        return Err(vec![error]);
    };
    let kind = kind_of(members)?;
    match kind.enforcement {
        Enforcement::Later | Enforcement::Never => return Err(vec![refusal(kind)]),
        Enforcement::Kubernetes | Enforcement::Enforced => {}
    }

    let mut errors = Vec::new();
    let checked = match (kind.group, kind.kind) {
        ("security.istio.io", "PeerAuthentication") => {
            let decoded = decode_istio(members, &mut errors);
            peer_authentication::check(View::new(object), &mut errors);
            decoded.map(Object::PeerAuthentication)
        }
        ("security.istio.io", "AuthorizationPolicy") => {
            let decoded = decode_istio(members, &mut errors);
            authorization::check(View::new(object), &mut errors);
            decoded.map(Object::AuthorizationPolicy)
        }
        ("security.istio.io", "RequestAuthentication") => {
            let decoded = decode_istio(members, &mut errors);
            request_authentication::check(View::new(object), &mut errors);
            decoded.map(Object::RequestAuthentication)
        }
        ("networking.istio.io", "DestinationRule") => {
            let decoded = decode_istio(members, &mut errors);
            destination_rule::check(View::new(object), &mut errors);
            decoded.map(Object::DestinationRule)
        }
        ("networking.istio.io", "ServiceEntry") => {
            let decoded = decode_istio(members, &mut errors);
            service_entry::check(View::new(object), &mut errors);
            decoded.map(Object::ServiceEntry)
        }
        ("networking.istio.io", "WorkloadEntry") => {
            let decoded = decode_istio(members, &mut errors);
            workload_entry::check(View::new(object), &mut errors);
            decoded.map(Object::WorkloadEntry)
        }
        ("networking.istio.io", "Sidecar") => {
            let decoded = decode_istio(members, &mut errors);
            sidecar::check(View::new(object), &mut errors);
            decoded.map(Object::Sidecar)
        }
        _ => {
            decode_kubernetes(kind, object, &mut errors);
            kubernetes::check(kind, &View::new(object), &mut errors);
            let mut object = object.clone();
            prune_nulls(&mut object);
            Some(Object::Kubernetes(object))
        }
    };
    if kind.enforcement == Enforcement::Enforced && kind.kind != "AuthorizationPolicy" {
        authorization::check_no_dry_run(kind.kind, &View::new(object), &mut errors);
    }
    metadata::check(kind, View::new(object), &mut errors);
    match checked {
        Some(checked) if errors.is_empty() => Ok(checked),
        _ => Err(errors),
    }
}

/// Findings that do not hinder: Istio's warnings on what is accepted.
pub fn warnings(object: &Object) -> Vec<FieldError> {
    match object {
        Object::PeerAuthentication(policy) => peer_authentication::warnings(policy),
        Object::AuthorizationPolicy(policy) => authorization_warnings::warnings(policy),
        Object::RequestAuthentication(policy) => request_authentication::warnings(policy),
        Object::DestinationRule(rule) => destination_rule::warnings(rule),
        Object::ServiceEntry(entry) => service_entry::warnings(entry),
        Object::Sidecar(sidecar) => sidecar::warnings(sidecar),
        Object::WorkloadEntry(_) => Vec::new(),
        Object::Kubernetes(object) => workloads::warnings(&View::new(object)),
    }
}

/// Removes `null` members, which count as absent.
pub fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(prune_nulls);
        }
        Value::Array(elements) => elements.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

impl Object {
    /// The object as JSON in its canonical spelling: camel case, no `null` members.
    pub fn to_value(&self) -> Value {
        const SECURITY: &str = "security.istio.io/v1";
        const NETWORKING: &str = "networking.istio.io/v1";
        let (api_version, kind, typed) = match self {
            Self::PeerAuthentication(policy) => {
                (SECURITY, "PeerAuthentication", serde_json::to_value(policy))
            }
            Self::AuthorizationPolicy(policy) => {
                (SECURITY, "AuthorizationPolicy", serde_json::to_value(policy))
            }
            Self::RequestAuthentication(policy) => {
                (SECURITY, "RequestAuthentication", serde_json::to_value(policy))
            }
            Self::DestinationRule(rule) => (NETWORKING, "DestinationRule", serde_json::to_value(rule)),
            Self::ServiceEntry(entry) => (NETWORKING, "ServiceEntry", serde_json::to_value(entry)),
            Self::WorkloadEntry(entry) => (NETWORKING, "WorkloadEntry", serde_json::to_value(entry)),
            Self::Sidecar(sidecar) => (NETWORKING, "Sidecar", serde_json::to_value(sidecar)),
            Self::Kubernetes(value) => return value.clone(),
        };
        let mut members = Map::new();
        members.insert("apiVersion".to_owned(), json!(api_version));
        members.insert("kind".to_owned(), json!(kind));
        // All are structs with text keys: they are always objects.
        if let Ok(Value::Object(rest)) = typed {
            members.extend(rest);
        }
        Value::Object(members)
    }
}

/// Finds the kind, or says which part of its name is wrong.
fn kind_of(members: &Map<String, Value>) -> Result<&'static Kind, Vec<FieldError>> {
    let text = |field: &str, example: &str| match members.get(field) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.as_str()),
        Some(Value::Null | Value::String(_)) | None => {
            Err(FieldError::new(FieldPath::root().key(field), FieldErrorKind::Required, "is required")
                .help(format!("for example {example}")))
        }
        Some(_) => {
            Err(FieldError::new(FieldPath::root().key(field), FieldErrorKind::Type, "expected a string")
                .help(format!("for example {example}")))
        }
    };
    let (api_version, kind) = match (
        text("apiVersion", "apiVersion: security.istio.io/v1"),
        text("kind", "kind: PeerAuthentication"),
    ) {
        (Ok(api_version), Ok(kind)) => (api_version, kind),
        (a, b) => return Err([a.err(), b.err()].into_iter().flatten().collect()),
    };
    if let Some(found) = kinds::find(api_version, kind) {
        return Ok(found);
    }
    let (group, version) = kinds::split_api_version(api_version);
    let namesakes = || kinds::KINDS.iter().filter(|k| k.kind == kind);
    let error = if let Some(known) = namesakes().find(|k| k.group == group) {
        FieldError::new(
            FieldPath::root().key("apiVersion"),
            FieldErrorKind::Enum,
            format!("{kind} has no version '{version}'"),
        )
        .help(format!("write {}", known.api_version()))
    } else if let Some(known) = namesakes().next() {
        FieldError::new(
            FieldPath::root().key("apiVersion"),
            FieldErrorKind::Enum,
            format!("there is no kind {kind} in '{api_version}'"),
        )
        .help(format!("write {}", known.api_version()))
    } else {
        let names = kinds::KINDS.iter().map(|k| k.kind);
        let help = match (instead_of(kind), suggest::nearest(kind, names)) {
            (Some(instead), _) => instead.to_owned(),
            (None, Some(nearest)) => format!("did you mean {nearest}?"),
            (None, None) => "known kinds: ".to_owned() + &known_kinds().join(", "),
        };
        FieldError::new(
            FieldPath::root().key("kind"),
            FieldErrorKind::Enum,
            format!("kind {kind} of {api_version} is not known here"),
        )
        .help(help)
    };
    Err(vec![error])
}

/// What to write in place of kinds of Kubernetes that people often have in their files.
fn instead_of(kind: &str) -> Option<&'static str> {
    match kind {
        "ReplicationController" => Some("write a Deployment"),
        "PersistentVolume" | "StorageClass" => {
            Some("write a PersistentVolumeClaim, which is given a directory of this machine")
        }
        "NetworkPolicy" => Some("write an AuthorizationPolicy, which selects callers by identity"),
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => {
            Some("leave it out: ServiceAccounts have no rights in this API")
        }
        "HorizontalPodAutoscaler" | "PodDisruptionBudget" | "PriorityClass" => {
            Some("leave it out: replicas of the Deployment alone say how many Pods run")
        }
        "Ingress" | "IngressClass" => Some("leave it out: nothing outside of the mesh is led into it"),
        _ => None,
    }
}

fn known_kinds() -> Vec<&'static str> {
    let used = |k: &&Kind| matches!(k.enforcement, Enforcement::Kubernetes | Enforcement::Enforced);
    let mut names: Vec<_> = kinds::KINDS.iter().filter(used).map(|k| k.kind).collect();
    names.dedup();
    names
}

fn refusal(kind: &Kind) -> FieldError {
    let message = match kind.enforcement {
        Enforcement::Never => format!("{} is not enforced: {}", kind.kind, kind.reason),
        _ => format!("{} is not enforced yet: {}", kind.kind, kind.reason),
    };
    FieldError::new(FieldPath::root().key("kind"), FieldErrorKind::NotEnforced, message)
        .help("leave it out: an object that is accepted and ignored would only seem to protect")
}

fn decode_istio<T: DeserializeOwned>(
    members: &Map<String, Value>,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let mut members = members.clone();
    members.shift_remove("apiVersion");
    members.shift_remove("kind");
    let (decoded, mut found) = decode::decode(&Value::Object(members), &FieldPath::root());
    errors.append(&mut found);
    decoded
}

fn decode_kubernetes(kind: &Kind, object: &Value, errors: &mut Vec<FieldError>) {
    fn strictly<T: DeserializeOwned>(object: &Value) -> Vec<FieldError> {
        decode::decode::<T>(object, &FieldPath::root()).1
    }
    let decode = match (kind.group, kind.kind) {
        ("", "Namespace") => strictly::<core::Namespace>,
        ("", "ServiceAccount") => strictly::<core::ServiceAccount>,
        ("", "Service") => strictly::<core::Service>,
        ("", "Pod") => strictly::<core::Pod>,
        ("", "ConfigMap") => strictly::<core::ConfigMap>,
        ("", "Secret") => strictly::<core::Secret>,
        ("", "Event") => strictly::<core::Event>,
        ("events.k8s.io", "Event") => strictly::<events::Event>,
        ("discovery.k8s.io", "EndpointSlice") => strictly::<discovery::EndpointSlice>,
        ("apps", "Deployment") => strictly::<apps::Deployment>,
        ("apps", "ReplicaSet") => strictly::<apps::ReplicaSet>,
        ("apps", "StatefulSet") => strictly::<apps::StatefulSet>,
        ("apps", "DaemonSet") => strictly::<apps::DaemonSet>,
        ("apps", "ControllerRevision") => strictly::<apps::ControllerRevision>,
        ("batch", "Job") => strictly::<batch::Job>,
        ("batch", "CronJob") => strictly::<batch::CronJob>,
        ("", "PersistentVolumeClaim") => strictly::<core::PersistentVolumeClaim>,
        _ => {
            errors.push(refusal(kind));
            return;
        }
    };
    errors.append(&mut decode(object));
}

#[cfg(test)]
mod networking_tests;
#[cfg(test)]
mod security_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traffic_tests;
#[cfg(test)]
pub(crate) use tests::arbitrary_json;

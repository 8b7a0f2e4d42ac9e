//! Pods: their account, its token, their node, their sidecar, and what of them may change.

use serde_json::{Value, json};

use super::{namespaces::DEFAULT_ACCOUNT, pod_defaults, pod_validation};
use crate::api::{Api, Caller};
use crate::json;
use crate::request::Target;
use crate::status::{ApiError, ApiResult, Cause};
use crate::store::State;
use crate::time;

/// Where containers find the token for this API.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of that token, renewed in time by the kubelet. Odd on purpose, as in Kubernetes: a token that
/// was asked for with this life is one of these.
const TOKEN_SECONDS: i64 = 3607;

/// Admits a new Pod; answers warnings.
pub(crate) fn create(
    api: &Api,
    _caller: &Caller,
    state: &State,
    target: &Target,
    pod: &mut Value,
) -> ApiResult<Vec<String>> {
    let name = json::name(pod).to_owned();
    if !pod.get("spec").is_some_and(Value::is_object) {
        let cause = Cause::required("spec.containers", "");
        return Err(ApiError::invalid(target.resource, &name, vec![cause]));
    }
    if !json::items(pod, &["spec", "ephemeralContainers"]).is_empty() {
        let cause = Cause::forbidden("spec.ephemeralContainers", "cannot be set on create");
        return Err(ApiError::invalid(target.resource, &name, vec![cause]));
    }
    api.injection.forbid_reserved(pod).map_err(|why| ApiError::forbidden(target.resource, &name, &why))?;
    if let Some(spec) = pod.get_mut("spec") {
        pod_defaults::spec(spec);
    }
    let account = service_account(state, target, pod)?;
    mount_token(pod, &account);
    let namespace = state.get("namespaces", "", target.ns()).cloned();
    let labels = namespace.as_deref().and_then(|n| json::at(n, &["metadata", "labels"]));
    let mesh = state.get("configmaps", maille_core::ROOT_NAMESPACE, maille_config::mesh::CONFIG_MAP).cloned();
    *pod = api
        .injection
        .inject(
            mesh.as_deref().unwrap_or(&Value::Null),
            labels.unwrap_or(&Value::Null),
            target.ns(),
            std::mem::take(pod),
        )
        .map_err(|why| ApiError::forbidden(target.resource, &name, &why))?;
    let spec = json::object_mut(json::map_of(pod), "spec");
    // There is one node, so that nothing needs to be scheduled.
    spec.insert("nodeName".into(), api.settings.node_name.clone().into());
    if let Some(spec) = pod.get_mut("spec") {
        pod_defaults::spec(spec);
    }
    let causes = pod_validation::spec(pod.get("spec").unwrap_or(&Value::Null), "spec");
    if !causes.is_empty() {
        return Err(ApiError::invalid(target.resource, &name, causes));
    }
    let qos = pod_defaults::qos_class(pod.get("spec").unwrap_or(&Value::Null));
    json::map_of(pod).insert(
        "status".into(),
        json!({
            "phase": "Pending", "qosClass": qos,
            "conditions": [{
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time::now(),
            }],
        }),
    );
    Ok(Vec::new())
}

/// The Pod's account, which must be there.
fn service_account(state: &State, target: &Target, pod: &mut Value) -> ApiResult<Value> {
    let spec = json::object_mut(json::map_of(pod), "spec");
    json::default_to(spec, "serviceAccountName", DEFAULT_ACCOUNT);
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().to_owned();
    spec.insert("serviceAccount".into(), account.clone().into());
    match state.get("serviceaccounts", target.ns(), &account) {
        Some(found) => Ok(Value::clone(found)),
        None => {
            let why = format!(
                "error looking up service account {}/{account}: serviceaccount \"{account}\" not found",
                target.ns()
            );
            Err(ApiError::forbidden(target.resource, json::name(pod), &why))
        }
    }
}

/// Mounts a token of the account where no container mounts something itself.
///
/// Source: kubernetes `plugin/pkg/admission/serviceaccount`.
fn mount_token(pod: &mut Value, account: &Value) {
    let wish = |o: &Value, path: &[&str]| json::at(o, path).and_then(Value::as_bool);
    let wanted = wish(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| wish(account, &["automountServiceAccountToken"]))
        .unwrap_or(true);
    let has = |pod: &Value| {
        json::items(pod, &["spec", "volumes"])
            .iter()
            .find(|v| json::text(v, &["name"]).starts_with("kube-api-access-"))
            .map(|v| json::text(v, &["name"]).to_owned())
    };
    if !wanted {
        return;
    }
    let known = has(pod);
    let volume = known.clone().unwrap_or_else(|| format!("kube-api-access-{}", time::suffix()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in json::items_mut(pod, &["spec", list]) {
            let taken = json::items(container, &["volumeMounts"])
                .iter()
                .any(|m| json::text(m, &["mountPath"]).trim_end_matches('/') == TOKEN_PATH);
            if taken || !container.is_object() {
                continue;
            }
            let mount = json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_PATH });
            push(json::map_of(container), "volumeMounts", mount);
            used = true;
        }
    }
    if !used || known.is_some() {
        return;
    }
    let spec = json::object_mut(json::map_of(pod), "spec");
    push(
        spec,
        "volumes",
        json!({
            "name": volume,
            "projected": { "defaultMode": 420, "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": { "name": super::namespaces::ROOT_CONFIG_MAP, "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{
                    "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ] },
        }),
    );
}

fn push(map: &mut serde_json::Map<String, Value>, key: &str, value: Value) {
    match map.get_mut(key) {
        Some(Value::Array(list)) => list.push(value),
        _ => drop(map.insert(key.into(), json!([value]))),
    }
}

/// Of a Pod's spec, only images, deadlines and added tolerations may change.
pub(crate) fn update(target: &Target, old: &Value, new: &mut Value) -> ApiResult<()> {
    if let Some(spec) = new.get_mut("spec") {
        pod_defaults::spec(spec);
    }
    let frozen = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or(Value::Null);
        for list in ["containers", "initContainers"] {
            for container in json::items_mut(&mut spec, &[list]) {
                if let Value::Object(container) = container {
                    container.shift_remove("image");
                    container.shift_remove("imagePullPolicy");
                }
            }
        }
        let map = json::map_of(&mut spec);
        for key in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            map.shift_remove(key);
        }
        spec
    };
    let name = json::name(old);
    if frozen(old) != frozen(new) {
        let cause = Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
        return Err(ApiError::invalid(target.resource, name, vec![cause]));
    }
    let causes = pod_validation::spec(new.get("spec").unwrap_or(&Value::Null), "spec");
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(target.resource, name, causes)) }
}

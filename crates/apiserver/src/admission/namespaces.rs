//! Namespaces: what is in every one of them, and which accept new objects.

use serde_json::{Value, json};

use crate::api::Api;
use crate::json;
use crate::request::Target;
use crate::resources;
use crate::status::{ApiError, ApiResult};
use crate::store::{Change, Key, State};
use crate::verbs::write;

/// The ConfigMap with the authority of this API, for Pods.
pub(crate) const ROOT_CONFIG_MAP: &str = "kube-root-ca.crt";
/// The ServiceAccount of Pods that name none.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";

/// Refuses new objects where there is no namespace, or one that is being deleted.
pub(crate) fn must_accept(state: &State, target: &Target, name: &str) -> ApiResult<()> {
    let namespaces = resources::by_name("", "namespaces").ok_or_else(ApiError::path_not_found)?;
    let namespace = state
        .get(&namespaces.store, "", target.ns())
        .ok_or_else(|| ApiError::not_found(namespaces, target.ns()))?;
    if json::is_terminating(namespace) {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            target.ns()
        );
        let mut error = ApiError::forbidden(target.resource, name, &why);
        if let Some(details) = error.details.as_object_mut() {
            let cause =
                json!({ "reason": "NamespaceTerminating", "message": why, "field": "metadata.namespace" });
            details.insert("causes".into(), json!([cause]));
        }
        return Err(error);
    }
    Ok(())
}

/// Completes a new namespace; answers what is made in it at once, so that Pods need not wait.
pub(crate) fn create(api: &Api, state: &State, object: &mut Value) -> Vec<Change> {
    let name = json::name(object).to_owned();
    let map = json::map_of(object);
    let metadata = json::object_mut(map, "metadata");
    json::object_mut(metadata, "labels").insert("kubernetes.io/metadata.name".into(), name.clone().into());
    map.insert("spec".into(), json!({ "finalizers": ["kubernetes"] }));
    map.insert("status".into(), json!({ "phase": "Active" }));
    contents(api, &name)
        .into_iter()
        .filter(|(key, _)| state.get(&key.store, &key.namespace, &key.name).is_none())
        .map(|(key, value)| Change::Put(key, value))
        .collect()
}

/// What every namespace has: the default account and the API's authority.
pub(crate) fn contents(api: &Api, namespace: &str) -> Vec<(Key, Value)> {
    let mut account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": DEFAULT_ACCOUNT, "namespace": namespace },
    });
    let mut roots = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": ROOT_CONFIG_MAP, "namespace": namespace,
            "annotations": {
                "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
            },
        },
        "data": { "ca.crt": api.root_pem },
    });
    write::stamp(&mut account);
    write::stamp(&mut roots);
    vec![
        (Key::new("serviceaccounts", namespace, DEFAULT_ACCOUNT), account),
        (Key::new("configmaps", namespace, ROOT_CONFIG_MAP), roots),
    ]
}

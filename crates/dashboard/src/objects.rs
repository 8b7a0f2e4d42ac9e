//! What the cluster says there is: workloads (Pods by their owners) and the addresses of Services.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::text::{NAME, clean};

/// Objects read of one list.
const MOST: usize = 20_000;
/// Container of the sidecar, in Istio's YAML and here.
const SIDECAR: &str = "istio-proxy";

/// What the cluster says there is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inventory {
    /// By namespace and name.
    pub(crate) workloads: BTreeMap<(String, String), Workload>,
    /// Address of a Service → its namespace and name.
    pub(crate) services: HashMap<String, (String, String)>,
}

/// A workload's Pods taken together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) pods: usize,
    pub(crate) ready: usize,
    pub(crate) with_sidecar: usize,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    containers: Vec<Named>,
    init_containers: Vec<Named>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Deployment {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Service {
    metadata: Metadata,
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
}

fn list<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<Vec<T>, String> {
    #[derive(Deserialize)]
    struct List<T> {
        items: Vec<T>,
    }
    let list: List<T> = serde_json::from_slice(body)
        .map_err(|error| format!("the API answered something that is no list of {what}: {error}"))?;
    let mut items = list.items;
    items.truncate(MOST);
    Ok(items)
}

impl Inventory {
    /// Reads the API's lists of Pods, Deployments and Services.
    pub(crate) fn read(pods: &[u8], deployments: &[u8], services: &[u8]) -> Result<Self, String> {
        let mut inventory = Self::default();
        for deployment in list::<Deployment>("Deployments", deployments)? {
            let Metadata { namespace, name, .. } = deployment.metadata;
            inventory.workloads.entry((clean(&namespace, NAME), clean(&name, NAME))).or_default();
        }
        for pod in list::<Pod>("Pods", pods)? {
            let over = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
            if over || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let key = (clean(&pod.metadata.namespace, NAME), clean(&owner(&pod.metadata), NAME));
            let workload = inventory.workloads.entry(key).or_default();
            let ready = pod.status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
            let mut containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
            workload.pods += 1;
            workload.ready += usize::from(ready);
            workload.with_sidecar += usize::from(containers.any(|c| c.name == SIDECAR));
        }
        for service in list::<Service>("Services", services)? {
            let address = service.spec.cluster_ip;
            if !address.is_empty() && address != "None" {
                let Metadata { namespace, name, .. } = service.metadata;
                inventory.services.insert(address, (clean(&namespace, NAME), clean(&name, NAME)));
            }
        }
        Ok(inventory)
    }
}

/// The owner people know a Pod by, as the control plane names workloads: the Deployment or CronJob behind it, else its
/// controller, else itself.
fn owner(pod: &Metadata) -> String {
    let Some(owner) = pod.owner_references.iter().find(|owner| owner.controller) else {
        return pod.name.clone();
    };
    let hash = pod.labels.get("pod-template-hash").map(String::as_str);
    maille_core::workload_of(&owner.kind, &owner.name, hash).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, containers: &[&str], more: serde_json::Value) -> serde_json::Value {
        let containers: Vec<_> = containers.iter().map(|name| json!({ "name": name })).collect();
        let mut pod = json!({
            "metadata": {"namespace": "a", "name": name},
            "spec": {"containers": containers},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["metadata"][key] = value.clone();
        }
        pod
    }

    #[test]
    fn pods_are_counted_with_their_owner() {
        let owned = json!({
            "labels": {"pod-template-hash": "7d"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7d", "controller": true}]
        });
        let pods = json!({"items": [
            pod("web-7d-1", &["app", "istio-proxy"], owned.clone()),
            pod("web-7d-2", &["app"], owned),
            pod("alone", &["app"], json!({})),
            pod("going", &["app"], json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ]});
        let deployments = json!({"items": [{"metadata": {"namespace": "a", "name": "web"}}, {"metadata": {"namespace": "a", "name": "off"}}]});
        let services = json!({"items": [
            {"metadata": {"namespace": "a", "name": "web"}, "spec": {"clusterIP": "10.0.0.1"}},
            {"metadata": {"namespace": "a", "name": "headless"}, "spec": {"clusterIP": "None"}}
        ]});
        let bytes = |value: &serde_json::Value| value.to_string().into_bytes();
        let found =
            Inventory::read(&bytes(&pods), &bytes(&deployments), &bytes(&services)).expect("readable");
        let of = |name: &str| found.workloads.get(&("a".to_owned(), name.to_owned())).copied();
        assert_eq!(of("web"), Some(Workload { pods: 2, ready: 2, with_sidecar: 1 }));
        assert_eq!(of("alone"), Some(Workload { pods: 1, ready: 1, with_sidecar: 0 }));
        assert_eq!((of("off"), of("going")), (Some(Workload::default()), None));
        assert_eq!(found.services.len(), 1);
    }
}

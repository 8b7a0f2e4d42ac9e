use std::collections::{BTreeMap, BTreeSet};

use maille_config::k8s::api::core::v1::{Container, Pod};
use maille_core::Labels;
use maille_inject::{Decision, SIDECAR_CONTAINER, SkipReason, decide};
use serde_json::{Value, json};

use crate::message::Origin;
use crate::resource::Resource;

/// A Pod, or the template of what makes Pods.
#[derive(Debug)]
pub(crate) struct Workload<'r> {
    /// The object.
    pub(crate) resource: &'r Resource,
    /// What made the Pod, and is what people change.
    maker: Option<&'r Resource>,
    /// Field path of the Pod's `metadata` and `spec`: empty for a Pod.
    pub(crate) prefix: &'static str,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Labels of its Pods.
    pub(crate) labels: Labels,
    /// Its ServiceAccount.
    pub(crate) account: String,
    /// Ports that its containers declare.
    pub(crate) ports: Vec<ContainerPort>,
    /// It has a sidecar, or will have one when it is created.
    pub(crate) meshed: bool,
    /// Why it will have none.
    pub(crate) skipped: Option<SkipReason>,
    /// The Pod as it was written, without a sidecar of our own making.
    pub(crate) pod: Pod,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerPort {
    /// Its name, which Services may refer to.
    pub(crate) name: Option<String>,
    /// Its number.
    pub(crate) number: u16,
    /// Not UDP or SCTP.
    pub(crate) tcp: bool,
}

impl<'r> Workload<'r> {
    /// The object that findings about the Pod's own fields are about; `None` if another workload stands for it: the
    /// template of a file, which will replace what is live.
    pub(crate) fn subject(&self) -> Option<&'r Resource> {
        match self.maker {
            Some(maker) if maker.is_of_file() => None,
            Some(maker) => Some(maker),
            None => Some(self.resource),
        }
    }

    /// A Pod that exists, not the template of one.
    pub(crate) fn is_pod(&self) -> bool {
        self.prefix.is_empty()
    }

    /// Field path within the object of a field of the Pod.
    pub(crate) fn field(&self, path: &str) -> String {
        if self.prefix.is_empty() { path.to_owned() } else { format!("{}.{path}", self.prefix) }
    }
}

/// All workloads: what makes Pods, and Pods that nothing here makes.
pub(super) fn all<'r>(resources: &'r [Resource], namespaces: &BTreeMap<String, Labels>) -> Vec<Workload<'r>> {
    let none = Labels::new();
    let owners = owners(resources);
    let makers: BTreeMap<(&str, &str), &Resource> = resources
        .iter()
        .filter(|r| r.kind() != "Pod" && !is_owned_template(r) && pod_of(r).is_some())
        .map(|r| ((r.namespace().unwrap_or_default(), r.name()), r))
        .collect();
    let mut all = Vec::new();
    for resource in resources {
        let (pod, prefix) = match pod_of(resource) {
            Some(found) => found,
            None => continue,
        };
        if is_owned_template(resource) || is_finished(&resource.value) {
            continue;
        }
        let Ok(mut pod) = serde_json::from_value::<Pod>(pod) else { continue };
        pod.metadata.namespace = resource.namespace().map(str::to_owned);
        let namespace = resource.namespace().unwrap_or("default").to_owned();
        let carries = has_sidecar(&pod);
        let skipped = match decide(namespaces.get(&namespace).unwrap_or(&none), &pod) {
            Decision::Inject { .. } => None,
            Decision::Skip(reason) => Some(reason),
        };
        // A Pod that is live is what it is; one of a file, or of a template, is what it will be.
        let meshed = carries || (skipped.is_none() && (resource.is_of_file() || !prefix.is_empty()));
        let maker = controller(&resource.value).and_then(|owner| {
            let owner = owners.get(&(namespace.clone(), owner.to_owned())).map_or(owner, String::as_str);
            makers.get(&(namespace.as_str(), owner)).copied()
        });
        all.push(Workload {
            maker,
            prefix,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            account: account(&pod),
            ports: ports(&pod),
            meshed,
            skipped,
            pod,
            namespace,
            resource,
        });
    }
    // A template of the API whose Pods are there says nothing that they do not say better.
    let made: BTreeSet<Origin> = all
        .iter()
        .filter_map(|w| w.maker.filter(|maker| !maker.is_of_file()))
        .map(Resource::origin)
        .collect();
    all.retain(|w| !made.contains(&w.resource.origin()));
    all
}

/// ReplicaSets by (namespace, name), and the Deployment that made each.
fn owners(resources: &[Resource]) -> BTreeMap<(String, String), String> {
    let sets = resources.iter().filter(|r| r.kind() == "ReplicaSet");
    sets.filter_map(|set| {
        let owner = controller(&set.value)?.to_owned();
        Some(((set.namespace().unwrap_or_default().to_owned(), set.name().to_owned()), owner))
    })
    .collect()
}

/// The name of what made an object.
fn controller(object: &Value) -> Option<&str> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?.get("name")?.as_str()
}

/// A ReplicaSet of a Deployment says what the Deployment says, or said once.
fn is_owned_template(resource: &Resource) -> bool {
    resource.kind() != "Pod" && controller(&resource.value).is_some()
}

fn is_finished(object: &Value) -> bool {
    let phase = object.pointer("/status/phase").and_then(Value::as_str);
    let gone = object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    gone || matches!(phase, Some("Succeeded" | "Failed"))
}

/// The Pod of a Pod, or of anything with a template, and where it stands.
fn pod_of(resource: &Resource) -> Option<(Value, &'static str)> {
    if resource.kind() == "Pod" {
        return resource.group().is_empty().then(|| (resource.value.clone(), ""));
    }
    let places = [
        ("spec.template", "/spec/template"),
        ("spec.jobTemplate.spec.template", "/spec/jobTemplate/spec/template"),
    ];
    places.into_iter().find_map(|(prefix, pointer)| {
        let template = resource.value.pointer(pointer)?;
        template.pointer("/spec/containers")?.as_array()?;
        let metadata = template.get("metadata").cloned().unwrap_or(Value::Null);
        let pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec")});
        Some((pod, prefix))
    })
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

fn has_sidecar(pod: &Pod) -> bool {
    containers(pod).any(|container| container.name == SIDECAR_CONTAINER)
}

fn account(pod: &Pod) -> String {
    let named = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned())
}

/// Ports of the application's containers.
fn ports(pod: &Pod) -> Vec<ContainerPort> {
    let own = containers(pod).filter(|container| container.name != SIDECAR_CONTAINER);
    own.flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
            Some(ContainerPort { name: port.name.clone(), number, tcp })
        })
        .collect()
}

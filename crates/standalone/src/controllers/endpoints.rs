//! EndpointSlices: the Pods behind a Service.

use std::collections::BTreeMap;

use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::IntOrString;
use maille_config::k8s::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use maille_config::k8s::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use maille_config::k8s::meta::ObjectMeta;

use super::{is_not_found, ownership, pods};

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value Kubernetes' own controller writes; tools look for it.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// The port numbers behind a Service, by port; Pods that name their ports differently differ here.
type Ports = Vec<(Option<String>, i32)>;

pub(super) async fn reconcile_all(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    for service in services.list(&ListParams::default()).await? {
        reconcile_one(client, namespace, &service).await?;
    }
    Ok(())
}

pub(super) async fn reconcile(client: &Client, namespace: &str, name: &str) -> Result<(), kube::Error> {
    match Api::<Service>::namespaced(client.clone(), namespace).get_opt(name).await? {
        Some(service) => reconcile_one(client, namespace, &service).await,
        // Its slices go with it: it owns them.
        None => Ok(()),
    }
}

async fn reconcile_one(client: &Client, namespace: &str, service: &Service) -> Result<(), kube::Error> {
    let selector =
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|labels| !labels.is_empty());
    // A Service without a selector has slices of somebody else's making.
    let Some(selector) = selector else { return Ok(()) };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let selected = pods.list(&ListParams::default().labels(&labels.join(","))).await?.items;

    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let own = format!("{SERVICE_NAME}={},{MANAGED_BY}={CONTROLLER}", service.name_any());
    let mut existing: BTreeMap<String, EndpointSlice> = slices
        .list(&ListParams::default().labels(&own))
        .await?
        .into_iter()
        .map(|slice| (slice.name_any(), slice))
        .collect();
    for wanted in wanted_slices(service, &selected) {
        match existing.remove(&wanted.name_any()) {
            None => {
                slices.create(&PostParams::default(), &wanted).await?;
            }
            Some(there) if there.endpoints == wanted.endpoints && there.ports == wanted.ports => {}
            Some(there) => {
                let mut replacement = wanted;
                replacement.metadata.resource_version = there.metadata.resource_version;
                slices.replace(&replacement.name_any(), &PostParams::default(), &replacement).await?;
            }
        }
    }
    for name in existing.into_keys() {
        match slices.delete(&name, &DeleteParams::default()).await {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The slices that should be there: one for each way in which the Pods number their ports, and at least one.
fn wanted_slices(service: &Service, selected: &[Pod]) -> Vec<EndpointSlice> {
    let spec = service.spec.clone().unwrap_or_default();
    let service_ports = spec.ports.unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in selected {
        if let Some(endpoint) = endpoint(pod, publish_unready) {
            groups.entry(ports_of(pod, &service_ports)).or_default().push(endpoint);
        }
    }
    if groups.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    groups
        .into_iter()
        .enumerate()
        .map(|(index, (ports, mut endpoints))| {
            endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
            slice(service, index, &service_ports, &ports, endpoints)
        })
        .collect()
}

fn slice(
    service: &Service,
    index: usize,
    service_ports: &[ServicePort],
    ports: &Ports,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = match index {
        0 => format!("{}-pods", service.name_any()),
        more => format!("{}-pods-{more}", service.name_any()),
    };
    let labels = [(SERVICE_NAME, service.name_any()), (MANAGED_BY, CONTROLLER.to_owned())];
    let ports = service_ports
        .iter()
        .filter_map(|port| {
            let (_, number) = ports.iter().find(|(name, _)| *name == port.name)?;
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(*number),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            owner_references: Some(vec![ownership::reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

fn endpoint(pod: &Pod, publish_unready: bool) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.clone().filter(|address| !address.is_empty())?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = pods::is_ready(pod);
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish_unready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod.spec.as_ref().and_then(|spec| spec.hostname.clone()),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// The Pod's number for each port of the Service that it has.
fn ports_of(pod: &Pod, service_ports: &[ServicePort]) -> Ports {
    service_ports
        .iter()
        .filter_map(|port| {
            let number = match &port.target_port {
                None => port.port,
                Some(IntOrString::Int(number)) => *number,
                Some(IntOrString::String(name)) => named_port(pod, name, port.protocol.as_deref())?,
            };
            Some((port.name.clone(), number))
        })
        .collect()
}

fn named_port(pod: &Pod, name: &str, protocol: Option<&str>) -> Option<i32> {
    let containers = &pod.spec.as_ref()?.containers;
    containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| {
            port.name.as_deref() == Some(name)
                && port.protocol.as_deref().unwrap_or("TCP") == protocol.unwrap_or("TCP")
        })
        .map(|port| port.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, address: &str, port: i32, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "a"},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": address, "phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        }))
        .expect("a Pod")
    }

    fn service(target: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "a", "uid": "u"},
            "spec": {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 80, "targetPort": target}]}
        }))
        .expect("a Service")
    }

    #[test]
    fn pods_that_number_a_named_port_differently_get_slices_of_their_own() {
        let pods = [pod("p1", "10.0.0.1", 8080, "True"), pod("p2", "10.0.0.2", 9090, "False")];
        let slices = wanted_slices(&service(json!("web")), &pods);
        let ports: Vec<_> = slices.iter().map(|s| s.ports.as_ref().expect("ports")[0].port).collect();
        assert_eq!(ports, [Some(8080), Some(9090)]);
        let ready = |s: &EndpointSlice| {
            s.endpoints.as_ref().expect("endpoints")[0].conditions.as_ref().expect("c").ready
        };
        assert_eq!(slices.iter().map(ready).collect::<Vec<_>>(), [Some(true), Some(false)]);
    }

    #[test]
    fn a_pod_without_an_address_is_no_endpoint_and_no_pods_make_an_empty_slice() {
        let slices = wanted_slices(&service(json!(8080)), &[pod("p", "", 1, "True")]);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].endpoints.as_deref(), Some(&[][..]));
    }
}

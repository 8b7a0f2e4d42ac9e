//! EndpointSlices: the Pods behind a Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

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

/// The slices that should be there, of each address family of the Service.
fn wanted_slices(service: &Service, selected: &[Pod]) -> Vec<EndpointSlice> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let is_v6 = |family: &String| family == "IPv6";
    // One that nobody has defaulted is what every Service once was.
    let v4 = families.is_empty() || families.iter().any(|family| !is_v6(family));
    let v6 = families.iter().any(is_v6);
    let wanted = [(Family::V4, v4), (Family::V6, v6)].into_iter().filter(|(_, wanted)| *wanted);
    wanted.flat_map(|(family, _)| wanted_of_family(service, selected, family)).collect()
}

/// Of Pods and slices: a slice has addresses of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// One slice for each way in which the Pods number their ports, and at least one.
fn wanted_of_family(service: &Service, selected: &[Pod], family: Family) -> Vec<EndpointSlice> {
    let spec = service.spec.clone().unwrap_or_default();
    let service_ports = spec.ports.unwrap_or_default();
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in selected {
        if let Some(endpoint) = endpoint(service, pod, family) {
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
            slice(service, family, index, &service_ports, &ports, endpoints)
        })
        .collect()
}

fn slice(
    service: &Service,
    family: Family,
    index: usize,
    service_ports: &[ServicePort],
    ports: &Ports,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let (suffix, address_type) = match family {
        Family::V4 => ("", "IPv4"),
        Family::V6 => ("-ipv6", "IPv6"),
    };
    let name = match index {
        0 => format!("{}-pods{suffix}", service.name_any()),
        more => format!("{}-pods{suffix}-{more}", service.name_any()),
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
        address_type: address_type.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

fn endpoint(service: &Service, pod: &Pod, family: Family) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let is_of_family = |ip: IpAddr| ip.is_ipv6() == (family == Family::V6);
    let mut addresses = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let address = addresses.find(|address| address.parse().is_ok_and(is_of_family))?.clone();
    let publish_unready =
        service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
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
        // A name of its own only below the Service that it names as its subdomain.
        hostname: pod
            .spec
            .as_ref()
            .filter(|spec| spec.subdomain.as_deref() == Some(&service.name_any()))
            .and_then(|spec| spec.hostname.clone()),
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
    fn each_family_of_a_service_has_slices_of_its_own() {
        let mut both = service(json!(8080));
        both.spec.as_mut().expect("a spec").ip_families = Some(vec!["IPv6".to_owned(), "IPv4".to_owned()]);
        let mut pods = [pod("p1", "10.0.0.1", 8080, "True"), pod("p2", "10.0.0.2", 8080, "True")];
        pods[0].status.as_mut().expect("a status").pod_ips =
            serde_json::from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])).expect("addresses");
        let told = |slices: &[EndpointSlice]| -> Vec<(String, String, Vec<String>)> {
            let addresses = |s: &EndpointSlice| {
                s.endpoints.iter().flatten().flat_map(|e| e.addresses.clone()).collect::<Vec<_>>()
            };
            slices.iter().map(|s| (s.name_any(), s.address_type.clone(), addresses(s))).collect()
        };
        let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let slices = wanted_slices(&both, &pods);
        let v4 = ("s-pods".to_owned(), "IPv4".to_owned(), text(&["10.0.0.1", "10.0.0.2"]));
        let v6 = ("s-pods-ipv6".to_owned(), "IPv6".to_owned(), text(&["fd00::1"]));
        assert_eq!(told(&slices), [v4.clone(), v6]);
        assert_eq!(told(&wanted_slices(&service(json!(8080)), &pods)), [v4], "IPv4 unless told otherwise");
    }

    #[test]
    fn a_pod_has_a_name_below_the_service_that_it_names_only() {
        let mut named = pod("db-0", "10.0.0.1", 8080, "True");
        let spec = named.spec.as_mut().expect("a spec");
        (spec.hostname, spec.subdomain) = (Some("db-0".to_owned()), Some("s".to_owned()));
        let hostname =
            |pod: &Pod| endpoint(&service(json!(1)), pod, Family::V4).expect("an endpoint").hostname;
        assert_eq!(hostname(&named).as_deref(), Some("db-0"));
        named.spec.as_mut().expect("a spec").subdomain = Some("other".to_owned());
        assert_eq!(hostname(&named), None);
    }

    #[test]
    fn a_pod_without_an_address_is_no_endpoint_and_no_pods_make_an_empty_slice() {
        let slices = wanted_slices(&service(json!(8080)), &[pod("p", "", 1, "True")]);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0].endpoints.as_deref(), Some(&[][..]));
    }
}

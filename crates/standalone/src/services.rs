//! Virtual addresses of Services, kept in force in every namespace of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use maille_net::service::{self, Transport, VirtualPort};
use maille_net::{NetError, NetNs};
use parking_lot::Mutex;

use crate::address::{SERVICE_NETWORK, SERVICE_NETWORK_V6, is_dual_stack};
use crate::cluster::Cluster;

/// Changes that come together are applied together; well below what a person or a rollout notices.
const GATHER: Duration = Duration::from_millis(10);

/// The wait before what failed is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The label that ties a slice to its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Knows the namespaces and the rules that should be in them.
#[derive(Debug, Default)]
pub(crate) struct Programmer {
    state: Mutex<Programmed>,
}

#[derive(Debug, Default)]
struct Programmed {
    namespaces: BTreeMap<String, NetNs>,
    version: u64,
    ports: Arc<Vec<VirtualPort>>,
}

impl Programmer {
    /// Puts the present rules in force in a namespace, and all later ones. Blocks.
    pub(crate) fn register(&self, ns: &NetNs) -> Result<(), NetError> {
        self.state.lock().namespaces.insert(ns.name().to_owned(), ns.clone());
        loop {
            let (version, ports) = self.current();
            service::apply(ns, &service_networks(), &ports)?;
            // A change that came meanwhile may have been overwritten just now.
            if self.current().0 == version {
                return Ok(());
            }
        }
    }

    /// Forgets a namespace.
    pub(crate) fn unregister(&self, ns: &NetNs) {
        self.state.lock().namespaces.remove(ns.name());
    }

    fn current(&self) -> (u64, Arc<Vec<VirtualPort>>) {
        let state = self.state.lock();
        (state.version, state.ports.clone())
    }

    /// Follows Services and EndpointSlices for ever.
    pub(crate) async fn run(self: Arc<Self>, cluster: Cluster) {
        let (services, slices) = (cluster.services.subscribe(), cluster.slices.subscribe());
        let mut stale = Vec::new();
        loop {
            tokio::select! {
                _ = services.next() => {}
                _ = slices.next() => {}
                () = tokio::time::sleep(RETRY), if !stale.is_empty() => {}
            }
            tokio::time::sleep(GATHER).await;
            let ports = virtual_ports(&cluster.services.all(), &cluster.slices.all());
            if ports != *self.current().1 {
                let mut state = self.state.lock();
                state.version += 1;
                state.ports = Arc::new(ports);
                stale = state.namespaces.values().cloned().collect();
            }
            stale = self.apply_to(stale).await;
        }
    }

    /// Puts the present rules in force in these namespaces; answers those where it has to be tried again.
    async fn apply_to(&self, namespaces: Vec<NetNs>) -> Vec<NetNs> {
        let ports = self.current().1;
        let work = namespaces.into_iter().map(|ns| {
            let ports = ports.clone();
            tokio::task::spawn_blocking(move || match service::apply(&ns, &service_networks(), &ports) {
                Err(error) if ns.exists() => {
                    tracing::warn!(namespace = ns.name(), %error, "Service rules not updated, will try again");
                    Some(ns)
                }
                _ => None,
            })
        });
        let failed = futures::future::join_all(work).await;
        failed.into_iter().filter_map(|result| result.ok().flatten()).collect()
    }
}

fn service_networks() -> Vec<IpNet> {
    let v6 = is_dual_stack().then(|| SERVICE_NETWORK_V6.into());
    std::iter::once(SERVICE_NETWORK.into()).chain(v6).collect()
}

/// Every port of every virtual address with its ready endpoints, which are of the same family.
pub(crate) fn virtual_ports(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Vec<VirtualPort> {
    let mut by_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        if let Some(service) = slice.labels().get(SERVICE_NAME) {
            let key = (slice.namespace().unwrap_or_default(), service.clone());
            by_service.entry(key).or_default().push(slice);
        }
    }
    let mut ports = Vec::new();
    for service in services {
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        let Some(spec) = &service.spec else { continue };
        // Headless Services have none; those that only name another host neither.
        let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let addresses: BTreeSet<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        for port in spec.ports.iter().flatten() {
            let (Some(transport), Ok(number)) =
                (transport(port.protocol.as_deref()), u16::try_from(port.port))
            else {
                continue;
            };
            let name = port.name.clone().unwrap_or_default();
            let endpoints = endpoints(slices, &name, transport);
            ports.extend(addresses.iter().map(|address| VirtualPort {
                address: *address,
                transport,
                port: number,
                label: format!("{}/{}:{name}", key.0, key.1),
                endpoints:
                    endpoints.iter().filter(|(ip, _)| ip.is_ipv4() == address.is_ipv4()).copied().collect(),
            }));
        }
    }
    ports.sort();
    // Two claims on one address and port would make the whole transaction fail.
    ports.dedup_by_key(|p| (p.address, p.transport, p.port));
    ports
}

fn endpoints(slices: &[&EndpointSlice], port: &str, transport: Transport) -> Vec<(IpAddr, u16)> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let numbers = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| p.name.as_deref().unwrap_or_default() == port)
            .filter(|p| self::transport(p.protocol.as_deref()) == Some(transport))
            .filter_map(|p| u16::try_from(p.port?).ok());
        for number in numbers {
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                let addresses = endpoint.addresses.iter().filter(|_| ready);
                found.extend(addresses.filter_map(|a| a.parse().ok()).map(|ip| (ip, number)));
            }
        }
    }
    found.into_iter().collect()
}

fn transport(protocol: Option<&str>) -> Option<Transport> {
    match protocol {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ready_endpoints_of_the_named_port_are_used() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:10:96::9"], "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}
        }))
        .unwrap();
        let headless: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}
        }))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": [
                {"addresses": ["10.244.1.2"], "conditions": {"ready": true}},
                {"addresses": ["10.244.1.3"], "conditions": {"ready": false}},
                {"addresses": ["10.244.1.4"]}]
        }))
        .unwrap();
        let slice6: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv6",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["fd00:10:244::102"], "conditions": {"ready": true}}]
        }))
        .unwrap();
        let slices = [Arc::new(slice), Arc::new(slice6)];
        let ports = virtual_ports(&[Arc::new(service), Arc::new(headless)], &slices);
        let [two, four, six] =
            ["10.244.1.2", "10.244.1.4", "fd00:10:244::102"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(ports.len(), 4);
        let v6: Vec<_> = ports[2..].iter().map(|p| (p.address.is_ipv6(), p.endpoints.clone())).collect();
        assert_eq!(v6, [(true, vec![(six, 8080)]), (true, vec![])]);
        assert_eq!(ports[0].endpoints, [(two, 8080), (four, 8080)]);
        assert_eq!(
            (ports[1].transport, &ports[1].endpoints[..]),
            (Transport::Udp, &[(two, 5353), (four, 5353)][..])
        );
    }
}

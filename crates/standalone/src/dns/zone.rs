//! What the cluster's names stand for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use arc_swap::ArcSwap;
use futures::StreamExt;
use kube::runtime::{reflector, watcher};
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::core::v1::Service;
use maille_config::k8s::api::discovery::v1::EndpointSlice;
use maille_core::CLUSTER_DOMAIN;

use super::external::{ExternalName, ExternalNames};

/// One record, as much as the cluster needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// Another name (ExternalName).
    Alias(String),
    /// A named port: number, and the name it is at.
    Port(u16, String),
    /// The name that an address has.
    Name(String),
}

/// All names of the cluster; lower case, without the final dot.
#[derive(Debug, Default)]
pub struct Zone {
    records: HashMap<String, Vec<Record>>,
    /// Names that have no records but names below them: they exist (RFC 8020).
    branches: HashSet<String>,
    /// Names outside the cluster's domain.
    external: ExternalNames,
    /// Names by address, for questions the other way round.
    by_address: HashMap<IpAddr, String>,
}

impl Zone {
    /// The zone of these objects.
    pub fn build<'a>(
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut of_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            if let Some(service) = slice.labels().get("kubernetes.io/service-name") {
                let key = (slice.namespace().unwrap_or_default(), service.clone());
                of_service.entry(key).or_default().push(slice);
            }
        }
        let mut zone = Self::default();
        zone.branches.insert(CLUSTER_DOMAIN.to_owned());
        let mut services: Vec<&Service> = services.collect();
        // The oldest first: it keeps a name outside the cluster that a newer one asks for as well.
        services.sort_by_cached_key(|service| {
            (service.creation_timestamp().map(|at| at.0), service.namespace(), service.name_any())
        });
        let namespaces: BTreeSet<String> = services
            .iter()
            .filter_map(|service| service.namespace())
            .map(|name| name.to_lowercase())
            .collect();
        for service in services {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            let name = format!("{}.{}.svc.{CLUSTER_DOMAIN}", key.1, key.0).to_lowercase();
            zone.add_service(service, &name, of_service.get(&key).map_or(&[][..], Vec::as_slice));
            let records = zone.records.get(&name).map_or(&[][..], Vec::as_slice);
            zone.external.add(service, records, &namespaces);
        }
        zone
    }

    fn add_service(&mut self, service: &Service, name: &str, slices: &[&EndpointSlice]) {
        let name = name.to_owned();
        let Some(spec) = &service.spec else { return };
        if let Some(external) =
            spec.external_name.as_ref().filter(|_| spec.type_.as_deref() == Some("ExternalName"))
        {
            self.add(name, Record::Alias(external.trim_end_matches('.').to_lowercase()));
            return;
        }
        let virtual_addresses: Vec<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .chain(&spec.cluster_ip)
            .filter_map(|address| address.parse().ok())
            .collect();
        self.branch(&name);
        if virtual_addresses.is_empty() {
            self.add_headless(&name, spec.publish_not_ready_addresses == Some(true), slices);
            return;
        }
        for address in virtual_addresses {
            self.by_address.insert(address, name.clone());
            self.add(name.clone(), Record::Address(address));
        }
        for port in spec.ports.iter().flatten() {
            if let (Some(port_name), Ok(number)) = (&port.name, u16::try_from(port.port)) {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                let srv = format!("_{}._{protocol}.{name}", port_name.to_lowercase());
                self.add(srv, Record::Port(number, name.clone()));
            }
        }
    }

    /// The Service's name stands for all endpoints, and each has a name below it: its Pod's host name, or its address with
    /// dashes (specification section 2.4). A named port is a port of each of them.
    fn add_headless(&mut self, name: &str, publish_unready: bool, slices: &[&EndpointSlice]) {
        for slice in slices {
            for endpoint in slice.endpoints.iter().flatten() {
                let ready =
                    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
                if !ready && !publish_unready {
                    continue;
                }
                let addresses =
                    endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                for address in addresses {
                    let label = match &endpoint.hostname {
                        Some(hostname) => hostname.to_lowercase(),
                        None => address.to_string().replace(['.', ':'], "-"),
                    };
                    let own = format!("{label}.{name}");
                    self.add(name.to_owned(), Record::Address(address));
                    self.add(own.clone(), Record::Address(address));
                    if endpoint.hostname.is_some() {
                        self.by_address.insert(address, own.clone());
                    }
                    for port in slice.ports.iter().flatten() {
                        let port_name = port.name.as_deref().unwrap_or_default().to_lowercase();
                        let number = port.port.and_then(|number| u16::try_from(number).ok());
                        if let (Some(number), false) = (number, port_name.is_empty()) {
                            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                            let srv = format!("_{port_name}._{protocol}.{name}");
                            self.add(srv, Record::Port(number, own.clone()));
                        }
                    }
                }
            }
        }
    }

    fn add(&mut self, name: String, record: Record) {
        self.branch(&name);
        let records = self.records.entry(name).or_default();
        if !records.contains(&record) {
            records.push(record);
        }
    }

    /// Makes the names above `name` exist.
    fn branch(&mut self, name: &str) {
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if !parent.ends_with(CLUSTER_DOMAIN) || !self.branches.insert(parent.to_owned()) {
                break;
            }
            rest = parent;
        }
        self.branches.insert(name.to_owned());
    }

    /// The records of `name` (lower case, no final dot); `None` if there is no such name.
    pub(super) fn lookup(&self, name: &str) -> Option<Vec<Record>> {
        if let Some(records) = self.records.get(name) {
            return Some(records.clone());
        }
        if self.branches.contains(name) {
            return Some(Vec::new());
        }
        pod_address(name).map(|address| vec![Record::Address(address)])
    }

    /// The name of the Service or Pod at the address that `name` (lower case, no final dot) is the reverse of.
    pub(super) fn reverse(&self, name: &str) -> Option<Vec<Record>> {
        let named = self.by_address.get(&reversed(name)?)?;
        Some(vec![Record::Name(named.clone())])
    }

    /// What a Service has under a name outside the cluster's domain (lower case, no final dot).
    pub(super) fn external(&self, name: &str) -> Option<&ExternalName> {
        self.external.get(name)
    }

    /// Whether `name` is in the cluster's own domain.
    pub(super) fn is_own(name: &str) -> bool {
        name.strip_suffix(CLUSTER_DOMAIN).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// `10-244-0-7.<namespace>.pod.<domain>` says its own address.
fn pod_address(name: &str) -> Option<IpAddr> {
    let rest = name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".pod.")?;
    let (dashed, namespace) = rest.split_once('.')?;
    if namespace.is_empty() || namespace.contains('.') {
        return None;
    }
    // With two dashes in a row, or other than three, it is IPv6, as CoreDNS reads it.
    let is_v4 = dashed.matches('-').count() == 3 && !dashed.contains("--");
    let address = dashed.replace('-', if is_v4 { "." } else { ":" });
    if is_v4 { address.parse().ok().map(IpAddr::V4) } else { address.parse().ok().map(IpAddr::V6) }
}

/// The address of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = digits.split('.').map(|octet| octet.parse().ok()).collect::<Option<_>>()?;
        let [d, c, b, a] = octets.try_into().ok()?;
        return Some(IpAddr::from([a, b, c, d]));
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0_u32;
    for nibble in nibbles.split('.') {
        let digit = u128::from_str_radix(nibble, 16).ok().filter(|_| nibble.len() == 1 && count < 32)?;
        bits |= digit << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from_bits(bits).into())
}

/// Keeps `zone` as the API's Services and EndpointSlices are.
pub(super) async fn follow(client: Client, zone: &ArcSwap<Zone>) {
    let (services, service_writer) = reflector::store::<Service>();
    let (slices, slice_writer) = reflector::store::<EndpointSlice>();
    let config = watcher::Config::default;
    let mut changes = futures::stream::select(
        reflector::reflector(service_writer, watcher::watcher(Api::all(client.clone()), config()))
            .map(|event| event.map(|_| ()))
            .boxed(),
        reflector::reflector(slice_writer, watcher::watcher(Api::all(client), config()))
            .map(|event| event.map(|_| ()))
            .boxed(),
    );
    let mut told = Vec::new();
    while let Some(change) = changes.next().await {
        if let Err(error) = change {
            tracing::debug!(%error, "watch interrupted; names stay as they are");
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            continue;
        }
        let (services, slices) = (services.state(), slices.state());
        let next = Zone::build(services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref));
        if next.external.problems != told {
            told.clone_from(&next.external.problems);
            told.iter().for_each(|problem| tracing::warn!("{problem}"));
        }
        zone.store(next.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone() -> Zone {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "web", "namespace": "shop"},
             "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:10:96::7"],
                      "ports": [{"name": "http", "port": 80}]}},
            {"metadata": {"name": "db", "namespace": "shop"},
             "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}},
            {"metadata": {"name": "ext", "namespace": "shop"},
             "spec": {"type": "ExternalName", "externalName": "Example.org."}}
        ]))
        .expect("services");
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"addressType": "IPv4",
             "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
             "ports": [{"name": "sql", "port": 15432, "protocol": "TCP"}],
             "endpoints": [
                {"addresses": ["10.244.0.3"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}]},
            {"addressType": "IPv6",
             "metadata": {"name": "db-2", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
             "endpoints": [
                {"addresses": ["fd00::3"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["fd00::5"], "conditions": {"ready": true}}]}
        ]))
        .expect("slices");
        Zone::build(services.iter(), slices.iter())
    }

    #[test]
    fn a_service_has_its_addresses_under_the_external_name_it_asks_for() {
        let annotations = |name: &str| json!({"external-dns.alpha.kubernetes.io/hostname": name});
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "late", "namespace": "a", "creationTimestamp": "2026-02-01T00:00:00Z",
                          "annotations": annotations("api.example.com")},
             "spec": {"clusterIP": "10.96.0.9"}},
            {"metadata": {"name": "early", "namespace": "b", "creationTimestamp": "2026-01-01T00:00:00Z",
                          "annotations": annotations("api.example.com,x.default.svc.cluster.local")},
             "spec": {"clusterIP": "None"}},
            {"metadata": {"name": "virtual", "namespace": "b", "annotations": annotations("v.example.com,late.a,v.other")},
             "spec": {"clusterIP": "10.96.0.7"}}
        ]))
        .expect("services");
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"addressType": "IPv4",
             "metadata": {"name": "e", "namespace": "b", "labels": {"kubernetes.io/service-name": "early"}},
             "endpoints": [
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}]}
        ]))
        .expect("slices");
        let zone = Zone::build(services.iter(), slices.iter());
        let records = |name: &str| zone.external(name).map(|found| found.records.clone());
        assert_eq!(records("api.example.com"), Some(vec![address("10.244.0.3")]), "headless, the older one");
        assert_eq!(records("v.example.com"), Some(vec![address("10.96.0.7")]));
        assert_eq!(records("example.com"), None);
        assert_eq!(records("late.a"), None, "a is a namespace");
        assert_eq!(records("v.other"), Some(vec![address("10.96.0.7")]));
        assert_eq!(zone.lookup("x.default.svc.cluster.local"), None, "not a name to take");
    }

    fn address(text: &str) -> Record {
        Record::Address(text.parse().expect("an address"))
    }

    #[test]
    fn names_of_services_and_pods() {
        let zone = zone();
        let own = |name: &str| zone.lookup(&format!("{name}.cluster.local"));
        assert_eq!(own("web.shop.svc"), Some(vec![address("10.96.0.7"), address("fd00:10:96::7")]));
        let ready = ["10.244.0.3", "fd00::3", "fd00::5"].map(address).to_vec();
        assert_eq!(own("db.shop.svc"), Some(ready), "only ready endpoints");
        assert_eq!(own("db-0.db.shop.svc"), Some(vec![address("10.244.0.3"), address("fd00::3")]));
        assert_eq!(own("fd00--5.db.shop.svc"), Some(vec![address("fd00::5")]), "who has no other name");
        let port = Record::Port(15432, "db-0.db.shop.svc.cluster.local".into());
        assert_eq!(own("_sql._tcp.db.shop.svc"), Some(vec![port]), "the port behind, at each endpoint");
        assert_eq!(own("ext.shop.svc"), Some(vec![Record::Alias("example.org".into())]));
        assert_eq!(
            own("_http._tcp.web.shop.svc"),
            Some(vec![Record::Port(80, "web.shop.svc.cluster.local".into())])
        );
        assert_eq!(own("10-244-0-9.shop.pod"), Some(vec![address("10.244.0.9")]));
        assert_eq!(own("fd00-10-244--109.shop.pod"), Some(vec![address("fd00:10:244::109")]));
    }

    #[test]
    fn addresses_have_the_names_of_their_services_and_pods() {
        let zone = zone();
        let name = |name: &str| Some(vec![Record::Name(format!("{name}.cluster.local"))]);
        assert_eq!(zone.reverse("7.0.96.10.in-addr.arpa"), name("web.shop.svc"));
        assert_eq!(zone.reverse("3.0.244.10.in-addr.arpa"), name("db-0.db.shop.svc"));
        let v6 = format!("3.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(zone.reverse(&v6), name("db-0.db.shop.svc"));
        for unknown in [
            "4.0.244.10.in-addr.arpa",
            "1.2.3.in-addr.arpa",
            "x.ip6.arpa",
            "in-addr.arpa",
            &format!("0.{v6}"),
        ] {
            assert_eq!(zone.reverse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_has_names_below_it_exists_and_the_rest_does_not() {
        let zone = zone();
        for there in [
            "svc.cluster.local",
            "shop.svc.cluster.local",
            "cluster.local",
            "_tcp.web.shop.svc.cluster.local",
        ] {
            assert_eq!(zone.lookup(there), Some(Vec::new()), "{there}");
        }
        for absent in
            ["nope.shop.svc.cluster.local", "web.other.svc.cluster.local", "x.shop.pod.cluster.local"]
        {
            assert_eq!(zone.lookup(absent), None, "{absent}");
        }
        assert!(
            Zone::is_own("a.cluster.local")
                && !Zone::is_own("acluster.local")
                && !Zone::is_own("example.org")
        );
    }
}

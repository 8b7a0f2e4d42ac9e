//! Kubernetes' objects as the mesh reads them: only the fields it needs, so that the rest is dropped while
//! decoding and never kept.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use maille_control::world;
use maille_core::{NamespacedName, PortProtocol, Selector};
use serde::Deserialize;

macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $group:literal, $api_version:literal, $version:literal, $plural:literal, $scope:ident,
     { $($field:ident: $type:ty),* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct $name {
            pub(crate) metadata: ObjectMeta,
            $(pub(crate) $field: $type,)*
        }

        impl k8s_openapi::Resource for $name {
            const API_VERSION: &'static str = $api_version;
            const GROUP: &'static str = $group;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = k8s_openapi::$scope;
        }

        impl k8s_openapi::Metadata for $name {
            type Ty = ObjectMeta;
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

kind!(
    /// A Pod.
    Pod, "Pod", "", "v1", "v1", "pods", NamespaceResourceScope,
    { spec: PodSpec, status: PodStatus }
);
kind!(
    /// A Service.
    Service, "Service", "", "v1", "v1", "services", NamespaceResourceScope,
    { spec: ServiceSpec }
);
kind!(
    /// An EndpointSlice.
    EndpointSlice, "EndpointSlice", "discovery.k8s.io", "discovery.k8s.io/v1", "v1", "endpointslices",
    NamespaceResourceScope,
    { address_type: String, endpoints: Option<Vec<Endpoint>>, ports: Option<Vec<EndpointPort>> }
);
kind!(
    /// A Namespace.
    Namespace, "Namespace", "", "v1", "v1", "namespaces", ClusterResourceScope, {}
);
kind!(
    /// A ConfigMap.
    ConfigMap, "ConfigMap", "", "v1", "v1", "configmaps", NamespaceResourceScope,
    { data: Option<BTreeMap<String, String>> }
);
kind!(
    /// A PeerAuthentication whose spec is not read yet.
    PeerAuthentication, "PeerAuthentication", "security.istio.io", "security.istio.io/v1", "v1",
    "peerauthentications", NamespaceResourceScope,
    { spec: serde_json::Value }
);
kind!(
    /// An AuthorizationPolicy whose spec and status are not read yet.
    AuthorizationPolicy, "AuthorizationPolicy", "security.istio.io", "security.istio.io/v1", "v1",
    "authorizationpolicies", NamespaceResourceScope,
    { spec: serde_json::Value, status: serde_json::Value }
);
kind!(
    /// A RequestAuthentication whose spec and status are not read yet.
    RequestAuthentication, "RequestAuthentication", "security.istio.io", "security.istio.io/v1", "v1",
    "requestauthentications", NamespaceResourceScope,
    { spec: serde_json::Value, status: serde_json::Value }
);
kind!(
    /// A DestinationRule whose spec is not read yet.
    DestinationRule, "DestinationRule", "networking.istio.io", "networking.istio.io/v1", "v1",
    "destinationrules", NamespaceResourceScope,
    { spec: serde_json::Value }
);
kind!(
    /// A ServiceEntry whose spec and status are not read yet.
    ServiceEntry, "ServiceEntry", "networking.istio.io", "networking.istio.io/v1", "v1",
    "serviceentries", NamespaceResourceScope,
    { spec: serde_json::Value, status: serde_json::Value }
);
kind!(
    /// A WorkloadEntry whose spec is not read yet.
    WorkloadEntry, "WorkloadEntry", "networking.istio.io", "networking.istio.io/v1", "v1",
    "workloadentries", NamespaceResourceScope,
    { spec: serde_json::Value }
);
kind!(
    /// A Sidecar whose spec is not read yet.
    Sidecar, "Sidecar", "networking.istio.io", "networking.istio.io/v1", "v1",
    "sidecars", NamespaceResourceScope,
    { spec: serde_json::Value }
);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    ports: Option<Vec<ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<String>,
    container_port: i64,
    protocol: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    external_name: Option<String>,
    selector: Option<BTreeMap<String, String>>,
    ports: Option<Vec<ServicePort>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServicePort {
    name: Option<String>,
    port: i64,
    protocol: Option<String>,
    app_protocol: Option<String>,
    target_port: Option<IntOrString>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Endpoint {
    addresses: Vec<String>,
    conditions: Conditions,
    target_ref: Option<TargetRef>,
    hostname: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointPort {
    name: Option<String>,
    port: Option<i64>,
    protocol: Option<String>,
}

/// Namespace and name of an object.
pub(crate) fn name_of(metadata: &ObjectMeta) -> NamespacedName {
    NamespacedName::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|n| *n != 0)
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|a| a.to_canonical())
}

/// The Pod as the mesh sees it; `None` while it has no address of its own, on the host's network, or
/// when its containers have all ended.
pub(crate) fn pod(pod: &Pod) -> Option<world::Pod> {
    let ended = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || pod.spec.host_network == Some(true) {
        return None;
    }
    let several = pod.status.pod_ips.iter().flatten().map(|p| p.ip.as_str());
    let mut addresses: Vec<IpAddr> =
        several.chain(pod.status.pod_ip.as_deref()).filter_map(address).collect();
    let mut seen = Vec::new();
    addresses.retain(|a| {
        !seen.contains(a) && {
            seen.push(*a);
            true
        }
    });
    let host = pod.status.host_ip.as_deref().and_then(address);
    if addresses.is_empty() || addresses.iter().any(|a| Some(*a) == host) {
        return None;
    }
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    // Init containers that stay (native sidecars) are containers like others.
    let staying = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers =
        || pod.spec.containers.iter().chain(pod.spec.init_containers.iter().flatten().filter(staying));
    let named_ports = containers().flat_map(|c| c.ports.iter().flatten()).filter_map(|p| {
        let name = p.name.clone().filter(|_| is_tcp(p.protocol.as_deref()))?;
        Some((name, port(p.container_port)?))
    });
    Some(world::Pod {
        name: name_of(&pod.metadata),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        addresses,
        service_account: match pod.spec.service_account_name.as_deref() {
            None | Some("") => "default".to_owned(),
            Some(account) => account.to_owned(),
        },
        node: pod.spec.node_name.clone().unwrap_or_default(),
        workload_name: workload_name(pod, &labels),
        meshed: containers().any(|c| c.name == "istio-proxy"),
        multiplexes: annotation(&pod.metadata, world::MULTIPLEX_ANNOTATION) == Some("1"),
        ready: pod.status.conditions.iter().flatten().any(|c| c.r#type == "Ready" && c.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        named_ports: named_ports.collect(),
        scrape: scrape(pod),
        labels,
    })
}

fn annotation<'m>(metadata: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Where the pod's metrics are, by the annotations that Prometheus' own examples and Istio use.
fn scrape(pod: &Pod) -> Option<world::Scrape> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let value = |name: &str| {
        annotations.get(&format!("prometheus.io/{name}")).map(|v| v.trim()).filter(|v| !v.is_empty())
    };
    if value("scrape") != Some("true") {
        return None;
    }
    let mut declared = pod.spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let first = || {
        let port = declared.find(|p| is_tcp(p.protocol.as_deref())).map_or(80, |p| p.container_port);
        self::port(port)
    };
    let path = value("path").unwrap_or("/metrics");
    Some(world::Scrape {
        port: value("port").map_or_else(first, |text| text.parse().ok().filter(|n| *n != 0))?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        scheme: match value("scheme") {
            None | Some("http") => "http".to_owned(),
            Some("https") => "https".to_owned(),
            Some(_) => return None,
        },
    })
}

/// The owner people know a pod by: the Deployment or CronJob behind it, else its controller, else itself.
fn workload_name(pod: &Pod, labels: &BTreeMap<String, String>) -> String {
    let owners = pod.metadata.owner_references.iter().flatten();
    let own = || pod.metadata.name.clone().unwrap_or_default();
    let Some(owner) = owners.into_iter().find(|o| o.controller == Some(true)) else { return own() };
    let hash = labels.get("pod-template-hash").map(String::as_str);
    maille_core::workload_of(&owner.kind, &owner.name, hash).to_owned()
}

/// The Service as the mesh sees it; `None` for an ExternalName without one.
pub(crate) fn service(service: &Service) -> Option<world::Service> {
    let spec = &service.spec;
    let external_name = match spec.r#type.as_deref() {
        // A name may end in a dot, as in DNS.
        Some("ExternalName") => {
            let name = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.');
            Some(name.to_ascii_lowercase()).filter(|name| !name.is_empty()).map(Some)?
        }
        _ => None,
    };
    let is_external = external_name.is_some();
    let headless = !is_external && spec.cluster_ip.as_deref() == Some("None");
    let several = spec.cluster_ips.iter().flatten().map(String::as_str);
    let several = several.chain(spec.cluster_ip.as_deref()).filter(|_| !is_external);
    let mut addresses: Vec<IpAddr> = several.filter_map(address).collect();
    let first_family = spec.ip_families.iter().flatten().next();
    let prefers_ipv6 = match first_family {
        Some(family) => family == "IPv6",
        None => addresses.first().is_some_and(IpAddr::is_ipv6),
    };
    addresses.sort_unstable();
    addresses.dedup();
    let list = |key: &str| {
        let value = annotation(&service.metadata, key);
        let names = value.into_iter().flat_map(|v| v.split(',')).map(str::trim).filter(|n| !n.is_empty());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let ports = spec.ports.iter().flatten().filter(|p| is_tcp(p.protocol.as_deref())).filter_map(|p| {
        let number = port(p.port)?;
        Some(world::ServicePort {
            number,
            name: p.name.clone().unwrap_or_default(),
            protocol: PortProtocol::of_port(p.app_protocol.as_deref(), p.name.as_deref(), number),
            target: match &p.target_port {
                Some(IntOrString::String(name)) => world::TargetPort::Name(name.clone()),
                Some(IntOrString::Int(0)) | None => world::TargetPort::Number(number),
                Some(IntOrString::Int(target)) => world::TargetPort::Number(port((*target).into())?),
            },
        })
    });
    Some(world::Service {
        name: name_of(&service.metadata),
        addresses,
        headless,
        external_name,
        prefers_ipv6,
        export_to: list("networking.istio.io/exportTo"),
        ports: ports.collect(),
        // Kubernetes ignores the selector of an ExternalName.
        selector: spec.selector.clone().filter(|s| !is_external && !s.is_empty()).map(Selector::new),
        created_s: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
        service_accounts: list("alpha.istio.io/kubernetes-serviceaccounts"),
        canonical_accounts: list("alpha.istio.io/canonical-serviceaccounts"),
    })
}

/// The EndpointSlice as the mesh sees it; `None` if it belongs to no Service or holds names.
pub(crate) fn slice(slice: &EndpointSlice) -> Option<world::EndpointSlice> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels.get("kubernetes.io/service-name").filter(|name| !name.is_empty())?.clone();
    if slice.address_type == "FQDN" {
        return None;
    }
    let ports = slice.ports.iter().flatten().filter(|p| is_tcp(p.protocol.as_deref()));
    let ports = ports.filter_map(|p| Some((p.name.clone().unwrap_or_default(), port(p.port?)?)));
    let endpoints = slice.endpoints.iter().flatten().map(|e| world::SliceEndpoint {
        addresses: e.addresses.iter().filter_map(|a| address(a)).collect(),
        // Kubernetes: an unknown state is to be taken as ready.
        ready: e.conditions.ready.unwrap_or(true),
        pod: e.target_ref.as_ref().filter(|t| t.kind == "Pod").map(|t| t.name.clone()),
        hostname: e.hostname.clone().filter(|name| !name.is_empty()).map(|name| name.to_ascii_lowercase()),
    });
    Some(world::EndpointSlice {
        name: name_of(&slice.metadata),
        service,
        ports: ports.collect(),
        endpoints: endpoints.filter(|e| !e.addresses.is_empty()).collect(),
    })
}

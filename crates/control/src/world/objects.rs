//! The objects the mesh is derived from, reduced to what facts need.
//!
//! Whoever feeds the world fills these from Kubernetes' objects; nothing else of them is kept in memory.

use std::net::IpAddr;

use maille_core::{Labels, NamespacedName, PortProtocol, Selector};

/// A Pod that has an address of its own. Pods on the host's network, without an address, or whose containers
/// have all ended are not part of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Distinguishes it from an earlier Pod of the same name.
    pub uid: String,
    /// Its addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// The account it runs as; `default` if it names none.
    pub service_account: String,
    /// The node that it runs on; empty if it does not say.
    pub node: String,
    /// The owner people know it by (Deployment …), else its own name.
    pub workload_name: String,
    /// A sidecar stands in front of it.
    pub meshed: bool,
    /// That sidecar is Maille's (annotation [`MULTIPLEX_ANNOTATION`], set by injection).
    pub multiplexes: bool,
    /// It says that it is ready; ServiceEntries that select it want to know, Services have their slices.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// Its named container ports, for services that say `targetPort: <name>`.
    pub named_ports: Vec<(String, u16)>,
    /// Where it wants its metrics to be read, if it does.
    pub scrape: Option<Scrape>,
}

/// What the annotations `prometheus.io/…` of a Pod say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrape {
    /// `prometheus.io/port`, else the first container port, else 80.
    pub port: u16,
    /// `prometheus.io/path`, else `/metrics`.
    pub path: String,
    /// `prometheus.io/scheme`: `http` or `https`.
    pub scheme: String,
}

/// Annotation, of value `1`, of Pods whose sidecar takes many streams over one connection.
pub const MULTIPLEX_ANNOTATION: &str = "maille.dev/multiplex";

/// Label with which the injector, or the user, says how a pod is reached (reference mtls 2.1).
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

impl Pod {
    /// Whether its endpoints are to be reached with Istio's mutual TLS (tlsMode is exactly `istio`).
    pub fn takes_mutual_tls(&self) -> bool {
        self.labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == "istio")
    }

    /// The number of a port that a service targets here.
    pub fn port(&self, target: &TargetPort) -> Option<u16> {
        match target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self.named_ports.iter().find(|(n, _)| n == name).map(|(_, p)| *p),
        }
    }
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its virtual addresses; empty if headless or external.
    pub addresses: Vec<IpAddr>,
    /// The host that it is another name of (`type: ExternalName`); it has no selector then, and no slices.
    pub external_name: Option<String>,
    /// IPv6 is the first of its address families: endpoints of both are reached there.
    pub prefers_ipv6: bool,
    /// Namespaces that see it (annotation `networking.istio.io/exportTo`); none is all.
    pub export_to: Vec<String>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Which pods are behind it; `None` when its endpoints are written by hand.
    pub selector: Option<Selector>,
    /// Creation time, Unix seconds: the oldest service decides a shared port's protocol (PA-17).
    pub created_s: i64,
    /// Service accounts of annotation `alpha.istio.io/kubernetes-serviceaccounts`, in its namespace (SN-1).
    pub service_accounts: Vec<String>,
    /// Names of annotation `alpha.istio.io/canonical-serviceaccounts`, verbatim (SN-1).
    pub canonical_accounts: Vec<String>,
}

impl Service {
    /// Whether it selects pods with these labels in its own namespace.
    pub fn selects(&self, pod: &Pod) -> bool {
        self.name.namespace == pod.name.namespace
            && self.selector.as_ref().is_some_and(|s| !s.is_empty() && s.selects(&pod.labels))
    }
}

/// One TCP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's port.
    pub number: u16,
    /// Its name; empty if it has none.
    pub name: String,
    /// How its bytes are to be understood.
    pub protocol: PortProtocol,
    /// The port at the workload.
    pub target: TargetPort,
}

/// `targetPort`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The same at every workload.
    Number(u16),
    /// Each workload's container port of this name.
    Name(String),
}

/// One EndpointSlice of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The Service it belongs to, in the same namespace.
    pub service: String,
    /// Port name (empty if none) and number, TCP only.
    pub ports: Vec<(String, u16)>,
    /// What stands behind the service.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses; all are the same endpoint.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes connections now.
    pub ready: bool,
    /// The name of the Pod it is, if the slice says so.
    pub pod: Option<String>,
    /// Its name below that of a headless service, as Pods of a StatefulSet have one.
    pub hostname: Option<String>,
}

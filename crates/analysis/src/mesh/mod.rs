//! The objects as the analyzers look at them: typed, and joined where they refer to each other.

pub(crate) mod policy;
mod service;
mod workload;

use std::collections::{BTreeMap, BTreeSet};

use maille_config::istio::{
    AuthorizationPolicy, DestinationRule, PeerAuthentication, RequestAuthentication, ServiceEntry, Sidecar,
    WorkloadEntry,
};
use maille_config::mesh::{self, CONFIG_KEY, CONFIG_MAP};
use maille_config::mtls::{self, ResolvedMtls};
use maille_core::Labels;
use serde::de::DeserializeOwned;

use crate::resource::Resource;

pub(crate) use policy::Policy;
pub(crate) use service::{Service, ServicePort};
pub(crate) use workload::Workload;

/// What the objects themselves do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of mesh-wide policy.
    pub root_namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: String,
    /// The objects are all that a mesh has, not only some files.
    pub complete: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_namespace: maille_core::ROOT_NAMESPACE.to_owned(),
            trust_domain: maille_core::DEFAULT_TRUST_DOMAIN.to_owned(),
            complete: false,
        }
    }
}

impl Settings {
    /// With what the mesh's configuration among the objects says, if it is there and right. It lives in the namespace of
    /// the control plane, which is `root_namespace` as it was given.
    pub fn configured(mut self, resources: &[Resource]) -> Self {
        let config = resources.iter().rfind(|r| {
            r.kind() == "ConfigMap" && r.name() == CONFIG_MAP && r.namespace() == Some(&self.root_namespace)
        });
        let text = config.and_then(|r| r.value.get("data")?.get(CONFIG_KEY)?.as_str());
        if let Some(Ok(config)) = text.map(mesh::check) {
            self.root_namespace = config.root_namespace;
            if let Some(trust_domain) = config.trust_domain {
                self.trust_domain = trust_domain.to_string();
            }
        }
        self
    }
}

/// An object with its type.
#[derive(Debug)]
pub(crate) struct Typed<'r, T> {
    /// As it was written.
    pub(crate) resource: &'r Resource,
    /// As its type reads it.
    pub(crate) object: T,
}

/// A RequestAuthentication.
pub(crate) type Authentication<'r> = Typed<'r, RequestAuthentication>;

/// Everything there is.
#[derive(Debug)]
pub(crate) struct Mesh<'r> {
    /// What the objects do not say.
    pub(crate) settings: Settings,
    /// All objects.
    pub(crate) resources: &'r [Resource],
    /// Labels of all namespaces that exist.
    pub(crate) namespaces: BTreeMap<String, Labels>,
    /// Pods, and what makes Pods.
    pub(crate) workloads: Vec<Workload<'r>>,
    /// Services of Kubernetes.
    pub(crate) services: Vec<Service<'r>>,
    /// (namespace, name) of all ServiceAccounts, those of Kubernetes' own making included.
    pub(crate) accounts: BTreeSet<(String, String)>,
    /// PeerAuthentications.
    pub(crate) peer_authentications: Vec<Typed<'r, PeerAuthentication>>,
    /// AuthorizationPolicies.
    pub(crate) policies: Vec<Policy<'r>>,
    /// RequestAuthentications.
    pub(crate) request_authentications: Vec<Authentication<'r>>,
    /// DestinationRules.
    pub(crate) destination_rules: Vec<Typed<'r, DestinationRule>>,
    /// ServiceEntries.
    pub(crate) service_entries: Vec<Typed<'r, ServiceEntry>>,
    /// WorkloadEntries.
    pub(crate) workload_entries: Vec<Typed<'r, WorkloadEntry>>,
    /// Sidecars.
    pub(crate) sidecars: Vec<Typed<'r, Sidecar>>,
    modes: Vec<ResolvedMtls>,
}

impl<'r> Mesh<'r> {
    /// Reads the objects. One that cannot be read plays no part: the schema analyzer reports it.
    pub(crate) fn new(resources: &'r [Resource], settings: Settings) -> Self {
        let namespaces = namespaces(resources, &settings);
        let workloads = workload::all(resources, &namespaces);
        let accounts = accounts(resources, &namespaces, &workloads);
        let peer_authentications: Vec<Typed<'_, PeerAuthentication>> =
            typed(resources, "security.istio.io", "PeerAuthentication");
        let only: Vec<PeerAuthentication> = peer_authentications.iter().map(|p| p.object.clone()).collect();
        let mode = |w: &Workload<'_>| mtls::resolve(&only, &settings.root_namespace, &w.namespace, &w.labels);
        let modes = workloads.iter().map(mode).collect();
        let policies = typed::<AuthorizationPolicy>(resources, "security.istio.io", "AuthorizationPolicy");
        let policies = policies
            .into_iter()
            .map(|typed| Policy::new(typed, &workloads, &settings.root_namespace))
            .collect();
        Self {
            namespaces,
            services: service::all(resources),
            accounts,
            policies,
            request_authentications: typed(resources, "security.istio.io", "RequestAuthentication"),
            destination_rules: typed(resources, "networking.istio.io", "DestinationRule"),
            service_entries: typed(resources, "networking.istio.io", "ServiceEntry"),
            workload_entries: typed(resources, "networking.istio.io", "WorkloadEntry"),
            sidecars: typed(resources, "networking.istio.io", "Sidecar"),
            peer_authentications,
            workloads,
            modes,
            resources,
            settings,
        }
    }

    /// Objects of a kind.
    pub(crate) fn of_kind(&self, group: &str, kind: &str) -> impl Iterator<Item = &'r Resource> {
        let resources = self.resources;
        resources
            .iter()
            .filter(move |resource| resource.kind() == kind && resource.group() == group)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// What a workload's ports accept.
    pub(crate) fn modes_of(&self, workload: usize) -> Option<&ResolvedMtls> {
        self.modes.get(workload)
    }

    /// Services in front of a workload.
    pub(crate) fn services_of<'m>(
        &'m self,
        workload: &'m Workload<'_>,
    ) -> impl Iterator<Item = &'m Service<'r>> + use<'m, 'r> {
        self.services.iter().filter(|service| service.selects(workload))
    }

    /// (workload port, what it speaks) of the ports that Services declare for a workload.
    pub(crate) fn declared_ports(&self, workload: &Workload<'_>) -> BTreeMap<u16, maille_core::PortProtocol> {
        let mut ports = BTreeMap::new();
        for service in self.services_of(workload) {
            for port in service.ports.iter().filter(|port| port.is_tcp()) {
                if let Some(target) = port.target_of(workload) {
                    ports.entry(target).or_insert_with(|| port.protocol_class());
                }
            }
        }
        ports
    }

    /// Ports on which a workload is known to listen: its containers' and its Services'.
    pub(crate) fn ports_of(&self, workload: &Workload<'_>) -> BTreeSet<u16> {
        let containers = workload.ports.iter().filter(|port| port.tcp).map(|port| port.number);
        containers.chain(self.declared_ports(workload).into_keys()).collect()
    }
}

/// Reads all objects of a kind that can be read.
fn typed<'r, T: DeserializeOwned>(resources: &'r [Resource], group: &str, kind: &str) -> Vec<Typed<'r, T>> {
    let mut all = Vec::new();
    for resource in resources.iter().filter(|r| r.kind() == kind && r.group() == group) {
        if let Ok(object) = serde_json::from_value(resource.value.clone()) {
            all.push(Typed { resource, object });
        }
    }
    all
}

/// Those given, and those that every cluster and every mesh has.
fn namespaces(resources: &[Resource], settings: &Settings) -> BTreeMap<String, Labels> {
    let own = ["default", "kube-system", "kube-public", "kube-node-lease", settings.root_namespace.as_str()];
    let implied = own.into_iter().filter(|_| !settings.complete);
    let mut all: BTreeMap<String, Labels> = implied.map(|name| (name.to_owned(), Labels::new())).collect();
    for resource in resources.iter().filter(|r| r.kind() == "Namespace" && r.group().is_empty()) {
        all.insert(resource.name().to_owned(), resource.metadata("labels"));
    }
    all
}

fn accounts(
    resources: &[Resource],
    namespaces: &BTreeMap<String, Labels>,
    workloads: &[Workload<'_>],
) -> BTreeSet<(String, String)> {
    let written = resources.iter().filter(|r| r.kind() == "ServiceAccount" && r.group().is_empty());
    let written = written.map(|r| (r.namespace().unwrap_or_default().to_owned(), r.name().to_owned()));
    // Every namespace has one of this name.
    let implied = namespaces.keys().map(|namespace| (namespace.clone(), "default".to_owned()));
    let used = workloads.iter().map(|w| (w.namespace.clone(), w.account.clone()));
    written.chain(implied).chain(used).collect()
}

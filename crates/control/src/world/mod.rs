//! The world of objects: an immutable snapshot with indices.
//!
//! Cloning a world costs a few reference counts; a change copies only the maps it touches. Applying an
//! event says which keys changed, so that only the facts that depend on them are derived anew.

mod aliases;
mod allocation;
mod any_address;
mod changes;
mod credentials;
mod event;
mod external;
mod federation;
mod keys;
mod mesh;
mod names;
mod objects;
mod sidecar;
#[cfg(test)]
mod tests;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use maille_config::HostPattern;
use maille_config::istio::{DestinationRule, PeerAuthentication, ServiceEntry};
use maille_core::NamespacedName;

pub(crate) use aliases::Alias;
pub use allocation::Allocation;
pub use any_address::AnyAddress;
pub use changes::{ChangeSet, Key};
pub use credentials::{CredentialData, CredentialSource, Material};
pub use event::{Change, Event};
pub(crate) use external::single_addresses;
pub use external::{OwnedHost, Scope};
pub use federation::Federated;
pub use keys::{KeySource, Keys};
pub use mesh::MeshConfig;
pub use names::{Above, Asked, AskedHost, AskedPort, Claimants};
pub use objects::{
    EndpointSlice, MULTIPLEX_ANNOTATION, Pod, Scrape, Service, ServicePort, SliceEndpoint, TLS_MODE_LABEL,
    TargetPort,
};
pub use sidecar::Sight;
pub use workloads::{Selected, WorkloadEntry};

use crate::facts::{Authentication, Policy};
use crate::revocation::Revocations;

type Named<T> = Arc<BTreeMap<NamespacedName, Arc<T>>>;

/// Everything the mesh is derived from, at one moment.
#[derive(Debug, Clone)]
pub struct World {
    config: Arc<MeshConfig>,
    /// Roots per trust domain, DER.
    roots: Arc<BTreeMap<String, Vec<Vec<u8>>>>,
    /// Who signs certificates of the own trust domain: a fingerprint, or empty.
    signer: Arc<str>,
    /// Keys of JWT-SVIDs of the own trust domain: a JWK Set, or empty.
    own_jwks: Arc<[u8]>,
    pods: Named<Pod>,
    pods_by_address: Arc<BTreeMap<IpAddr, BTreeSet<NamespacedName>>>,
    services: Named<Service>,
    services_by_address: Arc<BTreeMap<IpAddr, NamespacedName>>,
    slices: Named<EndpointSlice>,
    /// Slices by the service they belong to.
    slices_by_service: Arc<BTreeMap<NamespacedName, BTreeSet<NamespacedName>>>,
    /// Slices by the pods they name.
    slices_by_pod: Arc<BTreeMap<NamespacedName, BTreeSet<NamespacedName>>>,
    /// Slices by the addresses of endpoints that name no pod.
    slices_by_address: Arc<BTreeMap<IpAddr, BTreeSet<NamespacedName>>>,
    /// By namespace, then name.
    peer_authentications: Arc<BTreeMap<String, BTreeMap<String, PeerAuthentication>>>,
    policies: Arc<BTreeMap<String, BTreeMap<String, Arc<Policy>>>>,
    authentications: Arc<BTreeMap<String, BTreeMap<String, Arc<Authentication>>>>,
    keys: Arc<keys::KeySets>,
    rules: Arc<BTreeMap<String, BTreeMap<String, Arc<DestinationRule>>>>,
    entries: Named<ServiceEntry>,
    claims: Arc<external::Claims>,
    ports: Arc<any_address::Ports>,
    /// By namespace, then name.
    sidecars: Arc<BTreeMap<String, BTreeMap<String, Arc<sidecar::Sidecar>>>>,
    workload_entries: Named<WorkloadEntry>,
    /// Services that are not for every namespace.
    exporting: Arc<BTreeSet<NamespacedName>>,
    /// Services of type ExternalName by what they are other names of.
    aliases: Arc<BTreeMap<HostPattern, BTreeSet<NamespacedName>>>,
    credentials: Arc<credentials::Credentials>,
    revocations: Arc<Revocations>,
    /// By trust domain.
    federation: Arc<BTreeMap<String, Federated>>,
    listed: Listed,
}

/// Kinds of which all objects have been told at least once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Listed {
    pods: bool,
    services: bool,
    slices: bool,
    peer_authentications: bool,
    policies: bool,
    authentications: bool,
    rules: bool,
    entries: bool,
    sidecars: bool,
    workload_entries: bool,
    config: bool,
    revocations: bool,
    revocation_lists: bool,
    federation: bool,
}

impl World {
    /// A world with settings and nothing else.
    pub fn new(config: MeshConfig) -> Self {
        Self {
            config: Arc::new(config),
            roots: Arc::default(),
            signer: Arc::default(),
            own_jwks: Arc::default(),
            pods: Arc::default(),
            pods_by_address: Arc::default(),
            services: Arc::default(),
            services_by_address: Arc::default(),
            slices: Arc::default(),
            slices_by_service: Arc::default(),
            slices_by_pod: Arc::default(),
            slices_by_address: Arc::default(),
            peer_authentications: Arc::default(),
            policies: Arc::default(),
            authentications: Arc::default(),
            keys: Arc::default(),
            rules: Arc::default(),
            entries: Arc::default(),
            claims: Arc::default(),
            ports: Arc::default(),
            sidecars: Arc::default(),
            workload_entries: Arc::default(),
            exporting: Arc::default(),
            aliases: Arc::default(),
            credentials: Arc::default(),
            revocations: Arc::default(),
            federation: Arc::default(),
            listed: Listed::default(),
        }
    }

    /// Whether all there is has been told, of every kind. Before that, absence means nothing, and nobody may be told
    /// that something does not exist.
    pub fn is_complete(&self) -> bool {
        let Listed { pods, services, slices, peer_authentications, .. } = self.listed;
        let Listed { policies, authentications, rules, entries, config, .. } = self.listed;
        let Listed { sidecars, workload_entries, revocations, revocation_lists, .. } = self.listed;
        let registry = pods && services && slices && rules && entries && sidecars && workload_entries;
        let revoked = revocations && revocation_lists;
        registry && peer_authentications && policies && authentications && config && revoked
    }

    /// What holds for the whole mesh.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// Roots by trust domain, DER.
    pub fn roots(&self) -> &BTreeMap<String, Vec<Vec<u8>>> {
        &self.roots
    }

    /// Who has lost its right before its certificate ends.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Fingerprint of what signs certificates of the own trust domain; empty: whoever signed is fine.
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// Keys of JWT-SVIDs of the own trust domain: a JWK Set, or empty.
    pub fn own_jwks(&self) -> &[u8] {
        &self.own_jwks
    }

    /// A pod by name.
    pub fn pod(&self, name: &NamespacedName) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// The pod that owns an address now. An address on its way from a terminating pod to a new one belongs to
    /// the new one; claimed by two that both live on, it belongs to nobody.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let claimants = self.pods_by_address.get(&address)?;
        let pods = || claimants.iter().filter_map(|name| self.pods.get(name));
        let mut staying = pods().filter(|pod| !pod.terminating);
        match (staying.next(), staying.next()) {
            (Some(only), None) => Some(only),
            (Some(_), Some(_)) => None,
            (None, _) => {
                let mut leaving = pods();
                leaving.next().filter(|_| leaving.next().is_none())
            }
        }
    }

    /// A service by name.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service with this virtual address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.services.get(self.services_by_address.get(&address)?)
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The services of one namespace.
    pub fn services_in<'w>(&'w self, namespace: &'w str) -> impl Iterator<Item = &'w Arc<Service>> {
        in_namespace(&self.services, namespace)
    }

    /// The pods of one namespace.
    pub fn pods_in<'w>(&'w self, namespace: &'w str) -> impl Iterator<Item = &'w Arc<Pod>> {
        in_namespace(&self.pods, namespace)
    }

    /// The slices of a service, in the order of their names.
    pub fn slices_of(&self, service: &NamespacedName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_by_service.get(service);
        names.into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The services in whose slices a pod is an endpoint, by its name or one of these addresses.
    pub fn services_before<'a>(
        &self,
        pod: &NamespacedName,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> BTreeSet<NamespacedName> {
        let by_name = self.slices_by_pod.get(pod).into_iter().flatten();
        let by_address = addresses.into_iter().filter_map(|a| self.slices_by_address.get(a)).flatten();
        let slices = by_name.chain(by_address).filter_map(|name| self.slices.get(name));
        slices.map(|slice| service_of(slice)).collect()
    }

    /// The PeerAuthentications that can concern a namespace: its own and the root namespace's.
    pub fn peer_authentications_for(&self, namespace: &str) -> Vec<PeerAuthentication> {
        let of = |ns: &str| self.peer_authentications.get(ns).into_iter().flat_map(|m| m.values().cloned());
        let mut all: Vec<_> = of(namespace).collect();
        if namespace != self.config.root_namespace {
            all.extend(of(&self.config.root_namespace));
        }
        all
    }

    /// The authorization policies that apply to a pod.
    pub fn policies_for(&self, pod: &NamespacedName) -> impl Iterator<Item = &Arc<Policy>> {
        let root = &self.config.root_namespace;
        let pod = self.pod(pod);
        let of = |pod: &Arc<Pod>| BTreeSet::from([pod.name.namespace.clone(), root.clone()]);
        let namespaces = pod.map(of).into_iter().flatten();
        let all = namespaces.filter_map(|namespace| self.policies.get(&namespace)).flat_map(BTreeMap::values);
        all.filter(move |policy| pod.is_some_and(|pod| policy.applies_to(pod, root)))
    }

    /// The request authentications that apply to a pod.
    pub fn authentications_for(&self, pod: &NamespacedName) -> impl Iterator<Item = &Arc<Authentication>> {
        let root = &self.config.root_namespace;
        let pod = self.pod(pod);
        let of = |pod: &Arc<Pod>| BTreeSet::from([pod.name.namespace.clone(), root.clone()]);
        let namespaces = pod.map(of).into_iter().flatten();
        let all = namespaces.filter_map(|ns| self.authentications.get(&ns)).flat_map(BTreeMap::values);
        all.filter(move |found| pod.is_some_and(|pod| found.applies_to(pod, root)))
    }

    /// All request authentications.
    pub fn authentications(&self) -> impl Iterator<Item = &Arc<Authentication>> {
        self.authentications.values().flat_map(BTreeMap::values)
    }

    /// One request authentication.
    pub fn authentication(&self, namespace: &str, name: &str) -> Option<&Arc<Authentication>> {
        self.authentications.get(namespace)?.get(name)
    }

    /// All authorization policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().flat_map(BTreeMap::values)
    }

    /// One authorization policy.
    pub fn policy(&self, namespace: &str, name: &str) -> Option<&Arc<Policy>> {
        self.policies.get(namespace)?.get(name)
    }
}

fn service_of(slice: &EndpointSlice) -> NamespacedName {
    NamespacedName::new(slice.name.namespace.clone(), slice.service.clone())
}

fn in_namespace<'m, T>(
    map: &'m BTreeMap<NamespacedName, Arc<T>>,
    namespace: &'m str,
) -> impl Iterator<Item = &'m Arc<T>> {
    let first = NamespacedName::new(namespace, "");
    map.range((Bound::Included(first), Bound::Unbounded))
        .take_while(move |(name, _)| name.namespace == namespace)
        .map(|(_, value)| value)
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use maille_config::istio::{
    self, AuthorizationPolicy, DestinationRule, PeerAuthentication, RequestAuthentication, ServiceEntry,
};
use maille_core::NamespacedName;

use super::changes::{ChangeSet, Key};
use super::credentials::{CredentialData, CredentialSource};
use super::federation::Federated;
use super::keys::KeySource;
use super::objects::{EndpointSlice, Pod, Service};
use super::{World, service_of};
use crate::facts::Policy;
use crate::revocation::{Listed, Revocations};

/// What happened to the objects of one kind.
#[derive(Debug, Clone)]
pub enum Change<T> {
    /// A new or changed object.
    Put(T),
    /// An object is gone, or no longer part of the world.
    Delete(NamespacedName),
    /// All objects of the kind there are, after watching began anew.
    Replace(Vec<T>),
}

/// What happened in the world.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and boxed by the queue they travel in")]
pub enum Event {
    /// To Pods.
    Pod(Change<Pod>),
    /// To Services.
    Service(Change<Service>),
    /// To EndpointSlices.
    Slice(Change<EndpointSlice>),
    /// To PeerAuthentications.
    PeerAuthentication(Change<PeerAuthentication>),
    /// To AuthorizationPolicies.
    Authorization(Change<AuthorizationPolicy>),
    /// To RequestAuthentications.
    RequestAuthentication(Change<RequestAuthentication>),
    /// To DestinationRules.
    DestinationRule(Change<DestinationRule>),
    /// To ServiceEntries.
    ServiceEntry(Change<ServiceEntry>),
    /// To WorkloadEntries.
    WorkloadEntry(Change<istio::WorkloadEntry>),
    /// To Sidecars.
    Sidecar(Change<istio::Sidecar>),
    /// What a Secret or ConfigMap that a DestinationRule names came to.
    Credential(CredentialSource, CredentialData),
    /// The roots of a trust domain, DER; an empty list ends trust in it.
    Roots(String, Vec<Vec<u8>>),
    /// The roots of the mesh's own trust domain, whatever its name is now.
    OwnRoots(Vec<Vec<u8>>),
    /// Fingerprint of what signs certificates of the mesh's own trust domain; empty: whoever signed is fine.
    OwnSigner(String),
    /// The keys of JWT-SVIDs of the mesh's own trust domain: a JWK Set, public halves only; empty: none.
    OwnJwtKeys(Vec<u8>),
    /// To the mesh's configuration.
    MeshConfig(maille_config::mesh::MeshConfig),
    /// What fetching a key set came to: the set as JSON, public keys only, or why there is none.
    Keys(KeySource, Result<String, String>),
    /// Whom the mesh believes beside its own authority, by trust domain; all of it.
    Federation(BTreeMap<String, Federated>),
    /// What the mesh's own list revokes now.
    Revocations(Listed),
    /// The authorities' revocation lists, DER, and what is wrong with others.
    RevocationLists(Vec<Vec<u8>>, Vec<String>),
}

impl World {
    /// Applies what happened, and adds what it changes to `changes`. An event that changes nothing costs
    /// nothing.
    pub fn apply(&mut self, event: Event, changes: &mut ChangeSet) {
        self.note_listed(&event);
        let registered = self.registered_providers();
        self.apply_one(event, changes);
        if registered != self.registered_providers() {
            changes.add(Key::Settings);
        }
    }

    fn apply_one(&mut self, event: Event, changes: &mut ChangeSet) {
        match event {
            Event::Pod(change) => {
                for (name, new) in steps(change, |p| p.name.clone(), self.pods.keys()) {
                    self.set_pod(&name, new, changes);
                }
            }
            Event::Service(change) => {
                for (name, new) in steps(change, |s| s.name.clone(), self.services.keys()) {
                    self.set_service(&name, new, changes);
                }
            }
            Event::Slice(change) => {
                for (name, new) in steps(change, |s| s.name.clone(), self.slices.keys()) {
                    self.set_slice(&name, new, changes);
                }
            }
            Event::PeerAuthentication(change) => {
                let known = names_of(&self.peer_authentications);
                for (name, new) in steps(change, |p| metadata_name(&p.metadata), known.iter()) {
                    self.set_peer_authentication(name, new, changes);
                }
            }
            Event::Authorization(change) => {
                let known = names_of(&self.policies);
                for (name, new) in steps(change, |p| metadata_name(&p.metadata), known.iter()) {
                    self.set_policy(name, new, changes);
                }
            }
            Event::RequestAuthentication(change) => {
                let known = names_of(&self.authentications);
                for (name, new) in steps(change, |p| metadata_name(&p.metadata), known.iter()) {
                    self.set_authentication(name, new, changes);
                }
            }
            Event::DestinationRule(change) => {
                let known = names_of(&self.rules);
                for (name, new) in steps(change, |r| metadata_name(&r.metadata), known.iter()) {
                    self.set_rule(name, new, changes);
                }
            }
            Event::ServiceEntry(change) => {
                for (name, new) in steps(change, |e| metadata_name(&e.metadata), self.entries.keys()) {
                    self.set_entry(name, new, changes);
                }
            }
            Event::WorkloadEntry(change) => {
                for (name, new) in steps(change, |e| metadata_name(&e.metadata), self.workload_entries.keys())
                {
                    self.set_workload_entry(&name, new, changes);
                }
            }
            Event::Sidecar(change) => {
                let known = names_of(&self.sidecars);
                for (name, new) in steps(change, |s| metadata_name(&s.metadata), known.iter()) {
                    self.set_sidecar(name, new, changes);
                }
            }
            Event::Credential(source, data) => self.set_credential(&source, data, changes),
            Event::Roots(domain, roots) => self.set_roots(domain, roots, changes),
            Event::OwnRoots(roots) => self.set_roots(self.config.trust_domain.to_string(), roots, changes),
            Event::OwnSigner(signer) => {
                if *self.signer != *signer {
                    self.signer = signer.into();
                    changes.add(Key::Trust);
                }
            }
            Event::OwnJwtKeys(jwks) => {
                if *self.own_jwks != *jwks {
                    self.own_jwks = jwks.into();
                    changes.add(Key::Trust);
                }
            }
            Event::MeshConfig(mesh) => self.set_config(mesh, changes),
            Event::Keys(source, fetched) => self.set_keys(&source, fetched, changes),
            Event::Federation(federation) => self.set_federation(federation, changes),
            Event::Revocations(list) => self.set_revocations(self.revocations.with_list(list), changes),
            Event::RevocationLists(crls, problems) => {
                self.set_revocations(self.revocations.with_crls(crls, problems), changes);
            }
        }
    }

    fn set_roots(&mut self, domain: String, roots: Vec<Vec<u8>>, changes: &mut ChangeSet) {
        let old = self.roots.get(&domain).map(Vec::as_slice).unwrap_or_default();
        if old == roots {
            return;
        }
        let all = Arc::make_mut(&mut self.roots);
        if roots.is_empty() {
            all.remove(&domain);
        } else {
            all.insert(domain, roots);
        }
        changes.add(Key::Trust);
    }

    fn set_revocations(&mut self, revocations: Revocations, changes: &mut ChangeSet) {
        if *self.revocations != revocations {
            self.revocations = Arc::new(revocations);
            changes.add(Key::Revocations);
        }
    }

    fn note_listed(&mut self, event: &Event) {
        match event {
            Event::Pod(Change::Replace(_)) => self.listed.pods = true,
            Event::Service(Change::Replace(_)) => self.listed.services = true,
            Event::Slice(Change::Replace(_)) => self.listed.slices = true,
            Event::PeerAuthentication(Change::Replace(_)) => self.listed.peer_authentications = true,
            Event::Authorization(Change::Replace(_)) => self.listed.policies = true,
            Event::RequestAuthentication(Change::Replace(_)) => self.listed.authentications = true,
            Event::DestinationRule(Change::Replace(_)) => self.listed.rules = true,
            Event::ServiceEntry(Change::Replace(_)) => self.listed.entries = true,
            Event::Sidecar(Change::Replace(_)) => self.listed.sidecars = true,
            Event::WorkloadEntry(Change::Replace(_)) => self.listed.workload_entries = true,
            Event::MeshConfig(_) => self.listed.config = true,
            Event::Federation(_) => self.listed.federation = true,
            Event::Revocations(_) => self.listed.revocations = true,
            Event::RevocationLists(..) => self.listed.revocation_lists = true,
            _ => {}
        }
    }

    fn set_pod(&mut self, name: &NamespacedName, new: Option<Pod>, changes: &mut ChangeSet) {
        let old = self.pods.get(name).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        if let (Some(old), Some(new)) = (&old, &new)
            && differ_in_readiness_alone(old, new)
        {
            // Services hear of it from their slices.
            Arc::make_mut(&mut self.pods).insert(name.clone(), Arc::new(new.clone()));
            self.touch_entries_selecting(&name.namespace, &old.labels, changes);
            return;
        }
        let index = Arc::make_mut(&mut self.pods_by_address);
        for address in old.iter().flat_map(|p| &p.addresses) {
            remove_from(index, address, name);
            changes.add(Key::Address(*address));
        }
        for address in new.iter().flat_map(|p| &p.addresses) {
            index.entry(*address).or_default().insert(name.clone());
            changes.add(Key::Address(*address));
        }
        let pods = Arc::make_mut(&mut self.pods);
        match new {
            Some(pod) => pods.insert(name.clone(), Arc::new(pod)),
            None => pods.remove(name),
        };
        changes.add(Key::Workload(name.clone()));
        let new = self.pods.get(name).cloned();
        let addresses = [&old, &new].into_iter().flatten().flat_map(|pod| &pod.addresses);
        let addresses: Vec<_> = addresses.copied().collect();
        for service in self.services_before(name, &addresses) {
            self.touch_service(&service, changes);
            // Whether a headless service's endpoints take mutual TLS depends on all of them (step A3).
            self.touch_endpoints(&service, false, changes);
        }
        for pod in [&old, &new].into_iter().flatten() {
            self.touch_entries_selecting(&name.namespace, &pod.labels, changes);
        }
    }

    fn set_service(&mut self, name: &NamespacedName, new: Option<Service>, changes: &mut ChangeSet) {
        let old = self.services.get(name).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        let index = Arc::make_mut(&mut self.services_by_address);
        for address in old.iter().flat_map(|s| &s.addresses) {
            if index.get(address) == Some(name) {
                index.remove(address);
            }
            changes.add(Key::Address(*address));
        }
        for address in new.iter().flat_map(|s| &s.addresses) {
            index.insert(*address, name.clone());
        }
        self.note_exports(name, new.as_ref());
        self.note_alias(name, old.as_deref(), new.as_ref());
        self.note_ports_of_service(name, old.as_deref(), new.as_ref(), changes);
        let new = new.map(Arc::new);
        let services = Arc::make_mut(&mut self.services);
        match &new {
            Some(service) => services.insert(name.clone(), Arc::clone(service)),
            None => services.remove(name),
        };
        self.touch_service(name, changes);
        // The pods behind it learn its name and its ports' protocols.
        let behind = |pod: &Pod| [&old, &new].into_iter().flatten().any(|s| s.selects(pod));
        for pod in self.pods_in(&name.namespace).filter(|pod| behind(pod)) {
            changes.add(Key::Workload(pod.name.clone()));
            for address in &pod.addresses {
                changes.add(Key::Address(*address));
            }
        }
        let was_headless = old.is_some_and(|s| s.headless || s.selector.is_none());
        self.touch_endpoints(name, was_headless, changes);
    }

    fn set_slice(&mut self, name: &NamespacedName, new: Option<EndpointSlice>, changes: &mut ChangeSet) {
        let old = self.slices.get(name).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        if let Some(old) = &old {
            let service = service_of(old);
            self.touch_endpoints(&service, false, changes);
            remove_from(Arc::make_mut(&mut self.slices_by_service), &service, name);
            let index = Arc::make_mut(&mut self.slices_by_pod);
            for pod in pods_of(old) {
                remove_from(index, &pod, name);
            }
            let index = Arc::make_mut(&mut self.slices_by_address);
            for address in bare_addresses(old) {
                remove_from(index, address, name);
            }
            self.touch_service(&service, changes);
        }
        match new {
            Some(slice) => {
                let service = service_of(&slice);
                let index = Arc::make_mut(&mut self.slices_by_pod);
                for pod in pods_of(&slice) {
                    index.entry(pod).or_default().insert(name.clone());
                }
                let index = Arc::make_mut(&mut self.slices_by_address);
                for address in bare_addresses(&slice) {
                    index.entry(*address).or_default().insert(name.clone());
                }
                let index = Arc::make_mut(&mut self.slices_by_service);
                index.entry(service.clone()).or_default().insert(name.clone());
                Arc::make_mut(&mut self.slices).insert(name.clone(), Arc::new(slice));
                self.touch_service(&service, changes);
                self.touch_endpoints(&service, false, changes);
            }
            None => {
                Arc::make_mut(&mut self.slices).remove(name);
            }
        }
    }

    fn set_peer_authentication(
        &mut self,
        name: NamespacedName,
        new: Option<PeerAuthentication>,
        changes: &mut ChangeSet,
    ) {
        let old = self.peer_authentications.get(&name.namespace).and_then(|m| m.get(&name.name));
        if old == new.as_ref() {
            return;
        }
        let mesh_wide = name.namespace == self.config.root_namespace;
        let namespace = name.namespace.clone();
        let all = Arc::make_mut(&mut self.peer_authentications);
        put(all, name, new);
        let concerned = |n: &NamespacedName| mesh_wide || n.namespace == namespace;
        let services: Vec<_> = self.services.keys().filter(|n| concerned(n)).cloned().collect();
        for service in services {
            self.touch_service(&service, changes);
            self.touch_endpoints(&service, false, changes);
        }
        self.touch_entries_in_mesh(concerned, changes);
        for pod in self.pods.values().filter(|p| concerned(&p.name)) {
            changes.add(Key::Workload(pod.name.clone()));
            // Endpoints written by hand may be pods of another namespace than their service's.
            for service in self.services_before(&pod.name, &pod.addresses) {
                self.touch_service(&service, changes);
            }
        }
    }

    fn set_policy(
        &mut self,
        name: NamespacedName,
        new: Option<AuthorizationPolicy>,
        changes: &mut ChangeSet,
    ) {
        let new = new.map(|policy| Arc::new(Policy::of(&policy)));
        let old = self.policies.get(&name.namespace).and_then(|m| m.get(&name.name));
        if old == new.as_ref() {
            return;
        }
        changes.add(Key::Policies(name.namespace.clone()));
        put(Arc::make_mut(&mut self.policies), name, new);
    }

    /// A service, or what stands behind it, changed: so does what its addresses answer.
    pub(super) fn touch_service(&self, name: &NamespacedName, changes: &mut ChangeSet) {
        changes.add(Key::Service(name.clone()));
        for address in self.services.get(name).iter().flat_map(|s| &s.addresses) {
            changes.add(Key::Address(*address));
        }
        if !self.aliases.is_empty() {
            self.touch_aliases(&self.full_name(name), changes);
        }
    }

    fn note_exports(&mut self, name: &NamespacedName, new: Option<&Service>) {
        let is_limited = new.is_some_and(|service| !service.export_to.is_empty());
        if is_limited != self.exporting.contains(name) {
            let exporting = Arc::make_mut(&mut self.exporting);
            if is_limited {
                exporting.insert(name.clone())
            } else {
                exporting.remove(name)
            };
        }
    }

    /// The endpoints of a headless or hand-written service see it: when called directly, and through their own
    /// inbound ports.
    pub(super) fn touch_endpoints(
        &self,
        service: &NamespacedName,
        was_direct: bool,
        changes: &mut ChangeSet,
    ) {
        let is_direct = self.services.get(service).is_some_and(|s| s.headless || s.selector.is_none());
        if !is_direct && !was_direct {
            return;
        }
        let touch = |name: &NamespacedName, changes: &mut ChangeSet| {
            changes.add(Key::Workload(name.clone()));
            for address in self.pods.get(name).iter().flat_map(|pod| &pod.addresses) {
                changes.add(Key::Address(*address));
            }
        };
        for endpoint in self.slices_of(service).flat_map(|slice| &slice.endpoints) {
            if let Some(pod) = &endpoint.pod {
                touch(&NamespacedName::new(service.namespace.clone(), pod.clone()), changes);
                continue;
            }
            for address in &endpoint.addresses {
                changes.add(Key::Address(*address));
                for pod in self.pods_by_address.get(address).into_iter().flatten() {
                    touch(pod, changes);
                }
            }
        }
    }
}

/// A change as steps of (name, new state or gone).
fn steps<'n, T>(
    change: Change<T>,
    name_of: impl Fn(&T) -> NamespacedName,
    known: impl Iterator<Item = &'n NamespacedName>,
) -> Vec<(NamespacedName, Option<T>)> {
    match change {
        Change::Put(object) => vec![(name_of(&object), Some(object))],
        Change::Delete(name) => vec![(name, None)],
        Change::Replace(objects) => {
            let mut all: BTreeMap<_, _> = known.map(|name| (name.clone(), None)).collect();
            all.extend(objects.into_iter().map(|object| (name_of(&object), Some(object))));
            all.into_iter().collect()
        }
    }
}

fn differ_in_readiness_alone(old: &Pod, new: &Pod) -> bool {
    old.ready != new.ready && Pod { ready: old.ready, ..new.clone() } == *old
}

fn metadata_name(metadata: &maille_config::k8s::meta::ObjectMeta) -> NamespacedName {
    NamespacedName::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn names_of<T>(map: &BTreeMap<String, BTreeMap<String, T>>) -> Vec<NamespacedName> {
    map.iter()
        .flat_map(|(ns, inner)| inner.keys().map(move |name| NamespacedName::new(ns.clone(), name.clone())))
        .collect()
}

pub(super) fn put<T>(map: &mut BTreeMap<String, BTreeMap<String, T>>, name: NamespacedName, new: Option<T>) {
    match new {
        Some(object) => {
            map.entry(name.namespace).or_default().insert(name.name, object);
        }
        None => {
            if let Some(inner) = map.get_mut(&name.namespace) {
                inner.remove(&name.name);
                if inner.is_empty() {
                    map.remove(&name.namespace);
                }
            }
        }
    }
}

pub(super) fn remove_from<K: Ord + Clone>(
    index: &mut BTreeMap<K, BTreeSet<NamespacedName>>,
    key: &K,
    name: &NamespacedName,
) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

fn bare_addresses(slice: &EndpointSlice) -> impl Iterator<Item = &std::net::IpAddr> {
    slice.endpoints.iter().filter(|e| e.pod.is_none()).flat_map(|e| &e.addresses)
}

fn pods_of(slice: &EndpointSlice) -> BTreeSet<NamespacedName> {
    let names = slice.endpoints.iter().filter_map(|e| e.pod.as_ref());
    names.map(|pod| NamespacedName::new(slice.name.namespace.clone(), pod.clone())).collect()
}

//! DestinationRules and ServiceEntries in the world: indices, lookups, and whom a change concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use maille_config::destination_rule::{Client, host_of};
use maille_config::istio::{DestinationRule, Location, ServiceEntry};
use maille_config::sidecar::EgressScope;
use maille_config::{HostPattern, service_entry};
use maille_core::{Labels, NamespacedName};

use super::changes::{ChangeSet, Key};
use super::names::{AskedHost, Claimants, service_named};
use super::sidecar::Sight;
use super::{World, allocation, any_address, in_namespace};

/// ServiceEntries by what they claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    hosts: BTreeMap<HostPattern, BTreeSet<NamespacedName>>,
    /// Single addresses are blocks of one.
    addresses: BTreeMap<IpNet, BTreeSet<NamespacedName>>,
}

/// A host of a ServiceEntry, as one client sees it.
#[derive(Debug, Clone)]
pub struct OwnedHost<'w> {
    /// The host, which may be a wildcard.
    pub host: HostPattern,
    /// The entry that owns it first, then those of its namespace that add ports; never empty.
    pub entries: Vec<&'w ServiceEntry>,
}

/// What of a subscriber makes a difference to the answers it gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    namespace: Option<String>,
    labels: Labels,
    egress: Option<Arc<EgressScope>>,
}

impl World {
    /// The DestinationRules that can hold for a client of a service: those of both namespaces and of the root namespace.
    pub fn rules_for(&self, client: &str, service: &str) -> Vec<&DestinationRule> {
        let namespaces: BTreeSet<&str> = [client, service, self.config.root_namespace.as_str()].into();
        let rules = namespaces.into_iter().filter_map(|namespace| self.rules.get(namespace));
        rules.flat_map(BTreeMap::values).map(Arc::as_ref).collect()
    }

    /// One DestinationRule.
    pub fn rule(&self, name: &NamespacedName) -> Option<&Arc<DestinationRule>> {
        self.rules.get(&name.namespace)?.get(&name.name)
    }

    /// A ServiceEntry by name.
    pub fn entry(&self, name: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        self.entries.get(name)
    }

    /// Whether both worlds have the same ServiceEntries: cheap, and false at times where they do.
    pub fn shares_entries(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries)
    }

    /// All ServiceEntries.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.entries.values()
    }

    /// The ServiceEntries of one namespace.
    pub fn entries_in<'w>(&'w self, namespace: &'w str) -> impl Iterator<Item = &'w Arc<ServiceEntry>> {
        in_namespace(&self.entries, namespace)
    }

    /// The ServiceEntry that a host name means to a client: the exact host, then the longest wildcard.
    ///
    /// Names below a service's are never an entry's, and the cluster's own names never a wildcard's: anyone who may write
    /// an entry could take traffic of other namespaces that way.
    pub fn entry_for<'w>(&'w self, asked: &AskedHost, sight: &Sight<'_>) -> Option<OwnedHost<'w>> {
        if asked.entries == Claimants::Nobody || self.is_below_service(asked) {
            return None;
        }
        let full = asked.full.as_deref().filter(|full| *full != asked.host).map(|full| (full, false));
        let wildcards = asked.entries == Claimants::All;
        let mut names = std::iter::once((asked.host.as_str(), wildcards)).chain(full);
        names.find_map(|(host, wildcards)| self.entry_for_host(host, wildcards, sight))
    }

    /// Whether a host name is below the name of a service that exists.
    pub fn is_below_service(&self, asked: &AskedHost) -> bool {
        asked.above.iter().any(|above| self.services.contains_key(&above.service))
    }

    pub(super) fn entry_for_host<'w>(
        &'w self,
        host: &str,
        wildcards: bool,
        sight: &Sight<'_>,
    ) -> Option<OwnedHost<'w>> {
        let wildcards = host.match_indices('.').filter(|(at, _)| wildcards && *at > 0);
        let wildcards =
            wildcards.filter_map(|(at, _)| Some(HostPattern::new(&format!("*{}", host.get(at..)?))));
        std::iter::once(HostPattern::new(host)).chain(wildcards).find_map(|host| {
            let claimants = self.entries_named(self.claims.hosts.get(&host)?);
            let seen = claimants.filter(|entry| sight.sees(service_entry::namespace_of(entry), &host));
            let entries = service_entry::owners(seen, sight.client.namespace);
            (!entries.is_empty()).then_some(OwnedHost { host, entries })
        })
    }

    /// The ServiceEntry that an address belongs to, as a client sees it: the longest prefix, at least `shortest` bits of
    /// it.
    pub fn entry_at<'w>(&'w self, address: IpAddr, shortest: u8, sight: &Sight<'_>) -> Option<OwnedHost<'w>> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (shortest..=longest).rev().find_map(|length| {
            let block = IpNet::new(address, length).ok()?.trunc();
            let seen = |entry: &ServiceEntry| {
                let namespace = service_entry::namespace_of(entry);
                hosts_at(entry, address).find(|host| sight.sees(namespace, host))
            };
            let claimants = self.entries_named(self.claims.addresses.get(&block)?);
            let claimants = claimants.filter(|entry| seen(entry).is_some());
            let mut entries = service_entry::owners(claimants, sight.client.namespace);
            let host = seen(entries.first()?)?;
            entries.retain(|entry| claimed_hosts(entry).any(|other| other == host));
            Some(OwnedHost { host, entries })
        })
    }

    /// The ServiceEntries that claim exactly a host, whoever sees them.
    pub(super) fn claimants_of(&self, host: &HostPattern) -> impl Iterator<Item = &ServiceEntry> {
        self.claims.hosts.get(host).into_iter().flat_map(|names| self.entries_named(names))
    }

    fn entries_named<'w>(
        &'w self,
        names: &BTreeSet<NamespacedName>,
    ) -> impl Iterator<Item = &'w ServiceEntry> {
        names.iter().filter_map(|name| self.entries.get(name)).map(Arc::as_ref)
    }

    /// Whether an entry claims exactly this host or address, whoever sees it.
    pub fn is_claimed(&self, key: &Key, host: &str) -> bool {
        match key {
            Key::Address(address) => self.claims.addresses.contains_key(&IpNet::from(*address)),
            Key::Host(_) => self.claims.hosts.contains_key(&HostPattern::new(host)),
            _ => false,
        }
    }

    /// The ServiceEntries of a namespace that name exactly a host (SN-1 b).
    pub fn entries_decorating<'w>(
        &'w self,
        host: &HostPattern,
        namespace: &'w str,
    ) -> impl Iterator<Item = &'w ServiceEntry> {
        let names = self.claims.hosts.get(host).into_iter().flatten();
        let own = names.filter(move |name| name.namespace == namespace);
        own.filter_map(|name| self.entries.get(name)).map(Arc::as_ref)
    }

    /// What of a subscriber makes a difference: nothing while there is nothing that looks at it; of its labels only those
    /// that rules of its namespace look at.
    pub fn scope_of(&self, client: Client<'_>) -> Scope {
        if self.rules.is_empty() && self.entries.is_empty() && !self.hides_services() {
            return Scope::default();
        }
        let egress = self.sight_of(client).into_egress();
        let rules = self.rules.get(client.namespace).into_iter().flat_map(BTreeMap::values);
        let selectors = rules.filter_map(|rule| rule.spec.workload_selector.as_ref());
        let looked_at: BTreeSet<&String> = selectors.flat_map(|s| s.match_labels.keys()).collect();
        let labels = client.labels.iter().filter(|(key, _)| looked_at.contains(key));
        Scope {
            namespace: Some(client.namespace.to_owned()),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            egress,
        }
    }

    pub(super) fn set_rule(
        &mut self,
        name: NamespacedName,
        new: Option<DestinationRule>,
        changes: &mut ChangeSet,
    ) {
        let old = self.rules.get(&name.namespace).and_then(|rules| rules.get(&name.name)).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        self.note_credentials(&name, old.as_deref(), new.as_ref(), changes);
        let new = new.map(Arc::new);
        let limits = [&old, &new].into_iter().flatten().any(|rule| has_connection_pool(rule));
        for rule in [&old, &new].into_iter().flatten() {
            let host = host_of(rule, &self.config.cluster_domain);
            self.touch_host(&host, changes);
            if limits {
                self.touch_servers(&host, changes);
            }
            let entries = self.claims.hosts.iter().filter(|(claimed, _)| host.covers(claimed));
            for entry in entries.flat_map(|(_, names)| names).filter_map(|name| self.entries.get(name)) {
                touch_places(entry, changes);
            }
        }
        super::event::put(Arc::make_mut(&mut self.rules), name, new);
    }

    pub(super) fn set_entry(
        &mut self,
        name: NamespacedName,
        new: Option<ServiceEntry>,
        changes: &mut ChangeSet,
    ) {
        let old = self.entries.get(&name).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        let new = new.map(Arc::new);
        let claims = Arc::make_mut(&mut self.claims);
        if let Some(old) = &old {
            for host in claimed_hosts(old) {
                super::event::remove_from(&mut claims.hosts, &host, &name);
            }
            for address in addresses_of(old) {
                super::event::remove_from(&mut claims.addresses, &address, &name);
            }
        }
        if let Some(new) = &new {
            for host in claimed_hosts(new) {
                claims.hosts.entry(host).or_default().insert(name.clone());
            }
            for address in addresses_of(new) {
                claims.addresses.entry(address).or_default().insert(name.clone());
            }
        }
        self.note_ports_of_entry(&name, old.as_deref(), new.as_deref());
        let entries = Arc::make_mut(&mut self.entries);
        match &new {
            Some(entry) => entries.insert(name, Arc::clone(entry)),
            None => entries.remove(&name),
        };
        for entry in [&old, &new].into_iter().flatten() {
            self.touch_entry(entry, changes);
            self.touch_selected_pods(entry, changes);
        }
    }

    /// A PeerAuthentication decides how endpoints within the mesh are reached.
    pub(super) fn touch_entries_in_mesh(
        &self,
        concerned: impl Fn(&NamespacedName) -> bool,
        changes: &mut ChangeSet,
    ) {
        let internal = self.entries.iter().filter(|(_, entry)| entry.spec.location == Location::MeshInternal);
        for (_, entry) in internal.filter(|(name, _)| concerned(name)) {
            self.touch_entry(entry, changes);
        }
    }

    pub(super) fn touch_entry(&self, entry: &ServiceEntry, changes: &mut ChangeSet) {
        for host in claimed_hosts(entry) {
            self.touch_host(&host, changes);
            self.touch_ports_of_host(&host, changes);
        }
        touch_places(entry, changes);
    }

    /// What is said about a host changed: for services of that name, too, and for its other names.
    fn touch_host(&self, host: &HostPattern, changes: &mut ChangeSet) {
        changes.add_hosts(host);
        self.touch_aliases(host, changes);
        for service in self.services_covered(host) {
            self.touch_service(&service, changes);
            self.touch_endpoints(&service, false, changes);
        }
    }

    /// Limits of connections hold for the workloads behind a host, too.
    fn touch_servers(&self, host: &HostPattern, changes: &mut ChangeSet) {
        for service in self.services_covered(host) {
            let Some(found) = self.services.get(&service) else { continue };
            for pod in self.pods_in(&service.namespace).filter(|pod| found.selects(pod)) {
                changes.add(Key::Workload(pod.name.clone()));
            }
        }
        let claimed = self.claims.hosts.iter().filter(|(claimed, _)| host.covers(claimed));
        for entry in claimed.flat_map(|(_, names)| names).filter_map(|name| self.entries.get(name)) {
            self.touch_selected_pods(entry, changes);
        }
    }

    fn services_covered(&self, host: &HostPattern) -> Vec<NamespacedName> {
        if host.suffix().is_some() {
            return self.services.keys().filter(|name| host.covers(&self.full_name(name))).cloned().collect();
        }
        let named = service_named(host.as_str(), None, &self.config.cluster_domain);
        named.filter(|name| self.services.contains_key(name)).into_iter().collect()
    }
}

/// Whether a rule limits connections anywhere that a server looks: subsets are for clients.
fn has_connection_pool(rule: &DestinationRule) -> bool {
    rule.spec.traffic_policy.as_ref().is_some_and(|policy| {
        policy.connection_pool.is_some()
            || policy.port_level_settings.iter().any(|port| port.connection_pool.is_some())
    })
}

/// The addresses and ports at which an entry is reached.
fn touch_places(entry: &ServiceEntry, changes: &mut ChangeSet) {
    addresses_of(entry).for_each(|block| changes.add_network(block));
    any_address::ports_of(entry).for_each(|port| changes.add_port(port));
}

/// The hosts of an entry that proxies can match: a wildcard stands for whole labels.
pub(super) fn claimed_hosts(entry: &ServiceEntry) -> impl Iterator<Item = HostPattern> {
    let hosts = entry.spec.hosts.iter().map(|host| HostPattern::new(host));
    hosts.filter(|host| host.suffix().is_none_or(|rest| rest.starts_with('.')))
}

/// The hosts that an address of an entry can mean: the one that it was allocated for, else any.
fn hosts_at(entry: &ServiceEntry, address: IpAddr) -> impl Iterator<Item = HostPattern> {
    let allocated = allocation::in_force(entry).into_iter().find(|(_, allocated)| *allocated == address);
    let allocated = allocated.map(|(host, _)| HostPattern::new(host));
    claimed_hosts(entry).filter(move |host| allocated.as_ref().is_none_or(|meant| meant == host))
}

/// What an entry's addresses are; a single one is a block of one.
fn addresses_of(entry: &ServiceEntry) -> impl Iterator<Item = IpNet> {
    let allocated = allocation::in_force(entry).into_iter().map(|(_, address)| IpNet::from(address));
    let said = said_addresses_of(entry);
    said.chain(allocated)
}

fn said_addresses_of(entry: &ServiceEntry) -> impl Iterator<Item = IpNet> {
    let single =
        |text: &String| text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    entry
        .spec
        .addresses
        .iter()
        .filter_map(move |text| text.parse::<IpNet>().ok().or_else(|| single(text)))
        .map(|block| block.trunc())
}

/// The addresses of an entry's host that are no blocks.
pub(crate) fn single_addresses(entry: &ServiceEntry, host: &HostPattern) -> Vec<IpAddr> {
    let single = |block: &IpNet| block.prefix_len() == block.max_prefix_len();
    let allocated = allocation::in_force(entry);
    let allocated = allocated.into_iter().filter(|(of, _)| HostPattern::new(of) == *host);
    let said = said_addresses_of(entry).filter(single).map(|block| block.addr());
    said.chain(allocated.map(|(_, address)| address)).collect()
}

//! DestinationRules and ServiceEntries in the world: indices, lookups, and whom a change concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use maille_config::destination_rule::{Client, host_of};
use maille_config::istio::{DestinationRule, Location, ServiceEntry};
use maille_config::{HostPattern, service_entry};
use maille_core::{Labels, NamespacedName};

use super::changes::{ChangeSet, Key};
use super::names::{AskedHost, Claimants, service_named};
use super::{World, in_namespace};

/// ServiceEntries by what they claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    hosts: BTreeMap<HostPattern, BTreeSet<NamespacedName>>,
    /// Single addresses are blocks of one.
    addresses: BTreeMap<IpNet, BTreeSet<NamespacedName>>,
}

/// A host of a ServiceEntry, as one namespace sees it.
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
}

impl World {
    /// The DestinationRules that can hold for a client of a service: those of both namespaces and of the root namespace.
    pub fn rules_for(&self, client: &str, service: &str) -> Vec<&DestinationRule> {
        let namespaces: BTreeSet<&str> = [client, service, self.config.root_namespace.as_str()].into();
        let rules = namespaces.into_iter().filter_map(|namespace| self.rules.get(namespace));
        rules.flat_map(BTreeMap::values).map(Arc::as_ref).collect()
    }

    /// A ServiceEntry by name.
    pub fn entry(&self, name: &NamespacedName) -> Option<&Arc<ServiceEntry>> {
        self.entries.get(name)
    }

    /// All ServiceEntries.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.entries.values()
    }

    /// The ServiceEntries of one namespace.
    pub fn entries_in<'w>(&'w self, namespace: &'w str) -> impl Iterator<Item = &'w Arc<ServiceEntry>> {
        in_namespace(&self.entries, namespace)
    }

    /// The ServiceEntry that a host name means to a namespace: the exact host, then the longest wildcard.
    ///
    /// Names below a service's are never an entry's, and the cluster's own names never a wildcard's: anyone who may write
    /// an entry could take traffic of other namespaces that way.
    pub fn entry_for(&self, asked: &AskedHost, namespace: &str) -> Option<OwnedHost<'_>> {
        if asked.entries == Claimants::Nobody || self.is_below_service(asked) {
            return None;
        }
        let full = asked.full.as_deref().filter(|full| *full != asked.host).map(|full| (full, false));
        let wildcards = asked.entries == Claimants::All;
        let mut names = std::iter::once((asked.host.as_str(), wildcards)).chain(full);
        names.find_map(|(host, wildcards)| self.entry_for_host(host, wildcards, namespace))
    }

    /// Whether a host name is below the name of a service that exists.
    pub fn is_below_service(&self, asked: &AskedHost) -> bool {
        asked.above.iter().any(|service| self.services.contains_key(service))
    }

    fn entry_for_host(&self, host: &str, wildcards: bool, namespace: &str) -> Option<OwnedHost<'_>> {
        let wildcards = host.match_indices('.').filter(|(at, _)| wildcards && *at > 0);
        let wildcards =
            wildcards.filter_map(|(at, _)| Some(HostPattern::new(&format!("*{}", host.get(at..)?))));
        std::iter::once(HostPattern::new(host)).chain(wildcards).find_map(|host| {
            let entries = self.owners(self.claims.hosts.get(&host)?, namespace);
            (!entries.is_empty()).then_some(OwnedHost { host, entries })
        })
    }

    /// The ServiceEntry that an address belongs to, as a namespace sees it: the longest prefix, at least `shortest` bits of
    /// it.
    pub fn entry_at(&self, address: IpAddr, shortest: u8, namespace: &str) -> Option<OwnedHost<'_>> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (shortest..=longest).rev().find_map(|length| {
            let block = IpNet::new(address, length).ok()?.trunc();
            let mut entries = self.owners(self.claims.addresses.get(&block)?, namespace);
            // An address does not say which of several hosts is meant.
            let host = claimed_hosts(entries.first()?).next()?;
            entries.retain(|entry| claimed_hosts(entry).any(|other| other == host));
            Some(OwnedHost { host, entries })
        })
    }

    fn owners<'w>(&'w self, names: &BTreeSet<NamespacedName>, namespace: &str) -> Vec<&'w ServiceEntry> {
        service_entry::owners(
            names.iter().filter_map(|name| self.entries.get(name)).map(Arc::as_ref),
            namespace,
        )
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

    /// What of a subscriber makes a difference: nothing while there are no rules and entries; of its labels only those
    /// that selectors of its namespace look at.
    pub fn scope_of(&self, client: Client<'_>) -> Scope {
        if self.rules.is_empty() && self.entries.is_empty() {
            return Scope::default();
        }
        let rules = self.rules.get(client.namespace).into_iter().flat_map(BTreeMap::values);
        let selectors = rules.filter_map(|rule| rule.spec.workload_selector.as_ref());
        let looked_at: BTreeSet<&String> = selectors.flat_map(|s| s.match_labels.keys()).collect();
        let labels = client.labels.iter().filter(|(key, _)| looked_at.contains(key));
        Scope {
            namespace: Some(client.namespace.to_owned()),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
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
        let new = new.map(Arc::new);
        for rule in [&old, &new].into_iter().flatten() {
            let host = host_of(rule, &self.config.cluster_domain);
            self.touch_host(&host, changes);
            let entries = self.claims.hosts.iter().filter(|(claimed, _)| host.covers(claimed));
            for entry in entries.flat_map(|(_, names)| names).filter_map(|name| self.entries.get(name)) {
                touch_addresses(entry, changes);
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
        let entries = Arc::make_mut(&mut self.entries);
        match &new {
            Some(entry) => entries.insert(name, Arc::clone(entry)),
            None => entries.remove(&name),
        };
        for entry in [&old, &new].into_iter().flatten() {
            self.touch_entry(entry, changes);
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

    fn touch_entry(&self, entry: &ServiceEntry, changes: &mut ChangeSet) {
        for host in claimed_hosts(entry) {
            self.touch_host(&host, changes);
        }
        touch_addresses(entry, changes);
    }

    /// What is said about a host changed: for services of that name, too.
    fn touch_host(&self, host: &HostPattern, changes: &mut ChangeSet) {
        changes.add_hosts(host);
        let domain = &self.config.cluster_domain;
        let services: Vec<NamespacedName> = if host.suffix().is_some() {
            let full = |name: &&NamespacedName| {
                HostPattern::new(&format!("{}.{}.svc.{domain}", name.name, name.namespace))
            };
            self.services.keys().filter(|name| host.covers(&full(name))).cloned().collect()
        } else {
            let named = service_named(host.as_str(), None, domain);
            named.filter(|name| self.services.contains_key(name)).into_iter().collect()
        };
        for service in services {
            self.touch_service(&service, changes);
            self.touch_endpoints(&service, false, changes);
        }
    }
}

fn touch_addresses(entry: &ServiceEntry, changes: &mut ChangeSet) {
    addresses_of(entry).for_each(|block| changes.add_network(block));
}

/// The hosts of an entry that proxies can match: a wildcard stands for whole labels.
fn claimed_hosts(entry: &ServiceEntry) -> impl Iterator<Item = HostPattern> {
    let hosts = entry.spec.hosts.iter().map(|host| HostPattern::new(host));
    hosts.filter(|host| host.suffix().is_none_or(|rest| rest.starts_with('.')))
}

/// What an entry's addresses are; a single one is a block of one.
fn addresses_of(entry: &ServiceEntry) -> impl Iterator<Item = IpNet> {
    let single =
        |text: &String| text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    entry
        .spec
        .addresses
        .iter()
        .filter_map(move |text| text.parse::<IpNet>().ok().or_else(|| single(text)))
        .map(|block| block.trunc())
}

/// The addresses of an entry that are no blocks.
pub(crate) fn single_addresses(entry: &ServiceEntry) -> impl Iterator<Item = IpAddr> {
    addresses_of(entry).filter(|block| block.prefix_len() == block.max_prefix_len()).map(|block| block.addr())
}

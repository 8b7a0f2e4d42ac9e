use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use maille_config::HostPattern;
use maille_core::NamespacedName;

use super::credentials::CredentialSource;
use super::names::AskedPort;

/// Something a fact depends on. Facts are subscribed to by the keys they depend on, and derived anew when one of
/// them changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A service by name, whether or not it exists: its ports, endpoints and identities.
    Service(NamespacedName),
    /// What stands behind an address.
    Address(IpAddr),
    /// What a port means of addresses that say nothing of themselves.
    Port(AskedPort),
    /// What a host name means to ServiceEntries and DestinationRules.
    Host(HostKey),
    /// A pod as a proxy's own workload: what it accepts, and whether it lives.
    Workload(NamespacedName),
    /// The authorization policies of a namespace.
    Policies(String),
    /// The request authentications of a namespace.
    Authentications(String),
    /// The roots of trust.
    Trust,
    /// Who is revoked.
    Revocations,
    /// The mesh's settings.
    Settings,
    /// The Sidecars of a namespace, which say what its workloads may know.
    Sidecars(String),
    /// What a Secret or ConfigMap that a DestinationRule names holds, and who may have it.
    Credential(CredentialSource),
}

impl Key {
    /// The key of a host name.
    pub fn host(host: &str) -> Self {
        Self::Host(HostKey::new(host))
    }
}

/// A host name, spelled backwards so that names with a common ending are neighbours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostKey(String);

impl HostKey {
    fn new(host: &str) -> Self {
        Self(host.chars().rev().collect())
    }
}

/// What changed between two worlds. May name more than changed, never less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    everything: bool,
    keys: BTreeSet<Key>,
    /// Hosts by their ending, backwards.
    endings: BTreeSet<HostKey>,
    /// Addresses by block.
    networks: BTreeSet<IpNet>,
}

impl ChangeSet {
    /// Adds every key there is.
    pub fn add_everything(&mut self) {
        self.everything = true;
    }

    /// Adds one key; whether it was not there.
    pub fn add(&mut self, key: Key) -> bool {
        self.keys.insert(key)
    }

    /// Adds what a port means, whoever asks.
    pub fn add_port(&mut self, number: u16) {
        for is_given_addresses in [false, true] {
            self.add(Key::Port(AskedPort { number, is_given_addresses }));
        }
    }

    /// Adds all hosts that a pattern means.
    pub fn add_hosts(&mut self, pattern: &HostPattern) {
        match pattern.suffix() {
            Some(ending) => drop(self.endings.insert(HostKey::new(ending))),
            None => drop(self.add(Key::host(pattern.as_str()))),
        }
    }

    /// Adds all addresses of a block.
    pub fn add_network(&mut self, network: IpNet) {
        if network.prefix_len() == network.max_prefix_len() {
            self.add(Key::Address(network.addr()));
        } else {
            self.networks.insert(network.trunc());
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.keys.is_empty() && self.endings.is_empty() && self.networks.is_empty()
    }

    /// Whether this key changed.
    pub fn contains(&self, key: &Key) -> bool {
        self.everything
            || self.keys.contains(key)
            || match key {
                Key::Host(host) => self.endings.iter().any(|ending| host.0.starts_with(&ending.0)),
                Key::Address(address) => self.networks.iter().any(|network| network.contains(address)),
                _ => false,
            }
    }

    /// Those of the watched keys that changed.
    pub fn among<'k, V>(&self, watched: &'k BTreeMap<Key, V>) -> BTreeMap<&'k Key, &'k V> {
        if self.everything {
            return watched.iter().collect();
        }
        let single = self.keys.iter().filter_map(|key| watched.get_key_value(key));
        let hosts = self.endings.iter().flat_map(|ending| {
            watched
                .range(Key::Host(ending.clone())..)
                .take_while(|(key, _)| matches!(key, Key::Host(host) if host.0.starts_with(&ending.0)))
        });
        let addresses = self.networks.iter().flat_map(|network| {
            watched.range(Key::Address(network.network())..=Key::Address(network.broadcast()))
        });
        single.chain(hosts).chain(addresses).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_and_blocks_concern_what_lies_within_them_only() {
        let address = |text: &str| Key::Address(text.parse().expect("an address"));
        let watched: BTreeMap<Key, ()> = [
            Key::host("a.corp"),
            Key::host("b.a.corp"),
            Key::host("corp"),
            Key::host("a.corpus"),
            address("10.9.1.2"),
            address("10.8.1.2"),
            address("2001:db8::1"),
            Key::Trust,
        ]
        .into_iter()
        .map(|key| (key, ()))
        .collect();
        let concerned = |changes: &ChangeSet| {
            let among: BTreeSet<&Key> = changes.among(&watched).into_keys().collect();
            let contained: BTreeSet<&Key> = watched.keys().filter(|key| changes.contains(key)).collect();
            assert_eq!(among, contained);
            among.into_iter().cloned().collect::<Vec<_>>()
        };
        let mut changes = ChangeSet::default();
        assert!(changes.is_empty() && concerned(&changes).is_empty());
        changes.add_hosts(&HostPattern::new("*.corp"));
        assert_eq!(concerned(&changes), [Key::host("a.corp"), Key::host("b.a.corp")]);
        let mut changes = ChangeSet::default();
        changes.add_network("10.9.0.0/16".parse().expect("a block"));
        changes.add_network("2001:db8::1/128".parse().expect("a block"));
        assert_eq!(concerned(&changes), [address("10.9.1.2"), address("2001:db8::1")]);
        let mut changes = ChangeSet::default();
        changes.add_hosts(&HostPattern::new("*"));
        assert_eq!(concerned(&changes).len(), 4);
        let mut changes = ChangeSet::default();
        changes.add_everything();
        assert_eq!(concerned(&changes).len(), watched.len());
        assert!(!changes.is_empty());
    }
}

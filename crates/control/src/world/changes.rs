use std::collections::BTreeSet;
use std::net::IpAddr;

use maille_core::NamespacedName;

/// Something a fact depends on. Facts are subscribed to by the keys they depend on, and derived anew when one of
/// them changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A service by name, whether or not it exists: its ports, endpoints and identities.
    Service(NamespacedName),
    /// What stands behind an address.
    Address(IpAddr),
    /// A pod as a proxy's own workload: what it accepts, and whether it lives.
    Workload(NamespacedName),
    /// The authorization policies of a namespace.
    Policies(String),
    /// The roots of trust.
    Trust,
    /// The mesh's settings.
    Settings,
}

/// What changed between two worlds. May name more than changed, never less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet(BTreeSet<Key>);

impl ChangeSet {
    /// Adds one key.
    pub fn add(&mut self, key: Key) {
        self.0.insert(key);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this key changed.
    pub fn contains(&self, key: &Key) -> bool {
        self.0.contains(key)
    }

    /// The keys, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }
}

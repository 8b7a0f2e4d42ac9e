//! Whom the mesh believes beside its own authority (reference mtls 5.6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::World;
use super::changes::{ChangeSet, Key};

/// What a trust domain is believed by, besides what its own authority says here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Federated {
    /// X.509 roots, DER, in the order of the configuration, without doubles.
    pub roots: Vec<Vec<u8>>,
    /// A JWK Set as in `TrustBundle.jwks`; empty: none.
    pub jwks: Vec<u8>,
}

impl Federated {
    /// Adds what is not there yet.
    pub fn add(&mut self, roots: impl IntoIterator<Item = Vec<u8>>, jwks: &[u8]) {
        for root in roots {
            if !self.roots.contains(&root) {
                self.roots.push(root);
            }
        }
        self.jwks = joined(&self.jwks, jwks);
    }
}

impl World {
    /// Whether it has been told at least once whom the mesh believes besides. Before that, a domain that is missing may
    /// have been believed by an earlier control plane.
    pub fn has_federation(&self) -> bool {
        self.listed.federation
    }

    /// Every trust domain that is believed, in order.
    pub fn trust_domains(&self) -> BTreeSet<&String> {
        let others = self.federation.iter().filter(|(_, federated)| !federated.roots.is_empty());
        self.roots.keys().chain(others.map(|(domain, _)| domain)).collect()
    }

    /// All roots of a trust domain, DER: those of the own authority first. Empty: it is not believed.
    pub fn roots_of(&self, domain: &str) -> Vec<&[u8]> {
        let own = self.roots.get(domain).into_iter().flatten();
        let others = self.federation.get(domain).into_iter().flat_map(|federated| &federated.roots);
        let mut all: Vec<&[u8]> = Vec::new();
        for root in own.chain(others) {
            if !all.contains(&root.as_slice()) {
                all.push(root);
            }
        }
        all
    }

    /// The keys that JWT-SVIDs of a trust domain verify by, as in `TrustBundle.jwks`.
    pub fn jwks_of(&self, domain: &str) -> Vec<u8> {
        let others =
            self.federation.get(domain).map(|federated| federated.jwks.as_slice()).unwrap_or_default();
        match domain == self.config.trust_domain.as_str() {
            true => joined(&self.own_jwks, others),
            false => others.to_vec(),
        }
    }

    pub(super) fn set_federation(&mut self, new: BTreeMap<String, Federated>, changes: &mut ChangeSet) {
        if *self.federation != new {
            self.federation = Arc::new(new);
            changes.add(Key::Trust);
        }
    }
}

/// The keys of two sets; what cannot be read is left out.
fn joined(one: &[u8], other: &[u8]) -> Vec<u8> {
    if one.is_empty() || other.is_empty() {
        return if one.is_empty() { other } else { one }.to_vec();
    }
    let keys = |set: &[u8]| match serde_json::from_slice::<Map<String, Value>>(set).ok()?.remove("keys")? {
        Value::Array(keys) => Some(keys),
        _ => None,
    };
    let mut all = keys(one).unwrap_or_default();
    for key in keys(other).unwrap_or_default() {
        if !all.contains(&key) {
            all.push(key);
        }
    }
    json!({ "keys": all }).to_string().into_bytes()
}

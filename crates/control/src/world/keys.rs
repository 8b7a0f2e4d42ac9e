use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use maille_config::istio::JwtRule;
use maille_core::NamespacedName;

use super::World;
use super::changes::{ChangeSet, Key};

/// Where the key set of a rule is fetched from (reference authorization 19).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// `jwksUri`.
    Url(String),
    /// OpenID discovery at an issuer.
    Issuer(String),
}

impl KeySource {
    /// Where a rule's keys are; `None` if the rule holds them itself, or says nothing of where they could be.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        if !rule.jwks_uri.is_empty() {
            return Some(Self::Url(rule.jwks_uri.clone()));
        }
        (rule.jwks.is_empty() && !rule.issuer.is_empty()).then(|| Self::Issuer(rule.issuer.clone()))
    }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url),
            Self::Issuer(issuer) => {
                write!(f, "{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
            }
        }
    }
}

/// What is known of the keys of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// The first fetch goes on.
    Awaited,
    /// The key set, as JSON.
    Known(Arc<str>),
    /// Why there are none.
    Failed(String),
}

/// The sources that RequestAuthentications name. What nobody names is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeySets {
    sources: BTreeMap<KeySource, Used>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Used {
    keys: Keys,
    by: BTreeSet<NamespacedName>,
}

impl KeySets {
    /// What is known of a source.
    pub(super) fn of(&self, source: &KeySource) -> Keys {
        self.sources.get(source).map_or(Keys::Awaited, |used| used.keys.clone())
    }

    fn enter(&mut self, source: KeySource, name: &NamespacedName) {
        let used = self.sources.entry(source).or_insert(Used { keys: Keys::Awaited, by: BTreeSet::new() });
        used.by.insert(name.clone());
    }

    fn leave(&mut self, source: &KeySource, name: &NamespacedName) {
        if let Some(used) = self.sources.get_mut(source) {
            used.by.remove(name);
            if used.by.is_empty() {
                self.sources.remove(source);
            }
        }
    }
}

impl World {
    /// The sources of keys that RequestAuthentications name.
    pub fn key_sources(&self) -> BTreeSet<KeySource> {
        self.keys.sources.keys().cloned().collect()
    }

    /// What is known of the keys of a source.
    pub fn keys_of(&self, source: &KeySource) -> Keys {
        self.keys.of(source)
    }

    /// Whether fetching has come to an end at least once for every source.
    pub fn has_asked_for_keys(&self) -> bool {
        self.keys.sources.values().all(|used| used.keys != Keys::Awaited)
    }

    pub(super) fn set_keys(
        &mut self,
        source: &KeySource,
        fetched: Result<String, String>,
        changes: &mut ChangeSet,
    ) {
        let new = match fetched {
            Ok(keys) => Keys::Known(keys.into()),
            Err(problem) => Keys::Failed(problem),
        };
        // Of a source that nobody names any more.
        let Some(used) = self.keys.sources.get(source).filter(|used| used.keys != new) else { return };
        let concerned = used.by.clone();
        if let Some(used) = Arc::make_mut(&mut self.keys).sources.get_mut(source) {
            used.keys = new;
        }
        for name in concerned {
            let Some(found) = self.authentication(&name.namespace, &name.name) else { continue };
            let renewed = found.with_keys(|source| self.keys.of(source));
            if renewed != **found {
                changes.add(Key::Authentications(name.namespace.clone()));
                super::event::put(Arc::make_mut(&mut self.authentications), name, Some(Arc::new(renewed)));
            }
        }
    }

    pub(super) fn set_authentication(
        &mut self,
        name: NamespacedName,
        new: Option<maille_config::istio::RequestAuthentication>,
        changes: &mut ChangeSet,
    ) {
        let old = self.authentication(&name.namespace, &name.name).cloned();
        let keys = Arc::make_mut(&mut self.keys);
        let before: BTreeSet<KeySource> = old.iter().flat_map(|found| found.sources()).cloned().collect();
        let after: BTreeSet<KeySource> =
            new.iter().flat_map(|found| &found.spec.jwt_rules).filter_map(KeySource::of).collect();
        for source in &after {
            keys.enter(source.clone(), &name);
        }
        for source in before.difference(&after) {
            keys.leave(source, &name);
        }
        let new = new.map(|found| Arc::new(crate::facts::Authentication::of(&found, |s| self.keys.of(s))));
        if old != new {
            changes.add(Key::Authentications(name.namespace.clone()));
            super::event::put(Arc::make_mut(&mut self.authentications), name, new);
        }
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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

/// Istio's default of `timeout` (reference authorization 19).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest patience with one fetch, whatever a rule says: a fetch holds memory and a place.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

fn timeout(rule: &JwtRule) -> Duration {
    let said = rule.timeout.as_deref().and_then(maille_config::duration::parse);
    said.filter(|said| !said.is_zero()).map_or(DEFAULT_TIMEOUT, |said| said.min(MAX_TIMEOUT))
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

/// Sources that nobody names any more, but whose keys are kept for a while.
const MAX_UNNAMED: usize = 32;

/// The sources that RequestAuthentications name.
///
/// Whoever fetches is told of what is wanted, not of every change of it: a policy that is replaced by one with the same
/// source looks to it like no change, and it has nothing new to tell. So the keys outlive their last policy, bounded.
#[derive(Debug, Clone, Default)]
pub(super) struct KeySets {
    sources: BTreeMap<KeySource, Used>,
    /// Counts policies that let go of a source.
    left: u64,
}

#[derive(Debug, Clone)]
struct Used {
    keys: Keys,
    /// Who names it, and how long each gives a fetch.
    by: BTreeMap<NamespacedName, Duration>,
    /// When the last one let go of it, by [`KeySets::left`].
    left: u64,
}

impl KeySets {
    /// What is known of a source.
    pub(super) fn of(&self, source: &KeySource) -> Keys {
        self.sources.get(source).map_or(Keys::Awaited, |used| used.keys.clone())
    }

    fn named(&self) -> impl Iterator<Item = (&KeySource, &Used)> {
        self.sources.iter().filter(|(_, used)| !used.by.is_empty())
    }

    fn enter(&mut self, source: KeySource, name: &NamespacedName, timeout: Duration) {
        let new = Used { keys: Keys::Awaited, by: BTreeMap::new(), left: 0 };
        self.sources.entry(source).or_insert(new).by.insert(name.clone(), timeout);
    }

    fn leave(&mut self, source: &KeySource, name: &NamespacedName) {
        let Some(used) = self.sources.get_mut(source) else { return };
        used.by.remove(name);
        if !used.by.is_empty() {
            return;
        }
        self.left += 1;
        used.left = self.left;
        let mut unnamed: Vec<_> = self.sources.iter().filter(|(_, used)| used.by.is_empty()).collect();
        if unnamed.len() > MAX_UNNAMED {
            unnamed.sort_by_key(|(_, used)| used.left);
            if let Some(first) = unnamed.first().map(|(source, _)| (*source).clone()) {
                self.sources.remove(&first);
            }
        }
    }
}

impl World {
    /// The sources of keys that RequestAuthentications name, and how long a fetch may take: as long as the most
    /// patient of those who share it says.
    pub fn key_sources(&self) -> BTreeMap<KeySource, Duration> {
        let patience = |used: &Used| used.by.values().max().copied().unwrap_or(DEFAULT_TIMEOUT);
        self.keys.named().map(|(source, used)| (source.clone(), patience(used))).collect()
    }

    /// Whether both worlds name the same sources: cheap, and false at times where they do.
    pub(crate) fn shares_key_sources(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys)
    }

    /// What is known of the keys of a source.
    pub fn keys_of(&self, source: &KeySource) -> Keys {
        self.keys.of(source)
    }

    /// Whether fetching has come to an end at least once for every source.
    pub fn has_asked_for_keys(&self) -> bool {
        self.keys.named().all(|(_, used)| used.keys != Keys::Awaited)
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
        // What is not known is of a source that nobody names any more.
        let Some(used) = self.keys.sources.get(source).filter(|used| used.keys != new) else { return };
        let concerned: Vec<NamespacedName> = used.by.keys().cloned().collect();
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
        let before: BTreeSet<KeySource> = old.iter().flat_map(|found| found.sources()).cloned().collect();
        let mut after = BTreeMap::new();
        for rule in new.iter().flat_map(|found| &found.spec.jwt_rules) {
            let Some(source) = KeySource::of(rule) else { continue };
            let patience: &mut Duration = after.entry(source).or_default();
            *patience = timeout(rule).max(*patience);
        }
        if !before.is_empty() || !after.is_empty() {
            let keys = Arc::make_mut(&mut self.keys);
            for source in before.iter().filter(|source| !after.contains_key(source)) {
                keys.leave(source, &name);
            }
            for (source, patience) in after {
                keys.enter(source, &name, patience);
            }
        }
        let new = new.map(|found| Arc::new(crate::facts::Authentication::of(&found, |s| self.keys.of(s))));
        if old != new {
            changes.add(Key::Authentications(name.namespace.clone()));
            super::event::put(Arc::make_mut(&mut self.authentications), name, new);
        }
    }
}

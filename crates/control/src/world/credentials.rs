//! Secrets and ConfigMaps that DestinationRules name (`credentialName`, reference mtls 2.2).
//!
//! Only what a rule names is read and kept, and only for rules that say which workloads they are for (G-16): such a rule
//! is private to its namespace, and so is what it names. A ConfigMap, which holds nothing secret, needs no selector; it is
//! that of the rule's own namespace all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use maille_config::destination_rule::Client;
use maille_config::istio::{ClientTlsMode, ClientTlsSettings, DestinationRule, TrafficPolicy};
use maille_core::{NamespacedName, Selector};

use super::World;
use super::changes::{ChangeSet, Key};

/// Where keys and certificates of a rule are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CredentialSource {
    /// A Secret; authorities may be in a second one of the same name with `-cacert` behind.
    Secret(NamespacedName),
    /// A ConfigMap, which holds authorities alone.
    ConfigMap(NamespacedName),
}

const CONFIG_MAP: &str = "configmap://";

impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => name.fmt(f),
            Self::ConfigMap(name) => write!(f, "{CONFIG_MAP}{name}"),
        }
    }
}

impl CredentialSource {
    /// Reads the name of a Credential resource, as it is printed.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = match text.strip_prefix(CONFIG_MAP) {
            Some(rest) => (Self::ConfigMap as fn(_) -> _, rest),
            None => (Self::Secret as fn(_) -> _, text),
        };
        let (namespace, name) = rest.split_once('/')?;
        let valid = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        valid.then(|| kind(NamespacedName::new(namespace, name)))
    }

    /// What TLS settings of a rule name: `Err` if it cannot be had.
    pub(crate) fn of(settings: &ClientTlsSettings, rule: &DestinationRule) -> Result<Option<Self>, ()> {
        let name = settings.credential_name.as_str();
        if name.is_empty() || !matches!(settings.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
            return Ok(None);
        }
        let namespace = rule.metadata.namespace.clone().unwrap_or_default();
        match name.strip_prefix(CONFIG_MAP) {
            Some(name) if is_object_name(name) => {
                Ok(Some(Self::ConfigMap(NamespacedName::new(namespace, name))))
            }
            None if is_object_name(name) && rule.spec.workload_selector.is_some() => {
                Ok(Some(Self::Secret(NamespacedName::new(namespace, name))))
            }
            _ => Err(()),
        }
    }

    /// Its object's name.
    pub fn name(&self) -> &NamespacedName {
        match self {
            Self::Secret(name) | Self::ConfigMap(name) => name,
        }
    }
}

/// Neither another scheme nor a path.
fn is_object_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/')
}

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialData {
    /// Not read yet.
    Awaited,
    /// What it holds.
    Known(Arc<Material>),
    /// Why it cannot be used.
    Failed(String),
}

/// PEM; empty where there is none.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named in facts.proto")]
pub struct Material {
    pub certificate_chain: Vec<u8>,
    pub private_key: Vec<u8>,
    pub ca_certificates: Vec<u8>,
    pub crl: Vec<u8>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// The sources that rules name.
#[derive(Debug, Clone, Default)]
pub(super) struct Credentials {
    sources: BTreeMap<CredentialSource, Used>,
    /// Counts sources that came to be named.
    begun: u64,
}

#[derive(Debug, Clone)]
struct Used {
    data: CredentialData,
    by: BTreeSet<NamespacedName>,
    /// [`Credentials::begun`] when it came to be named.
    since: u64,
}

impl World {
    /// The Secrets and ConfigMaps that rules name, each with a number that is another one when it was not named for a
    /// moment: what was read before is forgotten then, and has to be read again.
    pub fn credential_sources(&self) -> BTreeMap<CredentialSource, u64> {
        self.credentials.sources.iter().map(|(source, used)| (source.clone(), used.since)).collect()
    }

    /// Whether both worlds name the same sources: cheap, and false at times where they do.
    pub(crate) fn shares_credentials(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.credentials, &other.credentials)
    }

    /// Whether every source has been read, or found missing.
    pub fn has_read_credentials(&self) -> bool {
        self.credentials.sources.values().all(|used| used.data != CredentialData::Awaited)
    }

    /// What a client may have of a source: nothing unless a rule in force for it names it, in its own namespace.
    pub fn credential_for(&self, source: &CredentialSource, client: Client<'_>) -> Option<&CredentialData> {
        let used = self.credentials.sources.get(source)?;
        let own = source.name().namespace == client.namespace;
        let for_client = |rule: &DestinationRule| {
            let selector = rule.spec.workload_selector.as_ref();
            selector.is_none_or(|s| Selector::new(s.match_labels.clone()).selects(client.labels))
        };
        let named = own && used.by.iter().filter_map(|name| self.rule(name)).any(|rule| for_client(rule));
        named.then_some(&used.data)
    }

    pub(super) fn set_credential(
        &mut self,
        source: &CredentialSource,
        data: CredentialData,
        changes: &mut ChangeSet,
    ) {
        // What is not known is of a source that nobody names any more.
        if self.credentials.sources.get(source).is_none_or(|used| used.data == data) {
            return;
        }
        if let Some(used) = Arc::make_mut(&mut self.credentials).sources.get_mut(source) {
            used.data = data;
        }
        changes.add(Key::Credential(source.clone()));
    }

    /// Takes in what a rule names; who may have it can change even if that stays the same.
    pub(super) fn note_credentials(
        &mut self,
        name: &NamespacedName,
        old: Option<&DestinationRule>,
        new: Option<&DestinationRule>,
        changes: &mut ChangeSet,
    ) {
        let named = |rule: Option<&DestinationRule>| rule.map(sources_of).unwrap_or_default();
        let (old, new) = (named(old), named(new));
        for source in old.union(&new) {
            changes.add(Key::Credential(source.clone()));
        }
        if old == new {
            return;
        }
        let Credentials { sources, begun } = Arc::make_mut(&mut self.credentials);
        for source in old.difference(&new) {
            let unused =
                sources.get_mut(source).is_some_and(|used| used.by.remove(name) && used.by.is_empty());
            if unused {
                sources.remove(source);
            }
        }
        for source in new.difference(&old) {
            let fresh = || {
                *begun += 1;
                Used { data: CredentialData::Awaited, by: BTreeSet::new(), since: *begun }
            };
            sources.entry(source.clone()).or_insert_with(fresh).by.insert(name.clone());
        }
    }
}

/// All that a rule names, wherever it does.
fn sources_of(rule: &DestinationRule) -> BTreeSet<CredentialSource> {
    let of_subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    let policies = rule.spec.traffic_policy.iter().chain(of_subsets);
    let blocks = |policy: &TrafficPolicy| -> Vec<CredentialSource> {
        let ports = policy.port_level_settings.iter().filter_map(|port| port.tls.as_ref());
        let all = policy.tls.iter().chain(ports);
        all.filter_map(|tls| CredentialSource::of(tls, rule).ok().flatten()).collect()
    };
    policies.flat_map(blocks).collect()
}

#[cfg(test)]
mod tests {
    use maille_core::{Labels, TrustDomain};
    use serde_json::{Value, json};

    use super::*;
    use crate::world::{Change, Event, MeshConfig};

    fn rule(namespace: &str, app: Option<&str>, policy: Value) -> DestinationRule {
        let selector = app.map(|app| json!({"matchLabels": {"app": app}}));
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": "r"},
            "spec": {"host": "api.corp", "trafficPolicy": policy, "workloadSelector": selector},
        }))
        .expect("a rule")
    }

    fn tls(mode: &str, name: &str) -> Value {
        json!({"tls": {"mode": mode, "credentialName": name}})
    }

    fn known(text: &str) -> CredentialData {
        CredentialData::Known(Arc::new(Material { ca_certificates: text.into(), ..Material::default() }))
    }

    struct Scene(World);

    impl Scene {
        fn new() -> Self {
            Self(World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid"))))
        }

        fn apply(&mut self, event: Event) -> ChangeSet {
            let mut changes = ChangeSet::default();
            self.0.apply(event, &mut changes);
            changes
        }

        fn rule(&mut self, rule: DestinationRule) -> ChangeSet {
            self.apply(Event::DestinationRule(Change::Put(rule)))
        }

        fn named(&self) -> Vec<String> {
            self.0.credential_sources().keys().map(ToString::to_string).collect()
        }

        fn has(&self, namespace: &str, app: &str, source: &str) -> Option<CredentialData> {
            let labels: Labels = [("app".to_owned(), app.to_owned())].into();
            let source = CredentialSource::parse(source).expect("a name");
            self.0.credential_for(&source, Client { namespace, labels: &labels }).cloned()
        }
    }

    #[test]
    fn only_clients_that_the_rule_selects_have_its_secret() {
        let mut scene = Scene::new();
        scene.rule(rule("shop", Some("web"), tls("MUTUAL", "cert")));
        assert_eq!(scene.named(), ["shop/cert"]);
        assert!(!scene.0.has_read_credentials());
        assert_eq!(scene.has("shop", "web", "shop/cert"), Some(CredentialData::Awaited));
        let source = CredentialSource::parse("shop/cert").expect("a name");
        let changes = scene.apply(Event::Credential(source.clone(), known("a")));
        assert!(changes.contains(&Key::Credential(source.clone())) && scene.0.has_read_credentials());
        assert_eq!(scene.has("shop", "web", "shop/cert"), Some(known("a")));
        for (namespace, app) in [("shop", "cart"), ("bank", "web")] {
            assert_eq!(scene.has(namespace, app, "shop/cert"), None, "{namespace} {app}");
        }
        assert_eq!(scene.has("shop", "web", "shop/other"), None);
        let changes = scene.rule(rule("shop", Some("cart"), tls("MUTUAL", "cert")));
        assert!(changes.contains(&Key::Credential(source.clone())), "who may have it changed");
        assert_eq!(scene.has("shop", "web", "shop/cert"), None);
        assert_eq!(scene.has("shop", "cart", "shop/cert"), Some(known("a")), "it was read already");
        scene.apply(Event::DestinationRule(Change::Delete(NamespacedName::new("shop", "r"))));
        assert!(scene.named().is_empty());
        scene.apply(Event::Credential(source.clone(), known("late")));
        assert_eq!(scene.has("shop", "cart", "shop/cert"), None, "nobody names it any more");
    }

    #[test]
    fn what_was_not_named_for_a_moment_is_read_again() {
        let mut scene = Scene::new();
        let source = CredentialSource::parse("shop/cert").expect("a name");
        scene.rule(rule("shop", Some("web"), tls("MUTUAL", "cert")));
        let before = scene.0.credential_sources();
        scene.apply(Event::Credential(source, known("a")));
        scene.rule(rule("shop", Some("cart"), tls("MUTUAL", "cert")));
        assert_eq!(scene.0.credential_sources(), before, "named all the time");
        scene.apply(Event::DestinationRule(Change::Delete(NamespacedName::new("shop", "r"))));
        scene.rule(rule("shop", Some("web"), tls("MUTUAL", "cert")));
        assert_ne!(scene.0.credential_sources(), before);
        assert_eq!(scene.has("shop", "web", "shop/cert"), Some(CredentialData::Awaited));
    }

    #[test]
    fn what_rules_may_name_is_read_from_every_block() {
        let mut scene = Scene::new();
        let mut policy = tls("SIMPLE", "one");
        policy["portLevelSettings"] =
            json!([{"port": {"number": 80}, "tls": {"mode": "MUTUAL", "credentialName": "two"}}]);
        let mut with_subset = rule("shop", Some("web"), policy);
        with_subset.spec.subsets = serde_json::from_value(
            json!([{"name": "v1", "trafficPolicy": {"tls": {"mode": "SIMPLE", "credentialName": "configmap://three"}}}]),
        )
        .expect("subsets");
        scene.rule(with_subset);
        assert_eq!(scene.named(), ["shop/one", "shop/two", "configmap://shop/three"]);
        for (app, policy) in [
            (None, tls("MUTUAL", "cert")),
            (Some("web"), tls("ISTIO_MUTUAL", "cert")),
            (Some("web"), tls("MUTUAL", "bank/cert")),
            (Some("web"), tls("MUTUAL", "sds://cert")),
        ] {
            scene.rule(rule("shop", app, policy.clone()));
            assert!(scene.named().is_empty(), "{app:?} {policy}");
        }
        scene.rule(rule("shop", None, tls("SIMPLE", "configmap://roots")));
        assert!(scene.has("shop", "any", "configmap://shop/roots").is_some());
        assert_eq!(scene.has("bank", "any", "configmap://shop/roots"), None);
    }

    #[test]
    fn names_are_read_as_they_are_printed_and_material_is_not_printed() {
        for name in ["shop/cert", "configmap://shop/roots"] {
            assert_eq!(CredentialSource::parse(name).expect("a name").to_string(), name);
        }
        for wrong in ["cert", "/cert", "shop/", "shop/a/b", "", "configmap://x", "sds://a/b"] {
            assert_eq!(CredentialSource::parse(wrong), None, "{wrong}");
        }
        let secret = Material { private_key: b"SECRET".to_vec(), ..Material::default() };
        let printed = format!("{secret:?} {:?}", CredentialData::Known(Arc::new(secret.clone())));
        assert!(!printed.contains("SECRET") && !printed.contains("83, 69"), "{printed}");
    }
}

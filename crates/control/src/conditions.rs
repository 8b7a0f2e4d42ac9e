//! What of a policy is not in force, as conditions of its status in Kubernetes' form: types that are positive claims, and
//! present, with status `False`, only while the claim does not hold.

use std::collections::BTreeSet;

use crate::facts::{Authentication, Policy, provider_problem};
use crate::world::{Keys, World};

/// One claim that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// One of [`TYPES`].
    pub claim: &'static str,
    /// Why, in one word of CamelCase.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// Some workload enforces the policy.
pub const ENFORCED: &str = "Enforced";
/// What the policy refers to is there.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// There are keys for the tokens of every rule.
pub const KEYS_AVAILABLE: &str = "KeysAvailable";

/// The types of conditions that the control plane writes, and removes.
pub const TYPES: [&str; 3] = [ENFORCED, RESOLVED_REFS, KEYS_AVAILABLE];

/// Longest message; Kubernetes' own conditions allow 32 KiB, which nobody reads.
const MAX_MESSAGE: usize = 1000;

/// What is to be said of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// What does not hold.
    pub present: Vec<Condition>,
    /// Types of which nothing is known yet: what was said of them before stays.
    pub undecided: BTreeSet<&'static str>,
}

impl Conditions {
    fn add(&mut self, claim: &'static str, reason: &'static str, message: &str) {
        let message = message.chars().take(MAX_MESSAGE).collect();
        self.present.push(Condition { claim, reason, message });
    }

    fn unenforced(&mut self, targets: &str) {
        let message = format!(
            "targetRefs attach it to {targets}, and no proxy here is one of these: policies of gateways, waypoints and \
             services are not enforced; use a selector to protect workloads"
        );
        self.add(ENFORCED, "TargetNotEnforced", &message);
    }
}

impl World {
    /// What is to be said of an AuthorizationPolicy.
    pub fn conditions_of_policy(&self, policy: &Policy) -> Conditions {
        let mut found = Conditions::default();
        let root = &self.config().root_namespace;
        if policy.attachment().has_targets() && !self.pods().any(|pod| policy.applies_to(pod, root)) {
            found.unenforced(policy.targets());
        }
        if let Some(name) = policy.provider() {
            let providers = &self.config().extension_providers;
            match providers.iter().find(|provider| provider.name == name) {
                None => {
                    let known: Vec<&str> = providers.iter().map(|provider| provider.name.as_str()).collect();
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    let message = format!(
                        "extensionProviders of ConfigMap istio has no '{name}' (it has {known}); what the rules match is refused"
                    );
                    found.add(RESOLVED_REFS, "ProviderNotFound", &message);
                }
                Some(provider) => {
                    if let Some(problem) = provider_problem(self, provider) {
                        let message = format!("{problem}; what the rules match is refused");
                        found.add(RESOLVED_REFS, "ProviderHostNotFound", &message);
                    }
                }
            }
        }
        found
    }

    /// What is to be said of a RequestAuthentication.
    pub fn conditions_of_authentication(&self, authentication: &Authentication) -> Conditions {
        let mut found = Conditions::default();
        let root = &self.config().root_namespace;
        if authentication.attachment().has_targets()
            && !self.pods().any(|pod| authentication.applies_to(pod, root))
        {
            found.unenforced(authentication.targets());
        }
        let mut problems: BTreeSet<String> =
            authentication.inline_problems().map(ToOwned::to_owned).collect();
        let mut reason = "InvalidKeys";
        for source in authentication.sources() {
            match self.keys_of(source) {
                Keys::Known(_) => {}
                Keys::Awaited => drop(found.undecided.insert(KEYS_AVAILABLE)),
                Keys::Failed(problem) => {
                    reason = "FetchFailed";
                    problems.insert(problem);
                }
            }
        }
        if !problems.is_empty() {
            let problems: Vec<String> = problems.into_iter().collect();
            let message = format!("{}; tokens that need these keys are refused", problems.join("; "));
            found.add(KEYS_AVAILABLE, reason, &message);
            found.undecided.clear();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use maille_config::istio;
    use maille_config::mesh::{ExtensionProvider, MeshConfig as Mesh, ProviderKind};
    use maille_core::{NamespacedName, TrustDomain};

    use super::*;
    use crate::world::{Change, Event, KeySource, MeshConfig, Pod, Service};

    struct Scene(World);

    impl Scene {
        fn new() -> Self {
            Self(World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid"))))
        }

        fn apply(&mut self, event: Event) {
            self.0.apply(event, &mut Default::default());
        }

        fn policy(&mut self, change: impl FnOnce(&mut istio::AuthorizationPolicySpec)) -> Vec<(&str, &str)> {
            let mut policy = istio::AuthorizationPolicy::default();
            policy.metadata.namespace = Some("shop".into());
            policy.metadata.name = Some("p".into());
            change(&mut policy.spec);
            self.apply(Event::Authorization(Change::Put(policy)));
            self.of_policy()
        }

        fn of_policy(&self) -> Vec<(&'static str, &'static str)> {
            let found = self.0.conditions_of_policy(self.0.policy("shop", "p").expect("there"));
            found.present.iter().map(|condition| (condition.claim, condition.reason)).collect()
        }

        fn of_authentication(&self) -> Conditions {
            self.0.conditions_of_authentication(self.0.authentication("shop", "a").expect("there"))
        }
    }

    fn gateway() -> Vec<istio::TargetRef> {
        let group = "gateway.networking.k8s.io".into();
        vec![istio::TargetRef { group, kind: "Gateway".into(), name: "edge".into(), namespace: None }]
    }

    #[test]
    fn a_policy_of_a_gateway_is_enforced_where_a_proxy_is_that_gateway_only() {
        let mut scene = Scene::new();
        assert!(scene.policy(|_| ()).is_empty());
        let found = scene.policy(|spec| spec.target_refs = Some(gateway()));
        assert_eq!(found, [(ENFORCED, "TargetNotEnforced")]);
        let said = scene.0.conditions_of_policy(scene.0.policy("shop", "p").expect("there"));
        assert!(said.present[0].message.contains("Gateway 'edge'"), "{said:?}");
        let labels = [("gateway.networking.k8s.io/gateway-name".to_owned(), "edge".to_owned())];
        scene.apply(Event::Pod(Change::Put(Pod {
            name: NamespacedName::new("shop", "edge-1"),
            uid: "u".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            labels: labels.into(),
            service_account: "edge".into(),
            workload_name: "edge".into(),
            meshed: true,
            terminating: false,
            named_ports: Vec::new(),
            scrape: None,
            multiplexes: false,
            node: "node-1".into(),
            ready: true,
        })));
        assert!(scene.of_policy().is_empty());
    }

    #[test]
    fn a_provider_must_be_configured_and_registered() {
        let mut scene = Scene::new();
        let found = scene.policy(|spec| {
            spec.action = istio::Action::Custom;
            spec.provider = Some(istio::Provider { name: "opa".into() });
        });
        assert_eq!(found, [(RESOLVED_REFS, "ProviderNotFound")]);
        let opa = ExtensionProvider {
            name: "opa".into(),
            host: "opa.auth.svc.cluster.local".into(),
            port: 9191,
            timeout: std::time::Duration::from_secs(1),
            fail_open: true,
            status_on_error: 403,
            body: None,
            kind: ProviderKind::Grpc,
        };
        scene.apply(Event::MeshConfig(Mesh { extension_providers: vec![opa], ..Mesh::default() }));
        assert_eq!(scene.of_policy(), [(RESOLVED_REFS, "ProviderHostNotFound")]);
        scene.apply(Event::Service(Change::Put(Service {
            name: NamespacedName::new("auth", "opa"),
            addresses: vec![[10, 96, 0, 9].into()],
            headless: false,
            ports: Vec::new(),
            selector: None,
            created_s: 0,
            service_accounts: Vec::new(),
            canonical_accounts: Vec::new(),
            external_name: None,
            prefers_ipv6: false,
            export_to: Vec::new(),
        })));
        assert!(scene.of_policy().is_empty());
    }

    #[test]
    fn keys_are_missing_only_once_fetching_has_failed() {
        let mut scene = Scene::new();
        let mut policy = istio::RequestAuthentication::default();
        policy.metadata.namespace = Some("shop".into());
        policy.metadata.name = Some("a".into());
        let rule = |uri: &str, jwks: &str| istio::JwtRule {
            issuer: "https://idp".into(),
            jwks_uri: uri.into(),
            jwks: jwks.into(),
            ..Default::default()
        };
        policy.spec.jwt_rules = vec![rule("https://idp/keys", "")];
        scene.apply(Event::RequestAuthentication(Change::Put(policy.clone())));
        let awaited = scene.of_authentication();
        assert!(awaited.present.is_empty() && awaited.undecided.contains(KEYS_AVAILABLE));
        let source = KeySource::of(&policy.spec.jwt_rules[0]).expect("a source");
        scene.apply(Event::Keys(source.clone(), Err("https://idp/keys cannot be reached".into())));
        let failed = scene.of_authentication();
        assert!(failed.present[0].message.contains("cannot be reached") && failed.undecided.is_empty());
        assert_eq!((failed.present[0].claim, failed.present[0].reason), (KEYS_AVAILABLE, "FetchFailed"));
        scene.apply(Event::Keys(source, Ok("{}".into())));
        assert_eq!(scene.of_authentication(), Conditions::default());
        policy.spec.jwt_rules.push(rule("", r#"{"keys":[{"kty":"oct","k":"AQ"}]}"#));
        scene.apply(Event::RequestAuthentication(Change::Put(policy)));
        let found = scene.of_authentication();
        assert_eq!((found.present[0].claim, found.present[0].reason), (KEYS_AVAILABLE, "InvalidKeys"));
    }
}

//! AuthorizationPolicies as Envoy's RBAC filters, one per action, with Istio's names of policies
//! (`ns[foo]-policy[bar]-rule[0]`), and those that ask a provider as the pair of filters that Istio makes of them.

mod aliases;
mod loaded;
mod rule;

use std::collections::BTreeMap;

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};
use wire::authorization::Action;

use crate::address::type_url;
use crate::ext_authz;
use aliases::TrustDomains;

pub use loaded::{ANONYMOUS, LoadedRules, PolicyRule, loaded_policies, loaded_rules};

/// Which filter chain the filters are for: some fields mean nothing without requests (reference authorization 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Http,
    Tcp,
}

impl Layer {
    /// The name of the RBAC filter.
    pub(crate) fn rbac(self) -> &'static str {
        match self {
            Self::Http => "envoy.filters.http.rbac",
            Self::Tcp => "envoy.filters.network.rbac",
        }
    }
}

/// Said of a rule whose provider cannot be asked (reference authorization 15).
const BAD_CUSTOM: &str = "-deny-due-to-bad-CUSTOM-action";

/// Under what Envoy keeps which rule of CUSTOM matched.
pub(crate) const CUSTOM_PREFIX: &str = "istio_ext_authz_";

/// How rules of CUSTOM are named, before the provider.
pub(crate) const CUSTOM_NAME: &str = "istio-ext-authz-";

/// The filters of a chain, in the order in which they are asked: CUSTOM, AUDIT, DENY, ALLOW (reference authorization 3).
pub(crate) fn filters(facts: &wire::FactsInForce, layer: Layer) -> Vec<Value> {
    let translation = Translation { domains: TrustDomains::of(facts), layer };
    let mut all = translation.custom(facts);
    let decided = [Action::Audit, Action::Deny, Action::Allow].into_iter();
    all.extend(decided.filter_map(|action| translation.filter(facts, action)));
    all
}

struct Translation<'f> {
    domains: TrustDomains<'f>,
    layer: Layer,
}

impl Translation<'_> {
    fn filter(&self, facts: &wire::FactsInForce, action: Action) -> Option<Value> {
        // The proxy takes an action that it does not know for a denial of everything.
        let own = |p: &&wire::Authorization| match p.action() {
            Action::Unspecified => action == Action::Deny,
            known => known == action,
        };
        let policies: Vec<_> = facts.authorizations.iter().filter(own).collect();
        let (shadow, enforced): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.dry_run);
        if shadow.is_empty() && enforced.is_empty() {
            return None;
        }
        let name = match action {
            Action::Allow => "ALLOW",
            Action::Audit => "LOG",
            Action::Deny | Action::Custom | Action::Unspecified => "DENY",
        };
        let rules = |policies: &[&wire::Authorization]| {
            let named = policies.iter().flat_map(|policy| self.named_rules(policy, "", ""));
            json!({"action": name, "policies": named.collect::<Map<_, _>>()})
        };
        let mut config = Map::new();
        if !enforced.is_empty() {
            config.insert("rules".to_owned(), rules(&enforced));
        }
        if !shadow.is_empty() {
            config.insert("shadowRules".to_owned(), rules(&shadow));
            let prefix = format!("istio_dry_run_{}_", name.to_ascii_lowercase());
            config.insert("shadowRulesStatPrefix".to_owned(), json!(prefix));
        }
        Some(self.rbac(config))
    }

    /// For each provider a filter that only finds out whether a rule matches, and one that asks if one did; where the
    /// provider cannot be asked, a filter that refuses what matches (reference authorization 15).
    fn custom(&self, facts: &wire::FactsInForce) -> Vec<Value> {
        let mut by_provider: BTreeMap<&str, Vec<&wire::Authorization>> = BTreeMap::new();
        for policy in facts.authorizations.iter().filter(|policy| policy.action() == Action::Custom) {
            by_provider.entry(&policy.provider).or_default().push(policy);
        }
        let is_one = by_provider.len() == 1;
        let known = facts.mesh_settings.iter().flat_map(|settings| &settings.extension_providers);
        let mut filters = Vec::new();
        for (name, policies) in by_provider {
            let usable = known.clone().find(|p| p.name == name && p.problem.is_empty()).filter(|_| is_one);
            let rules = |suffix: &str| {
                let prefix = format!("{CUSTOM_NAME}{name}-");
                let named = policies.iter().flat_map(|policy| self.named_rules(policy, &prefix, suffix));
                json!({"action": "DENY", "policies": named.collect::<Map<_, _>>()})
            };
            let Some(provider) = usable else {
                filters.push(self.rbac(Map::from_iter([("rules".to_owned(), rules(BAD_CUSTOM))])));
                continue;
            };
            // A provider of HTTP says nothing of connections: they pass unasked.
            let Some(asking) = ext_authz::filter(provider, self.layer) else { continue };
            filters.push(self.rbac(Map::from_iter([
                ("shadowRules".to_owned(), rules("")),
                ("shadowRulesStatPrefix".to_owned(), json!(CUSTOM_PREFIX)),
            ])));
            filters.push(asking);
        }
        filters
    }

    fn rbac(&self, mut config: Map<String, Value>) -> Value {
        let message = match self.layer {
            Layer::Http => "envoy.extensions.filters.http.rbac.v3.RBAC",
            Layer::Tcp => "envoy.extensions.filters.network.rbac.v3.RBAC",
        };
        let mut typed = Map::new();
        typed.insert("@type".to_owned(), json!(type_url(message)));
        typed.append(&mut config);
        if self.layer == Layer::Tcp {
            typed.insert("statPrefix".to_owned(), json!("tcp."));
        }
        json!({"name": self.layer.rbac(), "typedConfig": typed})
    }

    /// The rules of a policy by name; of a policy without rules Istio writes one that never matches.
    fn named_rules(&self, policy: &wire::Authorization, prefix: &str, suffix: &str) -> Vec<(String, Value)> {
        let name = |index: usize| {
            format!("{prefix}ns[{}]-policy[{}]-rule[{index}]{suffix}", policy.namespace, policy.name)
        };
        if policy.rules.is_empty() {
            let never = json!({
                "permissions": [{"notRule": {"any": true}}],
                "principals": [{"notId": {"any": true}}],
            });
            return vec![(name(0), never)];
        }
        let named = policy.rules.iter().enumerate().filter_map(|(index, rule)| {
            let rule = rule::narrowed(rule, policy.action(), self.layer)?;
            Some((name(index), rule::translated(&rule, &policy.namespace, &self.domains)?))
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, action: Action, rules: Vec<wire::Rule>) -> wire::Authorization {
        wire::Authorization {
            namespace: "shop".into(),
            name: name.into(),
            action: action.into(),
            rules,
            ..Default::default()
        }
    }

    fn to(methods: &[&str], ports: &[&str]) -> wire::Rule {
        let list = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        let operation = wire::Operation { methods: list(methods), ports: list(ports), ..Default::default() };
        wire::Rule { to: vec![operation], ..Default::default() }
    }

    fn facts(policies: Vec<wire::Authorization>) -> wire::FactsInForce {
        wire::FactsInForce { authorizations: policies, ..Default::default() }
    }

    #[test]
    fn where_there_are_no_requests_allow_rules_get_narrower_and_deny_rules_wider() {
        let rules = || vec![to(&["GET"], &["80"]), to(&[], &["90"])];
        let facts = facts(vec![policy("a", Action::Allow, rules()), policy("d", Action::Deny, rules())]);
        let filters = filters(&facts, Layer::Tcp);
        let names = |filter: &Value| -> Vec<String> {
            let policies = filter["typedConfig"]["rules"]["policies"].as_object().expect("policies");
            policies.keys().cloned().collect()
        };
        assert_eq!(names(&filters[0]), ["ns[shop]-policy[d]-rule[0]", "ns[shop]-policy[d]-rule[1]"]);
        let widened =
            &filters[0]["typedConfig"]["rules"]["policies"]["ns[shop]-policy[d]-rule[0]"]["permissions"];
        assert_eq!(
            *widened,
            json!([{"andRules": {"rules": [{"orRules": {"rules": [{"destinationPort": 80}]}}]}}])
        );
        assert_eq!(names(&filters[1]), ["ns[shop]-policy[a]-rule[1]"]);
    }

    /// Istio writes a rule 0 that never matches.
    #[test]
    fn an_allow_policy_without_rules_is_shown_by_its_name() {
        let facts = facts(vec![policy("deny-all", Action::Allow, Vec::new())]);
        for layer in [Layer::Http, Layer::Tcp] {
            let filters = json!(filters(&facts, layer));
            let never = &filters[0]["typedConfig"]["rules"]["policies"]["ns[shop]-policy[deny-all]-rule[0]"];
            let expected = json!({
                "permissions": [{"notRule": {"any": true}}], "principals": [{"notId": {"any": true}}]
            });
            assert_eq!(*never, expected);
            let loaded = loaded_policies(&[filters]);
            assert_eq!(
                loaded,
                [PolicyRule { action: "ALLOW".into(), policy: "deny-all.shop".into(), rules: 1 }]
            );
        }
    }

    fn asking(name: &str, provider: &str) -> wire::Authorization {
        let mut policy = policy(name, Action::Custom, vec![to(&["GET"], &["80"])]);
        policy.provider = provider.into();
        policy
    }

    fn with_provider(
        mut facts: wire::FactsInForce,
        kind: wire::extension_provider::Kind,
    ) -> wire::FactsInForce {
        let provider = wire::ExtensionProvider {
            name: "opa".into(),
            host: "opa.auth.svc.cluster.local".into(),
            port: 9191,
            timeout_ms: 600_000,
            status_on_error: 403,
            kind: Some(kind),
            ..Default::default()
        };
        let settings = wire::MeshSettings { extension_providers: vec![provider], ..Default::default() };
        facts.mesh_settings = Some(settings);
        facts
    }

    #[test]
    fn loaded_policies_are_counted_by_rule_and_ordered_by_action() {
        let facts = facts(vec![
            policy("z", Action::Allow, vec![to(&["GET"], &[]), to(&["PUT"], &[])]),
            policy("b", Action::Audit, vec![wire::Rule::default()]),
            asking("c", "opa"),
            policy("a", Action::Deny, vec![wire::Rule::default()]),
        ]);
        let facts = with_provider(facts, wire::extension_provider::Kind::Grpc(wire::ExtAuthzGrpc {}));
        let (http, tcp) = (filters(&facts, Layer::Http), filters(&facts, Layer::Tcp));
        let order: Vec<&str> = http.iter().filter_map(|filter| filter["name"].as_str()).collect();
        let rbac = "envoy.filters.http.rbac";
        assert_eq!(order, [rbac, "envoy.filters.http.ext_authz", rbac, rbac, rbac]);
        let actions: Vec<_> =
            http.iter().filter_map(|filter| filter["typedConfig"]["rules"]["action"].as_str()).collect();
        assert_eq!(actions, ["LOG", "DENY", "ALLOW"], "AUDIT comes before DENY");
        let loaded: Vec<_> = loaded_policies(&[json!([http, tcp])])
            .into_iter()
            .map(|p| format!("{} {} {}", p.action, p.policy, p.rules))
            .collect();
        // On TCP nothing of the ALLOW policy is left, which Istio shows in this way too.
        let nothing = "ALLOW _anonymous_match_nothing_ 1";
        assert_eq!(loaded, ["DENY a.shop 1", nothing, "ALLOW z.shop 2", "LOG b.shop 1", "CUSTOM c.shop 1"]);
    }

    #[test]
    fn a_dry_run_is_a_shadow_with_istios_prefix() {
        let mut dry = policy("try", Action::Deny, vec![to(&["GET"], &[])]);
        dry.dry_run = true;
        let filters = json!(filters(&facts(vec![dry]), Layer::Http));
        let config = &filters[0]["typedConfig"];
        assert_eq!(config["shadowRulesStatPrefix"], "istio_dry_run_deny_");
        assert_eq!(config.get("rules"), None, "nothing is enforced");
        let loaded = loaded_rules(&filters);
        assert!(loaded.shadow.contains("ns[shop]-policy[try]-rule[0]") && loaded.enforced.is_empty());
        assert!(loaded_policies(&[filters]).is_empty(), "as istioctl, which lists what decides");
    }

    #[test]
    fn a_provider_is_asked_where_a_rule_matched() {
        let grpc = wire::extension_provider::Kind::Grpc(wire::ExtAuthzGrpc {});
        let facts = with_provider(facts(vec![asking("c", "opa")]), grpc);
        for (layer, rbac, name) in [
            (Layer::Http, "envoy.filters.http.rbac", "envoy.filters.http.ext_authz"),
            (Layer::Tcp, "envoy.filters.network.rbac", "envoy.filters.network.ext_authz"),
        ] {
            let filters = filters(&facts, layer);
            assert_eq!((&filters[0]["name"], &filters[1]["name"]), (&json!(rbac), &json!(name)));
            let matching = &filters[0]["typedConfig"];
            assert_eq!(matching["shadowRulesStatPrefix"], "istio_ext_authz_");
            assert!(
                matching["shadowRules"]["policies"]
                    .get("istio-ext-authz-opa-ns[shop]-policy[c]-rule[0]")
                    .is_some()
            );
            let asking = &filters[1]["typedConfig"];
            assert_eq!(
                asking["grpcService"],
                json!({
                    "envoyGrpc": {
                        "clusterName": "outbound|9191||opa.auth.svc.cluster.local",
                        "authority": "opa.auth.svc.cluster.local"
                    },
                    "timeout": "600s"
                })
            );
            assert_eq!(
                asking["filterEnabledMetadata"],
                json!({
                    "filter": rbac,
                    "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                    "value": {"stringMatch": {"prefix": "istio-ext-authz-opa"}}
                })
            );
        }
    }

    #[test]
    fn a_provider_of_http_is_left_out_of_tcp_and_shown_with_its_lists() {
        let http = wire::ExtAuthzHttp {
            path_prefix: "/check".into(),
            include_request_headers: vec!["x-a".into(), "x-p-*".into()],
            headers_to_upstream_on_allow: vec!["*-s".into()],
            ..Default::default()
        };
        let http = wire::extension_provider::Kind::Http(http);
        let facts = with_provider(facts(vec![asking("c", "opa")]), http);
        assert!(filters(&facts, Layer::Tcp).is_empty(), "connections pass unasked");
        let filters = filters(&facts, Layer::Http);
        let config = &filters[1]["typedConfig"];
        let pattern = |kind: &str, text: &str| json!({kind: text, "ignoreCase": true});
        assert_eq!(
            config["allowedHeaders"]["patterns"],
            json!([pattern("exact", "x-a"), pattern("prefix", "x-p-")])
        );
        assert_eq!(
            config["httpService"],
            json!({
                "serverUri": {
                    "uri": "http://opa.auth.svc.cluster.local",
                    "cluster": "outbound|9191||opa.auth.svc.cluster.local",
                    "timeout": "600s"
                },
                "pathPrefix": "/check",
                "authorizationResponse": {"allowedUpstreamHeaders": {"patterns": [pattern("suffix", "-s")]}}
            })
        );
    }

    #[test]
    fn what_a_provider_that_cannot_be_asked_would_decide_is_refused() {
        let grpc = || wire::extension_provider::Kind::Grpc(wire::ExtAuthzGrpc {});
        let unknown = with_provider(facts(vec![asking("c", "other")]), grpc());
        let several = with_provider(facts(vec![asking("c", "opa"), asking("d", "other")]), grpc());
        for (facts, count) in [(unknown, 1), (several, 2)] {
            let filters = filters(&facts, Layer::Http);
            assert_eq!(filters.len(), count, "{filters:?}");
            let names = loaded_rules(&json!(filters)).enforced;
            assert_eq!(names.len(), count);
            for name in names {
                assert!(name.ends_with("-rule[0]-deny-due-to-bad-CUSTOM-action"), "{name}");
            }
        }
    }

    #[test]
    fn a_rule_reads_as_istio_writes_it() {
        let rule = wire::Rule {
            from: vec![wire::Source {
                principals: vec!["cluster.local/ns/a/sa/b".into()],
                not_namespaces: vec!["x".into()],
                ..Default::default()
            }],
            to: vec![wire::Operation {
                methods: vec!["GET".into()],
                paths: vec!["/api/*".into()],
                ..Default::default()
            }],
            when: vec![wire::Condition {
                key: "request.headers[x-a]".into(),
                values: vec!["1".into()],
                ..Default::default()
            }],
        };
        assert_eq!(
            rule::translated(&rule, "shop", &TrustDomains::default()).expect("known keys"),
            json!({
                "permissions": [{"andRules": {"rules": [
                    {"orRules": {"rules": [{"header": {"name": ":method", "stringMatch": {"exact": "GET"}}}]}},
                    {"orRules": {"rules": [{"urlPath": {"path": {"prefix": "/api/"}}}]}},
                ]}}],
                "principals": [{"andIds": {"ids": [
                    {"orIds": {"ids": [{"authenticated": {"principalName": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}}]}},
                    {"notId": {"orIds": {"ids": [{"authenticated": {"principalName": {"safeRegex": {"regex": ".*/ns/x/.*"}}}}]}}},
                    {"orIds": {"ids": [{"header": {"name": "x-a", "stringMatch": {"exact": "1"}}}]}},
                ]}}]
            })
        );
    }
}

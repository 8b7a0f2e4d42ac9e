//! AuthorizationPolicies as Envoy's RBAC filters, one per action, with Istio's names of policies
//! (`ns[foo]-policy[bar]-rule[0]`).

use std::collections::{BTreeMap, BTreeSet};

use maille_proto::facts as wire;
use serde_json::{Map, Value, json};
use wire::authorization::Action;

use crate::address::type_url;
use crate::matchers;

/// Which filter chain the filters are for: some fields mean nothing without requests (reference authorization 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Http,
    Tcp,
}

/// The filters of a chain, in the order in which they are asked.
pub(crate) fn filters(facts: &wire::FactsInForce, layer: Layer) -> Vec<Value> {
    // Istio's order: CUSTOM, DENY, ALLOW, AUDIT (reference authorization 3).
    [Action::Custom, Action::Deny, Action::Allow, Action::Audit]
        .into_iter()
        .filter_map(|action| filter(facts, action, layer))
        .collect()
}

fn filter(facts: &wire::FactsInForce, action: Action, layer: Layer) -> Option<Value> {
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
    let rules = |policies: &[&wire::Authorization]| {
        let named = policies.iter().flat_map(|policy| named_rules(policy, layer));
        json!({"action": name_of(action), "policies": named.collect::<Map<_, _>>()})
    };
    let mut config = Map::new();
    let (name, message) = match layer {
        Layer::Http => ("envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBAC"),
        Layer::Tcp => ("envoy.filters.network.rbac", "envoy.extensions.filters.network.rbac.v3.RBAC"),
    };
    config.insert("@type".to_owned(), json!(type_url(message)));
    let is_shadow_only = action == Action::Custom;
    if !enforced.is_empty() {
        let field = if is_shadow_only { "shadowRules" } else { "rules" };
        config.insert(field.to_owned(), rules(&enforced));
    }
    if !shadow.is_empty() && !is_shadow_only {
        config.insert("shadowRules".to_owned(), rules(&shadow));
        let prefix = format!("istio_dry_run_{}_", name_of(action).to_ascii_lowercase());
        config.insert("shadowRulesStatPrefix".to_owned(), json!(prefix));
    }
    if layer == Layer::Tcp {
        config.insert("statPrefix".to_owned(), json!("tcp."));
    }
    Some(json!({"name": name, "typedConfig": config}))
}

fn name_of(action: Action) -> &'static str {
    match action {
        Action::Allow => "ALLOW",
        Action::Audit => "LOG",
        // CUSTOM: what matches is what the provider is asked about.
        Action::Deny | Action::Custom | Action::Unspecified => "DENY",
    }
}

fn named_rules(policy: &wire::Authorization, layer: Layer) -> Vec<(String, Value)> {
    let prefix = if policy.action() == Action::Custom { "istio-ext-authz-" } else { "" };
    let named = policy.rules.iter().enumerate().filter_map(|(index, rule)| {
        let rule = narrowed(rule, policy.action(), layer)?;
        let name = format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
        Some((name, translated(&rule, &policy.namespace)))
    });
    named.collect()
}

/// What is left of a rule where there are no requests: nothing of an ALLOW rule that asks about one, and the other
/// fields of any other rule.
fn narrowed(rule: &wire::Rule, action: Action, layer: Layer) -> Option<wire::Rule> {
    if layer == Layer::Http {
        return Some(rule.clone());
    }
    let mut left = rule.clone();
    for source in &mut left.from {
        source.request_principals.clear();
        source.not_request_principals.clear();
    }
    for operation in &mut left.to {
        for field in [
            &mut operation.hosts,
            &mut operation.not_hosts,
            &mut operation.methods,
            &mut operation.not_methods,
            &mut operation.paths,
            &mut operation.not_paths,
        ] {
            field.clear();
        }
    }
    left.when.retain(|condition| !condition.key.starts_with("request."));
    if action == Action::Allow && left != *rule {
        return None;
    }
    Some(left)
}

fn translated(rule: &wire::Rule, own_namespace: &str) -> Value {
    let (principal_conditions, permission_conditions): (Vec<_>, Vec<_>) =
        rule.when.iter().partition(|condition| is_about_the_source(&condition.key));
    let mut principals: Vec<Value> = Vec::new();
    let sources = if rule.from.is_empty() { vec![wire::Source::default()] } else { rule.from.clone() };
    for source in &sources {
        let mut all = of_source(source, own_namespace);
        all.extend(principal_conditions.iter().flat_map(|c| of_condition(c, own_namespace, "Id")));
        principals.push(conjunction(all, "andIds", "ids"));
    }
    let mut permissions: Vec<Value> = Vec::new();
    let operations = if rule.to.is_empty() { vec![wire::Operation::default()] } else { rule.to.clone() };
    for operation in &operations {
        let mut all = of_operation(operation);
        all.extend(permission_conditions.iter().flat_map(|c| of_condition(c, own_namespace, "Rule")));
        permissions.push(conjunction(all, "andRules", "rules"));
    }
    json!({"permissions": permissions, "principals": principals})
}

fn is_about_the_source(key: &str) -> bool {
    ["source.", "remote.", "request."].iter().any(|family| key.starts_with(family))
}

fn of_source(source: &wire::Source, own_namespace: &str) -> Vec<Value> {
    let account = |pattern: &str| matchers::service_account(pattern, own_namespace);
    let direct = |block: &str| matchers::cidr("directRemoteIp", block);
    let remote = |block: &str| matchers::cidr("remoteIp", block);
    let token = |pattern: &str| matchers::metadata("request.auth.principal", pattern);
    let mut all = Vec::new();
    for (values, not_values, matcher) in [
        (&source.principals, &source.not_principals, &matchers::principal as &dyn Fn(&str) -> Value),
        (&source.request_principals, &source.not_request_principals, &token),
        (&source.namespaces, &source.not_namespaces, &matchers::namespace),
        (&source.service_accounts, &source.not_service_accounts, &account),
        (&source.ip_blocks, &source.not_ip_blocks, &direct),
        (&source.remote_ip_blocks, &source.not_remote_ip_blocks, &remote),
        (&source.trust_domains, &source.not_trust_domains, &matchers::trust_domain),
    ] {
        all.extend(field(values, not_values, matcher, "Id"));
    }
    all
}

fn of_operation(operation: &wire::Operation) -> Vec<Value> {
    let method = |pattern: &str| matchers::header(":method", pattern);
    let mut all = Vec::new();
    for (values, not_values, matcher) in [
        (&operation.hosts, &operation.not_hosts, &matchers::host as &dyn Fn(&str) -> Value),
        (&operation.methods, &operation.not_methods, &method),
        (&operation.paths, &operation.not_paths, &matchers::path),
        (&operation.ports, &operation.not_ports, &port),
    ] {
        all.extend(field(values, not_values, matcher, "Rule"));
    }
    all
}

fn port(text: &str) -> Value {
    json!({"destinationPort": text.parse::<u32>().map_or_else(|_| json!(text), Value::from)})
}

fn of_condition(condition: &wire::Condition, own_namespace: &str, kind: &str) -> Vec<Value> {
    let key = condition.key.as_str();
    let matcher = |pattern: &str| match key {
        "source.ip" => matchers::cidr("directRemoteIp", pattern),
        "remote.ip" => matchers::cidr("remoteIp", pattern),
        "source.namespace" => matchers::namespace(pattern),
        "source.serviceAccount" => matchers::service_account(pattern, own_namespace),
        "source.principal" => matchers::principal(pattern),
        "source.trustDomain" => matchers::trust_domain(pattern),
        "destination.ip" => matchers::cidr("destinationIp", pattern),
        "destination.port" => port(pattern),
        "connection.sni" => json!({"requestedServerName": matchers::string(pattern)}),
        _ => match key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
            Some(name) => matchers::header(name, pattern),
            None => matchers::metadata(key, pattern),
        },
    };
    field(&condition.values, &condition.not_values, &matcher, kind)
}

/// One field and its `not…`: any of the ones, none of the others. `kind` is `Id` or `Rule`.
fn field(
    values: &[String],
    not_values: &[String],
    matcher: &dyn Fn(&str) -> Value,
    kind: &str,
) -> Vec<Value> {
    let (list, items) = if kind == "Id" { ("orIds", "ids") } else { ("orRules", "rules") };
    let any = |values: &[String]| {
        let each: Vec<_> = values.iter().map(|value| matcher(value)).collect();
        json!({list: {items: each}})
    };
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(json!({format!("not{kind}"): any(not_values)}));
    }
    all
}

fn conjunction(mut all: Vec<Value>, list: &str, items: &str) -> Value {
    if all.is_empty() {
        all.push(json!({"any": true}));
    }
    json!({list: {items: all}})
}

/// What a proxy enforces of one policy, read back from filters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// `DENY`, `ALLOW`, `LOG` or `CUSTOM`.
    pub action: String,
    /// `<name>.<namespace>`, or [`ANONYMOUS`].
    pub policy: String,
    /// How many of its rules are loaded.
    pub rules: usize,
}

/// An enforced filter without policies: an ALLOW policy without rules, which lets nothing through.
pub const ANONYMOUS: &str = "_anonymous_match_nothing_";

/// The policies that the RBAC filters of these listeners hold, in the order DENY, ALLOW, LOG, CUSTOM, and by name.
pub fn loaded_policies(listeners: &[Value]) -> Vec<PolicyRule> {
    let mut found: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
    for listener in listeners {
        collect(listener, &mut found);
    }
    let named = found.into_iter().map(|((order, policy), rules)| PolicyRule {
        action: ORDER.get(order).copied().unwrap_or("?").to_owned(),
        policy,
        rules: rules.len(),
    });
    named.collect()
}

const ORDER: [&str; 4] = ["DENY", "ALLOW", "LOG", "CUSTOM"];

/// Finds filters wherever they are: HTTP filters sit inside of a connection manager.
fn collect(value: &Value, found: &mut BTreeMap<(usize, String), BTreeSet<String>>) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
            if kind.ends_with(".rbac.v3.RBAC") {
                of_filter(value, found);
            }
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

fn of_filter(filter: &Value, found: &mut BTreeMap<(usize, String), BTreeSet<String>>) {
    if let Some(rules) = filter.get("rules") {
        let action = rules["action"].as_str().unwrap_or("ALLOW");
        let order = ORDER.iter().position(|name| *name == action).unwrap_or(1);
        let policies = rules["policies"].as_object();
        if policies.is_none_or(Map::is_empty) {
            found.entry((order, ANONYMOUS.to_owned())).or_default().insert("0".to_owned());
        }
        for name in policies.into_iter().flat_map(Map::keys) {
            if let Some((policy, rule)) = parse_name(name) {
                found.entry((order, policy)).or_default().insert(rule);
            }
        }
    }
    for name in filter["shadowRules"]["policies"].as_object().into_iter().flat_map(Map::keys) {
        if let Some((policy, rule)) = name.strip_prefix("istio-ext-authz-").and_then(parse_name) {
            found.entry((3, policy)).or_default().insert(rule);
        }
    }
}

/// `ns[NS]-policy[NAME]-rule[I]` as `NAME.NS` and `I`.
fn parse_name(name: &str) -> Option<(String, String)> {
    let rest = name.strip_prefix("ns[")?;
    let (namespace, rest) = rest.split_once("]-policy[")?;
    let (policy, rest) = rest.split_once("]-rule[")?;
    Some((format!("{policy}.{namespace}"), rest.strip_suffix(']')?.to_owned()))
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

    #[test]
    fn an_allow_policy_without_rules_is_shown_as_matching_nothing() {
        let facts = facts(vec![policy("deny-all", Action::Allow, Vec::new())]);
        let loaded = loaded_policies(&[json!(filters(&facts, Layer::Http))]);
        let expected = PolicyRule { action: "ALLOW".into(), policy: ANONYMOUS.into(), rules: 1 };
        assert_eq!(loaded, [expected]);
    }

    #[test]
    fn loaded_policies_are_counted_by_rule_and_ordered_by_action() {
        let facts = facts(vec![
            policy("z", Action::Allow, vec![to(&["GET"], &[]), to(&["PUT"], &[])]),
            policy("b", Action::Audit, vec![wire::Rule::default()]),
            policy("c", Action::Custom, vec![wire::Rule::default()]),
            policy("a", Action::Deny, vec![wire::Rule::default()]),
        ]);
        let both = json!([filters(&facts, Layer::Http), filters(&facts, Layer::Tcp)]);
        let loaded: Vec<_> = loaded_policies(&[both])
            .into_iter()
            .map(|p| format!("{} {} {}", p.action, p.policy, p.rules))
            .collect();
        // On TCP nothing of the ALLOW policy is left, which Istio shows in this way too.
        let nothing = "ALLOW _anonymous_match_nothing_ 1";
        assert_eq!(loaded, ["DENY a.shop 1", nothing, "ALLOW z.shop 2", "LOG b.shop 1", "CUSTOM c.shop 1"]);
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
            translated(&rule, "shop"),
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

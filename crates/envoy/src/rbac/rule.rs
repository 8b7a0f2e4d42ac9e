//! One rule in Envoy's words.

use maille_proto::facts as wire;
use serde_json::{Value, json};
use wire::authorization::Action;

use super::Layer;
use super::aliases::TrustDomains;
use crate::matchers::{self, claims};

/// What is left of a rule where there are no requests: nothing of an ALLOW rule that asks about one, and the other
/// fields of any other rule (reference authorization 11).
pub(super) fn narrowed(rule: &wire::Rule, action: Action, layer: Layer) -> Option<wire::Rule> {
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

/// The rule as a policy of RBAC; nothing for a rule with a key that nobody knows, which Istio leaves out.
pub(super) fn translated(
    rule: &wire::Rule,
    own_namespace: &str,
    domains: &TrustDomains<'_>,
) -> Option<Value> {
    let words = Words { own_namespace, domains };
    let (of_source, of_operation): (Vec<_>, Vec<_>) =
        rule.when.iter().partition(|condition| is_about_the_source(&condition.key));
    let conditions = |conditions: &[&wire::Condition], kind| -> Option<Vec<Value>> {
        let each = conditions.iter().map(|c| words.condition(c, kind));
        Some(each.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let (of_source, of_operation) =
        (conditions(&of_source, Kind::Id)?, conditions(&of_operation, Kind::Rule)?);
    let sources = if rule.from.is_empty() { vec![wire::Source::default()] } else { rule.from.clone() };
    let principals = sources.iter().map(|source| {
        let mut all = words.source(source);
        all.extend(of_source.iter().cloned());
        conjunction(all, Kind::Id)
    });
    let operations = if rule.to.is_empty() { vec![wire::Operation::default()] } else { rule.to.clone() };
    let permissions = operations.iter().map(|operation| {
        let mut all = of_fields(operation);
        all.extend(of_operation.iter().cloned());
        conjunction(all, Kind::Rule)
    });
    let (permissions, principals): (Vec<_>, Vec<_>) = (permissions.collect(), principals.collect());
    Some(json!({"permissions": permissions, "principals": principals}))
}

fn is_about_the_source(key: &str) -> bool {
    ["source.", "remote.", "request."].iter().any(|family| key.starts_with(family))
}

/// Principals are made of ids, permissions of rules.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Id,
    Rule,
}

struct Words<'w> {
    own_namespace: &'w str,
    domains: &'w TrustDomains<'w>,
}

impl Words<'_> {
    /// In Istio's order of fields.
    fn source(&self, source: &wire::Source) -> Vec<Value> {
        let s = source;
        let own = |field: &[String]| self.domains.principals(field);
        let mut all = field(&own(&s.principals), &own(&s.not_principals), &matchers::principal, Kind::Id);
        all.extend(lists(&s.request_principals, &s.not_request_principals, &claims::principals));
        let domains = |field: &[String]| self.domains.trust_domains(field);
        let account = |pattern: &str| matchers::service_account(pattern, self.own_namespace);
        let direct = |block: &str| matchers::cidr("directRemoteIp", block);
        let remote = |block: &str| matchers::cidr("remoteIp", block);
        let trusted = [domains(&s.trust_domains), domains(&s.not_trust_domains)];
        for (values, not_values, matcher) in [
            (&s.service_accounts, &s.not_service_accounts, &account as &dyn Fn(&str) -> Value),
            (&trusted[0], &trusted[1], &matchers::trust_domain),
            (&s.namespaces, &s.not_namespaces, &matchers::namespace),
            (&s.remote_ip_blocks, &s.not_remote_ip_blocks, &remote),
            (&s.ip_blocks, &s.not_ip_blocks, &direct),
        ] {
            all.extend(field(values, not_values, matcher, Kind::Id));
        }
        all
    }

    fn condition(&self, condition: &wire::Condition, kind: Kind) -> Option<Vec<Value>> {
        let key = condition.key.as_str();
        let (mut values, mut not_values) = (condition.values.clone(), condition.not_values.clone());
        let named = |family: &str| key.strip_prefix(family).and_then(|rest| rest.strip_suffix(']'));
        let found = match key {
            "request.auth.principal" => lists(&values, &not_values, &claims::principals),
            "request.auth.audiences" => lists(&values, &not_values, &|v| claims::claim(&["aud"], v)),
            "request.auth.presenter" => lists(&values, &not_values, &|v| claims::claim(&["azp"], v)),
            _ if key.starts_with("request.auth.claims[") => {
                let path: Vec<&str> = named("request.auth.claims[")?.split("][").collect();
                lists(&values, &not_values, &|v| claims::claim(&path, v))
            }
            _ => {
                match key {
                    "source.principal" => {
                        values = self.domains.principals(&values);
                        not_values = self.domains.principals(&not_values);
                    }
                    "source.trustDomain" => {
                        values = self.domains.trust_domains(&values);
                        not_values = self.domains.trust_domains(&not_values);
                    }
                    _ => {}
                }
                let header = named("request.headers[");
                let known = header.is_some() || PLAIN_KEYS.contains(&key);
                let matcher = |pattern: &str| match header {
                    Some(name) => matchers::header(name, pattern),
                    None => self.plain(key, pattern),
                };
                known.then(|| field(&values, &not_values, &matcher, kind))?
            }
        };
        Some(found)
    }

    /// A value of one of [`PLAIN_KEYS`].
    fn plain(&self, key: &str, pattern: &str) -> Value {
        match key {
            "source.ip" => matchers::cidr("directRemoteIp", pattern),
            "remote.ip" => matchers::cidr("remoteIp", pattern),
            "source.namespace" => matchers::namespace(pattern),
            "source.serviceAccount" => matchers::service_account(pattern, self.own_namespace),
            "source.principal" => matchers::principal(pattern),
            "source.trustDomain" => matchers::trust_domain(pattern),
            "destination.ip" => matchers::cidr("destinationIp", pattern),
            "destination.port" => port(pattern),
            _ => json!({"requestedServerName": matchers::string(pattern)}),
        }
    }
}

/// Keys of conditions whose values are matched one by one.
const PLAIN_KEYS: [&str; 9] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.principal",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

fn of_fields(operation: &wire::Operation) -> Vec<Value> {
    let method = |pattern: &str| matchers::header(":method", pattern);
    let mut all = Vec::new();
    for (values, not_values, matcher) in [
        (&operation.hosts, &operation.not_hosts, &matchers::host as &dyn Fn(&str) -> Value),
        (&operation.methods, &operation.not_methods, &method),
        (&operation.paths, &operation.not_paths, &matchers::path),
        (&operation.ports, &operation.not_ports, &port),
    ] {
        all.extend(field(values, not_values, matcher, Kind::Rule));
    }
    all
}

fn port(text: &str) -> Value {
    json!({"destinationPort": text.parse::<u32>().map_or_else(|_| json!(text), Value::from)})
}

/// One field and its `not…`: any of the ones, none of the others.
fn field(
    values: &[String],
    not_values: &[String],
    matcher: &dyn Fn(&str) -> Value,
    kind: Kind,
) -> Vec<Value> {
    let (list, items, not) = match kind {
        Kind::Id => ("orIds", "ids", "notId"),
        Kind::Rule => ("orRules", "rules", "notRule"),
    };
    let any = |values: &[String]| {
        let each: Vec<_> = values.iter().map(|value| matcher(value)).collect();
        json!({list: {items: each}})
    };
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(json!({not: any(not_values)}));
    }
    all
}

/// The same for what a token says, whose values are matched as one list.
fn lists(values: &[String], not_values: &[String], matcher: &dyn Fn(&[String]) -> Value) -> Vec<Value> {
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(matcher(values));
    }
    if !not_values.is_empty() {
        all.push(json!({"notId": matcher(not_values)}));
    }
    all
}

fn conjunction(mut all: Vec<Value>, kind: Kind) -> Value {
    if all.is_empty() {
        all.push(json!({"any": true}));
    }
    match kind {
        Kind::Id => json!({"andIds": {"ids": all}}),
        Kind::Rule => json!({"andRules": {"rules": all}}),
    }
}

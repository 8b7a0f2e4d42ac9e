//! AuthorizationPolicy in Envoy's RBAC configuration, the way Istio generates it (istio
//! pilot/pkg/security/authz/{builder,model}), with the certificate's SAN in place of Istio's own filter state.

use std::collections::BTreeSet;

use maille_config::istio::{Action, Condition, Operation, Rule, Source};
use maille_policy::Authorization;
use serde_json::{Value, json};

/// Which policies become one set of rules.
#[derive(Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) action: Action,
    pub(crate) dry_run: bool,
    /// Of CUSTOM, those of this provider only.
    pub(crate) provider: Option<&'a str>,
    /// For a chain of opaque bytes (reference authorization 11).
    pub(crate) tcp: bool,
}

/// The rules of all policies chosen; nothing if there is no such policy.
pub(crate) fn rbac(policies: &[Authorization], choice: Choice<'_>) -> Option<Value> {
    let is_chosen = |policy: &&Authorization| {
        let provider = policy.spec.provider.as_ref().map(|provider| provider.name.as_str());
        policy.spec.action == choice.action && policy.dry_run == choice.dry_run && provider == choice.provider
    };
    let chosen: Vec<_> = policies.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        return None;
    }
    let mut rules = serde_json::Map::new();
    for policy in chosen {
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let provider = choice.provider.map(|name| format!("istio-ext-authz-{name}-")).unwrap_or_default();
            let name = format!("{provider}ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
            if let Some(rule) = on_chain(rule, choice) {
                rules.insert(name, translate(&rule, &policy.namespace));
            }
        }
    }
    let action = match choice.action {
        Action::Allow => "ALLOW",
        Action::Audit => "LOG",
        Action::Deny | Action::Custom => "DENY",
    };
    Some(json!({ "action": action, "policies": rules }))
}

/// Names of the providers of CUSTOM policies.
pub(crate) fn providers(policies: &[Authorization]) -> BTreeSet<&str> {
    let custom = policies.iter().filter(|policy| policy.spec.action == Action::Custom);
    custom.filter_map(|policy| policy.spec.provider.as_ref()).map(|provider| provider.name.as_str()).collect()
}

/// The rule as Istio generates it for this kind of chain: without what opaque bytes do not have, or not at all.
fn on_chain(rule: &Rule, choice: Choice<'_>) -> Option<Rule> {
    let mut rule = rule.clone();
    if !choice.tcp {
        return Some(rule);
    }
    let mut dropped = false;
    let mut drop = |values: &mut Vec<String>| {
        dropped |= !values.is_empty();
        values.clear();
    };
    for source in rule.from.iter_mut().filter_map(|from| from.source.as_mut()) {
        drop(&mut source.request_principals);
        drop(&mut source.not_request_principals);
    }
    for o in rule.to.iter_mut().filter_map(|to| to.operation.as_mut()) {
        let lists = [
            &mut o.hosts,
            &mut o.not_hosts,
            &mut o.methods,
            &mut o.not_methods,
            &mut o.paths,
            &mut o.not_paths,
        ];
        lists.into_iter().for_each(&mut drop);
    }
    let before = rule.when.len();
    rule.when.retain(|condition| !condition.key.starts_with("request."));
    dropped |= rule.when.len() < before;
    (choice.action != Action::Allow || !dropped).then_some(rule)
}

fn translate(rule: &Rule, namespace: &str) -> Value {
    let (of_destination, of_source): (Vec<&Condition>, Vec<&Condition>) =
        rule.when.iter().partition(|c| c.key.starts_with("destination.") || c.key.starts_with("connection."));
    let sources: Vec<Option<&Source>> = match rule.from.is_empty() {
        true => vec![None],
        false => rule.from.iter().map(|from| from.source.as_ref()).collect(),
    };
    let principals: Vec<Value> = sources
        .into_iter()
        .map(|source| {
            let mut ids = source.map(|source| of(source, namespace)).unwrap_or_default();
            ids.extend(of_source.iter().flat_map(|condition| source_condition(condition, namespace)));
            all_ids(ids)
        })
        .collect();
    let operations: Vec<Option<&Operation>> = match rule.to.is_empty() {
        true => vec![None],
        false => rule.to.iter().map(|to| to.operation.as_ref()).collect(),
    };
    let permissions: Vec<Value> = operations
        .into_iter()
        .map(|operation| {
            let mut rules = operation.map(permission).unwrap_or_default();
            rules.extend(of_destination.iter().flat_map(|condition| destination_condition(condition)));
            match rules.is_empty() {
                true => json!({ "any": true }),
                false => json!({ "and_rules": { "rules": rules } }),
            }
        })
        .collect();
    json!({ "permissions": permissions, "principals": principals })
}

fn all_ids(ids: Vec<Value>) -> Value {
    if ids.is_empty() { json!({ "any": true }) } else { json!({ "and_ids": { "ids": ids } }) }
}

/// One field and its negation, as principals.
fn ids(values: &[String], not_values: &[String], one: impl Fn(&str) -> Value) -> Vec<Value> {
    let any =
        |values: &[String]| json!({ "or_ids": { "ids": values.iter().map(|v| one(v)).collect::<Vec<_>>() } });
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(json!({ "not_id": any(not_values) }));
    }
    all
}

/// One field and its negation, as permissions.
fn rules(values: &[String], not_values: &[String], one: impl Fn(&str) -> Value) -> Vec<Value> {
    let any = |values: &[String]| json!({ "or_rules": { "rules": values.iter().map(|v| one(v)).collect::<Vec<_>>() } });
    let mut all = Vec::new();
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(json!({ "not_rule": any(not_values) }));
    }
    all
}

fn of(s: &Source, namespace: &str) -> Vec<Value> {
    let mut all = ids(&s.principals, &s.not_principals, principal);
    all.extend(ids(&s.request_principals, &s.not_request_principals, request_principal));
    all.extend(ids(&s.namespaces, &s.not_namespaces, peer_namespace));
    all.extend(ids(&s.service_accounts, &s.not_service_accounts, |v| account(v, namespace)));
    all.extend(ids(&s.trust_domains, &s.not_trust_domains, trust_domain));
    all.extend(ids(&s.ip_blocks, &s.not_ip_blocks, |v| json!({ "direct_remote_ip": cidr(v) })));
    all.extend(ids(&s.remote_ip_blocks, &s.not_remote_ip_blocks, |v| json!({ "remote_ip": cidr(v) })));
    all
}

fn source_condition(c: &Condition, namespace: &str) -> Vec<Value> {
    let (values, not_values) = (&c.values, &c.not_values);
    match c.key.as_str() {
        "source.ip" => ids(values, not_values, |v| json!({ "direct_remote_ip": cidr(v) })),
        "remote.ip" => ids(values, not_values, |v| json!({ "remote_ip": cidr(v) })),
        "source.namespace" => ids(values, not_values, peer_namespace),
        "source.serviceAccount" => ids(values, not_values, |v| account(v, namespace)),
        "source.principal" => ids(values, not_values, principal),
        "source.trustDomain" => ids(values, not_values, trust_domain),
        "request.auth.principal" => ids(values, not_values, request_principal),
        "request.auth.audiences" => claims(&["aud"], c),
        "request.auth.presenter" => claims(&["azp"], c),
        key if key.starts_with("request.auth.claims[") => {
            let names = key["request.auth.claims[".len()..key.len() - 1].split("][");
            claims(&names.collect::<Vec<_>>(), c)
        }
        key => {
            let name = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']'));
            let name = name.unwrap_or_else(|| panic!("no translation of {key}"));
            ids(values, not_values, |v| json!({ "header": header(name, v, false) }))
        }
    }
}

fn destination_condition(c: &Condition) -> Vec<Value> {
    match c.key.as_str() {
        "destination.ip" => rules(&c.values, &c.not_values, |v| json!({ "destination_ip": cidr(v) })),
        "destination.port" => rules(&c.values, &c.not_values, port),
        "connection.sni" => {
            rules(&c.values, &c.not_values, |v| json!({ "requested_server_name": text(v, "", false) }))
        }
        key => panic!("no translation of {key}"),
    }
}

fn permission(o: &Operation) -> Vec<Value> {
    let mut all = rules(&o.hosts, &o.not_hosts, |v| json!({ "header": header(":authority", v, true) }));
    all.extend(rules(&o.methods, &o.not_methods, |v| json!({ "header": header(":method", v, false) })));
    all.extend(rules(&o.paths, &o.not_paths, path));
    all.extend(rules(&o.ports, &o.not_ports, port));
    all
}

fn port(value: &str) -> Value {
    json!({ "destination_port": value.parse::<u16>().expect("validated") })
}

fn path(value: &str) -> Value {
    if value.contains("{*}") || value.contains("{**}") {
        let template = value.replace("{**}", "**").replace("{*}", "*");
        return json!({ "uri_template": {
            "name": "uri-template",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": template,
            },
        }});
    }
    json!({ "url_path": { "path": text(value, "", false) } })
}

fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    // HTTP/1's Host is HTTP/2's :authority, and Envoy knows no other.
    let name = if name.eq_ignore_ascii_case("host") { ":authority" } else { name };
    match value {
        "*" => json!({ "name": name, "present_match": true }),
        value => json!({ "name": name, "string_match": text(value, "", ignore_case) }),
    }
}

/// Section 6 of the reference: `*`, then a leading star, then one at the end, else the text itself.
fn text(value: &str, before: &str, ignore_case: bool) -> Value {
    let mut matcher = if value == "*" {
        json!({ "safe_regex": { "regex": ".+" } })
    } else if let Some(end) = value.strip_prefix('*') {
        match before {
            "" => json!({ "suffix": end }),
            _ => json!({ "safe_regex": { "regex": format!("{before}.*{}", escape(end)) } }),
        }
    } else if let Some(start) = value.strip_suffix('*') {
        json!({ "prefix": format!("{before}{start}") })
    } else {
        json!({ "exact": format!("{before}{value}") })
    };
    if ignore_case && matcher.get("safe_regex").is_none() {
        matcher["ignore_case"] = true.into();
    }
    matcher
}

/// Issuer and subject, split at the last slash (reference authorization 20).
fn request_principal(value: &str) -> Value {
    let any = || json!({ "safe_regex": { "regex": ".+" } });
    let exact = |text: &str| json!({ "exact": text });
    let (issuer, subject) = match (value, value.rsplit_once('/')) {
        ("*", _) => (any(), any()),
        (value, Some((issuer, subject))) if value.starts_with('*') => {
            let ending = issuer.strip_prefix('*').unwrap_or(issuer);
            (if issuer == "*" { any() } else { json!({ "suffix": ending }) }, exact(subject))
        }
        (value, None) if value.starts_with('*') => (any(), json!({ "suffix": &value[1..] })),
        (value, Some((issuer, subject))) if value.ends_with('*') => {
            let start = subject.strip_suffix('*').unwrap_or(subject);
            (exact(issuer), if subject == "*" { any() } else { json!({ "prefix": start }) })
        }
        (value, None) if value.ends_with('*') => (json!({ "prefix": &value[..value.len() - 1] }), any()),
        (_, Some((issuer, subject))) => (exact(issuer), exact(subject)),
        (value, None) => (exact(value), exact("")),
    };
    let claim = |name: &str, matcher: Value| metadata(&[name], json!({ "string_match": matcher }));
    json!({ "and_ids": { "ids": [claim("iss", issuer), claim("sub", subject)] } })
}

/// A claim that is the text, or a list that holds it; all values in one matcher, as Istio has it.
fn claims(names: &[&str], c: &Condition) -> Vec<Value> {
    let one = |values: &[String]| {
        let texts: Vec<Value> =
            values.iter().map(|v| json!({ "string_match": text(v, "", false) })).collect();
        let texts = match texts.as_slice() {
            [only] => only.clone(),
            _ => json!({ "or_match": { "value_matchers": texts } }),
        };
        let list = json!({ "list_match": { "one_of": texts } });
        metadata(names, json!({ "or_match": { "value_matchers": [list, texts] } }))
    };
    let mut all = Vec::new();
    if !c.values.is_empty() {
        all.push(one(&c.values));
    }
    if !c.not_values.is_empty() {
        all.push(json!({ "not_id": one(&c.not_values) }));
    }
    all
}

fn metadata(names: &[&str], value: Value) -> Value {
    let path: Vec<Value> = ["payload"].iter().chain(names).map(|name| json!({ "key": name })).collect();
    json!({ "metadata": { "filter": "envoy.filters.http.jwt_authn", "path": path, "value": value } })
}

fn authenticated(matcher: Value) -> Value {
    json!({ "authenticated": { "principal_name": matcher } })
}

fn principal(value: &str) -> Value {
    authenticated(text(value, "spiffe://", false))
}

fn peer_namespace(value: &str) -> Value {
    let value: Vec<String> = value.split('*').map(escape).collect();
    authenticated(json!({ "safe_regex": { "regex": format!(".*/ns/{}/.*", value.join(".*")) } }))
}

fn account(value: &str, namespace: &str) -> Value {
    let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
    let regex = format!("spiffe://.+/ns/{}/(.+/)?sa/{}(/.+)?", escape(namespace), escape(account));
    authenticated(json!({ "safe_regex": { "regex": regex } }))
}

fn trust_domain(value: &str) -> Value {
    if value == "*" {
        return authenticated(json!({ "prefix": "spiffe://" }));
    }
    let value: Vec<String> = value.split('*').map(escape).collect();
    authenticated(json!({ "safe_regex": { "regex": format!("spiffe://{}/.*", value.join("[^/]*")) } }))
}

fn cidr(value: &str) -> Value {
    let (address, length) = match value.split_once('/') {
        Some((address, length)) => (address, length.parse().expect("validated")),
        None => (value, if value.contains(':') { 128 } else { 32 }),
    };
    json!({ "address_prefix": address, "prefix_len": length })
}

fn escape(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_ascii_alphanumeric()).then_some('\\').into_iter().chain([c])).collect()
}

//! AuthorizationPolicy in Envoy's RBAC configuration, the way Istio generates it (istio
//! pilot/pkg/security/authz/{builder,model}), with the certificate's SAN in place of Istio's own filter state.

use maille_config::istio::{Action, Condition, Operation, Rule, Source};
use maille_policy::Authorization;
use serde_json::{Value, json};

/// The rules of all policies of one action; nothing if there is no such policy.
pub(crate) fn rbac(policies: &[Authorization], action: Action) -> Option<Value> {
    let chosen: Vec<_> = policies.iter().filter(|policy| policy.spec.action == action).collect();
    if chosen.is_empty() {
        return None;
    }
    let mut rules = serde_json::Map::new();
    for policy in chosen {
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let name = format!("ns[{}]-policy[{}]-rule[{index}]", policy.namespace, policy.name);
            rules.insert(name, translate(rule, &policy.namespace));
        }
    }
    let action = if action == Action::Deny { "DENY" } else { "ALLOW" };
    Some(json!({ "action": action, "policies": rules }))
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

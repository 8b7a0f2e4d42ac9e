//! Rules in one line, for people.

use maille_config::istio::{Condition, Operation, Rule, Source};

/// `from principals a, b; to methods GET, paths /x`.
pub(super) fn describe(rule: &Rule) -> String {
    let from: Vec<String> = rule.from.iter().map(|from| source(from.source.as_ref())).collect();
    let to: Vec<String> = rule.to.iter().map(|to| operation(to.operation.as_ref())).collect();
    let when: Vec<String> = rule.when.iter().map(condition).collect();
    let parts = [("from", from.join(", or ")), ("to", to.join(", or ")), ("when", when.join(", and "))];
    let named = parts.into_iter().filter(|(_, text)| !text.is_empty());
    let text = named.map(|(name, text)| format!("{name} {text}")).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "everything".to_owned() } else { text }
}

fn source(source: Option<&Source>) -> String {
    let Some(s) = source else { return "anyone".to_owned() };
    fields(&[
        ("principals", &s.principals),
        ("not principals", &s.not_principals),
        ("requestPrincipals", &s.request_principals),
        ("not requestPrincipals", &s.not_request_principals),
        ("namespaces", &s.namespaces),
        ("not namespaces", &s.not_namespaces),
        ("serviceAccounts", &s.service_accounts),
        ("not serviceAccounts", &s.not_service_accounts),
        ("ipBlocks", &s.ip_blocks),
        ("not ipBlocks", &s.not_ip_blocks),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("not remoteIpBlocks", &s.not_remote_ip_blocks),
        ("trustDomains", &s.trust_domains),
        ("not trustDomains", &s.not_trust_domains),
    ])
}

fn operation(operation: Option<&Operation>) -> String {
    let Some(o) = operation else { return "anything".to_owned() };
    fields(&[
        ("hosts", &o.hosts),
        ("not hosts", &o.not_hosts),
        ("ports", &o.ports),
        ("not ports", &o.not_ports),
        ("methods", &o.methods),
        ("not methods", &o.not_methods),
        ("paths", &o.paths),
        ("not paths", &o.not_paths),
    ])
}

fn condition(condition: &Condition) -> String {
    let of = [("is one of", &condition.values), ("is none of", &condition.not_values)];
    format!("{} {}", condition.key, fields(&of))
}

fn fields(fields: &[(&str, &Vec<String>)]) -> String {
    let used = fields.iter().filter(|(_, values)| !values.is_empty());
    used.map(|(name, values)| format!("{name} {}", values.join(", "))).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use maille_config::istio::{From, To};

    #[test]
    fn rules_read_like_sentences() {
        let text = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let principals = Source { principals: text(&["a", "b"]), ..Source::default() };
        let get = Operation { methods: text(&["GET"]), not_ports: text(&["9090"]), ..Operation::default() };
        let host = Operation { hosts: text(&["h"]), ..Operation::default() };
        let rule = Rule {
            from: vec![From { source: Some(principals) }],
            to: vec![To { operation: Some(get) }, To { operation: Some(host) }],
            when: vec![Condition {
                key: "source.ip".into(),
                values: text(&["10.0.0.0/8"]),
                not_values: Vec::new(),
            }],
        };
        assert_eq!(
            describe(&rule),
            "from principals a, b; to not ports 9090 and methods GET, or hosts h; when source.ip is one of 10.0.0.0/8"
        );
        assert_eq!(describe(&Rule::default()), "everything");
    }
}

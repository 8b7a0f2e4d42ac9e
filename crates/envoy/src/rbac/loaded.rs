//! Policies, read back from filters.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::CUSTOM_NAME;

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

/// An enforced filter without policies: of ALLOW, it lets nothing through. (On TCP, where every rule asks about requests.)
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
    for name in names(&filter["shadowRules"]).filter(|name| name.starts_with(CUSTOM_NAME)) {
        if let Some((policy, rule)) = parse_name(name) {
            found.entry((3, policy)).or_default().insert(rule);
        }
    }
}

/// `ns[NS]-policy[NAME]-rule[I]`, whatever stands around it, as `NAME.NS` and `I`.
fn parse_name(name: &str) -> Option<(String, String)> {
    let (_, rest) = name.split_once("ns[")?;
    let (namespace, rest) = rest.split_once("]-policy[")?;
    let (policy, rest) = rest.split_once("]-rule[")?;
    let (rule, _) = rest.split_once(']')?;
    Some((format!("{policy}.{namespace}"), rule.to_owned()))
}

fn names(rules: &Value) -> impl Iterator<Item = &String> {
    rules["policies"].as_object().into_iter().flat_map(Map::keys)
}

/// Names of the rules that the RBAC filters of a chain hold, as they are written there; sorted, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedRules {
    /// Those that decide.
    pub enforced: BTreeSet<String>,
    /// Those that find out whether a provider is to be asked.
    pub asking: BTreeSet<String>,
    /// Those of dry runs, which decide nothing.
    pub shadow: BTreeSet<String>,
}

/// The rules of the filters in a chain, or in anything that has chains.
pub fn loaded_rules(value: &Value) -> LoadedRules {
    let mut found = LoadedRules::default();
    gather(value, &mut found);
    found
}

fn gather(value: &Value, found: &mut LoadedRules) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("@type").and_then(Value::as_str).unwrap_or_default();
            if kind.ends_with(".rbac.v3.RBAC") {
                found.enforced.extend(names(&value["rules"]).cloned());
                let (asking, shadow): (Vec<String>, Vec<String>) =
                    names(&value["shadowRules"]).cloned().partition(|name| name.starts_with(CUSTOM_NAME));
                found.asking.extend(asking);
                found.shadow.extend(shadow);
            }
            fields.values().for_each(|value| gather(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, found)),
        _ => {}
    }
}

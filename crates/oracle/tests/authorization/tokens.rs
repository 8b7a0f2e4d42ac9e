//! Generated tokens, rules about them, and the actions that come beside ALLOW and DENY.

use maille_config::istio::{Action, Condition, From, Provider, Rule, Source};
use maille_policy::Authorization;
use serde_json::{Map, Value, json};

use crate::random::Random;

const ISSUERS: &[&str] = &["https://idp", "https://idp.example", "idp", "a/b", "https:/", ""];
const SUBJECTS: &[&str] = &["u1", "u12", "idp", "b/c", "*", "b", ""];
const PRINCIPALS: &[&str] = &[
    "*",
    "https://idp/*",
    "https://idp/u1",
    "https://idp/u*",
    "*/u1",
    "*idp/u1",
    "*1",
    "https://*",
    "idp",
    "*/*",
    "https://idp*",
    "https://idp/",
    "*/u*",
    "a/b/c",
    "a/b/*",
    "**",
    "/u1",
    "*/",
    "a/b/b/c",
    "https://idp/*/u1",
];
const KEYS: &[&str] = &[
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[groups]",
    "request.auth.claims[groups]",
    "request.auth.claims[scope]",
    "request.auth.claims[iss]",
    "request.auth.claims[sub]",
    "request.auth.claims[aud]",
    "request.auth.claims[admin]",
    "request.auth.claims[realm][roles]",
    "request.auth.claims[realm][name]",
    "request.auth.claims[realm]",
    "request.auth.claims[a.b]",
    "request.auth.claims[a[b]]",
    "request.auth.claims[tags]",
    "request.auth.claims[x0]",
    "request.auth.claims[x1]",
    "request.auth.claims[x2][y]",
];
const BAD_KEYS: &[&str] = &[
    "request.auth.claims[]",
    "request.auth.claims[a][]",
    "request.auth.claims",
    "request.auth.claims.a",
    "request.auth.other",
];
const WORDS: &[&str] =
    &["dev", "dev-ops", "ops", "read", "write", "write read", "true", "1", "u1", "dév", "d*v"];

/// How often a set of policies looks at tokens.
pub(crate) fn add(random: &mut Random, policies: &mut [Authorization]) {
    let one_in = *random.one(&[0, 1, 2, 4, 8]);
    for rule in policies.iter_mut().flat_map(|p| &mut p.spec.rules) {
        if one_in > 0 && random.once_in(one_in) {
            look_at_token(random, rule);
        }
    }
    match random.below(4) {
        0 => policies.iter_mut().for_each(|p| other_action(random, p)),
        // All of one kind, so that the rarer kinds meet crowds too.
        1 => {
            let (action, dry_run) = *random.one(&[
                (Action::Custom, false),
                (Action::Audit, false),
                (Action::Deny, true),
                (Action::Allow, true),
            ]);
            for policy in policies.iter_mut() {
                (policy.spec.action, policy.dry_run) = (action, dry_run);
            }
        }
        _ => {}
    }
    let usual = random.pick(&["opa", "keys"]).to_owned();
    let several = random.once_in(4);
    for policy in policies.iter_mut().filter(|p| p.spec.action == Action::Custom) {
        let other = several && random.once_in(4);
        let name = if other { random.pick(&["opa", "keys", "none"]).to_owned() } else { usual.clone() };
        policy.spec.provider = (!random.once_in(40)).then_some(Provider { name });
    }
}

fn other_action(random: &mut Random, policy: &mut Authorization) {
    policy.spec.action = *random.one(&[Action::Allow, Action::Deny, Action::Audit, Action::Custom]);
    policy.dry_run = random.once_in(3);
}

fn look_at_token(random: &mut Random, rule: &mut Rule) {
    if random.once_in(3) {
        let principals = |random: &mut Random| -> Vec<String> {
            let count = 1 + if random.once_in(4) { random.below(4) } else { 0 };
            (0..count).map(|_| random.pick(PRINCIPALS).to_owned()).collect()
        };
        let values = principals(random);
        let source = match rule.from.first_mut().and_then(|from| from.source.as_mut()) {
            Some(source) if random.once_in(2) => source,
            _ => {
                rule.from.push(From { source: Some(Source::default()) });
                match rule.from.last_mut().and_then(|from| from.source.as_mut()) {
                    Some(source) => source,
                    None => return,
                }
            }
        };
        match random.once_in(3) {
            true => source.not_request_principals = values,
            false => source.request_principals = values,
        }
        if random.once_in(6) {
            source.not_request_principals = principals(random);
        }
        return;
    }
    let key = match random.below(40) {
        0 if random.once_in(4) => random.pick(BAD_KEYS),
        1..8 => "request.auth.principal",
        _ => random.pick(KEYS),
    };
    let mut condition = Condition { key: key.to_owned(), ..Condition::default() };
    let which = random.below(8);
    if which < 6 {
        condition.values = values(random, key);
    }
    if which > 4 {
        condition.not_values = values(random, key);
    }
    rule.when.push(condition);
}

fn values(random: &mut Random, key: &str) -> Vec<String> {
    let count = 1 + if random.once_in(4) { random.below(6) } else { 0 };
    let value = |random: &mut Random| match key {
        "request.auth.principal" => random.pick(PRINCIPALS).to_owned(),
        "request.auth.claims[iss]" => starred(random, ISSUERS),
        "request.auth.claims[sub]" => starred(random, SUBJECTS),
        _ => starred(random, WORDS),
    };
    let mut values: Vec<String> = (0..count).map(|_| value(random)).collect();
    // Empty values make the policy unusable, which is to stay rare.
    if !random.once_in(40) {
        values.iter_mut().filter(|value| value.is_empty()).for_each(|value| value.push('*'));
    }
    values
}

fn starred(random: &mut Random, from: &[&str]) -> String {
    let text = random.pick(from);
    let half = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
    let (start, end) = text.split_at(half);
    match random.below(10) {
        0 => "*".to_owned(),
        1 => format!("{start}*"),
        2 => format!("*{end}"),
        _ => text.to_owned(),
    }
}

/// A payload that has nothing to do with any policy; `None`: no token.
pub(crate) fn any(random: &mut Random) -> Option<Map<String, Value>> {
    if random.once_in(5) {
        return None;
    }
    let mut payload = Map::new();
    for name in
        ["iss", "sub", "aud", "azp", "groups", "scope", "admin", "realm", "a.b", "a[b]", "tags", "x0", "x1"]
    {
        if !random.once_in(3) {
            let value = match name {
                "iss" => text(random, ISSUERS),
                "sub" => text(random, SUBJECTS),
                "realm" if !random.once_in(6) => {
                    json!({ "roles": claim(random), "name": random.pick(WORDS), "y": claim(random) })
                }
                _ => claim(random),
            };
            payload.insert(name.to_owned(), value);
        }
    }
    Some(payload)
}

fn text(random: &mut Random, from: &[&str]) -> Value {
    if random.once_in(30) { json!(7) } else { json!(random.pick(from)) }
}

fn claim(random: &mut Random) -> Value {
    match random.below(12) {
        0 => json!(true),
        1 => json!(1),
        2 => json!({ "dev": "dev" }),
        3 => json!(""),
        4..8 => {
            let one = |random: &mut Random| match random.below(8) {
                0 => json!(1),
                1 => json!([random.pick(WORDS)]),
                2 => json!(""),
                _ => json!(random.pick(WORDS)),
            };
            (0..random.below(4)).map(|_| one(random)).collect()
        }
        _ => json!(random.pick(WORDS)),
    }
}

/// Sets issuer and subject to what a value of `requestPrincipals` names.
pub(crate) fn fit_principal(payload: &mut Map<String, Value>, value: &str, random: &mut Random) {
    let filling = random.pick(&["x", "u1", "idp", ""]);
    let (issuer, subject) = match value.rsplit_once('/') {
        Some((issuer, subject)) => (issuer.replace('*', filling), subject.replace('*', filling)),
        None if value.starts_with('*') => ("https://idp".to_owned(), value.replace('*', filling)),
        None => (value.replace('*', filling), "u1".to_owned()),
    };
    payload.insert("iss".to_owned(), json!(issuer));
    payload.insert("sub".to_owned(), json!(subject));
}

/// Sets the claim that a key names to a value that fits, alone or in a list.
pub(crate) fn fit_claim(payload: &mut Map<String, Value>, key: &str, value: &str, random: &mut Random) {
    let fitting = json!(value.replace('*', random.pick(&["x", "", "dev"])));
    let fitting = match random.below(4) {
        0 => json!([fitting]),
        1 => json!([claim(random), fitting, 1]),
        _ => fitting,
    };
    let path: Vec<&str> = match key {
        "request.auth.audiences" => vec!["aud"],
        "request.auth.presenter" => vec!["azp"],
        "request.auth.claims[a[b]]" => vec!["a[b]"],
        key => key.trim_start_matches("request.auth.claims").trim_matches(['[', ']']).split("][").collect(),
    };
    match path.as_slice() {
        [name] => drop(payload.insert((*name).to_owned(), fitting)),
        [outer, inner] => match payload.get_mut(*outer) {
            Some(Value::Object(object)) => drop(object.insert((*inner).to_owned(), fitting)),
            _ => drop(payload.insert((*outer).to_owned(), json!({ *inner: fitting }))),
        },
        _ => {}
    }
}

//! `authz check` and the literal interpreter give the same answers, asked through the JSON of the contract.
//!
//! `MAILLE_CASES` sets how many questions are tried.

use std::collections::BTreeMap;
use std::net::IpAddr;

use maille_analysis::authz::{Action, Checker, Settings, read_questions};
use maille_config::istio::AuthorizationPolicy;
use maille_config::{Object, check};
use maille_core::{Identity, TrustDomain};
use maille_oracle::authorization::decide;
use maille_policy::{
    Authorization, ConnectionAttributes, DecidedBy, RequestAttributes, TrustContext, Verdict, forwarded_for,
};
use serde_json::{Value, json};

/// Questions for each set of policies.
const QUESTIONS_PER_SET: usize = 12;

const NAMESPACES: &[&str] = &["a", "b", "istio-system"];
const LABELS: &[&str] = &["web", "db"];
const PRINCIPALS: &[&str] = &["cluster.local/ns/a/sa/x", "cluster.local/ns/b/sa/y", "other.td/ns/a/sa/x"];
const ADDRESSES: &[&str] = &["10.0.0.1", "10.1.2.3", "192.0.2.1", "2001:db8::1"];
const METHODS: &[&str] = &["GET", "POST", "PUT"];
const HOSTS: &[&str] = &["shop.example", "SHOP.example:8080", "h"];
const PATHS: &[&str] = &["/", "/a", "/a/b", "/admin/x", "/v1/q/items", "/a?x=1"];
const VALUES: &[&str] = &["gold", "golden", "b", ""];
const NAMES: &[&str] = &["a.corp", "B.corp"];

/// Deterministic, so that a failure is found again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One or two values, now and then with a star.
    fn values(&mut self, from: &[&str]) -> Value {
        let count = 1 + self.below(2);
        (0..count)
            .map(|_| {
                let text = self.pick(from).to_owned();
                let at = self.below(text.len() + 1);
                match self.below(8) {
                    0 => format!("{}*", &text[..at]),
                    1 => format!("*{}", &text[at..]),
                    2 => "*".to_owned(),
                    _ if text.is_empty() => "x".to_owned(),
                    _ => text,
                }
            })
            .collect()
    }
}

fn policy(random: &mut Random, index: usize) -> Value {
    let action = if random.once_in(3) { "DENY" } else { "ALLOW" };
    let rules: Vec<Value> = (0..1 + random.below(3)).map(|_| rule(random)).collect();
    let rules = if action == "ALLOW" && random.once_in(6) { Vec::new() } else { rules };
    let mut spec = json!({"action": action, "rules": rules});
    if random.once_in(3) {
        spec["selector"] = json!({"matchLabels": {"app": random.pick(LABELS)}});
    }
    let mut metadata = json!({"name": format!("p{index}"), "namespace": random.pick(NAMESPACES)});
    if random.once_in(10) {
        metadata["annotations"] = json!({"istio.io/dry-run": random.pick(&["true", "false"])});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

fn rule(random: &mut Random) -> Value {
    let mut rule = json!({});
    if !random.once_in(3) {
        rule["from"] = (0..1 + random.below(2)).map(|_| json!({"source": source(random)})).collect();
    }
    if !random.once_in(3) {
        rule["to"] = (0..1 + random.below(2)).map(|_| json!({"operation": operation(random)})).collect();
    }
    if random.once_in(3) {
        rule["when"] = json!([condition(random)]);
    }
    rule
}

fn source(random: &mut Random) -> Value {
    let not = random.once_in(4);
    let (name, values) = match random.below(5) {
        0 | 1 => (["principals", "notPrincipals"], random.values(PRINCIPALS)),
        2 => (["namespaces", "notNamespaces"], random.values(&["a", "b", "ab"])),
        3 => (
            ["ipBlocks", "notIpBlocks"],
            json!([random.pick(&["10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "::/0"])]),
        ),
        _ => (["remoteIpBlocks", "notRemoteIpBlocks"], json!([random.pick(&["10.0.0.0/8", "192.0.2.0/24"])])),
    };
    json!({name[usize::from(not)]: values})
}

fn operation(random: &mut Random) -> Value {
    let not = random.once_in(4);
    let (name, values) = match random.below(4) {
        0 => (["methods", "notMethods"], random.values(METHODS)),
        1 => (["paths", "notPaths"], random.values(PATHS)),
        2 => (["hosts", "notHosts"], random.values(HOSTS)),
        _ => (["ports", "notPorts"], json!([random.pick(&["80", "8080"])])),
    };
    json!({name[usize::from(not)]: values})
}

fn condition(random: &mut Random) -> Value {
    let (key, values) = match random.below(5) {
        0 => ("request.headers[X-Tier]", random.values(VALUES)),
        1 => ("source.namespace", random.values(&["a", "b"])),
        2 => ("destination.port", json!([random.pick(&["80", "8080"])])),
        3 => ("connection.sni", random.values(&["a.corp", "b.corp"])),
        _ => ("request.headers[host]", random.values(HOSTS)),
    };
    json!({"key": key, if random.once_in(4) { "notValues" } else { "values" }: values})
}

/// A question of the contract, each key there or not.
fn question(random: &mut Random) -> Value {
    let mut request = json!({});
    let mut maybe = |random: &mut Random, key: &str, value: Value| {
        if !random.once_in(5) {
            request[key] = value;
        }
    };
    let principal = json!(random.pick(PRINCIPALS));
    let principal = if random.once_in(5) { Value::Null } else { principal };
    maybe(random, "source_principal", principal);
    for key in ["source_ip", "remote_ip", "destination_ip"] {
        let value = json!(random.pick(ADDRESSES));
        if key != "remote_ip" || random.once_in(2) {
            maybe(random, key, value);
        }
    }
    let port = [80, 8080, 9090][random.below(3)];
    maybe(random, "destination_port", json!(port));
    let protocol = json!(random.pick(&["http", "http", "http", "tcp"]));
    maybe(random, "protocol", protocol);
    let (method, host, path) = (random.pick(METHODS), random.pick(HOSTS), random.pick(PATHS));
    maybe(random, "method", json!(method));
    maybe(random, "host", json!(host));
    maybe(random, "path", json!(path));
    let headers = match random.below(4) {
        0 => json!({"x-tier": random.pick(VALUES)}),
        1 => json!({"X-TIER": [random.pick(VALUES), random.pick(VALUES)], "x-other": "b"}),
        2 => json!({"x-forwarded-for": ["203.0.113.1, 192.0.2.1"]}),
        _ => json!({}),
    };
    maybe(random, "headers", headers);
    let name = json!(random.pick(NAMES));
    maybe(random, "sni", name);
    let mut workload = json!({"namespace": random.pick(NAMESPACES)});
    if !random.once_in(4) {
        workload["labels"] = json!({"app": random.pick(LABELS), "v": "1"});
    }
    json!({"workload": workload, "request": request})
}

/// The interpreter's answer, from the JSON by a way of its own.
fn expected(policies: &[AuthorizationPolicy], question: &Value) -> (bool, Action, Option<String>) {
    let namespace = question["workload"]["namespace"].as_str().expect("generated");
    let labels = &question["workload"]["labels"];
    let selected: Vec<Authorization> = policies
        .iter()
        .filter(|p| {
            let own = p.metadata.namespace.as_deref();
            let selector = p.spec.selector.as_ref();
            let fits = selector.is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels[k] == json!(v)));
            (own == Some(namespace) || own == Some("istio-system")) && fits
        })
        .map(|p| Authorization {
            namespace: p.metadata.namespace.clone().expect("generated"),
            name: p.metadata.name.clone().expect("generated"),
            dry_run: p.metadata.annotations.iter().flatten().any(|(_, value)| value == "true"),
            spec: p.spec.clone(),
        })
        .collect();
    let request = &question["request"];
    let text = |key: &str| request[key].as_str();
    let address = |key: &str| text(key).map(|text| text.parse::<IpAddr>().expect("generated"));
    let unknown: IpAddr = "::".parse().expect("an address");
    let identity = text("source_principal").map(|text| Identity::parse_principal(text).expect("generated"));
    let source_ip = address("source_ip").unwrap_or(unknown);
    let connection = ConnectionAttributes {
        identity: identity.as_ref(),
        source_ip,
        remote_ip: address("remote_ip").unwrap_or(source_ip),
        destination_ip: address("destination_ip").unwrap_or(unknown),
        destination_port: request["destination_port"].as_u64().unwrap_or(0) as u16,
        sni: text("sni"),
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        headers.extend(values.iter().map(|v| (name.clone(), v.as_str().expect("generated").to_owned())));
    }
    let http = RequestAttributes {
        method: text("method").unwrap_or_default(),
        host: text("host").unwrap_or_default(),
        path: text("path").unwrap_or_default(),
        remote_ip: address("remote_ip").or_else(|| forwarded_for(&headers)),
        headers: &headers,
        claims: None,
    };
    let answer = decide(&selected, &trust(), &connection, (text("protocol") != Some("tcp")).then_some(&http));
    let action = match answer.action {
        DecidedBy::AllowRule => Action::Allow,
        DecidedBy::DenyRule => Action::Deny,
        DecidedBy::NoAllowRule | DecidedBy::NoPolicy => Action::None,
    };
    (answer.verdict == Verdict::Allow, action, answer.rule)
}

fn trust() -> TrustContext {
    TrustContext {
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    }
}

#[test]
fn answers_are_those_of_the_literal_interpreter() {
    let cases: usize = std::env::var("MAILLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(6_000);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..cases.div_ceil(QUESTIONS_PER_SET) {
        let mut random = Random(round as u64 + 1);
        let policies: Vec<AuthorizationPolicy> = (0..random.below(6))
            .filter_map(|index| match check(&policy(&mut random, index)) {
                Ok(Object::AuthorizationPolicy(policy)) => Some(policy),
                _ => None,
            })
            .collect();
        let TrustContext { trust_domain, aliases, root_namespace } = trust();
        let mut checker = Checker::new(&policies, Settings { trust_domain, aliases, root_namespace });
        let asked: Vec<Value> = (0..QUESTIONS_PER_SET).map(|_| question(&mut random)).collect();
        let questions = read_questions(&json!(asked).to_string()).expect("the contract's JSON");
        for (question, value) in questions.iter().zip(&asked) {
            let answer = checker.decide(question);
            let rule = answer.policy.as_ref().zip(answer.rule).map(|(policy, rule)| {
                let (namespace, name) = policy.split_once('/').expect("namespace/name");
                format!("ns[{namespace}]-policy[{name}]-rule[{rule}]")
            });
            assert_eq!(
                (answer.allowed, answer.action, rule),
                expected(&policies, value),
                "round {round}\n{value:#}\n{policies:#?}"
            );
            assert!(!answer.reason.is_empty());
            *outcomes.entry(format!("{} {}", answer.allowed, answer.action.as_str())).or_default() += 1;
        }
    }
    println!("{cases} questions: {outcomes:?}");
    assert_eq!(outcomes.len(), 4, "every kind of answer must occur: {outcomes:?}");
}

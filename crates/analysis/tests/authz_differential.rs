//! `authz check` and the literal interpreter give the same answers, asked through the JSON of the contract.
//!
//! `MAILLE_CASES` sets how many questions are tried.

use std::collections::BTreeMap;
use std::net::IpAddr;

use maille_analysis::authz::{
    Action, Answer, Checker, Provider, Providers, Settings, ShadowResult, read_questions,
};
use maille_config::istio::{AuthorizationPolicy, TargetRef};
use maille_config::{Object, check};
use maille_core::{Identity, TrustDomain};
use maille_oracle::authorization::{Shadowed, answer};
use maille_policy::{
    Authorization, Claims, ConnectionAttributes, DecidedBy, RequestAttributes, TrustContext, Verdict,
    forwarded_for,
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
const ISSUERS: &[&str] = &["https://idp", "https://other"];
const SUBJECTS: &[&str] = &["u1", "u2"];
const TOKENS: &[&str] = &["https://idp/u1", "https://idp/u2", "https://other/u1"];
const GROUPS: &[&str] = &["dev", "ops", "devops"];
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

/// Whom policies may ask: one of gRPC, one of HTTP, one that cannot be used; `nobody` is not there.
const PROVIDERS: &[&str] = &["grpc", "grpc", "http", "broken", "nobody"];

fn providers() -> Vec<Provider> {
    let provider = |name: &str| Provider {
        name: name.to_owned(),
        address: format!("{name}:9000"),
        asks_tcp: name != "http",
        fail_open: false,
        problem: (name == "broken").then(|| "it is broken".to_owned()),
    };
    ["grpc", "http", "broken"].map(provider).to_vec()
}

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
    let action = ["ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM"][random.below(7)];
    let of_peers = action != "CUSTOM";
    let rules: Vec<Value> = (0..1 + random.below(3)).map(|_| rule(random, of_peers)).collect();
    let rules = if action == "ALLOW" && random.once_in(6) { Vec::new() } else { rules };
    let mut spec = json!({"action": action, "rules": rules});
    if action == "CUSTOM" {
        spec["provider"] = json!({"name": random.pick(PROVIDERS)});
    }
    match random.below(9) {
        0..3 => spec["selector"] = json!({"matchLabels": {"app": random.pick(LABELS)}}),
        3 => {
            spec["targetRefs"] =
                json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}]);
        }
        _ => {}
    }
    let mut metadata = json!({"name": format!("p{index}"), "namespace": random.pick(NAMESPACES)});
    if matches!(action, "ALLOW" | "DENY") && random.once_in(5) {
        metadata["annotations"] = json!({"istio.io/dry-run": random.pick(&["true", "false"])});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

/// `of_peers`: rules of CUSTOM cannot ask who calls.
fn rule(random: &mut Random, of_peers: bool) -> Value {
    let mut rule = json!({});
    if !random.once_in(3) {
        rule["from"] =
            (0..1 + random.below(2)).map(|_| json!({"source": source(random, of_peers)})).collect();
    }
    if !random.once_in(3) {
        rule["to"] = (0..1 + random.below(2)).map(|_| json!({"operation": operation(random)})).collect();
    }
    if random.once_in(3) {
        rule["when"] = json!([condition(random, of_peers)]);
    }
    rule
}

fn source(random: &mut Random, of_peers: bool) -> Value {
    let not = random.once_in(4);
    let kind = if of_peers { random.below(6) } else { 3 + random.below(2) };
    let (name, values) = match kind {
        5 => (["requestPrincipals", "notRequestPrincipals"], random.values(TOKENS)),
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

fn condition(random: &mut Random, of_peers: bool) -> Value {
    let kind = if of_peers { random.below(9) } else { [0, 2, 3, 4][random.below(4)] };
    let (key, values) = match kind {
        5 => ("request.auth.claims[groups]", random.values(GROUPS)),
        6 => ("request.auth.claims[realm][roles]", random.values(GROUPS)),
        7 => ("request.auth.audiences", random.values(GROUPS)),
        8 => ("request.auth.principal", random.values(TOKENS)),
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
    let claims = claims(random);
    maybe(random, "jwt", claims);
    let mut workload = json!({"namespace": random.pick(NAMESPACES)});
    if !random.once_in(4) {
        workload["labels"] = json!({"app": random.pick(LABELS), "v": "1"});
    }
    if random.once_in(5) {
        workload["labels"][GATEWAY] = json!(random.pick(&["edge", "other"]));
    }
    json!({"workload": workload, "request": request})
}

fn claims(random: &mut Random) -> Value {
    if random.once_in(3) {
        return Value::Null;
    }
    let mut claims = json!({"iss": random.pick(ISSUERS), "sub": random.pick(SUBJECTS)});
    if random.once_in(6) {
        claims["sub"] = json!(7);
    }
    let words = [json!(random.pick(GROUPS)), json!([random.pick(GROUPS), random.pick(GROUPS)]), json!(true)];
    for path in ["/groups", "/aud", "/realm"] {
        let value = words[random.below(3)].clone();
        let value = if path == "/realm" { json!({"roles": value}) } else { value };
        if random.once_in(2) {
            claims[&path[1..]] = value;
        }
    }
    claims
}

/// Which policies apply, by the tables of the reference (section 2): no workload here is a waypoint.
fn applies(policy: &AuthorizationPolicy, namespace: &str, labels: &Value) -> bool {
    let own = policy.metadata.namespace.as_deref();
    let gateway = labels[GATEWAY].as_str();
    match &policy.spec.target_refs {
        Some(targets) => {
            let is_it = |target: &TargetRef| gateway == Some(target.name.as_str());
            own == Some(namespace) && targets.iter().any(is_it)
        }
        None => {
            let selector = policy.spec.selector.as_ref();
            let fits = selector.is_none_or(|s| s.match_labels.iter().all(|(k, v)| labels[k] == json!(v)));
            (own == Some(namespace) || own == Some("istio-system")) && fits
        }
    }
}

/// What matters of an answer; rules by their printed names.
#[derive(Debug, PartialEq)]
struct Said {
    allowed: bool,
    action: Action,
    rule: Option<String>,
    provider: Option<String>,
    audit: Option<String>,
    deny: Option<Shadowed>,
    allow: Option<Shadowed>,
    /// Whether it would be allowed if dry runs counted.
    shadow: Option<bool>,
}

fn printed(policy: Option<&String>, rule: Option<u32>) -> Option<String> {
    let (policy, rule) = policy.zip(rule)?;
    let (namespace, name) = policy.split_once('/').expect("namespace/name");
    Some(format!("ns[{namespace}]-policy[{name}]-rule[{rule}]"))
}

impl Said {
    fn of(answer: &Answer) -> Self {
        let shadow = |result: &ShadowResult| Shadowed {
            allowed: result.allowed,
            rule: printed(result.policy.as_ref(), result.rule),
        };
        let found = answer.shadow.as_ref();
        Self {
            allowed: answer.allowed,
            action: answer.action,
            rule: printed(answer.policy.as_ref(), answer.rule),
            provider: answer.provider.clone(),
            audit: answer.audit.as_ref().and_then(|audit| printed(Some(&audit.policy), Some(audit.rule))),
            deny: found.and_then(|found| found.deny.as_ref()).map(shadow),
            allow: found.and_then(|found| found.allow.as_ref()).map(shadow),
            shadow: found.map(|found| found.allowed),
        }
    }
}

/// The interpreter's answer, from the JSON by a way of its own.
fn expected(policies: &[AuthorizationPolicy], question: &Value) -> Said {
    let namespace = question["workload"]["namespace"].as_str().expect("generated");
    let labels = &question["workload"]["labels"];
    let selected: Vec<Authorization> = policies
        .iter()
        .filter(|policy| applies(policy, namespace, labels))
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
    let claims = request["jwt"].as_object().map(|claims| Claims::new(claims.clone(), &[]));
    let http = RequestAttributes {
        method: text("method").unwrap_or_default(),
        host: text("host").unwrap_or_default(),
        path: text("path").unwrap_or_default(),
        remote_ip: address("remote_ip").or_else(|| forwarded_for(&headers)),
        headers: &headers,
        claims: claims.as_ref(),
    };
    let tcp = text("protocol") == Some("tcp");
    let answers = answer(&selected, &trust(), &connection, (!tcp).then_some(&http));
    let decision = answers.decision;
    let mut said = Said {
        allowed: decision.verdict == Verdict::Allow,
        action: match decision.action {
            DecidedBy::AllowRule => Action::Allow,
            DecidedBy::DenyRule => Action::Deny,
            DecidedBy::NoAllowRule | DecidedBy::NoPolicy => Action::None,
        },
        rule: decision.rule,
        provider: None,
        audit: answers.audit,
        shadow: None,
        deny: answers.shadow_deny,
        allow: answers.shadow_allow,
    };
    if said.deny.is_some() || said.allow.is_some() {
        // As if the dry runs were policies like the others.
        let enforced: Vec<Authorization> =
            selected.iter().map(|policy| Authorization { dry_run: false, ..policy.clone() }).collect();
        let http = (!tcp).then_some(&http);
        let all = maille_oracle::authorization::decide(&enforced, &trust(), &connection, http);
        said.shadow = Some(all.verdict == Verdict::Allow);
    }
    if let Some(ask) = answers.ask {
        let known = providers().into_iter().find(|p| p.name == ask.provider && p.problem.is_none());
        let refused = ask.refused || known.is_none();
        // HTTP is not asked about connections.
        if refused || !tcp || ask.provider != "http" {
            said.provider = Some(ask.provider);
            if refused || said.allowed {
                said = Said { allowed: false, action: Action::Custom, rule: Some(ask.rule), ..said };
            }
        }
    }
    said
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
        let providers = Providers::Known(providers());
        let mut checker =
            Checker::new(&policies, Settings { trust_domain, aliases, root_namespace, providers });
        let asked: Vec<Value> = (0..QUESTIONS_PER_SET).map(|_| question(&mut random)).collect();
        let questions = read_questions(&json!(asked).to_string()).expect("the contract's JSON");
        for (question, value) in questions.iter().zip(&asked) {
            let answer = checker.decide(question);
            let expected = expected(&policies, value);
            assert_eq!(Said::of(&answer), expected, "round {round}\n{value:#}\n{policies:#?}");
            assert!(!answer.reason.is_empty());
            let shadow = answer.shadow.map(|shadow| shadow.allowed != answer.allowed);
            let shadow = if shadow == Some(true) { " shadow differs" } else { "" };
            let audit = if answer.audit.is_some() { " audited" } else { "" };
            for kind in
                [format!("{} {}", answer.allowed, answer.action.as_str()), shadow.into(), audit.into()]
            {
                *outcomes.entry(kind).or_default() += 1;
            }
        }
    }
    println!("{cases} questions: {outcomes:?}");
    // Nothing, an audit mark and a differing shadow; ALLOW, DENY, CUSTOM and twice NONE.
    assert_eq!(outcomes.len(), 8, "every kind of answer must occur: {outcomes:?}");
}

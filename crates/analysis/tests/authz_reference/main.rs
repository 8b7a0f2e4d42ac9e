//! The reference's tables, asked as `authz check` is asked: policies as YAML, requests as JSON.

use maille_analysis::authz::{Answer, Checker, Providers, Settings, read_questions};
use maille_config::{Object, yaml};
use maille_core::TrustDomain;
use serde_json::{Value, json};

mod connection;
mod rare;
mod request;
mod scope;
mod tokens;

fn checker(text: &str) -> Checker {
    checker_of(text, settings())
}

fn settings() -> Settings {
    Settings {
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        providers: Providers::Unknown,
    }
}

fn checker_of(text: &str, settings: Settings) -> Checker {
    let documents = yaml::parse("policies.yaml", text).expect("YAML");
    let (mut policies, mut authentications) = (Vec::new(), Vec::new());
    for document in &documents {
        match document.check().expect("a valid policy") {
            Object::AuthorizationPolicy(policy) => policies.push(policy),
            Object::RequestAuthentication(authentication) => authentications.push(authentication),
            other => panic!("no policy: {other:?}"),
        }
    }
    Checker::new(&policies, settings).with_authentications(&authentications)
}

/// What one policy `shop/p` says to a request to a workload beside it.
fn decided(spec: &str, request: Value) -> Answer {
    ask(&mut checker(&policy("shop/p", spec)), "shop", json!({}), request)
}

/// Rows of (a rule, a request, whether an ALLOW policy of that rule alone allows it).
fn all_as_expected(rows: &[(&str, Value, bool)]) {
    for (rule, request, expected) in rows {
        let answer = decided(&format!("{{rules: [{{{rule}}}]}}"), request.clone());
        assert_eq!(answer.allowed, *expected, "{rule} {request}: {}", answer.reason);
    }
}

fn from(principal: &str) -> Value {
    json!({"source_principal": principal})
}

/// A policy in a line.
fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn ask(checker: &mut Checker, namespace: &str, labels: Value, request: Value) -> Answer {
    let text =
        json!({"workload": {"namespace": namespace, "labels": labels}, "request": request}).to_string();
    checker.decide(&read_questions(&text).expect("a question")[0])
}

/// `edge/gw GET /x`, `plaintext GET /x`, `shop/x TCP`, with `:port` behind the method or TCP.
fn request(text: &str) -> Value {
    let mut words = text.split(' ');
    let from = words.next().expect("who");
    let principal = from.split_once('/').map(|(ns, sa)| format!("cluster.local/ns/{ns}/sa/{sa}"));
    let (what, port) = match words.next().expect("what").split_once(':') {
        Some((what, port)) => (what, port.parse::<u16>().expect("a port")),
        None => ("", 0),
    };
    let what = if what.is_empty() { text.split(' ').nth(1).expect("what") } else { what };
    let mut request = json!({"source_principal": principal, "protocol": "http"});
    if port > 0 {
        request["destination_port"] = json!(port);
    }
    match what {
        "TCP" => request["protocol"] = json!("tcp"),
        method => {
            request["method"] = json!(method);
            request["path"] = json!(words.next().unwrap_or("/"));
        }
    }
    request
}

/// Who decided, in short.
fn by(answer: &Answer) -> String {
    let policy = answer.policy.as_deref().unwrap_or("none");
    format!("{} {policy}", if answer.allowed { "allow" } else { "deny" })
}

/// Section 21 A.
#[test]
fn scenario_a_of_the_reference() {
    let mut checker = checker(
        &(policy("istio-system/base", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}")
            + &policy(
                "shop/ext",
                "{rules: [{from: [{source: {principals: [cluster.local/ns/edge/sa/gw]}}], to: [{operation: {paths: [\"/public/{**}\"]}}]}]}",
            )
            + &policy(
                "shop/no-debug",
                "{action: DENY, rules: [{from: [{source: {notPrincipals: [\"cluster.local/ns/ops/sa/*\"]}}], to: [{operation: {paths: [\"/debug*\"]}}]}]}",
            )),
    );
    for (asked, expected) in [
        ("shop/x GET /any", "allow istio-system/base"),
        ("edge/gw GET /public/a/b", "allow shop/ext"),
        ("edge/gw GET /public", "deny none"),
        ("shop/x GET /debug/1", "deny shop/no-debug"),
        ("ops/p GET /debug", "deny none"),
        ("plaintext GET /debug", "deny shop/no-debug"),
        ("shop/x TCP", "deny shop/no-debug"),
        ("ops/p TCP", "deny none"),
    ] {
        let answer = ask(&mut checker, "shop", json!({"app": "web"}), request(asked));
        assert_eq!(by(&answer), expected, "{asked}: {}", answer.reason);
    }
}

/// Section 21 B, C and E.
#[test]
fn the_other_scenarios_of_the_reference() {
    let only_deny_all = policy("shop/deny-all", "{}");
    let probe =
        only_deny_all.clone() + &policy("shop/probe", "{rules: [{to: [{operation: {ports: [\"15021\"]}}]}]}");
    let mesh = policy(
        "istio-system/mesh",
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}",
    );
    for (policies, namespace, app, asked, expected) in [
        (&only_deny_all, "shop", "web", "shop/x GET /", "deny none"),
        (&only_deny_all, "other", "web", "shop/x GET /", "allow none"),
        (&probe, "shop", "web", "plaintext GET:15021 /", "allow shop/probe"),
        (&probe, "shop", "web", "plaintext TCP:15021", "allow shop/probe"),
        (&probe, "shop", "web", "plaintext TCP:15020", "deny none"),
        (&mesh, "shop", "web", "shop/x DELETE /", "deny istio-system/mesh"),
        (&mesh, "other", "web", "shop/x DELETE /", "deny istio-system/mesh"),
        (&mesh, "shop", "db", "shop/x DELETE /", "allow none"),
        (&mesh, "shop", "web", "shop/x TCP", "deny istio-system/mesh"),
    ] {
        let answer = ask(&mut checker(policies), namespace, json!({"app": app}), request(asked));
        assert_eq!(by(&answer), expected, "{asked} in {namespace}: {}", answer.reason);
    }
    let by_address = policy(
        "shop/p2",
        "{rules: [{when: [{key: source.ip, values: [10.0.0.0/8], notValues: [10.1.0.0/16]}]}]}",
    );
    for (address, allowed) in [("10.2.0.1", true), ("10.1.0.1", false), ("192.0.2.1", false)] {
        let answer = ask(&mut checker(&by_address), "shop", json!({}), json!({"source_ip": address}));
        assert_eq!(answer.allowed, allowed, "{address}");
    }
}

/// Section 10.2.
#[test]
fn path_templates_of_the_reference() {
    for (template, path, expected) in [
        ("/v1/{*}/items", "/v1/a/items", true),
        ("/v1/{*}/items", "/v1/a/b/items", false),
        ("/v1/{*}/items", "/v1//items", false),
        ("/v1/{*}", "/v1/", false),
        ("/v1/{*}", "/v1/a/", false),
        ("/v1/{**}", "/v1/", true),
        ("/v1/{**}", "/v1/a/b/c", true),
        ("/v1/{**}", "/v1", false),
        ("/v1/{**}/end", "/v1/a/b/end", true),
        ("/v1/{**}/end", "/v1//end", true),
        ("/v1/{**}/end", "/v1/end", false),
        ("/v1/{*}/x/{**}", "/v1/q/x/", true),
        ("/v1/{*}", "/v1/a*b", true),
        ("/v1/{*}", "/v1/a[b", false),
        ("/v1/{*}", "/v1/a%20b?x=/y", true),
    ] {
        let policies =
            policy("shop/p", &format!("{{rules: [{{to: [{{operation: {{paths: [\"{template}\"]}}}}]}}]}}"));
        let answer = ask(&mut checker(&policies), "shop", json!({}), json!({"path": path}));
        assert_eq!(answer.allowed, expected, "{template} {path}: {}", answer.reason);
    }
}

/// Section 11: (rule, who, port, under ALLOW, under DENY).
#[test]
fn http_fields_on_tcp_as_in_the_reference() {
    for (rule, who, port, allow, deny) in [
        ("to: [{operation: {methods: [GET]}}]", "x", 80, false, false),
        ("to: [{operation: {ports: [\"8080\"], methods: [GET]}}]", "x", 80, false, true),
        ("to: [{operation: {ports: [\"8080\"], methods: [GET]}}]", "x", 8080, false, false),
        ("from: [{source: {namespaces: [a]}}], to: [{operation: {notPaths: [/x]}}]", "a", 80, false, false),
        ("from: [{source: {namespaces: [a]}}], to: [{operation: {notPaths: [/x]}}]", "b", 80, false, true),
        ("to: [{operation: {ports: [\"80\"]}}, {operation: {paths: [/x]}}]", "x", 80, false, false),
        ("to: [{operation: {ports: [\"80\"]}}, {operation: {paths: [/x]}}]", "x", 90, false, false),
        ("from: [{source: {namespaces: [a]}}], to: [{operation: {ports: [\"80\"]}}]", "a", 80, true, false),
        ("when: [{key: \"request.headers[x]\", values: [\"1\"]}]", "x", 80, false, false),
    ] {
        for (action, expected) in [("ALLOW", allow), ("DENY", deny)] {
            let policies = policy("shop/p", &format!("{{action: {action}, rules: [{{{rule}}}]}}"));
            let asked = format!("{who}/sa TCP:{port}");
            let answer = ask(&mut checker(&policies), "shop", json!({}), request(&asked));
            assert_eq!(answer.allowed, expected, "{action} {rule}, {asked}: {}", answer.reason);
        }
    }
}

/// Sections 7 to 9 and 13: one rule of an ALLOW policy, a request, and whether it matches.
#[test]
fn fields_of_the_reference() {
    let identity = |text: &str| json!({"source_principal": text});
    for (rule, request, expected) in [
        (
            "from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]",
            identity("cluster.local/ns/a/sa/x"),
            true,
        ),
        ("from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]", json!({}), false),
        (
            "from: [{source: {notPrincipals: [\"cluster.local/ns/a/sa/*\"]}}]",
            identity("cluster.local/ns/a/sa/x"),
            false,
        ),
        ("from: [{source: {notPrincipals: [\"cluster.local/ns/a/sa/*\"]}}]", json!({}), true),
        ("from: [{source: {namespaces: [\"prod-*\"]}}]", identity("td/ns/prod-eu/sa/s"), true),
        ("from: [{source: {serviceAccounts: [client, ops/bot]}}]", identity("x.org/ns/shop/sa/client"), true),
        ("from: [{source: {serviceAccounts: [client, ops/bot]}}]", identity("x.org/ns/ops/sa/client"), false),
        ("from: [{source: {trustDomains: [\"corp.*\"]}}]", identity("corp.eu/ns/a/sa/b"), true),
        ("from: [{source: {ipBlocks: [10.0.0.0/8]}}]", json!({"source_ip": "10.9.9.9"}), true),
        ("from: [{source: {ipBlocks: [10.0.0.0/8]}}]", json!({}), false),
        (
            "from: [{source: {remoteIpBlocks: [203.0.113.9]}}]",
            json!({"source_ip": "10.0.0.5", "headers": {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}}),
            true,
        ),
        (
            "from: [{source: {remoteIpBlocks: [198.51.100.7]}}]",
            json!({"source_ip": "10.0.0.5", "headers": {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}}),
            false,
        ),
        ("from: [{source: {remoteIpBlocks: [10.0.0.5]}}]", json!({"source_ip": "10.0.0.5"}), true),
        (
            "from: [{source: {remoteIpBlocks: [192.0.2.1]}}]",
            json!({"source_ip": "10.0.0.5", "remote_ip": "192.0.2.1"}),
            true,
        ),
        ("to: [{operation: {hosts: [shop.example]}}]", json!({"host": "SHOP.example"}), true),
        ("to: [{operation: {hosts: [shop.example]}}]", json!({"host": "shop.example:8080"}), false),
        ("to: [{operation: {methods: [GET]}}]", json!({"method": "HEAD"}), false),
        ("to: [{operation: {paths: [/a]}}]", json!({"path": "/a?x=1"}), true),
        ("to: [{operation: {paths: [/a]}}]", json!({"path": "/a/"}), false),
        ("to: [{operation: {paths: [/a]}}]", json!({"method": "CONNECT"}), false),
        ("to: [{operation: {notPaths: [/a]}}]", json!({"method": "CONNECT"}), true),
        ("to: [{operation: {ports: [\"8080\"]}}]", json!({"destination_port": 9090}), false),
        (
            "when: [{key: \"request.headers[X-Tier]\", values: [\"gold*\"]}]",
            json!({"headers": {"x-tier": "golden"}}),
            true,
        ),
        (
            "when: [{key: \"request.headers[X-Tier]\", values: [\"gold*\"]}]",
            json!({"headers": {"x-tier": "Gold"}}),
            false,
        ),
        (
            "when: [{key: \"request.headers[x-c]\", values: [a]}]",
            json!({"headers": {"X-C": ["a", "b"]}}),
            true,
        ),
        (
            "when: [{key: \"request.headers[x-c]\", values: [\"a,b\"]}]",
            json!({"headers": {"X-C": ["a", "b"]}}),
            false,
        ),
        (
            "when: [{key: \"request.headers[x-c]\", notValues: [a]}]",
            json!({"headers": {"X-C": ["a", "b"]}}),
            false,
        ),
        ("when: [{key: \"request.headers[x-t]\", notValues: [v]}]", json!({}), true),
        ("when: [{key: connection.sni, values: [\"*.corp\"]}]", json!({"sni": "A.Corp"}), true),
        ("when: [{key: connection.sni, values: [\"*.corp\"]}]", json!({"sni": null}), false),
        ("when: [{key: destination.ip, values: [10.1.0.0/16]}]", json!({"destination_ip": "10.1.2.3"}), true),
        (
            "when: [{key: destination.port, values: [\"80\", \"443\"], notValues: [\"443\"]}]",
            json!({"destination_port": 443}),
            false,
        ),
    ] {
        let answer = ask(
            &mut checker(&policy("shop/p", &format!("{{rules: [{{{rule}}}]}}"))),
            "shop",
            json!({}),
            request.clone(),
        );
        assert_eq!(answer.allowed, expected, "{rule} {request}: {}", answer.reason);
    }
}

/// Hundreds of policies and thousands of requests of as many workloads.
#[test]
fn workloads_with_the_same_policies_share_them() {
    let mut policies = String::new();
    for index in 0..300 {
        let selector = if index % 3 == 0 {
            format!("selector: {{matchLabels: {{app: app-{}}}}}, ", index % 20)
        } else {
            String::new()
        };
        policies.push_str(&policy(
            &format!("ns-{}/p{index}", index % 10),
            &format!("{{{selector}rules: [{{from: [{{source: {{principals: [cluster.local/ns/a/sa/s{index}]}}}}], to: [{{operation: {{paths: [\"/p{index}/*\"]}}}}]}}]}}"),
        ));
    }
    let mut checker = checker(&policies);
    let mut allowed = 0;
    for index in 0..3000 {
        let namespace = format!("ns-{}", index % 10);
        let labels = json!({"app": format!("app-{}", index % 20), "pod": index.to_string()});
        let request = json!({"source_principal": format!("cluster.local/ns/a/sa/s{}", index % 300), "path": format!("/p{}/x", index % 300)});
        allowed += usize::from(ask(&mut checker, &namespace, labels, request).allowed);
    }
    assert_eq!(allowed, 3000, "request i is for the workload of policy i mod 300");
}

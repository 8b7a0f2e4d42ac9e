use serde_json::{Value, json};

use super::*;

fn rule(name: &str, namespace: &str, second: u32, spec: Value) -> DestinationRule {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
        "spec": spec,
    }))
    .expect("a rule")
}

fn tls(host: &str, mode: &str) -> Value {
    json!({"host": host, "trafficPolicy": {"tls": {"mode": mode}}})
}

const MESH: Mesh<'_> = Mesh { root_namespace: "istio-system", cluster_domain: "cluster.local" };

fn in_force_for<'r>(
    rules: &'r [DestinationRule],
    client: &str,
    app: &str,
    host: &str,
    namespace: &str,
) -> Option<InForce<'r>> {
    let labels = [("app".to_owned(), app.to_owned())].into();
    let client = Client { namespace: client, labels: &labels };
    in_force(rules, MESH, client, Target { host: &HostPattern::new(host), namespace })
}

/// What a client of shop/web sends to port 80: `auto`, `auto SIMPLE` (endpoints marked by a mode above the port), or the mode.
fn sent(rules: &[DestinationRule], client: &str, app: &str) -> String {
    sent_to(rules, client, app, 80)
}

fn sent_to(rules: &[DestinationRule], client: &str, app: &str, port: u16) -> String {
    let found = in_force_for(rules, client, app, "web.shop.svc.cluster.local", "shop");
    let name = |mode: ClientTlsMode| match serde_json::to_value(mode) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    };
    match found.as_ref().map(|f| f.tls(port)) {
        None | Some(PortTls::Auto { endpoints: None }) => "auto".into(),
        Some(PortTls::Auto { endpoints: Some(mode) }) => format!("auto {}", name(mode)),
        Some(PortTls::Explicit(settings)) => name(settings.mode),
    }
}

/// Reference mtls 2.2 and 2.3, one row per rule id. DR-3 to DR-6 are the data path's.
#[test]
fn rules_apply_as_the_reference_says() {
    const WEB: &str = "web.shop.svc.cluster.local";
    let port = |top: Option<&str>, own: Value| {
        let mut policy = json!({"portLevelSettings": [own]});
        if let Some(mode) = top {
            policy["tls"] = json!({"mode": mode});
        }
        json!({"host": WEB, "trafficPolicy": policy})
    };
    let own_80 = || json!({"port": {"number": 80}, "loadBalancer": {"simple": "RANDOM"}});
    let client = |spec: Value| vec![rule("a", "client", 0, spec)];
    let rows: Vec<(&str, Vec<DestinationRule>, &str, &str, &str)> = vec![
        ("no rule", vec![], "client", "x", "auto"),
        ("DR-1", client(tls(WEB, "DISABLE")), "client", "x", "DISABLE"),
        ("DR-2", client(tls(WEB, "ISTIO_MUTUAL")), "client", "x", "ISTIO_MUTUAL"),
        ("G-15", client(json!({"host": WEB, "trafficPolicy": {"tls": {}}})), "client", "x", "DISABLE"),
        (
            "DR-7",
            client(port(None, json!({"port": {"number": 8080}, "tls": {"mode": "SIMPLE"}}))),
            "client",
            "x",
            "auto",
        ),
        (
            "DR-7",
            client(port(None, json!({"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}))),
            "client",
            "x",
            "SIMPLE",
        ),
        (
            "DR-7 above",
            client(port(Some("DISABLE"), json!({"port": {"number": 8080}, "tls": {"mode": "SIMPLE"}}))),
            "client",
            "x",
            "DISABLE",
        ),
        ("DR-8", client(port(Some("DISABLE"), own_80())), "client", "x", "auto DISABLE"),
        ("DR-8", client(port(Some("SIMPLE"), own_80())), "client", "x", "auto SIMPLE"),
        ("DR-8", client(port(Some("ISTIO_MUTUAL"), own_80())), "client", "x", "auto ISTIO_MUTUAL"),
        ("DR-8", client(port(None, own_80())), "client", "x", "auto"),
        // DR-9 and DR-10: subsets are refused; where they got in all the same, what stands above them holds.
        (
            "DR-10",
            client(
                json!({"host": WEB, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}, "subsets": [{"name": "v1"}]}),
            ),
            "client",
            "x",
            "SIMPLE",
        ),
        (
            "DR-11",
            vec![
                rule("a", "client", 5, tls(WEB, "DISABLE")),
                rule("b", "shop", 0, tls("web", "ISTIO_MUTUAL")),
            ],
            "client",
            "x",
            "DISABLE",
        ),
        (
            "DR-11, another client",
            vec![
                rule("a", "client", 5, tls(WEB, "DISABLE")),
                rule("b", "shop", 0, tls("web", "ISTIO_MUTUAL")),
            ],
            "bank",
            "x",
            "ISTIO_MUTUAL",
        ),
        (
            "DR-12",
            vec![
                rule("a", "client", 5, tls("*.shop.svc.cluster.local", "SIMPLE")),
                rule("b", "shop", 0, tls(WEB, "DISABLE")),
            ],
            "client",
            "x",
            "SIMPLE",
        ),
        (
            "DR-13",
            vec![rule(
                "b",
                "shop",
                0,
                json!({"host": "web", "exportTo": ["."], "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
            )],
            "client",
            "x",
            "auto",
        ),
        (
            "DR-13, at home",
            vec![rule(
                "b",
                "shop",
                0,
                json!({"host": "web", "exportTo": ["."], "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
            )],
            "shop",
            "x",
            "SIMPLE",
        ),
        (
            "DR-14",
            vec![rule("r", "istio-system", 0, tls("*.local", "ISTIO_MUTUAL"))],
            "client",
            "x",
            "ISTIO_MUTUAL",
        ),
        (
            "DR-14, nearer rule",
            vec![
                rule("r", "istio-system", 0, tls("*.local", "ISTIO_MUTUAL")),
                rule("b", "shop", 9, tls("web", "DISABLE")),
            ],
            "client",
            "x",
            "DISABLE",
        ),
        ("DR-15", client(tls("web", "SIMPLE")), "client", "x", "auto"),
        (
            "DR-16 x",
            vec![
                rule(
                    "a",
                    "client",
                    9,
                    json!({"host": WEB, "workloadSelector": {"matchLabels": {"app": "x"}}, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
                ),
                rule("b", "client", 0, tls(WEB, "DISABLE")),
            ],
            "client",
            "x",
            "SIMPLE",
        ),
        (
            "DR-16 y",
            vec![
                rule(
                    "a",
                    "client",
                    9,
                    json!({"host": WEB, "workloadSelector": {"matchLabels": {"app": "x"}}, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
                ),
                rule("b", "client", 0, tls(WEB, "DISABLE")),
            ],
            "client",
            "y",
            "DISABLE",
        ),
        (
            "DR-16, passed by",
            vec![
                rule(
                    "a",
                    "client",
                    9,
                    json!({"host": WEB, "workloadSelector": {"matchLabels": {"app": "x"}}, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
                ),
                rule("b", "shop", 0, tls("web", "DISABLE")),
            ],
            "client",
            "y",
            "auto",
        ),
        (
            "DR-17",
            vec![
                rule("a", "client", 0, json!({"host": "*.svc.cluster.local", "subsets": [{"name": "v1"}]})),
                rule("b", "shop", 0, tls("web", "DISABLE")),
                rule("r", "istio-system", 0, tls("*.local", "ISTIO_MUTUAL")),
            ],
            "client",
            "x",
            "auto",
        ),
    ];
    for (id, rules, client, app, expected) in rows {
        assert_eq!(sent(&rules, client, app), expected, "{id}");
    }
}

/// 2.3, 2: the root namespace's own clients.
#[test]
fn clients_of_the_root_namespace_take_the_services_rule_first() {
    let web = "web.shop.svc.cluster.local";
    let mut rules = vec![
        rule("r", "istio-system", 0, tls("*.local", "SIMPLE")),
        rule("b", "shop", 0, tls(web, "DISABLE")),
    ];
    assert_eq!(sent(&rules, "istio-system", "x"), "DISABLE");
    rules[0].spec.export_to = vec![".".into()];
    assert_eq!(sent(&rules, "istio-system", "x"), "SIMPLE");
    assert_eq!(sent(&rules, "client", "x"), "DISABLE");
}

/// 2.3, 3.
#[test]
fn the_most_specific_host_decides_within_a_namespace() {
    let rules = [
        rule("a", "client", 0, tls("*", "SIMPLE")),
        rule("b", "client", 1, tls("*.shop.svc.cluster.local", "DISABLE")),
        rule("c", "client", 2, tls("*.svc.cluster.local", "MUTUAL")),
    ];
    assert_eq!(sent(&rules, "client", "x"), "DISABLE");
    // Where it is not exported to the client, its namespace has nothing to say.
    let mut exported = [
        rule("a", "shop", 0, tls("*.svc.cluster.local", "SIMPLE")),
        rule("b", "shop", 1, tls("web", "DISABLE")),
        rule("r", "istio-system", 1, tls("*", "ISTIO_MUTUAL")),
    ];
    exported[1].spec.export_to = vec!["bank".into()];
    assert_eq!(sent(&exported, "client", "x"), "ISTIO_MUTUAL");
    assert_eq!(sent(&exported, "bank", "x"), "DISABLE");
    // A private one is nobody's business elsewhere.
    exported[1].spec.export_to = vec![".".into()];
    assert_eq!(sent(&exported, "client", "x"), "SIMPLE");
}

/// 2.3, 4.
#[test]
fn rules_for_one_host_are_merged_oldest_first() {
    let web = "web.shop.svc.cluster.local";
    let subsets = || json!({"host": web, "subsets": [{"name": "v1"}]});
    let rules = [
        rule("z", "shop", 0, subsets()),
        rule("m", "shop", 1, tls(web, "SIMPLE")),
        rule("a", "shop", 2, tls(web, "DISABLE")),
    ];
    assert_eq!(sent(&rules, "client", "x"), "SIMPLE");
    let labels = Labels::new();
    let client = Client { namespace: "client", labels: &labels };
    let found = in_force(&rules, MESH, client, Target { host: &HostPattern::new(web), namespace: "shop" });
    let found = found.expect("in force");
    let names: Vec<_> = found.rules.iter().map(|r| r.metadata.name.as_deref().unwrap_or("")).collect();
    assert_eq!(names, ["z", "m", "a"]);
    assert_eq!(found.decisive.and_then(|r| r.metadata.name.as_deref()), Some("m"));
    // Same second: by name.
    let same = [rule("b", "shop", 0, tls(web, "SIMPLE")), rule("a", "shop", 0, tls(web, "DISABLE"))];
    assert_eq!(sent(&same, "client", "x"), "DISABLE");
    // Different exportTo: apart.
    let mut apart = [rule("a", "shop", 0, tls(web, "SIMPLE")), rule("b", "shop", 1, tls(web, "DISABLE"))];
    apart[0].spec.export_to = vec!["client".into()];
    apart[1].spec.export_to = vec!["bank".into()];
    assert_eq!(sent(&apart, "client", "x"), "SIMPLE");
    assert_eq!(sent(&apart, "bank", "x"), "DISABLE");
}

#[test]
fn a_selector_holds_at_home_only_and_without_a_policy_leaves_the_word_to_others() {
    let web = "web.shop.svc.cluster.local";
    let selector = json!({"matchLabels": {"app": "x"}});
    let private = [rule(
        "a",
        "shop",
        0,
        json!({"host": web, "workloadSelector": selector, "exportTo": ["*"], "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
    )];
    assert_eq!(sent(&private, "shop", "x"), "SIMPLE");
    assert_eq!(sent(&private, "shop", "y"), "auto");
    assert_eq!(sent(&private, "client", "x"), "auto");
    let empty = [
        rule("a", "client", 0, json!({"host": web, "workloadSelector": selector})),
        rule("b", "client", 1, tls(web, "DISABLE")),
    ];
    assert_eq!(sent(&empty, "client", "x"), "DISABLE");
}

/// The guide's example: host of a ServiceEntry of the same namespace.
#[test]
fn a_rule_for_a_service_entrys_host_holds_for_it() {
    let rules = [rule("external-api-mtls", "production", 0, tls("api.external-service.com", "MUTUAL"))];
    let mode = |client: &str, host: &str| {
        let found = in_force_for(&rules, client, "x", host, "production")?;
        match found.tls(443) {
            PortTls::Explicit(settings) => Some(settings.mode),
            PortTls::Auto { .. } => None,
        }
    };
    assert_eq!(mode("production", "api.external-service.com"), Some(ClientTlsMode::Mutual));
    assert_eq!(
        mode("legacy", "API.external-service.com"),
        Some(ClientTlsMode::Mutual),
        "exported by default"
    );
    assert_eq!(mode("production", "www.external-service.com"), None);
}

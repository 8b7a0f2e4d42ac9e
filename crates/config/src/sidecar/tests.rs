use serde_json::{Value, json};

use super::*;

fn sidecar(name: &str, namespace: &str, second: u32, spec: Value) -> Sidecar {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
        "spec": spec,
    }))
    .expect("a sidecar")
}

#[test]
fn the_nearest_sidecar_is_in_force() {
    let selects = |app: &str| json!({"workloadSelector": {"labels": {"app": app}}});
    let all = [
        sidecar("root", "istio-system", 0, json!({})),
        sidecar("root-selector", "istio-system", 0, selects("web")),
        sidecar("young", "shop", 9, json!({})),
        sidecar("old", "shop", 1, json!({})),
        sidecar("web", "shop", 5, selects("web")),
        sidecar("web-later", "shop", 6, selects("web")),
    ];
    for (namespace, app, expected) in [
        ("shop", "web", Some("web")),
        ("shop", "cart", Some("old")),
        ("bank", "web", Some("root")),
        ("istio-system", "web", Some("root-selector")),
        ("istio-system", "x", Some("root")),
    ] {
        let labels = [("app".to_owned(), app.to_owned())].into();
        let found = in_force(&all, "istio-system", namespace, &labels);
        assert_eq!(found.and_then(|s| s.metadata.name.as_deref()), expected, "{namespace} {app}");
    }
    assert_eq!(in_force(&all[1..2], "istio-system", "bank", &Labels::new()), None, "selectors stay at home");
}

#[test]
fn egress_hosts_are_namespace_and_host() {
    let scope = |hosts: Value| {
        let spec: SidecarSpec =
            serde_json::from_value(json!({"egress": [{"hosts": hosts}]})).expect("a spec");
        EgressScope::of(&spec, "shop").expect("a scope")
    };
    for (hosts, namespace, host, expected) in [
        (json!(["./*"]), "shop", "web.shop.svc.cluster.local", true),
        (json!(["./*"]), "bank", "web.bank.svc.cluster.local", false),
        (json!(["*/*"]), "bank", "web.bank.svc.cluster.local", true),
        (json!(["bank/*"]), "bank", "web.bank.svc.cluster.local", true),
        (json!(["bank/web.bank.svc.cluster.local"]), "bank", "web.bank.svc.cluster.local", true),
        (json!(["bank/web.bank.svc.cluster.local"]), "bank", "db.bank.svc.cluster.local", false),
        (json!(["*/api.corp"]), "bank", "api.corp", true),
        (json!(["*/*.corp"]), "bank", "api.corp", true),
        (json!(["*/api.corp"]), "bank", "*.corp", false),
        (json!(["~/*"]), "shop", "web.shop.svc.cluster.local", false),
        (json!(["*/*", "~bank/*"]), "bank", "web.bank.svc.cluster.local", false),
        (json!(["*/*", "~bank/*"]), "shop", "web.shop.svc.cluster.local", true),
        (json!(["~./web.shop.svc.cluster.local", "*/*"]), "shop", "web.shop.svc.cluster.local", false),
        (json!(["web"]), "shop", "web", false),
    ] {
        assert_eq!(scope(hosts.clone()).sees(namespace, &HostPattern::new(host)), expected, "{hosts} {host}");
    }
    assert_eq!(EgressScope::of(&SidecarSpec::default(), "shop"), None, "without egress everything is seen");
}

#[test]
fn an_outbound_policy_without_mode_is_registry_only() {
    let mode = |spec: Value| outbound_mode(&serde_json::from_value(spec).expect("a spec"));
    assert_eq!(mode(json!({})), None);
    assert_eq!(mode(json!({"outboundTrafficPolicy": {}})), Some(OutboundMode::RegistryOnly));
    assert_eq!(mode(json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}})), Some(OutboundMode::AllowAny));
}

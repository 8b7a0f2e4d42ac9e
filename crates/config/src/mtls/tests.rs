use serde_json::{Value, json};

use super::*;
use MtlsMode::{Disable, Permissive, Strict};

/// `(name, namespace, second of creation, spec)`.
type Written<'a> = (&'a str, &'a str, i64, Value);

fn policies(written: &[Written<'_>]) -> Vec<PeerAuthentication> {
    written
        .iter()
        .map(|(name, namespace, second, spec)| {
            let created = format!("2026-01-01T12:00:{second:02}Z");
            let metadata = json!({"name": name, "namespace": namespace, "creationTimestamp": created});
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a policy")
        })
        .collect()
}

fn mode(written: &[Written<'_>], namespace: &str, app: &str, port: u16) -> MtlsMode {
    let labels = Labels::from([("app".to_owned(), app.to_owned()), ("v".to_owned(), "1".to_owned())]);
    resolve(&policies(written), "istio-system", namespace, &labels).for_port(port)
}

fn all(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

fn of_cart(mode: &str) -> Value {
    json!({"selector": {"matchLabels": {"app": "cart"}}, "mtls": {"mode": mode}})
}

#[test]
fn pa3_nothing_applicable_is_permissive() {
    assert_eq!(mode(&[], "shop", "cart", 80), Permissive);
    assert_eq!(mode(&[("a", "other", 0, all("STRICT"))], "shop", "cart", 80), Permissive);
}

#[test]
fn pa4_pa5_narrower_scopes_overwrite_and_unset_inherits() {
    let written = [
        ("default", "istio-system", 0, all("STRICT")),
        ("default", "shop", 0, json!({"mtls": {}})),
        (
            "cart",
            "shop",
            0,
            json!({
                "selector": {"matchLabels": {"app": "cart"}},
                "portLevelMtls": {"9090": {"mode": "PERMISSIVE"}, "7000": {"mode": "UNSET"}},
            }),
        ),
    ];
    for (namespace, app, port, expected) in [
        ("shop", "web", 8080, Strict),
        ("shop", "cart", 8080, Strict),
        ("shop", "cart", 9090, Permissive),
        ("shop", "cart", 7000, Strict),
        ("other", "x", 80, Strict),
    ] {
        assert_eq!(mode(&written, namespace, app, port), expected, "{namespace}/{app}:{port}");
    }
}

#[test]
fn pa4_the_narrowest_mode_wins() {
    let written = [
        ("m", "istio-system", 0, all("STRICT")),
        ("n", "shop", 0, all("DISABLE")),
        ("w", "shop", 0, of_cart("PERMISSIVE")),
    ];
    assert_eq!(mode(&written, "shop", "cart", 80), Permissive);
    assert_eq!(mode(&written, "shop", "web", 80), Disable);
    assert_eq!(mode(&written, "other", "web", 80), Strict);
}

#[test]
fn pa1_an_empty_selector_is_none() {
    for selector in [json!({}), json!({"matchLabels": {}}), Value::Null] {
        let written = [("n", "shop", 0, json!({"selector": selector, "mtls": {"mode": "STRICT"}}))];
        assert_eq!(mode(&written, "shop", "web", 80), Strict, "{selector}");
    }
}

#[test]
fn pa2_a_selector_in_the_root_namespace_counts_nowhere() {
    let written = [("x", "istio-system", 0, of_cart("DISABLE"))];
    assert_eq!(mode(&written, "shop", "cart", 80), Permissive);
    assert_eq!(mode(&written, "istio-system", "cart", 80), Permissive);
}

#[test]
fn pa5_port_maps_are_never_merged() {
    let ports = |port: &str| json!({"selector": {"matchLabels": {"app": "cart"}}, "portLevelMtls": {port: {"mode": "DISABLE"}}});
    let written = [("old", "shop", 1, ports("1")), ("new", "shop", 2, ports("2"))];
    assert_eq!(mode(&written, "shop", "cart", 1), Disable);
    assert_eq!(mode(&written, "shop", "cart", 2), Permissive);
}

#[test]
fn pa6_the_oldest_wins_whole_and_then_the_name() {
    let written = [("a-new", "shop", 5, all("STRICT")), ("z-old", "shop", 1, all("DISABLE"))];
    assert_eq!(mode(&written, "shop", "web", 80), Disable);
    let written = [("z-old", "shop", 1, all("DISABLE")), ("a-new", "shop", 1, all("STRICT"))];
    assert_eq!(mode(&written, "shop", "web", 80), Strict);
    // The older one is UNSET: the newer one is ignored nevertheless.
    let written = [("a", "shop", 1, json!({})), ("b", "shop", 2, all("STRICT"))];
    assert_eq!(mode(&written, "shop", "web", 80), Permissive);
}

#[test]
fn pa7_an_unset_mesh_mode_is_permissive() {
    let written = [("m", "istio-system", 0, all("UNSET")), ("n", "shop", 0, all("UNSET"))];
    assert_eq!(mode(&written, "shop", "web", 80), Permissive);
}

#[test]
fn pa8_ports_are_looked_up_as_workload_ports() {
    let written = [(
        "cart",
        "shop",
        0,
        json!({
            "selector": {"matchLabels": {"app": "cart"}},
            "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"80": {"mode": "DISABLE"}},
        }),
    )];
    assert_eq!(mode(&written, "shop", "cart", 8080), Strict);
    assert_eq!(mode(&written, "shop", "cart", 80), Disable);
}

#[test]
fn a4_the_namespace_mode_leaves_selectors_out() {
    let written = policies(&[
        ("m", "istio-system", 0, all("STRICT")),
        ("n", "shop", 0, all("PERMISSIVE")),
        ("w", "shop", 0, of_cart("DISABLE")),
    ]);
    assert_eq!(namespace_mode(&written, "istio-system", "shop"), Permissive);
    assert_eq!(namespace_mode(&written, "istio-system", "other"), Strict);
    assert_eq!(namespace_mode(&written, "istio-system", "istio-system"), Strict);
}

use serde_json::{Value, json};

use super::*;
use FieldErrorKind::{Duplicate, Enum, Invalid, NotEnforced, Required, Type, Unknown};

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": kind,
        "metadata": {"name": "a", "namespace": "shop"},
        "spec": spec,
    })
}

fn found(object: &Value) -> Vec<(String, FieldErrorKind)> {
    match check(object) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.into_iter().map(|e| (e.path, e.kind)).collect(),
    }
}

fn assert_cases(kind: &str, cases: Vec<(Value, Vec<(&str, FieldErrorKind)>)>) {
    for (spec, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(found(&object(kind, spec.clone())), expected, "{spec}");
    }
}

fn warned(kind: &str, spec: Value) -> Vec<String> {
    let checked = check(&object(kind, spec)).expect("valid");
    warnings(&checked).into_iter().map(|w| w.path).collect()
}

#[test]
fn the_guides_manifests_pass_in_every_version() {
    let rule = json!({
        "host": "api.external-service.com",
        "trafficPolicy": {"tls": {
            "mode": "MUTUAL",
            "clientCertificate": "/etc/certs/cert.pem",
            "privateKey": "/etc/certs/key.pem",
            "caCertificates": "/etc/certs/ca.pem",
        }},
    });
    let entry = json!({
        "hosts": ["api.external-service.com"],
        "ports": [{"number": 443, "name": "https", "protocol": "HTTPS"}],
        "resolution": "DNS",
        "location": "MESH_EXTERNAL",
    });
    for (kind, spec) in [("DestinationRule", rule), ("ServiceEntry", entry)] {
        for version in ["v1", "v1beta1", "v1alpha3"] {
            let mut object = object(kind, spec.clone());
            object["apiVersion"] = json!(format!("networking.istio.io/{version}"));
            let checked = check(&object).expect("valid");
            assert_eq!(warnings(&checked), []);
            let canonical = checked.to_value();
            assert_eq!(canonical["apiVersion"], "networking.istio.io/v1");
            assert_eq!(canonical["kind"], kind);
            assert_eq!(canonical["spec"], spec);
            assert_eq!(check(&canonical), Ok(checked));
        }
    }
}

/// Reference mtls 2.2, cli-and-telemetry 2.6.
#[test]
fn destination_rules_are_checked_as_istio_does() {
    let tls = |tls: Value| json!({"host": "web", "trafficPolicy": {"tls": tls}});
    // G-16: Secrets go to workloads that are named only.
    let selected = |tls: Value| json!({"host": "web", "workloadSelector": {"matchLabels": {"app": "x"}}, "trafficPolicy": {"tls": tls}});
    let ports = |ports: Value| json!({"host": "web", "trafficPolicy": {"portLevelSettings": ports}});
    let of = |more: Value| {
        let mut spec = json!({"host": "web"});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    let files = json!({"mode": "MUTUAL", "clientCertificate": "/a", "privateKey": "/b"});
    const TLS: &str = "spec.trafficPolicy.tls";
    let at = |field: &str| format!("{TLS}.{field}");
    let (cert, key, ca, crl, names, credential, sni) = (
        at("clientCertificate"),
        at("privateKey"),
        at("caCertificates"),
        at("caCrl"),
        at("subjectAltNames"),
        at("credentialName"),
        at("sni"),
    );
    assert_cases(
        "DestinationRule",
        vec![
            (json!({"host": "web"}), vec![]),
            (json!({"host": "*"}), vec![]),
            (json!({"host": "*.example.com"}), vec![]),
            (json!({}), vec![("spec.host", Required)]),
            (json!({"host": ""}), vec![("spec.host", Required)]),
            (json!({"host": "a..b"}), vec![("spec.host", Invalid)]),
            (json!({"host": "a.*.b"}), vec![("spec.host", Invalid)]),
            (json!({"host": "web:80"}), vec![("spec.host", Invalid)]),
            (json!({"host": 5}), vec![("spec.host", Type)]),
            (of(json!({"hosts": ["web"]})), vec![("spec.hosts", Unknown)]),
            (of(json!({"subsets": []})), vec![]),
            (of(json!({"subsets": [{"name": "v1", "labels": {"v": "1"}}]})), vec![]),
            (
                of(json!({"subsets": [
                    {"name": "v1"}, {"name": "v1", "labels": {"a b": "c"}}, {"name": "V_1", "trafficPolicy": {}}, {},
                ]})),
                vec![
                    ("spec.subsets[1].name", Duplicate),
                    ("spec.subsets[1].labels[a b]", Invalid),
                    ("spec.subsets[2].name", Invalid),
                    ("spec.subsets[2].trafficPolicy", Invalid),
                    ("spec.subsets[3].name", Required),
                ],
            ),
            (of(json!({"trafficPolicy": {}})), vec![("spec.trafficPolicy", Invalid)]),
            (
                of(json!({"trafficPolicy": {
                    "loadBalancer": {}, "connectionPool": {"tcp": {}}, "outlierDetection": {}, "tunnel": {},
                    "proxyProtocol": {}, "retryBudget": {},
                }})),
                vec![
                    ("spec.trafficPolicy.tunnel", NotEnforced),
                    ("spec.trafficPolicy.proxyProtocol", NotEnforced),
                    ("spec.trafficPolicy.retryBudget", NotEnforced),
                ],
            ),
            (tls(json!({})), vec![]),
            (tls(json!({"mode": "ISTIO_MUTUAL"})), vec![]),
            (tls(json!({"mode": "SIMPLE", "caCertificates": "system", "sni": "a.b"})), vec![]),
            (tls(files.clone()), vec![]),
            (tls(json!({"mode": "mutual"})), vec![(&at("mode"), Enum)]),
            (tls(json!({"mode": "MUTUAL"})), vec![(&cert, Required), (&key, Required)]),
            (tls(json!({"mode": "MUTUAL", "clientCertificate": "/a"})), vec![(&key, Required)]),
            (tls(json!({"mode": "SIMPLE", "credentialName": "x"})), vec![(&credential, NotEnforced)]),
            (
                tls(json!({"mode": "MUTUAL", "credentialName": "x", "privateKey": "/a", "caCrl": "/b"})),
                vec![(&credential, NotEnforced), (&key, Invalid), (&crl, Invalid)],
            ),
            (tls(json!({"mode": "SIMPLE", "caCertificates": "/a", "caCrl": "/b"})), vec![]),
            (tls(json!({"mode": "SIMPLE", "credentialName": "sds://x"})), vec![(&credential, NotEnforced)]),
            (tls(json!({"mode": "SIMPLE", "credentialName": "A b"})), vec![(&credential, Invalid)]),
            (tls(json!({"mode": "SIMPLE", "credentialName": "configmap://shop/roots"})), vec![]),
            (
                tls(json!({"mode": "MUTUAL", "credentialName": "configmap://shop/roots"})),
                vec![(&credential, Invalid)],
            ),
            (
                tls(json!({"mode": "SIMPLE", "credentialName": "configmap://bank/roots"})),
                vec![(&credential, Invalid)],
            ),
            (
                tls(json!({"mode": "SIMPLE", "credentialName": "configmap://roots"})),
                vec![(&credential, Invalid)],
            ),
            (selected(json!({"mode": "MUTUAL", "credentialName": "client-cert"})), vec![]),
            (selected(json!({"mode": "SIMPLE", "credentialName": "kubernetes://roots"})), vec![]),
            (
                selected(json!({"mode": "SIMPLE", "credentialName": "roots", "insecureSkipVerify": true})),
                vec![(&credential, Invalid)],
            ),
            (
                tls(
                    json!({"mode": "SIMPLE", "insecureSkipVerify": true, "caCertificates": "/a", "subjectAltNames": ["a"]}),
                ),
                vec![(&ca, Invalid), (&names, Invalid)],
            ),
            (tls(json!({"mode": "SIMPLE", "insecureSkipVerify": true})), vec![]),
            (
                tls(json!({"mode": "SIMPLE", "insecureSkipVerify": "yes"})),
                vec![(&at("insecureSkipVerify"), Type)],
            ),
            (
                tls(json!({"mode": "SIMPLE", "subjectAltNames": [""]})),
                vec![(&format!("{names}[0]"), Invalid)],
            ),
            (tls(json!({"mode": "SIMPLE", "sni": "10.0.0.1"})), vec![(&sni, Invalid)]),
            (tls(json!({"mode": "SIMPLE", "sni": "https://a"})), vec![(&sni, Invalid)]),
            (tls(json!({"mode": "SIMPLE", "cacertificates": "/a"})), vec![(&at("cacertificates"), Unknown)]),
            (ports(json!([{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}])), vec![]),
            (
                ports(
                    json!([{"tls": {}}, {"port": {}, "tls": {}}, {"port": {"number": 0}, "tls": {}}, {"port": {"number": 80}}]),
                ),
                vec![
                    ("spec.trafficPolicy.portLevelSettings[0].port.number", Required),
                    ("spec.trafficPolicy.portLevelSettings[1].port.number", Required),
                    ("spec.trafficPolicy.portLevelSettings[2].port.number", Invalid),
                    ("spec.trafficPolicy.portLevelSettings[3]", Invalid),
                ],
            ),
            (
                ports(json!([
                    {"port": {"number": 80}, "tls": {"mode": "MUTUAL", "privateKey": "/a"}},
                    {"port": {"number": 80}, "connectionPool": {}},
                ])),
                vec![
                    ("spec.trafficPolicy.portLevelSettings[0].tls.clientCertificate", Required),
                    ("spec.trafficPolicy.portLevelSettings[1].port.number", Duplicate),
                    ("spec.trafficPolicy.portLevelSettings[1].connectionPool", Invalid),
                ],
            ),
            (of(json!({"exportTo": ["."]})), vec![]),
            (of(json!({"exportTo": ["*"]})), vec![]),
            (of(json!({"exportTo": [".", "bank"]})), vec![]),
            (of(json!({"exportTo": [".", "shop"]})), vec![("spec.exportTo[1]", Duplicate)]),
            (of(json!({"exportTo": ["*", "bank"]})), vec![("spec.exportTo[0]", Invalid)]),
            (of(json!({"exportTo": ["~"]})), vec![("spec.exportTo[0]", Invalid)]),
            (of(json!({"exportTo": ["A"]})), vec![("spec.exportTo[0]", Invalid)]),
            (
                of(json!({"workloadSelector": {"matchLabels": {"app": "*"}}, "exportTo": ["shop"]})),
                vec![("spec.workloadSelector.matchLabels.app", Invalid)],
            ),
            (
                of(json!({"workloadSelector": {"matchLabels": {"app": "x"}}, "exportTo": ["*"]})),
                vec![("spec.exportTo[0]", Invalid)],
            ),
            (
                of(json!({"workloadSelector": {"labels": {}}})),
                vec![("spec.workloadSelector.labels", Unknown)],
            ),
        ],
    );
}

#[test]
fn destination_rules_that_are_weaker_than_they_look_are_warned_about() {
    let tls = |tls: Value| {
        let paths = warned("DestinationRule", json!({"host": "web", "trafficPolicy": {"tls": tls}}));
        let short = |path: String| path.strip_prefix("spec.trafficPolicy.tls.").unwrap_or(&path).to_owned();
        paths.into_iter().map(short).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(tls(json!({"mode": "SIMPLE", "caCertificates": "/a"})), none);
    assert_eq!(tls(json!({"caCertificates": "/a", "sni": "a"})), ["caCertificates", "sni"], "G-15");
    assert_eq!(tls(json!({"mode": "ISTIO_MUTUAL", "privateKey": "/a", "sni": "a"})), ["privateKey"]);
    assert_eq!(tls(json!({"mode": "SIMPLE", "privateKey": "/a"})), ["privateKey"]);
    assert_eq!(tls(json!({"mode": "SIMPLE", "sni": "a"})), ["sni"], "G-17");
    assert_eq!(tls(json!({"mode": "SIMPLE", "sni": "a", "subjectAltNames": ["a"]})), none);
    assert_eq!(tls(json!({"mode": "SIMPLE", "insecureSkipVerify": true})), ["insecureSkipVerify"]);
    assert_eq!(warned("DestinationRule", json!({"host": "web"})), ["spec.trafficPolicy"]);
    assert_eq!(
        tls(json!({"mode": "MUTUAL", "clientCertificate": "/a", "privateKey": "/b", "caCrl": "/c"})),
        none
    );
    assert_eq!(
        tls(json!({"mode": "ISTIO_MUTUAL", "caCrl": "/a", "credentialName": "x"})),
        ["credentialName", "caCrl"]
    );
    assert_eq!(
        tls(json!({"mode": "SIMPLE", "insecureSkipVerify": true, "caCrl": "/a"})),
        ["caCrl", "insecureSkipVerify"]
    );
    assert_eq!(
        warned(
            "DestinationRule",
            json!({"host": "web", "subsets": [{"name": "v1", "trafficPolicy": {"tls": {"sni": "a"}}}],
            "trafficPolicy": {"loadBalancer": {}}})
        ),
        ["spec.subsets", "spec.subsets[0].trafficPolicy.tls.sni"]
    );
    let selector =
        json!({"host": "web", "workloadSelector": {}, "trafficPolicy": {"tls": {"mode": "DISABLE"}}});
    assert_eq!(warned("DestinationRule", selector), ["spec.workloadSelector"]);
}

/// Reference mtls 4.1.
#[test]
fn service_entries_are_checked_as_istio_does() {
    let of = |more: Value| {
        let mut spec = json!({"hosts": ["a.corp"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    let port = |port: Value| of(json!({"ports": [port]}));
    let endpoint = |endpoint: Value| of(json!({"resolution": "STATIC", "endpoints": [endpoint]}));
    assert_cases(
        "ServiceEntry",
        vec![
            (of(json!({})), vec![]),
            (of(json!({"hosts": []})), vec![("spec.hosts", Required)]),
            (of(json!({"hosts": ["*"]})), vec![("spec.hosts[0]", Invalid), ("spec.hosts[0]", Invalid)]),
            (of(json!({"hosts": ["*"], "resolution": "NONE"})), vec![("spec.hosts[0]", Invalid)]),
            (of(json!({"hosts": ["*.a.corp"], "resolution": null})), vec![]),
            (of(json!({"hosts": ["*a.corp"], "resolution": "NONE"})), vec![("spec.hosts[0]", NotEnforced)]),
            (of(json!({"hosts": ["a.corp", "*.a.corp"]})), vec![("spec.hosts[1]", Invalid)]),
            (of(json!({"hosts": ["*.a.corp"], "endpoints": [{"address": "b.corp"}]})), vec![]),
            (
                of(json!({"hosts": ["a_b..c", "10.0.0.1"]})),
                vec![("spec.hosts[0]", Invalid), ("spec.hosts[1]", Invalid)],
            ),
            (of(json!({"hosts": vec!["a.corp"; 257]})), vec![("spec.hosts", Invalid)]),
            (of(json!({"addresses": ["10.0.0.1", "10.0.0.2/32", "2001:db8::1"]})), vec![]),
            (
                of(json!({"addresses": ["10.0.0.0/8", "a.corp", ""]})),
                vec![
                    ("spec.addresses[1]", Invalid),
                    ("spec.addresses[2]", Invalid),
                    ("spec.addresses[0]", Invalid),
                ],
            ),
            (of(json!({"addresses": ["10.0.0.0/8"], "resolution": "NONE"})), vec![]),
            (of(json!({"port": []})), vec![("spec.port", Unknown)]),
            (port(json!({"number": 80, "name": "http", "protocol": "http", "targetPort": 8080})), vec![]),
            (port(json!({"number": 80, "name": "http", "protocol": "GRPC", "targetPort": 0})), vec![]),
            (port(json!({})), vec![("spec.ports[0].name", Required), ("spec.ports[0].number", Required)]),
            (
                port(json!({"number": 0, "name": "A", "protocol": "UDP", "targetPort": 65536})),
                vec![
                    ("spec.ports[0].name", Invalid),
                    ("spec.ports[0].number", Invalid),
                    ("spec.ports[0].targetPort", Invalid),
                    ("spec.ports[0].protocol", Enum),
                ],
            ),
            (
                port(json!({"number": "443", "name": "a", "protocol": "TLS"})),
                vec![("spec.ports[0].number", Type)],
            ),
            (
                of(json!({"ports": [
                    {"number": 80, "name": "a", "protocol": "HTTP"}, {"number": 80, "name": "a", "protocol": "HTTP"},
                ]})),
                vec![("spec.ports[1].name", Duplicate), ("spec.ports[1].number", Duplicate)],
            ),
            (port(json!({"number": 5432, "name": "db", "protocol": "TCP"})), vec![]),
            (port(json!({"number": 5432, "name": "db"})), vec![]),
            (
                of(
                    json!({"hosts": ["*.a.corp"], "resolution": "NONE", "ports": [{"number": 5432, "name": "db"}]}),
                ),
                vec![],
            ),
            (
                of(
                    json!({"resolution": "NONE", "ports": [{"number": 5432, "name": "db", "protocol": "MONGO"}]}),
                ),
                vec![],
            ),
            (
                of(
                    json!({"addresses": ["10.0.0.1"], "ports": [{"number": 5432, "name": "db", "protocol": "TCP"}]}),
                ),
                vec![],
            ),
            (
                of(json!({
                    "hosts": ["a.corp", "b.corp"], "addresses": ["10.0.0.1"],
                    "ports": [{"number": 5432, "name": "db", "protocol": "TCP"}],
                })),
                vec![("spec.hosts", Invalid)],
            ),
            (of(json!({"resolution": "STATIC"})), vec![]),
            (of(json!({"resolution": "dns"})), vec![("spec.resolution", Enum)]),
            (of(json!({"location": "EXTERNAL"})), vec![("spec.location", Enum)]),
            (of(json!({"resolution": "DYNAMIC_DNS", "hosts": ["*.a.corp"]})), vec![]),
            (
                of(json!({
                    "resolution": "DYNAMIC_DNS", "addresses": ["10.0.0.1"], "workloadSelector": {},
                    "ports": [
                        {"number": 80, "name": "a", "protocol": "http"}, {"number": 81, "name": "b", "protocol": "TCP"},
                        {"number": 82, "name": "c", "protocol": "HTTPS"}, {"number": 83, "name": "d"},
                    ],
                })),
                vec![
                    ("spec.hosts[0]", Invalid),
                    ("spec.addresses", Invalid),
                    ("spec.workloadSelector", Invalid),
                    ("spec.ports[1].protocol", Invalid),
                    ("spec.ports[2].protocol", Invalid),
                    ("spec.ports[3].protocol", Invalid),
                ],
            ),
            (
                of(
                    json!({"resolution": "DYNAMIC_DNS", "hosts": ["*.a.corp"], "endpoints": [{"address": "10.0.0.1"}]}),
                ),
                vec![("spec.endpoints", Invalid)],
            ),
            (of(json!({"resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}})), vec![]),
            (
                of(json!({"resolution": "STATIC", "workloadSelector": {"labels": {"a": "*"}}})),
                vec![("spec.workloadSelector.labels.a", Invalid)],
            ),
            (
                of(
                    json!({"resolution": "STATIC", "workloadSelector": {}, "endpoints": [{"address": "10.0.0.1"}]}),
                ),
                vec![("spec.endpoints", Invalid)],
            ),
            (
                of(json!({"resolution": "NONE", "endpoints": [{"address": "10.0.0.1"}]})),
                vec![("spec.endpoints", Invalid)],
            ),
            (
                of(
                    json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a"}, {"address": "b"}]}),
                ),
                vec![("spec.endpoints", Invalid)],
            ),
            (
                endpoint(json!({"address": "10.0.0.1", "ports": {"tls": 8443}, "serviceAccount": "vm"})),
                vec![],
            ),
            (
                endpoint(json!({"address": "10.0.0.1", "labels": {"security.istio.io/tlsMode": "istio"}})),
                vec![],
            ),
            (endpoint(json!({})), vec![("spec.endpoints[0].address", Required)]),
            (endpoint(json!({"address": "b.corp"})), vec![("spec.endpoints[0].address", Invalid)]),
            (endpoint(json!({"address": "unix:///run/a", "weight": 5})), vec![]),
            (endpoint(json!({"address": "unix://@a"})), vec![("spec.endpoints[0].address", NotEnforced)]),
            (endpoint(json!({"address": "unix://a"})), vec![("spec.endpoints[0].address", Invalid)]),
            (endpoint(json!({"address": "unix:///run/"})), vec![("spec.endpoints[0].address", Invalid)]),
            (
                endpoint(json!({"address": format!("unix:///{}", "a".repeat(107))})),
                vec![("spec.endpoints[0].address", Invalid)],
            ),
            (
                endpoint(json!({"address": "unix:///run/a", "ports": {"tls": 1}})),
                vec![("spec.endpoints[0].ports", Invalid)],
            ),
            (
                of(json!({"endpoints": [{"address": "unix:///run/a"}]})),
                vec![("spec.endpoints[0].address", Invalid)],
            ),
            (
                of(json!({"resolution": "STATIC", "endpoints": [{"address": "unix:///run/a"}], "ports": [
                    {"number": 80, "name": "a", "protocol": "HTTP"}, {"number": 81, "name": "b", "protocol": "HTTP"},
                ]})),
                vec![("spec.endpoints[0].address", Invalid)],
            ),
            (
                endpoint(json!({"address": "10.0.0.1", "ports": {"tsl": 1, "tls": 70000}})),
                vec![("spec.endpoints[0].ports.tsl", Invalid), ("spec.endpoints[0].ports.tls", Invalid)],
            ),
            (
                endpoint(json!({
                    "address": "10.0.0.1", "network": "n", "locality": "r/z", "weight": 5, "labels": {"a b": "c"},
                    "serviceAccount": "a/b",
                })),
                vec![
                    ("spec.endpoints[0].labels[a b]", Invalid),
                    ("spec.endpoints[0].network", NotEnforced),
                    ("spec.endpoints[0].locality", NotEnforced),
                    ("spec.endpoints[0].serviceAccount", Invalid),
                ],
            ),
            (of(json!({"exportTo": ["~"]})), vec![]),
            (of(json!({"exportTo": ["~", "."]})), vec![("spec.exportTo[0]", Invalid)]),
            (
                of(json!({"subjectAltNames": ["spiffe://a/ns/b/sa/c", ""]})),
                vec![("spec.subjectAltNames[1]", Invalid)],
            ),
        ],
    );
}

#[test]
fn service_entries_that_reach_nobody_are_warned_about() {
    let port = json!([{"number": 443, "name": "tls", "protocol": "TLS"}]);
    let none: [&str; 0] = [];
    let entry = |spec: Value| warned("ServiceEntry", spec);
    assert_eq!(entry(json!({"hosts": ["*.corp"], "ports": port})), none);
    assert_eq!(entry(json!({"hosts": ["a.corp"], "resolution": "DNS"})), ["spec.ports"]);
    assert_eq!(
        entry(json!({"hosts": ["a.corp"], "ports": port, "resolution": "STATIC"})),
        ["spec.endpoints"]
    );
    let selecting = |selector: Value| {
        entry(
            json!({"hosts": ["a.corp"], "ports": port, "resolution": "STATIC", "workloadSelector": selector}),
        )
    };
    assert_eq!(selecting(json!({"labels": {"a": "b"}})), none);
    assert_eq!(selecting(json!({})), ["spec.workloadSelector"]);
    let unnamed = json!([{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 5432, "name": "db"}]);
    for resolution in ["DNS", "NONE"] {
        let spec = json!({"hosts": ["a.corp"], "ports": unnamed, "resolution": resolution});
        assert_eq!(entry(spec), ["spec.ports[1]"], "{resolution}");
    }
}

use std::net::IpAddr;

use maille_config::istio::{Action, ClientTlsMode, MutualTlsMode, Resolution};
use maille_control::world::{TLS_MODE_LABEL, TargetPort};
use maille_core::PortProtocol;
use serde_json::{Value, json};

use crate::{objects, policies};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn pod(change: impl FnOnce(&mut Value)) -> Option<maille_control::world::Pod> {
    let mut object = json!({
        "metadata": {
            "namespace": "shop", "name": "cart-5d4f-x", "uid": "u",
            "labels": { "app": "cart", "pod-template-hash": "5d4f", TLS_MODE_LABEL: "istio" },
            "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-5d4f", "uid": "r", "controller": true }
            ],
            "managedFields": [{ "manager": "x" }],
        },
        "spec": {
            "serviceAccountName": "cart",
            "nodeName": "node-1",
            "containers": [
                { "name": "istio-proxy" },
                { "name": "app", "env": [{ "name": "A", "value": "b" }], "ports": [
                    { "name": "web", "containerPort": 8080 },
                    { "name": "dns", "containerPort": 53, "protocol": "UDP" },
                ] },
            ],
        },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }], "hostIP": "192.0.2.1" },
    });
    change(&mut object);
    objects::pod(&serde_json::from_value(object).expect("a pod"))
}

#[test]
fn a_pod_is_reduced_to_what_the_mesh_needs() {
    let found = pod(|_| {}).expect("part of the world");
    assert_eq!(found.addresses, [ip("10.0.0.1"), ip("fd00::1")]);
    assert_eq!((found.workload_name.as_str(), found.service_account.as_str()), ("cart", "cart"));
    assert_eq!(found.node, "node-1");
    assert!(found.meshed && found.takes_mutual_tls() && !found.terminating);
    assert!(!found.ready && !found.multiplexes, "neither is said");
    let ready = pod(|p| {
        p["metadata"]["annotations"] = json!({ "maille.dev/multiplex": "1" });
        p["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    });
    assert!(ready.is_some_and(|pod| pod.ready && pod.multiplexes));
    assert_eq!(found.named_ports, [("web".to_owned(), 8080)]);
    let bare = pod(|p| {
        p["metadata"]["ownerReferences"] = Value::Null;
        p["spec"]["serviceAccountName"] = Value::Null;
        p["spec"]["containers"][0]["name"] = json!("other");
        p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    let bare = bare.expect("part of the world");
    assert_eq!((bare.workload_name.as_str(), bare.service_account.as_str()), ("cart-5d4f-x", "default"));
    assert!(!bare.meshed && bare.terminating);
}

#[test]
fn where_a_pods_metrics_are_is_read_from_its_annotations() {
    let scraped = |annotations: Value| {
        let found = pod(|p| p["metadata"]["annotations"] = annotations).expect("part of the world");
        found.scrape.map(|s| (s.scheme, s.port, s.path))
    };
    let http = |port, path: &str| Some(("http".to_owned(), port, path.to_owned()));
    assert_eq!(scraped(json!({})), None);
    assert_eq!(scraped(json!({"prometheus.io/scrape": "false", "prometheus.io/port": "1"})), None);
    assert_eq!(scraped(json!({"prometheus.io/scrape": "true"})), http(8080, "/metrics"), "the declared port");
    let injected = json!({
        "prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus"
    });
    assert_eq!(scraped(injected), http(15020, "/stats/prometheus"));
    assert_eq!(scraped(json!({"prometheus.io/scrape": "true", "prometheus.io/path": "m"})), http(8080, "/m"));
    for (key, wrong) in [("port", "web"), ("port", "0"), ("scheme", "ftp")] {
        let annotations = json!({"prometheus.io/scrape": "true", format!("prometheus.io/{key}"): wrong});
        assert_eq!(scraped(annotations), None, "{key}: {wrong}");
    }
}

#[test]
fn pods_without_an_address_of_their_own_are_not_part_of_the_world() {
    assert!(pod(|p| p["spec"]["hostNetwork"] = json!(true)).is_none());
    assert!(pod(|p| p["status"] = json!({ "phase": "Pending" })).is_none());
    assert!(pod(|p| p["status"]["phase"] = json!("Succeeded")).is_none());
    assert!(pod(|p| p["status"]["phase"] = json!("Failed")).is_none());
    assert!(pod(|p| p["status"]["hostIP"] = json!("10.0.0.1")).is_none());
    assert!(
        pod(|p| p["status"]["phase"] = json!("Pending")).is_some(),
        "with an address it can call already"
    );
}

#[test]
fn services_have_tcp_ports_with_their_protocols() {
    let read = |spec: Value| {
        let object = json!({ "metadata": { "namespace": "shop", "name": "cart" }, "spec": spec });
        objects::service(&serde_json::from_value(object).expect("a service"))
    };
    let found = read(json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::2"], "selector": { "app": "cart" },
        "ports": [
            { "name": "http", "port": 80, "targetPort": "web" },
            { "name": "tcp-x", "port": 81 },
            { "name": "g", "appProtocol": "grpc", "port": 82, "targetPort": 8082 },
            { "name": "dns", "port": 53, "protocol": "UDP" },
        ],
    }));
    let found = found.expect("part of the world");
    assert_eq!(found.addresses, [ip("10.96.0.1"), ip("fd00::2")]);
    let ports: Vec<_> = found.ports.iter().map(|p| (p.number, p.protocol, p.target.clone())).collect();
    assert_eq!(
        ports,
        [
            (80, PortProtocol::Http, TargetPort::Name("web".into())),
            (81, PortProtocol::Tcp, TargetPort::Number(81)),
            (82, PortProtocol::Http2, TargetPort::Number(8082)),
        ]
    );
    let headless = read(json!({ "clusterIP": "None", "clusterIPs": ["None"] })).expect("part of the world");
    assert!(headless.headless && headless.addresses.is_empty() && headless.selector.is_none());
    let alias = read(json!({
        "type": "ExternalName", "externalName": "X.example.com.", "selector": { "app": "cart" }, "clusterIP": "10.96.0.9",
    }));
    let alias = alias.expect("part of the world");
    assert_eq!(alias.external_name.as_deref(), Some("x.example.com"));
    assert!(alias.selector.is_none() && alias.addresses.is_empty() && !alias.headless);
    assert!(read(json!({ "type": "ExternalName" })).is_none());
    for (spec, ipv6) in [
        (json!({ "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4", "IPv6"] }), false),
        (json!({ "clusterIP": "fd00::2", "clusterIPs": ["fd00::2", "10.96.0.1"] }), true),
        (json!({ "clusterIP": "None", "ipFamilies": ["IPv6", "IPv4"] }), true),
        (json!({ "clusterIP": "None" }), false),
    ] {
        assert_eq!(read(spec.clone()).map(|s| s.prefers_ipv6), Some(ipv6), "{spec}");
    }
    let pending = read(json!({ "ports": [{ "port": 80 }] })).expect("part of the world");
    assert!(!pending.headless && pending.addresses.is_empty());
}

#[test]
fn slices_say_which_endpoints_are_ready() {
    let object = json!({
        "metadata": { "namespace": "shop", "name": "cart-1", "labels": { "kubernetes.io/service-name": "cart" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "u", "port": 1, "protocol": "UDP" }],
        "endpoints": [
            { "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "targetRef": { "kind": "Pod", "name": "a" },
              "hostname": "db-0" },
            { "addresses": ["10.0.0.2"], "conditions": { "ready": false } },
            { "addresses": ["10.0.0.3"] },
        ],
    });
    let slice =
        objects::slice(&serde_json::from_value(object.clone()).expect("a slice")).expect("of a service");
    assert_eq!(slice.ports, [("http".to_owned(), 8080)]);
    assert_eq!(slice.endpoints.iter().map(|e| e.ready).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(slice.endpoints[0].pod.as_deref(), Some("a"));
    let hostnames: Vec<_> = slice.endpoints.iter().map(|e| e.hostname.as_deref()).collect();
    assert_eq!(hostnames, [Some("db-0"), None, None]);
    let mut names = object;
    names["addressType"] = json!("FQDN");
    assert!(objects::slice(&serde_json::from_value(names).expect("a slice")).is_none());
}

#[test]
fn an_unreadable_policy_is_enforced_in_its_strictest_sense() {
    let read = |spec: Value| {
        let object = json!({ "metadata": { "namespace": "shop", "name": "p" }, "spec": spec });
        policies::authorization_policy(serde_json::from_value(object).expect("an object"))
    };
    let selector = json!({ "matchLabels": { "app": "cart" } });
    let broken = read(json!({ "selector": selector, "action": "PERHAPS", "rules": [{}] }));
    assert_eq!(broken.spec.action, Action::Deny);
    assert_eq!(broken.spec.rules.len(), 1);
    assert!(broken.spec.selector.is_some(), "for those it selects only");
    let fine = read(json!({ "selector": selector, "action": "ALLOW" }));
    assert_eq!((fine.spec.action, fine.spec.rules.len()), (Action::Allow, 0));
    assert_eq!(read(Value::Null).spec.action, Action::Allow, "no spec is the empty one");

    let object =
        json!({ "metadata": { "namespace": "shop", "name": "p" }, "spec": { "mtls": { "mode": "??" } } });
    let strict = policies::peer_authentication(serde_json::from_value(object).expect("an object"));
    assert_eq!(strict.spec.mtls.map(|m| m.mode), Some(MutualTlsMode::Strict));
}

#[test]
fn an_unreadable_request_authentication_has_a_rule_without_keys() {
    let read = |spec: Value| {
        let object = json!({ "metadata": { "namespace": "shop", "name": "r" }, "spec": spec });
        policies::request_authentication(serde_json::from_value(object).expect("an object")).spec
    };
    let selector = json!({ "matchLabels": { "app": "cart" } });
    let broken = read(json!({ "selector": selector, "jwtRules": [{ "issuer": 7 }] }));
    assert!(broken.selector.is_some(), "for those it selects only");
    let [rule] = broken.jwt_rules.as_slice() else { panic!("one rule: {broken:?}") };
    assert!(
        rule.jwks.is_empty() && rule.jwks_uri.is_empty() && rule.issuer.is_empty(),
        "nobody can sign for it"
    );
    let fine = read(json!({ "selector": selector, "jwtRules": [{ "issuer": "https://idp" }] }));
    assert_eq!(fine.jwt_rules[0].issuer, "https://idp");
}

#[test]
fn an_unreadable_rule_closes_its_host_and_an_unreadable_entry_reaches_nobody() {
    let object = |spec: Value| json!({ "metadata": { "namespace": "shop", "name": "r" }, "spec": spec });
    let rule = |spec: Value| {
        policies::destination_rule(serde_json::from_value(object(spec)).expect("an object")).spec
    };
    let tls = |mode: &str| json!({ "host": "a.corp", "exportTo": ["."], "trafficPolicy": { "tls": { "mode": mode } } });
    let fine = rule(tls("SIMPLE")).traffic_policy.and_then(|p| p.tls).expect("an order");
    assert!(fine.mode == ClientTlsMode::Simple && fine.credential_name.is_empty());
    let broken = rule(tls("PERHAPS"));
    assert_eq!((broken.host.as_str(), broken.export_to), ("a.corp", vec![".".to_owned()]));
    let closed = broken.traffic_policy.and_then(|p| p.tls).expect("an order");
    assert!(closed.mode == ClientTlsMode::Mutual && !closed.credential_name.is_empty());

    let entry =
        |spec: Value| policies::service_entry(serde_json::from_value(object(spec)).expect("an object")).spec;
    let ports = json!([{ "number": 443, "name": "tls", "protocol": "TLS" }]);
    let fine = entry(json!({ "hosts": ["a.corp"], "resolution": "DNS", "ports": ports }));
    assert_eq!((fine.resolution, fine.ports.len()), (Resolution::Dns, 1));
    let broken = entry(json!({ "hosts": ["a.corp"], "resolution": "PERHAPS", "exportTo": ["."] }));
    assert_eq!((broken.hosts, broken.export_to), (vec!["a.corp".to_owned()], vec![".".to_owned()]));
    assert!(broken.resolution == Resolution::Static && broken.endpoints.is_empty());
}

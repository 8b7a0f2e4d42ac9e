use serde_json::{Value, json};

use super::*;
use FieldErrorKind::{Enum, Invalid, NotEnforced, Required, Type, Unknown};

fn object(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
    })
}

/// Paths below the traffic policy, and what is wrong there.
fn found(block: &str, settings: &Value) -> Vec<(String, FieldErrorKind)> {
    let mut policy = json!({});
    policy[block] = settings.clone();
    let errors = check(&object("DestinationRule", json!({"host": "web", "trafficPolicy": policy}))).err();
    let prefix = format!("spec.trafficPolicy.{block}");
    let short = |path: &str| path.strip_prefix(&prefix).unwrap_or(path).trim_start_matches('.').to_owned();
    errors.unwrap_or_default().into_iter().map(|e| (short(&e.path), e.kind)).collect()
}

fn assert_block(block: &str, cases: Vec<(Value, Vec<(&str, FieldErrorKind)>)>) {
    for (settings, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(found(block, &settings), expected, "{block}: {settings}");
    }
}

fn warned(policy: Value) -> Vec<String> {
    let checked =
        check(&object("DestinationRule", json!({"host": "web", "trafficPolicy": policy}))).expect("valid");
    let short = |path: String| path.strip_prefix("spec.trafficPolicy.").unwrap_or(&path).to_owned();
    warnings(&checked).into_iter().map(|w| short(w.path)).collect()
}

#[test]
fn load_balancers_are_checked_as_istio_does() {
    let hash = |hash: Value| json!({"consistentHash": hash});
    assert_block(
        "loadBalancer",
        vec![
            (json!({}), vec![]),
            (json!({"simple": "ROUND_ROBIN"}), vec![]),
            (json!({"simple": "LEAST_CONN"}), vec![]),
            (json!({"simple": "PASSTHROUGH"}), vec![]),
            (json!({"simple": "UNSPECIFIED"}), vec![]),
            (json!({"simple": "FASTEST"}), vec![("simple", Enum)]),
            (json!({"simple": "RANDOM", "warmupDurationSecs": "30s"}), vec![]),
            (
                json!({"simple": "ROUND_ROBIN", "warmupDurationSecs": "30"}),
                vec![("warmupDurationSecs", Invalid)],
            ),
            (json!({"warmup": {"duration": "1m", "minimumPercent": 10, "aggression": 1.0}}), vec![]),
            (json!({"warmup": {}}), vec![("warmup.duration", Required)]),
            (
                json!({"warmup": {"duration": "0s", "minimumPercent": 50, "aggression": 2}}),
                vec![
                    ("warmup.duration", Invalid),
                    ("warmup.minimumPercent", NotEnforced),
                    ("warmup.aggression", NotEnforced),
                ],
            ),
            (hash(json!({"httpHeaderName": "x-user"})), vec![]),
            (hash(json!({"useSourceIp": true, "ringHash": {"minimumRingSize": 2048}})), vec![]),
            (
                hash(json!({"useSourceIp": true, "ringHash": {"minimumRingSize": 8388609}})),
                vec![("consistentHash.ringHash.minimumRingSize", Invalid)],
            ),
            (
                hash(json!({"useSourceIp": true, "minimumRingSize": u64::MAX})),
                vec![("consistentHash.minimumRingSize", Invalid)],
            ),
            (
                hash(json!({"useSourceIp": true, "maglev": {"tableSize": u64::MAX}})),
                vec![("consistentHash.maglev.tableSize", Invalid)],
            ),
            (hash(json!({"useSourceIp": true, "minimumRingSize": 2048})), vec![]),
            (hash(json!({"httpQueryParameterName": "q", "maglev": {"tableSize": 65537}})), vec![]),
            (hash(json!({"httpCookie": {"name": "user", "path": "/", "ttl": "0s"}})), vec![]),
            (hash(json!({"httpCookie": {"name": "user", "ttl": "3600s"}})), vec![]),
            (
                hash(json!({"httpCookie": {"ttl": "soon"}})),
                vec![
                    ("consistentHash.httpCookie.name", Required),
                    ("consistentHash.httpCookie.ttl", Invalid),
                ],
            ),
            (
                hash(
                    json!({"httpCookie": {"name": "user", "attributes": [{"name": "SameSite", "value": "Lax"}]}}),
                ),
                vec![("consistentHash.httpCookie.attributes", NotEnforced)],
            ),
            (
                hash(json!({"httpHeaderName": "x", "useSourceIp": true})),
                vec![("consistentHash.useSourceIp", Invalid)],
            ),
            (hash(json!({"httpHeaderName": "x", "useSourceIp": false})), vec![]),
            (
                hash(json!({"useSourceIp": true, "ringHash": {}, "maglev": {"tableSize": 7}})),
                vec![("consistentHash.maglev", Invalid)],
            ),
            (
                hash(json!({"useSourceIp": true, "minimumRingSize": 8, "ringHash": {}})),
                vec![("consistentHash.minimumRingSize", Invalid)],
            ),
            (
                hash(json!({"useSourceIp": true, "maglev": {}})),
                vec![("consistentHash.maglev.tableSize", Required)],
            ),
            (
                hash(json!({"useSourceIp": true, "maglev": {"tableSize": 9}})),
                vec![("consistentHash.maglev.tableSize", Invalid)],
            ),
            (
                hash(json!({"useSourceIp": true, "maglev": {"tableSize": 5000011}})),
                vec![("consistentHash.maglev.tableSize", Invalid)],
            ),
            (hash(json!({"useSourceIp": true, "maglev": {"tableSize": 4999999}})), vec![]),
            (json!({"simple": "RANDOM", "consistentHash": {"useSourceIp": true}}), vec![("simple", Invalid)]),
            (json!({"localityLbSetting": {"enabled": false}}), vec![]),
            (json!({"localityLbSetting": {"enabled": true}}), vec![("localityLbSetting", NotEnforced)]),
            (
                json!({"localityLbSetting": {"enabled": false, "failover": []}}),
                vec![("localityLbSetting", NotEnforced)],
            ),
            (json!({"zoneAwareLbSetting": {}}), vec![("zoneAwareLbSetting", NotEnforced)]),
            (json!({"backendUtilization": {}}), vec![("backendUtilization", NotEnforced)]),
            (json!({"round": "robin"}), vec![("round", Unknown)]),
        ],
    );
}

#[test]
fn connection_pools_are_checked_as_istio_does() {
    assert_block(
        "connectionPool",
        vec![
            (json!({}), vec![("", Invalid)]),
            (
                json!({
                    "tcp": {
                        "maxConnections": 100, "connectTimeout": "30ms", "maxConnectionDuration": "1h",
                        "idleTimeout": "0s", "tcpKeepalive": {"probes": 3, "time": "7200s", "interval": "75s"},
                    },
                    "http": {
                        "http1MaxPendingRequests": 1, "http2MaxRequests": 1, "maxRequestsPerConnection": 1,
                        "maxRetries": 1, "idleTimeout": "1m", "h2UpgradePolicy": "UPGRADE", "maxConcurrentStreams": 1,
                    },
                }),
                vec![],
            ),
            (
                json!({
                    "tcp": {
                        "maxConnections": -1, "connectTimeout": "0s", "maxConnectionDuration": "1us",
                        "idleTimeout": "1.5ms", "tcpKeepalive": {"time": "x", "interval": "0s"},
                    },
                    "http": {
                        "http1MaxPendingRequests": -1, "http2MaxRequests": -1, "maxRequestsPerConnection": -1,
                        "maxRetries": -1, "idleTimeout": "0s", "maxConcurrentStreams": -1,
                    },
                }),
                vec![
                    ("tcp.maxConnections", Invalid),
                    ("http.http1MaxPendingRequests", Invalid),
                    ("http.http2MaxRequests", Invalid),
                    ("http.maxRequestsPerConnection", Invalid),
                    ("http.maxRetries", Invalid),
                    ("http.maxConcurrentStreams", Invalid),
                    ("tcp.connectTimeout", Invalid),
                    ("tcp.maxConnectionDuration", Invalid),
                    ("tcp.tcpKeepalive.time", Invalid),
                    ("tcp.tcpKeepalive.interval", Invalid),
                    ("http.idleTimeout", Invalid),
                    ("tcp.idleTimeout", Invalid),
                ],
            ),
            (json!({"tcp": {"maxConnections": "100"}}), vec![("tcp.maxConnections", Type)]),
            (json!({"tcp": {"connectTimeout": 5}}), vec![("tcp.connectTimeout", Type)]),
            (json!({"http": {"h2UpgradePolicy": "ALWAYS"}}), vec![("http.h2UpgradePolicy", Enum)]),
            (
                json!({"http": {"http2KeepAlive": {"interval": "1s", "timeout": "1s"}}}),
                vec![("http.http2KeepAlive", NotEnforced)],
            ),
            (
                json!({"http": {"h2UpgradePolicy": "UPGRADE", "useClientProtocol": true}}),
                vec![("http.useClientProtocol", Invalid)],
            ),
            (json!({"http": {"h2UpgradePolicy": "DO_NOT_UPGRADE", "useClientProtocol": true}}), vec![]),
            (json!({"udp": {}}), vec![("udp", Unknown), ("", Invalid)]),
        ],
    );
}

#[test]
fn outlier_detections_are_checked_as_istio_does() {
    assert_block(
        "outlierDetection",
        vec![
            (json!({}), vec![]),
            (
                json!({
                    "consecutive5xxErrors": 7, "consecutiveGatewayErrors": 5, "interval": "5m",
                    "baseEjectionTime": "15m", "maxEjectionPercent": 100, "minHealthPercent": 50,
                    "splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailures": 3,
                }),
                vec![],
            ),
            (json!({"consecutive5xxErrors": 0, "consecutiveGatewayErrors": null}), vec![]),
            (json!({"consecutiveErrors": 5}), vec![("consecutiveErrors", NotEnforced)]),
            (json!({"consecutiveLocalOriginFailures": 5}), vec![("consecutiveLocalOriginFailures", Invalid)]),
            (
                json!({"interval": "0s", "baseEjectionTime": "1us", "maxEjectionPercent": 101, "minHealthPercent": -1}),
                vec![
                    ("interval", Invalid),
                    ("baseEjectionTime", Invalid),
                    ("maxEjectionPercent", Invalid),
                    ("minHealthPercent", Invalid),
                ],
            ),
            (
                json!({"outlierDetectionHttpErrorCodes": [429]}),
                vec![("outlierDetectionHttpErrorCodes", NotEnforced)],
            ),
            (json!({"consecutive5xxErrors": -1}), vec![("consecutive5xxErrors", Invalid)]),
        ],
    );
}

#[test]
fn policies_that_do_less_than_they_seem_to_are_warned_about() {
    let none: [&str; 0] = [];
    let balance = |settings: Value| warned(json!({"loadBalancer": settings}));
    assert_eq!(balance(json!({"simple": "ROUND_ROBIN", "warmup": {"duration": "1s"}})), none);
    assert_eq!(balance(json!({"warmupDurationSecs": "1s"})), none);
    assert_eq!(balance(json!({"simple": "RANDOM", "warmup": {"duration": "1s"}})), ["loadBalancer.warmup"]);
    assert_eq!(balance(json!({"consistentHash": {}})), ["loadBalancer.consistentHash"]);
    assert_eq!(
        balance(
            json!({"consistentHash": {"useSourceIp": true, "minimumRingSize": 8}, "warmupDurationSecs": "1s"})
        ),
        ["loadBalancer.consistentHash.minimumRingSize", "loadBalancer.warmupDurationSecs"]
    );
    assert_eq!(
        warned(json!({"portLevelSettings": [
            {"port": {"number": 80}, "loadBalancer": {"simple": "PASSTHROUGH"}, "outlierDetection": {}},
        ]})),
        ["portLevelSettings[0].loadBalancer.simple"]
    );
}

#[test]
fn workload_entries_are_checked_as_istio_does() {
    for (spec, expected) in [
        (json!({"address": "192.0.2.7"}), vec![]),
        (
            json!({"address": "2001:db8::7", "serviceAccount": "vm", "labels": {"app": "vm"}, "weight": 2}),
            vec![],
        ),
        (json!({"address": "vm.corp", "ports": {"http": 8080}}), vec![]),
        (json!({"address": "unix:///run/vm.sock"}), vec![]),
        (json!({}), vec![("spec.address", Required)]),
        (json!({"address": "vm_.corp:80"}), vec![("spec.address", Invalid)]),
        (json!({"address": "unix:///run/vm.sock", "ports": {"http": 80}}), vec![("spec.ports", Invalid)]),
        (
            json!({"address": "192.0.2.7", "ports": {"Http": 80, "x": 0}}),
            vec![("spec.ports.Http", Invalid), ("spec.ports.x", Invalid)],
        ),
        (json!({"network": "n"}), vec![("spec.address", Required), ("spec.network", NotEnforced)]),
        (json!({"address": "192.0.2.7", "locality": "a/b"}), vec![("spec.locality", NotEnforced)]),
        (json!({"address": "192.0.2.7", "port": {}}), vec![("spec.port", Unknown)]),
    ] {
        let errors = check(&object("WorkloadEntry", spec.clone())).err().unwrap_or_default();
        let errors: Vec<_> = errors.iter().map(|e| (e.path.as_str(), e.kind)).collect();
        assert_eq!(errors, expected, "{spec}");
    }
}

#[test]
fn sidecars_are_checked_as_istio_does() {
    let hosts = |hosts: Value| json!({"egress": [{"hosts": hosts}]});
    const HOST: &str = "spec.egress[0].hosts[0]";
    for (spec, expected) in [
        (hosts(json!(["./*", "istio-system/*", "*/api.example.com", "~bank/*", "~/*"])), vec![]),
        (json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}), vec![]),
        (
            json!({"workloadSelector": {"labels": {"app": "x"}}, "egress": [{"hosts": ["*/*"], "captureMode": "IPTABLES"}]}),
            vec![],
        ),
        (json!({}), vec![("spec", Invalid)]),
        (json!({"egress": []}), vec![("spec", Invalid)]),
        (hosts(json!([])), vec![("spec.egress[0].hosts", Required)]),
        (hosts(json!(["web"])), vec![(HOST, Invalid)]),
        (hosts(json!(["./web"])), vec![(HOST, Invalid)]),
        (hosts(json!(["A/*"])), vec![(HOST, Invalid)]),
        (hosts(json!(["./*web.corp"])), vec![(HOST, Invalid)]),
        (hosts(json!(["./"])), vec![(HOST, Invalid)]),
        (json!({"egress": [{"hosts": ["./*"]}, {"hosts": ["a/*"]}]}), vec![("spec.egress[0]", Invalid)]),
        (
            json!({"egress": [{"hosts": ["./*"], "port": {"number": 80}, "bind": "127.0.0.1", "captureMode": "NONE"}]}),
            vec![
                ("spec.egress[0].port", NotEnforced),
                ("spec.egress[0].bind", NotEnforced),
                ("spec.egress[0].captureMode", NotEnforced),
            ],
        ),
        (json!({"ingress": [{"port": {"number": 80}}]}), vec![("spec.ingress", NotEnforced)]),
        (json!({"inboundConnectionPool": {"tcp": {"maxConnections": 1}}}), vec![]),
        (
            json!({"inboundConnectionPool": {"tcp": {"maxConnections": -1}}}),
            vec![("spec.inboundConnectionPool.tcp.maxConnections", Invalid)],
        ),
        (
            json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy": {"host": "a.b"}}}),
            vec![("spec.outboundTrafficPolicy.egressProxy", NotEnforced)],
        ),
        (
            json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"}}),
            vec![("spec.outboundTrafficPolicy.mode", Enum)],
        ),
        (
            json!({"workloadSelector": {"labels": {"app": "*"}}, "egress": [{"hosts": ["./*"]}]}),
            vec![("spec.workloadSelector.labels.app", Invalid)],
        ),
    ] {
        let errors = check(&object("Sidecar", spec.clone())).err().unwrap_or_default();
        let errors: Vec<_> = errors.iter().map(|e| (e.path.as_str(), e.kind)).collect();
        assert_eq!(errors, expected, "{spec}");
    }
}

#[test]
fn sidecars_that_are_not_what_they_seem_are_warned_about() {
    let warned = |namespace: &str, spec: Value| {
        let mut sidecar = object("Sidecar", spec);
        sidecar["metadata"]["namespace"] = json!(namespace);
        let checked = check(&sidecar).expect("valid");
        warnings(&checked).into_iter().map(|w| w.path).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    let hosts = |hosts: Value| json!({"egress": [{"hosts": hosts}]});
    assert_eq!(warned("shop", hosts(json!(["./*", "bank/*", "~/x.corp"]))), none);
    assert_eq!(warned("shop", hosts(json!(["./*", "shop/web.corp"]))), ["spec.egress[0].hosts[1]"]);
    assert_eq!(warned("shop", hosts(json!(["*/*", "bank/*"]))), ["spec.egress[0].hosts[1]"]);
    let selecting = |labels: Value| json!({"workloadSelector": {"labels": labels}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}});
    assert_eq!(warned("shop", selecting(json!({"a": "b"}))), none);
    assert_eq!(warned("shop", selecting(json!({}))), ["spec.workloadSelector"]);
    assert_eq!(warned("istio-system", selecting(json!({"a": "b"}))), ["spec.workloadSelector"]);
    assert_eq!(warned("shop", json!({"outboundTrafficPolicy": {}})), ["spec.outboundTrafficPolicy"]);
}

#[test]
fn policies_keep_their_spelling() {
    for (kind, spec) in [
        (
            "DestinationRule",
            json!({"host": "web", "trafficPolicy": {
                "loadBalancer": {"consistentHash": {"httpCookie": {"name": "user", "ttl": "1h0m0s"}}},
                "connectionPool": {"tcp": {"connectTimeout": "1.5s"}, "http": {"h2UpgradePolicy": "UPGRADE"}},
                "outlierDetection": {"consecutive5xxErrors": 0, "interval": "1m"},
            }, "subsets": [{"name": "v1", "labels": {"v": "1"}}]}),
        ),
        ("WorkloadEntry", json!({"address": "192.0.2.7", "serviceAccount": "vm"})),
        ("Sidecar", json!({"egress": [{"hosts": ["./*"]}], "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}})),
    ] {
        let checked = check(&object(kind, spec.clone())).expect("valid");
        assert_eq!(checked.to_value(), object(kind, spec));
    }
}

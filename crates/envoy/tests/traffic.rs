//! Traffic policies as they are shown: Istio's fields, which a real Envoy takes.
//!
//! `MAILLE_ENVOY` names the program; without it the test of loading says loudly that it did not run.

use std::path::PathBuf;
use std::process::Command;

use maille_envoy::{Dump, tables};
use serde_json::{Value, json};

const WEB: &str = "web.shop.svc.cluster.local";

fn endpoint(address: &str, version: &str, weight: u32) -> Value {
    json!({
        "address": address, "weight": weight, "labels": {"version": version},
        "ports": [
            {"servicePort": 80, "targetPort": 8080, "tls": "ENDPOINT_TLS_ISTIO_MUTUAL"},
            {"servicePort": 90, "targetPort": 9090, "tls": "ENDPOINT_TLS_PLAINTEXT"},
        ],
    })
}

fn pool() -> Value {
    json!({
        "maxConnections": 10, "connectTimeoutMs": "1500", "http1MaxPendingRequests": 5, "http2MaxRequests": 20,
        "maxRequestsPerConnection": 7, "maxRetries": 3, "httpIdleTimeoutMs": "30000",
        "maxConnectionDurationMs": "3600000", "h2Upgrade": true, "maxConcurrentStreams": 50,
        "tcpKeepalive": {"probes": 3, "timeMs": "60000", "intervalMs": "5000"},
    })
}

fn detection() -> Value {
    json!({
        "consecutive5xxErrors": 5, "consecutiveGatewayErrors": 0, "splitExternalLocalOriginErrors": true,
        "consecutiveLocalOriginFailures": 2, "intervalMs": "10000", "baseEjectionMs": "30000",
        "maxEjectionPercent": 50, "minHealthPercent": 20,
    })
}

/// A proxy that called `web` with this policy for port 80 and that load balancer for port 90.
fn proxy(traffic: &Value, balancer: &Value) -> Value {
    let simple = json!({"mode": "MODE_SIMPLE", "rule": "shop/web", "credential": "shop/client", "caCrl": "/etc/crl.pem"});
    let subsets = json!([
        {"name": "v1", "labels": {"version": "1"}, "tls": simple, "traffic": {"rule": "shop/web"}},
        {"name": "v2", "labels": {"version": "2"}, "traffic": traffic},
    ]);
    let service = json!({
        "namespace": "shop", "name": "web", "hostname": WEB, "addresses": ["10.96.0.7"],
        "ports": [
            {"number": 80, "protocol": "PROTOCOL_HTTP", "traffic": traffic, "subsets": subsets},
            {"number": 90, "protocol": "PROTOCOL_TCP", "traffic": {"loadBalancer": balancer}},
        ],
        "endpoints": [endpoint("10.0.0.1", "1", 0), endpoint("10.0.0.2", "2", 3)],
    });
    let named = json!({
        "hostname": "*.corp", "external": true, "resolution": "RESOLUTION_DYNAMIC_DNS",
        "ports": [{"number": 80, "protocol": "PROTOCOL_HTTP"}],
    });
    let socket = json!({
        "hostname": "local.corp", "external": true,
        "ports": [{"number": 80, "protocol": "PROTOCOL_HTTP"}],
        "endpoints": [{"unixPath": "/run/app.sock", "ports": [{"servicePort": 80, "targetPort": 80}]}],
    });
    json!({"workload": "shop/client", "generation": 1, "facts": {
        "meshSettings": {"clusterDomain": "cluster.local", "deliverToLocalhost": true},
        "inbound": {"ports": [{"port": 8080, "protocol": "PROTOCOL_HTTP", "connectionPool": {"maxConnections": 9}}]},
        "destinations": [
            {"name": WEB, "destination": {"service": service}, "ejections": [
                {"port": 80, "endpoint": "10.0.0.2:8080", "remainingMs": "1000"},
            ]},
            {"name": "x.corp", "destination": {"service": named}},
            {"name": "local.corp", "destination": {"service": socket}},
        ],
    }})
}

fn read(shown: &Value) -> Dump {
    Dump::read(shown.to_string().as_bytes()).expect("a dump")
}

fn cluster(dump: &Dump, name: &str) -> Value {
    let found = dump.clusters.iter().find(|cluster| cluster["name"] == name);
    found.cloned().unwrap_or_else(|| panic!("{name}"))
}

#[test]
fn bounds_and_ejection_are_shown_as_istio_writes_them() {
    let traffic = json!({"rule": "shop/web", "connectionPool": pool(), "outlierDetection": detection()});
    let web = cluster(&read(&proxy(&traffic, &json!({}))), &format!("outbound|80||{WEB}"));
    assert_eq!(web["lbPolicy"], "LEAST_REQUEST");
    assert_eq!(web["connectTimeout"], "1.500s");
    assert_eq!(
        web["circuitBreakers"]["thresholds"],
        json!([{"maxConnections": 10, "maxPendingRequests": 5, "maxRequests": 20, "maxRetries": 3, "trackRemaining": true}])
    );
    assert_eq!(
        web["upstreamConnectionOptions"]["tcpKeepalive"],
        json!({"keepaliveProbes": 3, "keepaliveTime": 60, "keepaliveInterval": 5})
    );
    let options =
        &web["typedExtensionProtocolOptions"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert_eq!(
        options["commonHttpProtocolOptions"],
        json!({"idleTimeout": "30s", "maxConnectionDuration": "3600s", "maxRequestsPerConnection": 7})
    );
    assert_eq!(options["explicitHttpConfig"], json!({"http2ProtocolOptions": {"maxConcurrentStreams": 50}}));
    assert_eq!(
        web["outlierDetection"],
        json!({
            "consecutive5xx": 5, "enforcingConsecutive5xx": 100, "consecutiveGatewayFailure": 0,
            "enforcingConsecutiveGatewayFailure": 0, "interval": "10s", "baseEjectionTime": "30s",
            "maxEjectionPercent": 50, "enforcingSuccessRate": 0, "splitExternalLocalOriginErrors": true,
            "consecutiveLocalOriginFailure": 2, "enforcingConsecutiveLocalOriginFailure": 100,
            "enforcingLocalOriginSuccessRate": 0,
        })
    );
    assert_eq!(web["commonLbConfig"]["healthyPanicThreshold"]["value"], 20);
    // Without a rule: Istio's defaults.
    let plain = cluster(&read(&proxy(&Value::Null, &json!({}))), &format!("outbound|80||{WEB}"));
    assert_eq!(plain["circuitBreakers"]["thresholds"][0]["maxConnections"], u32::MAX);
    assert_eq!((&plain["connectTimeout"], plain.get("outlierDetection")), (&json!("10s"), None));
}

#[test]
fn balancing_is_shown_in_clusters_and_hashes_in_routes_and_tcp_proxies() {
    for (balancer, policy, config, route, tcp) in [
        (json!({}), "LEAST_REQUEST", Value::Null, Value::Null, Value::Null),
        (
            json!({"simple": "SIMPLE_LEAST_REQUEST", "warmupMs": "30000"}),
            "LEAST_REQUEST",
            json!({"leastRequestLbConfig": {"slowStartConfig": {"slowStartWindow": "30s"}}}),
            Value::Null,
            Value::Null,
        ),
        (json!({"simple": "SIMPLE_ROUND_ROBIN"}), "ROUND_ROBIN", Value::Null, Value::Null, Value::Null),
        (
            json!({"simple": "SIMPLE_RANDOM", "warmupMs": "1"}),
            "RANDOM",
            Value::Null,
            Value::Null,
            Value::Null,
        ),
        (
            json!({"consistentHash": {"httpHeaderName": "x-user"}}),
            "RING_HASH",
            json!({"ringHashLbConfig": {"minimumRingSize": "1024"}}),
            json!([{"header": {"headerName": "x-user"}}]),
            Value::Null,
        ),
        (
            json!({"consistentHash": {"useSourceIp": true, "maglevTableSize": "65537"}}),
            "MAGLEV",
            json!({"maglevLbConfig": {"tableSize": "65537"}}),
            json!([{"connectionProperties": {"sourceIp": true}}]),
            json!([{"sourceIp": {}}]),
        ),
        (
            json!({"consistentHash": {"httpCookie": {"name": "user", "path": "/", "ttlMs": "0"}, "minimumRingSize": "9"}}),
            "RING_HASH",
            json!({"ringHashLbConfig": {"minimumRingSize": "9"}}),
            json!([{"cookie": {"name": "user", "path": "/", "ttl": "0s"}}]),
            Value::Null,
        ),
        (
            json!({"consistentHash": {"httpQueryParameterName": "q"}}),
            "RING_HASH",
            json!({"ringHashLbConfig": {"minimumRingSize": "1024"}}),
            json!([{"queryParameter": {"name": "q"}}]),
            Value::Null,
        ),
    ] {
        let dump = read(&proxy(&json!({"loadBalancer": balancer}), &balancer));
        let web = cluster(&dump, &format!("outbound|80||{WEB}"));
        assert_eq!((&web["lbPolicy"], &web["type"]), (&json!(policy), &json!("EDS")), "{balancer}");
        for (field, value) in config.as_object().into_iter().flatten() {
            assert_eq!(&web[field], value, "{balancer}");
        }
        let routes = dump.routes.iter().find(|route| route["name"] == "80").expect("port 80");
        let hosts = routes["virtualHosts"].as_array().expect("hosts");
        let own = hosts.iter().find(|host| host["name"] == format!("{WEB}:80")).expect("web");
        assert_eq!(own["routes"][0]["route"]["hashPolicy"], route, "{balancer}");
        let listener =
            dump.listeners.iter().find(|listener| listener["name"] == "10.96.0.7_90").expect("port 90");
        assert_eq!(listener["filterChains"][0]["filters"][0]["typedConfig"]["hashPolicy"], tcp, "{balancer}");
    }
    let passing = read(&proxy(&json!({"loadBalancer": {"simple": "SIMPLE_PASSTHROUGH"}}), &json!({})));
    let web = cluster(&passing, &format!("outbound|80||{WEB}"));
    assert_eq!((&web["type"], &web["lbPolicy"]), (&json!("ORIGINAL_DST"), &json!("CLUSTER_PROVIDED")));
    assert_eq!(web["transportSocket"]["name"], "envoy.transport_sockets.tls", "no choice between endpoints");
}

#[test]
fn subsets_are_clusters_of_their_own_with_their_endpoints() {
    let traffic = json!({"rule": "shop/web", "loadBalancer": {"simple": "SIMPLE_RANDOM"}});
    let dump = read(&proxy(&traffic, &json!({})));
    let rows = |table: tables::Table| table.iter().map(|row| row.join(" ")).collect::<Vec<_>>();
    let shown = rows(tables::clusters(&dump.clusters));
    let web: Vec<&str> = shown.iter().map(String::as_str).filter(|row| row.starts_with(WEB)).collect();
    assert_eq!(
        web,
        [
            "web.shop.svc.cluster.local 80 - outbound EDS web.shop",
            "web.shop.svc.cluster.local 80 v1 outbound EDS web.shop",
            "web.shop.svc.cluster.local 80 v2 outbound EDS web.shop",
            "web.shop.svc.cluster.local 90 - outbound EDS ",
        ]
    );
    assert!(
        shown.contains(&"*.corp 80 - outbound envoy.clusters.dynamic_forward_proxy ".to_owned()),
        "{shown:#?}"
    );
    assert_eq!(
        rows(tables::endpoints(&dump.endpoints)),
        [
            "ENDPOINT STATUS OUTLIER CHECK CLUSTER",
            "10.0.0.1:8080 HEALTHY OK outbound|80|v1|web.shop.svc.cluster.local",
            "10.0.0.1:8080 HEALTHY OK outbound|80||web.shop.svc.cluster.local",
            "10.0.0.1:9090 HEALTHY OK outbound|90||web.shop.svc.cluster.local",
            "10.0.0.2:8080 HEALTHY FAILED outbound|80|v2|web.shop.svc.cluster.local",
            "10.0.0.2:8080 HEALTHY FAILED outbound|80||web.shop.svc.cluster.local",
            "10.0.0.2:9090 HEALTHY OK outbound|90||web.shop.svc.cluster.local",
            "unix:///run/app.sock HEALTHY OK outbound|80||local.corp",
        ]
    );
    let v1 = cluster(&dump, &format!("outbound|80|v1|{WEB}"));
    let common = &v1["transportSocket"]["typedConfig"]["commonTlsContext"]["combinedValidationContext"];
    assert_eq!(common["validationContextSdsSecretConfig"]["name"], "kubernetes://shop/client-cacert");
    assert_eq!(common["defaultValidationContext"]["crl"]["filename"], "/etc/crl.pem");
    let v2 = cluster(&dump, &format!("outbound|80|v2|{WEB}"));
    assert_eq!(v2["lbPolicy"], "RANDOM");
    assert_eq!(
        v2["transportSocketMatches"][0]["transportSocket"]["typedConfig"]["sni"],
        "outbound_.80_.v2_.web.shop.svc.cluster.local"
    );
    let weights =
        dump.endpoints.iter().find(|status| status["name"] == format!("outbound|80||{WEB}")).expect("web");
    assert_eq!(
        (&weights["hostStatuses"][0]["weight"], &weights["hostStatuses"][1]["weight"]),
        (&json!(1), &json!(3))
    );
}

#[test]
fn the_own_application_is_bounded_and_reached_as_the_mesh_says() {
    let own = cluster(&read(&proxy(&Value::Null, &json!({}))), "inbound|8080||");
    assert_eq!(own["circuitBreakers"]["thresholds"][0]["maxConnections"], 9);
    let address = &own["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socketAddress"]["address"], "127.0.0.1");
    assert!(own.get("upstreamBindConfig").is_none());
}

#[test]
fn the_raw_dump_writes_field_names_as_envoy_does() {
    let raw =
        read(&proxy(&json!({"outlierDetection": detection()}), &json!({}))).to_config_dump().to_string();
    for name in ["\"consecutive_5xx\":5", "\"enforcing_consecutive_5xx\":100", "\"outlier_detection\""] {
        assert!(raw.contains(name), "{name}");
    }
}

#[test]
fn envoy_takes_the_clusters_and_routes_of_every_sort_of_policy() {
    let Some(envoy) = std::env::var_os("MAILLE_ENVOY").map(PathBuf::from).filter(|path| path.is_file())
    else {
        eprintln!("\n*** SKIPPED: loading the clusters into Envoy: MAILLE_ENVOY names no program ***\n");
        return;
    };
    for balancer in [
        json!({"simple": "SIMPLE_LEAST_REQUEST", "warmupMs": "30000"}),
        json!({"simple": "SIMPLE_ROUND_ROBIN", "warmupMs": "1500"}),
        // Not PASSTHROUGH: Envoy 1.40 crashes when it validates ORIGINAL_DST beside certificates that come over ADS.
        json!({"consistentHash": {"httpCookie": {"name": "user", "ttlMs": "1500"}}}),
        json!({"consistentHash": {"useSourceIp": true, "maglevTableSize": "65537"}}),
    ] {
        let traffic =
            json!({"loadBalancer": balancer, "connectionPool": pool(), "outlierDetection": detection()});
        let dump = read(&proxy(&traffic, &balancer));
        let chains = dump.routes.iter().map(|route| {
            let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
            let router = json!({
                "name": "envoy.filters.http.router",
                "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            });
            json!({"name": route["name"],
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": {
                "@type": manager, "statPrefix": "a", "routeConfig": route, "httpFilters": [router],
            }}]})
        });
        let control = json!({
            "name": "xds-grpc", "type": "STATIC", "loadAssignment": {"clusterName": "xds-grpc", "endpoints": []},
            "typedExtensionProtocolOptions": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicitHttpConfig": {"http2ProtocolOptions": {}},
            }},
        });
        let clusters: Vec<Value> = dump.clusters.iter().cloned().chain([control]).collect();
        let services = json!([{"envoyGrpc": {"clusterName": "xds-grpc"}}]);
        let configuration = json!({
            "node": {"id": "a", "cluster": "a"},
            "dynamic_resources": {"ads_config": {"apiType": "GRPC", "transportApiVersion": "V3", "grpcServices": services}},
            "static_resources": {"clusters": clusters, "listeners": [{
                "name": "routes", "address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}},
                "filterChains": chains.take(1).collect::<Vec<_>>(),
            }]},
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, configuration.to_string()).expect("written");
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .output()
            .expect("Envoy starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> =
            said.lines().filter(|line| line.contains("][error]") || line.contains("][critical]")).collect();
        assert!(output.status.success() && errors.is_empty(), "{balancer}: {errors:#?}\n{said}");
    }
}

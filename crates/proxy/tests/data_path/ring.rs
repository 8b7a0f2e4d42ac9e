//! Equal keys find equal endpoints through us and through a real Envoy 1.40: a mesh of both keeps its caches warm.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::balance::{Named, ask, client, endpoint, who};
use crate::lab::{HOST, Lab, PATIENCE, exchange};

struct Envoy {
    child: Child,
    at: SocketAddr,
}

impl Envoy {
    /// With one cluster that hashes by the header `x-user`.
    fn start(lab: &Lab, policy: &Value, endpoints: &[(SocketAddr, u32)]) -> Option<Self> {
        let program = crate::envoy::Envoy::program()?;
        // Free a moment ago.
        let at = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let socket = |at: SocketAddr| json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
        let ends = endpoints.iter().map(
            |(at, weight)| json!({"endpoint": {"address": socket(*at)}, "load_balancing_weight": weight}),
        );
        let mut cluster = json!({"name": "all", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {
            "cluster_name": "all", "endpoints": [{"lb_endpoints": ends.collect::<Vec<_>>()}]}});
        for (key, value) in policy.as_object().into_iter().flatten() {
            cluster[key] = value.clone();
        }
        let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
        let route = json!({"cluster": "all", "hash_policy": [{"header": {"header_name": "x-user"}}]});
        let manager = json!({
            "@type": typed("network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "x",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
            "http_filters": [{"name": "envoy.filters.http.router",
                "typed_config": {"@type": typed("http.router.v3.Router")}}]});
        let config = json!({"static_resources": {
            "listeners": [{"name": "in", "address": socket(at), "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
            "clusters": [cluster]}});
        let path = lab.path("envoy.json");
        std::fs::write(&path, config.to_string()).expect("writable");
        let child = Command::new(program)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "error", "-c"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Envoy starts");
        let envoy = Self { child, at };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(at).is_err() {
            assert!(Instant::now() < deadline, "Envoy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(envoy)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_find_the_endpoint_that_envoy_finds() {
    let lab = Lab::new();
    let (a, b, c) = (Named::new("a"), Named::new("b"), Named::new("c"));
    let ring =
        |size: u32| json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": size}});
    let maglev = json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 1009}});
    for (envoys, ours, weights) in [
        (ring(1024), "minimumRingSize: 1024", [1, 1, 1]),
        (ring(64), "minimumRingSize: 64", [1, 5, 2]),
        (maglev.clone(), "maglevTableSize: 1009", [1, 1, 1]),
        (maglev, "maglevTableSize: 1009", [7, 2, 3]),
    ] {
        let mut all: Vec<_> = [&a, &b, &c].iter().map(|named| named.address).zip(weights).collect();
        // An order that is not theirs: Maglev's table is filled in that of their addresses.
        all.sort_by_key(|(at, _)| std::cmp::Reverse(at.to_string()));
        let Some(envoy) = Envoy::start(&lab, &envoys, &all) else { return };
        let weighted = all.iter().map(|(at, weight)| endpoint(*at, &format!(", weight: {weight}")));
        let port = format!(
            "protocol: HTTP, traffic: {{loadBalancer: {{consistentHash: {{httpHeaderName: x-user, {ours}}}}}}}"
        );
        let proxy = client(&lab, &port, &weighted.collect::<Vec<_>>());
        let mut seen = BTreeMap::new();
        for n in 0..60 {
            let line = format!("x-user: user-{n}\r\n");
            let head = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{line}connection: close\r\n\r\n");
            let theirs = who(&exchange(envoy.at, head.as_bytes()));
            assert_eq!(who(&ask(&proxy, "/", &line)), theirs, "{ours} {weights:?} {line}");
            *seen.entry(theirs).or_insert(0) += 1;
        }
        // On a small ring the lightest may have next to nothing.
        assert!(seen.len() > 1, "{ours}: {seen:?}");
    }
}

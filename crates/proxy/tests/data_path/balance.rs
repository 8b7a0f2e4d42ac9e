//! How requests and connections are spread over endpoints, and kept from those that fail (reference mtls 2.3).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;

use crate::lab::{HOST, Lab, PATIENCE, at, exchange, exchange_half_closed, http_backend, tcp_backend};
use crate::outside::NameServer;

/// An application that says who it is, with the status it is told to have.
pub(crate) struct Named {
    pub(crate) address: SocketAddr,
    pub(crate) status: Arc<AtomicU16>,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Named {
    pub(crate) fn new(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let named = Self {
            address,
            status: Arc::new(AtomicU16::new(200)),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (status, requests) = (named.status.clone(), named.requests.clone());
        let connections = named.connections.clone();
        listener.set_nonblocking(true).expect("a socket");
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let (status, requests) = (status.clone(), requests.clone());
                    let connection = connections.fetch_add(1, Ordering::SeqCst) + 1;
                    tokio::spawn(async move {
                        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                            requests.fetch_add(1, Ordering::SeqCst);
                            let version = request.version();
                            let text = format!("name={name} version={version:?} connection={connection}\n");
                            let response = Response::builder()
                                .status(status.load(Ordering::SeqCst))
                                .body(Full::new(Bytes::from(text)));
                            async move { Ok::<_, Infallible>(response.expect("a response")) }
                        });
                        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            });
        });
        named
    }

    pub(crate) fn answers(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

/// An outbound proxy whose listener stands for port 80 of a service with these endpoints, in YAML.
pub(crate) fn client(lab: &Lab, port: &str, endpoints: &[String]) -> StaticProxy {
    let mut text = lab.header("web");
    let endpoints = endpoints.join(", ");
    text.push_str(&format!(
        "inbound: {{mode: STRICT, workload: {{uid: shop/web-1, namespace: shop, workloadName: web}}}}\n\
         destinations:\n  10.96.0.9: &cart\n    service: {{namespace: shop, name: cart, hostname: {HOST}, addresses: \
         [10.96.0.9], ports: [{{number: 80, {port}}}], endpoints: [{endpoints}]}}\n  {HOST}: *cart\n\
         listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '10.96.0.9:80'}}\n"
    ));
    let path = lab.path("balanced.yaml");
    std::fs::write(&path, text).expect("writable");
    StaticProxy::start(&path).expect("the outbound proxy starts")
}

pub(crate) fn endpoint(address: SocketAddr, more: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!("{{address: {ip}, ports: [{{servicePort: 80, targetPort: {port}, tls: PLAINTEXT}}]{more}}}")
}

pub(crate) fn endpoints(of: &[&Named]) -> Vec<String> {
    of.iter().map(|named| endpoint(named.address, "")).collect()
}

/// One request on an own connection, with more header lines.
pub(crate) fn ask(proxy: &StaticProxy, target: &str, more: &str) -> String {
    let request = format!("GET {target} HTTP/1.1\r\nhost: {HOST}\r\n{more}connection: close\r\n\r\n");
    exchange(at(proxy), request.as_bytes())
}

/// Who answered, or the status line.
pub(crate) fn who(answer: &str) -> String {
    let name = answer.split("name=").nth(1).and_then(|rest| rest.split(' ').next());
    name.or_else(|| answer.lines().next()).unwrap_or_default().to_owned()
}

fn tally(answers: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(who(&answer)).or_default() += 1;
    }
    counts
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// A port where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound")
}

#[test]
fn round_robin_takes_turns_and_weights_count() {
    let lab = Lab::new();
    let (a, b, c) = (Named::new("a"), Named::new("b"), Named::new("c"));
    let port = "protocol: HTTP, traffic: {loadBalancer: {simple: ROUND_ROBIN}}";
    let proxy = client(&lab, port, &endpoints(&[&a, &b, &c]));
    let even = tally((0..30).map(|_| ask(&proxy, "/", "")));
    assert_eq!(even, counts(&[("a", 10), ("b", 10), ("c", 10)]));
    let weighted = [endpoint(a.address, ", weight: 1"), endpoint(b.address, ", weight: 4")];
    let proxy = client(&lab, port, &weighted);
    let uneven = tally((0..30).map(|_| ask(&proxy, "/", "")));
    assert_eq!(uneven, counts(&[("a", 6), ("b", 24)]));
    // Weights alone are enough, and count on opaque connections as well.
    let (a, b) = (tcp_backend(b"name=a "), tcp_backend(b"name=b "));
    let weighted = [endpoint(a, ", weight: 1"), endpoint(b, ", weight: 9")];
    let proxy = client(&lab, "protocol: TCP", &weighted);
    let uneven = tally((0..60).map(|_| exchange_half_closed(at(&proxy), b"x")));
    assert!(uneven["b"] > 40 && uneven.values().sum::<usize>() == 60, "{uneven:?}");
}

#[test]
fn random_and_least_request_use_all() {
    let lab = Lab::new();
    let (a, b) = (Named::new("a"), Named::new("b"));
    for simple in ["RANDOM", "LEAST_REQUEST"] {
        let port = format!("protocol: HTTP, traffic: {{loadBalancer: {{simple: {simple}}}}}");
        let proxy = client(&lab, &port, &endpoints(&[&a, &b]));
        let both = tally((0..60).map(|_| ask(&proxy, "/", "")));
        assert!(both["a"] > 10 && both["b"] > 10, "{simple}: {both:?}");
    }
}

/// The dialled address is reached whatever the endpoints are.
#[test]
fn passthrough_goes_where_the_application_dialled() {
    let lab = Lab::new();
    let (dialled, other) = (Named::new("dialled"), Named::new("other"));
    let port = dialled.address.port();
    let text = format!(
        "{}inbound: {{mode: STRICT, workload: {{uid: shop/web-1, namespace: shop}}}}\n\
         settings: {{outboundPolicy: REGISTRY_ONLY}}\n\
         destinations:\n  127.0.0.1: &cart\n    service: {{namespace: shop, name: cart, hostname: {HOST}, ports: [{{number: \
         {port}, protocol: HTTP, traffic: {{loadBalancer: {{simple: PASSTHROUGH}}}}}}], endpoints: [{}]}}\n  {HOST}: *cart\n\
         listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '{}'}}\n",
        lab.header("web"),
        endpoint(other.address, "").replace("servicePort: 80", &format!("servicePort: {port}")),
        dialled.address,
    );
    let path = lab.path("passthrough.yaml");
    std::fs::write(&path, text).expect("writable");
    let proxy = StaticProxy::start(&path).expect("the outbound proxy starts");
    let all = tally((0..10).map(|_| ask(&proxy, "/", "")));
    assert_eq!(all, counts(&[("dialled", 10)]));
}

#[test]
fn equal_keys_get_to_one_endpoint() {
    let lab = Lab::new();
    let (a, b, c) = (Named::new("a"), Named::new("b"), Named::new("c"));
    let of_header = |n: usize| ("/".to_owned(), format!("x-user: {n}\r\n"));
    let of_query = |n: usize| (format!("/?v=1&user={n}"), String::new());
    let of_cookie = |n: usize| ("/".to_owned(), format!("cookie: a=b; user={n}\r\n"));
    type Make = dyn Fn(usize) -> (String, String);
    let keys: [(&str, &Make); 3] = [
        ("httpHeaderName: X-User", &of_header),
        ("httpQueryParameterName: user", &of_query),
        ("httpCookie: {name: user}", &of_cookie),
    ];
    for (key, make) in keys {
        for table in ["", ", maglevTableSize: 1009", ", minimumRingSize: 64"] {
            let hash = format!("{{consistentHash: {{{key}{table}}}}}");
            let port = format!("protocol: HTTP, traffic: {{loadBalancer: {hash}}}");
            let proxy = client(&lab, &port, &endpoints(&[&a, &b, &c]));
            let mut seen = BTreeMap::new();
            for n in 0..24 {
                let (target, more) = make(n);
                let first = who(&ask(&proxy, &target, &more));
                assert_eq!(who(&ask(&proxy, &target, &more)), first, "{hash} {n}");
                *seen.entry(first).or_insert(0) += 1;
            }
            assert_eq!(seen.len(), 3, "{hash}: {seen:?}");
            // Without a key, any.
            let any = tally((0..40).map(|_| ask(&proxy, "/", "")));
            assert_eq!(any.len(), 3, "{hash}: {any:?}");
            assert!(!ask(&proxy, "/", "").contains("set-cookie"), "nobody asked for a cookie");
        }
    }
}

#[test]
fn a_cookie_is_made_and_keeps_its_endpoint() {
    let lab = Lab::new();
    let (a, b, c) = (Named::new("a"), Named::new("b"), Named::new("c"));
    let port = "protocol: HTTP, traffic: {loadBalancer: {consistentHash: {httpCookie: {name: user, path: /p, ttlMs: \
                60000}}}}";
    let proxy = client(&lab, port, &endpoints(&[&a, &b, &c]));
    let mut seen = BTreeMap::new();
    for _ in 0..20 {
        let answer = ask(&proxy, "/", "");
        let line = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("made");
        assert!(line.ends_with("; Max-Age=60; Path=/p; HttpOnly"), "{line}");
        let pair = line.split(';').next().unwrap_or_default();
        let again = ask(&proxy, "/", &format!("cookie: {pair}\r\n"));
        assert_eq!(who(&again), who(&answer));
        assert!(!again.contains("set-cookie"), "it has one: {again}");
        *seen.entry(who(&answer)).or_insert(0) += 1;
    }
    assert!(seen.len() > 1, "each caller gets its own: {seen:?}");
}

#[test]
fn opaque_connections_of_one_source_keep_to_one_endpoint() {
    let lab = Lab::new();
    let backends = [tcp_backend(b"name=a "), tcp_backend(b"name=b "), tcp_backend(b"name=c ")];
    let all: Vec<_> = backends.iter().map(|address| endpoint(*address, "")).collect();
    for protocol in ["TCP", "AUTO"] {
        let port = format!(
            "protocol: {protocol}, traffic: {{loadBalancer: {{consistentHash: {{useSourceIp: true}}}}}}"
        );
        let proxy = client(&lab, &port, &all);
        let one = tally((0..20).map(|_| exchange_half_closed(at(&proxy), b"x")));
        assert_eq!(one.len(), 1, "{protocol}: {one:?}");
    }
}

const QUICK: &str = "consecutive5xxErrors: 3, intervalMs: 1000, maxEjectionPercent: 100";

/// Asks until `wanted` holds for a run of answers.
fn until(wanted: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !wanted() {
        assert!(Instant::now() < deadline, "not in time");
    }
}

#[test]
fn an_endpoint_that_fails_is_left_out_and_comes_back() {
    let lab = Lab::new();
    let (good, bad) = (Named::new("good"), Named::new("bad"));
    bad.answers(500);
    let port = format!(
        "protocol: HTTP, traffic: {{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{QUICK}, baseEjectionMs: \
         1500}}}}"
    );
    let proxy = client(&lab, &port, &endpoints(&[&good, &bad]));
    let first = tally((0..40).map(|_| ask(&proxy, "/", "")));
    assert_eq!(first, counts(&[("bad", 3), ("good", 37)]));
    bad.answers(200);
    until(|| who(&ask(&proxy, "/", "")) == "bad");
    let after = tally((0..10).map(|_| ask(&proxy, "/", "")));
    assert_eq!(after, counts(&[("bad", 5), ("good", 5)]), "good again");
}

#[test]
fn errors_that_are_not_in_a_row_leave_an_endpoint_in() {
    let lab = Lab::new();
    let one = Named::new("one");
    let port = format!("protocol: HTTP, traffic: {{outlierDetection: {{{QUICK}, baseEjectionMs: 60000}}}}");
    let proxy = client(&lab, &port, &endpoints(&[&one]));
    for status in [500, 503, 200, 502, 500, 404, 500, 500, 200] {
        one.answers(status);
        assert!(ask(&proxy, "/", "").contains("name=one"), "{status}");
    }
    one.answers(500);
    for _ in 0..3 {
        ask(&proxy, "/", "");
    }
    let answer = ask(&proxy, "/", "");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no healthy upstream"), "{answer}");
}

#[test]
fn with_min_health_percent_everybody_is_asked_rather_than_too_few() {
    let lab = Lab::new();
    let (a, b) = (Named::new("a"), Named::new("b"));
    let port = format!(
        "protocol: HTTP, traffic: {{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{QUICK}, baseEjectionMs: \
         60000, minHealthPercent: 50}}}}"
    );
    let proxy = client(&lab, &port, &endpoints(&[&a, &b]));
    b.answers(500);
    let left = tally((0..30).map(|_| ask(&proxy, "/", "")));
    assert_eq!(left, counts(&[("a", 27), ("b", 3)]));
    a.answers(500);
    for _ in 0..3 {
        ask(&proxy, "/", "");
    }
    let panic = tally((0..10).map(|_| ask(&proxy, "/", "")));
    assert_eq!(panic, counts(&[("a", 5), ("b", 5)]));
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_left_out_too() {
    let lab = Lab::new();
    let good = Named::new("good");
    let all = [endpoint(good.address, ""), endpoint(nobody(), "")];
    let port = format!("protocol: HTTP, traffic: {{outlierDetection: {{{QUICK}, baseEjectionMs: 60000}}}}");
    let proxy = client(&lab, &port, &all);
    // Nothing was sent, so that another one is tried, and nobody notices.
    let answers = tally((0..40).map(|_| ask(&proxy, "/", "")));
    assert_eq!(answers, counts(&[("good", 40)]));
    let lines = tcp_backend(b"name=good ");
    let all = [endpoint(lines, ""), endpoint(nobody(), "")];
    for traffic in ["", ", traffic: {outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}}"] {
        let proxy = client(&lab, &format!("protocol: TCP{traffic}"), &all);
        let answers = tally((0..20).map(|_| exchange_half_closed(at(&proxy), b"x")));
        assert_eq!(answers, counts(&[("good", 20)]), "{traffic}");
    }
}

#[test]
fn local_failures_count_apart_where_the_rule_says_so() {
    let lab = Lab::new();
    let port = format!(
        "protocol: HTTP, traffic: {{outlierDetection: {{{QUICK}, baseEjectionMs: 60000, splitExternalLocalOriginErrors: true, \
         consecutiveLocalOriginFailures: 0}}}}"
    );
    let proxy = client(&lab, &port, &[endpoint(nobody(), "")]);
    for _ in 0..6 {
        let answer = ask(&proxy, "/", "");
        assert!(answer.contains("Connection refused"), "never left out: {answer}");
    }
}

#[test]
fn a_unix_socket_is_an_endpoint() {
    let lab = Lab::new();
    let path = lab.path("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    let is_http = buffer[..count].starts_with(b"GET ");
                    let answer: &[u8] = match is_http {
                        true => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nname=unix ",
                        false => b"name=unix ",
                    };
                    let _ = stream.write_all(answer);
                }
            });
        }
    });
    let of_socket = format!(
        "{{unixPath: {}, ports: [{{servicePort: 80, targetPort: 80, tls: PLAINTEXT}}]}}",
        path.display()
    );
    let proxy = client(&lab, "protocol: HTTP", std::slice::from_ref(&of_socket));
    assert_eq!(who(&ask(&proxy, "/", "")), "unix");
    let proxy = client(&lab, "protocol: TCP", &[of_socket]);
    assert_eq!(who(&exchange_half_closed(at(&proxy), b"x")), "unix");
}

/// SE-8.
#[test]
fn names_under_a_wildcard_are_looked_up_when_they_are_called() {
    let (lab, dns) = (Lab::new(), NameServer::new());
    let (one, two) = (Ipv4Addr::new(127, 0, 0, 21), Ipv4Addr::new(127, 0, 0, 22));
    let backend = http_backend();
    dns.set("a.example.org", &[Ipv4Addr::LOCALHOST], 60);
    dns.set("b.example.org", &[one, two], 60);
    let facts = format!(
        "{{service: {{namespace: shop, name: '*.example.org', hostname: '*.example.org', external: true, resolution: \
         DYNAMIC_DNS, serviceEntry: shop/all, ports: [{{number: 80, protocol: HTTP, targetPort: {}}}]}}}}",
        backend.port()
    );
    let text = format!(
        "{}dnsServers: ['{}']\nsettings: {{outboundPolicy: REGISTRY_ONLY}}\n\
         inbound: {{mode: STRICT, workload: {{uid: shop/web-1, namespace: shop}}}}\n\
         destinations:\n  a.example.org: {facts}\n  b.example.org: {facts}\n  none.example.org: {facts}\n\
         listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '192.0.2.7:80'}}\n",
        lab.header("web"),
        dns.address,
    );
    let path = lab.path("wildcard.yaml");
    std::fs::write(&path, text).expect("writable");
    let proxy = StaticProxy::start(&path).expect("the outbound proxy starts");
    let call = |host: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        exchange(at(&proxy), request.as_bytes())
    };
    let answer = call("a.example.org");
    assert!(answer.contains("host: a.example.org") && answer.contains("server: backend"), "{answer}");
    let answer = call("b.example.org");
    assert!(answer.contains("Connection refused"), "it is another machine: {answer}");
    let answer = call("none.example.org");
    assert!(answer.contains("no healthy upstream"), "{answer}");
    assert!(call("other.example.com").starts_with("HTTP/1.1 502"));
}

#[test]
fn ejected_endpoints_stay_out_when_facts_are_told_anew() {
    let lab = Lab::new();
    let (good, bad) = (Named::new("good"), Named::new("bad"));
    bad.answers(500);
    let port = format!(
        "protocol: HTTP, traffic: {{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{QUICK}, baseEjectionMs: \
         60000}}}}"
    );
    let proxy = client(&lab, &port, &endpoints(&[&good, &bad]));
    for _ in 0..10 {
        ask(&proxy, "/", "");
    }
    assert_eq!(bad.requests.load(Ordering::SeqCst), 3);
    proxy.reload().expect("the same file");
    let answers = tally((0..10).map(|_| ask(&proxy, "/", "")));
    assert_eq!(answers, counts(&[("good", 10)]));
}

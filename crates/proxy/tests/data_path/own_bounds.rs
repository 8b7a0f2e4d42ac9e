//! The bounds of a DestinationRule's connection pool, on the side of the service (reference mtls 2.3).

use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use maille_proxy::StaticProxy;

use crate::lab::{Lab, PATIENCE, at, dial, get, http_backend, is_closed_soon, line_backend, read_until};

fn file(lab: &Lab, backend: SocketAddr, protocol: &str, pool: &str) -> std::path::PathBuf {
    let mut text = lab.header("cart");
    let _ = write!(
        text,
        "inbound:\n  mode: PERMISSIVE\n  workload: {{uid: shop/cart-1, namespace: shop}}\n  ports:\n  \
         - {{port: {}, protocol: {protocol}, connectionPool: {{{pool}}}}}\n\
         listeners:\n- {{direction: inbound, listen: '127.0.0.1:0', standsFor: '{backend}'}}\n",
        backend.port()
    );
    let path = lab.path("bounds.yaml");
    std::fs::write(&path, text).expect("writable");
    path
}

/// Asks until the answer has this status.
fn until_status(proxy: &StaticProxy, status: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = get(at(proxy), "/");
        if answer.split(' ').nth(1) == Some(status) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn requests_beyond_a_bound_are_refused_as_envoy_does_and_facts_do_not_forget_those_under_way() {
    let lab = Lab::new();
    let backend = http_backend();
    let path = file(&lab, backend, "HTTP", "http2MaxRequests: 1");
    let proxy = StaticProxy::start(&path).expect("the inbound proxy starts");
    let mut under_way = dial(at(&proxy));
    write!(under_way, "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na").expect("open");
    let refused = until_status(&proxy, "503");
    assert!(refused.contains("reset reason: overflow"), "{refused}");
    assert!(refused.contains("x-envoy-overloaded: true"), "{refused}");
    // The same bounds again, and then wider ones.
    proxy.reload().expect("good facts");
    assert_eq!(get(at(&proxy), "/").split(' ').nth(1), Some("503"));
    file(&lab, backend, "HTTP", "http2MaxRequests: 2");
    proxy.reload().expect("good facts");
    until_status(&proxy, "200");
    file(&lab, backend, "HTTP", "http2MaxRequests: 1");
    proxy.reload().expect("good facts");
    assert_eq!(get(at(&proxy), "/").split(' ').nth(1), Some("503"));
    write!(under_way, "b").expect("open");
    assert!(read_until(&mut under_way, "ab").ends_with("ab"));
    until_status(&proxy, "200");
}

#[test]
fn opaque_connections_beyond_a_bound_are_closed() {
    let lab = Lab::new();
    let path = file(&lab, line_backend(), "TCP", "maxConnections: 1");
    let proxy = StaticProxy::start(&path).expect("the inbound proxy starts");
    let mut first = dial(at(&proxy));
    first.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut first, "\n"), "one\n");
    let mut second = dial(at(&proxy));
    let _ = second.write_all(b"two\n");
    assert!(is_closed_soon(&mut second), "a second connection is open");
    assert!(proxy.metrics().contains("reason=\"overload\""), "{}", proxy.metrics());
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut third = dial(at(&proxy));
        let _ = third.write_all(b"three\n");
        if read_until(&mut third, "\n") == "three\n" {
            break;
        }
        assert!(Instant::now() < deadline, "the bound is not given back");
    }
}

#[test]
fn opaque_connections_end_when_they_are_silent_or_old() {
    for (pool, is_talking) in [("tcpIdleTimeoutMs: 300", false), ("maxConnectionDurationMs: 300", true)] {
        let lab = Lab::new();
        let path = file(&lab, line_backend(), "TCP", pool);
        let proxy = StaticProxy::start(&path).expect("the inbound proxy starts");
        let mut stream = dial(at(&proxy));
        stream.write_all(b"one\n").expect("open");
        assert_eq!(read_until(&mut stream, "\n"), "one\n");
        let mut talk = stream.try_clone().expect("a socket");
        let talking = thread::spawn(move || {
            while is_talking && talk.write_all(b"x\n").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(is_closed_soon(&mut stream), "{pool}: the connection is still open");
        talking.join().expect("no panic");
    }
}

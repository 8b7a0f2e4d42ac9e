//! Opaque bytes through two sidecars.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use maille_proxy::StaticProxy;

use crate::lab::{
    ALLOW_WEB, Lab, Server, at, dial, exchange_half_closed, get, http_backend, read_until, tcp_backend,
};

fn server(lab: &Lab, backend: SocketAddr, protocol: &str) -> StaticProxy {
    lab.server(&Server { backend, protocol, policy: Some(ALLOW_WEB), ..Default::default() })
}

#[test]
fn bytes_pass_both_ways_with_half_close() {
    let lab = Lab::new();
    let server = server(&lab, tcp_backend(b""), "TCP");
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let sent: Vec<u8> = (0..5_000_000_u32).map(|i| (i * 7) as u8).collect();
    let mut stream = dial(at(&web));
    let mut reader = stream.try_clone().expect("a socket");
    let received = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).expect("an orderly end");
        all
    });
    stream.write_all(&sent).expect("open");
    // The application answers only after this.
    stream.shutdown(Shutdown::Write).expect("open");
    assert!(received.join().expect("no panic") == sent, "the echo differs");
}

#[test]
fn another_identity_gets_not_a_byte() {
    let lab = Lab::new();
    let server = server(&lab, tcp_backend(b"greeting"), "TCP");
    let thief = lab.client("thief", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&thief), b"hello"), "");
    assert!(server.metrics().contains("maille_refusals_total"), "{}", server.metrics());
}

#[test]
fn a_server_may_speak_first_on_declared_tcp_ports() {
    let lab = Lab::new();
    let server = server(&lab, tcp_backend(b"220 ready\n"), "TCP");
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    assert_eq!(read_until(&mut stream, "\n"), "220 ready\n");
}

#[test]
fn auto_ports_carry_what_is_not_http() {
    let lab = Lab::new();
    let server = server(&lab, tcp_backend(b""), "AUTO");
    let web = lab.client("web", at(&server), "AUTO", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&web), b"hello"), "hello");
    assert_eq!(exchange_half_closed(at(&web), b"GET / HTTP/1.0\r\n\r\n"), "GET / HTTP/1.0\r\n\r\n");
}

#[test]
fn a_policy_of_methods_allows_no_opaque_connection() {
    let lab = Lab::new();
    let allow = "{action: ALLOW, rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let server = lab.server(&Server {
        backend: tcp_backend(b""),
        protocol: "TCP",
        policy: Some(allow),
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    assert_eq!(exchange_half_closed(at(&web), b"hello"), "");
}

#[test]
fn plaintext_is_served_under_permissive_and_cut_under_strict() {
    let lab = Lab::new();
    let backend = tcp_backend(b"");
    let permissive = lab.server(&Server {
        backend,
        protocol: "TCP",
        mode: "PERMISSIVE",
        policy: None,
        ..Default::default()
    });
    assert_eq!(exchange_half_closed(at(&permissive), b"naked"), "naked");
    let strict = lab.server(&Server { backend, protocol: "TCP", policy: None, ..Default::default() });
    assert_eq!(exchange_half_closed(at(&strict), b"naked"), "");
}

/// Reference mtls 1.3, "continue on timeout"; PA-12.
#[test]
fn after_the_detection_timeout_a_server_may_speak_first_to_plaintext_callers() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: tcp_backend(b"220 ready\n"),
        protocol: "TCP",
        mode: "PERMISSIVE",
        policy: None,
        extra: "settings: {protocolDetectionTimeoutMs: 100}",
    });
    let mut stream = dial(at(&server));
    assert_eq!(read_until(&mut stream, "\n"), "220 ready\n");
}

/// A Pod of two families, as which both addresses stand here.
#[test]
fn an_endpoint_is_reached_at_its_other_address_where_the_first_refuses() {
    let lab = Lab::new();
    for (protocol, backend) in [("TCP", tcp_backend(b"")), ("HTTP", http_backend())] {
        let server = lab.server(&Server { backend, protocol, ..Default::default() });
        let web = lab.client("web", at(&server), protocol, "ISTIO_MUTUAL");
        let path = lab.path("client-web.yaml");
        let text = std::fs::read_to_string(&path).expect("readable");
        let elsewhere =
            text.replace("- address: 127.0.0.1", "- address: 127.0.0.3\n        otherAddress: 127.0.0.1");
        assert_ne!(elsewhere, text);
        std::fs::write(&path, elsewhere).expect("writable");
        web.reload().expect("good facts");
        match protocol {
            "TCP" => assert_eq!(exchange_half_closed(at(&web), b"hello"), "hello"),
            _ => assert!(get(at(&web), "/").starts_with("HTTP/1.1 200")),
        }
    }
}

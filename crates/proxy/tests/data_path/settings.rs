//! What the mesh's configuration changes takes effect at once, on connections that are open too.

use std::io::{Read, Write};
use std::time::Duration;

use crate::lab::{
    HOST, Lab, Server, at, dial, exchange, http_backend, is_closed_soon, read_until, tcp_backend,
};

const DENY_ADMIN: &str = "{action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}";

/// Reference authorization 10.3, on one connection.
#[test]
fn path_normalization_changes_on_an_open_connection() {
    let lab = Lab::new();
    let backend = http_backend();
    fn facts(backend: std::net::SocketAddr, extra: &str) -> Server<'_> {
        Server { backend, mode: "PERMISSIVE", policy: Some(DENY_ADMIN), extra, ..Default::default() }
    }
    let server = lab.server(&facts(backend, ""));
    let mut stream = dial(at(&server));
    let mut ask = |path: &str| {
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
        let mut answer = read_until(&mut stream, "\r\n\r\n");
        let end = if answer.starts_with("HTTP/1.1 403") { "denied" } else { "body 0\n" };
        if !answer.contains(end) {
            answer += &read_until(&mut stream, end);
        }
        match answer.starts_with("HTTP/1.1 403") {
            true => "403".to_owned(),
            false => answer.lines().find_map(|line| line.strip_prefix("GET ")).unwrap_or(&answer).to_owned(),
        }
    };
    for (mode, rows) in [
        (
            "BASE",
            [("/x/../admin", "403"), ("//admin", "//admin HTTP/1.1"), ("/%2fadmin", "/%2fadmin HTTP/1.1")],
        ),
        ("MERGE_SLASHES", [("/x/../admin", "403"), ("//admin", "403"), ("/%2fadmin", "/%2fadmin HTTP/1.1")]),
        ("DECODE_AND_MERGE_SLASHES", [("/x/../admin", "403"), ("//admin", "403"), ("/%2fadmin", "403")]),
        (
            "NONE",
            [
                ("/x/../admin", "/x/../admin HTTP/1.1"),
                ("//admin", "//admin HTTP/1.1"),
                ("/%61dmin", "/%61dmin HTTP/1.1"),
            ],
        ),
        ("BASE", [("/x/../admin", "403"), ("/%61dmin", "403"), ("/a/./b", "/a/b HTTP/1.1")]),
    ] {
        let extra = format!("settings: {{pathNormalization: {mode}}}");
        lab.server_file(&facts(backend, &extra));
        server.reload().expect("good facts");
        for (path, expected) in rows {
            assert_eq!(ask(path), expected, "{mode} {path}");
        }
    }
}

/// Reference mtls 1.3: a declared TCP port under PERMISSIVE waits for a ClientHello.
#[test]
fn the_detection_timeout_changes_for_the_next_connection() {
    let lab = Lab::new();
    let mut facts = Server {
        backend: tcp_backend(b"220 ready\n"),
        protocol: "TCP",
        mode: "PERMISSIVE",
        policy: None,
        ..Default::default()
    };
    let server = lab.server(&facts);
    let mut before = dial(at(&server));
    before.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    assert!(before.read(&mut [0; 1]).is_err(), "without a limit the server was let speak first");
    facts.extra = "settings: {protocolDetectionTimeoutMs: 50}";
    lab.server_file(&facts);
    server.reload().expect("good facts");
    let mut after = dial(at(&server));
    assert_eq!(read_until(&mut after, "\n"), "220 ready\n");
}

/// Reference mtls OT-1 to OT-4.
#[test]
fn the_outbound_policy_changes_for_requests_on_open_connections() {
    let lab = Lab::new();
    let backend = http_backend();
    let web = lab.stranger(backend, "ALLOW_ANY");
    let mut stream = dial(at(&web));
    write!(stream, "GET /a HTTP/1.1\r\nhost: unknown.example\r\n\r\n").expect("open");
    assert!(read_until(&mut stream, "body 0\n").starts_with("HTTP/1.1 200"));
    lab.stranger_file(backend, "REGISTRY_ONLY");
    web.reload().expect("good facts");
    write!(stream, "GET /b HTTP/1.1\r\nhost: unknown.example\r\n\r\n").expect("open");
    assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 502"));
    let fresh = exchange(at(&web), b"GET /c HTTP/1.1\r\nhost: unknown.example\r\nconnection: close\r\n\r\n");
    assert!(fresh.starts_with("HTTP/1.1 502"), "{fresh}");
    let mut opaque = dial(at(&web));
    opaque.write_all(b"\x00\x01\x02\x03opaque\r\n").expect("open");
    assert!(is_closed_soon(&mut opaque), "opaque bytes are still passed through");
    lab.stranger_file(backend, "ALLOW_ANY");
    web.reload().expect("good facts");
    let again = exchange(at(&web), b"GET /d HTTP/1.1\r\nhost: unknown.example\r\nconnection: close\r\n\r\n");
    assert!(again.starts_with("HTTP/1.1 200"), "{again}");
}

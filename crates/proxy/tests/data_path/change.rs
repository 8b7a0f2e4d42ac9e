//! Policy holds for the whole life of a connection.

use std::io::Write;
use std::time::{Duration, Instant};

use maille_testkit::TestAuthority;

use crate::frames;
use crate::lab::{
    ALLOW_WEB, HOST, Lab, Server, at, dial, http_backend, is_closed_soon, line_backend, read_until,
};

const ALLOW_NOBODY: &str = "{}";

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_open_tcp_connection_is_cut_when_policy_forbids_it() {
    let lab = Lab::new();
    let mut facts = Server { backend: line_backend(), protocol: "TCP", ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");

    // A change that does not concern it leaves it alone.
    let same = format!(
        "{{action: ALLOW, rules: [{}, {{from: [{{source: {{namespaces: [x]}}}}]}}]}}",
        &ALLOW_WEB[24..ALLOW_WEB.len() - 2]
    );
    facts.policy = Some(&same);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    stream.write_all(b"two\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "two\n");

    facts.policy = Some(ALLOW_NOBODY);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the connection is still open");
}

#[test]
fn an_idle_keep_alive_connection_closes_when_nothing_on_it_could_be_allowed() {
    let lab = Lab::new();
    let mut facts =
        Server { backend: http_backend(), mode: "PERMISSIVE", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    // A naked client, so that the connection seen is the one judged.
    let mut stream = dial(at(&server));
    write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
    assert!(read_until(&mut stream, "body 0\n").starts_with("HTTP/1.1 200"));
    facts.policy = Some(ALLOW_WEB);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the connection is still open");
}

#[test]
fn permissive_to_strict_closes_plaintext_connections() {
    let lab = Lab::new();
    let mut facts = Server {
        backend: line_backend(),
        protocol: "TCP",
        mode: "PERMISSIVE",
        policy: None,
        ..Default::default()
    };
    let server = lab.server(&facts);
    let mut stream = dial(at(&server));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    facts.mode = "STRICT";
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the connection is still open");
}

#[test]
fn requests_on_an_open_connection_see_the_new_policy_and_upgraded_streams_are_cut() {
    let lab = Lab::new();
    let mut facts = Server { backend: http_backend(), ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let mut upgraded = dial(at(&web));
    write!(upgraded, "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .expect("open");
    assert!(read_until(&mut upgraded, "\r\n\r\n").starts_with("HTTP/1.1 101"));
    let mut requests = dial(at(&web));
    write!(requests, "GET /a HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
    assert!(read_until(&mut requests, "body 0\n").starts_with("HTTP/1.1 200"));

    facts.policy = Some("{action: DENY, rules: [{to: [{operation: {paths: [/ws, /a]}}]}]}");
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut upgraded), "the stream is still open");
    write!(requests, "GET /a HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("the caller's connection stays");
    assert!(read_until(&mut requests, "denied").starts_with("HTTP/1.1 403"));
    write!(requests, "GET /b HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
    assert!(read_until(&mut requests, "body 0\n").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_renewed_certificate_does_not_drop_connections() {
    let lab = Lab::new();
    let facts = Server { backend: line_backend(), protocol: "TCP", ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    // Each write of the file comes with a fresh certificate.
    lab.server_file(&facts);
    server.reload().expect("good facts");
    stream.write_all(b"two\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "two\n");
    let mut fresh = dial(at(&web));
    fresh.write_all(b"three\n").expect("open");
    assert_eq!(read_until(&mut fresh, "\n"), "three\n");
}

#[test]
fn a_connection_does_not_outlive_its_peers_certificate() {
    let mut lab = Lab::new();
    let facts = Server { backend: line_backend(), protocol: "TCP", ..Default::default() };
    let server = lab.server(&facts);
    lab.ttl = Duration::from_secs(4);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    assert!(is_closed_soon(&mut stream), "the connection outlives the certificate");
    assert!(server.metrics().contains("certificate_expired"), "{}", server.metrics());
}

#[test]
fn a_mesh_may_keep_tcp_of_peers_that_cannot_renew_and_says_what_is_about_to_expire() {
    let mut lab = Lab::new();
    let facts = Server {
        backend: line_backend(),
        protocol: "TCP",
        extra: "settings: {keepExpiredTcp: true}",
        ..Default::default()
    };
    let server = lab.server(&facts);
    let day = std::mem::replace(&mut lab.ttl, Duration::from_secs(8));
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    let said = |count: u32| server.metrics().contains(&format!("maille_tcp_connections_expiring {count}\n"));
    wait_for("the warning", || said(1));
    // It has expired: the next look leaves it alone.
    wait_for("the end of the certificate", || said(0));
    stream.write_all(b"two\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "two\n");
    // Nor does it end when the server has a certificate of its own anew, and judges its peers again.
    lab.ttl = day;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    stream.write_all(b"three\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "three\n");
}

#[test]
fn a_connection_does_not_outlive_the_trust_in_its_peers_root() {
    let mut lab = Lab::new();
    let facts = Server { backend: line_backend(), protocol: "TCP", ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    lab.authority = TestAuthority::new();
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the connection outlives the trust");
}

#[test]
fn bad_facts_leave_the_old_ones_in_force() {
    let lab = Lab::new();
    let mut facts = Server { backend: http_backend(), ..Default::default() };
    let server = lab.server(&facts);
    facts.extra = "surprise: 1";
    lab.server_file(&facts);
    let error = server.reload().expect_err("an unknown field").to_string();
    assert!(error.contains("surprise"), "{error}");
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(crate::lab::get(at(&web), "/").starts_with("HTTP/1.1 200"));
}

/// HTTP/2 ends a connection by asking its peer to leave. One that does not hear of that gets nothing more.
#[test]
fn a_peer_that_ignores_goaway_gets_nothing_more() {
    let lab = Lab::new();
    let mut facts =
        Server { backend: http_backend(), mode: "PERMISSIVE", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    let mut naked = frames::Client::connect(at(&server), &[]);
    let ask = |naked: &mut frames::Client, stream: u32| {
        let fields = frames::request("GET", "/x");
        naked.send(&frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, &fields))
    };
    // RFC 7541 appendix A: the eighth entry is `:status: 200`.
    let is_good = |answer: &frames::Frame| answer.payload.first() == Some(&0x88);
    ask(&mut naked, 1);
    let answer = naked.until(|frame| frame.kind == frames::HEADERS).expect("an answer");
    assert!(is_good(&answer), "{answer:?}");
    facts.mode = "STRICT";
    lab.server_file(&facts);
    server.reload().expect("good facts");
    naked.until(|frame| frame.kind == frames::GOAWAY).expect("it is asked to leave");
    // Its PING is left without an answer, so the connection stays open for streams.
    ask(&mut naked, 3);
    let answer = naked.until(|frame| frame.kind == frames::HEADERS && frame.stream == 3);
    assert!(!answer.as_ref().is_some_and(is_good), "served in plaintext under STRICT: {answer:?}");
}

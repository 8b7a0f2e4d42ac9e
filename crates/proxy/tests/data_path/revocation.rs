//! Whoever is revoked loses what he has and gets nothing new, as client and as server.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use maille_pki::{certificates_from_pem, leaf_facts};
use maille_proxy::StaticProxy;

use crate::lab::{
    Lab, PATIENCE, Server, at, dial, get, http_backend, is_closed_soon, line_backend, read_until,
};
use crate::tunnel::client as many;

const WEB: &str = "revocations: {identities: [{id: 'spiffe://cluster.local/ns/shop/sa/web'}]}";
const CART: &str = "revocations: {identities: [{id: 'spiffe://cluster.local/ns/shop/sa/cart'}]}\n";

/// The serial number of the certificate that was last written for an account.
fn serial(lab: &Lab, account: &str) -> String {
    let pem = std::fs::read_to_string(lab.path(&format!("{account}.crt"))).expect("written");
    let chain = certificates_from_pem("chain", &pem).expect("PEM");
    leaf_facts(&chain[0]).expect("a leaf").serial
}

fn say(stream: &mut TcpStream, line: &str) {
    writeln!(stream, "{line}").expect("open");
    assert_eq!(read_until(stream, "\n"), format!("{line}\n"));
}

fn append(file: &Path, text: &str) {
    let before = std::fs::read_to_string(file).expect("written");
    std::fs::write(file, before + text).expect("writable");
}

fn get_until(proxy: &StaticProxy, status: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = get(at(proxy), "/x");
        if answer.starts_with(status) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {status}, but {answer}");
    }
}

/// Calls through `client` until `observer` says that a call was refused for this reason. The first refusal need not have one
/// there: the call may have come just when its connection was closed.
fn refused_until(client: &StaticProxy, observer: &StaticProxy, reason: &str) {
    let (deadline, mut reasons) = (Instant::now() + PATIENCE, Vec::new());
    while !reasons.iter().any(|seen: &String| seen.contains(reason)) {
        assert!(Instant::now() < deadline, "no flow says {reason:?}, but {reasons:?}");
        get_until(client, "HTTP/1.1 503");
        reasons.extend(observer.take_flows().into_iter().map(|flow| flow.reason.to_string()));
    }
}

fn server<'a>(protocol: &'a str, backend: std::net::SocketAddr) -> Server<'a> {
    Server { protocol, backend, policy: None, ..Default::default() }
}

#[test]
fn streams_of_a_revoked_client_are_cut_and_new_ones_refused() {
    let lab = Lab::new();
    let mut facts = server("TCP", line_backend());
    let proxy = lab.server(&facts);
    let (alone, shared) =
        (lab.client("web", at(&proxy), "TCP", "ISTIO_MUTUAL"), many(&lab, "web", at(&proxy), "TCP"));
    let other = lab.client("other", at(&proxy), "TCP", "ISTIO_MUTUAL");
    let mut streams = [dial(at(&alone)), dial(at(&shared)), dial(at(&other))];
    streams.iter_mut().for_each(|stream| say(stream, "one"));
    facts.extra = WEB;
    lab.server_file(&facts);
    proxy.reload().expect("good facts");
    let [alone_stream, shared_stream, other_stream] = &mut streams;
    assert!(is_closed_soon(alone_stream), "the connection of a revoked client goes on");
    assert!(is_closed_soon(shared_stream), "the shared stream of a revoked client goes on");
    say(other_stream, "two");
    for client in [&alone, &shared] {
        let mut stream = dial(at(client));
        let _ = stream.write_all(b"three\n");
        assert_eq!(read_until(&mut stream, "\n"), "", "a revoked client is served");
    }
    say(&mut dial(at(&other)), "four");
    let metrics = proxy.metrics();
    assert!(metrics.contains(r#"reason="certificate_revoked""#), "{metrics}");
    assert!(metrics.contains(r#"reason="revoked""#), "the handshake says nothing of it: {metrics}");
    // Taken back, he is served again.
    facts.extra = "";
    lab.server_file(&facts);
    proxy.reload().expect("good facts");
    say(&mut dial(at(&alone)), "five");
}

#[test]
fn a_revoked_serial_number_costs_one_certificate_and_not_its_owner() {
    let lab = Lab::new();
    let mut facts = server("HTTP", http_backend());
    let proxy = lab.server(&facts);
    let web = lab.client("web", at(&proxy), "HTTP", "ISTIO_MUTUAL");
    get_until(&web, "HTTP/1.1 200");
    let extra = format!("revocations: {{serials: ['00{}']}}", serial(&lab, "web"));
    facts.extra = &extra;
    lab.server_file(&facts);
    proxy.reload().expect("good facts");
    refused_until(&web, &proxy, "serial number is revoked");
    lab.pem("web");
    web.reload().expect("a fresh certificate");
    get_until(&web, "HTTP/1.1 200");
}

#[test]
fn a_revoked_server_gets_no_request_and_its_streams_are_cut() {
    let lab = Lab::new();
    let lines = lab.server(&server("TCP", line_backend()));
    let pages = lab.server(&server("HTTP", http_backend()));
    let clients = [
        ("many-one", many(&lab, "one", at(&lines), "TCP")),
        ("client-two", lab.client("two", at(&lines), "TCP", "ISTIO_MUTUAL")),
        ("many-three", many(&lab, "three", at(&pages), "HTTP")),
        ("client-four", lab.client("four", at(&pages), "HTTP", "ISTIO_MUTUAL")),
        ("client-five", lab.client("five", at(&pages), "HTTP2", "ISTIO_MUTUAL")),
    ];
    let mut streams = [dial(at(&clients[0].1)), dial(at(&clients[1].1))];
    streams.iter_mut().for_each(|stream| say(stream, "one"));
    for (_, client) in &clients[2..] {
        get_until(client, "HTTP/1.1 200");
    }
    for (file, client) in &clients {
        append(&lab.path(&format!("{file}.yaml")), CART);
        client.reload().expect("good facts");
    }
    for stream in &mut streams {
        assert!(is_closed_soon(stream), "a stream to a revoked server goes on");
    }
    for (_, client) in &clients[2..] {
        refused_until(client, client, "identity spiffe://cluster.local/ns/shop/sa/cart is revoked");
    }
    for (_, client) in &clients[..2] {
        assert!(is_closed_soon(&mut dial(at(client))), "a revoked server is called");
    }
}

#[test]
fn only_certificates_from_before_the_moment_are_revoked() {
    let lab = Lab::new();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later than 1970");
    let spares = |not_after_ms: u128| {
        format!(
            "revocations: {{identities: [{{id: 'spiffe://cluster.local/ns/shop/sa/web', notAfterMs: {not_after_ms}}}]}}"
        )
    };
    let mut facts = server("HTTP", http_backend());
    // Certificates start two minutes before they are issued.
    let (earlier, later) = (spares(now.as_millis() - 300_000), spares(now.as_millis()));
    facts.extra = &earlier;
    let proxy = lab.server(&facts);
    let web = lab.client("web", at(&proxy), "HTTP", "ISTIO_MUTUAL");
    get_until(&web, "HTTP/1.1 200");
    facts.extra = &later;
    lab.server_file(&facts);
    proxy.reload().expect("good facts");
    get_until(&web, "HTTP/1.1 503");
    assert!(proxy.metrics().contains("maille_tls_handshakes_total"));
}

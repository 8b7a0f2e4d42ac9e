//! X25519MLKEM768 between proxies and with Envoy, and nothing else where it is demanded.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use maille_proxy::StaticProxy;
use serde_json::{Value, json};

use crate::envoy::Envoy;
use crate::lab::{
    Lab, PATIENCE, Server, at, dial, get, http_backend, is_closed_soon, line_backend, read_until,
};
use crate::tunnel::client as many;

const DEMANDED: &str = "settings: {keyExchanges: [X25519MLKEM768]}";

fn handshakes(proxy: &StaticProxy, side: &str, group: &str) -> bool {
    let line =
        format!("maille_tls_handshakes_total{{group=\"{group}\",version=\"TLSv1.3\",side=\"{side}\"}}");
    proxy.metrics().lines().any(|found| found.starts_with(&line))
}

#[test]
fn proxies_agree_upon_it_and_say_so() {
    let lab = Lab::new();
    let extra = format!("{DEMANDED}\naccessLogFile: {}\n", lab.path("log").display());
    let facts = Server { backend: http_backend(), policy: None, extra: &extra, ..Default::default() };
    let server = lab.server(&facts);
    let clients =
        [lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL"), many(&lab, "many", at(&server), "HTTP")];
    for client in &clients {
        assert!(get(at(client), "/x").starts_with("HTTP/1.1 200"));
        assert!(handshakes(client, "client", "X25519MLKEM768"), "{}", client.metrics());
    }
    assert!(handshakes(&server, "server", "X25519MLKEM768"), "{}", server.metrics());
    for (whose, flows) in [("server", server.take_flows()), ("client", clients[0].take_flows())] {
        assert!(flows.iter().any(|flow| flow.key_exchange == "X25519MLKEM768"), "{whose}: {flows:?}");
    }
}

#[test]
fn a_caller_without_it_is_refused_where_it_is_demanded() {
    let lab = Lab::new();
    let facts = Server { backend: http_backend(), policy: None, extra: DEMANDED, ..Default::default() };
    let server = lab.server(&facts);
    let client = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    assert!(get(at(&client), "/x").starts_with("HTTP/1.1 200"));
    let file = lab.path("client-web.yaml");
    let before = std::fs::read_to_string(&file).expect("written");
    std::fs::write(&file, before + "settings: {keyExchanges: [X25519, P-256]}\n").expect("writable");
    client.reload().expect("good facts");
    let deadline = Instant::now() + PATIENCE;
    while !get(at(&client), "/x").starts_with("HTTP/1.1 503") {
        assert!(Instant::now() < deadline, "what was agreed before the change goes on");
    }
    let flows = server.take_flows();
    assert!(
        flows
            .iter()
            .any(|flow| flow.reason.contains("X25519MLKEM768") && flow.reason.contains("key exchange")),
        "{flows:?}"
    );
}

#[test]
fn a_classic_connection_ends_when_more_is_demanded() {
    let lab = Lab::new();
    let facts = |extra| Server {
        backend: line_backend(),
        protocol: "TCP",
        policy: None,
        extra,
        ..Default::default()
    };
    let (before, after) = ("settings: {keyExchanges: [X25519, X25519MLKEM768]}", DEMANDED);
    let file = facts(before);
    let server = lab.server(&file);
    let client = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let path = lab.path("client-web.yaml");
    let text = std::fs::read_to_string(&path).expect("written");
    std::fs::write(&path, format!("{text}settings: {{keyExchanges: [X25519]}}\n")).expect("writable");
    client.reload().expect("good facts");
    let mut stream = dial(at(&client));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    assert!(handshakes(&server, "server", "X25519"), "{}", server.metrics());
    lab.server_file(&Server { extra: after, ..file });
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the classic connection goes on");
}

#[test]
fn a_classic_connection_ends_when_its_caller_demands_more() {
    let lab = Lab::new();
    let facts = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    for client in ["web", "many-web"] {
        let proxy = match client {
            "web" => lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL"),
            _ => many(&lab, "web", at(&server), "TCP"),
        };
        let path = match client {
            "web" => lab.path("client-web.yaml"),
            _ => lab.path("many-web.yaml"),
        };
        let text = std::fs::read_to_string(&path).expect("written");
        std::fs::write(&path, format!("{text}settings: {{keyExchanges: [X25519]}}\n")).expect("writable");
        proxy.reload().expect("good facts");
        let mut stream = dial(at(&proxy));
        stream.write_all(b"one\n").expect("open");
        assert_eq!(read_until(&mut stream, "\n"), "one\n");
        std::fs::write(&path, format!("{text}{DEMANDED}\n")).expect("writable");
        proxy.reload().expect("good facts");
        assert!(is_closed_soon(&mut stream), "{client}: the classic connection goes on");
        let mut stream = dial(at(&proxy));
        stream.write_all(b"two\n").expect("open");
        assert_eq!(read_until(&mut stream, "\n"), "two\n", "{client}");
    }
}

#[test]
fn a_connection_of_an_old_version_ends_when_a_newer_one_is_demanded() {
    let lab = Lab::new();
    let facts = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    let files = lab.pem("web");
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-tls1_2", "-alpn", "istio", "-connect", &at(&server).to_string()])
        .args(["-cert".as_ref(), files.chain.as_os_str(), "-key".as_ref(), files.key.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is needed");
    let (mut input, output) = (client.stdin.take().expect("piped"), client.stdout.take().expect("piped"));
    let mut lines = BufReader::new(output).lines();
    input.write_all(b"one\n").expect("open");
    assert_eq!(lines.next().expect("an answer").expect("text"), "one");
    lab.server_file(&Server { extra: "settings: {tls13Only: true}", ..facts });
    server.reload().expect("good facts");
    let deadline = Instant::now() + PATIENCE;
    let has_ended = loop {
        if client.try_wait().expect("a child").is_some() {
            break true;
        }
        if Instant::now() > deadline {
            break false;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    let _ = client.kill();
    let _ = client.wait();
    assert!(has_ended, "a connection of TLS 1.2 goes on");
}

fn tls(lab: &Lab, account: &str, curve: &str, kind: &str) -> Value {
    let files = lab.pem(account);
    json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"),
        "common_tls_context": {
            "tls_params": {"ecdh_curves": [curve], "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": if kind == "UpstreamTlsContext" { json!(["istio"]) } else { json!([]) },
            "tls_certificates": [{"certificate_chain": {"filename": files.chain}, "private_key": {"filename": files.key}}],
            "validation_context": {"trusted_ca": {"filename": files.roots}},
        },
    })
}

/// Envoy forwards TCP, with TLS on one of its sides.
fn envoy(
    lab: &Lab,
    backend: SocketAddr,
    upstream: Option<Value>,
    downstream: Option<Value>,
) -> Option<Envoy> {
    let socket = |typed: Option<Value>| {
        typed.map(|typed| json!({"name": "envoy.transport_sockets.tls", "typed_config": typed}))
    };
    let filters = json!([{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "x", "cluster": "backend"}}]);
    Envoy::start_with_tls(lab, backend, &filters, socket(upstream), socket(downstream))
}

#[test]
fn envoy_as_client_and_as_server_agrees_upon_it() {
    let lab = Lab::new();
    let facts = Server {
        backend: line_backend(),
        protocol: "TCP",
        policy: None,
        extra: DEMANDED,
        ..Default::default()
    };
    let server = lab.server(&facts);
    let Some(caller) =
        envoy(&lab, at(&server), Some(tls(&lab, "web", "X25519MLKEM768", "UpstreamTlsContext")), None)
    else {
        return;
    };
    let mut stream = dial(caller.at);
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    assert!(handshakes(&server, "server", "X25519MLKEM768"), "{}", server.metrics());
    let classic = envoy(&lab, at(&server), Some(tls(&lab, "web", "X25519", "UpstreamTlsContext")), None)
        .expect("Envoy");
    let mut stream = dial(classic.at);
    let _ = stream.write_all(b"two\n");
    assert_eq!(
        read_until(&mut stream, "\n"),
        "",
        "a classic key exchange is taken although another one is demanded"
    );
    // And Envoy serves.
    let mut own = tls(&lab, "cart", "X25519MLKEM768", "DownstreamTlsContext");
    own["require_client_certificate"] = json!(true);
    let serving = envoy(&lab, line_backend(), None, Some(own)).expect("Envoy");
    let client = lab.client("web", serving.at, "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&client));
    stream.write_all(b"three\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "three\n");
    assert!(handshakes(&client, "client", "X25519MLKEM768"), "{}", client.metrics());
}

//! The table of filter chains (reference mtls 1.3) and the ports in no Service (1.4), row by row, on real sockets.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use maille_proxy::StaticProxy;
use maille_testkit::identity::{Credential, rogue_client};
use rustls::pki_types::ServerName;

use crate::lab::{Lab, PATIENCE, dial, exchange, is_closed_soon};

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The application got a request that a proxy had read, from a caller that proved who it is.
    MutualHttp,
    /// The application got the bytes that were inside the proxy's TLS.
    MutualTcp,
    /// The application got a request that a proxy had read, from nobody in particular.
    PlainHttp,
    /// The application got the caller's bytes as they came.
    PlainTcp,
    /// The application got nothing.
    Nothing,
}
use Seen::{MutualHttp, MutualTcp, Nothing, PlainHttp, PlainTcp};

/// A request with a field that only its next hop is to read.
const REQUEST: &str = "GET /x HTTP/1.1\r\nhost: a\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\r\n";

/// An application that says what it read first, and closes.
fn backend() -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (said, heard) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut first = vec![0; 8192];
            let count = stream.read(&mut first).unwrap_or(0);
            first.truncate(count);
            let _ = said.send(first);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    (address, heard)
}

/// What the caller sends.
enum Caller<'a> {
    Plain(&'a [u8]),
    /// With these ALPN values and an SVID, then the request.
    Mesh(&'a str),
    /// With these ALPN values and no certificate.
    Naked(&'a str),
}

struct Bench {
    lab: Lab,
    credential: Credential,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::new();
        let credential = Credential::from(&lab.authority.svid("shop", "web"));
        Self { lab, credential }
    }

    /// An inbound proxy in front of `backends`; `ports` and `modes` are lines of its facts.
    fn server(&self, mode: &str, ports: &str, modes: &str, backends: &[SocketAddr]) -> StaticProxy {
        let mut text = self.lab.header("cart");
        let _ = write!(
            text,
            "inbound:\n  mode: {mode}\n  workload: {{uid: shop/cart-1, namespace: shop}}\n  ports: [{ports}]\n  \
             portModes: {{{modes}}}\nlisteners:\n"
        );
        for backend in backends {
            let _ = writeln!(text, "- {{direction: inbound, listen: '127.0.0.1:0', standsFor: '{backend}'}}");
        }
        let path = self.lab.path("chains.yaml");
        std::fs::write(&path, text).expect("writable");
        StaticProxy::start(&path).expect("the inbound proxy starts")
    }

    fn call(&self, at: SocketAddr, caller: &Caller<'_>, heard: &Receiver<Vec<u8>>) -> Seen {
        match caller {
            Caller::Plain(bytes) => {
                exchange(at, bytes);
            }
            Caller::Mesh(alpn) => self.over_tls(at, alpn, Some(&self.credential)),
            Caller::Naked(alpn) => self.over_tls(at, alpn, None),
        }
        // The application spoke before the connection ended, and it has.
        let Ok(first) = heard.try_recv() else { return Nothing };
        let text = String::from_utf8_lossy(&first);
        let is_read = !text.contains("x-hop: 1");
        let is_tls = matches!(caller, Caller::Mesh(_) | Caller::Naked(_));
        match (is_tls, first.first() == Some(&22)) {
            (true, true) => PlainTcp,
            (true, false) if is_read && text.contains("x-forwarded-client-cert: By=") => MutualHttp,
            (true, false) if text == REQUEST => MutualTcp,
            (false, _) if is_read && text.starts_with("GET /x HTTP/1.1") => PlainHttp,
            (false, _) => PlainTcp,
            _ => panic!("the application got {text}"),
        }
    }

    fn over_tls(&self, at: SocketAddr, alpn: &str, credential: Option<&Credential>) {
        let offered: Vec<&[u8]> = alpn.split_whitespace().map(str::as_bytes).collect();
        let name = ServerName::try_from("outbound_.80_._.cart.shop.svc.cluster.local").expect("a name");
        let mut session =
            rustls::ClientConnection::new(rogue_client(credential, &offered), name).expect("TLS");
        let mut socket = dial(at);
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        // A proxy that refuses may close at any moment.
        let _ = stream.write_all(REQUEST.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// Every row of the table; the classes are those of a port that a Service declares.
#[test]
fn each_row_of_the_chain_table_does_what_it_says() {
    let bench = Bench::new();
    let plain = Caller::Plain(REQUEST.as_bytes());
    let other = Caller::Plain(b"hello x-hop: 1\n");
    let old = Caller::Plain(b"GET /x HTTP/1.0\r\nx-hop: 1\r\n\r\n");
    let preface = Caller::Plain(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00");
    let http1 = Caller::Mesh("istio-http/1.1 istio http/1.1");
    let raw = Caller::Mesh("istio");
    let exchange = Caller::Mesh("istio-peer-exchange istio");
    let (h1, none) = (Caller::Mesh("http/1.1"), Caller::Mesh(""));
    let (naked, naked_mesh) = (Caller::Naked("http/1.1"), Caller::Naked("istio-http/1.1 istio http/1.1"));
    let rows = [
        ("STRICT", "HTTP", &http1, MutualHttp),
        ("STRICT", "HTTP", &raw, MutualHttp),
        ("STRICT", "HTTP", &none, MutualHttp),
        ("STRICT", "HTTP", &naked_mesh, Nothing),
        ("STRICT", "HTTP", &plain, Nothing),
        ("STRICT", "TCP", &http1, MutualTcp),
        ("STRICT", "TCP", &raw, MutualTcp),
        ("STRICT", "TCP", &none, MutualTcp),
        ("STRICT", "TCP", &naked, Nothing),
        ("STRICT", "TCP", &other, Nothing),
        ("STRICT", "AUTO", &http1, MutualHttp),
        ("STRICT", "AUTO", &raw, MutualTcp),
        ("STRICT", "AUTO", &exchange, MutualTcp),
        ("STRICT", "AUTO", &h1, MutualTcp),
        // WR-2.
        ("STRICT", "AUTO", &none, MutualTcp),
        ("STRICT", "AUTO", &naked, Nothing),
        ("STRICT", "AUTO", &plain, Nothing),
        ("PERMISSIVE", "HTTP", &http1, MutualHttp),
        ("PERMISSIVE", "HTTP", &raw, MutualHttp),
        ("PERMISSIVE", "HTTP", &plain, PlainHttp),
        // No chain (WR-1): not even a client with a good certificate.
        ("PERMISSIVE", "HTTP", &h1, Nothing),
        ("PERMISSIVE", "HTTP", &none, Nothing),
        ("PERMISSIVE", "HTTP", &naked, Nothing),
        ("PERMISSIVE", "HTTP", &other, Nothing),
        // G-33.
        ("PERMISSIVE", "HTTP", &old, Nothing),
        ("PERMISSIVE", "TCP", &http1, MutualTcp),
        ("PERMISSIVE", "TCP", &exchange, MutualTcp),
        ("PERMISSIVE", "TCP", &h1, PlainTcp),
        ("PERMISSIVE", "TCP", &naked, PlainTcp),
        ("PERMISSIVE", "TCP", &naked_mesh, Nothing),
        ("PERMISSIVE", "TCP", &plain, PlainTcp),
        ("PERMISSIVE", "AUTO", &http1, MutualHttp),
        ("PERMISSIVE", "AUTO", &raw, MutualTcp),
        ("PERMISSIVE", "AUTO", &h1, PlainTcp),
        ("PERMISSIVE", "AUTO", &naked, PlainTcp),
        ("PERMISSIVE", "AUTO", &plain, PlainHttp),
        ("PERMISSIVE", "AUTO", &other, PlainTcp),
        ("PERMISSIVE", "AUTO", &old, PlainTcp),
        ("DISABLE", "HTTP", &plain, PlainHttp),
        ("DISABLE", "HTTP", &http1, Nothing),
        ("DISABLE", "HTTP", &old, Nothing),
        ("DISABLE", "TCP", &plain, PlainTcp),
        ("DISABLE", "TCP", &http1, PlainTcp),
        ("DISABLE", "AUTO", &plain, PlainHttp),
        ("DISABLE", "AUTO", &other, PlainTcp),
        ("DISABLE", "AUTO", &old, PlainTcp),
        ("DISABLE", "AUTO", &naked, PlainTcp),
        // The preface is HTTP, and nothing else is sent before the settings are answered.
        ("DISABLE", "HTTP", &preface, Nothing),
    ];
    let (address, heard) = backend();
    let ports = |class: &str| format!("{{port: {}, protocol: {class}}}", address.port());
    let mut server: Option<(&str, &str, StaticProxy)> = None;
    for (mode, class, caller, expected) in rows {
        if server.as_ref().is_none_or(|(m, c, _)| (*m, *c) != (mode, class)) {
            server = Some((mode, class, bench.server(mode, &ports(class), "", &[address])));
        }
        let Some((_, _, proxy)) = &server else { continue };
        let at = crate::lab::at(proxy);
        if matches!(caller, Caller::Plain(bytes) if bytes.starts_with(b"PRI")) {
            let mut stream = dial(at);
            let Caller::Plain(bytes) = caller else { continue };
            stream.write_all(bytes).expect("open");
            let mut frame = [0; 9];
            stream.read_exact(&mut frame).expect("the proxy speaks HTTP/2");
            assert_eq!(frame[3], 4, "settings come first");
            assert!(heard.try_recv().is_err());
            continue;
        }
        let seen = bench.call(at, caller, &heard);
        let what = match caller {
            Caller::Plain(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Caller::Mesh(alpn) => format!("SVID and [{alpn}]"),
            Caller::Naked(alpn) => format!("no certificate and [{alpn}]"),
        };
        assert_eq!(seen, expected, "{mode} {class} {what}");
    }
}

/// The table of 1.4: two ports in no Service, one of which `portLevelMtls` names (PA-14, PA-15, PA-18).
#[test]
fn ports_in_no_service_are_detected_under_the_workloads_mode_or_their_own() {
    let bench = Bench::new();
    let ((tcp, heard_tcp), (http, heard_http)) = (backend(), backend());
    let (named, yes, no) = (tcp.port(), true, false);
    let rows = [
        ("DISABLE", "", (yes, no), (yes, no)),
        ("PERMISSIVE", "", (yes, yes), (yes, yes)),
        ("STRICT", "", (no, yes), (no, yes)),
        ("DISABLE", "STRICT", (no, yes), (yes, no)),
        ("STRICT", "DISABLE", (yes, no), (no, yes)),
        ("PERMISSIVE", "STRICT", (no, yes), (yes, yes)),
        ("STRICT", "PERMISSIVE", (yes, yes), (no, yes)),
        ("PERMISSIVE", "DISABLE", (yes, no), (yes, yes)),
        ("DISABLE", "PERMISSIVE", (yes, yes), (yes, no)),
    ];
    for (mode, own, at_tcp, at_http) in rows {
        let modes = if own.is_empty() { String::new() } else { format!("{named}: {own}") };
        let proxy = bench.server(mode, "", &modes, &[tcp, http]);
        let addresses = proxy.workers().addresses();
        let is_served = |seen| !matches!(seen, Nothing);
        // Bytes of TLS at an application that expects none are as good as nothing.
        let is_mutual = |seen| matches!(seen, MutualHttp | MutualTcp);
        let naked = is_served(bench.call(addresses[0], &Caller::Plain(b"hello x-hop: 1\n"), &heard_tcp));
        let mesh = is_mutual(bench.call(addresses[0], &Caller::Mesh("istio"), &heard_tcp));
        assert_eq!((naked, mesh), at_tcp, "{mode} [{modes}]: opaque");
        let naked = bench.call(addresses[1], &Caller::Plain(REQUEST.as_bytes()), &heard_http);
        let mesh = bench.call(addresses[1], &Caller::Mesh("istio-http/1.1 istio http/1.1"), &heard_http);
        assert_eq!((is_served(naked), is_mutual(mesh)), at_http, "{mode} [{modes}]: HTTP");
        // They are class Auto: what is HTTP is treated so.
        assert!(
            matches!(naked, PlainHttp | Nothing) && matches!(mesh, MutualHttp | PlainTcp),
            "{mode} {modes}"
        );
    }
}

/// PA-16: nobody was redirected here.
#[test]
fn a_connection_to_the_capture_port_itself_is_closed() {
    let bench = Bench::new();
    let mut text = bench.lab.header("cart");
    text.push_str(
        "inbound: {mode: PERMISSIVE, workload: {uid: shop/cart-1, namespace: shop}}\n\
         listeners: [{direction: inbound, listen: '127.0.0.1:0', standsFor: redirected}]\n",
    );
    let path = bench.lab.path("capture.yaml");
    std::fs::write(&path, text).expect("writable");
    let proxy = StaticProxy::start(&path).expect("the inbound proxy starts");
    let mut stream = dial(crate::lab::at(&proxy));
    let _ = stream.write_all(REQUEST.as_bytes());
    assert!(is_closed_soon(&mut stream), "it is forwarded somewhere");
}

/// `inboundTrafficPolicy: LOCALHOST`: declared ports are reached at loopback, others where they were dialled.
#[test]
fn declared_ports_are_delivered_to_loopback_where_the_mesh_says_so() {
    let bench = Bench::new();
    let (loopback, heard) = backend();
    // Nothing listens at the address dialled.
    let dialled = SocketAddr::from(([127, 0, 0, 2], loopback.port()));
    let mut text = bench.lab.header("cart");
    let _ = write!(
        text,
        "settings: {{deliverToLocalhost: true}}\ninbound:\n  mode: PERMISSIVE\n  \
         workload: {{uid: shop/cart-1, namespace: shop}}\n  ports: [{{port: {}, protocol: HTTP}}]\n\
         listeners:\n- {{direction: inbound, listen: '127.0.0.1:0', standsFor: '{dialled}'}}\n",
        loopback.port()
    );
    let path = bench.lab.path("localhost.yaml");
    std::fs::write(&path, &text).expect("writable");
    let proxy = StaticProxy::start(&path).expect("the inbound proxy starts");
    assert!(exchange(crate::lab::at(&proxy), REQUEST.as_bytes()).starts_with("HTTP/1.1 204"));
    assert!(heard.recv_timeout(PATIENCE).is_ok());
    std::fs::write(&path, text.replace("protocol: HTTP", "protocol: TCP")).expect("writable");
    proxy.reload().expect("good facts");
    exchange(crate::lab::at(&proxy), REQUEST.as_bytes());
    assert!(heard.recv_timeout(PATIENCE).is_ok());
    // A port in no Service.
    let undeclared = text.replace(&format!("port: {}", loopback.port()), "port: 1");
    std::fs::write(&path, undeclared).expect("writable");
    proxy.reload().expect("good facts");
    let answer = exchange(crate::lab::at(&proxy), REQUEST.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(heard.try_recv().is_err());
}

//! Servers that speak first, on ports of which nobody has said what they speak.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use maille_proxy::StaticProxy;

use crate::lab::{HOST, Lab, Server, at, dial, http_backend, is_closed_soon, read_until, tcp_backend};

/// A caller's proxy of a service whose port 3399 says nothing of its protocol.
fn client(lab: &Lab, account: &str, endpoint: SocketAddr, multiplexes: bool) -> StaticProxy {
    let mut text = lab.header(account);
    let _ = write!(
        text,
        "inbound: {{mode: STRICT, workload: {{uid: shop/{account}-1, namespace: shop, workloadName: {account}}}}}\n\
         destinations:\n  10.96.0.9: &cart\n    service:\n      namespace: shop\n      name: cart\n      \
         hostname: {HOST}\n      addresses: [10.96.0.9]\n      ports: [{{number: 3399, protocol: AUTO}}]\n      \
         subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/cart']\n      endpoints:\n      - address: {}\n        \
         workload: {{meshed: true, multiplexes: {multiplexes}}}\n        \
         ports: [{{servicePort: 3399, targetPort: {}, tls: ISTIO_MUTUAL}}]\n  {HOST}: *cart\n\
         listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '10.96.0.9:3399'}}\n",
        endpoint.ip(),
        endpoint.port()
    );
    let path = lab.path(&format!("first-{account}.yaml"));
    std::fs::write(&path, text).expect("writable");
    StaticProxy::start(&path).expect("the outbound proxy starts")
}

#[test]
fn a_server_greets_a_silent_caller_through_mutual_tls() {
    let lab = Lab::new();
    let server =
        lab.server(&Server { backend: tcp_backend(b"220 ready\n"), protocol: "AUTO", ..Default::default() });
    for multiplexes in [true, false] {
        let near = client(&lab, "web", at(&server), multiplexes);
        let mut caller = dial(at(&near));
        assert_eq!(read_until(&mut caller, "\n"), "220 ready\n", "over shared connections: {multiplexes}");
        caller.write_all(b"EHLO here\n").expect("open");
        caller.shutdown(Shutdown::Write).expect("open");
        let mut rest = String::new();
        caller.read_to_string(&mut rest).expect("an orderly end");
        assert_eq!(rest, "EHLO here\n");
        // Who speaks at once is looked at as ever.
        let mut eager = dial(at(&near));
        eager.write_all(b"EHLO there\n").expect("open");
        eager.shutdown(Shutdown::Write).expect("open");
        let mut all = String::new();
        eager.read_to_string(&mut all).expect("an orderly end");
        assert_eq!(all, "220 ready\nEHLO there\n");
    }
    let thief = client(&lab, "thief", at(&server), true);
    let mut caller = dial(at(&thief));
    caller.write_all(b"x").expect("open");
    assert!(is_closed_soon(&mut caller), "another identity is greeted");
}

#[test]
fn a_caller_of_http_that_takes_its_time_is_still_understood() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), protocol: "AUTO", ..Default::default() });
    let near = client(&lab, "web", at(&server), true);
    let mut caller = dial(at(&near));
    // Longer than callers are waited for before the server may speak first.
    std::thread::sleep(Duration::from_millis(700));
    write!(caller, "GET /late HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").expect("open");
    let answer = read_until(&mut caller, "body 0");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-forwarded-client-cert"), "{answer}");
    assert!(server.metrics().contains("istio_requests_total"), "{}", server.metrics());
}

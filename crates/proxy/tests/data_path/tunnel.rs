//! Many streams over one connection between two sidecars (`maille/1`).

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;

use maille_proxy::StaticProxy;

use crate::lab::{HOST, Lab, Server, at, dial, get, http_backend, read_until};

/// An outbound proxy that knows of its peer that it multiplexes.
fn client(lab: &Lab, account: &str, endpoint: SocketAddr, protocol: &str) -> StaticProxy {
    let mut text = lab.header(account);
    let _ = write!(
        text,
        "inbound: {{mode: STRICT, workload: {{uid: shop/{account}-1, namespace: shop, workloadName: {account}}}}}\n\
         destinations:\n  10.96.0.9: &cart\n    service:\n      namespace: shop\n      name: cart\n      \
         hostname: {HOST}\n      addresses: [10.96.0.9]\n      ports: [{{number: 80, protocol: {protocol}}}]\n      \
         subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/cart']\n      endpoints:\n      - address: {}\n        \
         workload: {{meshed: true, multiplexes: true}}\n        \
         ports: [{{servicePort: 80, targetPort: {}, tls: ISTIO_MUTUAL}}]\n  {HOST}: *cart\n\
         listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '10.96.0.9:80'}}\n",
        endpoint.ip(),
        endpoint.port()
    );
    let path = lab.path(&format!("many-{account}.yaml"));
    std::fs::write(&path, text).expect("writable");
    StaticProxy::start(&path).expect("the outbound proxy starts")
}

fn pair(server: &Server<'_>) -> (Lab, StaticProxy, StaticProxy) {
    let lab = Lab::new();
    let far = lab.server(server);
    let near = client(&lab, "web", at(&far), server.protocol);
    (lab, far, near)
}

fn opened(proxy: &StaticProxy) -> String {
    let metrics = proxy.metrics();
    let line = metrics.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total"));
    line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").to_owned()
}

#[test]
fn requests_of_many_connections_share_one_and_stay_http1() {
    let (_lab, server, client) = pair(&Server { backend: http_backend(), ..Default::default() });
    let mut callers: Vec<_> = (0..20).map(|_| dial(at(&client))).collect();
    for round in 0..3 {
        for (number, caller) in callers.iter_mut().enumerate() {
            let body = "z".repeat(number);
            write!(
                caller,
                "POST /{round}/{number}?q=%20 HTTP/1.1\r\nhost: {HOST}\r\ncookie: a=1; b=2\r\ncontent-length: {number}\r\n\r\n{body}"
            )
            .expect("open");
        }
        for (number, caller) in callers.iter_mut().enumerate() {
            let answer = read_until(caller, &format!("body {number}\n"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains(&format!("POST /{round}/{number}?q=%20 HTTP/1.1")), "{answer}");
            assert!(
                answer.contains(&format!("host: {HOST}\n")) && answer.contains("cookie: a=1; b=2\n"),
                "{answer}"
            );
            let xfcc = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/cart;Hash=";
            assert!(answer.contains(xfcc), "{answer}");
        }
    }
    assert_eq!(opened(&server), "1");
}

#[test]
fn a_refused_request_does_not_touch_its_neighbours() {
    let policy = "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], \
                  to: [{operation: {paths: ['/open/*']}}]}]}";
    let (lab, server, near) =
        pair(&Server { backend: http_backend(), policy: Some(policy), ..Default::default() });
    let mut neighbour = dial(at(&near));
    write!(neighbour, "POST /open/slow HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nab")
        .expect("open");
    for _ in 0..5 {
        assert!(get(at(&near), "/shut").starts_with("HTTP/1.1 403"));
        assert!(get(at(&near), "/open/x").starts_with("HTTP/1.1 200"));
    }
    write!(neighbour, "cd").expect("open");
    let answer = read_until(&mut neighbour, "body 4\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(opened(&server), "1");
    // Another identity has a connection of its own, and is refused on it.
    let thief = client(&lab, "thief", at(&server), "HTTP");
    assert!(get(at(&thief), "/open/x").starts_with("HTTP/1.1 403"));
}

#[test]
fn a_peer_that_does_not_multiplex_is_served_as_ever() {
    // An ordinary TCP port: its chain is another one, so the names of HTTP select nothing there.
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), protocol: "TCP", ..Default::default() });
    let near = client(&lab, "web", at(&server), "HTTP");
    for _ in 0..3 {
        let answer = get(at(&near), "/x");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("GET /x HTTP/1.1"), "{answer}");
    }
}

#[test]
fn upgrades_have_a_connection_of_their_own() {
    let (_lab, server, client) = pair(&Server { backend: http_backend(), ..Default::default() });
    assert!(get(at(&client), "/x").starts_with("HTTP/1.1 200"));
    let mut caller = dial(at(&client));
    write!(caller, "GET /up HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .expect("open");
    let head = read_until(&mut caller, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    caller.write_all(b"hello").expect("open");
    let mut echo = [0; 5];
    caller.read_exact(&mut echo).expect("open");
    assert_eq!(&echo, b"hello");
    assert_eq!(opened(&server), "2");
}

//! Many streams over one connection between two sidecars (`maille/1`).

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;

use maille_proxy::StaticProxy;

use crate::lab::{
    ALLOW_WEB, HOST, Lab, PATIENCE, Server, at, dial, exchange, exchange_half_closed, get, http_backend,
    is_closed_soon, line_backend, read_until, tcp_backend,
};

/// An outbound proxy that knows of its peer that it multiplexes.
pub(crate) fn client(lab: &Lab, account: &str, endpoint: SocketAddr, protocol: &str) -> StaticProxy {
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

/// Connections that the kernel knows of to a proxy.
fn sockets(proxy: &StaticProxy) -> usize {
    let local = format!(":{:04X}", at(proxy).port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|line| line[1].ends_with(&local) && line[3] == "01").count()
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

const TCP: Server<'_> = Server {
    mode: "STRICT",
    protocol: "TCP",
    policy: Some(ALLOW_WEB),
    backend: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9),
    extra: "",
};

#[test]
fn connections_of_bytes_are_streams_of_one() {
    let (_lab, server, client) = pair(&Server { backend: line_backend(), ..TCP });
    let mut callers: Vec<_> = (0..16).map(|_| dial(at(&client))).collect();
    for round in 0..3 {
        for (number, caller) in callers.iter_mut().enumerate() {
            writeln!(caller, "{round} of {number}").expect("open");
        }
        for (number, caller) in callers.iter_mut().enumerate() {
            assert_eq!(read_until(caller, "\n"), format!("{round} of {number}\n"));
        }
    }
    // As without: what the caller's metrics and the called's say of connections is what applications opened.
    assert_eq!((opened(&client), opened(&server)), ("16".to_owned(), "16".to_owned()));
    assert_eq!(sockets(&server), 1);
    // There is no more room on it.
    let mut another = dial(at(&client));
    writeln!(another, "hello").expect("open");
    assert_eq!(read_until(&mut another, "\n"), "hello\n");
    assert_eq!(sockets(&server), 2);
}

#[test]
fn half_close_and_much_data_pass_both_ways() {
    let (_lab, _server, client) = pair(&Server { backend: tcp_backend(b"hello\n"), ..TCP });
    let sent: String = (0..400_000).map(|i| char::from(b'a' + (i % 23) as u8)).collect::<String>().repeat(10);
    // The server speaks first, reads to the end and only then answers.
    let (a, b) = std::thread::scope(|scope| {
        let talk = || exchange_half_closed(at(&client), sent.as_bytes());
        let (a, b) = (scope.spawn(talk), scope.spawn(talk));
        (a.join().expect("no panic"), b.join().expect("no panic"))
    });
    assert!(a == format!("hello\n{sent}") && b == a, "{} and {} bytes came back", a.len(), b.len());
}

#[test]
fn a_stream_that_nobody_reads_does_not_stop_its_neighbours() {
    let (_lab, _server, client) = pair(&Server { backend: line_backend(), ..TCP });
    let mut deaf = dial(at(&client));
    deaf.set_write_timeout(Some(std::time::Duration::from_millis(300))).expect("a socket");
    // It sends until nothing more is taken, and never reads the echo.
    while deaf.write_all(&[b'x'; 65536]).is_ok() {}
    for _ in 0..3 {
        let mut caller = dial(at(&client));
        writeln!(caller, "still here").expect("open");
        assert_eq!(read_until(&mut caller, "\n"), "still here\n");
    }
}

#[test]
fn streams_are_judged_one_by_one_and_again_when_policy_changes() {
    let lab = Lab::new();
    let backend = line_backend();
    let server = lab.server(&Server { backend, ..TCP });
    let near = client(&lab, "web", at(&server), "TCP");
    let mut caller = dial(at(&near));
    writeln!(caller, "one").expect("open");
    assert_eq!(read_until(&mut caller, "\n"), "one\n");
    let thief = client(&lab, "thief", at(&server), "TCP");
    assert!(is_closed_soon(&mut dial(at(&thief))), "another identity is let in");
    let deny = "{action: DENY, rules: [{}]}";
    lab.server_file(&Server { backend, policy: Some(deny), ..TCP });
    server.reload().expect("read again");
    assert!(is_closed_soon(&mut caller), "a stream outlives the policy that allowed it");
    assert!(is_closed_soon(&mut dial(at(&near))), "a new stream is let in against policy");
    // The connection itself lives on, and carries what is allowed again.
    lab.server_file(&Server { backend, ..TCP });
    server.reload().expect("read again");
    let mut caller = dial(at(&near));
    writeln!(caller, "two").expect("open");
    assert_eq!(read_until(&mut caller, "\n"), "two\n");
    assert_eq!(sockets(&server), 2);
}

#[test]
fn bytes_to_a_port_of_requests_have_a_connection_of_their_own() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), ..Default::default() });
    let near = client(&lab, "web", at(&server), "TCP");
    assert!(get(at(&near), "/x").starts_with("HTTP/1.1 200"));
    assert!(get(at(&near), "/y").starts_with("HTTP/1.1 200"));
}

/// What must always be true, 5: long streams outlive the certificate they were opened with, if its renewal is proved.
#[test]
fn a_stream_outlives_its_certificate_when_the_renewed_one_is_shown() {
    let mut lab = Lab::new();
    let server = lab.server(&Server { backend: line_backend(), policy: None, ..TCP });
    lab.ttl = std::time::Duration::from_secs(8);
    let (renewed, expired) =
        (client(&lab, "web", at(&server), "TCP"), client(&lab, "late", at(&server), "TCP"));
    let mut callers = [dial(at(&renewed)), dial(at(&expired))];
    for caller in &mut callers {
        writeln!(caller, "one").expect("open");
        assert_eq!(read_until(caller, "\n"), "one\n");
    }
    lab.ttl = std::time::Duration::from_secs(3600);
    lab.pem("web");
    renewed.reload().expect("read again");
    let [mut kept, mut cut] = callers;
    assert!(is_closed_soon(&mut cut), "a stream outlives the certificate of its caller");
    writeln!(kept, "two").expect("open");
    assert_eq!(read_until(&mut kept, "\n"), "two\n", "the renewed certificate was not taken");
}

/// As a predecessor serves the connections that it has, while its successor takes the new ones.
#[test]
fn a_stream_of_a_proxy_that_is_leaving_outlives_the_certificates_of_both_ends() {
    let mut lab = Lab::new();
    lab.ttl = std::time::Duration::from_secs(8);
    let server = lab.server(&Server { backend: line_backend(), policy: None, ..TCP });
    let near = client(&lab, "web", at(&server), "TCP");
    let mut stream = dial(at(&near));
    let mut say = |line: &str| {
        writeln!(stream, "{line}").expect("open");
        assert_eq!(read_until(&mut stream, "\n"), format!("{line}\n"), "a renewed certificate was not taken");
    };
    say("one");
    // Two rounds of housekeeping after both have ended.
    let over = std::time::SystemTime::now() + lab.ttl + std::time::Duration::from_secs(7);
    server.workers().drain();
    lab.ttl = std::time::Duration::from_secs(3600);
    for (account, proxy) in [("web", &near), ("cart", &server)] {
        lab.pem(account);
        proxy.reload().expect("read again");
    }
    while std::time::SystemTime::now() < over {
        say("again");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_connection_of_a_proxy_that_is_leaving_ends_with_its_last_stream() {
    let (_lab, server, client) = pair(&Server { backend: line_backend(), ..TCP });
    let mut stream = dial(at(&client));
    writeln!(stream, "one").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    server.workers().drain();
    writeln!(stream, "two").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "two\n");
    drop(stream);
    let deadline = std::time::Instant::now() + PATIENCE;
    while sockets(&server) > 0 {
        assert!(std::time::Instant::now() < deadline, "the connection stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whoever is leaving closes each connection with its last answer, of which its caller has hardly read the beginning then, and
/// makes room for the rest.
#[test]
fn answers_of_a_proxy_that_is_leaving_are_read_to_their_end() {
    const SIZE: usize = 1_000_000;
    let (_lab, server, client) = pair(&Server { backend: http_backend(), ..Default::default() });
    server.workers().drain();
    let request = format!("GET /big/{SIZE} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..30 {
                    let answer = exchange(at(&client), request.as_bytes());
                    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
                    assert_eq!(body.len(), SIZE, "{head}");
                }
            });
        }
    });
}

#[test]
fn applications_that_end_at_once_do_not_cost_their_neighbours() {
    let (_lab, server, client) = pair(&Server { backend: line_backend(), ..TCP });
    let mut neighbour = dial(at(&client));
    writeln!(neighbour, "one").expect("open");
    assert_eq!(read_until(&mut neighbour, "\n"), "one\n");
    for _ in 0..5 {
        drop((0..60).map(|_| dial(at(&client))).collect::<Vec<_>>());
    }
    writeln!(neighbour, "two").expect("open");
    assert_eq!(read_until(&mut neighbour, "\n"), "two\n");
    assert!(sockets(&server) < 301_usize.div_ceil(16), "streams have connections of their own");
}

#[test]
fn renewals_and_changes_under_load_lose_no_request() {
    let lab = Lab::new();
    let backend = http_backend();
    let server = lab.server(&Server { backend, ..Default::default() });
    let near = client(&lab, "web", at(&server), "HTTP");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let call = || {
            let mut caller = dial(at(&near));
            let mut count = 0;
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                write!(caller, "POST /x HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 3\r\n\r\nabc")
                    .expect("open");
                let answer = read_until(&mut caller, "body 3\n");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                count += 1;
            }
            count
        };
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        for _ in 0..10 {
            // Both ends get new certificates, and with them new connections.
            lab.pem("web");
            near.reload().expect("read again");
            lab.server_file(&Server { backend, ..Default::default() });
            server.reload().expect("read again");
            assert!(get(at(&near), "/y").starts_with("HTTP/1.1 200"));
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        for caller in callers {
            assert!(caller.join().expect("no request is lost") > 0);
        }
    });
}

//! HTTP through two sidecars.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;

use crate::lab::{HOST, Lab, Server, at, dial, exchange, get, http_backend, read_until, run};

fn pair(protocol: &str, policy: Option<&str>) -> (Lab, StaticProxy, StaticProxy) {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: http_backend(), protocol, policy, ..Default::default() });
    let client = lab.client("web", at(&server), protocol, "ISTIO_MUTUAL");
    (lab, server, client)
}

fn curl(address: SocketAddr, path: &str, arguments: &[&str]) -> String {
    let url = format!("http://{address}{path}");
    let host = format!("host: {HOST}");
    run("curl", &[&["-sS", "--max-time", "60", "-H", &host, &url], arguments].concat(), "")
}

#[test]
fn many_requests_share_one_connection() {
    let (_lab, server, client) = pair("HTTP", None);
    let mut stream = dial(at(&client));
    for number in 0..50 {
        write!(stream, "GET /{number} HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
        let answer = read_until(&mut stream, "body 0\n");
        assert!(answer.contains(&format!("GET /{number} HTTP/1.1")), "{answer}");
    }
    let opened = server.metrics();
    let line =
        opened.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total")).unwrap_or_default();
    assert!(line.ends_with(" 1"), "{line}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_lab, _server, client) = pair("HTTP", None);
    let mut all = String::new();
    for number in 0..20 {
        all.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"));
    }
    all.push_str(&format!("GET /last HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"));
    let answer = exchange(at(&client), all.as_bytes());
    let order: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("GET /")).collect();
    assert_eq!(order.len(), 21, "{answer}");
    assert!(order[..20].iter().enumerate().all(|(i, line)| line.starts_with(&format!("{i} "))), "{order:?}");
}

#[test]
fn big_bodies_pass_both_ways_with_length_and_chunked() {
    let (lab, _server, client) = pair("HTTP", None);
    let size = 20_000_000;
    let path = lab.path("big");
    std::fs::write(&path, vec![b'z'; size]).expect("writable");
    let data = format!("@{}", path.display());
    let out = lab.path("out").display().to_string();
    for chunked in ["transfer-encoding: chunked", "x-none: 1"] {
        let said = curl(
            at(&client),
            "/echo",
            &["--data-binary", &data, "-H", chunked, "-o", &out, "-w", "%{http_code} %{size_download}"],
        );
        assert_eq!(said, format!("200 {size}"));
    }
    let said =
        curl(at(&client), "/big/30000000", &["-o", "/dev/null", "-w", "%{http_code} %{size_download}"]);
    assert_eq!(said, "200 30000000");
}

#[test]
fn http2_is_spoken_all_the_way_where_the_application_speaks_it() {
    let (_lab, _server, client) = pair("AUTO", None);
    let answer = curl(at(&client), "/h2", &["--http2-prior-knowledge", "-w", "%{http_version}"]);
    assert!(answer.contains("HTTP/2.0") && answer.ends_with('2'), "{answer}");
    let (_lab, _server, client) = pair("HTTP2", None);
    let answer = curl(at(&client), "/h1-in", &["-w", "%{http_version}"]);
    assert!(answer.contains("HTTP/2.0") && answer.ends_with("1.1"), "{answer}");
}

#[test]
fn grpc_refusals_are_trailers_only() {
    let deny = "{action: DENY, rules: [{to: [{operation: {paths: [/pkg.Cart/Get]}}]}]}";
    let (_lab, _server, client) = pair("HTTP2", Some(deny));
    let arguments = ["--http2-prior-knowledge", "-i", "-X", "POST", "-H", "content-type: application/grpc"];
    let answer = curl(at(&client), "/pkg.Cart/Get", &arguments);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(
        answer.contains("grpc-status: 7") && answer.contains("grpc-message: RBAC: access denied"),
        "{answer}"
    );
}

#[test]
fn paths_are_judged_as_they_are_forwarded() {
    let deny = "{action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}";
    let (_lab, _server, client) = pair("HTTP", Some(deny));
    for path in ["/admin", "/x/../admin", "/%61dmin", "/x/%2e%2e/admin", "/admin?x=/y"] {
        assert!(get(at(&client), path).starts_with("HTTP/1.1 403"), "{path}");
    }
    let answer = get(at(&client), "/a/./b/../c?q=/../admin");
    assert!(answer.contains("GET /a/c?q=/../admin HTTP/1.1"), "{answer}");
}

#[test]
fn head_and_refused_head_have_no_body() {
    let (_lab, server, client) = pair("HTTP", Some(crate::lab::ALLOW_WEB));
    let head = format!("HEAD / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    let answer = exchange(at(&client), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    let lab = _lab;
    let thief = lab.client("thief", at(&server), "HTTP", "ISTIO_MUTUAL");
    let answer = exchange(at(&thief), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: 19"), "{answer}");
}

#[test]
fn expect_continue_is_answered_only_when_the_request_is_allowed() {
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}";
    let (_lab, server, client) = pair("HTTP", Some(deny));
    let mut stream = dial(at(&client));
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nhost: {HOST}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    )
    .expect("open");
    // An application that answers before it has the body may have its head in the same segment.
    let first = read_until(&mut stream, "\r\n\r\n");
    assert!(first.starts_with("HTTP/1.1 100"), "{first}");
    stream.write_all(b"hello").expect("open");
    let all = first + &read_until(&mut stream, "hello");
    assert!(all.contains("200 OK"), "{all}");
    drop(server);
}

/// An application that has said its last word reads on, late: nothing of what its caller still sends is lost.
#[test]
fn an_upgraded_connection_goes_on_one_way_after_the_other_has_ended() {
    const SIZE: usize = 4 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let backend = listener.local_addr().expect("bound");
    let application = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the proxy");
        read_until(&mut stream, "\r\n\r\n");
        write!(stream, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nlast")
            .expect("open");
        stream.shutdown(Shutdown::Write).expect("open");
        std::thread::sleep(Duration::from_millis(500));
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an end");
        all.len()
    });
    let lab = Lab::new();
    let server = lab.server(&Server { backend, policy: None, mode: "PERMISSIVE", ..Default::default() });
    let mut stream = dial(at(&server));
    write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
        .expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the end of one way");
    assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("last"), "{answer}");
    stream.write_all(&vec![b'x'; SIZE]).expect("open");
    drop(stream);
    assert_eq!(application.join().expect("no panic"), SIZE);
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways() {
    let (_lab, _server, client) = pair("HTTP", None);
    let mut stream = dial(at(&client));
    write!(stream, "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .expect("open");
    let answer = read_until(&mut stream, "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("upgrade: echo"), "{answer}");
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).expect("open");
        assert_eq!(read_until(&mut stream, word), word);
    }
}

#[test]
fn an_application_that_is_down_gives_503_in_envoys_words() {
    let lab = Lab::new();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let server = lab.server(&Server { backend: nobody, policy: None, ..Default::default() });
    let client = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let answer = get(at(&client), "/");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("reset reason: remote connection failure"), "{answer}");
    assert!(answer.contains("delayed connect error: Connection refused"), "{answer}");
}

#[test]
fn the_host_chooses_the_service_and_an_unknown_one_the_address() {
    let (_lab, _server, client) = pair("HTTP", None);
    for host in ["cart.shop", "cart", "10.96.0.9", "CART.shop.svc", "unknown.example:80"] {
        let answer = exchange(
            at(&client),
            format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        assert!(answer.contains(&format!("host: {host}\n")), "{answer}");
    }
}

#[test]
fn a_slow_reader_does_not_make_the_proxies_hoard() {
    let (_lab, _server, client) = pair("HTTP", None);
    let mut stream = dial(at(&client));
    write!(stream, "GET /big/60000000 HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").expect("open");
    let mut first = [0; 100];
    stream.read_exact(&mut first).expect("an answer begins");
    assert!(first.starts_with(b"HTTP/1.1 200"));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("and ends");
    assert!(rest.len() > 59_999_000, "{}", rest.len());
}

#[test]
fn hundreds_of_streams_with_bodies_share_one_http2_connection() {
    let (_lab, server, client) = pair("HTTP2", Some(crate::lab::ALLOW_WEB));
    let address = at(&client);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the proxy listens");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2 is spoken");
        tokio::spawn(connection);
        let exchanges = (0..300_usize).map(|number| {
            let mut sender = sender.clone();
            async move {
                let body = Bytes::from(vec![number as u8; 100_000 + number]);
                let request = Request::post(format!("http://{HOST}/echo")).body(Full::new(body.clone()));
                let response = sender.send_request(request.expect("a request")).await.expect("an answer");
                assert_eq!(response.status(), 200);
                let echoed = response.into_body().collect().await.expect("a body").to_bytes();
                assert!(echoed == body, "stream {number} got another's bytes");
            }
        });
        futures::future::join_all(exchanges).await;
    });
    let metrics = server.metrics();
    let opened =
        metrics.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total")).unwrap_or_default();
    let count: u32 = opened.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
    assert!((1..=5).contains(&count), "{opened}");
}

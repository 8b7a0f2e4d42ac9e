//! Peers with a good certificate that say over `maille/1` what no proxy of ours says.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Method, Request};
use maille_proxy::StaticProxy;
use maille_tls::ClientAlpn;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::lab::{HOST, Lab, PATIENCE, Server, at, http_backend, line_backend};

const SNI: &str = "outbound_.80_._.cart.shop.svc.cluster.local";

/// A connection of `web` to a proxy that has selected `maille/1`.
async fn connect(lab: &Lab, server: &StaticProxy, alpn: ClientAlpn, sni: &str) -> SendRequest<Bytes> {
    let tls = lab.authority.context("shop", "web");
    let config = tls.current().client_config(alpn, &Vec::new().into()).expect("a configuration");
    let socket = TcpStream::connect(at(server)).await.expect("the proxy listens");
    let name = ServerName::try_from(sni.to_owned()).expect("a name");
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, socket).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(maille_tls::alpn::MAILLE_1));
    // What comes over one stream and is not read must not keep back what comes over others.
    let mut builder = client::Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let (sender, connection) = builder.handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("open")
}

/// Status and body of an answer, or how the stream ended.
async fn ask(sender: &mut SendRequest<Bytes>, request: Request<()>) -> Result<(u16, String), h2::Error> {
    let exchange = async {
        let (answer, _) = sender.send_request(request, true)?;
        let answer = answer.await?;
        let status = answer.status().as_u16();
        let (mut body, mut text) = (answer.into_body(), Vec::new());
        while let Some(bytes) = body.data().await {
            text.extend_from_slice(&bytes?);
        }
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
}

fn get(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://{HOST}{path}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_requests_are_requests_of_http1() {
    let lab = Lab::new();
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [GET], paths: ['/shut*']}}]}]}";
    let server = lab.server(&Server { backend: http_backend(), policy: Some(deny), ..Default::default() });
    let mut sender = connect(&lab, &server, ClientAlpn::ManyHttp1, SNI).await;
    let built = |request: http::request::Builder| request.body(()).expect("a request");

    let (status, text) = ask(&mut sender, built(get("/x"))).await.expect("an answer");
    assert!(status == 200 && text.starts_with("GET /x HTTP/1.1\n"), "{status} {text}");
    // Two names for one request: one is left.
    let (status, text) = ask(&mut sender, built(get("/x").header("host", "other"))).await.expect("an answer");
    assert!(status == 200 && text.contains(&format!("host: {HOST}\n")) && !text.contains("other"), "{text}");
    // A method that is GET to applications which are not strict about case, and not to the rule.
    let (status, _) = ask(&mut sender, built(get("/shut").method("get"))).await.expect("an answer");
    assert_eq!(status, 400);
    let (status, _) = ask(&mut sender, built(get("/x/../shut"))).await.expect("an answer");
    assert_eq!(status, 403);
    // Crumbs are one cookie again.
    let crumbs = get("/x").header("cookie", "a=1").header("cookie", "b=2");
    let (_, text) = ask(&mut sender, built(crumbs)).await.expect("an answer");
    assert!(text.contains("cookie: a=1; b=2\n"), "{text}");
    // What frames messages and connections in HTTP/1.1 is not taken from a stream.
    for (name, value) in
        [("connection", "upgrade"), ("upgrade", "echo"), ("transfer-encoding", "chunked"), ("te", "gzip")]
    {
        let outcome = ask(&mut sender, built(get("/x").header(name, value))).await;
        assert!(outcome.as_ref().map_or(true, |(status, _)| *status >= 400), "{name}: {outcome:?}");
        sender = connect(&lab, &server, ClientAlpn::ManyHttp1, SNI).await;
    }
    let many = (0..200).fold(get("/x"), |request, number| request.header(format!("x-{number}"), "y"));
    assert_eq!(ask(&mut sender, built(many)).await.expect("an answer").0, 431);
    // A stream of bytes is none of these.
    let connect = Request::builder().method(Method::CONNECT).uri("169.254.169.254:80");
    assert_eq!(ask(&mut sender, built(connect)).await.expect("an answer").0, 400);
    assert_eq!(ask(&mut sender, built(get("/x"))).await.expect("an answer").0, 200, "the others go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_bytes_cannot_choose_where_it_goes() {
    let lab = Lab::new();
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("a socket");
    let server = lab.server(&Server { backend: line_backend(), protocol: "TCP", ..Default::default() });
    let mut sender = connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await;
    let request = Request::builder().uri(format!("http://{HOST}/x")).body(()).expect("a request");
    assert_eq!(ask(&mut sender, request).await.expect("an answer").0, 405);
    let target: SocketAddr = elsewhere.local_addr().expect("bound");
    let request =
        Request::builder().method(Method::CONNECT).uri(target.to_string()).body(()).expect("a request");
    let (answer, mut send) = sender.send_request(request, false).expect("sent");
    send.send_data(Bytes::from_static(b"hello\n"), false).expect("sent");
    let mut body = answer.await.expect("an answer").into_body();
    let echoed =
        tokio::time::timeout(PATIENCE, body.data()).await.expect("in time").expect("bytes").expect("bytes");
    assert_eq!(echoed, "hello\n", "the own application answers, wherever the stream wanted to go");
    assert!(elsewhere.accept().is_err());
}

/// Whoever shows certificates that are none makes this proxy verify one a second, however many it sends; its streams of
/// bytes stand on the one that it came with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_none_are_refused_at_leisure() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: line_backend(), protocol: "TCP", ..Default::default() });
    let mut sender = connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await;
    let method = Method::from_bytes(b"MAILLE-PROOFS").expect("a method");
    let request = Request::builder().method(method).uri("http://renewal/").body(()).expect("a request");
    let began = Instant::now();
    let (answer, mut send) = sender.send_request(request, false).expect("sent");
    let message: &[u8] = b"\0\0\0\x08no chain";
    send.send_data(message.repeat(3).into(), false).expect("sent");
    let mut body = answer.await.expect("an answer").into_body();
    let mut verdicts = Vec::new();
    // Each: refused, and nothing of its own.
    let refused: &[u8] = b"\0\0\0\x01-\0\0\0\0";
    while verdicts.len() < 3 * refused.len() {
        let more = tokio::time::timeout(PATIENCE, body.data()).await.expect("in time").expect("more");
        verdicts.extend_from_slice(&more.expect("bytes"));
    }
    assert_eq!(verdicts, refused.repeat(3));
    assert!(began.elapsed() >= Duration::from_secs(2), "three within {:?}", began.elapsed());
    let connect = Request::builder().method(Method::CONNECT).uri("stream").body(()).expect("a request");
    let (answer, mut send) = sender.send_request(connect, false).expect("sent");
    send.send_data(Bytes::from_static(b"hello\n"), false).expect("sent");
    let echoed = answer.await.expect("an answer").into_body().data().await.expect("bytes").expect("bytes");
    assert_eq!(echoed, "hello\n");
}

/// Identity and server name are the connection's: what a header says of them is a header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_name_is_that_of_the_connection() {
    let lab = Lab::new();
    let allow = format!("{{action: ALLOW, rules: [{{when: [{{key: connection.sni, values: ['{SNI}']}}]}}]}}");
    let server = lab.server(&Server { backend: http_backend(), policy: Some(&allow), ..Default::default() });
    let request =
        || get("/x").header("x-maille-sni", SNI).header("x-forwarded-client-cert", "URI=spiffe://x/y");
    let built = || request().body(()).expect("a request");
    let mut named = connect(&lab, &server, ClientAlpn::ManyHttp1, SNI).await;
    assert_eq!(ask(&mut named, built()).await.expect("an answer").0, 200);
    let mut other =
        connect(&lab, &server, ClientAlpn::ManyHttp1, "outbound_.80_._.other.shop.svc.cluster.local").await;
    assert_eq!(ask(&mut other, built()).await.expect("an answer").0, 403);
}

/// An application that answers `hello`, and reads no more of anything else than that it is none.
fn reading_no_more() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    // Little is kept on the way to it.
    socket2::SockRef::from(&listener).set_recv_buffer_size(4096).expect("a socket");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut word = [0; 6];
            if stream.read_exact(&mut word).is_ok() && word == *b"hello\n" {
                let _ = stream.write_all(&word);
            }
            held.push(stream);
        }
    });
    address
}

/// An application reads nothing of what a peer sends in the smallest of frames: the window bounds that, a small one too, and
/// the connection's other streams go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_that_nobody_reads_do_not_end_the_connection() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: reading_no_more(), protocol: "TCP", ..Default::default() });
    let mut others = Vec::new();
    // So many that those who come get small windows.
    for _ in 0..100 {
        others.push(connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await);
    }
    let mut sender = connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await;
    let asked = || Request::builder().method(Method::CONNECT).uri("stream").body(()).expect("a request");
    let mut streams = Vec::new();
    for _ in 0..8 {
        let (answer, send) = sender.send_request(asked(), false).expect("sent");
        streams.push((answer.await.expect("an answer"), send));
        sender = sender.ready().await.expect("the connection lives");
    }
    let full = streams.into_iter().map(|(answer, mut send)| async move {
        let some = Bytes::from_static(&[b'x'; 64]);
        loop {
            send.reserve_capacity(some.len());
            let room = async {
                while send.capacity() < some.len() {
                    let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                    room.expect("the stream lives").expect("the connection lives");
                }
            };
            // Nothing moves any more.
            if tokio::time::timeout(Duration::from_secs(1), room).await.is_err() {
                return (answer, send);
            }
            send.send_data(some.clone(), false).expect("sent");
        }
    });
    let _full = futures::future::join_all(full).await;
    let (answer, mut send) = sender.send_request(asked(), false).expect("sent");
    send.send_data(Bytes::from_static(b"hello\n"), false).expect("sent");
    let mut body = answer.await.expect("an answer").into_body();
    let echoed = tokio::time::timeout(PATIENCE, body.data()).await.expect("in time").expect("bytes");
    assert_eq!(echoed.expect("the connection lives"), "hello\n");
}

/// One peer can hold no more than a connection's streams and windows (CVE-2023-44487 and the like end the connection).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let lab = Lab::new();
    let server = lab.server(&Server { backend: line_backend(), protocol: "TCP", ..Default::default() });
    let mut sender = connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await;
    let flood = async {
        loop {
            let request = Request::builder().method(Method::CONNECT).uri("x").body(()).expect("a request");
            match sender.send_request(request, false) {
                Ok((_, mut send)) => send.send_reset(h2::Reason::CANCEL),
                Err(_) => return,
            }
            match sender.ready().await {
                Ok(ready) => sender = ready,
                Err(_) => return,
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), flood).await.expect("the flood is ended");
    // Others do not notice.
    connect(&lab, &server, ClientAlpn::ManyTcp, SNI).await;
}

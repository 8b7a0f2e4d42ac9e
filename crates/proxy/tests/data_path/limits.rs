//! Callers that take too long, too much, or take everything back: what they can make a proxy hold is bounded, and others
//! are served meanwhile.

use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;
use maille_testkit::identity::{Credential, rogue_client};
use rustls::pki_types::ServerName;

use crate::frames::{
    self, CONTINUATION, Client, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
};
use crate::lab::{HOST, Lab, PATIENCE, Server, at, dial, get, http_backend, is_closed_soon, read_until};

fn permissive(lab: &Lab, backend: SocketAddr, extra: &str) -> StaticProxy {
    lab.server(&Server { backend, mode: "PERMISSIVE", policy: None, extra, ..Default::default() })
}

fn is_served(proxy: &StaticProxy) -> bool {
    get(at(proxy), "/").starts_with("HTTP/1.1 200")
}

/// An application that sends without end, and how much it could send.
fn endless() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let sent = Arc::new(AtomicUsize::new(0));
    let total = sent.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let total = total.clone();
            thread::spawn(move || {
                read_until(&mut stream, "\r\n\r\n");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n");
                while stream.write_all(&[0; 65536]).is_ok() {
                    total.fetch_add(65536, Ordering::SeqCst);
                }
            });
        }
    });
    (address, sent)
}

/// The value once it has stopped to grow.
fn settled(count: &AtomicUsize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (count.load(Ordering::SeqCst), Instant::now());
    while Instant::now() < deadline && since.elapsed() < Duration::from_millis(700) {
        thread::sleep(Duration::from_millis(20));
        let now = count.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// What the kernel keeps in the buffers of two loopback connections, and the proxy in its own, with room to spare.
const HELD: usize = 32 << 20;

#[test]
fn an_answer_that_nobody_reads_is_not_fetched() {
    let lab = Lab::new();
    let (backend, sent) = endless();
    let server = permissive(&lab, backend, "");
    let mut stream = dial(at(&server));
    write!(stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("open");
    let mut first = [0; 100];
    stream.read_exact(&mut first).expect("an answer begins");
    let held = settled(&sent);
    assert!((1..HELD).contains(&held), "{held} bytes were fetched");
    // And it goes on when the caller does.
    let mut more = vec![0; 1 << 20];
    for _ in 0..held / more.len() + 2 {
        stream.read_exact(&mut more).expect("the answer goes on");
    }
    assert!(settled(&sent) > held);
}

/// The same over HTTP/2.
fn endless_http2() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let sent = Arc::new(AtomicUsize::new(0));
    let total = sent.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let total = total.clone();
                let service = service_fn(move |_| {
                    let total = total.clone();
                    let frames = futures::stream::repeat_with(move || {
                        total.fetch_add(16384, Ordering::SeqCst);
                        Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0; 16384])))
                    });
                    async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
                });
                let connection = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    (address, sent)
}

#[test]
fn streams_without_a_window_fetch_next_to_nothing() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let lab = Lab::new();
    let (backend, sent) = endless_http2();
    let server = permissive(&lab, backend, "");
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(at(&server), &[(INITIAL_WINDOW_SIZE, 0)]);
        for stream in 0..50 {
            let head = frames::request("GET", "/");
            client.send(&frames::frame(HEADERS, END_STREAM | END_HEADERS, 2 * stream + 1, &head));
        }
        // Its streams have all been answered, as far as that goes without a window.
        assert!(client.until(|frame| frame.kind == HEADERS && frame.stream == 99).is_some());
        clients.push(client);
    }
    let held = settled(&sent);
    assert!((1..HELD).contains(&held), "{held} bytes were fetched");
}

#[test]
fn a_head_that_does_not_come_to_an_end_is_not_waited_for() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "requestHeadMs: 300");
    let mut slow = dial(at(&server));
    write!(slow, "GET / HTTP/1.1\r\nhost: a\r\n").expect("open");
    // One byte now and then is no reason to wait longer.
    let mut dripping = slow.try_clone().expect("a socket");
    let drip = thread::spawn(move || {
        while dripping.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(is_closed_soon(&mut slow), "the head is still waited for");
    drip.join().expect("no panic");
    assert!(server.metrics().contains("maille_refusals_total"), "{}", server.metrics());
    // The same after a request that was answered.
    let mut second = dial(at(&server));
    write!(second, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("open");
    assert!(read_until(&mut second, "body 0\n").starts_with("HTTP/1.1 200"));
    write!(second, "GET ").expect("open");
    assert!(is_closed_soon(&mut second), "the second head is still waited for");
}

#[test]
fn unused_connections_are_closed_and_used_ones_are_not() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "idleCallerMs: 300");
    let mut unused = dial(at(&server));
    write!(unused, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("open");
    assert!(read_until(&mut unused, "body 0\n").starts_with("HTTP/1.1 200"));
    // Its body comes slowly.
    let mut used = dial(at(&server));
    write!(used, "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na").expect("open");
    let mut http2 = Client::connect(at(&server), &[]);
    assert!(is_closed_soon(&mut unused), "an unused connection stays");
    assert!(http2.until(|frame| frame.kind == GOAWAY).is_some(), "HTTP/2 is not told");
    assert!(http2.until(|_| false).is_none());
    thread::sleep(Duration::from_millis(300));
    write!(used, "b").expect("open");
    assert!(read_until(&mut used, "ab").ends_with("ab"), "a request under way was cut");
}

/// CVE-2023-44487, with the reset in the same segment, and with the request given time to start.
#[test]
fn a_caller_that_takes_everything_back_is_let_go() {
    let lab = Lab::new();
    let server = permissive(&lab, endless_http2().0, "");
    for is_at_once in [true, false] {
        let mut client = Client::connect(at(&server), &[]);
        let mut taken_back = 0_u32;
        let is_over = loop {
            let stream = 2 * taken_back + 1;
            let head = frames::frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::request("GET", "/"));
            let reset = frames::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            let is_sent = if is_at_once {
                client.send(&[head, reset].concat())
            } else {
                client.send(&head)
                    && client.until(|frame| frame.stream == stream).is_some()
                    && client.send(&reset)
            };
            taken_back += 1;
            if !is_sent {
                break true;
            }
            if taken_back > 100_000 {
                break false;
            }
        };
        assert!(is_over, "{taken_back} requests were taken back");
        // Another is served.
        let mut other = Client::connect(at(&server), &[]);
        other.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::request("GET", "/")));
        assert!(other.until(|frame| frame.stream == 1 && frame.kind == HEADERS).is_some());
    }
    assert!(server.metrics().contains("reason=\"overload\""), "{}", server.metrics());
}

/// CVE-2024-24549 and its kin: fields without end.
#[test]
fn fields_without_end_are_not_collected() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "");
    let mut client = Client::connect(at(&server), &[]);
    client.send(&frames::frame(HEADERS, END_STREAM, 1, &frames::request("GET", "/")));
    let more = frames::frame(CONTINUATION, 0, 1, &frames::block(&[("x-a", &"y".repeat(1000))]));
    let mut frames_sent = 0;
    while client.send(&more) && frames_sent < 100_000 {
        frames_sent += 1;
    }
    assert!(frames_sent < 100_000, "they are read without end");
    // A list that is too long, properly ended: the request is refused and the connection lives.
    let mut client = Client::connect(at(&server), &[]);
    let value = "y".repeat(10_000);
    let fields: Vec<(&str, &str)> = (0..8).map(|_| ("x-a", value.as_str())).collect();
    let mut rest = [frames::request("GET", "/"), frames::block(&fields)].concat();
    let first: Vec<u8> = rest.drain(..16_000).collect();
    client.send(&frames::frame(HEADERS, END_STREAM, 1, &first));
    while rest.len() > 16_000 {
        let next: Vec<u8> = rest.drain(..16_000).collect();
        client.send(&frames::frame(CONTINUATION, 0, 1, &next));
    }
    client.send(&frames::frame(CONTINUATION, END_HEADERS, 1, &rest));
    client.send(&frames::frame(HEADERS, END_STREAM | END_HEADERS, 3, &frames::request("GET", "/ok")));
    let served = client.until(|frame| String::from_utf8_lossy(&frame.payload).contains("GET http://a/ok"));
    assert!(served.is_some_and(|frame| frame.stream == 3));
    // Many small ones, as many as HTTP/1.1 would not have either.
    let fields: Vec<(&str, &str)> = (0..101).map(|_| ("x-a", "y")).collect();
    let fields = [frames::request("GET", "/"), frames::block(&fields)].concat();
    client.send(&frames::frame(HEADERS, END_STREAM | END_HEADERS, 5, &fields));
    let refused = client.until(|frame| frame.stream == 5 && frame.kind == HEADERS).expect("an answer");
    assert!(String::from_utf8_lossy(&refused.payload).contains("431") || refused.payload.len() < 60);
    assert!(is_served(&server));
}

/// Frames that want an answer, from a caller that reads none.
#[test]
fn answers_that_nobody_reads_do_not_pile_up() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "");
    for (kind, payload) in [(PING, vec![0; 8]), (SETTINGS, vec![])] {
        let mut client = Client::connect(at(&server), &[]);
        client.stream.set_write_timeout(Some(Duration::from_millis(700))).expect("a socket");
        let many = frames::frame(kind, 0, 0, &payload).repeat(4000);
        let mut sent = 0;
        let ended = loop {
            match client.stream.write_all(&many) {
                Ok(()) => sent += many.len(),
                Err(error) => break error.kind(),
            }
            if sent > 256 << 20 {
                break ErrorKind::Other;
            }
        };
        assert_ne!(
            ended,
            ErrorKind::Other,
            "{sent} bytes of frames of kind {kind} were read, their answers kept"
        );
        assert!(is_served(&server));
    }
}

/// A ClientHello with post-quantum shares spans segments; nobody says that it has to be one record either.
#[test]
fn a_client_hello_in_crumbs_is_understood() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "");
    let credential = Credential::from(&lab.authority.svid("shop", "web"));
    let alpn: [&[u8]; 3] = [b"istio-http/1.1", b"istio", b"http/1.1"];
    let name = ServerName::try_from("cart.shop").expect("a name");
    let mut session =
        rustls::ClientConnection::new(rogue_client(Some(&credential), &alpn), name).expect("TLS");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a ClientHello");
    assert!(hello.len() > 1400, "no post-quantum share in {} bytes", hello.len());
    let mut socket = dial(at(&server));
    for crumb in hello[5..].chunks(97) {
        let length = u16::try_from(crumb.len()).expect("short").to_be_bytes();
        for part in [&[22, 3, 1], &length[..], &crumb[..40.min(crumb.len())], &crumb[40.min(crumb.len())..]] {
            socket.write_all(part).expect("open");
        }
    }
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    let request = format!("GET /crumbs HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("TLS");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("x-forwarded-client-cert: By=") && answer.contains("GET /crumbs"), "{answer}");
}

/// What looks like a ClientHello for as long as anybody would read.
#[test]
fn a_client_hello_without_end_is_not_collected() {
    let lab = Lab::new();
    let server = permissive(&lab, http_backend(), "");
    let mut socket = dial(at(&server));
    // A handshake message of 16 MiB, in records of 100 bytes.
    let mut record = vec![22, 3, 1, 0, 100, 1, 255, 255, 255];
    record.resize(105, 0);
    let mut sent = 0_usize;
    while sent < 10 << 20 && socket.write_all(&record).is_ok() {
        sent += record.len();
        record[5..9].fill(0);
    }
    assert!(sent < 10 << 20, "it is collected without end");
    assert!(is_served(&server));
}

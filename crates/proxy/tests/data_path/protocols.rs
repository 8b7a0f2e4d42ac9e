//! What HTTP says beyond requests and answers: trailers, resets, farewells, and messages of every framing, carried through
//! two sidecars.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;

use crate::frames::{self, Client, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM};
use crate::lab::{HOST, Lab, PATIENCE, Server, at, dial, exchange, http_backend, is_closed_soon, read_until};
use crate::strict::application;

fn pair(lab: &Lab, backend: SocketAddr, protocol: &str) -> (StaticProxy, StaticProxy) {
    let server = lab.server(&Server { backend, protocol, policy: None, ..Default::default() });
    let client = lab.client("web", at(&server), protocol, "ISTIO_MUTUAL");
    (server, client)
}

/// An application that answers every connection's first request with these bytes, and closes if `is_last`.
fn scripted(answer: &'static [u8], is_last: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                while read_until(&mut stream, "\r\n\r\n").ends_with("\r\n\r\n") {
                    if stream.write_all(answer).is_err() || is_last {
                        return;
                    }
                }
            });
        }
    });
    address
}

const GET: &str =
    "GET / HTTP/1.1\r\nhost: cart.shop.svc.cluster.local\r\nte: trailers\r\nconnection: close, te\r\n\r\n";

/// RFC 9110 section 6.5: announced ones pass.
#[test]
fn trailers_of_http1_pass_both_ways() {
    let lab = Lab::new();
    let (backend, heard) = application("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (_server, client) = pair(&lab, backend, "HTTP");
    let post = "POST / HTTP/1.1\r\nhost: cart.shop.svc.cluster.local\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\
                connection: close\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n";
    assert!(exchange(at(&client), post.as_bytes()).contains("200 OK"));
    let request = heard.take().remove(0).expect("readable");
    assert_eq!(
        (&request.body[..], &request.trailers[..]),
        (&b"hello"[..], &[("x-sum".into(), "7".into())][..])
    );

    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
    let lab = Lab::new();
    let (_server, client) = pair(&lab, scripted(answer, false), "HTTP");
    let answer = exchange(at(&client), GET.as_bytes());
    assert!(answer.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer:?}");
}

/// RFC 9112 section 6.3: whatever says where a body ends, it ends there.
#[test]
fn answers_of_every_framing_arrive_whole() {
    for (answer, is_last, expected) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..], false, "hello"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, "5\r\nhello\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, "5\r\nhello\r\n0\r\n\r\n"),
        // Its end is the connection's, and the next hop's cannot be.
        (b"HTTP/1.1 200 OK\r\n\r\nhello", true, "5\r\nhello\r\n0\r\n\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", true, "5\r\nhello\r\n0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", false, ""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", false, ""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "ok"),
        (b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "ok"),
    ] {
        let lab = Lab::new();
        let (_server, client) = pair(&lab, scripted(answer, is_last), "HTTP");
        let got = exchange(at(&client), GET.as_bytes());
        let last = got.rfind("HTTP/1.1 ").and_then(|start| got.get(start..)).unwrap_or_default();
        let (_, body) = last.split_once("\r\n\r\n").unwrap_or_default();
        assert_eq!(body, expected, "{:?}: {got:?}", String::from_utf8_lossy(answer));
    }
}

/// An answer that cannot be read is no answer; one that ends early is not made whole.
#[test]
fn broken_answers_are_not_passed_off_as_good_ones() {
    for (answer, is_last, status) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"[..], true, "502"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5x\r\n\r\nhello", true, "502"),
        (b"HTTP/1.1 200 OK\r\nx y: z\r\n\r\n", true, "502"),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n", true, "502"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", true, "502"),
        (b"", true, "503"),
        (b"HTTP/1.1 200 OK\r\nx: y", true, "503"),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", true, "502"),
    ] {
        let lab = Lab::new();
        let (_server, client) = pair(&lab, scripted(answer, is_last), "HTTP");
        let got = exchange(at(&client), GET.as_bytes());
        let shown = String::from_utf8_lossy(answer).into_owned();
        assert_eq!(got.split(' ').nth(1), Some(status), "{shown:?}: {got:?}");
    }
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nz\r\n",
    ] {
        let lab = Lab::new();
        let (_server, client) = pair(&lab, scripted(answer, true), "HTTP");
        let got = exchange(at(&client), GET.as_bytes());
        let is_whole = got.ends_with("\r\n0\r\n\r\n") || got.contains("content-length: 5\r\n");
        assert!(
            got.starts_with("HTTP/1.1 200") && !is_whole,
            "{:?}: {got:?}",
            String::from_utf8_lossy(answer)
        );
    }
}

/// The caller stops sending last here.
#[test]
fn the_server_may_close_its_half_first() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let backend = listener.local_addr().expect("bound");
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.write_all(b"bye").expect("open");
        stream.shutdown(Shutdown::Write).expect("open");
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("an orderly end");
        all
    });
    let lab = Lab::new();
    let (_server, client) = pair(&lab, backend, "TCP");
    let mut stream = dial(at(&client));
    let mut got = String::new();
    stream.read_to_string(&mut got).expect("an orderly end");
    assert_eq!(got, "bye");
    for word in ["I ", "am ", "not ", "done"] {
        stream.write_all(word.as_bytes()).expect("still open");
    }
    drop(stream);
    assert_eq!(heard.join().expect("no panic"), "I am not done");
}

/// What a request of HTTP/2 came to at the application.
#[derive(Debug, Default)]
struct Record {
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    /// How its body ended, if not in order.
    error: Option<h2::Reason>,
    is_over: bool,
}

type Records = Arc<Mutex<Vec<Record>>>;

/// Waits until `find` says something.
fn wait<T>(records: &Records, find: impl Fn(&[Record]) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find(&records.lock().expect("no panic")) {
            return found;
        }
        assert!(Instant::now() < deadline, "{:?}", records.lock().expect("no panic"));
        thread::sleep(Duration::from_millis(2));
    }
}

/// An application that reads requests to their end and answers at once: `/reset` and `/cancel` with a reset in the middle
/// of the body, `/silent` not at all, `/endless` and `/deaf` without an end, anything else with a body and trailers. `/deaf`
/// does not read, and its record is over when its answer is not wanted any more.
fn http2_backend() -> (SocketAddr, Records) {
    http2_backend_of(200)
}

/// One that takes so many streams a connection.
fn http2_backend_of(streams: u32) -> (SocketAddr, Records) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let records = Records::default();
    let all = records.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let records = all.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let records = records.clone();
                    let is_silent = request.uri().path() == "/silent";
                    let answer = answer(request, records);
                    async move {
                        if is_silent {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let mut connection = http2::Builder::new(TokioExecutor::new());
                connection.max_concurrent_streams(streams);
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    (address, records)
}

type Answered = Response<StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, h2::Error>>>>;

/// Tells when an answer is not wanted any more.
struct Told(Records, usize);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.lock().expect("no panic")[self.1].is_over = true;
    }
}

fn answer(request: Request<Incoming>, records: Records) -> Answered {
    use futures::StreamExt;
    let index = {
        let mut records = records.lock().expect("no panic");
        records.push(Record { headers: request.headers().clone(), ..Record::default() });
        records.len() - 1
    };
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let (told, is_deaf) = (records.clone(), path == "/deaf");
    tokio::spawn(async move {
        if is_deaf {
            // It holds what it does not read.
            std::future::pending::<()>().await;
        }
        while let Some(frame) = body.frame().await {
            let mut records = records.lock().expect("no panic");
            match frame {
                Ok(frame) => {
                    records[index].trailers = frame.into_trailers().ok().or(records[index].trailers.take())
                }
                Err(error) => {
                    let source =
                        std::error::Error::source(&error).and_then(|s| s.downcast_ref::<h2::Error>());
                    records[index].error = source.and_then(h2::Error::reason);
                    break;
                }
            }
        }
        records.lock().expect("no panic")[index].is_over = true;
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("5"));
    let frames = match path.as_str() {
        "/reset-at-once" => vec![Err(h2::Error::from(h2::Reason::INTERNAL_ERROR))],
        "/reset" | "/cancel" | "/no-error" => vec![
            Ok(Frame::data(Bytes::from_static(b"half"))),
            Err(h2::Error::from(match path.as_str() {
                "/reset" => h2::Reason::ENHANCE_YOUR_CALM,
                "/cancel" => h2::Reason::CANCEL,
                _ => h2::Reason::NO_ERROR,
            })),
        ],
        _ => vec![Ok(Frame::data(Bytes::from_static(b"whole"))), Ok(Frame::trailers(trailers))],
    };
    // What a caller takes back has to be noticed while it is still being answered.
    let rest: futures::stream::BoxStream<'static, _> = match path.as_str() {
        "/endless" => futures::stream::pending().boxed(),
        "/early" | "/early-204" => {
            let first = frames.into_iter().take(usize::from(path == "/early"));
            let later = futures::stream::once(tokio::time::sleep(Duration::from_millis(100)));
            futures::stream::iter(first).chain(later.filter_map(|()| async { None })).boxed()
        }
        "/deaf" => {
            let told = Told(told, index);
            futures::stream::poll_fn(move |_| {
                let _ = &told;
                std::task::Poll::Pending
            })
            .boxed()
        }
        // What was sent before the reset must have left by then.
        "/reset" | "/cancel" | "/no-error" => futures::stream::iter(frames)
            .enumerate()
            .then(|(number, frame)| async move {
                tokio::time::sleep(Duration::from_millis(200 * number as u64)).await;
                frame
            })
            .boxed(),
        _ => futures::stream::iter(frames).boxed(),
    };
    let mut response = Response::new(StreamBody::new(rest));
    match path.as_str() {
        "/early" => drop(response.headers_mut().insert("content-length", HeaderValue::from_static("5"))),
        "/early-204" => *response.status_mut() = StatusCode::NO_CONTENT,
        _ => {}
    }
    response
}

type Sent = http_body_util::combinators::BoxBody<Bytes, h2::Error>;

async fn connect(at: SocketAddr) -> SendRequest<Sent> {
    let stream = tokio::net::TcpStream::connect(at).await.expect("the proxy listens");
    let io = TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    sender
}

fn body(frames: Vec<Result<Frame<Bytes>, h2::Error>>) -> Sent {
    StreamBody::new(futures::stream::iter(frames)).boxed()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("in time") })
}

/// As gRPC needs them.
#[test]
fn trailers_and_deadlines_of_http2_pass_both_ways() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    block_on(async {
        let mut sender = connect(at(&client)).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let request = Request::post(format!("http://{HOST}/pkg.Cart/Get"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "1500m")
            .header("te", "trailers")
            .body(body(vec![Ok(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))]));
        let response = sender.send_request(request.expect("a request")).await.expect("an answer");
        let answer = response.into_body().collect().await.expect("a body");
        assert_eq!(answer.trailers().expect("trailers")["grpc-status"], "5");
        assert_eq!(answer.to_bytes(), "whole");
    });
    wait(&records, |all| {
        let record = all.first().filter(|record| record.is_over)?;
        assert_eq!(record.trailers.as_ref().expect("trailers")["x-sum"], "7");
        assert_eq!(record.headers["grpc-timeout"], "1500m");
        assert_eq!(record.headers["te"], "trailers");
        Some(())
    });
}

#[test]
fn a_reset_reaches_the_other_end_with_its_reason() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    block_on(async {
        let mut sender = connect(at(&client)).await;
        let request = Request::get(format!("http://{HOST}/reset")).body(body(Vec::new())).expect("a request");
        let response = sender.send_request(request).await.expect("an answer begins");
        let error = response.into_body().collect().await.expect_err("it is reset");
        let source = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<h2::Error>());
        assert_eq!(source.and_then(h2::Error::reason), Some(h2::Reason::ENHANCE_YOUR_CALM));
    });
    // Before it has answered there is an answer of the proxy's own.
    block_on(async {
        let mut sender = connect(at(&client)).await;
        let request = Request::post(format!("http://{HOST}/reset-at-once")).body(body(Vec::new()));
        let response = sender.send_request(request.expect("a request")).await.expect("an answer");
        assert_eq!(response.status(), 503);
        let text = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(text.ends_with(b"reset reason: remote reset"), "{text:?}");
    });
    let mut caller = Client::connect(at(&client), &[]);
    let fields = |path| {
        frames::block(&[(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", path)])
    };
    // Half of an answer is never passed off as a whole one.
    caller.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields("/cancel")));
    let reset = caller.until(|frame| frame.kind == RST_STREAM && frame.stream == 1).expect("it breaks off");
    assert_eq!(reset.payload, 8_u32.to_be_bytes());
    let mut single = dial(at(&client));
    write!(single, "POST /no-error HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0\r\n\r\n").expect("open");
    let answer = read_until(&mut single, "0\r\n\r\n");
    assert!(answer.contains("half") && !answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    // The other way: the caller gives up in the middle of its body, and says why, whether it is being answered or not.
    for path in ["/endless", "/silent"] {
        let mut caller = Client::connect(at(&client), &[]);
        let before = records.lock().expect("no panic").len();
        caller.send(&frames::frame(HEADERS, END_HEADERS, 1, &fields(path)));
        caller.send(&frames::frame(DATA, 0, 1, b"x"));
        wait(&records, |all| all.get(before).map(|_| ()));
        caller.send(&frames::frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
        let reason = wait(&records, |all| all.get(before).filter(|record| record.is_over).map(|r| r.error));
        assert_eq!(reason, Some(h2::Reason::CANCEL), "{path}");
    }
    let fields = fields("/endless");
    let mut caller = Client::connect(at(&client), &[]);
    let before = records.lock().expect("no panic").len();
    caller.send(&frames::frame(HEADERS, END_HEADERS, 1, &fields));
    caller.send(&frames::frame(DATA, 0, 1, b"x"));
    assert!(caller.until(|frame| frame.kind == HEADERS && frame.stream == 1).is_some());
    caller.send(&frames::frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    let reason =
        wait(&records, |all| all.get(before).filter(|record| record.is_over).map(|record| record.error));
    assert_eq!(reason, Some(h2::Reason::CANCEL));
    // The connection lives.
    caller.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, 3, &fields));
    assert!(caller.until(|frame| frame.kind == HEADERS && frame.stream == 3).is_some());
}

/// The application has begun to answer and reads nothing: what a caller sends waits for it, and no longer than the caller.
#[test]
fn a_caller_that_leaves_while_its_body_waits_is_gone_for_the_application_too() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    block_on(async {
        let stream = tokio::net::TcpStream::connect(at(&client)).await.expect("the proxy listens");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2 is spoken");
        tokio::spawn(connection);
        let request = Request::post(format!("http://{HOST}/deaf")).body(()).expect("a request");
        let (answer, mut send) = sender.send_request(request, false).expect("sent");
        let answer = answer.await.expect("an answer");
        loop {
            send.reserve_capacity(1 << 14);
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx));
            // Nothing moves any more.
            let Ok(room) = tokio::time::timeout(Duration::from_secs(1), room).await else { break };
            let room = room.expect("the stream lives").expect("the connection lives");
            send.send_data(vec![0; room].into(), false).expect("sent");
        }
        assert!(!records.lock().expect("no panic")[0].is_over);
        send.send_reset(h2::Reason::CANCEL);
        drop(answer);
        let deadline = Instant::now() + PATIENCE / 2;
        while !records.lock().expect("no panic")[0].is_over {
            assert!(Instant::now() < deadline, "the application does not hear of it");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// An answer may be whole a while before its stream ends; the rest of the request goes on.
#[test]
fn a_whole_answer_whose_stream_ends_later_does_not_end_the_request() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    for (number, (path, end)) in [("/early", "whole"), ("/early-204", "\r\n\r\n")].into_iter().enumerate() {
        let mut caller = dial(at(&client));
        write!(caller, "POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 10\r\n\r\nbegin")
            .expect("open");
        let answer = read_until(&mut caller, end);
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        thread::sleep(Duration::from_millis(300));
        caller.write_all(b"ended").expect("open");
        let error = wait(&records, |all| all.get(number).filter(|record| record.is_over).map(|r| r.error));
        assert_eq!(error, None, "{path}");
    }
}

/// What does not fit into one connection goes over another, and does not wait inside the first for an end that may not come.
#[test]
fn an_application_that_takes_few_streams_gets_more_connections() {
    let lab = Lab::new();
    let (backend, records) = http2_backend_of(2);
    let (_server, client) = pair(&lab, backend, "HTTP2");
    let fields = |path| {
        frames::block(&[(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", path)])
    };
    let mut caller = Client::connect(at(&client), &[]);
    caller.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields("/first")));
    assert!(caller.until(|frame| frame.kind == HEADERS && frame.stream == 1).is_some());
    // One after the other: how many a new connection takes, it says after the first.
    for (before, stream) in [3, 5, 7, 9, 11].into_iter().enumerate() {
        caller.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields("/silent")));
        wait(&records, |all| (all.len() == before + 2).then_some(()));
    }
}

/// Fields that frame messages are none of HTTP/2's: nobody waits for the rest of such a request.
#[test]
fn trailers_that_http2_cannot_say_end_their_request() {
    let lab = Lab::new();
    let (backend, _records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    let head =
        format!("POST /silent HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut stream = dial(at(&client));
    write!(stream, "{head}0\r\nconnection: close\r\n\r\n").expect("open");
    let answer = read_until(&mut stream, "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

/// HTTP/2 has no upgrades of HTTP/1.1's kind, so that whoever asks for one is answered without.
#[test]
fn an_upgrade_is_not_asked_of_an_application_of_http2() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    let request = format!(
        "GET /x HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n"
    );
    let mut stream = dial(at(&client));
    stream.write_all(request.as_bytes()).expect("open");
    let answer = read_until(&mut stream, "whole");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    wait(&records, |all| all.first().map(|record| assert!(!record.headers.contains_key("upgrade"))));
}

/// An application's HTTP/2 connection that says farewell: what it has taken is answered, and the next goes elsewhere.
#[test]
fn a_goaway_of_the_application_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let backend = listener.local_addr().expect("bound");
    let connections = Arc::new(Mutex::new(0));
    let count = connections.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            *count.lock().expect("no panic") += 1;
            thread::spawn(move || {
                let mut preface = [0; 24];
                let _ = stream.read_exact(&mut preface);
                let _ = stream.write_all(&frames::frame(frames::SETTINGS, 0, 0, &[]));
                let mut client = Client { stream };
                // RFC 9113 section 6.8: first a warning that concerns no stream, since more may be on their way.
                let warning = [(u32::MAX >> 1).to_be_bytes(), 0_u32.to_be_bytes()].concat();
                let mut is_warned = false;
                while let Some(request) = client.until(|frame| frame.kind == HEADERS) {
                    if !std::mem::replace(&mut is_warned, true) {
                        client.send(&frames::frame(GOAWAY, 0, 0, &warning));
                        thread::sleep(Duration::from_millis(50));
                    }
                    let head = frames::block(&[(":status", "200")]);
                    client.send(&frames::frame(HEADERS, END_HEADERS | END_STREAM, request.stream, &head));
                }
            });
        }
    });
    let lab = Lab::new();
    let (_server, client) = pair(&lab, backend, "HTTP2");
    block_on(async {
        let sender = connect(at(&client)).await;
        for _ in 0..3 {
            let calls = (0..20).map(|_| {
                let mut sender = sender.clone();
                async move {
                    let request = Request::get(format!("http://{HOST}/")).body(body(Vec::new()));
                    sender.send_request(request.expect("a request")).await.expect("an answer").status()
                }
            });
            let answers = futures::future::join_all(calls).await;
            assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
        }
    });
    assert!(*connections.lock().expect("no panic") >= 3);
}

/// A proxy's own refusals look like what the caller speaks.
#[test]
fn grpc_callers_are_told_of_failures_in_their_own_words() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let lab = Lab::new();
    let (_server, client) = pair(&lab, nobody, "HTTP2");
    block_on(async {
        let mut sender = connect(at(&client)).await;
        let request = Request::post(format!("http://{HOST}/pkg.Cart/Get"))
            .header("content-type", "application/grpc+proto")
            .body(body(Vec::new()))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &HeaderValue::from(14))
        );
        let message = response.headers()["grpc-message"].to_str().expect("text");
        assert!(message.contains("remote connection failure"), "{message}");
    });
}

/// The application answers before it has read the request, and does not want the rest.
#[test]
fn an_early_answer_reaches_a_caller_that_is_still_sending() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let backend = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        read_until(&mut stream, "begin");
        let answer = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nno!";
        stream.write_all(answer.as_bytes()).expect("open");
        stream.shutdown(Shutdown::Write).expect("open");
        // Closing with something unread would take the answer back.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let lab = Lab::new();
    let (_server, client) = pair(&lab, backend, "HTTP");
    let mut stream = dial(at(&client));
    write!(stream, "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 100000000\r\n\r\nbegin")
        .expect("open");
    let got = read_until(&mut stream, "no!");
    assert!(got.starts_with("HTTP/1.1 413") && got.ends_with("no!"), "{got}");
    assert!(is_closed_soon(&mut stream), "the rest is still wanted");
}

/// RFC 8441. `is_allowed` says what is to become of it.
fn websocket_over_http2(proxy: &StaticProxy, path: &str) -> (Client, Vec<u8>) {
    let mut caller = Client::connect(at(proxy), &[]);
    // It may be asked for once the other side has said so: SETTINGS_ENABLE_CONNECT_PROTOCOL.
    let settings = caller.until(|frame| frame.kind == frames::SETTINGS && !frame.payload.is_empty());
    let payload = settings.expect("settings").payload;
    assert!(payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "{payload:?}");
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", path),
        ("sec-websocket-version", "13"),
    ];
    caller.send(&frames::frame(HEADERS, END_HEADERS, 1, &frames::block(&fields)));
    let head = caller.until(|frame| frame.kind == HEADERS && frame.stream == 1).expect("an answer");
    (caller, head.payload)
}

#[test]
fn a_websocket_may_come_over_http2_and_is_judged_by_its_path() {
    /// Entry 8 of HPACK's static table (RFC 7541 appendix A).
    const STATUS_200: u8 = 0x88;
    let lab = Lab::new();
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [GET], paths: [/secret]}}]}]}";
    let server = lab.server(&Server {
        backend: http_backend(),
        mode: "PERMISSIVE",
        policy: Some(deny),
        ..Default::default()
    });
    for proxy in [&server, &lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL")] {
        let (mut caller, head) = websocket_over_http2(proxy, "/ws");
        assert_eq!(head.first(), Some(&STATUS_200));
        for word in ["one", "two"] {
            caller.send(&frames::frame(DATA, 0, 1, word.as_bytes()));
            let echo = caller.until(|frame| frame.kind == DATA).expect("an echo");
            assert_eq!(echo.payload, word.as_bytes());
        }
        caller.send(&frames::frame(DATA, END_STREAM, 1, &[]));
        assert!(
            caller.until(|frame| frame.stream == 1 && frame.kind != HEADERS).is_some(),
            "it does not end"
        );
        let (_caller, head) = websocket_over_http2(proxy, "/secret");
        assert_ne!(head.first(), Some(&STATUS_200));
    }
}

/// What HTTP/1.1 says of lengths and trailers, HTTP/2 says otherwise.
#[test]
fn versions_are_changed_between_without_loss() {
    let lab = Lab::new();
    let (backend, records) = http2_backend();
    // The caller speaks HTTP/1.1, and the port is declared HTTP/2.
    let (_server, client) = pair(&lab, backend, "HTTP2");
    let post = format!(
        "POST /x HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\ncookie: a=1; b=2\r\n\
         connection: close\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n"
    );
    let answer = exchange(at(&client), post.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\n5\r\nwhole\r\n0\r\n"), "{answer:?}");
    wait(&records, |all| {
        let record = all.first().filter(|record| record.is_over)?;
        assert_eq!(record.trailers.as_ref().expect("trailers")["x-sum"], "7");
        assert!(
            !record.headers.contains_key("transfer-encoding") && !record.headers.contains_key("connection")
        );
        assert_eq!(record.headers["cookie"], "a=1; b=2");
        Some(())
    });
}

/// Reference mtls 8.3, XF-1 to XF-4, as the application sees it.
#[test]
fn the_application_is_told_of_the_client_by_proxies_only() {
    let lab = Lab::new();
    let (backend, heard) = application("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let server = lab.server(&Server { backend, mode: "PERMISSIVE", policy: None, ..Default::default() });
    let client = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let forged = format!(
        "GET / HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-client-cert: URI=spiffe://cluster.local/ns/a/sa/admin\r\n\
         X-Forwarded-Client-Cert: Hash=00\r\nconnection: close\r\n\r\n"
    );
    let xfcc = |from: SocketAddr| {
        assert!(exchange(from, forged.as_bytes()).starts_with("HTTP/1.1 200"));
        let request = heard.take().remove(0).expect("readable");
        assert!(request.fields.iter().filter(|(name, _)| name == "x-forwarded-client-cert").count() < 2);
        request.field("x-forwarded-client-cert").map(str::to_owned)
    };
    // XF-1, XF-3: the caller's own proxy has removed what it said of itself.
    let element = xfcc(at(&client)).expect("an element");
    let rest = element.strip_prefix("By=spiffe://cluster.local/ns/shop/sa/cart;Hash=").expect("by whom");
    let (hash, rest) = rest.split_once(';').expect("a hash");
    assert!(
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
        "{hash}"
    );
    assert_eq!(rest, "Subject=\"\";URI=spiffe://cluster.local/ns/shop/sa/web");
    // XF-2.
    assert_eq!(xfcc(at(&server)), None);
    // XF-4: what a proxy said before comes first. Mutual TLS without a proxy of ours on the caller's side.
    let credential = maille_testkit::Credential::from(&lab.authority.svid("shop", "gateway"));
    let alpn: [&[u8]; 3] = [b"istio-http/1.1", b"istio", b"http/1.1"];
    let config = maille_testkit::identity::rogue_client(Some(&credential), &alpn);
    let name = rustls::pki_types::ServerName::try_from("cart.shop").expect("a name");
    let mut session = rustls::ClientConnection::new(config, name).expect("TLS");
    let mut socket = dial(at(&server));
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    stream.write_all(forged.as_bytes()).expect("TLS");
    let _ = stream.read_to_end(&mut Vec::new());
    let request = heard.take().remove(0).expect("readable");
    let elements: Vec<&str> =
        request.field("x-forwarded-client-cert").expect("elements").split(',').collect();
    assert_eq!(elements[..2], ["URI=spiffe://cluster.local/ns/a/sa/admin", "Hash=00"]);
    assert!(elements[2].ends_with("URI=spiffe://cluster.local/ns/shop/sa/gateway") && elements.len() == 3);
}

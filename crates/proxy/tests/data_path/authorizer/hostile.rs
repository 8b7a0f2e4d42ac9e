//! Providers and callers that do what they should not.

use std::convert::Infallible;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Provider, parts, raw_http};
use crate::lab::{HOST, Lab, PATIENCE, at, dial, get, is_closed_soon, read_until};

pub(super) type Frames = Vec<Frame<Bytes>>;

/// An HTTP/2 server that answers checks with whatever `answer` makes; `None`: never.
pub(super) fn http2(
    answer: impl Fn() -> Option<Response<Frames>> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let answer = Arc::new(answer);
    let under_way = Arc::new(AtomicUsize::new(0));
    let counted = under_way.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, counted) = (answer.clone(), counted.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |_: Request<Incoming>| {
                        let (answer, under_way) = (answer(), UnderWay::new(&counted));
                        async move {
                            let Some(answer) = answer else {
                                std::future::pending::<()>().await;
                                unreachable!("it waits for ever")
                            };
                            drop(under_way);
                            let frames = |frames: Frames| {
                                StreamBody::new(futures::stream::iter(
                                    frames.into_iter().map(Ok::<_, Infallible>),
                                ))
                            };
                            Ok::<_, Infallible>(answer.map(frames))
                        }
                    });
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .max_concurrent_streams(10_000)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    (address, under_way)
}

struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn grpc(frames: Frames) -> Response<Frames> {
    Response::builder().header("content-type", "application/grpc").body(frames).expect("a response")
}

fn status(code: &'static str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    Frame::trailers(trailers)
}

fn data(bytes: &'static [u8]) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes))
}

/// An empty CheckResponse, which allows.
const YES: &[u8] = &[0, 0, 0, 0, 0];

/// A name, whether it allows, and the answer.
type Case = (&'static str, bool, fn() -> Response<Frames>);

#[test]
fn what_is_no_good_grpc_is_a_failure_and_never_a_yes() {
    let lab = Lab::new();
    let cases: [Case; 14] = [
        ("a good one", true, || grpc(vec![data(YES), status("0")])),
        ("in pieces", true, || grpc(vec![data(&YES[..2]), data(&YES[2..]), status("0")])),
        ("no status", false, || grpc(vec![data(YES)])),
        ("a failed status", false, || grpc(vec![data(YES), status("2")])),
        ("no message", false, || grpc(vec![status("0")])),
        ("two messages", false, || grpc(vec![data(YES), data(YES), status("0")])),
        ("compressed", false, || grpc(vec![data(&[1, 0, 0, 0, 0]), status("0")])),
        ("cut", false, || grpc(vec![data(&[0, 0, 0, 0, 9, 10]), status("0")])),
        ("no protobuf", false, || grpc(vec![data(&[0, 0, 0, 0, 2, 0xff, 0xff]), status("0")])),
        ("an absurd length", false, || grpc(vec![data(&[0, 255, 255, 255, 255]), status("0")])),
        ("trailers only", false, || {
            let mut response = grpc(Vec::new());
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
            response
        }),
        ("HTML", false, || {
            let mut response = grpc(vec![data(YES), status("0")]);
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
            response
        }),
        ("another HTTP status", false, || {
            let mut response = grpc(vec![data(YES), status("0")]);
            *response.status_mut() = http::StatusCode::CREATED;
            response
        }),
        ("too long", false, || {
            let long: Vec<u8> = [0, 0, 80, 0, 0].into_iter().chain(std::iter::repeat_n(0, 5 << 20)).collect();
            grpc(vec![Frame::data(long.into()), status("0")])
        }),
    ];
    for (name, is_allowed, answer) in cases {
        let (provider, _) = http2(move || Some(answer()));
        let server = Provider::new(provider, "timeoutMs: 20000, statusOnError: 503, grpc: {}").server(&lab);
        let expected = if is_allowed { "HTTP/1.1 200" } else { "HTTP/1.1 503" };
        let answer = get(at(&server), "/asked");
        assert!(answer.starts_with(expected), "{name}: {answer}");
    }
}

fn waits_for(under_way: &AtomicUsize, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while under_way.load(Ordering::SeqCst) != count && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(under_way.load(Ordering::SeqCst), count);
}

#[test]
fn a_caller_that_leaves_ends_its_check() {
    let lab = Lab::new();
    let (provider, under_way) = http2(|| None);
    let server = Provider::new(provider, "grpc: {}").server(&lab);
    let mut caller = dial(at(&server));
    write!(caller, "GET /asked HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
    waits_for(&under_way, 1);
    drop(caller);
    waits_for(&under_way, 0);
}

#[test]
fn a_provider_that_hangs_does_not_hold_up_who_need_not_ask() {
    let lab = Lab::new();
    let (provider, under_way) = http2(|| None);
    let server = Provider::new(provider, "grpc: {}").server(&lab);
    // More than one connection to the provider carries.
    let callers: Vec<_> = (0..120)
        .map(|_| {
            let mut caller = dial(at(&server));
            write!(caller, "GET /asked HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
            caller
        })
        .collect();
    waits_for(&under_way, callers.len());
    assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"));
    drop(callers);
    waits_for(&under_way, 0);
}

#[test]
fn nothing_of_a_denial_breaks_the_framing_of_the_connection_to_the_caller() {
    let lab = Lab::new();
    let provider = raw_http(|_| {
        b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\nconnection: upgrade\r\nupgrade: evil\r\ntrailer: x\r\n\r\n\
          3\r\nabc\r\n0\r\nx-trailer: 1\r\n\r\n"
            .to_vec()
    });
    let server = Provider::new(provider, "http: {}").server(&lab);
    let mut caller = dial(at(&server));
    for _ in 0..2 {
        write!(caller, "GET /asked HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
        let (status, headers, body) = parts(&read_until(&mut caller, "abc"));
        assert_eq!((status.as_str(), body.as_str()), ("http/1.1 403 forbidden", "abc"));
        assert!(headers.contains(&"content-length: 3".to_owned()), "{headers:?}");
        for name in ["transfer-encoding", "upgrade", "trailer", "connection", "x-trailer"] {
            assert!(!headers.iter().any(|line| line.starts_with(name)), "{headers:?}");
        }
    }
}

#[test]
fn a_denial_without_end_is_cut_and_stays_a_denial() {
    let lab = Lab::new();
    let provider = raw_http(|_| {
        let mut answer = b"HTTP/1.1 401 No\r\ncontent-length: 9999999\r\n\r\n".to_vec();
        answer.resize(answer.len() + (2 << 20), b'x');
        answer
    });
    let server = Provider::new(provider, "failOpen: true, http: {}").server(&lab);
    let (status, _, body) = parts(&get(at(&server), "/asked"));
    assert_eq!((status.as_str(), body.len()), ("http/1.1 401 unauthorized", 1 << 20));
}

#[test]
fn a_caller_that_breaks_off_while_its_body_is_read_is_asked_about_nowhere() {
    let lab = Lab::new();
    let provider = raw_http(|_| panic!("it was asked"));
    let server = Provider::new(provider, "body: {maxRequestBytes: 100, allowPartialMessage: true}, http: {}")
        .server(&lab);
    let mut caller = dial(at(&server));
    write!(caller, "POST /asked HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        .expect("open");
    assert!(is_closed_soon(&mut caller));
    assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"));
}

//! Streams that are open are judged again: by rules about tokens, by the clock, and by external authorizers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proto::authorization::authorization_server::{Authorization, AuthorizationServer};
use maille_proto::authorization::{CheckRequest, CheckResponse};
use maille_proxy::StaticProxy;
use serde_json::json;

use crate::issuer::{ALLOW_TOKENS, Issuer};
use crate::lab::{
    HOST, Lab, PATIENCE, Server, at, dial, http_backend, is_closed_soon, line_backend, read_until,
};
use crate::log::Log;

/// An upgraded stream, opened with a token.
fn upgrade(proxy: &StaticProxy, line: &str) -> TcpStream {
    let mut stream = dial(at(proxy));
    let head =
        format!("GET /ws HTTP/1.1\r\nhost: {HOST}\r\n{line}connection: upgrade\r\nupgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("open");
    let answer = read_until(&mut stream, "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream
}

fn is_alive(stream: &mut TcpStream) -> bool {
    stream.write_all(b"ping\n").is_ok() && read_until(stream, "\n") == "ping\n"
}

#[test]
fn a_stream_that_a_token_opened_is_cut_when_its_keys_are_gone_and_not_before() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let log = Log::at(&lab);
    let first = log.yaml() + &issuer.facts("");
    let mut facts =
        Server { backend: http_backend(), policy: Some(ALLOW_TOKENS), extra: &first, ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let mut stream =
        upgrade(&web, &format!("authorization: Bearer {}\r\n", issuer.token("ann", 600, json!({}))));
    // Other rules for the same keys leave it alone.
    let same = log.yaml() + &issuer.facts("forwardOriginalToken: true");
    facts.extra = &same;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_alive(&mut stream));
    let other = log.yaml() + &Issuer::new().facts("");
    facts.extra = &other;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the stream outlives its token's key");
    let text = log.until(PATIENCE, |text| text.contains("invalid_token"));
    assert!(text.contains("GET /ws") && text.contains("Jwt verification fails"), "{text}");
}

#[test]
fn rules_about_tokens_that_come_later_hold_for_open_streams() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let mut facts = Server { backend: http_backend(), policy: None, ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let unknown = Issuer::new().token("ann", 600, json!({}));
    let mut bad = upgrade(&web, &format!("authorization: Bearer {unknown}\r\n"));
    let mut none = upgrade(&web, "");
    let rules = issuer.facts("");
    facts.extra = &rules;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut bad), "a stream with a bad token goes on");
    assert!(is_alive(&mut none), "a stream without a token was cut");
}

#[test]
fn a_stream_that_a_token_opened_is_cut_when_the_token_has_expired() {
    let (lab, issuer) = (Lab::new(), Issuer::new());
    let extra = issuer.facts("");
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: Some(ALLOW_TOKENS),
        extra: &extra,
        ..Default::default()
    });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    // Three seconds are left of the minute that clocks are allowed to differ.
    let token = issuer.token("ann", -57, json!({}));
    let mut stream = upgrade(&web, &format!("authorization: Bearer {token}\r\n"));
    let mut lasting =
        upgrade(&web, &format!("authorization: Bearer {}\r\n", issuer.token("ann", 600, json!({}))));
    assert!(is_closed_soon(&mut stream), "the stream outlives its token");
    assert!(server.metrics().contains("reason=\"invalid_token\""), "{}", server.metrics());
    assert!(is_alive(&mut lasting), "another stream was cut with it");
}

/// Design, rule 5: what is under way may finish.
#[test]
fn http2_is_told_to_go_away_and_streams_under_way_finish() {
    let lab = Lab::new();
    let mut facts = Server {
        backend: http_backend(),
        protocol: "HTTP2",
        mode: "PERMISSIVE",
        policy: None,
        ..Default::default()
    };
    let server = lab.server(&facts);
    let address = at(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the proxy listens");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2 is spoken");
        tokio::spawn(connection);
        let (mut body, frames) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(4);
        let request = Request::post(format!("http://{HOST}/echo")).body(StreamBody::new(frames));
        let under_way = tokio::spawn(sender.send_request(request.expect("a request")));
        let chunk = |text: &'static [u8]| Ok(Frame::data(Bytes::from_static(text)));
        body.try_send(chunk(b"first ")).expect("room");
        // Policy has looked at it once another request has been answered on the same connection.
        let (_, none) = futures::channel::mpsc::channel(1);
        let other = Request::get(format!("http://{HOST}/x")).body(StreamBody::new(none)).expect("a request");
        assert_eq!(sender.send_request(other).await.expect("an answer").status(), 200);

        facts.policy = Some("{action: DENY, rules: [{}]}");
        lab.server_file(&facts);
        server.reload().expect("good facts");
        // Refused one by one until the client has been told; then it may not even ask.
        let gone = tokio::time::timeout(PATIENCE, async {
            loop {
                let (_, none) = futures::channel::mpsc::channel(1);
                let more =
                    Request::get(format!("http://{HOST}/x")).body(StreamBody::new(none)).expect("a request");
                match sender.send_request(more).await {
                    Ok(answer) => assert_eq!(answer.status(), 403),
                    Err(_) => return,
                }
            }
        });
        gone.await.expect("the connection still takes requests");
        body.try_send(chunk(b"last")).expect("the stream goes on");
        drop(body);
        let answer = under_way.await.expect("no panic").expect("the stream under way is answered");
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(body.ends_with(b"first last"), "{body:?}");
    });
}

/// An external authorizer that says what `allows` says, and how often it was asked.
#[derive(Clone, Default)]
struct Opinion {
    allows: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Opinion {
    fn say(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.allows.load(Ordering::SeqCst)
    }

    fn was_asked(&self, times: usize) -> bool {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.asked.load(Ordering::SeqCst) < times {
            if std::time::Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

#[tonic::async_trait]
impl Authorization for Opinion {
    async fn check(
        &self,
        _: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let code = if self.say() { 0 } else { 7 };
        let mut answer = CheckResponse::default();
        answer.status.get_or_insert_default().code = code;
        Ok(tonic::Response::new(answer))
    }
}

fn over_grpc(opinion: &Opinion) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let service = AuthorizationServer::new(opinion.clone());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let incoming = futures::stream::unfold(listener, |listener| async move {
                Some((listener.accept().await.map(|(stream, _)| stream), listener))
            });
            let served = tonic::transport::Server::builder().add_service(service);
            let _ = served.serve_with_incoming(incoming).await;
        });
    });
    address
}

fn over_http(opinion: &Opinion) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let opinion = opinion.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let opinion = opinion.clone();
            thread::spawn(move || {
                while !read_until(&mut stream, "\r\n\r\n").is_empty() {
                    let status = if opinion.say() { "200 OK" } else { "403 Forbidden" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A provider called `judge` at `address`, and what the registry says of it.
fn provider(address: SocketAddr, kind: &str, more: &str) -> String {
    format!(
        "settings: {{extensionProviders: [{{name: judge, host: judge.shop.svc.cluster.local, port: 9000, {kind}: {{}}{more}}}]}}\n\
         destinations:\n  judge.shop.svc.cluster.local:\n    service:\n      namespace: shop\n      name: judge\n      \
         hostname: judge.shop.svc.cluster.local\n      addresses: [10.96.0.10]\n      \
         ports: [{{number: 9000, protocol: HTTP2}}]\n      endpoints:\n      - address: {}\n        \
         ports: [{{servicePort: 9000, targetPort: {}, tls: PLAINTEXT}}]\n",
        address.ip(),
        address.port()
    )
}

const ASK: &str = "{action: CUSTOM, provider: {name: judge}, rules: [{}]}";

#[test]
fn a_new_custom_rule_is_asked_about_open_connections_of_opaque_bytes() {
    let lab = Lab::new();
    let opinion = Opinion::default();
    opinion.allows.store(true, Ordering::SeqCst);
    let judge = provider(over_grpc(&opinion), "grpc", "");
    let mut facts = Server {
        backend: line_backend(),
        protocol: "TCP",
        policy: None,
        extra: &judge,
        ..Default::default()
    };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    assert!(is_alive(&mut stream));
    assert_eq!(opinion.asked.load(Ordering::SeqCst), 0, "nobody wanted anybody asked");

    facts.policy = Some(ASK);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(opinion.was_asked(1), "nobody was asked");
    assert!(is_alive(&mut stream), "the authorizer allows it");
    // The same rule again is no reason to ask.
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_alive(&mut stream));
    assert_eq!(opinion.asked.load(Ordering::SeqCst), 1);

    opinion.allows.store(false, Ordering::SeqCst);
    let changed = judge.replace("grpc: {}", "grpc: {}, timeoutMs: 5000");
    facts.extra = &changed;
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the refused connection is still open");
    assert!(server.metrics().contains("reason=\"authorizer_denied\""), "{}", server.metrics());
    // A new connection is asked about before anything flows.
    let mut fresh = dial(at(&web));
    let _ = fresh.write_all(b"ping\n");
    assert!(is_closed_soon(&mut fresh), "a new connection was let through");
}

#[test]
fn a_new_custom_rule_is_asked_about_open_upgraded_streams() {
    let lab = Lab::new();
    let opinion = Opinion::default();
    let judge = provider(over_http(&opinion), "http", "").replace("HTTP2", "HTTP");
    let mut facts = Server { backend: http_backend(), policy: None, extra: &judge, ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let mut stream = upgrade(&web, "");
    assert!(is_alive(&mut stream));
    facts.policy =
        Some("{action: CUSTOM, provider: {name: judge}, rules: [{to: [{operation: {paths: [/else]}}]}]}");
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_alive(&mut stream), "a rule for something else");
    facts.policy = Some(ASK);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the refused stream is still open");
    assert!(server.metrics().contains("reason=\"authorizer_denied\""), "{}", server.metrics());
}

#[test]
fn a_custom_rule_with_an_unusable_provider_cuts_what_it_matches() {
    let lab = Lab::new();
    let mut facts = Server { backend: line_backend(), protocol: "TCP", policy: None, ..Default::default() };
    let server = lab.server(&facts);
    let web = lab.client("web", at(&server), "TCP", "ISTIO_MUTUAL");
    let mut stream = dial(at(&web));
    assert!(is_alive(&mut stream));
    facts.policy = Some(ASK);
    lab.server_file(&facts);
    server.reload().expect("good facts");
    assert!(is_closed_soon(&mut stream), "the connection is still open");
    assert!(server.metrics().contains("reason=\"authorizer_unusable\""), "{}", server.metrics());
    let mut rest = Vec::new();
    let mut fresh = dial(at(&web));
    let _ = fresh.write_all(b"ping\n");
    let _ = fresh.read_to_end(&mut rest);
    assert!(rest.is_empty(), "a new connection was let through");
}

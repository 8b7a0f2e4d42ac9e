//! Bounds on connections and requests of a service (DestinationRule `connectionPool`, reference mtls 2.3).

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use maille_proxy::StaticProxy;

use crate::balance::{Named, ask, client, endpoint, endpoints, who};
use crate::lab::{
    HOST, Lab, PATIENCE, at, dial, exchange_half_closed, is_closed_soon, line_backend, read_until, run,
};
use crate::outside::refusal;

pub(crate) fn bounded(protocol: &str, pool: &str) -> String {
    format!("protocol: {protocol}, traffic: {{rule: shop/cart, connectionPool: {{{pool}}}}}")
}

/// An HTTP/1.1 application that answers when it is told to.
struct Slow {
    address: SocketAddr,
    arrived: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Slow {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (arrive, arrived) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let may_go = std::sync::Arc::new(std::sync::Mutex::new(may_go));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (arrive, may_go) = (arrive.clone(), may_go.clone());
                thread::spawn(move || {
                    let mut stream = stream;
                    while read_until(&mut stream, "\r\n\r\n").ends_with("\r\n\r\n") {
                        let _ = arrive.send(());
                        let _ = may_go.lock().expect("no panic").recv();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nname=slow ");
                    }
                });
            }
        });
        Self { address, arrived, go }
    }

    fn wait(&self) {
        self.arrived.recv_timeout(PATIENCE).expect("a request arrives");
    }

    fn nobody_comes(&self) -> bool {
        self.arrived.recv_timeout(Duration::from_millis(150)).is_err()
    }
}

/// A request that has been sent and whose answer is to be read later.
fn begin(proxy: &StaticProxy) -> TcpStream {
    let mut stream = dial(at(proxy));
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the proxy reads");
    stream
}

fn finish(stream: &mut TcpStream) -> String {
    read_until(stream, "name=slow ")
}

const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";

fn assert_overflow(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains(OVERFLOW) && answer.contains("x-envoy-overloaded: true"), "{answer}");
}

/// The example of Istio's own task on circuit breaking.
#[test]
fn one_connection_one_waits_and_the_third_overflows() {
    let (lab, slow) = (Lab::new(), Slow::new());
    let port = bounded("HTTP", "maxConnections: 1, http1MaxPendingRequests: 1");
    let proxy = client(&lab, &port, &[endpoint(slow.address, "")]);
    let mut first = begin(&proxy);
    slow.wait();
    let mut second = begin(&proxy);
    assert!(slow.nobody_comes(), "there is one connection only");
    assert_overflow(&ask(&proxy, "/", ""));
    let refused = refusal(&proxy);
    assert!(refused.reason.contains("http1MaxPendingRequests"), "{}", refused.reason);
    assert!(proxy.metrics().contains("response_flags=\"UO\""), "{}", proxy.metrics());
    slow.go.send(()).expect("it waits");
    assert_eq!(who(&finish(&mut first)), "slow");
    slow.wait();
    slow.go.send(()).expect("it waits");
    assert_eq!(who(&finish(&mut second)), "slow");
    // Free again.
    let mut third = begin(&proxy);
    slow.wait();
    slow.go.send(()).expect("it waits");
    assert_eq!(who(&finish(&mut third)), "slow");
}

#[test]
fn who_waits_gets_a_connection_when_another_is_lost() {
    let (lab, slow) = (Lab::new(), Slow::new());
    let proxy = client(&lab, &bounded("HTTP", "maxConnections: 1"), &[endpoint(slow.address, "")]);
    let first = begin(&proxy);
    slow.wait();
    let mut others: Vec<_> = (0..3).map(|_| begin(&proxy)).collect();
    assert!(slow.nobody_comes());
    drop(first);
    slow.wait();
    // One for the request that nobody waits for any more.
    for _ in 0..4 {
        slow.go.send(()).expect("it waits");
    }
    for other in &mut others {
        assert_eq!(who(&finish(other)), "slow");
    }
}

#[test]
fn requests_under_way_are_bounded_in_both_versions() {
    let (lab, slow) = (Lab::new(), Slow::new());
    let proxy = client(&lab, &bounded("HTTP", "http2MaxRequests: 2"), &[endpoint(slow.address, "")]);
    let mut two = [begin(&proxy), begin(&proxy)];
    slow.wait();
    slow.wait();
    assert_overflow(&ask(&proxy, "/", ""));
    for _ in &two {
        slow.go.send(()).expect("it waits");
    }
    for one in &mut two {
        assert_eq!(who(&finish(one)), "slow");
    }
    // A multiplexed service of which nothing is asked for long never overflows.
    let fast = Named::new("fast");
    let port = bounded("HTTP2", "maxConnections: 1, http2MaxRequests: 50, http1MaxPendingRequests: 50");
    let proxy = client(&lab, &port, &endpoints(&[&fast]));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(who(&ask(&proxy, "/", "")), "fast")));
        }
    });
    assert_eq!(fast.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_connection_ends_after_so_many_requests_and_at_its_age() {
    let lab = Lab::new();
    for (protocol, pool, expected) in [
        ("HTTP", "maxRequestsPerConnection: 1", 6),
        ("HTTP", "maxRequestsPerConnection: 3", 2),
        ("HTTP2", "maxRequestsPerConnection: 2", 3),
        ("HTTP", "maxConnectionDurationMs: 1", 6),
        ("HTTP2", "maxConnectionDurationMs: 1", 6),
        ("HTTP", "httpIdleTimeoutMs: 1", 6),
        ("HTTP", "tcpIdleTimeoutMs: 1", 6),
        ("HTTP", "tcpIdleTimeoutMs: 1, httpIdleTimeoutMs: 3600000", 1),
        ("HTTP", "maxConnections: 1", 1),
    ] {
        let named = Named::new("x");
        let proxy = client(&lab, &bounded(protocol, pool), &endpoints(&[&named]));
        for _ in 0..6 {
            assert_eq!(who(&ask(&proxy, "/", "")), "x");
            // Longer than a millisecond of age.
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(named.connections.load(Ordering::SeqCst), expected, "{protocol} {pool}");
    }
}

#[test]
fn opaque_connections_are_bounded() {
    let (lab, backend) = (Lab::new(), line_backend());
    let proxy = client(&lab, &bounded("TCP", "maxConnections: 1"), &[endpoint(backend, "")]);
    let mut first = dial(at(&proxy));
    first.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut first, "\n"), "one\n");
    assert_eq!(exchange_half_closed(at(&proxy), b"two\n"), "");
    let refused = refusal(&proxy);
    assert!(refused.reason.contains("maxConnections"), "{}", refused.reason);
    assert!(proxy.metrics().contains("response_flags=\"UO\""), "{}", proxy.metrics());
    drop(first);
    let deadline = Instant::now() + PATIENCE;
    while exchange_half_closed(at(&proxy), b"three\n") != "three\n" {
        assert!(Instant::now() < deadline, "the place was not given back");
    }
}

#[test]
fn opaque_connections_end_when_they_are_silent_or_old() {
    let (lab, backend) = (Lab::new(), line_backend());
    for pool in ["tcpIdleTimeoutMs: 300", "maxConnectionDurationMs: 300, tcpIdleTimeoutMs: 0"] {
        let proxy = client(&lab, &bounded("TCP", pool), &[endpoint(backend, "")]);
        let mut stream = dial(at(&proxy));
        stream.write_all(b"one\n").expect("open");
        assert_eq!(read_until(&mut stream, "\n"), "one\n");
        assert!(is_closed_soon(&mut stream), "{pool}");
    }
}

/// A port whose queue of connections is full: another one is neither taken nor refused.
fn full_queue() -> (TcpListener, Vec<socket2::Socket>) {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    listener.listen(0).expect("a listener");
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().expect("bound");
    let fill = |_| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        let _ = socket.connect(&address.into());
        socket
    };
    let filling = (0..4).map(fill).collect();
    (listener, filling)
}

#[test]
fn connecting_takes_no_longer_than_the_rule_says() {
    let lab = Lab::new();
    let (listener, _filling) = full_queue();
    let address = listener.local_addr().expect("bound");
    let proxy = client(&lab, &bounded("HTTP", "connectTimeoutMs: 200"), &[endpoint(address, "")]);
    // Of the default's ten seconds, reading would have given up.
    let answer = ask(&proxy, "/", "");
    assert!(answer.contains("connection timeout"), "{answer}");
    assert!(refusal(&proxy).reason.contains("200ms"));
}

#[test]
fn a_rule_decides_about_the_version() {
    let lab = Lab::new();
    for (protocol, pool, version) in [
        ("HTTP", "h2Upgrade: true", "HTTP/2.0"),
        ("HTTP", "h2Upgrade: false", "HTTP/1.1"),
        ("HTTP2", "h2Upgrade: false", "HTTP/2.0"),
        ("HTTP2", "useClientProtocol: true", "HTTP/1.1"),
        ("HTTP", "useClientProtocol: true, h2Upgrade: true", "HTTP/1.1"),
    ] {
        let named = Named::new("x");
        let proxy = client(&lab, &bounded(protocol, pool), &endpoints(&[&named]));
        let answer = ask(&proxy, "/", "");
        assert!(answer.contains(&format!("version={version}")), "{protocol} {pool}: {answer}");
    }
}

#[test]
fn probes_of_the_kernel_are_set() {
    let (lab, backend) = (Lab::new(), line_backend());
    let pool = "tcpKeepalive: {probes: 3, timeMs: 77000, intervalMs: 5000}";
    let proxy = client(&lab, &bounded("TCP", pool), &[endpoint(backend, "")]);
    let mut stream = dial(at(&proxy));
    stream.write_all(b"one\n").expect("open");
    assert_eq!(read_until(&mut stream, "\n"), "one\n");
    let shown = run("ss", &["-Htno", &format!("dport = :{}", backend.port())], "");
    assert!(shown.contains("timer:(keepalive,1min1"), "{shown}");
}

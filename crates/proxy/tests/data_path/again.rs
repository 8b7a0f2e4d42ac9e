//! What is repeated, and what is not: never a request that may have had an effect.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use crate::balance::{Named, ask, client, endpoint, endpoints, who};
use crate::bounds::bounded;
use crate::frames::{GOAWAY, HEADERS, SETTINGS, frame};
use crate::lab::{HOST, Lab, Server, at, dial, exchange, read_until};

/// An HTTP/2 application that refuses the first streams of all its connections together, without looking at them.
fn refusing(times: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let seen = Arc::<AtomicUsize>::default();
    let count = seen.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        if count.fetch_add(1, Ordering::SeqCst) < times {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                            continue;
                        }
                        let response = http::Response::new(());
                        let Ok(mut body) = respond.send_response(response, false) else { continue };
                        let _ = body.send_data(Bytes::from_static(b"name=served "), true);
                    }
                });
            }
        });
    });
    (address, seen)
}

#[test]
fn a_refused_stream_is_repeated_unless_it_might_have_an_effect() {
    let lab = Lab::new();
    let (address, seen) = refusing(2);
    let proxy = client(&lab, "protocol: HTTP2", &[endpoint(address, "")]);
    assert_eq!(who(&ask(&proxy, "/", "")), "served");
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    let (address, seen) = refusing(1);
    let proxy = client(&lab, "protocol: HTTP2", &[endpoint(address, "")]);
    let request =
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");
    let answer = exchange(at(&proxy), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 503"), "its body is gone: {answer}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    // It ends somewhere.
    let (address, seen) = refusing(usize::MAX);
    let proxy = client(&lab, "protocol: HTTP2", &[endpoint(address, "")]);
    assert!(ask(&proxy, "/", "").starts_with("HTTP/1.1 503"));
    assert!(seen.load(Ordering::SeqCst) <= 6, "{}", seen.load(Ordering::SeqCst));
}

/// An HTTP/2 application that goes away when its first request comes, and says that it has not seen it.
fn leaving() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let connections = Arc::<AtomicUsize>::default();
    let count = connections.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[]));
            let mut preface = [0; 24];
            let mut head = [0; 9];
            let mut is_asked = stream.read_exact(&mut preface).is_err();
            while !is_asked && stream.read_exact(&mut head).is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let _ = stream.read_exact(&mut vec![0; length]);
                is_asked = head[3] == HEADERS;
            }
            let _ = stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8]));
            // It reads to the end, so that nothing is lost by a reset.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    (address, connections)
}

#[test]
fn a_request_that_came_too_late_for_its_connection_goes_to_another_endpoint() {
    let lab = Lab::new();
    let good = Named::new("good");
    for (method, is_served) in [("GET", true), ("POST", false)] {
        let (address, connections) = leaving();
        let both = [endpoint(address, ", weight: 1000000"), endpoint(good.address, ", weight: 1")];
        let proxy = client(&lab, "protocol: HTTP2", &both);
        let head =
            format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");
        let head = if is_served { head.replace("content-length: 1\r\n\r\nx", "\r\n") } else { head };
        let answer = exchange(at(&proxy), head.as_bytes());
        assert_eq!(who(&answer) == "good", is_served, "{method}: {answer}");
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }
}

/// An HTTP/2 application that asks callers to leave with every few requests, and answers whatever came before they could
/// know (RFC 9113 section 6.8); what comes later it does not look at.
fn restless() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    let connections = Arc::<AtomicUsize>::default();
    let count = connections.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    let mut seen = 0;
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        seen += 1;
                        if seen == 20 {
                            connection.graceful_shutdown();
                        }
                        let Ok(mut body) = respond.send_response(http::Response::new(()), false) else {
                            continue;
                        };
                        let _ = body.send_data(Bytes::from_static(b"name=served "), true);
                    }
                });
            }
        });
    });
    (address, connections)
}

/// A request that might have an effect is not repeated, so that it must not be on its way when the connection's end is read:
/// what was to be written is written first.
#[test]
fn a_connection_that_is_to_be_left_costs_nobody_a_request() {
    let lab = Lab::new();
    let (address, connections) = restless();
    let proxy = client(&lab, "protocol: HTTP2", &[endpoint(address, "")]);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut caller = dial(at(&proxy));
                for _ in 0..400 {
                    let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nping");
                    caller.write_all(head.as_bytes()).expect("open");
                    let answer = read_until(&mut caller, "name=served ");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            });
        }
    });
    assert!(connections.load(Ordering::SeqCst) > 100, "{}", connections.load(Ordering::SeqCst));
}

/// An application that reads a request and goes away without an answer.
fn vanishing() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let seen = Arc::<AtomicUsize>::default();
    let count = seen.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (address, seen)
}

#[test]
fn a_request_that_was_sent_is_not_sent_again() {
    let lab = Lab::new();
    for method in ["GET", "POST"] {
        let (address, seen) = vanishing();
        let good = Named::new("good");
        let both = [endpoint(address, ", weight: 1000000"), endpoint(good.address, ", weight: 1")];
        let proxy = client(&lab, "protocol: HTTP", &both);
        let request =
            format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let answer = exchange(at(&proxy), request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 503"), "{method}: {answer}");
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }
    // Nor one that was answered, whatever the answer.
    let unavailable = Named::new("unavailable");
    unavailable.answers(503);
    let proxy = client(&lab, "protocol: HTTP", &endpoints(&[&unavailable]));
    assert_eq!(who(&ask(&proxy, "/", "")), "unavailable");
    assert_eq!(unavailable.requests.load(Ordering::SeqCst), 1);
}

/// An HTTP/1.1 application that closes each connection so long after its answer.
fn impatient(after: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                if read_until(&mut stream, "\r\n\r\n").ends_with("\r\n\r\n") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nname=i ");
                    thread::sleep(after);
                }
            });
        }
    });
    address
}

/// A server that has closed its connection by now must not cost a request, not even one that cannot be repeated.
#[test]
fn a_connection_that_was_closed_meanwhile_costs_nobody_a_request() {
    let (lab, address) = (Lab::new(), impatient(Duration::from_millis(80)));
    let proxy = client(&lab, "protocol: HTTP", &[endpoint(address, "")]);
    let mut caller = dial(at(&proxy));
    for method in ["POST", "GET", "POST", "POST", "GET"] {
        let head = format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0\r\n\r\n");
        caller.write_all(head.as_bytes()).expect("open");
        let answer = read_until(&mut caller, "name=i ");
        assert!(answer.starts_with("HTTP/1.1 200"), "{method}: {answer}");
        thread::sleep(Duration::from_millis(120));
    }
}

/// It may close its connection just as a request goes to it; one that has no effect is sent again, over a new connection.
#[test]
fn a_connection_that_is_closed_just_now_costs_no_safe_request() {
    let (lab, address) = (Lab::new(), impatient(Duration::from_micros(200)));
    let proxy = client(&lab, "protocol: HTTP", &[endpoint(address, "")]);
    thread::scope(|scope| {
        for pause in [0, 50, 100, 150, 200, 250] {
            let to = at(&proxy);
            scope.spawn(move || {
                let mut caller = dial(to);
                for turn in 0..300 {
                    caller
                        .write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
                        .expect("open");
                    let answer = read_until(&mut caller, "name=i ");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{pause} µs, {turn}: {answer}");
                    thread::sleep(Duration::from_micros(pause));
                }
            });
        }
    });
}

/// An application that takes two connections, and no more once it has answered on both; the next request of either it reads,
/// and closes.
fn ending() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let seen = Arc::<AtomicUsize>::default();
    let count = seen.clone();
    thread::spawn(move || {
        let mut both: Vec<_> = listener.incoming().flatten().take(2).collect();
        drop(listener);
        for stream in &mut both {
            read_until(stream, "\r\n\r\n");
        }
        for mut stream in both {
            let count = count.clone();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nname=i ");
            thread::spawn(move || {
                if read_until(&mut stream, "\r\n\r\n").ends_with("\r\n\r\n") {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (address, seen)
}

/// RFC 9110 section 9.2.2: what failed when it was repeated is not repeated again.
#[test]
fn a_request_is_not_sent_to_one_closing_connection_after_the_other() {
    let lab = Lab::new();
    let (address, seen) = ending();
    let proxy = client(&lab, "protocol: HTTP", &[endpoint(address, "")]);
    let mut callers = [dial(at(&proxy)), dial(at(&proxy))];
    for caller in &mut callers {
        caller.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).expect("open");
    }
    for caller in &mut callers {
        assert!(read_until(caller, "name=i ").starts_with("HTTP/1.1 200"));
    }
    callers[0].write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).expect("open");
    let answer = read_until(&mut callers[0], "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// Between proxies of ours, and of the mesh in general, bounds are those of the service.
#[test]
fn bounds_hold_over_mutual_tls_with_proxies_that_multiplex() {
    let lab = Lab::new();
    let named = Named::new("x");
    let server = lab.server(&Server { backend: named.address, policy: None, ..Server::default() });
    let meshed = endpoint(at(&server), ", workload: {meshed: true, multiplexes: true}");
    let meshed = meshed.replace("PLAINTEXT", "ISTIO_MUTUAL");
    for (pool, version) in [
        ("maxConnections: 1, http1MaxPendingRequests: 100", "HTTP/1.1"),
        ("maxRequestsPerConnection: 1", "HTTP/1.1"),
        // The server's application gets what the caller's sent.
        ("h2Upgrade: true, maxConnections: 1", "HTTP/1.1"),
    ] {
        let proxy = client(&lab, &bounded("HTTP", pool), std::slice::from_ref(&meshed));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let answer = ask(&proxy, "/", "");
                        assert!(answer.contains(&format!("version={version}")), "{pool}: {answer}");
                    }
                });
            }
        });
    }
}

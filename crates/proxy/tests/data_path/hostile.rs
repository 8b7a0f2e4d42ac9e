//! Requests that want to be read in two ways, and connections that want to be kept for nothing.

use std::io::Write;

use crate::lab::{HOST, Lab, Server, at, dial, exchange, http_backend, is_closed_soon, read_until};

#[test]
fn malformed_requests_are_refused_and_never_reach_the_application() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        ..Default::default()
    });
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n x: folded\r\n\r\n",
        "GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
        "GET nowhere HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
        &big,
        &many,
    ] {
        let answer = exchange(at(&server), request.as_bytes());
        let shown = &request[..request.len().min(80)];
        assert!(!answer.starts_with("HTTP/1.1 2"), "{shown:?}: {answer}");
        let status = answer.split(' ').nth(1).unwrap_or("4");
        assert!(status.starts_with('4') || status == "501", "{shown:?}: {answer}");
    }
}

/// A connection that is closed with its last answer while its caller sends on would be reset, and the answer cut (RFC 9112
/// section 9.6).
#[test]
fn what_is_sent_after_the_last_request_does_not_cut_its_answer() {
    const SIZE: usize = 8 << 20;
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        ..Default::default()
    });
    let head = format!("GET /big/{SIZE} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    let more = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(10_000);
    for _ in 0..5 {
        let answer = exchange(at(&server), format!("{head}{more}").as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body.len(), SIZE, "{head}");
    }
}

/// RFC 9112 section 6.1: with both, the length is dropped and the connection ends after the answer.
#[test]
fn a_length_beside_chunked_cannot_smuggle_a_second_request() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        ..Default::default()
    });
    let both = "POST /one HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = exchange(at(&server), both.as_bytes());
    assert!(!answer.contains("GET /two"), "{answer}");
    assert!(!answer.contains("content-length: 4\n"), "{answer}");
}

#[test]
fn fields_named_by_connection_do_not_pass_and_framing_cannot_be_named_away() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        ..Default::default()
    });
    let request = "POST /x HTTP/1.1\r\nhost: a\r\nconnection: close, x-secret, content-length\r\nx-secret: 1\r\nkeep-alive: 5\r\ncontent-length: 2\r\n\r\nhi";
    let answer = exchange(at(&server), request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("body 2"), "{answer}");
    assert!(!answer.contains("x-secret") && !answer.contains("keep-alive"), "{answer}");
}

#[test]
fn connections_that_say_nothing_share_a_budget() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        policy: None,
        mode: "PERMISSIVE",
        extra: "undetected: 3",
        ..Default::default()
    });
    let mut oldest = dial(at(&server));
    let silent: Vec<_> = (0..3).map(|_| dial(at(&server))).collect();
    assert!(is_closed_soon(&mut oldest), "the oldest is still waited for");
    let mut youngest = silent.into_iter().last().expect("three");
    write!(youngest, "GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("open");
    assert!(read_until(&mut youngest, "body 0").starts_with("HTTP/1.1 200"));
}

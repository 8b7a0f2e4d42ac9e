//! Certificates and facts change under load, and nobody notices.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{ALLOW_WEB, HOST, Lab, PATIENCE, Server, at, dial, http_backend};

/// Asks on one connection again and again, on a new one only if it was told that the last is over.
fn caller(to: SocketAddr, asked: &AtomicUsize, is_over: &AtomicBool) -> Vec<String> {
    let mut failures = Vec::new();
    let mut kept: Option<BufReader<TcpStream>> = None;
    while !is_over.load(Ordering::Relaxed) {
        let mut stream = kept.take().unwrap_or_else(|| BufReader::new(dial(to)));
        match ask(&mut stream) {
            Ok(true) => kept = Some(stream),
            Ok(false) => {}
            Err(error) => failures.push(error.to_string()),
        }
        asked.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

/// One request; whether the connection goes on.
fn ask(stream: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
    write!(stream.get_mut(), "POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nping")?;
    let (mut line, mut head) = (String::new(), String::new());
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other(format!("closed after {head:?}")));
        }
        head.push_str(&line.to_ascii_lowercase());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(4)];
    stream.read_exact(&mut body)?;
    if !head.starts_with("http/1.1 200") {
        return Err(std::io::Error::other(format!("{head} {}", String::from_utf8_lossy(&body))));
    }
    Ok(!head.contains("connection: close"))
}

#[test]
fn no_request_is_lost_while_certificates_are_renewed_and_facts_change() {
    let lab = Lab::new();
    let mut facts = Server { backend: http_backend(), ..Default::default() };
    let server = lab.server(&facts);
    for protocol in ["HTTP", "HTTP2"] {
        let web = lab.client("web", at(&server), protocol, "ISTIO_MUTUAL");
        let (asked, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let callers: Vec<_> = (0..6)
            .map(|_| {
                let (asked, is_over, to) = (asked.clone(), is_over.clone(), at(&web));
                thread::spawn(move || caller(to, &asked, &is_over))
            })
            .collect();
        for round in 0..12 {
            let so_far = asked.load(Ordering::Relaxed);
            let deadline = Instant::now() + PATIENCE;
            while asked.load(Ordering::Relaxed) < so_far + 30 {
                assert!(Instant::now() < deadline, "requests do not flow");
                thread::sleep(Duration::from_millis(1));
            }
            // A fresh certificate for each of the two, and rules that still allow what is asked.
            lab.pem("web");
            web.reload().expect("the caller's proxy reads it");
            facts.policy = Some(if round % 2 == 0 { "{action: ALLOW, rules: [{}]}" } else { ALLOW_WEB });
            lab.server_file(&facts);
            server.reload().expect("the server's proxy reads it");
        }
        is_over.store(true, Ordering::Relaxed);
        let failures: Vec<_> =
            callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect();
        assert!(failures.is_empty(), "{} of {}: {failures:?}", failures.len(), asked.load(Ordering::Relaxed));
    }
}

//! Messages that want two parties to read them differently: an application that reads by the letter must understand
//! everything that is forwarded, and must not get what a real Envoy would not have sent.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::envoy::Envoy;
use crate::lab::{Lab, Server, at, dial};
use crate::strict::{Heard, Read1, application};

/// A request that must be read as the next one, whatever came before.
const LAST: &str = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

fn cases() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: String, bytes: Vec<u8>| all.push((name, [bytes, LAST.into()].concat()));
    // Lengths of a body of five bytes.
    for fields in [
        "content-length: 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 6\r\ncontent-length: 5",
        "content-length: 5, 5",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5;",
        "content-length: \"5\"",
        "content-length: 05",
        "content-length:",
        "content-length: 18446744073709551616",
        "content-length: 9223372036854775808",
        "content-length : 5",
        "content-length\t: 5",
        " content-length: 5",
        "content-length: 5\r\n ",
        "content_length: 5",
        "Content-Length\0: 5",
        "x: y\ncontent-length: 5",
        "x: y\rcontent-length: 5",
        "content-length: 5\x0b",
        "content-length:\x0c5",
        "content-length: 5\r\nconnection: content-length",
    ] {
        add(
            format!("length {fields:?}"),
            format!("POST /one HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\nhello").into(),
        );
    }
    // A chunked body, announced in every way.
    for fields in [
        "transfer-encoding: chunked",
        "Transfer-Encoding: Chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 4\r\ntransfer-encoding: chunked",
        "content-length: 15\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: ,chunked",
        "transfer-encoding: chunked,",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunkedx",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding:\x0bchunked",
        "transfer-encoding: chunked\x0b",
        "transfer-encoding:\tchunked",
        "transfer-encoding : chunked",
        "transfer-encoding\x0b: chunked",
        "transfer-encoding:\r\n chunked",
        "x: y\r\n transfer-encoding: chunked",
        "x: y\ntransfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "transfer_encoding: chunked",
        "transfer-encoding: chunked\r\nconnection: transfer-encoding",
        "transfer-encoding: chunked\r\nupgrade: h2c\r\nconnection: upgrade",
    ] {
        let text = format!("POST /one HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        add(format!("coding {fields:?}"), text.into());
    }
    // Chunks, spelt in every way.
    for chunks in [
        "5\r\nhello\r\n0\r\n\r\n",
        "05\r\nhello\r\n0\r\n\r\n",
        "00000000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;x=y\r\nhello\r\n0\r\n\r\n",
        "5;x=\"y\r\nz\"\r\nhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;\rhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\n\r",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\ncontent-length: 9\r\n\r\n",
        "5\r\nhello\r\n0\r\nhost: b\r\n\r\n",
        "5\r\nhello\r\n0\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        "5\r\nhello\r\n0\r\n x-t: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-t : 1\r\n\r\n",
        "5\r\nhello\r\n0;x\r\n\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "5\r\nhello\r\n0000\r\n\r\n",
    ] {
        let text = format!("POST /one HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        add(format!("chunks {chunks:?}"), text.into());
    }
    // Heads.
    for head in [
        "GET /one HTTP/1.1\nhost: a\n\n",
        "GET /one HTTP/1.1\r\nhost: a\r\n\n",
        "GET /one HTTP/1.1\r\nhost: a\n\r\n",
        "GET /one HTTP/1.1\rhost: a\r\r",
        "\r\nGET /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "\nGET /one HTTP/1.1\r\nhost: a\r\n\r\n",
        " GET /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET  /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one  HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET\t/one\tHTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.1 \r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.1\t\r\nhost: a\r\n\r\n",
        "GET /one http/1.1\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.2\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.10\r\nhost: a\r\n\r\n",
        "GET /one HTTP/2.0\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1,1\r\nhost: a\r\n\r\n",
        "GET /one\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.0\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        "GET /one two HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one#two HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one\\two HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one%0d%0ax:y HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one?x=\x7f HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one\x01 HTTP/1.1\r\nhost: a\r\n\r\n",
        "G\x00ET /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx-\x00: b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\x7f\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\x08\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx y: b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx(y): b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\r\n  c\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\r\n\t\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\rc\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nx: b\r\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost:a\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\t \r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a:80:90\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "GET http://b/one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET HTTP://b/one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://b HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://b?x HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http:///one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://c@b/one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET b/one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET //b/one HTTP/1.1\r\nhost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
        "get /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "GE(T /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\ncontent-length: 5\r\n\r\nhello",
        "GET /one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        "HEAD /one HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        "GET /one HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST /one HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /one HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
        "POST /one HTTP/1.1\r\nhost: a\r\nexpect: 200-maybe\r\ncontent-length: 5\r\n\r\nhello",
        "GET /one HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: upgrade, http2-settings\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nconnection: x\r\nx: y\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nkeep-alive: 5\r\nproxy-connection: close\r\nte: gzip\r\n\r\n",
        "GET /one HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n",
    ] {
        add(format!("head {head:?}"), head.into());
    }
    for bytes in
        [&b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"GET /one HTTP/1.1\r\nhost: a\r\nx: \xff\r\n\r\n"]
    {
        add(format!("bytes {:?}", String::from_utf8_lossy(bytes)), bytes.to_vec());
    }
    all
}

/// What is forwarded although Envoy refuses it: harmless, since one message comes out of it, and only one.
const HARMLESS: [(&str, &str); 9] = [
    ("length \"content-length: 5\\r\\ncontent-length: 5\"", "one length is forwarded (RFC 9110 section 8.6)"),
    (
        "coding \"transfer-encoding: chunked\\r\\ncontent-length: 4\"",
        "chunked alone is forwarded, and nothing after it",
    ),
    ("coding \"content-length: 4\\r\\ntransfer-encoding: chunked\"", "the same"),
    ("coding \"content-length: 15\\r\\ntransfer-encoding: chunked\"", "the same"),
    ("head \"GET /one#two HTTP/1.1", "no fragment is judged or forwarded"),
    ("head \"OPTIONS * HTTP/1.1", "Istio's routes have no `*`; the application may"),
    (
        "head \"GET /one HTTP/1.1\\r\\nhost: a\\r\\nupgrade: websocket\\r\\nconnection: upgrade",
        "the application declined",
    ),
    ("head \"GET /one HTTP/1.1\\r\\nhost: a\\r\\nconnection: host", "Host cannot be named away"),
    ("head \"GET /one HTTP/1.1\\r\\nhost: a\\r\\nkeep-alive: 5", "`proxy-connection` is nobody's field"),
];

/// Sends everything at once, and waits until the proxy has closed or has nothing more to say.
fn send(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = dial(at);
    let _ = stream.write_all(bytes);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(400)));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// What two parties may not see differently.
fn essence(requests: &[Result<Read1, String>]) -> Vec<String> {
    let one = |request: &Result<Read1, String>| match request {
        Ok(read) => format!("{read:?}"),
        Err(why) => format!("UNREADABLE: {why}"),
    };
    requests.iter().map(one).collect()
}

fn envoy(lab: &Lab, backend: SocketAddr) -> Option<Envoy> {
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let manager = json!({
        "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "inbound", "normalize_path": true, "stream_idle_timeout": "0s", "delayed_close_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router",
            "typed_config": {"@type": typed("filters.http.router.v3.Router")}}]});
    Envoy::start(
        lab,
        backend,
        &json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]),
    )
}

fn ours(lab: &Lab) -> (maille_proxy::StaticProxy, Heard) {
    let (backend, heard) = application("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let server = lab.server(&Server {
        backend,
        mode: "PERMISSIVE",
        protocol: "HTTP",
        policy: None,
        ..Default::default()
    });
    (server, heard)
}

/// With `SMUGGLING=1` in the environment, it prints what each of the two does.
#[test]
fn what_is_forwarded_is_read_by_the_letter_and_envoy_would_have_sent_it_too() {
    let lab = Lab::new();
    let (server, heard) = ours(&lab);
    let (backend, heard_of_envoy) = application("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let envoy = envoy(&lab, backend);
    let mut wrong = Vec::new();
    for (name, bytes) in cases() {
        let answer = send(at(&server), &bytes);
        let seen = essence(&heard.take());
        if let Some(bad) = seen.iter().find(|one| one.starts_with("UNREADABLE")) {
            wrong.push(format!("{name}: {bad}"));
        }
        if seen.iter().any(|one| one.contains("/smuggled")) {
            wrong.push(format!("{name}: {seen:?}"));
        }
        let Some(envoy) = &envoy else { continue };
        let said = send(envoy.at, &bytes);
        let expected = essence(&heard_of_envoy.take());
        if std::env::var_os("SMUGGLING").is_some() {
            let status = |text: &str| {
                text.lines().filter(|l| l.starts_with("HTTP/1")).map(str::to_owned).collect::<Vec<_>>()
            };
            let mark = if seen == expected { "same" } else { "DIFF" };
            println!(
                "{mark} {name}\n    ours  {seen:?} {:?}\n    envoy {expected:?} {:?}",
                status(&answer),
                status(&said)
            );
        }
        // Refusing more than Envoy does is no danger; what is forwarded is what Envoy forwards, in its order.
        let is_harmless = HARMLESS.iter().any(|(case, _)| name.starts_with(case));
        if !expected.starts_with(&seen) && !is_harmless {
            wrong.push(format!("{name}: forwarded {seen:?}, Envoy {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is refused says so, even if the caller has sent more meanwhile.
#[test]
fn refusals_are_answered_although_more_was_sent() {
    let lab = Lab::new();
    let (server, heard) = ours(&lab);
    for (head, status) in [
        ("GET  /one HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET /one HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "404"),
        ("GET /one HTTP/1.1\r\nhost: a\r\nx y: b\r\n\r\n", "400"),
        ("POST /one HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "501"),
    ] {
        let answer = send(at(&server), &[head.as_bytes(), LAST.as_bytes()].concat());
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head:?}: {answer:?}");
    }
    assert!(heard.take().is_empty());
}

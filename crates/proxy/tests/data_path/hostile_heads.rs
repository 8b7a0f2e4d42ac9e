//! Heads that want policy and application to read different things: what is judged is what is forwarded.

use std::io::{Read, Write};
use std::time::Duration;

use maille_proxy::StaticProxy;

use crate::lab::{Lab, Server, at, dial, exchange, http_backend};

/// DENY `/admin` and below, host `secret`, and header `x-role: admin`; everything else passes.
const DENY: &str = "{action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}, \
     {to: [{operation: {hosts: [secret, 'secret:*']}}]}, {when: [{key: 'request.headers[x-role]', values: [admin]}]}]}";

fn server(lab: &Lab, extra: &str) -> StaticProxy {
    lab.server(&Server {
        backend: http_backend(),
        mode: "PERMISSIVE",
        protocol: "HTTP",
        policy: Some(DENY),
        extra,
    })
}

/// What became of a request: what the application saw of its first line, or the status.
fn outcome(answer: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) if status == "200" => body.lines().next().unwrap_or_default().to_owned(),
        _ => status,
    }
}

/// Answered 400; what is no HTTP at all is cut, and then the answer may be lost.
fn is_malformed(outcome: &str) -> bool {
    matches!(outcome, "400" | "")
}

fn ask(proxy: &StaticProxy, target: &str, headers: &str) -> String {
    let head = format!("GET {target} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    exchange(at(proxy), head.as_bytes())
}

/// Reference authorization 10.3 and 13; `%00` and what cannot be a path are answered 400.
#[test]
fn paths_in_every_disguise_are_judged_as_they_are_forwarded() {
    let lab = Lab::new();
    let base = server(&lab, "");
    for (target, expected) in [
        ("/admin", "403"),
        ("/administrator", "403"),
        ("/admin?x", "403"),
        ("/x/../admin", "403"),
        ("/x/..;v=1/admin", "403"),
        ("/x/.;/../admin", "403"),
        ("/x/%2e%2E/admin", "403"),
        ("/x/.%2e/admin", "403"),
        ("/%61dmin", "403"),
        ("/%61%64%6d%69%6e", "403"),
        ("/x\\..\\admin", "403"),
        ("\\admin", "400"),
        ("/\\admin", "//admin"),
        ("/./admin", "403"),
        ("/../../admin", "403"),
        ("/x//../../admin", "403"),
        // What may be something else to an application that decodes more is passed on as it was judged.
        ("//admin", "//admin"),
        ("/%2fadmin", "/%2fadmin"),
        ("/x/..%2fadmin", "/x/..%2fadmin"),
        ("/x/..%5Cadmin", "/x/..%5Cadmin"),
        ("/%2561dmin", "/%2561dmin"),
        ("/ADMIN", "/ADMIN"),
        ("/x/%c0%ae%c0%ae/admin", "/x/%c0%ae%c0%ae/admin"),
        ("/%c0%afadmin", "/%c0%afadmin"),
        ("/%e0%80%afadmin", "/%e0%80%afadmin"),
        ("/%u0061dmin", "/%u0061dmin"),
        ("/%zzadmin%", "/%zzadmin%"),
        ("/admin%00", "400"),
        ("/%00/../admin", "400"),
        ("/x?y=%00", "/x?y=%00"),
        ("/x?y=/../admin", "/x?y=/../admin"),
        ("admin", "400"),
        ("*", "400"),
        ("?admin", "400"),
    ] {
        let seen = outcome(&ask(&base, target, "host: a\r\n"));
        let expected = match expected {
            status if status.len() == 3 && status.parse::<u16>().is_ok() => status.to_owned(),
            path => format!("GET {path} HTTP/1.1"),
        };
        assert_eq!(seen, expected, "{target}");
    }
    let lab = Lab::new();
    let decoding = server(&lab, "settings: {pathNormalization: DECODE_AND_MERGE_SLASHES}");
    for target in
        ["//admin", "/%2fadmin", "/x/..%2fadmin", "/x/..%5Cadmin", "/x%5c..%5cadmin", "///%2F//admin"]
    {
        assert_eq!(outcome(&ask(&decoding, target, "host: a\r\n")), "403", "{target}");
    }
    // Bytes that are no character of a target.
    for raw in [&b"/\xc0\xafadmin"[..], b"/ad min", b"/admin\x00", b"/x\r\x00"] {
        let mut head = b"GET ".to_vec();
        head.extend_from_slice(raw);
        head.extend_from_slice(b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let seen = outcome(&exchange(at(&base), &head));
        let raw = String::from_utf8_lossy(raw).into_owned();
        assert!(is_malformed(&seen) || seen == format!("GET {raw} HTTP/1.1"), "{raw:?}: {seen}");
    }
}

/// RFC 9112 section 3.2.2, reference authorization 8.
#[test]
fn one_host_is_judged_and_forwarded_however_it_is_said() {
    let lab = Lab::new();
    let server = server(&lab, "");
    for headers in ["host: secret\r\n", "Host:\tSECRET\r\n", "host: secret:8080\r\n"] {
        assert_eq!(outcome(&ask(&server, "/x", headers)), "403", "{headers:?}");
    }
    for headers in [
        "host: a\r\nhost: secret\r\n",
        "host: a\r\nHost: a\r\n",
        "host: a, secret\r\n",
        "host: a secret\r\n",
        "host: user@secret\r\n",
        "host: a/../secret\r\n",
        "host: a\r\n host: secret\r\n",
        "host : secret\r\n",
        "host:\r\n",
        "",
    ] {
        let seen = outcome(&ask(&server, "/x", headers));
        assert!(is_malformed(&seen), "{headers:?}: {seen}");
    }
    // The target wins over the field, in what is judged and in what the application sees.
    assert_eq!(outcome(&ask(&server, "http://secret/x", "host: a\r\n")), "403");
    assert_eq!(outcome(&ask(&server, "http://a/x/../admin", "host: a\r\n")), "403");
    let seen = ask(&server, "http://real/x?y", "host: secret\r\n");
    assert!(seen.contains("GET /x?y HTTP/1.1") && seen.contains("host: real\n"), "{seen}");
    assert!(!seen.contains("secret"), "{seen}");
    for target in ["http://user@a/x", "http://a b/x", "//secret", "a:80", "ftp://a"] {
        let seen = ask(&server, target, "host: a\r\n");
        assert!(!seen.contains("host: secret"), "{target}: {seen}");
    }
}

/// Reference authorization 8: no path, so positive tests of it fail; and a sidecar tunnels nowhere.
#[test]
fn connect_reaches_nobody() {
    let lab = Lab::new();
    let server = server(&lab, "");
    for head in [
        "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nhost: b:80\r\n\r\n",
        "CONNECT /admin HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT http://a/admin HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let answer = exchange(at(&server), head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{head:?}: {answer}");
    }
    assert_eq!(
        outcome(&exchange(
            at(&server),
            b"CONNECT secret:80 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )),
        "403"
    );
    // What is refused is no tunnel: a connection of a proxy that is leaving ends with it.
    server.workers().drain();
    let answer = exchange(at(&server), b"CONNECT secret:80 HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("connection: close"), "{answer}");
    // Of a caller that has gone on as if it were one, too: its answer is not lost to a reset.
    for asks in ["CONNECT secret:80 HTTP/1.1", "GET /admin HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x"] {
        let mut hasty = dial(at(&server));
        write!(hasty, "{asks}\r\nhost: a\r\n\r\n{}", "x".repeat(300_000)).expect("open");
        std::thread::sleep(Duration::from_millis(300));
        let mut answer = String::new();
        hasty.read_to_string(&mut answer).expect("no reset");
        assert!(answer.starts_with("HTTP/1.1 403"), "{asks}: {answer}");
    }
}

/// Reference authorization 9.1, pitfall 4.
#[test]
fn headers_are_judged_one_by_one_and_as_they_are_forwarded() {
    let lab = Lab::new();
    let server = server(&lab, "");
    for headers in [
        "x-role: admin\r\n",
        "X-ROLE: admin\r\n",
        "x-role:   admin \t\r\n",
        "x-role: user\r\nx-role: admin\r\n",
        "x-role: admin\r\nx-role: user\r\n",
    ] {
        let seen = outcome(&ask(&server, "/x", &format!("host: a\r\n{headers}")));
        assert_eq!(seen, "403", "{headers:?}");
    }
    for (headers, forwarded) in [
        ("x-role: admin,user\r\n", "x-role: admin,user\n"),
        ("x_role: admin\r\n", "x_role: admin\n"),
        ("x-role: Admin\r\n", "x-role: Admin\n"),
        // Named away before policy looks, and before the application does.
        ("connection: x-role\r\nx-role: admin\r\n", "body 0"),
    ] {
        let seen = ask(&server, "/x", &format!("host: a\r\n{headers}"));
        assert!(seen.starts_with("HTTP/1.1 200") && seen.contains(forwarded), "{headers:?}: {seen}");
        assert!(!seen.contains("x-role: admin\n"), "{headers:?}: {seen}");
    }
    for headers in [
        "x-role : admin\r\n",
        " x-role: admin\r\n",
        "x-a: b\r\n x-role: admin\r\n",
        "x-role\x00: admin\r\n",
        "x-a: b\x00\r\n",
        "x role: admin\r\n",
        ": admin\r\n",
        ":path: /x\r\n",
        "x-a: b\nx-role: admin\r\r\n",
    ] {
        let seen = ask(&server, "/x", &format!("host: a\r\n{headers}"));
        let status = outcome(&seen);
        assert!(is_malformed(&status) || status == "403", "{headers:?}: {seen}");
    }
}

/// As Envoy's HTTP/1.1: an application may take `get` for GET, a rule does not.
#[test]
fn methods_that_http1_does_not_know_are_refused() {
    let lab = Lab::new();
    let server = server(&lab, "");
    for method in ["get", "Get", "GETT", "FOO", "G\tET"] {
        let answer = exchange(
            at(&server),
            format!("{method} /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        assert!(is_malformed(&outcome(&answer)), "{method:?}: {answer}");
    }
    let answer = exchange(at(&server), b"PROPFIND /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Frames of one HTTP/2 request with these fields, none of them compressed or indexed.
fn http2(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short").min(126));
            block.extend_from_slice(text.as_bytes());
        }
    }
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    [preface, frame(4, 0, 0, &[]), frame(1, 0x5, 1, &block)].concat()
}

/// The bytes of the answer up to its end: what the application saw, if it saw it, else compressed headers.
fn ask_http2(proxy: &StaticProxy, fields: &[(&str, &str)]) -> String {
    let mut stream = dial(at(proxy));
    stream.write_all(&http2(fields)).expect("open");
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !has_ended(&all) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Whether these frames end the answer: END_STREAM, RST_STREAM or GOAWAY.
fn has_ended(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = frames {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(after) = rest.get(length..) else { return false };
        if matches!((kind, flags & 1), (0 | 1, 1) | (3 | 7, _)) {
            return true;
        }
        frames = after;
    }
    false
}

#[test]
fn http2_fields_that_contradict_each_other_reach_nobody() {
    let lab = Lab::new();
    let server = lab.server(&Server {
        backend: http_backend(),
        mode: "PERMISSIVE",
        protocol: "HTTP2",
        policy: Some(DENY),
        ..Default::default()
    });
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/x")];
    let seen = ask_http2(&server, &get);
    assert!(seen.contains("GET http://a/x HTTP/2.0"), "{seen}");
    // `:authority` is judged and forwarded, and `host` beside it is not.
    let seen = ask_http2(&server, &[&get[..], &[("host", "secret")]].concat());
    assert!(seen.contains("GET http://a/x HTTP/2.0") && !seen.contains("secret"), "{seen}");
    let with = |at: usize, value: (&'static str, &'static str)| {
        let mut fields = get.to_vec();
        fields[at] = value;
        fields
    };
    let and = |more: &[(&'static str, &'static str)]| [&get[..], more].concat();
    for fields in [
        with(2, (":authority", "secret")),
        with(3, (":path", "/admin")),
        with(3, (":path", "/x/..;a/%61dmin")),
        with(3, (":path", "/%00")),
        with(3, (":path", "admin")),
        with(3, (":path", "http://a/x")),
        with(3, (":path", "")),
        with(3, (":path", "*")),
        with(2, (":authority", "user@secret")),
        with(2, (":authority", "")),
        with(0, (":method", "CONNECT")),
        with(0, (":method", "")),
        and(&[(":path", "/y")]),
        and(&[(":authority", "b")]),
        and(&[(":method", "POST")]),
        and(&[("x-role", "admin")]),
        and(&[("X-Role", "admin")]),
        and(&[("x-role ", "admin")]),
        and(&[("x-a", "b\r\nx-role: admin")]),
        and(&[("x-a", "b\u{0}")]),
        and(&[("connection", "x-role")]),
        and(&[("transfer-encoding", "chunked")]),
        and(&[("upgrade", "websocket")]),
        and(&[(":unknown", "x")]),
        [&[("x-a", "b")], &get[..]].concat(),
        get[..3].to_vec(),
        vec![get[0], get[1], get[3]],
    ] {
        let seen = ask_http2(&server, &fields);
        assert!(!seen.contains(" HTTP/2.0") && !seen.contains(" HTTP/1.1"), "{fields:?}: {seen}");
    }
}

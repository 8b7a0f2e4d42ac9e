//! The HTTP form. What is expected was measured with Envoy 1.40.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use super::{NOBODY, Provider, ask, parts, raw_http};
use crate::lab::{HOST, Lab, at, get};

fn answer(status: &str, head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

const TOLD: &str = "x-a: 1\r\nx-a: 2\r\nx-up: new\r\nx-down: 1\r\nx-deny: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
                    location: /l\r\nwww-authenticate: Basic\r\ncontent-type: text/html\r\n\
                    x-envoy-auth-headers-to-remove: x-rm, X-Rm2\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: 5\r\n";

#[test]
fn headers_go_where_the_lists_say_and_the_status_decides() {
    let lab = Lab::new();
    let (sender, asked) = channel();
    let sender = Mutex::new(sender);
    let provider = raw_http(move |request| {
        let _ = sender.lock().expect("unpoisoned").send(request.to_owned());
        let path = request.split(' ').nth(1).unwrap_or_default();
        let status = path.rsplit('/').next().unwrap_or_default();
        answer(status.split('?').next().unwrap_or_default(), TOLD, "of the provider")
    });
    let settings = "http: {pathPrefix: /pre, includeRequestHeaders: ['x-inc*'], includeAdditionalHeaders: {x-more: added}, \
                    headersToUpstreamOnAllow: [x-up, x-a, x-hop], headersToDownstreamOnDeny: ['x-de*'], \
                    headersToDownstreamOnAllow: ['*-down']}";
    let server = Provider::new(provider, settings).server(&lab);
    let lines = [
        "x-inc-1: a",
        "x-inc-1: b",
        "x-up: old",
        "x-rm: 1",
        "x-rm2: 1",
        "authorization: Bearer x",
        "x-more: mine",
    ];
    let (status, headers, body) = parts(&ask(at(&server), "POST /asked/200?q=1", &lines, "hello"));
    assert_eq!(status, "http/1.1 200 ok");
    assert!(
        headers.contains(&"x-down: 1".to_owned()) && !headers.iter().any(|line| line.starts_with("x-de"))
    );
    for line in ["x-up: new\n", "x-a: 2\n", "authorization: Bearer x\n", "body 5\n"] {
        assert!(body.contains(line), "{line} in {body}");
    }
    assert!(!body.contains("x-rm") && !body.contains("x-hop") && !body.contains("x-a: 1"), "{body}");
    let asked_for = asked.recv().expect("a check").to_lowercase();
    assert!(asked_for.starts_with("post /pre/asked/200?q=1 http/1.1\r\n"), "{asked_for}");
    let mut lines: Vec<&str> = asked_for.lines().skip(1).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let host = format!("host: {HOST}");
    let expected = ["authorization: bearer x", "content-length: 0", &host, "x-inc-1: a,b", "x-more: added"];
    assert_eq!(lines, expected);

    for denial in ["401 Unauthorized", "302 Found", "201 Created", "404 Not Found"] {
        let code = &denial[..3];
        let (status, mut headers, body) = parts(&get(at(&server), &format!("/asked/{code}")));
        headers.retain(|line| !line.starts_with("connection"));
        headers.sort();
        assert_eq!((&status[..12], body.as_str()), (format!("http/1.1 {code}").as_str(), "of the provider"));
        assert_eq!(
            headers,
            [
                "content-length: 15",
                "content-type: text/plain",
                "location: /l",
                "www-authenticate: basic",
                "x-deny: 1"
            ]
        );
    }
    for failure in ["500", "503"] {
        let (status, _, body) = parts(&get(at(&server), &format!("/asked/{failure}")));
        assert_eq!((status.as_str(), body.as_str()), ("http/1.1 403 forbidden", ""));
    }
}

#[test]
fn fail_open_and_status_on_error_say_what_a_failure_means_and_a_denial_stays_one() {
    let lab = Lab::new();
    let provider = raw_http(|request| match request {
        request if request.starts_with("GET /asked/500") => answer("500 Oops", "", ""),
        request if request.starts_with("GET /asked/garbage") => b"no http at all\r\n\r\n".to_vec(),
        request if request.starts_with("GET /asked/break") => {
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab".to_vec()
        }
        _ => answer("401 Unauthorized", "", "no"),
    });
    let failures = ["/asked/500", "/asked/garbage"];
    let server = Provider::new(provider, "statusOnError: 502, http: {}").server(&lab);
    for path in failures {
        let (status, _, body) = parts(&get(at(&server), path));
        assert_eq!((status.as_str(), body.as_str()), ("http/1.1 502 bad gateway", ""), "{path}");
    }
    let server = Provider::new(provider, "failOpen: true, http: {}").server(&lab);
    for path in failures {
        assert!(get(at(&server), path).starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(get(at(&server), "/asked/no").starts_with("HTTP/1.1 401"), "a denial is no failure");
    let nobody = NOBODY;
    let server = Provider::new(nobody, "http: {}").server(&lab);
    assert!(get(at(&server), "/asked").starts_with("HTTP/1.1 403"));
    assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"));
    let server = Provider::new(nobody, "failOpen: true, http: {}").server(&lab);
    assert!(get(at(&server), "/asked").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_provider_that_takes_too_long_has_failed() {
    let lab = Lab::new();
    let provider = raw_http(|_| {
        // Longer than any test runs.
        std::thread::sleep(std::time::Duration::from_secs(3600));
        Vec::new()
    });
    let server = Provider::new(provider, "timeoutMs: 300, statusOnError: 504, http: {}").server(&lab);
    assert!(get(at(&server), "/asked").starts_with("HTTP/1.1 504"));
}

#[test]
fn a_body_is_shown_in_the_http_form_too() {
    let lab = Lab::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let provider = raw_http({
        let seen = seen.clone();
        move |request| {
            seen.lock().expect("unpoisoned").push(request.to_lowercase());
            answer("200 OK", "", "")
        }
    });
    let settings = "body: {maxRequestBytes: 10, allowPartialMessage: true}, http: {}";
    let server = Provider::new(provider, settings).server(&lab);
    assert!(ask(at(&server), "POST /asked", &[], "0123456789abc").contains("body 13\n"));
    let seen = seen.lock().expect("unpoisoned");
    let check = seen.first().expect("a check");
    assert!(check.contains("content-length: 10\r\n") && check.ends_with("\r\n\r\n0123456789"), "{check}");
    assert!(check.contains("x-envoy-auth-partial-body: true\r\n"), "{check}");
}

#[test]
fn a_rule_whose_provider_cannot_be_used_refuses_what_it_matches() {
    let lab = Lab::new();
    let provider = raw_http(|_| answer("200 OK", "", ""));
    for settings in [
        "problem: 'no such service', http: {}",
        "http: {headersToUpstreamOnAllow: ['*']}",
        "failOpen: true, problem: 'x', grpc: {}",
    ] {
        let server = Provider::new(provider, settings).server(&lab);
        let (status, _, body) = parts(&get(at(&server), "/asked"));
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("http/1.1 403 forbidden", "RBAC: access denied"),
            "{settings}"
        );
        assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"), "{settings}");
    }
    let unknown = Provider::new(provider, "http: {}").facts().replace("[{name: asked,", "[{name: other,");
    let server = lab.server(&crate::lab::Server {
        mode: "PERMISSIVE",
        policy: None,
        backend: crate::lab::http_backend(),
        extra: &unknown,
        ..Default::default()
    });
    assert!(get(at(&server), "/asked").ends_with("RBAC: access denied"));
    assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"));
}

/// What the registry does not know is dialled as it is, unless the mesh says that nothing is.
#[test]
fn a_provider_outside_the_registry_is_asked_if_the_outbound_policy_lets_anybody_out() {
    let lab = Lab::new();
    let provider = raw_http(|_| answer("200 OK", "", ""));
    for (policy, status) in [("ALLOW_ANY", "HTTP/1.1 200"), ("REGISTRY_ONLY", "HTTP/1.1 403")] {
        let facts = Provider::new(provider, "http: {}").facts();
        let named = format!(
            "outboundPolicy: {policy}, extensionProviders: [{{name: asked, host: 127.0.0.1, port: {}",
            provider.port()
        );
        let known = "extensionProviders: [{name: asked, host: authz.shop.svc.cluster.local, port: 9000";
        let extra = facts.replace(known, &named);
        assert_ne!(extra, facts);
        let server = lab.server(&crate::lab::Server {
            mode: "PERMISSIVE",
            policy: None,
            backend: crate::lab::http_backend(),
            extra: &extra,
            ..Default::default()
        });
        let answer = get(at(&server), "/asked");
        assert!(answer.starts_with(status), "{policy}: {answer}");
    }
}

#[test]
fn a_provider_whose_port_speaks_http2_is_asked_in_it() {
    let lab = Lab::new();
    // It says in its body what arrived, and allows nobody.
    let (told, _) = super::hostile::http2(|| {
        let body = vec![hyper::body::Frame::data(bytes::Bytes::from_static(b"over HTTP/2"))];
        Some(http::Response::builder().status(401).body(body).expect("a response"))
    });
    let server = Provider { protocol: "HTTP2", ..Provider::new(told, "http: {}") }.server(&lab);
    let answer = get(at(&server), "/asked");
    assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with("over HTTP/2"), "{answer}");
}

/// A connection that the provider closed meanwhile is no reason to refuse anybody.
#[test]
fn a_provider_that_closes_each_connection_is_asked_all_the_same() {
    let lab = Lab::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let provider = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // It does not say that it will close.
            if super::read_request(&mut stream).is_some() {
                let _ = std::io::Write::write_all(&mut stream, &answer("200 OK", "", ""));
            }
        }
    });
    let server = Provider::new(provider, "http: {}").server(&lab);
    for _ in 0..20 {
        assert!(ask(at(&server), "POST /asked", &[], "").starts_with("HTTP/1.1 200"));
    }
}

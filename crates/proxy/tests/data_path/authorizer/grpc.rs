//! The gRPC form, asked of grpcio with Envoy's own messages. What is expected was measured with Envoy 1.40.

use serde_json::json;

use super::{NOBODY, Provider, PythonAuthorizer, ask, parts};
use crate::lab::{HOST, Lab, Server, at, exchange, get, http_backend, run};

const GRPC: &str = "timeoutMs: 20000, grpc: {}";

#[test]
fn only_what_a_custom_rule_matches_is_asked_about_and_the_answer_counts() {
    let lab = Lab::new();
    let answers = json!({
        "/asked/yes": {"status": {"code": 0}},
        "/asked/bare": {},
        "/asked/no": {"status": {"code": 7}},
        "/asked/told": {"status": {"code": 16}, "deniedResponse": {"status": {"code": 401}, "body": "go away", "headers": [
            {"header": {"key": "set-cookie", "value": "a=1"}}, {"header": {"key": "set-cookie", "value": "b=2"}},
            {"header": {"key": "content-type", "value": "text/html"}}, {"header": {"key": "content-length", "value": "99"}},
            {"header": {"key": "transfer-encoding", "value": "chunked"}},
            {"header": {"key": "x-appended", "value": "1"}, "append": true}]}},
        "/asked/broken": {"status": {"code": 13}, "errorResponse": {"status": {"code": 503}, "body": "broken"}},
        "abort:/asked/abort": "INTERNAL",
    });
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let server = Provider::new(authorizer.at, GRPC).server(&lab);
    assert!(get(at(&server), "/home").starts_with("HTTP/1.1 200"));
    assert!(authorizer.is_at_rest(), "nobody had to be asked");
    for path in ["/asked/yes", "/asked/bare"] {
        assert!(get(at(&server), path).starts_with("HTTP/1.1 200"), "{path}");
        authorizer.check();
    }
    let (status, headers, body) = parts(&get(at(&server), "/asked/no"));
    assert_eq!((status.as_str(), body.as_str()), ("http/1.1 403 forbidden", ""));
    assert!(!headers.iter().any(|line| line.starts_with("content-type")), "{headers:?}");
    let (status, mut headers, body) = parts(&get(at(&server), "/asked/told"));
    headers.retain(|line| !line.starts_with("connection"));
    headers.sort();
    assert_eq!((status.as_str(), body.as_str()), ("http/1.1 401 unauthorized", "go away"));
    assert_eq!(
        headers,
        ["content-length: 7", "content-type: text/html", "set-cookie: a=1", "set-cookie: b=2"]
    );
    let (status, _, body) = parts(&get(at(&server), "/asked/broken"));
    assert_eq!((status.as_str(), body.as_str()), ("http/1.1 503 service unavailable", "broken"));
    assert!(get(at(&server), "/asked/abort").starts_with("HTTP/1.1 403"));
    let (status, headers, _) =
        parts(&ask(at(&server), "POST /asked/told", &["content-type: application/grpc"], ""));
    assert_eq!(status, "http/1.1 200 ok");
    for line in
        ["grpc-status: 16", "grpc-message: go away", "content-type: application/grpc", "set-cookie: a=1"]
    {
        assert!(headers.iter().any(|have| have == line), "{line} in {headers:?}");
    }
}

#[test]
fn a_check_says_who_calls_and_what() {
    let lab = Lab::new();
    let answers = json!({"/asked?q=1": {"status": {"code": 0}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let (backend, extra) = (http_backend(), Provider::new(authorizer.at, GRPC).facts());
    let server = lab.server(&Server { policy: None, backend, extra: &extra, ..Server::default() });
    let web = lab.client("web", at(&server), "HTTP", "ISTIO_MUTUAL");
    let lines = ["x-dup: 1", "X-Dup: 2", "x-envoy-auth-partial-body: true", "authorization: Bearer x"];
    assert!(ask(at(&web), "GET /asked?q=1", &lines, "").starts_with("HTTP/1.1 200"));
    let asked = authorizer.check();
    assert_eq!(asked["metadata"]["te"], json!(null));
    let attributes = &asked["check"]["attributes"];
    assert_eq!(attributes["source"]["principal"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(attributes["destination"]["principal"], "spiffe://cluster.local/ns/shop/sa/cart");
    let address = &attributes["source"]["address"]["socketAddress"];
    assert_eq!(address["address"], "127.0.0.1");
    assert!(address["portValue"].as_u64().is_some_and(|port| port > 1024));
    assert_eq!(attributes["destination"]["address"]["socketAddress"]["portValue"], backend.port());
    assert_eq!(attributes["metadataContext"], json!({}));
    assert!(attributes["request"]["time"].as_str().is_some_and(|time| time.starts_with("20")));
    let http = &attributes["request"]["http"];
    assert_eq!(
        (&http["method"], &http["path"], &http["host"]),
        (&json!("GET"), &json!("/asked?q=1"), &json!(HOST))
    );
    assert_eq!(
        (&http["protocol"], &http["body"], &http["size"]),
        (&json!("HTTP/1.1"), &json!(null), &json!(null))
    );
    assert!(http["id"].as_str().is_some_and(|id| id.parse::<u64>().is_ok()));
    let headers = &http["headers"];
    for (name, value) in [
        (":method", "GET"),
        (":path", "/asked?q=1"),
        (":authority", HOST),
        (":scheme", "http"),
        ("x-dup", "1,2"),
        ("authorization", "Bearer x"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    let certificate = headers["x-forwarded-client-cert"].as_str().expect("of the caller");
    assert!(certificate.contains("URI=spiffe://cluster.local/ns/shop/sa/web"), "{certificate}");
    for name in ["host", "connection", "x-envoy-auth-partial-body"] {
        assert_eq!(headers[name], json!(null), "{name}");
    }
}

#[test]
fn what_a_provider_changes_arrives_and_is_judged_by_the_policies_behind_it() {
    let lab = Lab::new();
    let set = |name: &str, value: &str| json!({"header": {"key": name, "value": value}});
    let answers = json!({
        "/asked/change?b=2&a=1": {"okResponse": {
            "headers": [set("x-user", "alice"), {"header": {"key": "x-list", "value": "new"}, "append": true}],
            "headersToRemove": ["authorization", "host"],
            "responseHeadersToAdd": [set("x-told", "1"), set("content-length", "1"), set("connection", "close, x-told")],
            "queryParametersToSet": [{"key": "c", "value": "3"}], "queryParametersToRemove": ["b"]}},
        "/asked/rewrite": {"okResponse": {"headers": [set(":path", "/public/%2e%2e/admin/x")]}},
        "/asked/mark": {"okResponse": {"headers": [set("x-forbidden", "yes")], "responseHeadersToAdd": [set("x-told", "1")]}},
        "/asked/host": {"okResponse": {"headers": [set("host", "denied.example")]}},
        "/asked/smuggle": {"okResponse": {"headers": [set("x-a", "a\r\nx-b: c")]}},
        "/asked/frame": {"okResponse": {"headers": [set("transfer-encoding", "chunked"), set("content-length", "1")]}},
    });
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let policies = "- {namespace: shop, name: deny, spec: {action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}, \
                    {to: [{operation: {hosts: [denied.example]}}]}, \
                    {when: [{key: 'request.headers[x-forbidden]', values: ['yes']}]}]}}\n";
    let server = Provider { policies, ..Provider::new(authorizer.at, GRPC) }.server(&lab);
    let answer = ask(
        at(&server),
        "GET /asked/change?b=2&a=1",
        &["x-list: old", "x-user: mallory", "authorization: Bearer x"],
        "",
    );
    let (status, headers, body) = parts(&answer);
    assert_eq!(status, "http/1.1 200 ok");
    assert!(headers.contains(&"x-told: 1".to_owned()), "{headers:?}");
    assert!(body.contains("GET /asked/change?a=1&c=3 "), "{body}");
    for line in ["x-user: alice\n", "x-list: old,new\n", &format!("host: {HOST}\n")] {
        assert!(body.contains(line), "{line} in {body}");
    }
    assert!(!body.contains("authorization") && !body.contains("mallory"), "{body}");
    for path in ["/asked/rewrite", "/asked/mark", "/asked/host"] {
        let (status, headers, body) = parts(&get(at(&server), path));
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("http/1.1 403 forbidden", "RBAC: access denied"),
            "{path}"
        );
        assert_eq!(headers.contains(&"x-told: 1".to_owned()), path == "/asked/mark");
    }
    let (status, _, body) = parts(&get(at(&server), "/asked/smuggle"));
    assert_eq!((status.as_str(), body.as_str()), ("http/1.1 500 internal server error", ""));
    let body = parts(&ask(at(&server), "POST /asked/frame", &[], "hello")).2;
    assert!(body.ends_with("body 5\n") && body.contains("content-length: 5\n"), "{body}");
}

#[test]
fn a_body_is_shown_up_to_the_limit_and_goes_on_whole() {
    let lab = Lab::new();
    let answers = json!({"/asked": {"status": {"code": 0}}, "/asked/no": {"status": {"code": 7}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let partial = format!("{GRPC}, body: {{maxRequestBytes: 10, allowPartialMessage: true}}");
    let server = Provider::new(authorizer.at, &partial).server(&lab);
    let shown = |check: &serde_json::Value| {
        let http = check["check"]["attributes"]["request"]["http"].clone();
        let is_partial = http["headers"]["x-envoy-auth-partial-body"].clone();
        (http["body"].clone(), http["rawBody"].clone(), http["size"].clone(), is_partial)
    };
    let null = json!(null);
    for (body, seen, is_partial) in [
        ("0123", "0123", "false"),
        ("0123456789", "0123456789", "false"),
        ("0123456789abcdef", "0123456789", "true"),
    ] {
        let answer = ask(at(&server), "POST /asked", &[], body);
        assert!(answer.contains(&format!("body {}\n", body.len())), "{answer}");
        let (text, raw, size, partial) = shown(&authorizer.check());
        assert_eq!((&text, &raw, &partial), (&json!(seen), &null, &json!(is_partial)));
        assert_eq!(size, json!(body.len().to_string()));
    }
    // Chunked, in pieces, with trailers, and longer than any buffer: in order and to the end.
    let long = "0123456789abcdef".repeat(20_000);
    let chunked: String = long
        .as_bytes()
        .chunks(7000)
        .map(|piece| format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)))
        .collect();
    let request = format!(
        "POST /asked HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunked}0\r\n\r\n"
    );
    let answer = exchange(at(&server), request.as_bytes());
    assert!(answer.contains(&format!("body {}\n", long.len())), "{answer}");
    assert_eq!(shown(&authorizer.check()).3, json!("true"));
    let file = lab.path("body");
    std::fs::write(&file, &long).expect("writable");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let arguments = [
            "-sS",
            version,
            "--data-binary",
            &format!("@{}", file.display()),
            &format!("http://{}/asked", at(&server)),
        ];
        let answer = run("curl", &arguments, "");
        assert!(answer.contains(&format!("body {}\n", long.len())), "{version}: {answer}");
        authorizer.check();
    }
    assert!(ask(at(&server), "POST /asked/no", &[], "0123").starts_with("HTTP/1.1 403"));
    authorizer.check();

    let whole = format!("{GRPC}, failOpen: true, body: {{maxRequestBytes: 10, packAsBytes: true}}");
    let server = Provider::new(authorizer.at, &whole).server(&lab);
    assert!(ask(at(&server), "POST /asked", &[], "0123456789").contains("body 10\n"));
    let (text, raw, ..) = shown(&authorizer.check());
    assert_eq!((text, raw), (null, json!("MDEyMzQ1Njc4OQ==")));
    let (status, _, body) = parts(&ask(at(&server), "POST /asked", &[], "0123456789a"));
    assert_eq!((status.as_str(), body.as_str()), ("http/1.1 413 payload too large", "Payload Too Large"));
    let unannounced = format!(
        "POST /asked HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n6789ab\r\n"
    );
    assert!(exchange(at(&server), unannounced.as_bytes()).starts_with("HTTP/1.1 413"));
    let url = format!("http://{}/asked", at(&server));
    let grpc = [
        "-sSi",
        "--http2-prior-knowledge",
        "-H",
        "content-type: application/grpc",
        "-d",
        "0123456789a",
        &url,
    ];
    // The answer comes before the body was read, and its stream ends with it (RFC 9113 section 8.1). This curl calls it an
    // error if that happens while it is sending, so that it may have to be asked more than once.
    let told = (0..50).find_map(|_| {
        let output = std::process::Command::new("curl").args(grpc).output().expect("curl");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() || output.status.code() == Some(92), "{output:?}");
        output.status.success().then_some(answer)
    });
    let answer = told.expect("an answer that curl takes");
    assert!(
        answer.starts_with("HTTP/2 200") && answer.contains("grpc-message: Payload Too Large"),
        "{answer}"
    );
    assert!(authorizer.is_at_rest(), "a body that is too long is nobody's business");
}

/// HTTP/2 carries many checks at a time over one connection.
#[test]
fn many_callers_are_asked_about_at_a_time() {
    let lab = Lab::new();
    let answers = json!({"/asked": {"status": {"code": 0}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let server = Provider::new(authorizer.at, GRPC).server(&lab);
    let address = at(&server);
    let callers: Vec<_> = (0..64).map(|_| std::thread::spawn(move || get(address, "/asked"))).collect();
    for caller in callers {
        assert!(caller.join().expect("no panic").starts_with("HTTP/1.1 200"));
    }
    (0..64).for_each(|_| drop(authorizer.check()));
    assert!(authorizer.is_at_rest());
}

/// A provider of the mesh is reached as its endpoints are: over mutual TLS, and only if it proves to be who it should.
#[test]
fn a_provider_behind_a_sidecar_is_asked_over_mutual_tls() {
    let lab = Lab::new();
    let answers = json!({"/asked": {"status": {"code": 0}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    // Both servers have the identity `cart`; nobody else is let in.
    let only_cart =
        "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}";
    let sidecar = lab.server(&Server {
        protocol: "HTTP2",
        policy: Some(only_cart),
        backend: authorizer.at,
        ..Server::default()
    });
    for (expected, status) in [("cart", "HTTP/1.1 200"), ("other", "HTTP/1.1 403")] {
        let facts = Provider::new(at(&sidecar), GRPC).facts().replace("tls: PLAINTEXT", "tls: ISTIO_MUTUAL");
        let names = format!(
            "namespace: shop\n      subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/{expected}']"
        );
        let extra = facts.replace("namespace: shop\n", &format!("{names}\n"));
        let server = lab.server(&Server {
            mode: "PERMISSIVE",
            policy: None,
            backend: http_backend(),
            extra: &extra,
            ..Server::default()
        });
        let answer = get(at(&server), "/asked");
        assert!(answer.starts_with(status), "{expected}: {answer}");
    }
    assert_eq!(authorizer.check()["check"]["attributes"]["request"]["http"]["path"], "/asked");
    assert!(authorizer.is_at_rest(), "whoever proved to be somebody else was told nothing");
}

#[test]
fn changed_settings_are_in_force_with_the_next_request() {
    let lab = Lab::new();
    let answers = json!({"/asked": {"status": {"code": 0}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let nobody = NOBODY;
    let backend = http_backend();
    let with = |at, settings| Provider::new(at, settings).facts();
    let facts = |extra: &str| {
        lab.server_file(&Server { mode: "PERMISSIVE", policy: None, backend, extra, ..Server::default() })
    };
    let server = maille_proxy::StaticProxy::start(&facts(&with(nobody, GRPC))).expect("it starts");
    assert!(get(at(&server), "/asked").starts_with("HTTP/1.1 403"));
    for (at_provider, settings, expected) in [
        (authorizer.at, GRPC, "HTTP/1.1 200"),
        (nobody, "statusOnError: 418, grpc: {}", "HTTP/1.1 418"),
        (nobody, "failOpen: true, grpc: {}", "HTTP/1.1 200"),
    ] {
        facts(&with(at_provider, settings));
        server.reload().expect("good facts");
        let deadline = std::time::Instant::now() + crate::lab::PATIENCE;
        let mut answer = get(at(&server), "/asked");
        while !answer.starts_with(expected) && std::time::Instant::now() < deadline {
            answer = get(at(&server), "/asked");
        }
        assert!(answer.starts_with(expected), "{settings}: {answer}");
    }
}

#[test]
fn callers_of_http2_are_asked_about_as_such() {
    let lab = Lab::new();
    let answers = json!({"/asked?q=1": {"okResponse": {"headers": [{"header": {"key": ":path", "value": "/other"}},
        {"header": {"key": "host", "value": "other.example"}}]}}});
    let Some(authorizer) = PythonAuthorizer::start(&lab, &answers.to_string()) else { return };
    let server = Provider::new(authorizer.at, GRPC).server(&lab);
    let url = format!("http://{}/asked?q=1", at(&server));
    let answer =
        run("curl", &["-sS", "--http2-prior-knowledge", "-H", "cookie: a=1", "-H", "cookie: b=2", &url], "");
    assert!(answer.contains("other.example") && answer.contains("/other HTTP/2.0"), "{answer}");
    let http = authorizer.check()["check"]["attributes"]["request"]["http"].clone();
    assert_eq!((&http["protocol"], &http["path"]), (&json!("HTTP/2"), &json!("/asked?q=1")));
    assert_eq!(http["headers"][":authority"], json!(at(&server).to_string()));
    assert_eq!(http["headers"]["host"], json!(null));
}

//! The HTTP form, as Envoy 1.40 has it.

use maille_proto::facts::{ExtAuthzHttp, ExtensionProvider, extension_provider};

use super::super::provider::{Kind, Providers};
use super::*;

fn with_settings<T>(http: ExtAuthzHttp, test: impl FnOnce(&HttpSettings) -> T) -> T {
    let wire = ExtensionProvider {
        name: "a".to_owned(),
        host: "authz".to_owned(),
        port: 80,
        kind: Some(extension_provider::Kind::Http(http)),
        ..ExtensionProvider::default()
    };
    let provider = Providers::compile(&[wire], None).find("a").unwrap();
    let Kind::Http(settings) = &provider.kind else { panic!("not the HTTP form") };
    test(settings)
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn request(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = "/ok?q=1".parse().unwrap();
    for (name, value) in [("host", "cart:80")].iter().chain(headers) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request
}

fn shown(headers: &HeaderMap) -> Vec<String> {
    let mut shown: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    shown.sort();
    shown
}

/// Measured with Envoy 1.40.
#[test]
fn a_check_shows_host_authorization_and_what_is_listed() {
    let http = ExtAuthzHttp {
        path_prefix: "/pre".to_owned(),
        include_request_headers: list(&["X-Inc*", "content-length", "connection", "transfer-encoding"]),
        include_additional_headers: [("X-Inc-Add".to_owned(), "added".to_owned())].into(),
        ..ExtAuthzHttp::default()
    };
    let request = request(&[
        ("x-inc-1", "a"),
        ("x-inc-1", "b"),
        ("x-inc-add", "mine"),
        ("x-other", "1"),
        ("authorization", "Bearer x"),
        ("content-length", "13"),
        ("x-envoy-auth-partial-body", "false"),
    ]);
    let body = Seen { bytes: "0123456789".into(), is_partial: true, received: 13 };
    with_settings(http, |settings| {
        let (question, bytes) = question(settings, &request, Some(body)).unwrap();
        assert_eq!((question.uri().to_string().as_str(), &bytes[..]), ("/pre/ok?q=1", &b"0123456789"[..]));
        assert_eq!(
            shown(question.headers()),
            [
                "authorization: Bearer x",
                "content-length: 10",
                "host: cart:80",
                "x-envoy-auth-partial-body: true",
                "x-inc-1: a,b",
                "x-inc-add: added"
            ]
        );
    });
    with_settings(ExtAuthzHttp::default(), |settings| {
        let (question, _) = question(settings, &request, None).unwrap();
        assert_eq!(question.uri(), "/ok?q=1");
        assert_eq!(
            shown(question.headers()),
            ["authorization: Bearer x", "content-length: 0", "host: cart:80"]
        );
    });
}

fn answer(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    map
}

const ANSWER: [(&str, &str); 14] = [
    ("x-a", "1"),
    ("x-a", "2"),
    ("x-up", "new"),
    ("x-down", "1"),
    ("x-deny", "1"),
    ("host", "evil"),
    ("location", "/l"),
    ("www-authenticate", "Basic"),
    ("content-type", "text/html"),
    ("x-envoy-auth-headers-to-remove", "x-rm, X-Rm2,"),
    ("connection", "keep-alive, x-hop"),
    ("x-hop", "1"),
    ("keep-alive", "5"),
    ("content-length", "4"),
];

/// Measured with Envoy 1.40.
#[test]
fn headers_go_where_the_lists_say() {
    let http = ExtAuthzHttp {
        headers_to_upstream_on_allow: list(&["X-Up", "x-a", "x-hop"]),
        headers_to_downstream_on_deny: list(&["x-deny"]),
        headers_to_downstream_on_allow: list(&["x-d*", "x-a"]),
        ..ExtAuthzHttp::default()
    };
    let headers = answer(&ANSWER);
    with_settings(http, |settings| {
        let Verdict::Allowed(allowed) = verdict(settings, StatusCode::OK, &headers, Bytes::new()) else {
            panic!("not allowed")
        };
        let names: Vec<&str> = allowed.set.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-a", "x-a", "x-up"]);
        assert_eq!(allowed.remove, ["x-rm", "X-Rm2"]);
        let names: Vec<&str> = allowed.for_caller.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-a", "x-a", "x-down", "x-deny"]);
        for status in [StatusCode::UNAUTHORIZED, StatusCode::CREATED, StatusCode::FOUND] {
            let Verdict::Denied(denial) = verdict(settings, status, &headers, "body".into()) else {
                panic!("not denied")
            };
            let response = denial.response(false).unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(
                shown(response.headers()),
                [
                    "content-length: 4",
                    "content-type: text/plain",
                    "location: /l",
                    "www-authenticate: Basic",
                    "x-deny: 1"
                ]
            );
        }
    });
}

/// Measured with Envoy 1.40.
#[test]
fn without_a_list_a_denial_tells_all_but_what_is_of_the_connection() {
    with_settings(ExtAuthzHttp::default(), |settings| {
        let headers = answer(&ANSWER);
        let verdict = verdict(settings, StatusCode::NOT_FOUND, &headers, "body".into());
        let Verdict::Denied(denial) = verdict else { panic!("not denied") };
        let response = denial.response(false).unwrap();
        let expected = [
            "content-length: 4",
            "content-type: text/html",
            "location: /l",
            "www-authenticate: Basic",
            "x-a: 1",
            "x-a: 2",
            "x-deny: 1",
            "x-down: 1",
            "x-up: new",
        ];
        assert_eq!(shown(response.headers()), expected);
    });
}

#[test]
fn a_server_error_is_a_failure_and_no_denial() {
    with_settings(ExtAuthzHttp::default(), |settings| {
        for status in [500, 502, 503, 599] {
            let status = StatusCode::from_u16(status).unwrap();
            let verdict = verdict(settings, status, &HeaderMap::new(), Bytes::new());
            assert!(matches!(verdict, Verdict::Failed { .. }), "{status}");
        }
    });
}

use http::HeaderMap;

use super::*;

const BASE: PathNormalization = PathNormalization::Base;

fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder().uri(target).version(Version::HTTP_11);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).expect("a request")
}

fn checked(mut request: Request<()>) -> Result<Request<()>, Malformed> {
    check(&mut request, BASE).map(|_| request)
}

#[test]
fn exactly_one_host_is_demanded() {
    assert_eq!(checked(request("/", &[])).err(), Some(Malformed::Host));
    assert_eq!(checked(request("/", &[("host", "a"), ("host", "b")])).err(), Some(Malformed::Host));
    for bad in ["", "a/b", "user@a", "a b", "a,b", "a#"] {
        assert_eq!(checked(request("/", &[("host", bad)])).err(), Some(Malformed::Authority), "{bad:?}");
    }
    for good in ["a", "a:80", "[::1]:80", "A.b-c_d"] {
        assert!(checked(request("/", &[("host", good)])).is_ok(), "{good}");
    }
}

/// RFC 9112 section 3.2.2: what policy sees is what the upstream sees.
#[test]
fn an_absolute_target_replaces_the_host() {
    let request = checked(request("http://real.example/x?y", &[("host", "forged.example")])).expect("valid");
    assert_eq!(authority(&request), "real.example");
    assert_eq!(request.headers()["host"], "real.example");
    assert_eq!(request.uri(), "/x?y");
}

#[test]
fn the_path_judged_is_the_path_forwarded() {
    let request = checked(request("/a/../admin/%61?q=/../x", &[("host", "a")])).expect("valid");
    assert_eq!(path(&request), "/admin/a?q=/../x");
    assert_eq!(request.uri(), "/admin/a?q=/../x");
    assert_eq!(checked(self::request("/a%00b", &[("host", "a")])).err(), Some(Malformed::Path));
}

#[test]
fn hop_by_hop_fields_are_dropped_and_trailers_kept() {
    let request = checked(request(
        "/",
        &[
            ("host", "a"),
            ("connection", "close, X-Secret, content-length, host"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("proxy-connection", "x"),
            ("upgrade", "h2c"),
            ("x-envoy-peer-metadata", "x"),
            ("content-length", "0"),
        ],
    ))
    .expect("valid");
    let names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-length"], "0");
}

#[test]
fn upgrades_are_seen_only_where_they_are_asked_for() {
    let ask = |headers: &[(&str, &str)]| {
        let mut request = request("/", &[&[("host", "a")], headers].concat());
        let upgrade = check(&mut request, BASE).expect("valid");
        (upgrade, request.headers().contains_key("upgrade"))
    };
    let (upgrade, kept) = ask(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
    assert_eq!((upgrade, kept), (Some(HeaderValue::from_static("websocket")), true));
    assert_eq!(ask(&[("upgrade", "websocket")]), (None, false));
    assert_eq!(ask(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]), (None, false));
}

#[test]
fn codings_other_than_chunked_are_refused() {
    let coded = |value| checked(request("/", &[("host", "a"), ("transfer-encoding", value)])).err();
    assert_eq!(coded("chunked"), None);
    assert_eq!(coded("gzip, chunked"), Some(Malformed::TransferCoding));
    let two = [("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
    assert_eq!(checked(request("/", &two)).err(), Some(Malformed::TransferCoding));
}

#[test]
fn http10_and_bare_paths_are_refused() {
    let mut old = request("/", &[("host", "a")]);
    *old.version_mut() = Version::HTTP_10;
    assert_eq!(checked(old).err(), Some(Malformed::Http10));
    let mut stars = request("/", &[("host", "a")]);
    *stars.uri_mut() = Uri::from_static("*");
    assert_eq!(checked(stars).err(), Some(Malformed::Path));
}

#[test]
fn versions_change_without_losing_the_authority() {
    let mut request = checked(request("/x?y", &[("host", "a.example:8080")])).expect("valid");
    adapt(&mut request, Version::HTTP_2).expect("possible");
    assert_eq!(request.uri(), "http://a.example:8080/x?y");
    assert!(!request.headers().contains_key("host"));
    request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    request.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    adapt(&mut request, Version::HTTP_11).expect("possible");
    assert_eq!(request.uri(), "/x?y");
    assert_eq!(request.headers()["host"], "a.example:8080");
    assert_eq!(request.headers()["cookie"], "a=1; b=2");
}

#[test]
fn http2_keeps_one_authority() {
    let mut request = request("http://real.example/x", &[("host", "forged.example")]);
    *request.version_mut() = Version::HTTP_2;
    let request = checked(request).expect("valid");
    assert_eq!(authority(&request), "real.example");
    assert!(!request.headers().contains_key("host"));
}

#[test]
fn grpc_is_known_by_its_content_type() {
    let with =
        |value: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
    for (value, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        assert_eq!(is_grpc(&with(value)), expected, "{value}");
    }
}

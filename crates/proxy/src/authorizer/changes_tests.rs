//! What a provider may change, and what it may not.

use http::Response;

use super::*;

fn request(version: Version, target: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.version_mut() = version;
    *request.uri_mut() = match version == Version::HTTP_2 {
        true => format!("http://cart{target}").parse().unwrap(),
        false => target.parse().unwrap(),
    };
    if version != Version::HTTP_2 {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("cart"));
    }
    for (name, value) in headers {
        request
            .headers_mut()
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    request
}

fn pairs(headers: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

fn setting(headers: &[(&str, &str)]) -> Allowed {
    Allowed { set: pairs(headers), ..Allowed::default() }
}

fn change(allowed: Allowed, request: &mut Request<Body>) -> Result<Changes, String> {
    allowed.change(request, Normalization::Base, 60 * 1024)
}

fn all(request: &Request<Body>, name: &str) -> Vec<String> {
    request.headers().get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
}

/// Measured with Envoy 1.40.
#[test]
fn headers_are_set_appended_and_removed_as_envoy_does() {
    let old = [
        ("x-set", "old"),
        ("x-set", "older"),
        ("x-append", "old"),
        ("x-append", "older"),
        ("cookie", "a=1"),
        ("x-blank", ""),
        ("x-remove", "old"),
    ];
    let mut request = request(Version::HTTP_11, "/a", &old);
    let allowed = Allowed {
        set: pairs(&[("X-Set", "new"), ("x-new", "1"), ("x-new", "2"), ("x-empty", "")]),
        append: pairs(&[
            ("x-append", "new"),
            ("x-absent", "new"),
            ("Cookie", "b=2"),
            ("x-append", ""),
            ("x-blank", "new"),
        ]),
        remove: ["X-Remove", "host", ":path", "no name", "x-nothing"].map(str::to_owned).to_vec(),
        ..Allowed::default()
    };
    change(allowed, &mut request).unwrap();
    assert_eq!(all(&request, "x-set"), ["new"]);
    assert_eq!(all(&request, "x-new"), ["2"]);
    assert_eq!(all(&request, "x-empty"), [""]);
    assert_eq!(all(&request, "x-append"), ["old,new", "older"]);
    assert_eq!(all(&request, "cookie"), ["a=1; b=2"]);
    assert_eq!(all(&request, "x-blank"), ["new"]);
    assert!(all(&request, "x-absent").is_empty() && all(&request, "x-remove").is_empty());
    assert_eq!((all(&request, "host"), request.uri().path()), (vec!["cart".to_owned()], "/a"));
}

/// Measured with Envoy 1.40.
#[test]
fn parameters_are_set_and_removed_as_envoy_does() {
    let with = |target: &str, set: &[(&str, &str)], remove: &[&str]| {
        let mut request = request(Version::HTTP_11, target, &[]);
        let set = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let remove = remove.iter().map(|n| (*n).to_owned()).collect();
        let allowed = Allowed { set_parameters: set, remove_parameters: remove, ..Allowed::default() };
        change(allowed, &mut request).map(|_| request.uri().to_string())
    };
    let changed = with("/query?b=2&a=1&c&a=3&d=", &[("z", "9"), ("a", "new")], &["b"]);
    assert_eq!(changed.as_deref(), Ok("/query?a=new&c=&d=&z=9"));
    assert_eq!(with("/noquery", &[("z", "9")], &[]).as_deref(), Ok("/noquery?z=9"));
    assert_eq!(with("/a?x=%2F&&y", &[("z", "9")], &[]).as_deref(), Ok("/a?=&x=%2F&y=&z=9"));
    assert_eq!(with("/a?b&", &[("z", "9")], &[]).as_deref(), Ok("/a?b=&z=9"));
    assert_eq!(with("/a?x=1", &[], &["x"]).as_deref(), Ok("/a"));
    for (name, value) in
        [("z", "a b"), ("z", "a&b=c"), ("z", "\r\n"), ("", "a"), ("a=b", "c"), ("z", "a#b"), ("ü", "a")]
    {
        assert!(with("/a", &[(name, value)], &[]).is_err(), "{name}={value}");
    }
}

#[test]
fn a_path_that_a_provider_sets_is_canonicalised_before_it_is_judged() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut request = request(version, "/a?b=c", &[]);
        change(setting(&[(":path", "/public/../admin?x=/../y")]), &mut request).unwrap();
        assert_eq!(head::path(&request), "/admin?x=/../y");
        assert_eq!(head::authority(&request), "cart");
    }
    for bad in ["", "admin", "http://other/admin", "*", "/a b", "/a\r\nx: y", "//../\u{1}"] {
        let mut request = request(Version::HTTP_11, "/a", &[]);
        assert!(change(setting(&[(":path", bad)]), &mut request).is_err(), "{bad:?}");
    }
}

#[test]
fn a_host_and_a_method_can_be_set_but_no_nonsense() {
    for (version, name) in
        [(Version::HTTP_11, "Host"), (Version::HTTP_2, ":authority"), (Version::HTTP_2, "host")]
    {
        let mut request = request(version, "/a", &[]);
        change(
            setting(&[(name, "other.example:80"), (":method", "PUT"), (":scheme", "https")]),
            &mut request,
        )
        .unwrap();
        assert_eq!((head::authority(&request), request.method()), ("other.example:80", &Method::PUT));
        assert_eq!(all(&request, "host").len(), usize::from(version == Version::HTTP_11));
    }
    for (name, value) in [
        ("host", "a b"),
        ("host", ""),
        ("host", "user@host"),
        (":authority", "a/b"),
        (":method", "G T"),
        (":method", "HEAD"),
        (":method", "CONNECT"),
        (":status", "200"),
    ] {
        let mut request = request(Version::HTTP_11, "/a", &[]);
        assert!(change(setting(&[(name, value)]), &mut request).is_err(), "{name}: {value}");
    }
}

#[test]
fn framing_is_not_the_providers_to_change() {
    let sent = [("content-length", "3"), ("x-a", "1")];
    let mut request = request(Version::HTTP_11, "/a", &sent);
    let hostile = [
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "upgrade, x-a"),
        ("Upgrade", "websocket"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Keep-Alive", "1"),
        ("Expect", "100-continue"),
    ];
    let allowed = Allowed {
        append: pairs(&hostile),
        remove: hostile.iter().map(|(name, _)| (*name).to_owned()).collect(),
        ..setting(&hostile)
    };
    change(allowed, &mut request).unwrap();
    assert_eq!((request.headers().len(), all(&request, "content-length")), (3, vec!["3".to_owned()]));
    let for_caller =
        hostile.map(|(name, value)| (Put::Set, name.to_owned(), value.as_bytes().to_vec())).to_vec();
    let changes = change(Allowed { for_caller, ..Allowed::default() }, &mut request).unwrap();
    let mut answer = Response::new(());
    changes.apply(answer.headers_mut());
    assert!(answer.headers().is_empty());
}

#[test]
fn an_illegal_header_spoils_the_whole_answer() {
    for (name, value) in [("x-a", "a\r\nx-b: c"), ("x a", "a"), ("x-a", "a\0b"), ("", "a"), ("x\n", "a")] {
        let mut request = request(Version::HTTP_11, "/a", &[("x-a", "old")]);
        assert!(change(setting(&[(name, value)]), &mut request).is_err());
        let append = Allowed { append: pairs(&[(name, value)]), ..Allowed::default() };
        assert!(change(append, &mut request).is_err());
        let for_caller = vec![(Put::Add, name.to_owned(), value.as_bytes().to_vec())];
        assert!(change(Allowed { for_caller, ..Allowed::default() }, &mut request).is_err());
    }
}

#[test]
fn a_head_cannot_be_blown_up() {
    let many: Vec<(String, Vec<u8>)> = (0..200).map(|i| (format!("x-{i}"), b"v".to_vec())).collect();
    let mut small = request(Version::HTTP_11, "/a", &[]);
    assert!(change(Allowed { set: many, ..Allowed::default() }, &mut small).is_err());
    let mut small = request(Version::HTTP_11, "/a", &[]);
    assert!(change(setting(&[("x-long", &"v".repeat(61 * 1024))]), &mut small).is_err());
}

/// Measured with Envoy 1.40.
#[test]
fn an_answers_headers_change_kind_by_kind() {
    let given = [
        (Put::SetIfPresent, "x-there", "new"),
        (Put::SetIfPresent, "x-absent", "new"),
        (Put::AddIfAbsent, "x-kept", "new"),
        (Put::AddIfAbsent, "x-added", "new"),
        (Put::Set, "x-set", "new"),
        (Put::Add, "x-more", "new"),
        (Put::Add, ":status", "200"),
    ];
    let given = given.map(|(put, name, value)| (put, name.to_owned(), value.as_bytes().to_vec()));
    let changes = Changes::check(given.to_vec()).unwrap();
    let mut headers = HeaderMap::new();
    for name in ["x-there", "x-kept", "x-set", "x-more"] {
        headers.insert(name, HeaderValue::from_static("old"));
    }
    changes.apply(&mut headers);
    let mut shown: Vec<String> =
        headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
    shown.sort();
    assert_eq!(shown, ["x-added=new", "x-kept=old", "x-more=new", "x-more=old", "x-set=new", "x-there=new"]);
}

//! One fetch.

use std::time::{Duration, Instant};

use maille_control::keys::{Fetcher, KeySource, Roots};
use maille_testkit::TestAuthority;
use serde_json::{Value, json};

use crate::server::{LONG, Reply, Server, answer, key_set, url};

const SECRET: &str = "SECRET-of-the-answer";

async fn plain() -> (Server, Fetcher) {
    let server = Server::start(None).await;
    let fetcher = server.fetcher(&TestAuthority::new());
    (server, fetcher)
}

#[tokio::test]
async fn public_keys_of_a_url_are_passed_on_and_nothing_else() {
    let (server, fetcher) = plain().await;
    let set = json!({
        "keys": [
            { "kty": "RSA", "kid": "a", "n": "AQ", "e": "AQAB", "d": SECRET },
            { "kty": "oct", "kid": "b", "k": SECRET },
            { "kty": "RSA", "kid": "c", "use": "enc", "n": "AQ", "e": "AQAB" },
        ],
        "note": SECRET,
    });
    server.script.json("/keys?tenant=1", &set);
    let keys = fetcher.keys(&url("http://idp.example:8080/keys?tenant=1"), LONG).await.expect("a key set");
    let read: Value = serde_json::from_str(&keys).expect("JSON");
    assert_eq!(read, json!({ "keys": [{ "kty": "RSA", "kid": "a", "n": "AQ", "e": "AQAB" }] }));
    let asked = server.script.asked().concat().to_lowercase();
    assert!(asked.starts_with("get /keys?tenant=1 http/1.1\r\n"), "{asked}");
    assert!(asked.contains("host: idp.example:8080\r\n") && !asked.contains("authorization"), "{asked}");
}

#[tokio::test]
async fn https_needs_the_name_that_was_asked_for_and_a_trusted_root() {
    let authority = TestAuthority::new();
    let credential = authority.server(&["idp.example"], &[]);
    let server = Server::start(Some(&credential)).await;
    server.script.json("/keys", &key_set("a"));
    let trusting = server.fetcher(&authority);
    trusting.keys(&url("https://idp.example/keys"), LONG).await.expect("the name and root are right");
    let problem = trusting.keys(&url("https://other.example/keys"), LONG).await.expect_err("another name");
    assert!(problem.contains("https://other.example/keys") && problem.contains("idp.example"), "{problem}");
    let problem = server.fetcher(&TestAuthority::new()).keys(&url("https://idp.example/keys"), LONG).await;
    assert!(problem.as_ref().is_err_and(|problem| problem.contains("certificate")), "{problem:?}");
    // Nor does the operating system vouch for it.
    let problem = server.with_roots(Roots::System).keys(&url("https://idp.example/keys"), LONG).await;
    let named = |problem: &String| problem.contains("certificate") || problem.contains("no roots");
    assert!(problem.as_ref().is_err_and(named), "{problem:?}");
    // A server without TLS.
    let (_server, fetcher) = plain().await;
    assert!(fetcher.keys(&url("https://idp.example/keys"), Duration::from_secs(2)).await.is_err());
}

#[tokio::test]
async fn an_issuer_says_where_its_keys_are() {
    let authority = TestAuthority::new();
    let credential = authority.server(&["idp.example"], &[]);
    let server = Server::start(Some(&credential)).await;
    let fetcher = server.fetcher(&authority);
    let document = "/realm/.well-known/openid-configuration";
    let issuer = |text: &str| KeySource::Issuer(text.to_owned());
    server.script.json("/certs", &key_set("a"));
    server.script.json(document, &json!({ "jwks_uri": "https://idp.example/certs" }));
    for text in ["https://idp.example/realm", "https://idp.example/realm/"] {
        assert!(fetcher.keys(&issuer(text), LONG).await.is_ok(), "{text}");
    }
    for (reply, named) in [
        (json!({ "jwks_uri": "http://idp.example/certs" }), "is not https"),
        (json!({ "jwks_uri": format!("https://u:{SECRET}@idp.example/") }), "holds a user or password"),
        (json!({ "jwks_uri": 1 }), "no jwks_uri"),
        (json!({ "keys": [SECRET] }), "no jwks_uri"),
        (json!(SECRET), "no jwks_uri"),
    ] {
        server.script.json(document, &reply);
        let problem = fetcher.keys(&issuer("https://idp.example/realm"), LONG).await.expect_err(named);
        assert!(
            problem.contains(named) && problem.contains(document) && !problem.contains(SECRET),
            "{problem}"
        );
    }
    let problem = fetcher.keys(&issuer("testing@secure.istio.io"), LONG).await.expect_err("no URL");
    assert!(problem.contains("issuer") && problem.contains("http"), "{problem}");
}

#[tokio::test]
async fn redirects_are_followed_within_their_scheme_and_not_for_ever() {
    let (server, fetcher) = plain().await;
    let to = |location: &str| answer("302 Found", &[("location", location)], SECRET);
    server.script.json("/keys", &key_set("a"));
    for location in ["/keys", "http://other.example/keys"] {
        server.script.on("/moved", to(location));
        assert!(fetcher.keys(&url("http://idp.example/moved"), LONG).await.is_ok(), "{location}");
    }
    for (location, named) in [
        ("https://idp.example/keys", "another scheme"),
        ("file:///etc/passwd", "no URL"),
        ("", "no URL"),
        ("/moved", "more than 5 times"),
    ] {
        server.script.on("/moved", to(location));
        let problem = fetcher.keys(&url("http://idp.example/moved"), LONG).await.expect_err(location);
        assert!(problem.contains(named) && !problem.contains(SECRET), "{problem}");
    }
}

#[tokio::test]
async fn bad_answers_are_named_and_not_repeated() {
    let (server, fetcher) = plain().await;
    let raw = |text: String| Reply::Raw(text.into_bytes());
    let ok = |body: &str| answer("200 OK", &[], body);
    for (reply, named) in [
        (answer("500 Internal Server Error", &[], SECRET), "answered 500"),
        (answer("404 Not Found", &[], SECRET), "answered 404"),
        (answer("304 Not Modified", &[], ""), "answered 304"),
        (ok(SECRET), "no JSON"),
        (ok(&format!("<html>{SECRET}</html>")), "no JSON"),
        (ok(&json!({ "secret": SECRET }).to_string()), "no list `keys`"),
        (ok("{\"keys\":[]}"), "no public key"),
        (ok(&format!("{{\"keys\":[{}1]}}", "[".repeat(200_000))), "no JSON"),
        (Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe".to_vec()), "no text"),
        (ok(&" ".repeat((1 << 20) + 1)), "more than 1048576 bytes"),
        (raw(format!("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{SECRET}")), "ended its answer early"),
        (raw(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(1 << 20))), "no answer in HTTP"),
        (raw(format!("{SECRET}\r\n\r\n")), "no answer in HTTP"),
        (raw(String::new()), "no answer in HTTP"),
    ] {
        server.script.on("/keys?key=hidden", reply);
        let problem = fetcher.keys(&url("http://idp.example/keys?key=hidden"), LONG).await.expect_err(named);
        assert!(problem.contains(named) && problem.contains("http://idp.example/keys"), "{named}: {problem}");
        assert!(!problem.contains(SECRET) && !problem.contains("hidden"), "{problem}");
    }
}

#[tokio::test]
async fn an_endless_answer_ends_at_the_bound() {
    let (server, fetcher) = plain().await;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let endless = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(64));
    server.script.on("/keys", Reply::Raw(endless.into_bytes()));
    let problem = fetcher.keys(&url("http://idp.example/keys"), LONG).await.expect_err("too long");
    assert!(problem.contains("more than 1048576 bytes"), "{problem}");
}

#[tokio::test]
async fn silence_ends_with_the_rules_time() {
    let (server, fetcher) = plain().await;
    server.script.on("/keys", Reply::Silence);
    let started = Instant::now();
    let limit = Duration::from_millis(50);
    let problem = fetcher.keys(&url("http://idp.example/keys"), limit).await.expect_err("silence");
    assert!(problem.contains("http://idp.example/keys") && problem.contains("50ms"), "{problem}");
    assert!(started.elapsed() < LONG);
}

#[tokio::test]
async fn the_control_planes_own_loopback_is_out_of_reach_by_any_name() {
    let server = Server::start(None).await;
    server.script.json("/keys", &key_set("a"));
    let port = server.port();
    for host in
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0", "[::]"]
    {
        let source = url(&format!("http://{host}:{port}/keys"));
        assert!(Fetcher::default().keys(&source, LONG).await.is_err(), "{host}");
    }
    let problem = Fetcher::default().keys(&url("http://169.254.169.254/latest/meta-data"), LONG).await;
    assert!(problem.as_ref().is_err_and(|problem| problem.contains("a link-local address")), "{problem:?}");
    assert!(server.script.asked().is_empty(), "nothing was asked");
}

#[tokio::test]
async fn a_url_with_a_password_is_refused_and_not_shown() {
    let (server, fetcher) = plain().await;
    server.script.json("/keys", &key_set("a"));
    let source = url(&format!("http://user:{SECRET}@idp.example/keys"));
    let problem = fetcher.keys(&source, LONG).await.expect_err("a password");
    assert!(problem.contains("jwksUri holds a user or password") && !problem.contains(SECRET), "{problem}");
    assert!(server.script.asked().is_empty(), "nothing was asked");
}

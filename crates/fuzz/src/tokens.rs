//! Tokens and key sets.

use std::time::{Duration, SystemTime};

use maille_policy::authentication::{
    Authentication, JwtHeader, JwtRule, RequestAuthentication, TokenCache, TokenRequest,
};

use crate::bytes::head_and_body;

/// A shared key, and the one token that is signed with it.
const KEYS: &str =
    r#"{"keys":[{"kty":"oct","kid":"k","alg":"HS256","k":"YSBrZXkgb2YgdGhpcnR5LXR3byBieXRlcywga25vd24"}]}"#;
const GOOD: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImsifQ.eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlIiwic3ViIjoiYWxpY2UiLCJhdWQiOlsiYSJdLCJncm91cHMiOlsiZGV2Il19.Hmb6Xu6wO1cDLJME0-2ABKOsACSYU7nCGXtuNRtz_T4";

fn authentication(jwks: &str) -> Authentication {
    let rule = JwtRule {
        issuer: "https://idp.example".to_owned(),
        audiences: vec!["a".to_owned()],
        jwks: Ok(jwks.to_owned()),
        from_headers: vec![
            JwtHeader { name: "authorization".to_owned(), prefix: "Bearer ".to_owned() },
            JwtHeader { name: "x-jwt".to_owned(), prefix: String::new() },
        ],
        from_params: vec!["token".to_owned()],
        from_cookies: vec!["session".to_owned()],
        forward_original_token: false,
        output_payload_to_header: "x-payload".to_owned(),
        output_claim_to_headers: Vec::new(),
        space_delimited_claims: vec!["groups".to_owned()],
    };
    let policy = RequestAuthentication { namespace: "a".to_owned(), name: "p".to_owned(), rules: vec![rule] };
    Authentication::compile(&[policy]).0
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The input is a request: its path and query, then headers, one a line; a line without a colon is a token in `x-jwt`.
/// Nothing is accepted but the one token that is signed.
pub(crate) fn jwt(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines();
    let path = lines.next().unwrap_or_default();
    let headers: Vec<(String, String)> = lines
        .map(|line| match line.split_once(':') {
            Some((name, value)) => (name.to_owned(), value.trim().to_owned()),
            None => ("x-jwt".to_owned(), line.to_owned()),
        })
        .collect();
    let (authentication, mut cache) = (authentication(KEYS), TokenCache::new());
    let request = TokenRequest { method: "GET", path, headers: &headers };
    let first = authentication.verify(&request, now(), &mut cache);
    let again = authentication.verify(&request, now(), &mut cache);
    match (first, again) {
        (Ok(first), Ok(again)) => {
            assert_eq!(first.claims, again.claims, "the cache changes what a token says: {text:?}");
            assert_eq!(first.changes, again.changes, "the cache changes what is forwarded: {text:?}");
            // In a query the dots may be escaped.
            let unescaped = text.replace("%2E", ".").replace("%2e", ".");
            let is_there = unescaped.contains(GOOD) || text.contains('%');
            assert!(first.claims.is_none() || is_there, "a token that nobody signed is accepted: {text:?}");
            assert!(
                first.changes.remove.iter().any(|name| &**name == "x-payload"),
                "a caller may forge: {text:?}"
            );
        }
        (Err(first), Err(again)) => assert_eq!(first, again, "the cache changes the reason: {text:?}"),
        (first, again) => panic!("the cache changes the answer from {first:?} to {again:?}: {text:?}"),
    }
}

/// The input is a key set and, after an empty line, a token that it shall verify.
pub(crate) fn jwks(input: &[u8]) {
    let (jwks, token) = head_and_body(input);
    let token = if token.is_empty() { GOOD.to_owned() } else { token };
    let (authentication, mut cache) = (authentication(&jwks), TokenCache::new());
    let headers = vec![("x-jwt".to_owned(), token)];
    let request = TokenRequest { method: "GET", path: "/", headers: &headers };
    if let Ok(verified) = authentication.verify(&request, now(), &mut cache) {
        // Whoever chooses the keys may sign; what is accepted is then at least what the rule is about.
        let claims = verified.claims.map(|claims| claims.as_map().get("iss").cloned());
        assert!(claims.is_none_or(|issuer| issuer == Some("https://idp.example".into())), "a foreign issuer");
    }
}

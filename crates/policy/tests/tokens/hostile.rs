//! Nothing that a caller can send makes verification panic, or take long, or remember much.

use maille_config::istio::{JwtHeader, JwtRule};
use maille_policy::authentication::{Authentication, TokenCache};
use proptest::prelude::*;

use crate::support::{Cases, ask, bearer, compile, rule};

fn everywhere() -> Authentication {
    let jwks = Cases::load().set("all");
    let own = JwtRule {
        from_headers: vec![JwtHeader { name: "x-token".to_owned(), prefix: "T ".to_owned() }],
        from_params: vec!["tok".to_owned()],
        from_cookies: vec!["tok".to_owned()],
        output_payload_to_header: "x-payload".to_owned(),
        ..rule(jwks.clone())
    };
    compile(&[rule(jwks), own])
}

proptest! {
    /// Any text in any place.
    #[test]
    fn no_text_anywhere_panics(
        path in any::<String>(),
        query in any::<String>(),
        values in proptest::collection::vec(any::<String>(), 0..4),
    ) {
        let authentication = everywhere();
        let mut cache = TokenCache::new();
        let names = ["authorization", "x-token", "cookie", "origin"];
        let headers: Vec<(String, String)> =
            names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value)).collect();
        for path in [path.clone(), format!("{path}?{query}"), format!("/?tok={query}")] {
            let _ = ask(&authentication, "GET", &path, &headers, &mut cache);
        }
        prop_assert!(cache.is_empty());
    }

    /// Any bytes as one of a token's three parts; none is ever good.
    #[test]
    fn no_bytes_in_a_token_panic_or_are_believed(
        header in proptest::collection::vec(any::<u8>(), 0..80),
        payload in proptest::collection::vec(any::<u8>(), 0..80),
        signature in proptest::collection::vec(any::<u8>(), 0..300),
        alg in prop::sample::select(vec!["RS256", "PS512", "ES256", "ES512", "EdDSA", "HS256", "none", "x"]),
        is_json in any::<bool>(),
    ) {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let authentication = everywhere();
        let (header, payload) = match is_json {
            true => (
                format!("{{\"alg\":\"{alg}\"}}").into_bytes(),
                b"{\"iss\":\"https://idp.example\",\"sub\":\"x\"}".to_vec(),
            ),
            false => (header, payload),
        };
        let [header, payload, signature] = [header, payload, signature].map(|part| URL_SAFE_NO_PAD.encode(part));
        let token = format!("{header}.{payload}.{signature}");
        prop_assert!(bearer(&authentication, &token).is_err());
    }

    /// A good token with one byte changed is no good, wherever that is.
    #[test]
    fn no_changed_byte_goes_unnoticed(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let cases = Cases::load();
        let good = cases.token("valid token");
        let at = at.index(good.len());
        let changed = format!("{}{to}{}", &good[..at], &good[at + 1..]);
        prop_assume!(changed != good);
        prop_assert!(bearer(&compile(&[rule(cases.set("rsa"))]), &changed).is_err());
    }

    /// Any text as a key set compiles, and refuses.
    #[test]
    fn no_key_set_panics(
        text in any::<String>(),
        kty in prop::sample::select(vec!["RSA", "EC", "OKP", "oct", "x"]),
        crv in prop::sample::select(vec!["P-256", "P-384", "P-521", "Ed25519", "X25519"]),
        value in "[A-Za-z0-9_-]{0,100}",
    ) {
        let good = Cases::load().token("valid token");
        let key = serde_json::json!({
            "kty": kty, "crv": crv, "n": value, "e": "AQAB", "x": value, "y": value, "k": value,
        });
        for set in [text, serde_json::json!({ "keys": [key] }).to_string()] {
            prop_assert!(bearer(&compile(&[rule(set)]), &good).is_err());
        }
    }
}

#[test]
fn large_and_deep_tokens_are_refused() {
    let authentication = everywhere();
    for token in [
        "a".repeat(1 << 20),
        format!("{}.b.c", "a".repeat(1 << 20)),
        ".".repeat(1 << 20),
        "a.".repeat(1 << 20),
        format!("a.b.{}", "=".repeat(1 << 20)),
    ] {
        assert!(bearer(&authentication, &token).is_err());
    }
    let path = format!("/?{}tok=x", "a=b&".repeat(1 << 16));
    assert!(ask(&authentication, "GET", &path, &Vec::new(), &mut TokenCache::new()).is_err());
}

#[test]
fn what_is_remembered_is_bounded_and_belongs_to_the_keys_it_was_verified_with() {
    let cases = Cases::load();
    let good = cases.token("valid token");
    let headers = vec![("authorization".to_owned(), format!("Bearer {good}"))];
    let mut cache = TokenCache::new();
    let mut first = compile(&[rule(cases.set("rsa"))]);
    assert!(ask(&first, "GET", "/", &headers, &mut cache).is_ok());
    assert!(ask(&first, "GET", "/", &headers, &mut cache).is_ok());
    assert_eq!((cache.len(), cache.hits()), (1, 1));
    // The same rule with other keys: what was verified before is worth nothing.
    let rotated = compile(&[rule(cases.set("plain"))]);
    assert!(ask(&rotated, "GET", "/", &headers, &mut cache).is_err());
    assert_eq!(cache.hits(), 1);
    // Every compilation makes new rules, so this is as good as that many tokens.
    for _ in 0..3000 {
        first = compile(&[rule(cases.set("es256"))]);
        let token = cases.token("ES256");
        let headers = vec![("authorization".to_owned(), format!("Bearer {token}"))];
        assert!(ask(&first, "GET", "/", &headers, &mut cache).is_ok());
    }
    assert!(cache.len() <= 1024, "{}", cache.len());
}

#[test]
fn nothing_shown_holds_a_token_a_claim_or_a_key() {
    let cases = Cases::load();
    let good = cases.token("valid token");
    let rules = [JwtRule { output_payload_to_header: "x-payload".to_owned(), ..rule(cases.set("oct")) }];
    let authentication = compile(&rules);
    let refused = bearer(&authentication, &good).expect_err("there is no such key");
    let own = JwtRule { output_payload_to_header: "x-payload".to_owned(), ..rule(cases.set("rsa")) };
    let verified = bearer(&compile(&[own]), &good).expect("it is good");
    let policy = maille_policy::authentication::JwtRule::of_spec(&rules[0], Ok(rules[0].jwks.clone()));
    let shown = format!("{refused} {refused:?} {verified:?} {authentication:?} {policy:?}");
    let payload = good.split('.').nth(1).expect("three parts");
    for secret in [good.as_str(), payload, "alice", "\"k\""] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("ns/tokens") && shown.contains("https://idp.example"), "{shown}");
}

#[test]
fn a_policy_without_rules_asks_nothing_of_a_request() {
    let authentication = compile(&[]);
    assert!(authentication.is_empty());
    let verified = bearer(&authentication, "nonsense").expect("nobody asks");
    assert!(verified.claims.is_none() && verified.changes.is_empty() && verified.expires.is_none());
}

#[test]
fn a_set_that_could_not_be_fetched_refuses_tokens_and_lets_others_pass() {
    use maille_policy::authentication::{JwtRule, RequestAuthentication};
    let spec = rule(String::new());
    let rules = vec![JwtRule::of_spec(&spec, Err("https://idp.example/keys answered 500".to_owned()))];
    let policy = RequestAuthentication { namespace: "ns".to_owned(), name: "tokens".to_owned(), rules };
    let (authentication, problems) = Authentication::compile(&[policy]);
    let text = problems.iter().map(ToString::to_string).collect::<String>();
    assert_eq!(
        text,
        "request authentication ns/tokens, spec.jwtRules[0].jwks: there are no keys: https://idp.example/keys \
         answered 500; tokens are refused unless another key of the rule fits; requests without a token pass"
    );
    let good = Cases::load().token("valid token");
    assert_eq!(
        bearer(&authentication, &good).map_err(|refused| refused.reason).err(),
        Some("Jwt verification fails")
    );
    assert!(ask(&authentication, "GET", "/", &Vec::new(), &mut TokenCache::new()).is_ok());
}

#[test]
fn outputs_that_would_frame_the_message_are_refused_by_name() {
    use maille_config::istio::ClaimToHeader;
    use maille_policy::authentication::{JwtRule, RequestAuthentication};
    let output = |header: &str| ClaimToHeader { header: header.to_owned(), claim: "sub".to_owned() };
    let spec = maille_config::istio::JwtRule {
        output_payload_to_header: "Content-Length".to_owned(),
        output_claim_to_headers: ["host", "transfer-encoding", "no name", "", "x-sub"].map(output).to_vec(),
        ..rule(Cases::load().set("rsa"))
    };
    let rules = vec![JwtRule::of_spec(&spec, Ok(spec.jwks.clone()))];
    let policy = RequestAuthentication { namespace: "ns".to_owned(), name: "tokens".to_owned(), rules };
    let (authentication, problems) = Authentication::compile(&[policy]);
    let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields.len(), 5, "{problems:?}");
    let verified = bearer(&authentication, &Cases::load().token("valid token")).expect("it is good");
    let names: Vec<&str> = verified.changes.append.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(names, ["x-sub"]);
}

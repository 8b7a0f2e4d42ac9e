//! Expiry, with the allowance for clocks (reference authorization 19).

use maille_policy::authentication::{TokenCache, TokenRequest};

use crate::support::{Cases, at, compile, rule};

/// When "expired" ends, and "valid token" does.
const PAST: u64 = 1_000_000_000;
const FUTURE: u64 = 4_102_444_800;

#[test]
fn a_token_is_good_for_a_minute_after_its_end_and_no_longer_remembered_or_not() {
    let cases = Cases::load();
    let authentication = compile(&[rule(cases.set("rsa"))]);
    let headers = vec![("authorization".to_owned(), format!("Bearer {}", cases.token("expired")))];
    let request = TokenRequest { method: "GET", path: "/", headers: &headers };
    let mut cache = TokenCache::new();
    for (now, is_good) in
        [(PAST - 1000, true), (PAST, true), (PAST + 60, true), (PAST + 61, false), (PAST + 90, false)]
    {
        let fresh = authentication.verify(&request, at(now), &mut TokenCache::new());
        let known = authentication.verify(&request, at(now), &mut cache);
        assert_eq!((fresh.is_ok(), known.is_ok()), (is_good, is_good), "{now}");
        if let Err(refused) = known {
            assert_eq!((refused.status, refused.reason), (401, "Jwt is expired"));
        }
    }
    assert!(cache.is_empty() && cache.hits() > 0, "what has expired is forgotten");
    let verified = authentication.verify(&request, at(PAST), &mut cache).expect("it is good then");
    assert_eq!(verified.expires, Some(at(PAST + 60)));
}

#[test]
fn a_token_is_good_from_a_minute_before_its_time_on() {
    let cases = Cases::load();
    let authentication = compile(&[rule(cases.set("rsa"))]);
    // Its end is its beginning.
    let headers = vec![("authorization".to_owned(), format!("Bearer {}", cases.token("not yet valid")))];
    let request = TokenRequest { method: "GET", path: "/", headers: &headers };
    for (now, reason) in [
        (FUTURE - 90, Some("Jwt not yet valid")),
        (FUTURE - 61, Some("Jwt not yet valid")),
        (FUTURE - 60, None),
        (FUTURE + 60, None),
        (FUTURE + 61, Some("Jwt is expired")),
    ] {
        let answer = authentication.verify(&request, at(now), &mut TokenCache::new());
        assert_eq!(answer.err().map(|refused| refused.reason), reason, "{now}");
    }
}

#[test]
fn refusals_are_told_as_the_access_log_and_the_caller_know_them() {
    let cases = Cases::load();
    let authentication = compile(&[rule(cases.set("rsa"))]);
    let headers = vec![("authorization".to_owned(), format!("Bearer {}", cases.token("expired")))];
    let request = TokenRequest { method: "GET", path: "/", headers: &headers };
    let refused =
        authentication.verify(&request, at(PAST + 61), &mut TokenCache::new()).expect_err("expired");
    assert_eq!(refused.details(), "jwt_authn_access_denied{Jwt_is_expired}");
    assert_eq!(
        refused.challenge("http", "app.example:8080", "/a?b=c"),
        "Bearer realm=\"http://app.example:8080/a?b=c\", error=\"invalid_token\""
    );
    // 256 bytes of the path, whole characters only.
    let long = refused.challenge("http", "h", &format!("/{}", "ü".repeat(200)));
    assert_eq!(long, format!("Bearer realm=\"http://h/{}\", error=\"invalid_token\"", "ü".repeat(127)));
}

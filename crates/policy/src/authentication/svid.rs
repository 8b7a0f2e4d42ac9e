//! JWT-SVIDs (SPIFFE JWT-SVID standard): the same tokens, with rules of their own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maille_core::TrustDomain;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::json;
use super::keys::Keys;
use super::rule::CLOCK_SKEW;
use super::status::Status;
use super::token::Token;

/// Longest SPIFFE ID (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;

/// Why a JWT-SVID is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidRefused {
    /// It is no token, is not signed by a key of its trust domain, or its time is not now.
    #[error("{0}")]
    Token(&'static str),
    /// Its algorithm is none of those for JWT-SVIDs (section 2.1).
    #[error(
        "it is signed with an algorithm that JWT-SVIDs do not have; RS, PS and ES with 256, 384 or 512 are"
    )]
    Algorithm,
    /// Its header says that it is something else (section 2.3).
    #[error("its header says that it is of another type than JWT and JOSE")]
    Type,
    /// It has no `exp` (section 3.3).
    #[error("it has no end (exp)")]
    NoExpiry,
    /// It is for others (section 3.2).
    #[error("it is not for the audience '{0}'")]
    Audience(String),
    /// Its `sub` is no SPIFFE ID of a workload (section 3.1).
    #[error("its subject is no SPIFFE ID of a workload")]
    Subject,
    /// There are no keys of its trust domain.
    #[error("no keys of trust domain {0} are known")]
    TrustDomain(TrustDomain),
}

impl From<Status> for SvidRefused {
    fn from(status: Status) -> Self {
        Self::Token(status.text())
    }
}

/// A JWT-SVID that is good: whose it is, and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    /// The SPIFFE ID; its trust domain is in lower case.
    pub id: String,
    /// All claims.
    pub claims: Map<String, Value>,
}

impl JwtSvid {
    /// When it was issued, if it says so (`iat`).
    pub fn issued(&self) -> Option<SystemTime> {
        let seconds = self.claims.get("iat")?.as_f64()?;
        UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
    }
}

/// Verifies a JWT-SVID for one audience (JWT-SVID sections 4 and 5). `keys` gives the key set of a trust domain, a JWK
/// Set; keys of it whose `use` is neither absent nor `jwt-svid` are passed over.
pub fn verify_jwt_svid<'k>(
    token: &str,
    audience: &str,
    now: SystemTime,
    keys: impl FnOnce(&TrustDomain) -> Option<&'k [u8]>,
) -> Result<JwtSvid, SvidRefused> {
    let parsed = Token::parse(token.as_bytes())?;
    check_type(token)?;
    match parsed.algorithm {
        Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 => {}
        Algorithm::Ps256 | Algorithm::Ps384 | Algorithm::Ps512 => {}
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 => {}
        Algorithm::EdDsa | Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
            return Err(SvidRefused::Algorithm);
        }
    }
    let subject = parsed.payload.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let (id, domain) = workload_id(subject).ok_or(SvidRefused::Subject)?;
    let set = keys(&domain).ok_or(SvidRefused::TrustDomain(domain))?;
    let (keys, _) = Keys::parse(&for_svids(set).ok_or(Status::NoValidKeys)?);
    keys.verify(&parsed)?;
    parsed.payload.times.expires.ok_or(SvidRefused::NoExpiry)?;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    parsed.payload.times.check(now, CLOCK_SKEW)?;
    if audience.is_empty() || !parsed.payload.audiences.iter().any(|one| one == audience) {
        return Err(SvidRefused::Audience(audience.to_owned()));
    }
    Ok(JwtSvid { id, claims: parsed.payload.claims })
}

/// The header was readable before.
fn check_type(token: &str) -> Result<(), SvidRefused> {
    let header = token.split('.').next().unwrap_or_default();
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Status::HeaderBadBase64)?;
    let header = json::object(&header).ok_or(Status::HeaderBadJson)?;
    match header.get("typ") {
        None => Ok(()),
        Some(Value::String(text)) if text == "JWT" || text == "JOSE" => Ok(()),
        Some(_) => Err(SvidRefused::Type),
    }
}

/// A SPIFFE ID with a path (SPIFFE-ID section 2), and its trust domain. Other meshes may name workloads in other ways
/// than `/ns/…/sa/…`.
fn workload_id(text: &str) -> Option<(String, TrustDomain)> {
    let (scheme, rest) = text.split_at_checked(9)?;
    if !scheme.eq_ignore_ascii_case("spiffe://") || text.len() > MAX_ID {
        return None;
    }
    let (domain, path) = rest.split_once('/')?;
    let domain = TrustDomain::parse(domain).ok()?;
    let is_segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    path.split('/').all(is_segment).then(|| (format!("spiffe://{domain}/{path}"), domain))
}

/// The keys of a bundle that are for JWT-SVIDs, in a form that any reader of key sets takes.
fn for_svids(set: &[u8]) -> Option<String> {
    let mut set = json::object(set)?;
    if let Some(Value::Array(keys)) = set.get_mut("keys") {
        keys.retain_mut(|key| {
            let Some(key) = key.as_object_mut() else { return false };
            let purpose = key.remove("use");
            purpose.is_none_or(|purpose| purpose == "jwt-svid")
        });
    }
    serde_json::to_string(&set).ok()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("key"))
        }

        fn set(&self, purpose: &str) -> Vec<u8> {
            let point = self.0.public_key().as_ref();
            let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
            let key = json!({"kty": "EC", "crv": "P-256", "use": purpose, "kid": "one", "x": x, "y": y});
            json!({"keys": [key], "spiffe_sequence": 7}).to_string().into_bytes()
        }

        fn token(&self, header: Value, claims: Value) -> String {
            let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        }
    }

    fn verify(token: &str, set: &[u8]) -> Result<JwtSvid, SvidRefused> {
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        verify_jwt_svid(token, "orders", now, |domain| (domain.as_str() == "td").then_some(set))
    }

    fn header() -> Value {
        json!({"alg": "ES256", "kid": "one", "typ": "JWT"})
    }

    fn claims() -> Value {
        json!({"sub": "spiffe://td/ns/a/sa/b", "aud": ["orders", "x"], "exp": NOW + 300, "iat": NOW})
    }

    #[test]
    fn a_good_svid_says_whose_it_is() {
        let signer = Signer::new();
        let good = verify(&signer.token(header(), claims()), &signer.set("jwt-svid")).expect("good");
        assert_eq!(good.id, "spiffe://td/ns/a/sa/b");
        assert_eq!(good.claims.get("iat"), Some(&json!(NOW)));
        let mut upper = claims();
        upper["sub"] = json!("SPIFFE://TD/workload");
        let good = verify(&signer.token(json!({"alg": "ES256"}), upper), &signer.set("jwt-svid"));
        assert_eq!(good.expect("good").id, "spiffe://td/workload");
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        let signer = Signer::new();
        let set = signer.set("jwt-svid");
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            match value {
                Value::Null => drop(claims.as_object_mut().expect("object").remove(name)),
                value => claims[name] = value,
            }
            verify(&signer.token(header(), claims), &set)
        };
        assert_eq!(with("aud", json!(["x"])), Err(SvidRefused::Audience("orders".into())));
        assert_eq!(with("aud", Value::Null), Err(SvidRefused::Audience("orders".into())));
        assert_eq!(with("exp", Value::Null), Err(SvidRefused::NoExpiry));
        assert_eq!(with("exp", json!(NOW - 61)), Err(Status::Expired.into()));
        assert_eq!(with("nbf", json!(NOW + 61)), Err(Status::NotYetValid.into()));
        for subject in
            ["", "b", "spiffe://td", "spiffe://td/", "spiffe://td/a//b", "spiffe://td/a/../b", "https://td/a"]
        {
            assert_eq!(with("sub", json!(subject)), Err(SvidRefused::Subject), "{subject}");
        }
        let other = TrustDomain::parse("other").expect("valid");
        assert_eq!(with("sub", json!("spiffe://other/a")), Err(SvidRefused::TrustDomain(other)));
        let typed = signer.token(json!({"alg": "ES256", "typ": "at+jwt"}), claims());
        assert_eq!(verify(&typed, &set), Err(SvidRefused::Type));
        for algorithm in ["HS256", "EdDSA"] {
            let token = signer.token(json!({"alg": algorithm}), claims());
            assert_eq!(verify(&token, &set), Err(SvidRefused::Algorithm), "{algorithm}");
        }
        let none = signer.token(json!({"alg": "none"}), claims());
        assert_eq!(verify(&none, &set), Err(Status::HeaderUnknownAlg.into()));
    }

    #[test]
    fn only_keys_for_jwt_svids_count() {
        let signer = Signer::new();
        let token = signer.token(header(), claims());
        assert_eq!(verify(&token, &signer.set("x509-svid")), Err(Status::NoValidKeys.into()));
        assert_eq!(verify(&token, &Signer::new().set("jwt-svid")), Err(Status::VerificationFails.into()));
        for set in ["", "{}", "{\"keys\":1}", "[]", "{\"keys\":[1,{}]}"] {
            assert_eq!(verify(&token, set.as_bytes()), Err(Status::NoValidKeys.into()), "{set}");
        }
    }
}

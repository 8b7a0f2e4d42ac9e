//! JWT-SVIDs and trust bundle documents, as others read and write them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use maille_core::{Identity, TrustDomain};
use maille_pki::{
    Authority, BundleDocument, Error, JWT_KEY_NOTICE, JWT_KEY_PERIOD, JWT_TTL, JwtKey, JwtKeys, ROOT_TTL,
    Reading,
};
use serde_json::{Value, json};

mod common;
use common::Openssl;

fn cart() -> Identity {
    Identity::parse_uri("spiffe://cluster.local/ns/shop/sa/cart").expect("valid")
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

const START: u64 = 1_800_000_000;

/// What another implementation makes of a token with these keys.
fn read(token: &str, jwks: &[u8], audience: &str) -> Result<Value, jsonwebtoken::errors::Error> {
    let set: JwkSet = serde_json::from_slice(jwks).expect("a JWK Set");
    let id = decode_header(token).expect("header").kid.expect("kid");
    let key = DecodingKey::from_jwk(set.find(&id).expect("the key that it names")).expect("a key");
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&[audience]);
    decode::<Value>(token, &key, &rules).map(|data| data.claims)
}

#[test]
fn a_jwt_svid_says_what_the_standard_wants_and_verifies_elsewhere() {
    let now = SystemTime::now();
    let keys = JwtKeys::generate(now).expect("keys");
    let signing = keys.signing(now).expect("one");
    let audiences = ["orders".to_owned(), "spiffe://other/ns/a/sa/b".to_owned()];
    let (token, expires) = signing.mint(&cart(), &audiences, now, JWT_TTL).expect("minted");
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(seconds(expires), seconds(now) + 300);
    let claims = read(&token, &keys.jwks(), "orders").expect("verifies");
    let expected = json!({
        "aud": audiences, "exp": seconds(expires), "iat": seconds(now), "sub": "spiffe://cluster.local/ns/shop/sa/cart",
    });
    assert_eq!(claims, expected);
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().expect("header")).expect("base64");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    assert_eq!(header, json!({ "alg": "ES256", "kid": signing.id(), "typ": "JWT" }));
    read(&token, &keys.jwks(), "others").expect_err("not for them");
    let mut forged = token.clone();
    let payload = URL_SAFE_NO_PAD.encode(
        json!({ "aud": ["orders"], "exp": seconds(expires), "sub": "spiffe://cluster.local/ns/shop/sa/admin" })
            .to_string(),
    );
    forged.replace_range(token.find('.').expect("dot") + 1..token.rfind('.').expect("dot"), &payload);
    read(&forged, &keys.jwks(), "orders").expect_err("signed for another payload");
    for wrong in [vec![], vec![String::new()], vec!["x".repeat(2049)], vec!["a".to_owned(); 17]] {
        let refused = signing.mint(&cart(), &wrong, now, JWT_TTL);
        assert!(matches!(refused, Err(Error::Audience(_))), "{refused:?}");
    }
}

#[test]
fn keys_of_other_kinds_sign_no_jwt_svid() {
    let openssl = Openssl::new();
    for (arguments, fine) in [
        (
            ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "k.pem"]
                .as_slice(),
            true,
        ),
        (&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", "k.pem"], false),
        (&["genpkey", "-algorithm", "RSA", "-out", "k.pem"], false),
        (&["genpkey", "-algorithm", "ed25519", "-out", "k.pem"], false),
    ] {
        openssl.run(arguments);
        assert_eq!(JwtKey::from_pem(&openssl.read("k.pem")).is_ok(), fine, "{arguments:?}");
    }
    let key = JwtKey::generate().expect("key");
    assert!(!format!("{key:?}").contains("PRIVATE"), "{key:?}");
}

/// However long a mesh runs, every token verifies by keys that were known before it was made, for as long as it holds.
#[test]
fn keys_turn_with_overlap() {
    let mut keys = JwtKeys::generate(at(START)).expect("keys");
    let (mut signers, mut published) = (Vec::new(), BTreeMap::<String, (u64, u64)>::new());
    let step = 60;
    let end = START + 4 * JWT_KEY_PERIOD.as_secs();
    for now in (START..end).step_by(usize::try_from(step).expect("small")) {
        let stored: Vec<_> = keys.to_secret();
        let restored =
            JwtKeys::from_secret(stored.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
        let turned = restored.expect("own Secret").turned(at(now)).expect("turned");
        keys = turned.keys;
        let set: Value = serde_json::from_slice(&keys.jwks()).expect("JSON");
        for key in set["keys"].as_array().expect("keys") {
            let id = key["kid"].as_str().expect("kid").to_owned();
            let range = published.entry(id).or_insert((now, now));
            range.1 = now;
        }
        let signer = keys.signing(at(now)).expect("one").id().to_owned();
        signers.push((now, signer));
    }
    for (now, signer) in &signers {
        let (from, until) = published[signer];
        assert!(
            from == START || from + JWT_KEY_NOTICE.as_secs() <= *now,
            "{signer} signed before it was known"
        );
        let needed = (now + JWT_TTL.as_secs()).min(end - step);
        assert!(until >= needed, "{signer} was forgotten before its tokens ended");
    }
    let distinct: std::collections::BTreeSet<_> = signers.iter().map(|(_, signer)| signer).collect();
    assert!((4..=5).contains(&distinct.len()), "{} keys in four periods", distinct.len());
    assert!(keys.to_secret().len() <= 2, "old ones are forgotten");
}

#[test]
fn a_secret_without_readable_keys_is_named_as_such() {
    let from = |entries: &[(&str, &str)]| {
        let entries: Vec<_> = entries.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        JwtKeys::from_secret(entries).expect_err("unusable").to_string()
    };
    assert!(from(&[]).contains("key-<seconds>.pem"));
    assert!(from(&[("tls.key", "x")]).contains("key-<seconds>.pem"));
    assert!(from(&[("key-1.pem", "x")]).contains("not readable"));
}

#[test]
fn a_bundle_document_survives_a_round_trip_with_roots_of_every_kind() {
    let openssl = Openssl::new();
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let mut roots =
        Authority::self_signed(&domain, SystemTime::now(), ROOT_TTL).expect("root").roots().to_vec();
    for kind in [
        ["-newkey", "rsa:2048"].as_slice(),
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
        &["-newkey", "ed25519"],
    ] {
        openssl.authority("root", None, kind, 30);
        roots.extend(maille_pki::certificates_from_pem("root", &openssl.read("root.pem")).expect("PEM"));
    }
    let keys = JwtKeys::generate(SystemTime::now()).expect("keys");
    let mut bundle = BundleDocument::new(roots.clone(), &keys.jwks()).expect("bundle");
    bundle.sequence = Some(7);
    bundle.refresh_hint = Some(Duration::from_secs(300));
    let text = bundle.encode().expect("JSON");
    for reading in [Reading::Lenient, Reading::Strict] {
        assert_eq!(BundleDocument::decode(&text, reading), Ok(bundle.clone()));
    }
    let document: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!((&document["spiffe_sequence"], &document["spiffe_refresh_hint"]), (&json!(7), &json!(300)));
    let of = |purpose: &str| {
        let keys = document["keys"].as_array().expect("keys").iter();
        keys.filter(|key| key["use"] == purpose).cloned().collect::<Vec<_>>()
    };
    let kinds: Vec<_> = of("x509-svid").iter().map(|key| key["kty"].clone()).collect();
    assert_eq!(kinds, ["EC", "RSA", "EC", "OKP"]);
    for entry in of("x509-svid") {
        assert_eq!(entry["x5c"].as_array().map(Vec::len), Some(1));
        assert_eq!(entry.get("kid"), None);
    }
    assert_eq!(of("jwt-svid").len(), 1);
    // Other readers of JWK Sets want the numbers of every key.
    let set: JwkSet = serde_json::from_slice(&text).expect("a JWK Set");
    assert_eq!(set.keys.len(), 5);
    assert_eq!(serde_json::from_slice::<Value>(&bundle.jwks()).expect("JSON")["keys"], json!(of("jwt-svid")));
}

/// Reference mtls 6.4.
#[test]
fn documents_of_others_are_read_as_the_standard_or_as_istio_does() {
    let domain = TrustDomain::parse("other").expect("valid");
    let make =
        || Authority::self_signed(&domain, SystemTime::now(), ROOT_TTL).expect("root").roots()[0].clone();
    let (one, two) = (make(), make());
    let text = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
    let entry = |certificates: &[String]| json!({ "kty": "EC", "use": "x509-svid", "x5c": certificates });
    let decode = |keys: Value, reading| {
        BundleDocument::decode(json!({ "keys": keys }).to_string().as_bytes(), reading)
            .map(|bundle| bundle.roots)
    };
    let both = |keys: Value| (decode(keys.clone(), Reading::Lenient), decode(keys, Reading::Strict));

    let odd = [
        json!({ "kty": "XX", "use": "x509-svid-next", "x5c": [1] }),
        json!({ "kty": "EC", "x5c": [text(&two)] }),
        json!({ "use": "x509-svid", "x5c": [text(&two)] }),
        json!({ "kty": "EC", "use": "jwt-svid" }),
        json!("nonsense"),
    ];
    let mut keys = odd.to_vec();
    keys.push(entry(&[text(&one)]));
    assert_eq!(both(json!(keys)), (Ok(vec![one.clone()]), Ok(vec![one.clone()])));
    let (lenient, strict) = both(json!([entry(&[text(&one), text(&two)])]));
    assert_eq!(lenient, Ok(vec![one.clone()]), "the first counts");
    assert!(strict.expect_err("two in one").to_string().contains("keys[0]"));
    for without in [json!([]), json!([entry(&[])]), json!(odd)] {
        let (lenient, strict) = both(without);
        assert_eq!(lenient, Ok(Vec::new()));
        strict.expect_err("no root");
    }
    for broken in [json!([entry(&["!".to_owned()])]), json!([entry(&[text(b"no certificate")])])] {
        let (lenient, strict) = both(broken);
        lenient.expect_err("unreadable");
        strict.expect_err("unreadable");
    }
    for text in ["", "[]", "{}", "{\"keys\":{}}", "{\"keys\":"] {
        BundleDocument::decode(text.as_bytes(), Reading::Lenient).expect_err("no document");
    }
    let hint = json!({ "keys": [entry(&[text(&one)])], "spiffe_refresh_hint": -1, "spiffe_sequence": "x" })
        .to_string();
    let lenient = BundleDocument::decode(hint.as_bytes(), Reading::Lenient).expect("forgiven");
    assert_eq!((lenient.sequence, lenient.refresh_hint), (None, None));
    BundleDocument::decode(hint.as_bytes(), Reading::Strict).expect_err("not forgiven");
}

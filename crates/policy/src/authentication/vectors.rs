//! The signatures of RFC 7520 section 4, over a text that is no token.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::algorithm::Algorithm;
use super::keys::Keys;
use super::status::Status;
use super::token::{Payload, Times, Token};

#[derive(Deserialize)]
struct Cookbook {
    keys: Vec<Value>,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    section: String,
    alg: String,
    signed: String,
    signature: String,
}

fn verify(keys: &[Value], vector: &Vector, signed: &str, alg: &str, kid: &str) -> Result<(), Status> {
    let payload = Payload {
        text: "",
        claims: Map::new(),
        issuer: String::new(),
        audiences: Vec::new(),
        times: Times { not_before: 0, expires: None },
    };
    let algorithm = Algorithm::parse(alg).expect("it is known");
    let token = Token { algorithm, key_id: kid.to_owned(), signed, signature: &vector.signature, payload };
    let (keys, problems) = Keys::parse(&json!({ "keys": keys }).to_string());
    assert!(problems.is_empty(), "{problems:?}");
    keys.verify(&token)
}

#[test]
fn the_signatures_of_rfc_7520_are_good_as_they_are_and_not_otherwise() {
    let book: Cookbook =
        serde_json::from_str(include_str!("../../tests/tokens/rfc7520.json")).expect("four vectors");
    assert_eq!(book.vectors.len(), 4);
    for vector in &book.vectors {
        let ask = |signed: &str, alg: &str, kid: &str| verify(&book.keys, vector, signed, alg, kid);
        let section = &vector.section;
        assert_eq!(ask(&vector.signed, &vector.alg, ""), Ok(()), "{section}");
        let changed = vector.signed.replace("SXTi", "SXTj");
        assert_ne!(changed, vector.signed);
        assert_eq!(ask(&changed, &vector.alg, ""), Err(Status::VerificationFails), "{section}");
        assert_eq!(ask(&vector.signed, &vector.alg, "sauron"), Err(Status::KidAlgMismatch), "{section}");
        for alg in ["RS256", "RS512", "PS256", "PS384", "ES256", "ES512", "HS256", "HS512", "EdDSA"] {
            if alg != vector.alg {
                assert!(ask(&vector.signed, alg, "").is_err(), "{section} as {alg}");
            }
        }
    }
}

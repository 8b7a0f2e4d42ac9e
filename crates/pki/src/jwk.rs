use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::{Error, Result};

/// A public key as the members of a JSON Web Key (RFC 7518 section 6, RFC 8037 section 2): its type and its numbers,
/// nothing else.
pub(crate) fn members(spki: &SubjectPublicKeyInfo<'_>) -> Result<Map<String, Value>> {
    let unknown = || Error::PublicKey("neither RSA, P-256, P-384 nor Ed25519".to_owned());
    let mut members = Map::new();
    let mut set = |name: &str, value: &str| drop(members.insert(name.to_owned(), Value::from(value)));
    match spki.parsed().map_err(|e| Error::PublicKey(e.to_string()))? {
        ParsedKey::RSA(rsa) => {
            set("kty", "RSA");
            set("n", &number(rsa.modulus));
            set("e", &number(rsa.exponent));
        }
        ParsedKey::EC(point) => {
            let (curve, length) = match point.key_size() {
                256 => ("P-256", 32),
                384 => ("P-384", 48),
                _ => return Err(unknown()),
            };
            // SEC 1 section 2.3.3: 4, then both coordinates; no other form is written by anyone.
            let [4, coordinates @ ..] = point.data() else { return Err(unknown()) };
            let (x, y) = coordinates.split_at_checked(length).ok_or_else(unknown)?;
            if y.len() != length {
                return Err(unknown());
            }
            set("kty", "EC");
            set("crv", curve);
            set("x", &URL_SAFE_NO_PAD.encode(x));
            set("y", &URL_SAFE_NO_PAD.encode(y));
        }
        ParsedKey::Unknown(bytes)
            if spki.algorithm.algorithm == x509_parser::oid_registry::OID_SIG_ED25519 =>
        {
            set("kty", "OKP");
            set("crv", "Ed25519");
            set("x", &URL_SAFE_NO_PAD.encode(bytes));
        }
        _ => return Err(unknown()),
    }
    Ok(members)
}

/// As [`members`], from DER.
pub(crate) fn members_of(spki: &[u8]) -> Result<Map<String, Value>> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(spki).map_err(|e| Error::PublicKey(e.to_string()))?;
    members(&spki)
}

/// A number without the zero bytes that DER puts before it (RFC 7518 section 2, Base64urlUInt).
fn number(bytes: &[u8]) -> String {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    URL_SAFE_NO_PAD.encode(bytes.get(start..).unwrap_or_default())
}

/// The name of a key: the thumbprint of its members (RFC 7638) in base64url.
pub(crate) fn thumbprint(members: &Map<String, Value>) -> String {
    // Section 3.3: in the order of their names, without white space. The values hold nothing that JSON escapes.
    let sorted: std::collections::BTreeMap<_, _> = members.iter().collect();
    let text = Value::Object(sorted.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect()).to_string();
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7638 section 3.1.
    #[test]
    fn thumbprints_are_those_of_the_rfc() {
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst\
                 n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbIS\
                 D08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let members = [("n", n), ("kty", "RSA"), ("e", "AQAB")];
        let members = members.into_iter().map(|(k, v)| (k.to_owned(), Value::from(v))).collect();
        assert_eq!(thumbprint(&members), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }
}

//! A key set (RFC 7517), and signatures checked with it.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::json;
use super::status::Status;
use super::token::Token;

/// Keys of one set that are taken. A token without `kid` is tried with each, at the cost of whoever verifies.
pub(super) const MAX_KEYS: usize = 100;

/// The length of an Ed25519 signature (RFC 8032 5.1.6).
const ED25519_SIGNATURE: usize = 64;

/// RFC 7518 3.3 and 3.5 demand at least 2,048 bits, and the library offers no less; 8,192 is its largest.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The usable keys of a set.
#[derive(Default)]
pub(super) struct Keys {
    keys: Vec<Key>,
}

struct Key {
    /// Empty: fits any `kid`.
    id: String,
    /// Fits no other algorithm then.
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa(DecodingKey),
    Curve(Curve, ParsedPublicKey),
    Ed25519(ParsedPublicKey),
    Secret(DecodingKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Keys {
    /// The usable keys of a set, and what is wrong with the others. No keys at all is a problem too. Messages hold no
    /// key material.
    pub(super) fn parse(text: &str) -> (Self, Vec<String>) {
        let list = match json::object(text.as_bytes()) {
            None => Err("it is no JSON object, or one with the same member twice"),
            Some(mut set) => match set.remove("keys") {
                Some(Value::Array(list)) => Ok(list),
                Some(_) => Err("its member 'keys' is no list"),
                None => Err("it has no member 'keys'"),
            },
        };
        let list = match list {
            Ok(list) => list,
            Err(problem) => return (Self::default(), vec![problem.to_owned()]),
        };
        let (mut keys, mut problems) = (Vec::new(), Vec::new());
        for (index, jwk) in list.iter().enumerate() {
            if keys.len() == MAX_KEYS {
                problems
                    .push(format!("it holds more than {MAX_KEYS} keys; keys[{index}] and on are not used"));
                break;
            }
            match jwk.as_object().ok_or("it is no object").and_then(Key::parse) {
                Ok(Some(key)) => keys.push(key),
                Ok(None) => {}
                Err(problem) => problems.push(format!("keys[{index}] is not used: {problem}")),
            }
        }
        if keys.is_empty() {
            problems.push("it holds no key that signatures can be checked with".to_owned());
        }
        (Self { keys }, problems)
    }

    /// Whether one of the keys made the token's signature.
    ///
    /// Key id and algorithm of the key, where it has them, must be the token's; unlike Envoy, which tries what it can
    /// with a key whose type does not fit, the algorithm must be one for this type of key. The first key that agrees
    /// ends the search.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), Status> {
        if self.keys.is_empty() {
            return Err(Status::NoValidKeys);
        }
        let mut fits = false;
        for key in &self.keys {
            let other_id = !key.id.is_empty() && !token.key_id.is_empty() && key.id != token.key_id;
            if other_id || key.algorithm.is_some_and(|algorithm| algorithm != token.algorithm) {
                continue;
            }
            fits = true;
            if key.material.verify(token)? {
                return Ok(());
            }
        }
        Err(if fits { Status::VerificationFails } else { Status::KidAlgMismatch })
    }
}

impl Key {
    /// `None`: a key for something else than signatures, which a set may well hold.
    fn parse(jwk: &Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let kind = text(jwk, "kty")?.ok_or("it has no type (kty)")?;
        let id = text(jwk, "kid")?.unwrap_or_default().to_owned();
        if !is_for_signatures(jwk)? {
            return Ok(None);
        }
        let algorithm = match text(jwk, "alg")? {
            None => None,
            Some(name) => Some(Algorithm::parse(name).ok_or("its algorithm (alg) is not supported")?),
        };
        let (material, fits) = match kind {
            "RSA" => (rsa(jwk)?, algorithm.is_none_or(is_rsa)),
            "EC" => {
                let (curve, key) = curve(jwk, algorithm)?;
                (
                    Material::Curve(curve, key),
                    algorithm.is_none_or(|algorithm| algorithm == curve.algorithm()),
                )
            }
            "OKP" => (ed25519(jwk)?, algorithm.is_none_or(|algorithm| algorithm == Algorithm::EdDsa)),
            "oct" => (secret(jwk)?, algorithm.is_none_or(|algorithm| hmac(algorithm).is_some())),
            _ => return Err("its type (kty) is not supported; there are RSA, EC, OKP and oct"),
        };
        if !fits {
            return Err("its algorithm (alg) is not one for keys of its type");
        }
        Ok(Some(Self { id, algorithm, material }))
    }
}

/// RFC 7517 4.2 and 4.3. Whoever published a private key by mistake may have written `sign`.
fn is_for_signatures(jwk: &Map<String, Value>) -> Result<bool, &'static str> {
    let operations = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(list)) => list.iter().any(|name| name == "verify" || name == "sign"),
        Some(_) => return Err("its operations (key_ops) are no list"),
    };
    Ok(operations && text(jwk, "use")?.is_none_or(|purpose| purpose == "sig"))
}

impl Material {
    /// Whether this key made the signature. An error ends the search for one that did, as in Envoy.
    fn verify(&self, token: &Token<'_>) -> Result<bool, Status> {
        let message = token.signed.as_bytes();
        // It has been decoded before.
        let bytes = || URL_SAFE_NO_PAD.decode(token.signature).map_err(|_| Status::SignatureBadBase64);
        Ok(match self {
            Self::Rsa(key) => {
                rsa_algorithm(token.algorithm).is_some_and(|algorithm| by_library(token, key, algorithm))
            }
            Self::Secret(key) => {
                hmac(token.algorithm).is_some_and(|algorithm| by_library(token, key, algorithm))
            }
            Self::Curve(curve, key) => {
                token.algorithm == curve.algorithm() && key.verify_sig(message, &bytes()?).is_ok()
            }
            Self::Ed25519(key) if token.algorithm == Algorithm::EdDsa => {
                let signature = bytes()?;
                if signature.len() != ED25519_SIGNATURE {
                    return Err(Status::Ed25519SignatureLength);
                }
                key.verify_sig(message, &signature).is_ok()
            }
            Self::Ed25519(_) => false,
        })
    }
}

fn by_library(token: &Token<'_>, key: &DecodingKey, algorithm: jsonwebtoken::Algorithm) -> bool {
    jsonwebtoken::crypto::verify(token.signature, token.signed.as_bytes(), key, algorithm).unwrap_or(false)
}

fn rsa_algorithm(algorithm: Algorithm) -> Option<jsonwebtoken::Algorithm> {
    Some(match algorithm {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Rs384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::Rs512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::Ps256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::Ps384 => jsonwebtoken::Algorithm::PS384,
        Algorithm::Ps512 => jsonwebtoken::Algorithm::PS512,
        _ => return None,
    })
}

fn is_rsa(algorithm: Algorithm) -> bool {
    rsa_algorithm(algorithm).is_some()
}

fn hmac(algorithm: Algorithm) -> Option<jsonwebtoken::Algorithm> {
    Some(match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Hs384 => jsonwebtoken::Algorithm::HS384,
        Algorithm::Hs512 => jsonwebtoken::Algorithm::HS512,
        _ => return None,
    })
}

/// RFC 7518 6.3. Like Envoy, only the two exponents that are in use.
fn rsa(jwk: &Map<String, Value>) -> Result<Material, &'static str> {
    let modulus = number(&bytes(jwk, "n")?);
    let exponent = number(&bytes(jwk, "e")?);
    if ![&[3][..], &[1, 0, 1]].contains(&exponent.as_slice()) {
        return Err("its exponent (e) is neither 3 nor 65537");
    }
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err("its modulus (n) has not between 2048 and 8192 bits (RFC 7518 3.3)");
    }
    if modulus.last().is_none_or(|byte| byte % 2 == 0) {
        return Err("its modulus (n) is even");
    }
    // Made sure of here, so that no other feature of the library in the same program can make it ask for one in vain.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    Ok(Material::Rsa(DecodingKey::from_rsa_raw_components(&modulus, &exponent)))
}

/// RFC 7518 6.2; the curve follows from the algorithm if it is not named, else it is P-256 (as in Envoy).
fn curve(
    jwk: &Map<String, Value>,
    algorithm: Option<Algorithm>,
) -> Result<(Curve, ParsedPublicKey), &'static str> {
    let curve = match (text(jwk, "crv")?, algorithm) {
        (Some("P-256"), _) | (None, None | Some(Algorithm::Es256)) => Curve::P256,
        (Some("P-384"), _) | (None, Some(Algorithm::Es384)) => Curve::P384,
        (Some("P-521"), _) | (None, Some(Algorithm::Es512)) => Curve::P521,
        _ => return Err("its curve (crv) is not supported; there are P-256, P-384 and P-521"),
    };
    let size = curve.coordinate();
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = number(&bytes(jwk, name)?);
        let missing =
            size.checked_sub(coordinate.len()).ok_or("a coordinate (x, y) is too long for its curve")?;
        point.extend(std::iter::repeat_n(0, missing));
        point.extend_from_slice(&coordinate);
    }
    let key = ParsedPublicKey::new(curve.verification(), point)
        .map_err(|_| "its point (x, y) is not on its curve")?;
    Ok((curve, key))
}

impl Curve {
    /// Bytes of a coordinate.
    fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// The one algorithm that uses it (RFC 7518 3.4).
    fn algorithm(self) -> Algorithm {
        match self {
            Self::P256 => Algorithm::Es256,
            Self::P384 => Algorithm::Es384,
            Self::P521 => Algorithm::Es512,
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// RFC 8037 2.
fn ed25519(jwk: &Map<String, Value>) -> Result<Material, &'static str> {
    if text(jwk, "crv")? != Some("Ed25519") {
        return Err("its curve (crv) is not supported; of OKP keys there is Ed25519");
    }
    let key = bytes(jwk, "x")?;
    if key.len() != 32 {
        return Err("its public key (x) has not 32 bytes");
    }
    ParsedPublicKey::new(&ED25519, key)
        .map(Material::Ed25519)
        .map_err(|_| "its public key (x) is no Ed25519 key")
}

/// RFC 7518 6.4. Only sets that are written into a policy may hold one: what is fetched from a URL is public.
fn secret(jwk: &Map<String, Value>) -> Result<Material, &'static str> {
    let secret = bytes(jwk, "k")?;
    if secret.is_empty() {
        return Err("its secret (k) is empty");
    }
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    Ok(Material::Secret(DecodingKey::from_secret(&secret)))
}

fn text<'j>(jwk: &'j Map<String, Value>, name: &str) -> Result<Option<&'j str>, &'static str> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("a member that must be a text is none"),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let text = text(jwk, name)?.ok_or("a member that keys of its type need is missing")?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| "a member is not in base64url without padding (RFC 7518 2)")
}

/// Without leading zeros.
fn number(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

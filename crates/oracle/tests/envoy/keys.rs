//! Keys and tokens, made by hand so that broken ones can be made as well (RFC 7515, 7517).

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A key that signs, and its public half.
pub(crate) enum Key {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
    Shared(Vec<u8>),
}

pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Key {
    pub(crate) fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"))
    }

    pub(crate) fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"))
    }

    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().expect("a key"))
    }

    pub(crate) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(rsa::KeySize::Rsa2048).expect("a key"))
    }

    pub(crate) fn shared() -> Self {
        Self::Shared(b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_vec())
    }

    /// The algorithms that this key can sign by, the usual one first.
    pub(crate) fn algorithms(&self) -> &'static [&'static str] {
        match self {
            Self::P256(_) => &["ES256"],
            Self::P384(_) => &["ES384"],
            Self::Ed25519(_) => &["EdDSA"],
            Self::Rsa(_) => &["RS256", "RS512", "PS256"],
            Self::Shared(_) => &["HS256"],
        }
    }

    /// The public half (the key itself, if it is shared) as JWK, without `kid` and `alg`.
    pub(crate) fn jwk(&self) -> Value {
        let point = |curve: &str, key: &EcdsaKeyPair| {
            let bytes = key.public_key().as_ref();
            let (x, y) = bytes[1..].split_at((bytes.len() - 1) / 2);
            json!({ "kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y) })
        };
        match self {
            Self::P256(key) => point("P-256", key),
            Self::P384(key) => point("P-384", key),
            Self::Ed25519(key) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key().as_ref()) })
            }
            Self::Rsa(key) => {
                // RSAPublicKey (RFC 8017 A.1.1) of 2048 bits: 8 bytes of tags and lengths, a zero, the modulus, then the
                // exponent behind 2 bytes.
                let der = key.public_key().as_ref();
                let (modulus, exponent) = (&der[9..265], &der[267..]);
                json!({ "kty": "RSA", "n": base64url(modulus), "e": base64url(exponent) })
            }
            Self::Shared(secret) => json!({ "kty": "oct", "k": base64url(secret) }),
        }
    }

    /// Signs as `algorithm` says; by the key's usual one if it cannot.
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::P256(key) | Self::P384(key) => {
                key.sign(&random, message).expect("signed").as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Self::Rsa(key) => {
                let padding: &dyn RsaEncoding = match algorithm {
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(padding, &random, message, &mut signature).expect("signed");
                signature
            }
            Self::Shared(secret) => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
            }
        }
    }

    /// A token of these exact bytes.
    pub(crate) fn token(&self, header: &Value, payload: &[u8]) -> String {
        let algorithm = header["alg"].as_str().unwrap_or_default().to_owned();
        let message = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(payload));
        let signature = self.sign(&algorithm, message.as_bytes());
        format!("{message}.{}", base64url(&signature))
    }
}

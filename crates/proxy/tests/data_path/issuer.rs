//! An issuer of real tokens, and servers that believe it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://idp.example";

/// ALLOW everybody with a token of [`ISSUER`], and nobody else.
pub(crate) const ALLOW_TOKENS: &str =
    "{action: ALLOW, rules: [{from: [{source: {requestPrincipals: ['https://idp.example/*']}}]}]}";

pub(crate) struct Issuer {
    key: EncodingKey,
    /// The public half, as a key set.
    pub(crate) jwks: String,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let pair = maille_pki::generate_key().expect("a key");
        let public = pair.public_key().expect("a public key");
        // The uncompressed point, 04 X Y, ends the SubjectPublicKeyInfo of P-256.
        let point = &public.spki()[public.spki().len() - 64..];
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "x": coordinate(&point[..32]),
            "y": coordinate(&point[32..])});
        Self {
            key: EncodingKey::from_ec_der(pair.to_der().secret_der()),
            jwks: json!({ "keys": [jwk] }).to_string(),
        }
    }

    /// A token of `sub` that is good for `seconds` from now on (or was until so long ago); `more` claims beside.
    pub(crate) fn token(&self, sub: &str, seconds: i64, more: Value) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        let now = i64::try_from(now.as_secs()).expect("seconds");
        let mut claims = json!({"iss": ISSUER, "sub": sub, "exp": now + seconds});
        if let (Value::Object(claims), Value::Object(more)) = (&mut claims, more) {
            claims.extend(more);
        }
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).expect("signed")
    }

    /// A RequestAuthentication for this issuer; `more` fields of its rule beside, in flow YAML.
    pub(crate) fn facts(&self, more: &str) -> String {
        format!(
            "requestAuthentications: [{{namespace: shop, name: idp, jwtRules: [{{issuer: '{ISSUER}', jwks: '{}'{}{more}}}]}}]",
            self.jwks,
            if more.is_empty() { "" } else { ", " }
        )
    }
}

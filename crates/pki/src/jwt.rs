//! JWT-SVIDs (SPIFFE JWT-SVID standard): who signs them, and by which keys they verify.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maille_core::Identity;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::jwk::{members_of, thumbprint};
use crate::key::{KeyPair, generate_key};
use crate::time::{from_unix_seconds, unix_seconds};

/// How long a JWT-SVID holds: a token that is shown may be shown again by whoever saw it.
pub const JWT_TTL: Duration = Duration::from_secs(300);

/// Age at which a key of JWT-SVIDs gets a successor.
pub const JWT_KEY_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// How long a key is known before it signs: verifiers must have it by then.
pub const JWT_KEY_NOTICE: Duration = Duration::from_secs(600);

/// How long a key stays known after its last signature: the life of a token, and clocks that differ.
const JWT_KEY_RETIREMENT: Duration = Duration::from_secs(600);

/// Keys that are kept at most, whatever is found.
const MAX_KEYS: usize = 16;

/// Audiences of one token, and the length of each.
const MAX_AUDIENCES: usize = 16;
const MAX_AUDIENCE: usize = 2048;

/// A key that signs JWT-SVIDs with ES256. Wiped when dropped; there is no `Clone`.
pub struct JwtKey {
    key: KeyPair,
    signer: EcdsaKeyPair,
    id: String,
    public: Map<String, Value>,
}

impl JwtKey {
    /// A new one.
    pub fn generate() -> Result<Self> {
        Self::new(generate_key()?)
    }

    /// Reads one from PEM (PKCS#8); it must be of ECDSA P-256.
    pub fn from_pem(text: &str) -> Result<Self> {
        Self::new(KeyPair::from_pem(text)?)
    }

    fn new(key: KeyPair) -> Result<Self> {
        let refused = |reason: &str| Error::PrivateKey(reason.to_owned());
        let signer = match key.to_der() {
            PrivateKeyDer::Pkcs8(der) => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
                    .map_err(|_| refused("keys of JWT-SVIDs are of ECDSA P-256"))?
            }
            _ => return Err(refused("keys of JWT-SVIDs are of ECDSA P-256, in PKCS#8")),
        };
        let public = members_of(key.public_key()?.spki())?;
        Ok(Self { key, signer, id: thumbprint(&public), public })
    }

    /// The key as PEM; wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    /// Its name: the thumbprint of the public key (RFC 7638).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A JWT-SVID: `sub` is the SPIFFE ID, `aud` the audiences, `exp` and `iat` (JWT-SVID section 3); the header has
    /// `alg`, `kid` and `typ` (section 2). Gives the token and when it ends.
    pub fn mint(
        &self,
        identity: &Identity,
        audiences: &[String],
        now: SystemTime,
        ttl: Duration,
    ) -> Result<(String, SystemTime)> {
        if audiences.is_empty() || audiences.len() > MAX_AUDIENCES {
            return Err(Error::Audience(format!("between 1 and {MAX_AUDIENCES} audiences are needed")));
        }
        if audiences.iter().any(|audience| audience.is_empty() || audience.len() > MAX_AUDIENCE) {
            return Err(Error::Audience(format!("an audience has between 1 and {MAX_AUDIENCE} bytes")));
        }
        let issued = unix_seconds(now);
        let expires = i64::try_from(ttl.as_secs()).ok().and_then(|ttl| issued.checked_add(ttl));
        let expires = expires.filter(|_| issued >= 0).ok_or(Error::Time)?;
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "ES256", "kid": self.id, "typ": "JWT" }));
        let claims = part(json!({ "aud": audiences, "exp": expires, "iat": issued, "sub": identity.uri() }));
        let signed = format!("{header}.{claims}");
        let signature = self
            .signer
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|e| Error::crypto("signing a JWT-SVID", e))?;
        Ok((format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)), from_unix_seconds(expires)))
    }

    fn jwk(&self) -> Value {
        let mut jwk = self.public.clone();
        jwk.insert("use".to_owned(), Value::from("jwt-svid"));
        jwk.insert("kid".to_owned(), Value::from(self.id.as_str()));
        jwk.insert("alg".to_owned(), Value::from("ES256"));
        Value::Object(jwk)
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({}, hidden)", self.id)
    }
}

/// The keys of JWT-SVIDs: one signs, others will or did. Never empty.
///
/// A key is known for [`JWT_KEY_NOTICE`] before it signs, signs until its successor does, and stays known until its last
/// token has ended, so that a token verifies wherever and whenever it is shown.
#[derive(Debug)]
pub struct JwtKeys {
    // INVARIANT: not empty; in the order of their making, which is whole seconds since 1970.
    keys: Vec<(i64, JwtKey)>,
}

impl JwtKeys {
    /// One new key, which signs at once.
    pub fn generate(now: SystemTime) -> Result<Self> {
        Ok(Self { keys: vec![(unix_seconds(now), JwtKey::generate()?)] })
    }

    /// From the entries of the Secret `istio-jwt-svid`: `key-<Unix seconds>.pem` for each key. Entries of other names
    /// are not ours.
    pub fn from_secret<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Self> {
        let mut keys = Vec::new();
        for (name, value) in entries {
            let made = name.strip_prefix("key-").and_then(|rest| rest.strip_suffix(".pem"));
            let Some(made) = made.and_then(|made| made.parse::<i64>().ok()).filter(|made| *made >= 0) else {
                continue;
            };
            let unreadable = |reason: String| Error::Pem { what: "key of JWT-SVIDs", reason };
            let text = std::str::from_utf8(value).map_err(|e| unreadable(e.to_string()))?;
            keys.push((made, JwtKey::from_pem(text)?));
            if keys.len() > MAX_KEYS {
                return Err(unreadable(format!("there are more than {MAX_KEYS}")));
            }
        }
        if keys.is_empty() {
            return Err(Error::Pem {
                what: "key of JWT-SVIDs",
                reason: "the Secret has no entry key-<seconds>.pem".to_owned(),
            });
        }
        keys.sort_by_key(|(made, _)| *made);
        Ok(Self { keys })
    }

    /// The entries of the Secret; `from_secret` reads them back.
    pub fn to_secret(&self) -> Vec<(String, Zeroizing<String>)> {
        self.keys.iter().map(|(made, key)| (format!("key-{made}.pem"), key.to_pem())).collect()
    }

    /// The key that signs now: the newest that has been known long enough, else the oldest.
    pub fn signing(&self, now: SystemTime) -> Option<&JwtKey> {
        let now = unix_seconds(now);
        let known =
            self.keys.iter().rev().find(|(made, _)| made.saturating_add(seconds(JWT_KEY_NOTICE)) <= now);
        known.or_else(|| self.keys.first()).map(|(_, key)| key)
    }

    /// What follows on these keys: a successor if the newest is old, without those whose tokens have all ended. `None`
    /// if nothing is to be done yet.
    pub fn turned(self, now: SystemTime) -> Result<Turned> {
        let now_s = unix_seconds(now);
        let Self { mut keys } = self;
        let before = keys.len();
        // A key has signed its last when its successor began to.
        let retired = seconds(JWT_KEY_NOTICE + JWT_KEY_RETIREMENT);
        let successors: Vec<i64> = keys.iter().skip(1).map(|(made, _)| *made).collect();
        let mut successors = successors.into_iter();
        keys.retain(|_| successors.next().is_none_or(|next| next.saturating_add(retired) > now_s));
        let mut changed = keys.len() != before;
        let newest = keys.last().map(|(made, _)| *made);
        if newest.is_none_or(|made| made.saturating_add(seconds(JWT_KEY_PERIOD)) <= now_s) {
            keys.push((now_s, JwtKey::generate()?));
            changed = true;
        }
        Ok(Turned { keys: Self { keys }, changed })
    }

    /// The public halves: a JWK Set whose keys have `use` "jwt-svid".
    pub fn jwks(&self) -> Vec<u8> {
        let keys: Vec<Value> = self.keys.iter().map(|(_, key)| key.jwk()).collect();
        json!({ "keys": keys }).to_string().into_bytes()
    }
}

/// What became of keys with time.
#[derive(Debug)]
pub struct Turned {
    /// The keys now.
    pub keys: JwtKeys,
    /// Whether they are others than before, and must be stored before they are used.
    pub changed: bool,
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

//! The SPIFFE trust bundle document (SPIFFE Trust Domain and Bundle section 4; reference mtls 6.4).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::jwk::members;
use crate::leaf::{check_authority, parse};

/// Entries that are read; a bundle has a handful.
const MAX_KEYS: usize = 256;

/// How much of a document is forgiven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As the standard: entries that cannot be used are passed over, and of several certificates in one the first
    /// counts.
    Lenient,
    /// As Istio: an entry of use `x509-svid` without exactly one certificate makes the document an error, and so does
    /// a document without any.
    Strict,
}

/// What a trust domain tells about itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BundleDocument {
    /// Roots of X.509-SVIDs; each may sign.
    pub roots: Vec<CertificateDer<'static>>,
    /// Keys of JWT-SVIDs: JSON Web Keys with `use` "jwt-svid" and a `kid`.
    pub jwt_keys: Vec<Map<String, Value>>,
    /// Grows with each change.
    pub sequence: Option<u64>,
    /// How often to look again.
    pub refresh_hint: Option<Duration>,
}

impl BundleDocument {
    /// Of these roots and a JWK Set, empty or as in `TrustBundle.jwks`.
    pub fn new(roots: Vec<CertificateDer<'static>>, jwks: &[u8]) -> Result<Self> {
        let jwt_keys =
            if jwks.is_empty() { Vec::new() } else { Self::decode(jwks, Reading::Lenient)?.jwt_keys };
        Ok(Self { roots, jwt_keys, sequence: None, refresh_hint: None })
    }

    /// The document as JSON.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut keys = Vec::with_capacity(self.roots.len() + self.jwt_keys.len());
        for root in &self.roots {
            let parsed = parse("root certificate", root)?;
            // RFC 7517 section 4.7: the key of the certificate must be told by the other members, too.
            let mut entry = members(parsed.public_key())?;
            entry.insert("use".to_owned(), Value::from("x509-svid"));
            entry.insert("x5c".to_owned(), json!([STANDARD.encode(root)]));
            keys.push(Value::Object(entry));
        }
        keys.extend(self.jwt_keys.iter().cloned().map(Value::Object));
        let mut document = Map::new();
        document.insert("keys".to_owned(), Value::Array(keys));
        if let Some(sequence) = self.sequence {
            document.insert("spiffe_sequence".to_owned(), Value::from(sequence));
        }
        if let Some(hint) = self.refresh_hint {
            document.insert("spiffe_refresh_hint".to_owned(), Value::from(hint.as_secs()));
        }
        Ok(Value::Object(document).to_string().into_bytes())
    }

    /// Reads a document. `keys` is required; entries of unknown `kty` or `use` are ignored, and so is one without
    /// `use`. A certificate that may not sign is no root, and is an error in either reading.
    pub fn decode(text: &[u8], reading: Reading) -> Result<Self> {
        let refused = |reason: &str| Error::Bundle(reason.to_owned());
        let document: Value =
            serde_json::from_slice(text).map_err(|e| Error::Bundle(format!("it is no JSON: {e}")))?;
        let document = document.as_object().ok_or_else(|| refused("it is no JSON object"))?;
        let keys =
            document.get("keys").and_then(Value::as_array).ok_or_else(|| refused("it has no list 'keys'"))?;
        if keys.len() > MAX_KEYS {
            return Err(Error::Bundle(format!(
                "it has {} keys, and at most {MAX_KEYS} are read",
                keys.len()
            )));
        }
        let number = |name: &str| match document.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) => Ok(Some(number)),
                None if reading == Reading::Lenient => Ok(None),
                None => Err(Error::Bundle(format!("its '{name}' is no number of 0 or more"))),
            },
        };
        let mut bundle = Self {
            sequence: number("spiffe_sequence")?,
            refresh_hint: number("spiffe_refresh_hint")?.map(Duration::from_secs),
            ..Self::default()
        };
        for (index, key) in keys.iter().enumerate() {
            let member = |name: &str| key.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
            match (member("kty"), member("use")) {
                (Some(_), Some("x509-svid")) => bundle.add_root(key, index, reading)?,
                (Some("EC" | "RSA"), Some("jwt-svid")) if member("kid").is_some() => {
                    bundle.jwt_keys.extend(key.as_object().cloned());
                }
                _ => {}
            }
        }
        if bundle.roots.is_empty() && reading == Reading::Strict {
            return Err(refused("it has no key of use x509-svid"));
        }
        Ok(bundle)
    }

    fn add_root(&mut self, key: &Value, index: usize, reading: Reading) -> Result<()> {
        let chain = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let first = match (chain, reading) {
            ([only], _) => only,
            ([first, ..], Reading::Lenient) => first,
            ([], Reading::Lenient) => return Ok(()),
            (chain, Reading::Strict) => {
                let count = chain.len();
                let reason =
                    format!("keys[{index}] is of use x509-svid and has {count} certificates in place of one");
                return Err(Error::Bundle(reason));
            }
        };
        let unreadable = || Error::Bundle(format!("the certificate of keys[{index}] is not in base64"));
        let der = first.as_str().ok_or_else(unreadable).and_then(|text| {
            let text: String = text.split_ascii_whitespace().collect();
            STANDARD.decode(text).map_err(|_| unreadable())
        })?;
        let root = CertificateDer::from(der);
        check_authority("root certificate of the bundle", &root)?;
        if !self.roots.contains(&root) {
            self.roots.push(root);
        }
        Ok(())
    }

    /// The keys of JWT-SVIDs as a JWK Set, as `TrustBundle.jwks` holds them; empty if there are none.
    pub fn jwks(&self) -> Vec<u8> {
        if self.jwt_keys.is_empty() {
            return Vec::new();
        }
        json!({ "keys": self.jwt_keys }).to_string().into_bytes()
    }
}

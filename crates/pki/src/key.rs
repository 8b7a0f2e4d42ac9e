use std::fmt;

use rcgen::PublicKeyData as _;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as ParsedKey;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::{Error, Result};
use crate::pem;

/// A private key and its public half.
///
/// Keys that the mesh makes are ECDSA P-256 (reference mtls 5.4); keys read from PEM may also be
/// P-384, Ed25519 or RSA. The bytes are wiped when the value is dropped, `Debug` hides them, and
/// there is no `Clone`: share it with an `Arc`.
pub struct KeyPair {
    inner: rcgen::KeyPair,
}

/// Makes a new ECDSA P-256 key.
pub fn generate_key() -> Result<KeyPair> {
    let inner = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| Error::crypto("making a key", e))?;
    Ok(KeyPair { inner })
}

impl KeyPair {
    /// Reads a private key from PEM: PKCS#8, SEC1 or PKCS#1.
    pub fn from_pem(text: &str) -> Result<Self> {
        let mut der = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|e| Error::Pem { what: "private key", reason: e.to_string() })?;
        let key = Self::from_der(&der);
        der.zeroize();
        key
    }

    /// Reads a private key from DER.
    pub fn from_der(key: &PrivateKeyDer<'_>) -> Result<Self> {
        let inner = rcgen::KeyPair::try_from(key).map_err(|e| Error::PrivateKey(e.to_string()))?;
        Ok(Self { inner })
    }

    /// The key as PEM; wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let label = match self.to_der() {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Zeroizing::new(pem::encode(label, self.inner.serialized_der()))
    }

    /// The key in DER, for a TLS library; borrowed, so that no copy is left behind.
    pub fn to_der(&self) -> PrivateKeyDer<'_> {
        let der = self.inner.serialized_der();
        // Keys keep the form in which they were read.
        PrivateKeyDer::try_from(der).unwrap_or_else(|_| PrivatePkcs8KeyDer::from(der).into())
    }

    /// The public half.
    pub fn public_key(&self) -> Result<PublicKey> {
        PublicKey::from_spki(&self.inner.subject_public_key_info())
    }

    pub(crate) fn signer(&self) -> &rcgen::KeyPair {
        &self.inner
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.inner.zeroize();
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(hidden)")
    }
}

/// A public key that the mesh is willing to certify: RSA of at least 2048 bits, ECDSA P-256 or
/// P-384, Ed25519 (reference mtls 5.4 and 9.1).
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
    parsed: rcgen::SubjectPublicKeyInfo,
}

/// 8192 bits is the largest RSA key that verifiers accept.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo` (RFC 5280 section 4.1).
    pub fn from_spki(der: &[u8]) -> Result<Self> {
        let refused = |reason: &str| Error::PublicKey(reason.to_owned());
        let (rest, spki) = x509_parser::x509::SubjectPublicKeyInfo::from_der(der)
            .map_err(|e| Error::PublicKey(e.to_string()))?;
        if !rest.is_empty() {
            return Err(refused("bytes follow the key"));
        }
        match spki.parsed().map_err(|e| Error::PublicKey(e.to_string()))? {
            ParsedKey::RSA(rsa) => {
                let bits = rsa.key_size();
                if !RSA_BITS.contains(&bits) {
                    return Err(Error::PublicKey(format!("RSA key of {bits} bits")));
                }
                // Public exponent: odd and at least 3 (RFC 8017 section 3.1); parsers take any.
                if !rsa.try_exponent().is_ok_and(|e| e >= 3 && e % 2 == 1) {
                    return Err(refused("RSA key with an unusable public exponent"));
                }
            }
            ParsedKey::EC(point) if !matches!(point.key_size(), 256 | 384) => {
                return Err(Error::PublicKey(format!("elliptic curve key of {} bits", point.key_size())));
            }
            _ => {}
        }
        // Also refuses every algorithm that is not in the library's list.
        let parsed = rcgen::SubjectPublicKeyInfo::from_der(der)
            .map_err(|_| refused("neither RSA, P-256, P-384 nor Ed25519"))?;
        let known = [
            &rcgen::PKCS_RSA_SHA256,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ];
        if !known.contains(&parsed.algorithm()) {
            return Err(refused("neither RSA, P-256, P-384 nor Ed25519"));
        }
        Ok(Self { spki: der.to_vec(), parsed })
    }

    /// The `SubjectPublicKeyInfo` in DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub(crate) fn certified(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.parsed
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?}, {} bytes)", self.parsed.algorithm(), self.spki.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_key() {
        let key = generate_key().expect("key");
        assert_eq!(format!("{key:?}"), "KeyPair(hidden)");
    }

    #[test]
    fn pem_and_key_agree() {
        let key = generate_key().expect("key");
        let again = KeyPair::from_pem(&key.to_pem()).expect("own PEM reads back");
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(key.to_pem(), again.to_pem());
    }

    #[test]
    fn keys_the_mesh_does_not_certify_are_refused() {
        let p521 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("key");
        let refused = PublicKey::from_spki(&p521.subject_public_key_info());
        assert!(matches!(refused, Err(Error::PublicKey(_))), "{refused:?}");
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
            let key = rcgen::KeyPair::generate_for(algorithm).expect("key");
            PublicKey::from_spki(&key.subject_public_key_info()).expect("accepted");
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_keys_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = PublicKey::from_spki(&bytes);
            let _ = KeyPair::from_pem(&String::from_utf8_lossy(&bytes));
        }
    }
}

use std::time::{Duration, SystemTime};

use maille_core::Identity;
use maille_pki::{KeyPair, generate_key};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Extended, IsCa,
    KeyUsagePurpose as Usage, SanType,
};

use super::{Credential, TestAuthority};

/// What is wrong with a certificate; everything else about it is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing: for comparison, so that a refusal can only come from the flaw.
    None,
    /// Its validity ended an hour ago.
    Expired,
    /// Its validity begins in an hour.
    NotYetValid,
    /// Another root of the same name signed it.
    OtherRoot,
    /// It signed itself.
    SelfSigned,
    /// An SVID, signed as if it were an authority, signed it.
    SignedByLeaf,
    /// The right root signed it, but for a foreign trust domain.
    ForeignTrustDomain,
    /// Two URI names (SF-2); the first is the right one.
    TwoUris,
    /// No URI name, a DNS name instead.
    NoUri,
    /// A SPIFFE ID that is no workload identity.
    NotAnIdentity,
    /// A SPIFFE ID with an encoded slash.
    EncodedPath,
    /// Extended key usage without clientAuth.
    NoClientAuth,
    /// Extended key usage without serverAuth.
    NoServerAuth,
    /// A signing certificate (CA=true).
    IsAuthority,
    /// Key usage with keyCertSign.
    SigningUsage,
    /// Key usage without digitalSignature.
    NoDigitalSignature,
    /// The key does not belong to the certificate.
    WrongKey,
}

impl Flaw {
    /// Every flaw; without `None`.
    pub const ALL: [Self; 16] = [
        Self::Expired,
        Self::NotYetValid,
        Self::OtherRoot,
        Self::SelfSigned,
        Self::SignedByLeaf,
        Self::ForeignTrustDomain,
        Self::TwoUris,
        Self::NoUri,
        Self::NotAnIdentity,
        Self::EncodedPath,
        Self::NoClientAuth,
        Self::NoServerAuth,
        Self::IsAuthority,
        Self::SigningUsage,
        Self::NoDigitalSignature,
        Self::WrongKey,
    ];
}

const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn credential(authority: &TestAuthority, flaw: Flaw, identity: &Identity) -> Credential {
    let now = SystemTime::now();
    let mut params = good(&identity.uri());
    match flaw {
        Flaw::Expired => validity(&mut params, now - 2 * HOUR, now - HOUR),
        Flaw::NotYetValid => validity(&mut params, now + HOUR, now + 2 * HOUR),
        Flaw::ForeignTrustDomain => {
            let rest = identity.to_string().split_once('/').map(|(_, rest)| rest.to_owned());
            params.subject_alt_names = vec![uri(&format!("spiffe://evil.td/{}", rest.expect("has a path")))];
        }
        Flaw::TwoUris => params.subject_alt_names.push(uri(&format!("{}-other", identity.uri()))),
        Flaw::NoUri => {
            let name = "web.shop.svc".try_into().expect("a DNS name");
            params.subject_alt_names = vec![SanType::DnsName(name)];
        }
        Flaw::NotAnIdentity => {
            params.subject_alt_names = vec![uri(&format!("spiffe://{}/workload", identity.trust_domain()))];
        }
        Flaw::EncodedPath => {
            let text = format!("spiffe://{}/ns/a%2Fb/sa/c", identity.trust_domain());
            params.subject_alt_names = vec![uri(&text)];
        }
        Flaw::NoClientAuth => params.extended_key_usages = vec![Extended::ServerAuth],
        Flaw::NoServerAuth => params.extended_key_usages = vec![Extended::ClientAuth],
        Flaw::IsAuthority => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        Flaw::SigningUsage => params.key_usages.push(Usage::KeyCertSign),
        Flaw::NoDigitalSignature => params.key_usages = vec![Usage::KeyEncipherment],
        Flaw::None | Flaw::OtherRoot | Flaw::SelfSigned | Flaw::SignedByLeaf | Flaw::WrongKey => {}
    }

    let key = generate_key().expect("new key");
    let subject = library_key(&key);
    let issuer = |cert_pem: &str, key_pem: &str| {
        let key = rcgen::KeyPair::from_pem(key_pem).expect("own key");
        rcgen::Issuer::from_ca_cert_pem(cert_pem, key).expect("own certificate")
    };
    let own = authority.authority();
    let (certificate, rest) = match flaw {
        Flaw::SelfSigned => (params.self_signed(&subject), Vec::new()),
        Flaw::OtherRoot => {
            let other = TestAuthority::of(authority.trust_domain().as_str());
            let other = other.authority();
            (params.signed_by(&subject, &issuer(&other.cert_pem(), &other.key_pem())), Vec::new())
        }
        Flaw::SignedByLeaf => {
            let leaf = authority.svid("shop", "signer");
            let chain = leaf.chain_pem();
            let issuer = issuer(chain.first().expect("a leaf"), &leaf.key().to_pem());
            (params.signed_by(&subject, &issuer), leaf.chain().to_vec())
        }
        _ => (params.signed_by(&subject, &issuer(&own.cert_pem(), &own.key_pem())), Vec::new()),
    };
    let mut chain = vec![certificate.expect("signed").into()];
    chain.extend(rest);
    let key = if flaw == Flaw::WrongKey { generate_key().expect("new key") } else { key };
    Credential { chain, key }
}

fn library_key(key: &KeyPair) -> rcgen::KeyPair {
    rcgen::KeyPair::from_pem(&key.to_pem()).expect("own key")
}

/// As the mesh's authority makes them (reference mtls 5.4).
fn good(identity: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature, Usage::KeyEncipherment];
    params.extended_key_usages = vec![Extended::ServerAuth, Extended::ClientAuth];
    validity(&mut params, now - Duration::from_secs(120), now + HOUR);
    params
}

fn validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    params.not_before = from.into();
    params.not_after = until.into();
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("an ASCII URI"))
}

//! Who has lost its right before its certificate ends: what people write, and what comes of it.
//!
//! A list that cannot be read takes nobody's revocation back: what was in force stays until a list says otherwise in full,
//! over restarts, too ([`Listed::to_stored`]).

mod listed;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{BACKDATE, CertificateDer, RevocationList, certificates_from_pem, revocation_list_pem};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

pub use listed::{Listed, Listing};

/// The ConfigMap of the root namespace with the revocations that people order.
pub const CONFIG_MAP: &str = "istio-ca-revocations";
/// Its key: a JSON array of [`Entry`].
pub const KEY: &str = "revocations.json";
/// The ConfigMap with the revocation lists of a plugged-in CA, in every namespace (reference mtls 5.5).
pub const CRL_CONFIG_MAP: &str = "istio-ca-crl";
/// The key of that, and of the Secret `cacerts` that the lists come from.
pub const CRL_KEY: &str = "ca-crl.pem";

/// Entries that are taken in: a ConfigMap holds at most a mebibyte.
pub const MAX_ENTRIES: usize = 16_384;
/// Longest serial number, in hexadecimal digits (RFC 5280 section 4.1.2.2: 20 octets).
const MAX_SERIAL: usize = 40;

/// One revocation, as it is stored. Either `serial` or `identity`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The serial number of a leaf certificate, hexadecimal; colons, upper case and leading zeros do not matter. Its
    /// owner gets another certificate by its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// A SPIFFE ID. Nothing is issued to it, whatever it proves, unless there is `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// With `identity`: only the certificates issued before this moment (RFC 3339) are revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who ordered it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was ordered, for people (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// What an [`Entry`] revokes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// One certificate, by its serial number in lower case without leading zeros.
    Serial(String),
    /// An identity; with a moment, its certificates issued before it.
    Identity(Identity, Option<SystemTime>),
}

impl Entry {
    /// What is revoked, or what is wrong with the entry.
    pub fn read(&self) -> Result<Revoked, String> {
        match (&self.serial, &self.identity) {
            (Some(_), None) if self.before.is_some() => {
                Err("'before' goes with 'identity'; a serial number is one certificate's".to_owned())
            }
            (Some(serial), None) => normal_serial(serial).map(Revoked::Serial),
            (None, Some(uri)) => {
                let identity = Identity::parse_uri(uri)
                    .map_err(|e| format!("identity '{uri}' is no SPIFFE ID of a workload: {e}"))?;
                let before = self.before.as_deref().map(moment).transpose()?;
                Ok(Revoked::Identity(identity, before))
            }
            (Some(_), Some(_)) => Err("it has both 'serial' and 'identity'; write two entries".to_owned()),
            (None, None) => Err("it has neither 'serial' nor 'identity'".to_owned()),
        }
    }
}

/// A serial number as certificates are compared by: hexadecimal, lower case, without colons and leading zeros.
pub fn normal_serial(text: &str) -> Result<String, String> {
    let text = text.trim();
    let digits: String = text.strip_prefix("0x").unwrap_or(text).chars().filter(|c| *c != ':').collect();
    let digits = digits.trim_start_matches('0').to_ascii_lowercase();
    if digits.is_empty() || digits.len() > MAX_SERIAL || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!(
            "serial '{}' is no certificate's: up to {MAX_SERIAL} hexadecimal digits, not all zero",
            text.chars().take(64).collect::<String>()
        ));
    }
    Ok(digits)
}

fn moment(text: &str) -> Result<SystemTime, String> {
    let read = text.parse::<jiff::Timestamp>().ok().map(|time| {
        // Certificates tell whole seconds.
        let part = i64::from(time.subsec_nanosecond() > 0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.as_second() + part).unwrap_or(0))
    });
    // Before 1970 there were no certificates, and on the wire zero is no moment at all.
    read.filter(|time| *time > SystemTime::UNIX_EPOCH + BACKDATE).ok_or_else(|| {
        format!(
            "before '{}' is no time such as 2026-01-31T12:00:00Z",
            text.chars().take(64).collect::<String>()
        )
    })
}

/// All that is revoked, and what of it could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    list: Listed,
    /// DER.
    crls: Vec<Vec<u8>>,
    crl_problems: Vec<String>,
}

impl Revocations {
    /// The same with this list of the mesh's own.
    pub fn with_list(&self, list: Listed) -> Self {
        Self { list, ..self.clone() }
    }

    /// The same with these revocation lists, DER, and with what is wrong with others.
    pub fn with_crls(&self, crls: Vec<Vec<u8>>, problems: Vec<String>) -> Self {
        Self { crls, crl_problems: problems, ..self.clone() }
    }

    /// Serial numbers of revoked leaf certificates: lower case, without leading zeros.
    pub fn serials(&self) -> &BTreeSet<String> {
        self.list.serials()
    }

    /// Revoked identities; with a moment, only the certificates issued before it.
    pub fn identities(&self) -> &BTreeMap<Identity, Option<SystemTime>> {
        self.list.identities()
    }

    /// Certificate revocation lists, DER.
    pub fn crls(&self) -> &[Vec<u8>] {
        &self.crls
    }

    /// What is not in force because it cannot be read, for people.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.list.problems().iter().chain(&self.crl_problems).map(String::as_str)
    }

    /// Whether nobody is revoked.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.crls.is_empty()
    }

    /// Whether this serial number, however it is written, is revoked.
    pub fn revokes_serial(&self, serial: &str) -> bool {
        let serials = self.serials();
        !serials.is_empty() && normal_serial(serial).is_ok_and(|serial| serials.contains(&serial))
    }

    /// Why nothing may be issued to an identity now, if nothing may: the account is revoked, by whatever name of the
    /// trust domain, or only certificates of the future are good again.
    pub fn bars(
        &self,
        identity: &Identity,
        is_own: impl Fn(&TrustDomain) -> bool,
        now: SystemTime,
    ) -> Option<String> {
        self.revoking(identity, is_own)
            .filter(|(_, before)| before.is_none_or(|before| now < before))
            .map(|(revoked, _)| format!("identity {} is revoked (ConfigMap {CONFIG_MAP})", revoked.uri()))
    }

    /// Why a certificate is revoked, if it is by its serial number or its identity.
    pub fn revokes(
        &self,
        identity: &Identity,
        serial: &str,
        not_before: SystemTime,
        is_own: impl Fn(&TrustDomain) -> bool,
    ) -> Option<String> {
        if self.revokes_serial(serial) {
            return Some(format!(
                "certificate {serial} of {} is revoked (ConfigMap {CONFIG_MAP})",
                identity.uri()
            ));
        }
        self.revoking(identity, is_own)
            .filter(|(_, before)| before.is_none_or(|before| not_before < start_of(before)))
            .map(|(revoked, _)| format!("identity {} is revoked (ConfigMap {CONFIG_MAP})", revoked.uri()))
    }

    /// The widest entry that means this account: names of the own trust domain are one.
    fn revoking(
        &self,
        identity: &Identity,
        is_own: impl Fn(&TrustDomain) -> bool,
    ) -> Option<(&Identity, Option<SystemTime>)> {
        let is_same = |known: &Identity| {
            known == identity
                || (is_own(identity.trust_domain())
                    && is_own(known.trust_domain())
                    && known.namespace() == identity.namespace()
                    && known.service_account() == identity.service_account())
        };
        let all =
            self.identities().iter().filter(|(known, _)| is_same(known)).map(|(id, before)| (id, *before));
        // For ever before any moment, and of two moments the later.
        all.max_by_key(|(_, before)| (before.is_none(), *before))
    }
}

/// Where certificates start that are issued at this moment: those that start before it are issued before it.
pub(crate) fn start_of(issued: SystemTime) -> SystemTime {
    issued.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Reads the revocation lists of a PEM text, each signed by one of the `authorities` (PEM); gives them in DER.
pub fn read_lists(pem: &str, authorities: &[String]) -> Result<Vec<Vec<u8>>, String> {
    let lists = RevocationList::from_pem(pem, &certificates(authorities)?).map_err(|e| e.to_string())?;
    usable(lists.iter().map(|list| list.der().to_vec()).collect())
}

/// Adds to the lists of an authority those that were in force `before` of authorities other than `authorities` (PEM), which
/// are still believed. A list concerns the certificates of who signed it and no others, so that one too many does no harm.
pub fn with_lists_of_others(
    own: Vec<Vec<u8>>,
    before: &[Vec<u8>],
    authorities: &[String],
) -> Result<Vec<Vec<u8>>, String> {
    let known = certificates(authorities)?;
    let others = before.iter().filter(|list| !RevocationList::is_of(list, &known)).cloned();
    usable(own.into_iter().chain(others).collect())
}

/// Lists in DER as a PEM text.
pub fn lists_pem(lists: &[Vec<u8>]) -> String {
    lists.iter().map(|list| revocation_list_pem(list)).collect()
}

fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut known = Vec::new();
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        known.extend(certificates_from_pem("certificate of the authority", text).map_err(|e| e.to_string())?);
    }
    Ok(known)
}

/// Reads the revocation lists of a PEM text that a control plane has published, whatever authority there is now. Who verifies
/// a chain takes the lists of its authorities and no others, so that a list of somebody else revokes nobody.
pub fn read_published(pem: &str) -> Result<Vec<Vec<u8>>, String> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes());
    let lists: Vec<_> =
        lists.map(|list| Ok(list.map_err(|e| e.to_string())?.to_vec())).collect::<Result<_, String>>()?;
    match lists.is_empty() {
        true => Err("it holds no list".to_owned()),
        false => usable(lists),
    }
}

/// Proxies refuse all that is revoked together, so that one list that they cannot take must not come so far.
fn usable(lists: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
    match maille_tls::Revoked::new(String::new(), [], [], lists.clone()) {
        Ok(_) => Ok(lists),
        Err(error) => Err(error.to_string()),
    }
}

//! Who has lost its right before its certificate ends.
//!
//! Two lists work together: the mesh's own (serial numbers and identities, in force within seconds), and the revocation
//! lists that authorities sign (RFC 5280 section 5), which are read against the path that was found.
//!
//! Lists of authorities keep Envoy's rule within a chain: if one CA of it has a list, every CA of it needs one (reference
//! mtls 5.5), since a missing list then is more likely lost than unneeded. Chains none of whose authorities has a list,
//! those of another trust domain say, are not concerned. A list past its `nextUpdate` stays in force and costs nobody else
//! his right: an authority that is late must not stop the mesh (so does ztunnel). A list belongs to the key that signed
//! it, not to a name: the roots before and after a rotation have the same.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use maille_core::{Identity, TrustDomain};
use maille_pki::{BACKDATE, CertificateDer, LeafFacts, RevocationList, TrustBundles};
use rustls_pki_types::{CertificateRevocationListDer, TrustAnchor};

use crate::error::SetupError;
use crate::refusal::Reason;

/// Serial numbers, and identities, that are taken in.
pub const MAX_REVOKED: usize = 65_536;
/// Bytes of all lists of authorities together.
const MAX_LISTS: usize = 16 << 20;
/// Intermediates of which is remembered what lists say of them; beyond it all are forgotten and read again as needed.
const INTERMEDIATES: usize = 256;

/// What a proxy was told of revocations, checked.
#[derive(Clone, Default)]
pub struct Revoked {
    version: String,
    serials: HashSet<Box<str>>,
    /// Of the own trust domain, by the first of its names.
    identities: HashMap<Identity, Option<SystemTime>>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    names: Vec<TrustDomain>,
}

impl Revoked {
    /// `version` is the name of this state; serial numbers are hexadecimal; an identity with a moment is good again by
    /// certificates that start after it; `crls` are DER.
    pub fn new(
        version: String,
        serials: impl IntoIterator<Item = String>,
        identities: impl IntoIterator<Item = (Identity, Option<SystemTime>)>,
        crls: Vec<Vec<u8>>,
    ) -> Result<Self, SetupError> {
        let serials: HashSet<Box<str>> = serials.into_iter().map(|serial| normal(&serial).into()).collect();
        let identities: HashMap<_, _> = identities.into_iter().collect();
        let refused = |why: String| Err(SetupError::Revocations(why));
        if serials.len() > MAX_REVOKED || identities.len() > MAX_REVOKED {
            return refused(format!(
                "{} serial numbers and {} identities are too many: at most {MAX_REVOKED} of each",
                serials.len(),
                identities.len()
            ));
        }
        if crls.iter().map(Vec::len).sum::<usize>() > MAX_LISTS {
            return refused(format!("the lists of authorities have more than {MAX_LISTS} bytes"));
        }
        for (number, der) in crls.iter().enumerate() {
            if let Err(error) = webpki::BorrowedCertRevocationList::from_der(der) {
                return refused(format!("list {number} of the authorities cannot be read: {error}"));
            }
        }
        let crls = crls.into_iter().map(CertificateRevocationListDer::from).collect();
        Ok(Self { version, serials, identities, crls, names: Vec::new() })
    }

    /// The same where these are names of one trust domain (SN-12): who is revoked by one of them is so by all.
    pub fn among(mut self, names: impl IntoIterator<Item = TrustDomain>) -> Self {
        self.names = names.into_iter().collect();
        for (identity, until) in std::mem::take(&mut self.identities) {
            let known = self.identities.entry(self.canonical(&identity).into_owned()).or_insert(until);
            // Of two, the one that revokes more: none is for ever.
            *known = known.zip(until).map(|(a, b)| a.max(b));
        }
        self
    }

    fn canonical<'i>(&self, identity: &'i Identity) -> Cow<'i, Identity> {
        let domain = identity.trust_domain();
        match self.names.first() {
            Some(first) if first != domain && self.names.contains(domain) => {
                let (namespace, account) = (identity.namespace(), identity.service_account());
                // Of parts that are one already.
                Identity::new(first.clone(), namespace, account).map_or(Cow::Borrowed(identity), Cow::Owned)
            }
            _ => Cow::Borrowed(identity),
        }
    }

    /// The name of this state; empty if there never was one.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Why a certificate is revoked by the mesh's own list.
    pub fn refuses(&self, facts: &LeafFacts, identity: Option<&Identity>) -> Option<Reason> {
        if !self.serials.is_empty() && self.serials.contains(normal(&facts.serial)) {
            return Some(Reason::RevokedSerial);
        }
        let identity = identity.filter(|_| !self.identities.is_empty())?;
        match self.identities.get(self.canonical(identity).as_ref())? {
            Some(until) if facts.not_before > *until => None,
            until => Some(Reason::RevokedIdentity { identity: identity.clone(), until: *until }),
        }
    }

    /// Why a token (a JWT-SVID) of an identity is revoked that was issued at a moment, if that is known. What is said of
    /// certificates by their start holds for tokens by when they were issued; authorities date back the one and not the
    /// other. Serial numbers and the lists of authorities say nothing of tokens.
    pub fn refuses_token(&self, identity: &Identity, issued: Option<SystemTime>) -> Option<Reason> {
        match self.identities.get(self.canonical(identity).as_ref())? {
            Some(until) if issued.is_some_and(|issued| issued > *until + BACKDATE) => None,
            until => Some(Reason::RevokedIdentity { identity: identity.clone(), until: *until }),
        }
    }
}

/// As compared: without leading zeros, which tools write and leave out.
fn normal(serial: &str) -> &str {
    serial.trim_start_matches('0')
}

impl PartialEq for Revoked {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
            && self.serials == other.serials
            && self.identities == other.identities
            && self.crls == other.crls
            && self.names == other.names
    }
}

impl Eq for Revoked {}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revoked")
            .field("version", &self.version)
            .field("serials", &self.serials.len())
            .field("identities", &self.identities.len())
            .field("crls", &self.crls.len())
            .field("names", &self.names)
            .finish()
    }
}

/// Lists of authorities, by the authorities that signed them.
pub(crate) struct Lists {
    all: Vec<CertificateRevocationListDer<'static>>,
    roots: Vec<KnownRoot>,
    intermediates: RwLock<BTreeMap<Vec<u8>, Known>>,
}

/// A root, and what it has signed.
struct KnownRoot {
    subject: Vec<u8>,
    key: Vec<u8>,
    lists: Arc<[RevocationList]>,
}

/// What is known of an intermediate.
#[derive(Clone)]
struct Known {
    serial: String,
    lists: Arc<[RevocationList]>,
}

impl Lists {
    /// `None` without lists, which is the rule.
    pub(crate) fn new(revoked: &Revoked, bundles: &TrustBundles) -> Option<Self> {
        if revoked.crls.is_empty() {
            return None;
        }
        let all = revoked.crls.clone();
        let roots = bundles.iter().flat_map(|(_, roots)| roots);
        let roots = roots.filter_map(|root| {
            let anchor = webpki::anchor_from_trusted_cert(root).ok()?;
            let (subject, key) = (anchor.subject.to_vec(), anchor.subject_public_key_info.to_vec());
            Some(KnownRoot { subject, key, lists: signed_by(&all, root) })
        });
        let roots = roots.collect();
        Some(Self { all, roots, intermediates: RwLock::default() })
    }

    /// Judges a path from a leaf up to its root, both ends included.
    pub(crate) fn judge(&self, leaf: &LeafFacts, path: &webpki::VerifiedPath<'_>) -> Result<(), Reason> {
        let issuers: Vec<Known> = path.intermediate_certificates().map(|issuer| self.known(issuer)).collect();
        let root = self.of_root(path.anchor());
        let lists = || issuers.iter().map(|known| &known.lists).chain([&root]);
        if lists().all(|lists| lists.is_empty()) {
            return Ok(());
        }
        if lists().any(|lists| lists.is_empty()) {
            return Err(Reason::NoRevocationList);
        }
        let children = std::iter::once(&leaf.serial).chain(issuers.iter().map(|known| &known.serial));
        for (depth, (serial, lists)) in children.zip(lists()).enumerate() {
            if lists.iter().any(|list| list.revokes(list.issuer(), serial)) {
                return Err(Reason::RevokedByAuthority { intermediate: depth > 0, serial: serial.clone() });
            }
        }
        Ok(())
    }

    fn of_root(&self, anchor: &TrustAnchor<'_>) -> Arc<[RevocationList]> {
        let is_it = |root: &&KnownRoot| {
            root.subject[..] == anchor.subject[..] && root.key[..] == anchor.subject_public_key_info[..]
        };
        self.roots.iter().find(is_it).map(|root| root.lists.clone()).unwrap_or_else(|| Arc::from([]))
    }

    fn known(&self, issuer: &webpki::Cert<'_>) -> Known {
        let der = issuer.der();
        let known =
            self.intermediates.read().unwrap_or_else(PoisonError::into_inner).get(der.as_ref()).cloned();
        known.unwrap_or_else(|| {
            let serial = issuer.serial().iter().skip_while(|byte| **byte == 0);
            let serial = serial.map(|byte| format!("{byte:02x}")).collect();
            let known = Known { serial, lists: signed_by(&self.all, &der) };
            let mut all = self.intermediates.write().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= INTERMEDIATES {
                all.clear();
            }
            all.insert(der.to_vec(), known.clone());
            known
        })
    }
}

fn signed_by(
    all: &[CertificateRevocationListDer<'static>],
    authority: &CertificateDer<'_>,
) -> Arc<[RevocationList]> {
    let lists = all.iter().filter_map(|der| {
        let authority = CertificateDer::from(authority.as_ref());
        RevocationList::from_der(der.clone(), &[authority]).ok()
    });
    lists.collect()
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lists").field("all", &self.all.len()).finish_non_exhaustive()
    }
}

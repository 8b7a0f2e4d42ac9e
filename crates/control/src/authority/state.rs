//! What is known of a rotation at one moment.

use std::collections::{BTreeMap, BTreeSet};

use maille_pki::{Authority, CertificateDer, KeyPair, describe};
use serde::{Deserialize, Serialize};

use super::holders::Holds;
use super::wire::{Answer, CaStatus, CertificateStatus, Ended, Kind, Phase};
use crate::proxies::millis;

/// The Secret that an authority's material comes from, and goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// `istio-ca-secret`: made by the control plane itself.
    #[default]
    #[serde(rename = "istio-ca-secret")]
    SelfSigned,
    /// `cacerts`: given by an operator.
    #[serde(rename = "cacerts")]
    PluggedIn,
}

impl Source {
    /// The Secret's name (reference mtls 5.5).
    pub fn secret(self) -> &'static str {
        match self {
            Self::SelfSigned => "istio-ca-secret",
            Self::PluggedIn => "cacerts",
        }
    }
}

/// What is stored of a rotation beside key material: `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) since_ms: u64,
    /// Where what is in force belongs.
    pub(crate) source: Source,
    /// There is one exactly if the phase is not idle.
    #[serde(default)]
    pub(crate) rotation: Option<Rotation>,
    #[serde(default)]
    pub(crate) last: Option<Ended>,
    #[serde(default)]
    pub(crate) answer: Option<Answer>,
    /// What its Secret held when a rotation to it was rolled back: it is not begun again by itself.
    #[serde(default)]
    pub(crate) rolled_back: Option<String>,
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotation {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) cause: String,
    pub(crate) started_ms: u64,
    pub(crate) backwards: bool,
    /// This phase was not advanced to but turned round in.
    #[serde(default)]
    pub(crate) turned: bool,
    /// Where the material that it leads to belongs.
    pub(crate) source: Source,
    /// Proxies not waited for in this phase, by name.
    #[serde(default)]
    pub(crate) waived: BTreeSet<String>,
    /// The same of all phases so far.
    #[serde(default)]
    pub(crate) ever_waived: BTreeSet<String>,
}

/// What a rotation needs to know of an authority: no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ca {
    pub(crate) signer: CertificateStatus,
    /// Of its public key.
    pub(crate) key: Vec<u8>,
    /// When the first certificate between the signer and its root ends, Unix milliseconds.
    pub(crate) ends_ms: u64,
    /// A root signs.
    pub(crate) is_root: bool,
    /// By fingerprint; never empty.
    pub(crate) roots: BTreeMap<String, CertificateStatus>,
    /// A digest of all that its files hold, the lists of revoked certificates, too.
    pub(crate) files: String,
}

impl Ca {
    pub(crate) fn of(authority: &Authority, files: String) -> Result<Self, maille_pki::Error> {
        let mut roots = BTreeMap::new();
        for root in authority.own_roots() {
            let root = certificate(root)?;
            roots.insert(root.fingerprint.clone(), root);
        }
        let key = KeyPair::from_pem(&authority.key_pem())?.public_key()?;
        Ok(Self {
            signer: certificate(authority.certificate())?,
            key: key.spki().to_vec(),
            ends_ms: millis(authority.chain_end()),
            is_root: authority.is_root(),
            roots,
            files,
        })
    }

    /// Tells materials apart: the same certificates in other files are the same.
    pub(crate) fn name(&self) -> String {
        let roots = self.roots.keys().map(String::as_str);
        let all = std::iter::once(self.signer.fingerprint.as_str()).chain(roots);
        all.collect::<Vec<_>>().join("+")
    }

    /// The roots of one that the other has not.
    pub(crate) fn roots_beyond(&self, other: &Self) -> Vec<CertificateStatus> {
        let beyond = self.roots.iter().filter(|(name, _)| !other.roots.contains_key(*name));
        beyond.map(|(_, root)| root.clone()).collect()
    }

    pub(crate) fn status(&self, source: Source) -> CaStatus {
        CaStatus {
            source: source.secret().to_owned(),
            signer: self.signer.clone(),
            roots: self.roots.values().cloned().collect(),
        }
    }

    /// What a change from one to the other replaces; `None` if nothing that a proxy would notice.
    pub(crate) fn change_to(&self, to: &Self) -> Option<Kind> {
        let same_roots = self.roots.keys().eq(to.roots.keys());
        let same_signer = self.signer.fingerprint == to.signer.fingerprint;
        match (same_signer, same_roots) {
            (true, true) => None,
            (true, false) => Some(Kind::Trust),
            (false, true) => Some(Kind::Intermediate),
            (false, false) if self.key == to.key && self.is_root && to.is_root => Some(Kind::Renewal),
            (false, false) => Some(Kind::Root),
        }
    }
}

/// What people are told of a certificate.
pub(crate) fn certificate(der: &CertificateDer<'_>) -> Result<CertificateStatus, maille_pki::Error> {
    let described = describe(der)?;
    Ok(CertificateStatus {
        fingerprint: described.fingerprint,
        subject: described.subject,
        serial: described.serial,
        not_before_ms: millis(described.not_before),
        not_after_ms: millis(described.not_after),
    })
}

/// A Pod with a sidecar that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveProxy {
    /// `<namespace>/<pod>`.
    pub(crate) name: String,
    /// The Pod's uid.
    pub(crate) uid: String,
    /// What it last said that it has in use.
    pub(crate) seen: Option<Seen>,
    /// Until when it counts.
    pub(crate) holds: Holds,
}

/// What a proxy said that it has in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// When it said so, Unix milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) signer: String,
    pub(crate) roots: BTreeSet<String>,
    pub(crate) control_roots: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) renewal_error: String,
}

/// What one of the Secrets of authorities holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Home {
    /// There is no such Secret.
    Absent,
    /// It holds nothing that can be used, and why.
    Bad(String),
    /// It holds this.
    Good(Box<Ca>),
}

/// Everything that a decision is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    /// What is in force while no rotation is under way, and what a rotation leads away from.
    pub(crate) current: &'a Ca,
    /// What the rotation leads to.
    pub(crate) target: Option<&'a Ca>,
    pub(crate) self_signed: &'a Home,
    pub(crate) plugged_in: &'a Home,
    /// `None` while the world is not complete: then nobody may be taken for gone.
    pub(crate) proxies: Option<&'a [LiveProxy]>,
    /// Whether other meshes live by the bundle that this one tells.
    pub(crate) bundle_is_read: bool,
    pub(crate) now_ms: u64,
}

impl<'a> View<'a> {
    pub(crate) fn home(&self, source: Source) -> &'a Home {
        match source {
            Source::SelfSigned => self.self_signed,
            Source::PluggedIn => self.plugged_in,
        }
    }
}

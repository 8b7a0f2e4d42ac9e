//! What people ask of a rotation, and what they are shown of it. No key is ever in here.

use serde::{Deserialize, Serialize};

/// How far a rotation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No rotation is under way.
    #[default]
    Idle,
    /// Old and new roots are trusted, the old certificate signs. Over once every live proxy verifies by the new roots, both
    /// its peers and the control plane, and other meshes that fetch the bundle have had time to.
    Distributing,
    /// Old and new roots are trusted, the new certificate signs. Over once every live proxy has an SVID of its.
    Signing,
    /// The new roots alone are trusted. Over once no live proxy trusts the old ones.
    Withdrawing,
}

impl Phase {
    /// As it is shown and written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Distributing => "distributing",
            Self::Signing => "signing",
            Self::Withdrawing => "withdrawing",
        }
    }
}

/// What somebody asks for: the annotation [`REQUEST_ANNOTATION`](super::REQUEST_ANNOTATION) as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// Chosen at random by whoever asks; [`Status::answer`] names it. At most 64 bytes.
    pub id: String,
    /// What is to be done.
    pub action: Action,
    /// With `rotate`: to what.
    #[serde(default)]
    pub to: Offer,
    /// Only say what would happen ([`Answer::plan`]).
    #[serde(default)]
    pub dry_run: bool,
    /// With `proceed`: the phase that is to be left. It does nothing if the rotation is at another by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// With `proceed`: the proxies no longer waited for in that phase, as [`Waiting::name`] names them; none names all that
    /// are waited for when the request is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<String>,
}

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Begin a rotation.
    Rotate,
    /// Turn the rotation under way round.
    Rollback,
    /// Wait no longer for proxies that have not confirmed.
    Proceed,
}

/// What is to sign after a rotation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offer {
    /// A new self-signed root with a new key. Not for a plugged-in CA.
    #[default]
    Generated,
    /// A new certificate for the self-signed root's own key (CA-16).
    Renewed,
    /// What the Secret's entries with [`OFFER_PREFIX`](super::OFFER_PREFIX) hold.
    Stored,
}

/// What a rotation replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Roots, and what signs with them.
    Root,
    /// The signing certificate below the same roots.
    Intermediate,
    /// The root's certificate; its key stays.
    Renewal,
    /// Roots that are trusted beside the one that signs.
    Trust,
}

/// The answer of `GET /ca` on the monitoring port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// How far the rotation is.
    pub phase: Phase,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// What signs now, and what is trusted now.
    pub authority: CaStatus,
    /// The rotation under way.
    pub rotation: Option<RotationStatus>,
    /// How the last rotation ended.
    pub last: Option<Ended>,
    /// The answer to the last request.
    pub answer: Option<Answer>,
    /// What keeps things from being as they should: a replacement that cannot be used, a Secret that cannot be written.
    pub problems: Vec<String>,
    /// What ends soon, and for whom a rotation does not wait without anybody having said so.
    pub warnings: Vec<String>,
}

/// What signs, and what is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaStatus {
    /// The Secret that it comes from: `istio-ca-secret` (self-signed) or `cacerts` (plugged in).
    pub source: String,
    /// The certificate that signs.
    pub signer: CertificateStatus,
    /// The roots of the mesh's trust domain that are distributed.
    pub roots: Vec<CertificateStatus>,
}

/// One certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// SHA-256 of its DER, lower-case hexadecimal.
    pub fingerprint: String,
    /// Its subject, for people.
    pub subject: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Start of validity, Unix milliseconds.
    pub not_before_ms: u64,
    /// End of validity, Unix milliseconds.
    pub not_after_ms: u64,
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationStatus {
    /// Of the request that began it, or made up.
    pub id: String,
    /// What it replaces.
    pub kind: Kind,
    /// It is being rolled back: `to` is what was in force before it.
    pub backwards: bool,
    /// Why it began, for people.
    pub cause: String,
    /// When, Unix milliseconds.
    pub started_ms: u64,
    /// What it leads away from.
    pub from: CaStatus,
    /// What it leads to.
    pub to: CaStatus,
    /// Live proxies that have confirmed this phase.
    pub confirmed: usize,
    /// Live proxies.
    pub live: usize,
    /// Those that have not, and are waited for; the first thousand.
    pub waiting: Vec<Waiting>,
    /// How many are waited for.
    pub waiting_count: usize,
    /// Those that are not waited for in this phase because somebody said so (`proceed`).
    pub waived: Vec<String>,
}

/// A live proxy that has not confirmed; or those who fetch the bundle, `other-meshes`, without a uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `<namespace>/<pod>`.
    pub name: String,
    /// The Pod's uid.
    pub uid: String,
    /// What it lacks, and what is known of it.
    pub why: String,
    /// When its last certificate ends and it no longer counts, Unix milliseconds: as it was issued, or of its connection,
    /// or as late as one of before this control plane may end. Absent if it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<u64>,
}

/// A rotation that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Its id.
    pub id: String,
    /// What it replaced.
    pub kind: Kind,
    /// Whether it was rolled back.
    pub rolled_back: bool,
    /// When it began and ended, Unix milliseconds.
    pub started_ms: u64,
    /// When it ended, Unix milliseconds.
    pub ended_ms: u64,
    /// Fingerprint of what signs since.
    pub signer: String,
    /// Proxies that were not waited for because somebody said so.
    #[serde(default)]
    pub waived: Vec<String>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// [`Request::id`].
    pub id: String,
    /// Whether it was done.
    pub outcome: Outcome,
    /// For people: why not, or what happens now.
    pub message: String,
    /// With [`Request::dry_run`]: what would happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// Whether a request was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was.
    Accepted,
    /// It was not, and changed nothing.
    Refused,
    /// It was a question.
    Answered,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What would be replaced.
    pub kind: Kind,
    /// What would sign, and be trusted, in the end.
    pub to: CaStatus,
    /// The phases it would go through, the first first.
    pub phases: Vec<Phase>,
    /// Roots that would be distributed.
    pub added: Vec<CertificateStatus>,
    /// Roots that would be withdrawn.
    pub withdrawn: Vec<CertificateStatus>,
    /// Live proxies that would have to confirm.
    pub live: usize,
    /// Those of them that would be waited for in vain as things are: not connected, or with a renewal that fails. The first
    /// hundred.
    pub waiting: Vec<Waiting>,
    /// What ends too soon.
    pub problems: Vec<String>,
}

//! Who has the revocations in force: `GET /ca/revocations` of the monitoring port.

use maille_core::Identity;
use serde::{Deserialize, Serialize};

use crate::authority::{Entries, Home, Object, Phase, Source, home};
use crate::facts;
use crate::proxies::{Proxies, ProxyStatus, millis};
use crate::revocation::Revoked;
use crate::server::ControlPlane;
use crate::world::World;

/// The answer of `GET /ca/revocations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationStatus {
    /// Of what is revoked: proxies report the one that they have in force. Empty: nobody is revoked.
    pub version: String,
    /// Serial numbers of revoked certificates, lower-case hexadecimal without leading zeros.
    pub serials: Vec<String>,
    /// Revoked identities.
    pub identities: Vec<RevokedIdentity>,
    /// How many certificate revocation lists there are.
    pub crls: usize,
    /// What is not in force because it cannot be read.
    pub problems: Vec<String>,
    /// Connected proxies.
    pub connected: usize,
    /// Those of them that have this version in force.
    pub in_force: usize,
    /// The others.
    pub waiting: Vec<ProxyWithout>,
}

/// One revoked identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokedIdentity {
    /// `spiffe://…`.
    pub id: String,
    /// Only certificates issued before this are, Unix milliseconds; absent: all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_ms: Option<u64>,
}

/// A connected proxy that does not have them in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyWithout {
    /// `<namespace>/<pod>`.
    pub name: String,
    /// What is known of the reason.
    pub why: String,
}

impl RevocationStatus {
    /// Whether all that `target` names is revoked.
    pub fn revokes(&self, target: &Revoked) -> bool {
        match target {
            Revoked::Serial(serial) => self.serials.contains(serial),
            Revoked::Identity(identity, before) => {
                let uri = identity.uri();
                let before = before.map(millis);
                self.identities.iter().any(|known| {
                    let reaches =
                        known.before_ms.is_none_or(|reach| before.is_some_and(|before| before <= reach));
                    known.id == uri && reaches
                })
            }
        }
    }
}

impl ControlPlane {
    /// Whether a CA of Secret `cacerts` signs, or is on its way in or out; `None`: the authority is not known yet.
    pub fn has_plugged_in(&self) -> Option<bool> {
        let state = &self.rotation.load_full()?.state;
        let next = state.rotation.as_ref().map(|rotation| rotation.source);
        Some([Some(state.source), next].contains(&Some(Source::PluggedIn)))
    }

    /// Whether the CA of these entries of a Secret is the one in force, and no rotation is under way: then no other is
    /// believed any more. `false` while the authority is not known yet.
    pub fn signs_alone(&self, entries: Entries) -> bool {
        let Some(shown) = self.rotation.load_full() else { return false };
        let object = Object { entries, ..Object::default() };
        let is_current = |found: Home| matches!(found, Home::Good(found) if *found == shown.current);
        shown.state.phase == Phase::Idle && is_current(home(Some(&object)))
    }
}

/// What is revoked in this world, and where that is in force.
pub(crate) fn of(world: &World, proxies: &Proxies) -> RevocationStatus {
    let revocations = world.revocations();
    let version = facts::revocations(world).map(|message| message.version).unwrap_or_default();
    let identity = |(identity, before): (&Identity, &Option<std::time::SystemTime>)| RevokedIdentity {
        id: identity.uri(),
        before_ms: before.map(millis),
    };
    let proxies = proxies.list();
    let waiting: Vec<ProxyWithout> = proxies.iter().filter_map(|proxy| without(proxy, &version)).collect();
    RevocationStatus {
        serials: revocations.serials().iter().cloned().collect(),
        identities: revocations.identities().iter().map(identity).collect(),
        crls: revocations.crls().len(),
        problems: revocations.problems().map(str::to_owned).collect(),
        connected: proxies.len(),
        in_force: proxies.len() - waiting.len(),
        waiting,
        version,
    }
}

fn without(proxy: &ProxyStatus, version: &str) -> Option<ProxyWithout> {
    let why = match in_force_of(proxy) {
        Some(held) if held == version => return None,
        Some("") => "it has none in force".to_owned(),
        Some(_) => "it has an earlier list in force".to_owned(),
        None => "it has not said what it has in force; its version may be too old for revocations".to_owned(),
    };
    let rejected = proxy.types.get("Revocations").and_then(|summary| summary.rejected.as_ref());
    let why = rejected.map_or(why, |reason| format!("it rejects them: {reason}"));
    Some(ProxyWithout { name: proxy.uid.clone(), why })
}

/// The version that a proxy says it has in force.
fn in_force_of(proxy: &ProxyStatus) -> Option<&str> {
    Some(proxy.svid.as_ref()?.revocations.as_str())
}

use std::time::{SystemTime, UNIX_EPOCH};

use maille_core::Identity;
use maille_proto::facts as wire;
use prost::Message as _;

use crate::revocation::start_of;
use crate::world::World;

/// The one name of Revocations.
pub const REVOCATIONS_NAME: &str = "mesh";

/// Who is revoked; `None` if nobody is. An identity of the own trust domain is so by all of its names (SN-12).
pub fn revocations(world: &World) -> Option<wire::Revocations> {
    let revocations = world.revocations();
    if revocations.is_empty() {
        return None;
    }
    let config = world.config();
    let identity = |(identity, before): (&Identity, &Option<SystemTime>)| wire::RevokedIdentity {
        id: identity.uri(),
        not_after_ms: before.map_or(0, last_start),
    };
    let identities: Vec<_> = revocations.identities().iter().map(identity).collect();
    let names = match config.trust_domain_aliases.is_empty() || identities.is_empty() {
        true => Vec::new(),
        false => config.own_names().map(ToString::to_string).collect(),
    };
    let mut message = wire::Revocations {
        version: String::new(),
        serials: revocations.serials().iter().cloned().collect(),
        identities,
        crls: revocations.crls().iter().map(|der| der.clone().into()).collect(),
        trust_domains: names,
    };
    message.version = super::version_of(&message.encode_to_vec());
    Some(message)
}

/// The last start of a certificate that was issued before a moment: they start on whole seconds.
fn last_start(before: SystemTime) -> u64 {
    let start = start_of(before).duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(start.as_millis()).unwrap_or(u64::MAX).saturating_sub(1).max(1)
}

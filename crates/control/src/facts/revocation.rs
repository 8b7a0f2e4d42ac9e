use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

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
    let mut identities = BTreeMap::<String, Option<SystemTime>>::new();
    for (identity, before) in revocations.identities() {
        let own = std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
        let domains: Vec<_> = match config.is_own(identity.trust_domain()) {
            true => own.collect(),
            false => vec![identity.trust_domain()],
        };
        let (namespace, account) = (identity.namespace(), identity.service_account());
        for domain in domains {
            let id = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            let known = identities.entry(id).or_insert(*before);
            *known = known.zip(*before).map(|(a, b)| a.max(b));
        }
    }
    let identities = identities
        .into_iter()
        .map(|(id, before)| wire::RevokedIdentity { id, not_after_ms: before.map_or(0, last_start) });
    let mut message = wire::Revocations {
        version: String::new(),
        serials: revocations.serials().iter().cloned().collect(),
        identities: identities.collect(),
        crls: revocations.crls().iter().map(|der| der.clone().into()).collect(),
    };
    message.version = super::version_of(&message.encode_to_vec());
    Some(message)
}

/// The last start of a certificate that was issued before a moment: they start on whole seconds.
fn last_start(before: SystemTime) -> u64 {
    let start = start_of(before).duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(start.as_millis()).unwrap_or(u64::MAX).saturating_sub(1).max(1)
}

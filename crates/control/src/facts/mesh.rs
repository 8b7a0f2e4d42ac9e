use maille_proto::facts as wire;

use crate::world::World;

/// The one name of MeshSettings.
pub const SETTINGS_NAME: &str = "mesh";

/// What holds for the whole mesh.
pub fn mesh_settings(world: &World) -> wire::MeshSettings {
    use wire::mesh_settings::{OutboundPolicy, PathNormalization};
    let config = world.config();
    let outbound = if config.registry_only { OutboundPolicy::RegistryOnly } else { OutboundPolicy::AllowAny };
    wire::MeshSettings {
        trust_domain: config.trust_domain.to_string(),
        trust_domain_aliases: config.trust_domain_aliases.iter().map(ToString::to_string).collect(),
        root_namespace: config.root_namespace.clone(),
        outbound_policy: outbound.into(),
        // Istio's default (reference authorization 10.3).
        path_normalization: PathNormalization::Base.into(),
        // Wait for ever, as Istio does (reference mtls 1.3).
        protocol_detection_timeout_ms: 0,
        cluster_domain: config.cluster_domain.clone(),
        ..Default::default()
    }
}

/// The roots of one trust domain; `None` if it is not trusted.
pub fn trust_bundle(world: &World, trust_domain: &str) -> Option<wire::TrustBundle> {
    let roots = world.roots().get(trust_domain)?;
    Some(wire::TrustBundle {
        trust_domain: trust_domain.to_owned(),
        roots: roots.iter().map(|der| der.clone().into()).collect(),
    })
}

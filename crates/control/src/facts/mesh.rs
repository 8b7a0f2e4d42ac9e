use std::time::Duration;

use maille_config::destination_rule::Client;
use maille_config::mesh::{AccessLog, ExtensionProvider, HttpProvider, PathNormalization, ProviderKind};
use maille_proto::facts as wire;

use crate::world::World;

/// The one name of MeshSettings.
pub const SETTINGS_NAME: &str = "mesh";

/// What holds for the whole mesh, and of a Sidecar what becomes of a client's calls to unknown destinations.
pub fn mesh_settings(world: &World, client: Client<'_>) -> wire::MeshSettings {
    use wire::mesh_settings::{AccessLog as Log, OutboundPolicy, PathNormalization as Paths};
    let config = world.config();
    let outbound = match world.registry_only_for(client) {
        true => OutboundPolicy::RegistryOnly,
        false => OutboundPolicy::AllowAny,
    };
    let paths = match config.path_normalization {
        PathNormalization::None => Paths::None,
        PathNormalization::Base => Paths::Base,
        PathNormalization::MergeSlashes => Paths::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes => Paths::DecodeAndMergeSlashes,
    };
    let log = match config.access_log {
        AccessLog::Refusals => Log::Unspecified,
        AccessLog::Text => Log::Text,
        AccessLog::Json => Log::Json,
    };
    wire::MeshSettings {
        trust_domain: config.trust_domain.to_string(),
        trust_domain_aliases: config.trust_domain_aliases.iter().map(ToString::to_string).collect(),
        root_namespace: config.root_namespace.clone(),
        outbound_policy: outbound.into(),
        path_normalization: paths.into(),
        protocol_detection_timeout_ms: config.protocol_detection_timeout.map_or(0, millis),
        cluster_domain: config.cluster_domain.clone(),
        extension_providers: config.extension_providers.iter().map(|p| provider(world, p)).collect(),
        access_log: log.into(),
        explain_in_response: config.explain_in_response,
        keeps_expired_tcp: config.keep_expired_tcp,
        deliver_to_localhost: config.deliver_to_localhost,
        post_quantum_only: config.mesh_tls.is_post_quantum_only(),
        key_exchanges: config.mesh_tls.key_exchanges.clone(),
        tls13_only: config.mesh_tls.tls13_only,
    }
}

/// At least one: on the wire zero is none at all.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn provider(world: &World, provider: &ExtensionProvider) -> wire::ExtensionProvider {
    use wire::extension_provider::Kind;
    let kind = match &provider.kind {
        ProviderKind::Grpc => Kind::Grpc(wire::ExtAuthzGrpc {}),
        ProviderKind::Http(http) => {
            let HttpProvider {
                path_prefix,
                include_request_headers_in_check,
                include_additional_headers_in_check,
                headers_to_upstream_on_allow,
                headers_to_downstream_on_deny,
                headers_to_downstream_on_allow,
            } = http.clone();
            Kind::Http(wire::ExtAuthzHttp {
                path_prefix,
                include_request_headers: include_request_headers_in_check,
                include_additional_headers: include_additional_headers_in_check.into_iter().collect(),
                headers_to_upstream_on_allow,
                headers_to_downstream_on_deny,
                headers_to_downstream_on_allow,
            })
        }
    };
    wire::ExtensionProvider {
        name: provider.name.clone(),
        host: provider.host.clone(),
        port: provider.port.into(),
        timeout_ms: millis(provider.timeout),
        fail_open: provider.fail_open,
        status_on_error: provider.status_on_error.into(),
        body: provider.body.map(|body| wire::CheckBody {
            max_request_bytes: body.max_request_bytes,
            allow_partial_message: body.allow_partial_message,
            pack_as_bytes: body.pack_as_bytes,
        }),
        kind: Some(kind),
        problem: provider_problem(world, provider).unwrap_or_default(),
    }
}

/// Why an external authorizer cannot be asked. As in Istio, one that the registry does not know cannot, and what its
/// policies match is refused whatever `failOpen` says (reference authorization 15; Istio's `model.LookupCluster`).
pub fn provider_problem(world: &World, provider: &ExtensionProvider) -> Option<String> {
    let host = &provider.host;
    (!world.is_registered(host)).then(|| {
        format!("the registry knows no Service or ServiceEntry '{host}', in which extension provider '{}' is said to be", provider.name)
    })
}

/// The roots of one trust domain; `None` if it is not trusted.
pub fn trust_bundle(world: &World, trust_domain: &str) -> Option<wire::TrustBundle> {
    let roots = world.roots_of(trust_domain);
    let is_own = trust_domain == world.config().trust_domain.as_str();
    (!roots.is_empty()).then(|| wire::TrustBundle {
        trust_domain: trust_domain.to_owned(),
        roots: roots.into_iter().map(|der| der.to_vec().into()).collect(),
        signer: if is_own { world.signer().to_owned() } else { String::new() },
        jwks: world.jwks_of(trust_domain).into(),
    })
}

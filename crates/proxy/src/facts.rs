//! Messages in, checked facts out.
//!
//! Fails closed: an unknown mTLS mode is STRICT, an unknown outbound policy is REGISTRY_ONLY, an unknown action denies
//! everything, an endpoint of unknown security is not used, and nothing is sent under a TLS order of an unknown mode. What cannot be read at all is refused by name, so that the
//! last good fact stays in force while its neighbours apply.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use maille_config::istio;
use maille_core::{EndpointTls, Hostname, Identity, MtlsMode, PortProtocol, TrustDomain};
use maille_policy::authentication::{ClaimToHeader, JwtHeader, JwtRule, RequestAuthentication};
use maille_policy::path::Normalization as PathNormalization;
use maille_proto::facts as wire;
use maille_telemetry::access_log::{Coverage, Format};
use maille_tls::{KeyExchange, Parameters, Revoked};
use rustls::pki_types::CertificateDer;

use crate::balance::Terms;
use crate::snapshot::{
    AnyAddress, Destination, DirectWorkload, Endpoint, EndpointPort, HeadlessPort, Inbound, InboundPort,
    MeshSettings, NamedEndpoint, OutboundPolicy, Service, ServiceName, ServicePort, Workload,
};

mod external;
mod traffic;

pub(crate) use traffic::MAX_EJECTION;

/// What is wrong with a message from the control plane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FactError {
    /// Path of the field within the message.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

type Checked<T> = Result<T, FactError>;

fn wrong(field: impl Into<String>, reason: impl ToString) -> FactError {
    FactError { field: field.into(), reason: reason.to_string() }
}

/// Checks what holds for the whole mesh.
pub fn mesh_settings(message: &wire::MeshSettings) -> Checked<MeshSettings> {
    use wire::mesh_settings::{OutboundPolicy as Out, PathNormalization as Path};
    let path_normalization = match Path::try_from(message.path_normalization) {
        Ok(Path::None) => PathNormalization::None,
        Ok(Path::Base) => PathNormalization::Base,
        Ok(Path::MergeSlashes) => PathNormalization::MergeSlashes,
        Ok(Path::DecodeAndMergeSlashes) => PathNormalization::DecodeAndMergeSlashes,
        // Guessing would judge another path than the one the policies were written for.
        Ok(Path::Unspecified) | Err(_) => {
            return Err(wrong("path_normalization", format!("unknown value {}", message.path_normalization)));
        }
    };
    let timeout = message.protocol_detection_timeout_ms;
    Ok(MeshSettings {
        trust_domain: trust_domain("trust_domain", &message.trust_domain)?,
        trust_domain_aliases: message
            .trust_domain_aliases
            .iter()
            .map(|alias| trust_domain("trust_domain_aliases", alias))
            .collect::<Checked<_>>()?,
        root_namespace: non_empty("root_namespace", &message.root_namespace)?,
        outbound_policy: match Out::try_from(message.outbound_policy) {
            Ok(Out::AllowAny) => OutboundPolicy::AllowAny,
            Ok(Out::RegistryOnly | Out::Unspecified) | Err(_) => OutboundPolicy::RegistryOnly,
        },
        path_normalization,
        protocol_detection_timeout: (timeout > 0).then(|| Duration::from_millis(timeout.into())),
        cluster_domain: non_empty("cluster_domain", &message.cluster_domain)?,
        extension_providers: message.extension_providers.as_slice().into(),
        access_log: match wire::mesh_settings::AccessLog::try_from(message.access_log) {
            Ok(wire::mesh_settings::AccessLog::Text) => Coverage::Everything(Format::Text),
            Ok(wire::mesh_settings::AccessLog::Json) => Coverage::Everything(Format::Json),
            Ok(wire::mesh_settings::AccessLog::Unspecified) | Err(_) => Coverage::Refusals,
        },
        explain_in_response: message.explain_in_response,
        keeps_expired_tcp: message.keeps_expired_tcp,
        deliver_to_localhost: message.deliver_to_localhost,
        tls: tls_parameters(message)?,
    })
}

/// What mutual TLS of the mesh may negotiate. What is not known here cannot be kept to, so that it is refused.
fn tls_parameters(message: &wire::MeshSettings) -> Checked<Parameters> {
    if message.post_quantum_only {
        return Ok(Parameters::post_quantum_only());
    }
    let known = |name: &String| {
        KeyExchange::named(name).ok_or_else(|| wrong("key_exchanges", format!("'{name}' is not known")))
    };
    let key_exchanges = message.key_exchanges.iter().map(known).collect::<Checked<_>>()?;
    Ok(Parameters { key_exchanges, tls13_only: message.tls13_only })
}

/// Checks who is revoked. What cannot be read would spare somebody, so that it is refused as a whole.
pub fn revocations(message: &wire::Revocations) -> Checked<Revoked> {
    let identities = message.identities.iter().map(|revoked| {
        let identity = Identity::parse_uri(&revoked.id).map_err(|e| wrong("identities", e.to_string()))?;
        let until = Duration::from_millis(revoked.not_after_ms);
        let until = (!until.is_zero()).then(|| SystemTime::UNIX_EPOCH.checked_add(until)).flatten();
        Ok((identity, until))
    });
    let identities: Vec<_> = identities.collect::<Checked<_>>()?;
    let crls = message.crls.iter().map(|der| der.to_vec()).collect();
    let names = message.trust_domains.iter().map(|name| trust_domain("trust_domains", name));
    let names: Vec<_> = names.collect::<Checked<_>>()?;
    Revoked::new(message.version.clone(), message.serials.iter().cloned(), identities, crls)
        .map(|revoked| revoked.among(names))
        .map_err(|e| wrong("revocations", e.to_string()))
}

/// Checks what a proxy enforces for its own workload.
pub fn inbound(message: &wire::Inbound) -> Checked<Inbound> {
    let own = message.workload.as_ref().ok_or_else(|| wrong("workload", "missing"))?;
    let mut port_modes = HashMap::with_capacity(message.port_modes.len());
    for (number, mode) in &message.port_modes {
        port_modes.insert(port("port_modes", *number)?, mtls_mode(*mode));
    }
    let mut ports = HashMap::with_capacity(message.ports.len());
    for declared in &message.ports {
        let service =
            service_name(&declared.service_hostname, &declared.service_name, &declared.service_namespace);
        let pool = declared.connection_pool.as_ref().map(traffic::connection_pool);
        let terms = pool.map(|pool| Arc::new(Terms::of_own_port(pool)));
        let entry = InboundPort { protocol: protocol(declared.protocol), service, terms };
        // PA-17: the oldest Service comes first and wins.
        ports.entry(port("ports.port", declared.port)?).or_insert(entry);
    }
    Ok(Inbound { workload: workload("workload", own)?, mode: mtls_mode(message.mode), port_modes, ports })
}

/// Checks the answer for one name.
pub fn destination(message: &wire::Destination) -> Checked<Destination> {
    use wire::destination::Kind;
    match &message.kind {
        Some(Kind::Service(service)) => self::service(service).map(Destination::Service),
        Some(Kind::Workload(direct)) => direct_workload(direct).map(Destination::Workload),
        Some(Kind::Unknown(_)) => Ok(Destination::Unknown),
        Some(Kind::AnyAddress(any)) => Ok(Destination::AnyAddress(AnyAddress {
            http: any.http,
            tls: any.tls,
            service: any.service.as_ref().map(self::service).transpose()?,
        })),
        // Not `Unknown`: that would send plaintext on the word of a message that we do not understand.
        None => Err(wrong("kind", "missing or of a newer version")),
    }
}

/// Turns one policy into what [`maille_policy`] compiles. Never fails: what cannot be read denies.
pub fn authorization(message: &wire::Authorization) -> maille_policy::Authorization {
    use wire::authorization::Action;
    let action = match Action::try_from(message.action) {
        Ok(Action::Allow) => Some(istio::Action::Allow),
        Ok(Action::Deny) => Some(istio::Action::Deny),
        Ok(Action::Audit) => Some(istio::Action::Audit),
        Ok(Action::Custom) => Some(istio::Action::Custom),
        Ok(Action::Unspecified) | Err(_) => None,
    };
    let rules = match action {
        Some(_) => message.rules.iter().map(rule).collect(),
        None => vec![istio::Rule::default()],
    };
    maille_policy::Authorization {
        namespace: message.namespace.clone(),
        name: message.name.clone(),
        dry_run: message.dry_run && action.is_some(),
        spec: istio::AuthorizationPolicySpec {
            action: action.unwrap_or(istio::Action::Deny),
            rules,
            provider: (!message.provider.is_empty())
                .then(|| istio::Provider { name: message.provider.clone() }),
            ..Default::default()
        },
    }
}

/// Turns one policy about tokens into what [`maille_policy`] compiles. Never fails: a key set that cannot be read lets no
/// token pass.
pub fn request_authentication(message: &wire::RequestAuthentication) -> RequestAuthentication {
    RequestAuthentication {
        namespace: message.namespace.clone(),
        name: message.name.clone(),
        rules: message.jwt_rules.iter().map(jwt_rule).collect(),
    }
}

/// Checks the roots of one trust domain.
pub fn trust_bundle(message: &wire::TrustBundle) -> Checked<(TrustDomain, Vec<CertificateDer<'static>>)> {
    if message.roots.is_empty() {
        return Err(wrong("roots", "empty; a trust domain without roots trusts nobody"));
    }
    let roots = message.roots.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok((trust_domain("trust_domain", &message.trust_domain)?, roots))
}

/// The server name under which a sidecar is asked for a service port (reference mtls 8.1).
pub(crate) fn sni_of(hostname: &str, service_port: u16) -> Arc<str> {
    format!("outbound_.{service_port}_._.{hostname}").into()
}

fn service(message: &wire::Service) -> Checked<Service> {
    let hostname = external::host("service.hostname", &message.hostname)?;
    let service_entry =
        (!message.service_entry.is_empty()).then(|| Arc::from(message.service_entry.as_str()));
    let ports = message.ports.iter().map(|declared| {
        let number = port("service.ports.number", declared.number)?;
        let target_port = match declared.target_port {
            0 => None,
            target => Some(port("service.ports.target_port", target)?),
        };
        Ok(ServicePort {
            number,
            protocol: protocol(declared.protocol),
            sni: sni_of(&hostname, number),
            is_tls: wire::Protocol::try_from(declared.protocol) == Ok(wire::Protocol::Tls),
            order: declared.tls.as_ref().map(|tls| Arc::new(external::order(tls))),
            target_port,
            traffic: declared.traffic.as_ref().map(traffic::traffic),
            balance: None,
        })
    });
    let mut endpoints = Vec::with_capacity(message.endpoints.len());
    let mut named_endpoints = Vec::new();
    for endpoint in &message.endpoints {
        match endpoint.dns_name.as_str() {
            "" => endpoints.push(self::endpoint(endpoint)?),
            name => named_endpoints.push(NamedEndpoint {
                workload: owner(endpoint)?,
                dns_name: Hostname::parse(name)
                    .map_err(|e| wrong("service.endpoints.dns_name", e))?
                    .as_str()
                    .into(),
                ports: endpoint_ports(endpoint, false)?,
                weight: endpoint.weight.max(1),
            }),
        }
    }
    Ok(Service {
        ports: ports.collect::<Checked<_>>()?,
        name: service_name(&hostname, &message.name, &message.namespace),
        addresses: external::addresses("service.addresses", &message.addresses)?,
        endpoints,
        subject_alt_names: message.subject_alt_names.as_slice().into(),
        headless: message.headless,
        external: message.external,
        resolution: external::resolution(message.resolution)?,
        service_entry,
        named_endpoints,
        lookup_failure: None,
    })
}

fn endpoint(message: &wire::Endpoint) -> Checked<Endpoint> {
    let unix_path = match message.unix_path.as_str() {
        "" => None,
        path if path.starts_with('/') && !path.contains('\0') => Some(Arc::from(path)),
        path => return Err(wrong("service.endpoints.unix_path", format!("'{path}' is no absolute path"))),
    };
    Ok(Endpoint {
        workload: owner(message)?,
        address: match unix_path {
            Some(_) => IpAddr::from([0, 0, 0, 0]),
            None => address("service.endpoints.address", &message.address)?,
        },
        other_address: match message.other_address.as_str() {
            "" => None,
            other => Some(address("service.endpoints.other_address", other)?),
        },
        ports: endpoint_ports(message, unix_path.is_some())?,
        weight: message.weight.max(1),
        unix_path,
    })
}

fn endpoint_ports(message: &wire::Endpoint, is_socket: bool) -> Checked<Vec<EndpointPort>> {
    let mut ports = Vec::with_capacity(message.ports.len());
    for declared in &message.ports {
        // An endpoint of unknown security is not used; its other ports may be.
        let Some(tls) = endpoint_tls(declared.tls) else { continue };
        ports.push(EndpointPort {
            service_port: port("service.endpoints.ports.service_port", declared.service_port)?,
            target_port: match declared.target_port {
                0 if is_socket => 0,
                number => port("service.endpoints.ports.target_port", number)?,
            },
            tls,
        });
    }
    Ok(ports)
}

fn owner(message: &wire::Endpoint) -> Checked<Arc<Workload>> {
    match &message.workload {
        Some(owner) => workload("service.endpoints.workload", owner),
        None => Ok(Arc::default()),
    }
}

fn direct_workload(message: &wire::DirectWorkload) -> Checked<DirectWorkload> {
    let owner = message.workload.as_ref().ok_or_else(|| wrong("workload.workload", "missing"))?;
    let ports = message.headless_ports.iter().map(|declared| {
        let hostname = Hostname::parse(&declared.service_hostname)
            .map_err(|e| wrong("workload.headless_ports.service_hostname", e))?;
        let service_port = port("workload.headless_ports.service_port", declared.service_port)?;
        Ok(HeadlessPort {
            port: port("workload.headless_ports.port", declared.port)?,
            protocol: protocol(declared.protocol),
            // Dropping the port here would turn it into a plaintext passthrough, hence an error.
            tls: endpoint_tls(declared.tls).ok_or_else(|| {
                wrong("workload.headless_ports.tls", format!("unknown value {}", declared.tls))
            })?,
            service: service_name(hostname.as_str(), &declared.service_name, &declared.service_namespace),
            service_port,
            sni: sni_of(hostname.as_str(), service_port),
            subject_alt_names: declared.subject_alt_names.as_slice().into(),
            order: declared.client_tls.as_ref().map(|tls| Arc::new(external::order(tls))),
            traffic: declared.traffic.as_ref().map(traffic::traffic),
            terms: None,
        })
    });
    Ok(DirectWorkload {
        headless_ports: ports.collect::<Checked<_>>()?,
        workload: workload("workload.workload", owner)?,
    })
}

fn workload(field: &str, message: &wire::Workload) -> Checked<Arc<Workload>> {
    let identity = message.identity.as_ref().map(|id| {
        let domain = trust_domain(field, &id.trust_domain)?;
        Identity::new(domain, &id.namespace, &id.service_account)
            .map_err(|e| wrong(format!("{field}.identity"), e))
    });
    Ok(Arc::new(Workload {
        uid: message.uid.as_str().into(),
        namespace: message.namespace.as_str().into(),
        workload_name: message.workload_name.as_str().into(),
        identity: identity.transpose()?,
        addresses: addresses(field, &message.addresses)?,
        canonical_name: message.canonical_name.as_str().into(),
        canonical_revision: message.canonical_revision.as_str().into(),
        app: message.app.as_str().into(),
        meshed: message.meshed,
        multiplexes: message.multiplexes,
    }))
}

fn service_name(hostname: &str, name: &str, namespace: &str) -> Arc<ServiceName> {
    Arc::new(ServiceName { hostname: hostname.into(), name: name.into(), namespace: namespace.into() })
}

fn jwt_rule(message: &wire::JwtRule) -> JwtRule {
    let jwks = match (message.jwks.as_str(), message.jwks_problem.as_str()) {
        ("", "") => Err("the control plane sent no key set".to_owned()),
        ("", problem) => Err(problem.to_owned()),
        (keys, _) => Ok(keys.to_owned()),
    };
    JwtRule {
        issuer: message.issuer.clone(),
        audiences: message.audiences.clone(),
        jwks,
        from_headers: message
            .from_headers
            .iter()
            .map(|from| JwtHeader { name: from.name.clone(), prefix: from.prefix.clone() })
            .collect(),
        from_params: message.from_params.clone(),
        from_cookies: message.from_cookies.clone(),
        forward_original_token: message.forward_original_token,
        output_payload_to_header: message.output_payload_to_header.clone(),
        output_claim_to_headers: message
            .output_claim_to_headers
            .iter()
            .map(|output| ClaimToHeader { header: output.header.clone(), claim: output.claim.clone() })
            .collect(),
        space_delimited_claims: message.space_delimited_claims.clone(),
    }
}

fn rule(message: &wire::Rule) -> istio::Rule {
    let from = message.from.iter().map(|s| istio::From {
        source: Some(istio::Source {
            principals: s.principals.clone(),
            not_principals: s.not_principals.clone(),
            request_principals: s.request_principals.clone(),
            not_request_principals: s.not_request_principals.clone(),
            namespaces: s.namespaces.clone(),
            not_namespaces: s.not_namespaces.clone(),
            service_accounts: s.service_accounts.clone(),
            not_service_accounts: s.not_service_accounts.clone(),
            ip_blocks: s.ip_blocks.clone(),
            not_ip_blocks: s.not_ip_blocks.clone(),
            remote_ip_blocks: s.remote_ip_blocks.clone(),
            not_remote_ip_blocks: s.not_remote_ip_blocks.clone(),
            trust_domains: s.trust_domains.clone(),
            not_trust_domains: s.not_trust_domains.clone(),
        }),
    });
    let to = message.to.iter().map(|o| istio::To {
        operation: Some(istio::Operation {
            hosts: o.hosts.clone(),
            not_hosts: o.not_hosts.clone(),
            ports: o.ports.clone(),
            not_ports: o.not_ports.clone(),
            methods: o.methods.clone(),
            not_methods: o.not_methods.clone(),
            paths: o.paths.clone(),
            not_paths: o.not_paths.clone(),
        }),
    });
    let when = message.when.iter().map(|c| istio::Condition {
        key: c.key.clone(),
        values: c.values.clone(),
        not_values: c.not_values.clone(),
    });
    istio::Rule { from: from.collect(), to: to.collect(), when: when.collect() }
}

fn mtls_mode(value: i32) -> MtlsMode {
    match wire::MtlsMode::try_from(value) {
        Ok(wire::MtlsMode::Disable) => MtlsMode::Disable,
        Ok(wire::MtlsMode::Permissive) => MtlsMode::Permissive,
        Ok(wire::MtlsMode::Strict | wire::MtlsMode::Unspecified) | Err(_) => MtlsMode::Strict,
    }
}

fn protocol(value: i32) -> PortProtocol {
    match wire::Protocol::try_from(value) {
        Ok(wire::Protocol::Auto) => PortProtocol::Auto,
        Ok(wire::Protocol::Http) => PortProtocol::Http,
        Ok(wire::Protocol::Http2) => PortProtocol::Http2,
        // A protocol of the future is opaque; on TCP, ALLOW rules get narrower and DENY rules wider.
        Ok(wire::Protocol::Tcp | wire::Protocol::Tls) | Err(_) => PortProtocol::Tcp,
    }
}

fn endpoint_tls(value: i32) -> Option<EndpointTls> {
    match wire::EndpointTls::try_from(value) {
        Ok(wire::EndpointTls::Plaintext) => Some(EndpointTls::Plaintext),
        Ok(wire::EndpointTls::IstioMutual) => Some(EndpointTls::IstioMutual),
        Ok(wire::EndpointTls::Unspecified) | Err(_) => None,
    }
}

fn port(field: &str, value: u32) -> Checked<u16> {
    match u16::try_from(value) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(wrong(field, format!("{value} is no port, a port is 1 to 65535"))),
    }
}

fn address(field: &str, text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_| wrong(field, format!("'{text}' is no IP address")))
}

fn addresses(field: &str, texts: &[String]) -> Checked<Vec<IpAddr>> {
    texts.iter().map(|text| address(field, text)).collect()
}

fn trust_domain(field: &str, text: &str) -> Checked<TrustDomain> {
    TrustDomain::parse(text).map_err(|e| wrong(field, e))
}

fn non_empty(field: &str, text: &str) -> Checked<String> {
    if text.is_empty() { Err(wrong(field, "missing")) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests;

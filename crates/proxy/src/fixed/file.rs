//! The file's shape: the messages of `facts.proto` with their field names in camelCase and Istio's spelling of modes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use maille_config::istio::AuthorizationPolicySpec;
use maille_core::TrustDomain;
use maille_pki::{KeyPair, Svid, TrustBundles};
use maille_policy::authentication::RequestAuthentication;
use maille_proto::facts as wire;
use maille_tls::{Revoked, Trust};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::destination::{DestinationFacts, Protocol};
use super::request::{Provider, RequestAuthenticationFacts};
use super::traffic::ConnectionPool;
use crate::facts;
use crate::snapshot::{Destination, Direction, Inbound, Limits, ListenerSpec, MeshSettings, Target};
use crate::upkeep::Servers;

/// What is wrong with a file of facts.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It, or a PEM file that it names, cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// It is not YAML of the right shape.
    #[error("{path}: {message}")]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Line, column, field and what is wrong.
        message: String,
    },
    /// A listener that makes no sense.
    #[error("listeners[{index}]: {message}")]
    Listener {
        /// Which one.
        index: usize,
        /// What would be right.
        message: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default = "one")]
    pub(super) workers: usize,
    /// Log to standard output; what is logged, `settings.accessLog` says.
    #[serde(default)]
    pub(super) access_log: bool,
    /// Log to this file instead, whatever `accessLog` says.
    #[serde(default)]
    pub(super) access_log_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) deliver_from: Option<IpAddr>,
    identity: IdentityFiles,
    /// Trust domain to PEM file of its roots.
    trust: BTreeMap<String, PathBuf>,
    /// Who is trusted no more although a root stands behind him.
    #[serde(default)]
    revocations: Revocations,
    #[serde(default)]
    settings: Settings,
    inbound: InboundFacts,
    #[serde(default)]
    authorizations: Vec<Authorization>,
    #[serde(default)]
    request_authentications: Vec<RequestAuthenticationFacts>,
    #[serde(default)]
    destinations: BTreeMap<String, DestinationFacts>,
    listeners: Vec<Listener>,
    /// Asked for names of endpoints, in place of those of `/etc/resolv.conf`.
    #[serde(default)]
    dns_servers: Vec<SocketAddr>,
    /// Connections per worker whose protocol is unknown; for tests of the budget.
    #[serde(default)]
    undetected: Option<usize>,
    /// Milliseconds that the head of a request may take; for tests of slow callers.
    #[serde(default)]
    request_head_ms: Option<u64>,
    /// Milliseconds that a caller's HTTP connection may stay unused; for tests of it.
    #[serde(default)]
    idle_caller_ms: Option<u64>,
    #[serde(skip)]
    path: PathBuf,
}

fn one() -> usize {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFiles {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Revocations {
    serials: Vec<String>,
    identities: Vec<RevokedIdentity>,
    /// PEM file of the authorities' lists.
    crls: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RevokedIdentity {
    id: String,
    #[serde(default)]
    not_after_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Settings {
    trust_domain: String,
    trust_domain_aliases: Vec<String>,
    root_namespace: String,
    outbound_policy: OutboundPolicy,
    path_normalization: PathNormalization,
    protocol_detection_timeout_ms: u32,
    cluster_domain: String,
    extension_providers: Vec<Provider>,
    access_log: Option<AccessLogName>,
    explain_in_response: bool,
    keep_expired_tcp: bool,
    deliver_to_localhost: bool,
    key_exchanges: Vec<String>,
    tls13_only: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: maille_core::DEFAULT_TRUST_DOMAIN.to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: maille_core::ROOT_NAMESPACE.to_owned(),
            outbound_policy: OutboundPolicy::AllowAny,
            path_normalization: PathNormalization::Base,
            protocol_detection_timeout_ms: 0,
            cluster_domain: maille_core::CLUSTER_DOMAIN.to_owned(),
            extension_providers: Vec::new(),
            access_log: None,
            explain_in_response: false,
            keep_expired_tcp: false,
            deliver_to_localhost: false,
            key_exchanges: Vec::new(),
            tls13_only: false,
        }
    }
}

names!(AccessLogName {
    Text = "TEXT" => wire::mesh_settings::AccessLog::Text,
    Json = "JSON" => wire::mesh_settings::AccessLog::Json,
});

names!(OutboundPolicy {
    AllowAny = "ALLOW_ANY" => wire::mesh_settings::OutboundPolicy::AllowAny,
    RegistryOnly = "REGISTRY_ONLY" => wire::mesh_settings::OutboundPolicy::RegistryOnly,
});
names!(PathNormalization {
    None = "NONE" => wire::mesh_settings::PathNormalization::None,
    Base = "BASE" => wire::mesh_settings::PathNormalization::Base,
    MergeSlashes = "MERGE_SLASHES" => wire::mesh_settings::PathNormalization::MergeSlashes,
    DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES" => wire::mesh_settings::PathNormalization::DecodeAndMergeSlashes,
});
names!(Mode {
    Disable = "DISABLE" => wire::MtlsMode::Disable,
    Permissive = "PERMISSIVE" => wire::MtlsMode::Permissive,
    Strict = "STRICT" => wire::MtlsMode::Strict,
});
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Workload {
    uid: String,
    namespace: String,
    workload_name: String,
    identity: Option<Identity>,
    addresses: Vec<String>,
    canonical_name: String,
    canonical_revision: String,
    app: String,
    meshed: bool,
    multiplexes: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Identity {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InboundFacts {
    workload: Workload,
    mode: Mode,
    #[serde(default)]
    port_modes: BTreeMap<u16, Mode>,
    #[serde(default)]
    ports: Vec<InboundPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InboundPort {
    port: u16,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    service_hostname: String,
    #[serde(default)]
    service_name: String,
    #[serde(default)]
    service_namespace: String,
    #[serde(default)]
    connection_pool: Option<ConnectionPool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Authorization {
    namespace: String,
    name: String,
    #[serde(default)]
    dry_run: bool,
    /// As in an AuthorizationPolicy's YAML; selection has been done.
    spec: AuthorizationPolicySpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Listener {
    direction: DirectionName,
    listen: SocketAddr,
    /// The address that was dialled; outbound also `host:port`; `redirected` asks the kernel.
    stands_for: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DirectionName {
    Inbound,
    Outbound,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, FileError> {
        let text = read(path)?;
        let mut file: Self = serde_saphyr::from_str(&text)
            .map_err(|e| FileError::Shape { path: path.to_owned(), message: e.to_string() })?;
        file.path = path.to_owned();
        Ok(file)
    }

    /// A file that this one names; relative to it.
    fn named(&self, path: &Path) -> Result<String, FileError> {
        read(&self.path.parent().unwrap_or(Path::new(".")).join(path))
    }

    pub(super) fn credentials(&self) -> anyhow::Result<(Svid, Trust)> {
        let chain = self.named(&self.identity.certificate)?;
        let svid = Svid::from_pem(&[chain], KeyPair::from_pem(&self.named(&self.identity.key)?)?)?;
        let settings = self.settings()?;
        let mut bundles = TrustBundles::new();
        for (domain, path) in &self.trust {
            let domain = TrustDomain::parse(domain)?;
            let roots = maille_pki::certificates_from_pem("roots", &self.named(path)?)?;
            bundles.insert(domain, roots)?;
        }
        let trust = Trust::of_mesh(bundles, &settings.trust_domain, &settings.trust_domain_aliases)?;
        Ok((svid, trust.without(Arc::new(self.revoked()?))))
    }

    fn revoked(&self) -> anyhow::Result<Revoked> {
        let Revocations { serials, identities, crls } = &self.revocations;
        let lists = crls.as_ref().map(|path| self.named(path)).transpose()?;
        let lists = lists.iter().flat_map(|pem| CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()));
        let lists = lists.map(|list| list.map(|list| list.to_vec().into())).collect::<Result<_, _>>()?;
        let identities = identities
            .iter()
            .map(|one| wire::RevokedIdentity { id: one.id.clone(), not_after_ms: one.not_after_ms });
        let message = wire::Revocations {
            version: String::new(),
            serials: serials.clone(),
            identities: identities.collect(),
            crls: lists,
            trust_domains: [
                vec![self.settings.trust_domain.clone()],
                self.settings.trust_domain_aliases.clone(),
            ]
            .concat(),
        };
        Ok(facts::revocations(&message)?)
    }

    pub(super) fn settings(&self) -> Result<MeshSettings, facts::FactError> {
        let settings = &self.settings;
        facts::mesh_settings(&wire::MeshSettings {
            trust_domain: settings.trust_domain.clone(),
            trust_domain_aliases: settings.trust_domain_aliases.clone(),
            root_namespace: settings.root_namespace.clone(),
            outbound_policy: settings.outbound_policy.proto(),
            path_normalization: settings.path_normalization.proto(),
            protocol_detection_timeout_ms: settings.protocol_detection_timeout_ms,
            cluster_domain: settings.cluster_domain.clone(),
            extension_providers: settings.extension_providers.iter().map(Provider::message).collect(),
            access_log: settings.access_log.map_or(0, AccessLogName::proto),
            explain_in_response: settings.explain_in_response,
            keeps_expired_tcp: settings.keep_expired_tcp,
            deliver_to_localhost: settings.deliver_to_localhost,
            key_exchanges: settings.key_exchanges.clone(),
            tls13_only: settings.tls13_only,
            ..Default::default()
        })
    }

    pub(super) fn inbound(&self) -> Result<Inbound, facts::FactError> {
        let ports = self.inbound.ports.iter().map(|p| wire::InboundPort {
            port: p.port.into(),
            protocol: p.protocol.proto(),
            service_hostname: p.service_hostname.clone(),
            service_name: p.service_name.clone(),
            service_namespace: p.service_namespace.clone(),
            connection_pool: p.connection_pool.as_ref().map(ConnectionPool::message),
        });
        facts::inbound(&wire::Inbound {
            workload: Some(self.inbound.workload.message()),
            mode: self.inbound.mode.proto(),
            port_modes: self.inbound.port_modes.iter().map(|(p, m)| (u32::from(*p), m.proto())).collect(),
            ports: ports.collect(),
        })
    }

    pub(super) fn authorizations(&self) -> Vec<maille_policy::Authorization> {
        let policies = self.authorizations.iter().map(|a| maille_policy::Authorization {
            namespace: a.namespace.clone(),
            name: a.name.clone(),
            dry_run: a.dry_run,
            spec: a.spec.clone(),
        });
        policies.collect()
    }

    pub(super) fn request_authentications(&self) -> Vec<RequestAuthentication> {
        let message = |policy: &RequestAuthenticationFacts| facts::request_authentication(&policy.message());
        self.request_authentications.iter().map(message).collect()
    }

    pub(super) fn destinations(&self) -> Result<HashMap<String, Destination>, facts::FactError> {
        let checked = self.destinations.iter().map(|(name, destination)| {
            Ok((name.to_ascii_lowercase(), facts::destination(&destination.message())?))
        });
        checked.collect()
    }

    pub(super) fn listeners(&self) -> Result<Vec<ListenerSpec>, FileError> {
        let checked = self.listeners.iter().enumerate().map(|(index, listener)| {
            let wrong = |message: &str| FileError::Listener { index, message: message.to_owned() };
            let direction = match listener.direction {
                DirectionName::Inbound => Direction::Inbound,
                DirectionName::Outbound => Direction::Outbound,
            };
            let target = match listener.stands_for.parse::<SocketAddr>() {
                Err(_) if listener.stands_for == "redirected" => Target::Redirected,
                Ok(address) => Target::Address(address),
                Err(_) if direction == Direction::Inbound => {
                    return Err(wrong(
                        "standsFor must be the workload's address and port, such as 127.0.0.1:8080",
                    ));
                }
                Err(_) => {
                    let (host, port) = listener
                        .stands_for
                        .rsplit_once(':')
                        .ok_or_else(|| wrong("standsFor must be address:port or host:port"))?;
                    let port = port.parse().map_err(|_| wrong("the port of standsFor is no number"))?;
                    Target::Host(host.to_ascii_lowercase().into(), port)
                }
            };
            Ok(ListenerSpec { direction, address: listener.listen, target })
        });
        checked.collect()
    }

    pub(super) fn dns_servers(&self) -> Servers {
        match self.dns_servers.as_slice() {
            [] => Servers::System,
            these => Servers::These(these.to_vec()),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.undetected = self.undetected.unwrap_or(limits.undetected);
        limits.request_head = self.request_head_ms.map_or(limits.request_head, Duration::from_millis);
        limits.idle_caller = self.idle_caller_ms.map_or(limits.idle_caller, Duration::from_millis);
        limits
    }
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|error| FileError::Read { path: path.to_owned(), error })
}

impl Workload {
    pub(super) fn message(&self) -> wire::Workload {
        wire::Workload {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            workload_name: self.workload_name.clone(),
            identity: self.identity.as_ref().map(|id| wire::Identity {
                trust_domain: id.trust_domain.clone(),
                namespace: id.namespace.clone(),
                service_account: id.service_account.clone(),
            }),
            addresses: self.addresses.clone(),
            canonical_name: self.canonical_name.clone(),
            canonical_revision: self.canonical_revision.clone(),
            app: self.app.clone(),
            meshed: self.meshed,
            multiplexes: self.multiplexes,
        }
    }
}

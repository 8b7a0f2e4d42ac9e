//! Who talked to whom: the label values that metrics, flows and log lines share.

use std::net::IpAddr;
use std::sync::Arc;

use maille_core::Identity;

/// Which end of a connection reports it (`reporter`, reference cli-and-telemetry 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The client's proxy.
    Source,
    /// The server's proxy.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Opaque bytes.
    Tcp,
    /// HTTP of any version, gRPC included.
    Http,
}

/// `connection_security_policy`; only the server's side knows it, a client's proxy reports
/// [`Security::Unknown`] (reference cli-and-telemetry 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Security {
    /// Both ends proved an identity.
    MutualTls,
    /// Plaintext, or TLS without a verified client.
    None,
    /// The reporter does not say.
    Unknown,
}

impl Security {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// `response_flags`: Envoy's short flags, and ztunnel's where Envoy has none
/// (reference cli-and-telemetry 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum ResponseFlags {
    /// Nothing to remark; also authorization refusals, as Istio has it.
    #[default]
    None,
    /// No filter chain: plaintext under STRICT.
    NoRoute,
    /// The TLS handshake failed, or the peer's certificate does not verify.
    TlsFailure,
    /// Nothing in the registry, and policy forbids to pass it through.
    NoCluster,
    /// The upstream could not be connected to.
    UpstreamConnectFailure,
    /// The upstream could not be connected to, and no retry is left.
    UpstreamConnectFailureAfterRetries,
    /// There is no endpoint to choose from.
    NoHealthyUpstream,
    /// A bound on connections or requests was reached (Envoy's circuit breakers).
    UpstreamOverflow,
    /// The upstream closed before it answered.
    UpstreamClosed,
    /// The upstream broke its protocol.
    UpstreamProtocolError,
    /// The upstream reset the stream.
    UpstreamReset,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The caller went away.
    DownstreamDisconnect,
    /// The caller broke its protocol.
    DownstreamProtocolError,
    /// The caller reset the stream.
    DownstreamReset,
    /// An external authorizer refused, or could not be asked.
    ExternalAuthorization,
    /// The proxy is out of some resource.
    Overload,
    /// The proxy cut the connection: it drains, or policy changed.
    LocalReset,
}

impl ResponseFlags {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::TlsFailure => "TLS_FAILURE",
            Self::NoCluster => "NC",
            Self::UpstreamConnectFailure => "UF",
            Self::UpstreamConnectFailureAfterRetries => "UF,URX",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamOverflow => "UO",
            Self::UpstreamClosed => "UC",
            Self::UpstreamProtocolError => "UPE",
            Self::UpstreamReset => "UR",
            Self::UpstreamTimeout => "UT",
            Self::DownstreamDisconnect => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::DownstreamReset => "DR",
            Self::ExternalAuthorization => "UAEX",
            Self::Overload => "OM",
            Self::LocalReset => "LR",
        }
    }
}

/// What metrics say of a workload. Empty means unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkloadLabels {
    /// The owner people know it by (Deployment).
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Verified identity without `spiffe://`; only ever from a handshake or the own certificate.
    pub principal: String,
    /// The value of the `app` label.
    pub app: String,
    /// Istio's canonical service.
    pub canonical_name: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Peer {
    /// What metrics say of it.
    pub workload: Arc<WorkloadLabels>,
    /// `<namespace>/<pod>`, for flows; empty if unknown.
    pub uid: Arc<str>,
    /// Its address, for flows and log lines.
    pub address: Option<IpAddr>,
}

impl Peer {
    /// A peer of whom only the verified identity is known.
    pub fn of_identity(identity: &Identity, address: Option<IpAddr>) -> Self {
        Self {
            workload: Arc::new(WorkloadLabels {
                namespace: identity.namespace().to_owned(),
                principal: identity.to_string(),
                ..WorkloadLabels::default()
            }),
            uid: Arc::from(""),
            address,
        }
    }

    /// A peer of whom only the address is known.
    pub fn of_address(address: IpAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }
}

/// The service that was called. Empty means unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ServiceLabels {
    /// Host name, e.g. `cart.production.svc.cluster.local`.
    pub host: String,
    /// Short name, or `PassthroughCluster`, `BlackHoleCluster`, `InboundPassthroughCluster`.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// Everything about a connection that its metrics and flows are kept by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionLabels {
    /// Which end reports.
    pub reporter: Reporter,
    /// The caller.
    pub source: Peer,
    /// The called.
    pub destination: Peer,
    /// The service that was called.
    pub service: Arc<ServiceLabels>,
    /// Workload port at the destination.
    pub port: u16,
    /// What the connection carries.
    pub protocol: Protocol,
    /// Whether it was mutual TLS, as far as this reporter says it in metrics.
    pub security: Security,
    /// Whether it was mutual TLS, for flows: a client's proxy knows that too.
    pub mtls: bool,
    /// Of mutual TLS: the key exchange, as far as this reporter knows it; empty otherwise.
    pub key_exchange: &'static str,
}

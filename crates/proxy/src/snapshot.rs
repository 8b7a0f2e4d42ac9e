//! What the data path reads and the agent writes: checked facts, swapped whole.
//!
//! The agent turns messages into these types with [`crate::facts`] and stores them; a worker keeps its own handle and
//! never waits for the agent on a request. Nothing here does I/O.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use maille_core::{Identity, MtlsMode, PortProtocol, TrustDomain};
use maille_policy::PolicySet;
use maille_policy::authentication::Authentication;
use maille_policy::path::Normalization as PathNormalization;
use maille_proto::facts::ExtensionProvider;
use maille_telemetry::access_log::Coverage;
use maille_tls::Parameters;
use tokio::sync::watch;

use crate::balance::Terms;
use crate::connect::{Security, Upstream};
use crate::memory::Memory;

mod service;
mod traffic;

pub use service::{
    AnyAddress, Destination, DirectWorkload, Endpoint, EndpointPort, HeadlessPort, NamedEndpoint, Resolution,
    Service, ServicePort,
};
pub use traffic::{
    Algorithm, ConnectionPool, HashKey, HashTable, IdleLimit, Keepalive, OutlierDetection, Traffic,
};

pub use crate::order::{CredentialUse, Material, OrderFiles, OrderMode, Reading, RootsFrom, TlsOrder};

/// Everything that one moment's decisions are made of, except destinations and certificates.
#[derive(Clone)]
pub struct Snapshot {
    /// What holds for the whole mesh.
    pub settings: MeshSettings,
    /// What this proxy enforces and terminates.
    pub inbound: Arc<Inbound>,
    /// The compiled authorization policies of this workload.
    pub policy: Arc<PolicySet>,
    /// The compiled rules about tokens of this workload. The same `Arc` for as long as nothing about them changes.
    pub authentication: Arc<Authentication>,
    /// Set by [`SnapshotCell::replace`]; grows by one with every swap.
    pub generation: u64,
}

impl Snapshot {
    /// How the own workload is reached that was dialled at `destination`: there, or at loopback if that is how
    /// declared ports are delivered. Ports in no Service keep the address dialled, as Istio's catch-all cluster does.
    pub(crate) fn delivery(&self, destination: SocketAddr) -> Upstream {
        let declared = self.inbound.ports.get(&destination.port());
        let terms = declared.and_then(|port| port.terms.clone());
        Upstream { terms, ..Upstream::at(self.address_of_delivery(destination), Security::Deliver) }
    }

    fn address_of_delivery(&self, destination: SocketAddr) -> SocketAddr {
        if !self.settings.deliver_to_localhost || !self.inbound.ports.contains_key(&destination.port()) {
            return destination;
        }
        let loopback = match destination {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(loopback, destination.port())
    }
}

/// The current [`Snapshot`], and a way to hear of the next.
///
/// Every worker holds one receiver and judges its open connections again when the generation moves.
pub struct SnapshotCell {
    current: ArcSwap<Snapshot>,
    generation: watch::Sender<u64>,
}

impl SnapshotCell {
    /// A cell that holds `first`.
    pub fn new(mut first: Snapshot) -> Self {
        first.generation = 1;
        Self { current: ArcSwap::from_pointee(first), generation: watch::Sender::new(1) }
    }

    /// The snapshot in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts `next` in force and wakes every worker. Its `generation` is overwritten. Meant for one writer.
    pub fn replace(&self, mut next: Snapshot) {
        Inbound::continue_terms(&mut next.inbound, &self.current.load().inbound);
        self.generation.send_modify(|generation| {
            *generation += 1;
            next.generation = *generation;
            self.current.store(Arc::new(next));
        });
    }

    /// Hears of every swap; a receiver that sleeps through several sees the last.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// What a proxy does with a destination that the registry does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Passed through as it came, plaintext.
    AllowAny,
    /// Refused (reference mtls OT-1 to OT-4).
    RegistryOnly,
}

/// `MeshSettings`, checked.
#[derive(Debug, Clone)]
pub struct MeshSettings {
    /// The mesh's own trust domain.
    pub trust_domain: TrustDomain,
    /// Former names of it.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Where mesh-wide policies live.
    pub root_namespace: String,
    /// What happens to unknown destinations.
    pub outbound_policy: OutboundPolicy,
    /// How a path is canonicalised before it is judged and forwarded.
    pub path_normalization: PathNormalization,
    /// `None`: wait for the first bytes as long as the connection lives.
    pub protocol_detection_timeout: Option<Duration>,
    /// Suffix of service host names.
    pub cluster_domain: String,
    /// Whom CUSTOM rules may ask. The same `Arc` for as long as nothing about them changes.
    pub extension_providers: Arc<[ExtensionProvider]>,
    /// What the access log holds.
    pub access_log: Coverage,
    /// Refusals carry their reason in a response header.
    pub explain_in_response: bool,
    /// TCP connections outlive the certificate of a peer that cannot prove another one.
    pub keeps_expired_tcp: bool,
    /// Declared ports of the own workload are reached at loopback (`inboundTrafficPolicy: LOCALHOST`).
    pub deliver_to_localhost: bool,
    /// What mutual TLS of the mesh may negotiate (`meshMTLS`).
    pub tls: Parameters,
}

/// What is known of a workload; for telemetry and explanations only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// `<namespace>/<pod>`.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Name of the owner people know it by.
    pub workload_name: Arc<str>,
    /// Its identity, if it has one.
    pub identity: Option<Identity>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Istio's canonical service name.
    pub canonical_name: Arc<str>,
    /// Istio's canonical revision.
    pub canonical_revision: Arc<str>,
    /// The `app` label.
    pub app: Arc<str>,
    /// Whether a sidecar stands in front of it.
    pub meshed: bool,
    /// Whether that sidecar takes many streams over one connection (`maille/1`).
    pub multiplexes: bool,
}

/// A service as telemetry names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceName {
    /// Fully qualified host name.
    pub hostname: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// What a proxy enforces and terminates for its own workload (reference mtls 1.2 to 1.4).
#[derive(Debug, Clone)]
pub struct Inbound {
    /// The workload behind this proxy.
    pub workload: Arc<Workload>,
    /// Mode of every port without an entry in `port_modes`.
    pub mode: MtlsMode,
    /// Ports whose mode differs.
    pub port_modes: HashMap<u16, MtlsMode>,
    /// Ports that a Service declares.
    pub ports: HashMap<u16, InboundPort>,
}

/// One declared port of the own workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InboundPort {
    /// How its bytes are to be understood.
    pub protocol: PortProtocol,
    /// A Service that declares it.
    pub service: Arc<ServiceName>,
    /// Bounds on the connections to the application, and on requests.
    pub(crate) terms: Option<Arc<Terms>>,
}

impl Inbound {
    /// What is in use of a port's bounds stays in use when facts change.
    fn continue_terms(next: &mut Arc<Self>, current: &Arc<Self>) {
        if Arc::ptr_eq(next, current) || next.ports.values().all(|port| port.terms.is_none()) {
            return;
        }
        for (number, port) in &mut Arc::make_mut(next).ports {
            let earlier = current.ports.get(number).and_then(|port| port.terms.as_ref());
            if let (Some(terms), Some(earlier)) = (&mut port.terms, earlier) {
                *terms =
                    if terms.pool == earlier.pool { earlier.clone() } else { Arc::new(terms.after(earlier)) };
            }
        }
    }

    /// The mode in force on a workload port (PA-4, PA-14).
    pub fn mode_of(&self, port: u16) -> MtlsMode {
        self.port_modes.get(&port).copied().unwrap_or(self.mode)
    }

    /// The class of a workload port; undeclared ports are detected (PA-14).
    pub fn protocol_of(&self, port: u16) -> PortProtocol {
        self.ports.get(&port).map(|p| p.protocol).unwrap_or_default()
    }
}

/// One destination that somebody asked for, kept current by the agent while it is used.
///
/// Workers keep the cell, not the destination: a changed endpoint is seen at once without asking again. A cell that
/// the agent no longer keeps current is retired, and workers ask anew.
pub struct DestinationCell {
    current: ArcSwap<Destination>,
    is_retired: AtomicBool,
    last_used_s: AtomicU64,
}

impl DestinationCell {
    /// A cell that holds `first`.
    pub fn new(first: Arc<Destination>) -> Self {
        Self {
            current: ArcSwap::new(first),
            is_retired: AtomicBool::new(false),
            last_used_s: AtomicU64::new(0),
        }
    }

    /// What is known now.
    pub fn load(&self) -> Guard<Arc<Destination>> {
        self.current.load()
    }

    /// Replaces what is known.
    pub fn replace(&self, next: Arc<Destination>) {
        self.current.store(next);
    }

    /// Says that nobody keeps this cell current any more.
    pub fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    /// Whether to ask anew.
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// Notes a use, in seconds of a clock of the caller's choice that all workers share. Writes only when the
    /// second changes, so that workers do not fight over the cache line.
    pub fn touch(&self, now_s: u64) {
        if self.last_used_s.load(Ordering::Relaxed) != now_s {
            self.last_used_s.store(now_s, Ordering::Relaxed);
        }
    }

    /// The last use noted, 0 if none.
    pub fn last_used_s(&self) -> u64 {
        self.last_used_s.load(Ordering::Relaxed)
    }
}

/// Why a destination could not be looked up. It is refused then, never sent as plaintext.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The control plane cannot be asked.
    #[error("'{name}' cannot be looked up: {reason}; is the control plane reachable?")]
    Unreachable {
        /// What was asked for.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The control plane's answer could not be used.
    #[error("the control plane's answer for '{name}' was refused: {reason}")]
    Refused {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A future that a [`Resolver`] returns.
pub type Resolving<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<DestinationCell>, ResolveError>> + Send + 'a>>;

/// Answers what is behind a name, asking the control plane when first used.
pub trait Resolver: Send + Sync + 'static {
    /// What is known already, without asking. `name` is an IP address or a host name in lower case without port.
    fn lookup(&self, name: &str) -> Option<Arc<DestinationCell>>;

    /// What is behind `name`; asks the control plane if need be, with a bound on the wait.
    fn resolve<'a>(&'a self, name: &'a str) -> Resolving<'a>;

    /// What is asked for to know what a port means of addresses that say nothing of themselves.
    fn name_of_port(&self, port: u16) -> String {
        format!("*:{port}")
    }

    /// Asks for `name` without waiting, for whoever looks it up later. What only telemetry wants is asked for in this
    /// way: it may be left out when there is much else to hold.
    fn prefetch(&self, name: &str) {
        let _ = name;
    }
}

/// What all workers of a proxy share.
#[derive(Clone)]
pub struct Shared {
    /// Own facts and policy.
    pub snapshot: Arc<SnapshotCell>,
    /// Destinations, on demand.
    pub destinations: Arc<dyn Resolver>,
    /// Own certificate and trust.
    pub tls: Arc<maille_tls::TlsContext>,
    /// What was seen.
    pub telemetry: Arc<maille_telemetry::Registry>,
}

/// Which way a listener's connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the mesh to the own workload.
    Inbound,
    /// From the own workload to the mesh.
    Outbound,
}

/// Where a listener's connections were meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The kernel knows: connections are redirected here (reference mtls 7.2).
    Redirected,
    /// Always this address, in place of interception.
    Address(SocketAddr),
    /// Always this host and service port, in place of interception (outbound only).
    Host(Arc<str>, u16),
}

/// One address the data path listens on, in every worker.
#[derive(Debug, Clone)]
pub struct ListenerSpec {
    /// Which way.
    pub direction: Direction,
    /// Where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// Where connections were meant to go.
    pub target: Target,
}

impl ListenerSpec {
    /// Whether those who connect are on this machine: what is redirected on its way out, and who reaches the loopback.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        let is_captured = (self.direction, &self.target) == (Direction::Outbound, &Target::Redirected);
        is_captured || self.address.ip().to_canonical().is_loopback()
    }
}

/// Bounds on what peers can make a worker hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections per worker; beyond it no more are accepted.
    pub connections: usize,
    /// Connections per worker whose protocol is not known yet; beyond it the oldest is shed.
    pub undetected: usize,
    /// From the first TLS byte to the end of the handshake.
    pub handshake: Duration,
    /// To connect to an upstream (reference mtls 10: 10 s).
    pub connect: Duration,
    /// From the first byte of a request's head to its end, on a caller's HTTP/1.1 connection.
    pub request_head: Duration,
    /// How long a caller's HTTP connection may stay without a request.
    pub idle_caller: Duration,
    /// Size of a request or response head.
    pub head_bytes: usize,
    /// HTTP/2 streams per connection at a time.
    pub streams: u32,
    /// Unused upstream connections kept per destination and worker.
    pub idle_upstreams: usize,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            undetected: 2_000,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            request_head: Duration::from_secs(60),
            // Envoy: idle_timeout 1 h. Longer than `idle`, so that of two proxies the caller's lets go first.
            idle_caller: Duration::from_secs(3600),
            // Envoy: max_request_headers_kb 60.
            head_bytes: 60 * 1024,
            streams: 250,
            idle_upstreams: 256,
            idle: Duration::from_secs(60),
        }
    }
}

/// How the data path is set up; fixed for the life of the process.
#[derive(Debug, Clone)]
pub struct DataPathConfig {
    /// Threads, each with its own listeners and pools; 0 counts as 1.
    pub workers: usize,
    /// Where to listen.
    pub listeners: Vec<ListenerSpec>,
    /// Source address of deliveries to the own workload, so that they are not captured again (IC-8).
    pub deliver_from: Option<IpAddr>,
    /// Bounds.
    pub limits: Limits,
    /// What workers give back, and how.
    pub memory: Memory,
}

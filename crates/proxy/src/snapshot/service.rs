//! What is behind a name: services, their endpoints, workloads.

use std::net::IpAddr;
use std::sync::Arc;

use maille_core::{EndpointTls, PortProtocol};

use super::{OrderMode, ServiceName, TlsOrder, Traffic, Workload};
use crate::balance::{Balance, Terms};

/// The answer to "what is behind this address or host name?".
#[derive(Debug, Clone)]
pub enum Destination {
    /// A service with its endpoints.
    Service(Service),
    /// A workload's own address.
    Workload(DirectWorkload),
    /// Nothing in the registry has this name; the control plane said so.
    Unknown,
    /// What a port means of any address.
    AnyAddress(AnyAddress),
}

impl Destination {
    /// The service in it, if there is one.
    pub fn service(&self) -> Option<&Service> {
        match self {
            Self::Service(service) => Some(service),
            Self::AnyAddress(any) => any.service.as_ref(),
            Self::Workload(_) | Self::Unknown => None,
        }
    }

    /// The same, to change it.
    pub(crate) fn service_mut(&mut self) -> Option<&mut Service> {
        match self {
            Self::Service(service) => Some(service),
            Self::AnyAddress(any) => any.service.as_mut(),
            Self::Workload(_) | Self::Unknown => None,
        }
    }
}

/// What connections to a port mean whose address says nothing of itself (reference mtls 4.3).
#[derive(Debug, Clone, Default)]
pub struct AnyAddress {
    /// Requests are understood, and go where their `Host` says (SE-9).
    pub http: bool,
    /// The server name of TLS is looked at (SE-10).
    pub tls: bool,
    /// The service that all other bytes are for (SE-11).
    pub service: Option<Service>,
}

/// A service, as a client sees it.
#[derive(Debug, Clone)]
pub struct Service {
    /// How telemetry names it.
    pub name: Arc<ServiceName>,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Ready endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Identities of which a server must prove one (SN-1), as SPIFFE URIs, sorted.
    pub subject_alt_names: Arc<[String]>,
    /// Whether clients dial endpoints directly.
    pub headless: bool,
    /// Outside the mesh (SE-1).
    pub external: bool,
    /// Where the addresses of its endpoints come from.
    pub resolution: Resolution,
    /// `<namespace>/<name>` of the ServiceEntry it comes from, if it does not come from a Kubernetes Service.
    pub service_entry: Option<Arc<str>>,
    /// Endpoints that are names; the agent looks them up and adds what it finds to `endpoints`.
    pub named_endpoints: Vec<NamedEndpoint>,
    /// Why a name has no address, if one has none.
    pub lookup_failure: Option<Arc<str>>,
}

impl Service {
    /// The declaration of a service port.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.number == number)
    }

    /// Whether a sidecar stands in front of one of its endpoints.
    pub fn has_sidecar(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.workload.meshed)
    }
}

/// Where the addresses of a service's endpoints come from (reference mtls 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// They are listed.
    #[default]
    Listed,
    /// Every answer of DNS is one (SE-6).
    Dns,
    /// The first answer of DNS (SE-7).
    DnsFirst,
    /// The address that the application dialled (SE-4).
    Dialled,
    /// Every answer of DNS for the name that was asked for (SE-8): the service is a wildcard, and each name under it has
    /// endpoints of its own.
    NameAsked,
}

/// An endpoint known by name.
#[derive(Debug, Clone)]
pub struct NamedEndpoint {
    /// Whose endpoint.
    pub workload: Arc<Workload>,
    /// To be looked up; in lower case.
    pub dns_name: Arc<str>,
    /// Its ports.
    pub ports: Vec<EndpointPort>,
    /// Of each address that the name gives; at least 1.
    pub weight: u32,
}

/// One port of a service.
#[derive(Debug, Clone)]
pub struct ServicePort {
    /// The service port.
    pub number: u16,
    /// How its bytes are to be understood.
    pub protocol: PortProtocol,
    /// The server name of mutual TLS, `outbound_.<port>_._.<host>` (reference mtls 8.1).
    pub sni: Arc<str>,
    /// The application speaks TLS itself (declared HTTPS or TLS): `protocol` is TCP then, and the server name of the
    /// ClientHello chooses the service (SE-10).
    pub is_tls: bool,
    /// What a DestinationRule says; without one, each endpoint says how it is reached (auto mTLS).
    pub order: Option<Arc<TlsOrder>>,
    /// With [`Resolution::Dialled`], the port that is dialled in place of the application's.
    pub target_port: Option<u16>,
    /// What a DestinationRule says of load, bounds and failing endpoints.
    pub traffic: Option<Arc<Traffic>>,
    /// What becomes of that and of the endpoints' weights, if there is anything to say.
    pub(crate) balance: Option<Arc<Balance>>,
}

impl ServicePort {
    /// Whether requests may be sent to it: plain ones are, even where the application was to speak TLS itself, if a
    /// DestinationRule has them encrypted (a departure from reference mtls DR-5, where nothing would match).
    pub fn takes_http(&self) -> bool {
        self.protocol != PortProtocol::Tcp || (self.is_tls && self.is_encrypted())
    }

    /// Whether a DestinationRule orders TLS of any kind, the mesh's own included.
    pub fn is_encrypted(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.mode != OrderMode::Disable)
    }

    /// Whether a DestinationRule puts its own TLS around what the application sends.
    pub fn originates_tls(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.originates())
    }
}

/// One ready endpoint of a service.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Whose endpoint.
    pub workload: Arc<Workload>,
    /// Its address.
    pub address: IpAddr,
    /// Its address of the other family, for when the first cannot be connected to.
    pub other_address: Option<IpAddr>,
    /// Its ports.
    pub ports: Vec<EndpointPort>,
    /// Its share in proportion to others; at least 1.
    pub weight: u32,
    /// The path of a Unix socket, in place of the address, which is 0.0.0.0 then.
    pub unix_path: Option<Arc<str>>,
}

/// How one service port is reached at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointPort {
    /// The service port.
    pub service_port: u16,
    /// The port at the endpoint.
    pub target_port: u16,
    /// Plaintext or mutual TLS.
    pub tls: EndpointTls,
}

/// A workload that is dialled by its own address.
#[derive(Debug, Clone)]
pub struct DirectWorkload {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Ports under which headless services reach it; any other is passed through.
    pub headless_ports: Vec<HeadlessPort>,
}

/// One port of a workload that a headless service declares.
#[derive(Debug, Clone)]
pub struct HeadlessPort {
    /// The workload's port.
    pub port: u16,
    /// How its bytes are to be understood.
    pub protocol: PortProtocol,
    /// Plaintext or mutual TLS (reference mtls 2.1 A3).
    pub tls: EndpointTls,
    /// The headless service.
    pub service: Arc<ServiceName>,
    /// Its port.
    pub service_port: u16,
    /// As [`ServicePort::sni`].
    pub sni: Arc<str>,
    /// As [`Service::subject_alt_names`].
    pub subject_alt_names: Arc<[String]>,
    /// As [`ServicePort::order`].
    pub order: Option<Arc<TlsOrder>>,
    /// As [`ServicePort::traffic`]; there is one endpoint only, so that bounds alone have an effect.
    pub traffic: Option<Arc<Traffic>>,
    /// The bounds, and what is in use of them.
    pub(crate) terms: Option<Arc<Terms>>,
}

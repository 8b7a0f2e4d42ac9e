//! Names that everything shares.
//!
//! SPIFFE identities, trust domains, hosts, ports, labels and selectors, and a clock. Everything
//! here is pure: no I/O, no async, no global state. A value that exists is valid: parsing
//! happens once, at the border, and the type keeps the proof.

#![forbid(unsafe_code)]

mod clock;
mod host;
mod identity;
mod labels;
mod mode;
mod owner;
pub mod ports;
mod resource;

pub use clock::{Clock, SystemClock};
pub use host::{Hostname, HostnameError};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use labels::{Labels, Selector};
pub use mode::{EndpointTls, MtlsMode, PortProtocol};
pub use owner::workload_of;
pub use resource::{NamespacedName, ROOT_NAMESPACE, is_dns_label, is_dns_subdomain};

/// The cluster's DNS domain: services are `<name>.<namespace>.svc.cluster.local`.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The trust domain unless `meshConfig.trustDomain` says otherwise.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

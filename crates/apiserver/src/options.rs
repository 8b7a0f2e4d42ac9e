use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use maille_core::TrustDomain;

use crate::pods::PodStreams;
use crate::store::StoreError;

/// How to serve.
#[derive(Debug)]
pub struct Options {
    /// Where the store is (`store.redb`); made if missing, private to its owner.
    pub data_dir: PathBuf,
    /// Bound sockets to accept on. At least one; the first one's address stands in the kubeconfig.
    pub listeners: Vec<std::net::TcpListener>,
    /// Addresses of Services. The first is this API's own (`kubernetes.default.svc`).
    pub service_cidr: Ipv4Net,
    /// Addresses of Services in IPv6; without it no Service has one.
    pub service_cidr_v6: Option<Ipv6Net>,
    /// Where Pods reach this API: the endpoint behind that Service.
    pub advertise: SocketAddr,
    /// Further addresses that the serving certificate names.
    pub certificate_addresses: Vec<IpAddr>,
    /// Path of the `maille` binary in containers, for sidecars.
    pub binary: PathBuf,
    /// What injected containers show as their image.
    pub image: String,
    /// Trust domain of the mesh, for sidecars.
    pub trust_domain: TrustDomain,
    /// Name of the one node.
    pub node_name: String,
    /// `<pod uid>/<container>.log` is below it.
    pub pod_log_dir: PathBuf,
    /// Where to write the administrator's kubeconfig (mode 0600) before [`Ready`] is told.
    pub kubeconfig: Option<PathBuf>,
    /// Who runs the Pods: behind `exec` and `portforward`, which are refused without.
    pub pods: Option<Arc<dyn PodStreams>>,
}

impl Options {
    /// Options for a mesh with its data in `data_dir`, with the addresses of `maille up`.
    pub fn new(data_dir: impl Into<PathBuf>, listeners: Vec<std::net::TcpListener>) -> Self {
        let data_dir = data_dir.into();
        let advertise = listeners
            .first()
            .and_then(|l| l.local_addr().ok())
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 6443)));
        let service_cidr = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
        Self {
            pod_log_dir: data_dir.join("pods"),
            kubeconfig: Some(data_dir.join("kubeconfig")),
            data_dir,
            listeners,
            service_cidr,
            service_cidr_v6: None,
            advertise,
            certificate_addresses: Vec::new(),
            binary: PathBuf::from("/usr/local/bin/maille"),
            image: format!("maille:{}", env!("CARGO_PKG_VERSION")),
            trust_domain: default_trust_domain(),
            node_name: "maille".to_owned(),
            pods: None,
        }
    }
}

fn default_trust_domain() -> TrustDomain {
    // A constant that a test of `maille-core` holds to be valid.
    match TrustDomain::parse(maille_core::DEFAULT_TRUST_DOMAIN) {
        Ok(domain) => domain,
        Err(_) => unreachable!("the default trust domain is valid"),
    }
}

/// Told once, when the API answers.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it listens, in the order of [`Options::listeners`].
    pub addresses: Vec<SocketAddr>,
    /// The authority that clients must trust, as PEM.
    pub root_pem: String,
}

/// Why the API could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Keys and certificates.
    #[error("cannot prepare the API's certificates: {0}")]
    Pki(#[from] maille_pki::Error),
    /// TLS.
    #[error("cannot prepare TLS for the API: {0}")]
    Tls(#[from] maille_tls::SetupError),
    /// The first objects could not be made.
    #[error("cannot make the API's own objects: {0}")]
    Bootstrap(String),
    /// Files and sockets.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Anything else that must be put right first.
    #[error("{0}")]
    Setup(String),
}

impl ServeError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

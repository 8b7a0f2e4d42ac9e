//! The server's heart: what every handler shares.

use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::auth::tokens::Tokens;
use crate::injection::Injection;
use crate::pods::PodStreams;
use crate::store::Store;
use crate::streams::Sessions;

/// Fixed facts of one server.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) service_cidr_v6: Option<Ipv6Net>,
    pub(crate) node_name: String,
    pub(crate) pod_log_dir: std::path::PathBuf,
}

/// Everything a request can reach.
pub(crate) struct Api {
    pub(crate) store: Arc<Store>,
    pub(crate) settings: Settings,
    pub(crate) injection: Injection,
    pub(crate) tokens: Tokens,
    /// The authority that Pods and kubeconfigs trust for this API.
    pub(crate) root_pem: String,
    /// Who runs the Pods.
    pub(crate) pods: Option<Arc<dyn PodStreams>>,
    /// Streams into Pods that are open.
    pub(crate) sessions: Sessions,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// `kubernetes-admin`, `system:serviceaccount:ns:name`.
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    /// `authentication.kubernetes.io/pod-name` and its kin.
    pub(crate) extra: Vec<(String, String)>,
}

impl Caller {
    /// Whether the caller is in a group.
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

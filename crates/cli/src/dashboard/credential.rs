//! What the dashboard's process is told over its control socket: how to reach the API, as whom, and the page's key.

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::Api;

/// One line of JSON on the control socket; each replaces the one before.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credential {
    /// `https://127.0.0.1:PORT`.
    pub(crate) server: String,
    /// The API's authority, in base64 of PEM as kubeconfigs hold it.
    pub(crate) authority: String,
    /// A token of `istio-system/maille-dashboard`, which may read the flows and list what runs, and nothing else.
    pub(crate) token: String,
    /// The page's key.
    pub(crate) key: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Credential {
    /// A connection to the API with it.
    pub(crate) async fn connect(&self) -> Result<Api> {
        let kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "clusters": [{"name": "mesh", "cluster": {
                "server": self.server, "certificate-authority-data": self.authority
            }}],
            "users": [{"name": "dashboard", "user": {"token": self.token}}],
            "contexts": [{"name": "mesh", "context": {"cluster": "mesh", "user": "dashboard"}}],
            "current-context": "mesh"
        }))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .context("the dashboard's credential is not usable")?;
        Ok(Api::of(kube::Client::try_from(config)?))
    }
}

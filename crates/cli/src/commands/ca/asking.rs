//! What the commands about the authority ask: the control plane's monitoring port, and objects of the API.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{Api, ApiError};
use crate::commands::admin::{self, MeshArgs, PodRef};

/// A mesh that is asked.
pub(crate) struct Asked {
    pub(crate) api: Api,
    /// Namespace of the control plane.
    pub(crate) namespace: String,
}

impl Asked {
    /// Connects as the arguments say.
    pub(crate) async fn connect(mesh: &MeshArgs) -> Result<Self> {
        let api = Api::connect(&mesh.api).await?;
        let namespace = mesh.istio_namespace.clone();
        ensure!(maille_core::is_dns_label(&namespace), "'{namespace}' is not the name of a namespace");
        Ok(Self { api, namespace })
    }

    /// The Pods of the control plane, the best first; there is one at least.
    pub(crate) async fn control_planes(&self) -> Result<Vec<PodRef>> {
        let pods = admin::select_pods(&self.api, "app=istiod", Some(&self.namespace)).await?;
        ensure!(
            !pods.is_empty(),
            "there is no control plane in namespace {} (no Pod with label app=istiod)",
            self.namespace
        );
        Ok(pods)
    }

    /// GET of the monitoring port of one Pod of the control plane.
    pub(crate) async fn monitoring<T: DeserializeOwned>(&self, pod: &PodRef, path: &str) -> Result<T> {
        let port = maille_core::ports::CONTROL_MONITORING;
        let answer = admin::ask(&self.api, pod, port, Method::GET, path).await?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("Pod {pod} answered {path} in a form that this version does not know"))
    }

    /// The same of the first Pod that answers.
    pub(crate) async fn first<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut failed = None;
        for pod in self.control_planes().await? {
            match self.monitoring(&pod, path).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.context("there is no control plane")?)
    }

    /// The path of the objects of a kind in the control plane's namespace.
    pub(crate) fn collection(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// The path of an object of the control plane's namespace.
    pub(crate) fn path(&self, plural: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(plural))
    }

    /// An object of the control plane's namespace; `None` if there is none.
    pub(crate) async fn object(&self, plural: &str, name: &str) -> Result<Option<Value>, ApiError> {
        match self.api.get(&self.path(plural, name)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One entry of a Secret.
pub(crate) fn secret_entry(secret: &Value, key: &str) -> Option<Vec<u8>> {
    STANDARD.decode(secret["data"][key].as_str()?).ok()
}

/// The time of this machine, by which everything is judged that is not the mesh's own.
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

//! The sidecar injector, called in process where a cluster would call a webhook.

use maille_config::k8s::api::core::v1::Pod;
use maille_config::mesh::{self, CONFIG_KEY};
use maille_config::proxy_config::ProxyConfig;
use maille_core::Labels;
use maille_inject::{Decision, InjectSettings};
use serde_json::Value;

use crate::json;

/// Decides about sidecars and adds them.
#[derive(Debug, Clone)]
pub(crate) struct Injection {
    settings: InjectSettings,
}

impl Injection {
    pub(crate) fn new(settings: InjectSettings) -> Self {
        Self { settings }
    }

    /// Refuses a Pod that claims what is the sidecar's own.
    pub(crate) fn forbid_reserved(&self, pod: &Value) -> Result<(), String> {
        maille_inject::forbid_reserved(&decode(pod)?).map_err(|e| e.to_string())
    }

    /// The Pod with a sidecar, or as it was when it gets none. `mesh` is the ConfigMap of the mesh configuration.
    pub(crate) fn inject(
        &self,
        mesh: &Value,
        namespace_labels: &Value,
        namespace: &str,
        pod: Value,
    ) -> Result<Value, String> {
        let labels: Labels = namespace_labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        let typed = decode(&pod)?;
        match maille_inject::decide(&labels, &typed) {
            Decision::Skip(_) => Ok(pod),
            Decision::Inject { .. } => {
                let settings = InjectSettings { proxy_config: default_config(mesh), ..self.settings.clone() };
                let injected =
                    maille_inject::inject(typed, namespace, &settings).map_err(|e| e.to_string())?;
                let mut value = serde_json::to_value(&injected).map_err(|e| e.to_string())?;
                let map = json::map_of(&mut value);
                map.insert("apiVersion".into(), "v1".into());
                map.insert("kind".into(), "Pod".into());
                Ok(value)
            }
        }
    }
}

/// What the mesh configuration says of proxies; nothing, where it cannot be read (it was checked when it was written).
fn default_config(mesh: &Value) -> ProxyConfig {
    let text = json::at(mesh, &["data", CONFIG_KEY]).and_then(Value::as_str).unwrap_or_default();
    mesh::check(text).map(|mesh| mesh.default_config).unwrap_or_default()
}

fn decode(pod: &Value) -> Result<Pod, String> {
    serde_json::from_value(pod.clone()).map_err(|e| format!("the pod cannot be read: {e}"))
}

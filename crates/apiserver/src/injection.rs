//! The sidecar injector, called in process where a cluster would call a webhook.

use maille_config::k8s::api::core::v1::Pod;
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

    /// The Pod with a sidecar, or as it was when it gets none.
    pub(crate) fn inject(
        &self,
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
                let injected =
                    maille_inject::inject(typed, namespace, &self.settings).map_err(|e| e.to_string())?;
                let mut value = serde_json::to_value(&injected).map_err(|e| e.to_string())?;
                let map = json::map_of(&mut value);
                map.insert("apiVersion".into(), "v1".into());
                map.insert("kind".into(), "Pod".into());
                Ok(value)
            }
        }
    }
}

fn decode(pod: &Value) -> Result<Pod, String> {
    serde_json::from_value(pod.clone()).map_err(|e| format!("the pod cannot be read: {e}"))
}

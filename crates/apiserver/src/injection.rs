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
                let injected = maille_inject::inject(typed, namespace, &settings, &hook_key())
                    .map_err(|e| e.to_string())?;
                let mut value = serde_json::to_value(&injected).map_err(|e| e.to_string())?;
                let map = json::map_of(&mut value);
                map.insert("apiVersion".into(), "v1".into());
                map.insert("kind".into(), "Pod".into());
                Ok(value)
            }
        }
    }
}

/// A path that only those can ask for who may read the Pod, such as its kubelet.
fn hook_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What the mesh configuration says of proxies; nothing, where it cannot be read (it was checked when it was written).
fn default_config(mesh: &Value) -> ProxyConfig {
    let text = json::at(mesh, &["data", CONFIG_KEY]).and_then(Value::as_str).unwrap_or_default();
    mesh::check(text).map(|mesh| mesh.default_config).unwrap_or_default()
}

fn decode(pod: &Value) -> Result<Pod, String> {
    serde_json::from_value(pod.clone()).map_err(|e| format!("the pod cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use maille_core::TrustDomain;
    use serde_json::json;

    use super::*;

    #[test]
    fn hooks_of_each_pod_have_a_path_of_their_own_that_its_agent_knows() {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let injection = Injection::new(InjectSettings::new("i", "/maille", domain));
        let path_of_hook = || {
            let pod = json!({
                "metadata": {"name": "cart"},
                "spec": {"containers": [{
                    "name": "app", "image": "app",
                    "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": 8080}}},
                }]},
            });
            let labels = json!({"istio-injection": "enabled"});
            let pod = injection.inject(&Value::Null, &labels, "shop", pod).expect("injected");
            let containers = json::items(&pod, &["spec", "containers"]);
            let named = |name: &str| containers.iter().find(|c| c["name"] == name).expect(name);
            let path = named("app")["lifecycle"]["preStop"]["httpGet"]["path"].as_str().expect("a path");
            let env = named("istio-proxy")["env"].as_array().expect("an environment");
            let originals = env.iter().find(|e| e["name"] == "ISTIO_KUBE_APP_PROBERS").expect("originals");
            let originals: Value =
                serde_json::from_str(originals["value"].as_str().expect("text")).expect("JSON");
            assert_eq!(originals[path]["httpGet"]["path"], "/drain", "{path}: {originals}");
            path.to_owned()
        };
        let (one, other) = (path_of_hook(), path_of_hook());
        assert_ne!(one, other);
        let key = one.strip_prefix("/app-lifecycle/").and_then(|rest| rest.strip_suffix("/app/prestopz"));
        assert!(key.is_some_and(|key| key.len() == 32), "{one}");
    }
}

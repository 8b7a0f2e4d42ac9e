//! The last good bundles of other trust domains, in ConfigMap `istio-federated-bundles` of the control plane's namespace:
//! a control plane that starts while an endpoint is away goes on believing whom the one before believed.

use std::collections::BTreeMap;
use std::pin::Pin;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use maille_control::federation::{BundleStore, Stored};
use serde_json::json;

/// Name of the ConfigMap.
const NAME: &str = "istio-federated-bundles";
/// Its key: JSON, the bundles by name.
const KEY: &str = "bundles.json";

type Outcome<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

pub(crate) struct FederatedBundles(Api<ConfigMap>);

impl FederatedBundles {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self(Api::namespaced(client, namespace))
    }
}

impl BundleStore for FederatedBundles {
    fn load(&self) -> Outcome<'_, Stored> {
        Box::pin(async {
            let found = self.0.get_opt(NAME).await.map_err(|e| crate::brief(&e))?;
            let text = found.and_then(|found| found.data?.remove(KEY)).unwrap_or_default();
            if text.is_empty() {
                return Ok(Stored::new());
            }
            // Waiting would not mend it; what is in it is fetched anew.
            Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "ConfigMap {NAME} is not used: its {KEY} is not what was written to it");
                Stored::new()
            }))
        })
    }

    fn save(&self, bundles: Stored) -> Outcome<'_, ()> {
        Box::pin(async move {
            let text = serde_json::to_string(&bundles).map_err(|e| e.to_string())?;
            let new = ConfigMap {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                data: Some(BTreeMap::from([(KEY.to_owned(), text.clone())])),
                ..ConfigMap::default()
            };
            let written = match self.0.create(&PostParams::default(), &new).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let patch = json!({ "data": { KEY: text } });
                    self.0.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await
                }
                other => other,
            };
            written.map(drop).map_err(|e| crate::brief(&e))
        })
    }
}

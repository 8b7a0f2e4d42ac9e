//! What is revoked, in ConfigMap `istio-ca-revocations-in-force` of the root namespace: a control plane that starts while
//! the list that people write cannot be read goes on revoking whom the one before revoked.
//!
//! Control planes alone write it. It holds no secret, and whoever may write ConfigMaps here may change the list itself, so
//! that a Secret would guard nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use maille_control::revocation::Listed;

use crate::watch::Retry;

/// Name of the ConfigMap.
pub(crate) const NAME: &str = "istio-ca-revocations-in-force";
/// Its key: as [`Listed::to_stored`] writes it.
pub(crate) const KEY: &str = "in-force.json";

/// Several control planes write at once when the list changes; each attempt begins with what is there.
const ATTEMPTS: usize = 5;
/// An object of the API holds a mebibyte, its metadata included.
const MAX_TEXT: usize = (1 << 20) - (16 << 10);
/// A request takes no longer, lest an API server that does not answer stops what follows.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct InForce(Api<ConfigMap>);

impl InForce {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self(Api::namespaced(client, namespace))
    }

    /// What was stored; nothing if nothing ever was. Waits for as long as the object cannot be had, since then it is not
    /// known who is revoked; an error is one that waiting does not mend.
    pub(crate) async fn load(&self) -> Result<Listed, String> {
        let mut waits = Retry::default();
        loop {
            match self.0.get_opt(NAME).await {
                Ok(None) => return Ok(Listed::default()),
                Ok(Some(found)) => {
                    let text = found.data.and_then(|mut data| data.remove(KEY));
                    return Listed::from_stored(&text.ok_or(format!("it has no key {KEY}"))?);
                }
                Err(error) => {
                    let error = crate::brief(&error);
                    tracing::warn!(
                        error,
                        "ConfigMap {NAME} cannot be read, and so it is not known who is revoked; trying again"
                    );
                }
            }
            tokio::time::sleep(waits.next().unwrap_or_default()).await;
        }
    }

    /// Stores what is in force in place of what was.
    pub(crate) async fn save(&self, listed: &Listed) -> Result<(), String> {
        let text = listed.to_stored()?;
        if text.len() > MAX_TEXT {
            return Err(format!("it has {} bytes, and an object holds {MAX_TEXT}", text.len()));
        }
        let late = |_| "the API server does not answer".to_owned();
        tokio::time::timeout(PATIENCE, self.write(listed, &text)).await.map_err(late)?
    }

    async fn write(&self, listed: &Listed, text: &str) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            let found = self.0.get_opt(NAME).await.map_err(|e| crate::brief(&e))?;
            let data = Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())]));
            let written = match found {
                // Most meshes never revoke anybody.
                None if listed.is_empty() => return Ok(()),
                None => {
                    let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                    let new = ConfigMap { metadata, data, ..ConfigMap::default() };
                    self.0.create(&PostParams::default(), &new).await
                }
                Some(found) if found.data == data => return Ok(()),
                Some(mut found) => {
                    found.data = data;
                    found.metadata.managed_fields = None;
                    // With the version in it that was read, the API server takes it only in place of that one.
                    self.0.replace(NAME, &PostParams::default(), &found).await
                }
            };
            match written {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(crate::brief(&error)),
            }
        }
        Err(format!("others wrote it {ATTEMPTS} times meanwhile"))
    }
}

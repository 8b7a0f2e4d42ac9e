//! Where the authority and its rotation are kept: three Secrets of the root namespace (reference mtls 5.5).
//!
//! Every write says which version it replaces, so that of several control planes one acts and the others follow.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt, stream};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watcher;
use kube::{Api, Client};
use maille_control::authority::{
    Entries, FILES_ANNOTATION, Object, REQUEST_ANNOTATION, SECRET, SECRET_TYPE, Source, Store, StoreError,
    Stored,
};
use tokio::sync::Notify;

use crate::watch::{Retry, config};

/// The Secret with which an operator plugs in a CA; it comes first.
pub(crate) const PLUGGED_IN: &str = "cacerts";

/// The ConfigMap by which control planes tell each other what proxies have told them.
const SHARED: &str = "istio-ca-rotation-proxies";

/// The Secrets of one namespace.
pub(crate) struct Secrets {
    api: Api<Secret>,
    shared: Api<ConfigMap>,
    namespace: String,
    changed: Arc<Notify>,
}

impl Secrets {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            shared: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            changed: Arc::default(),
        }
    }

    /// Watches them, for ever. What they hold is read when it is needed: the watches only say when.
    pub(crate) fn watch(&self) -> impl Future<Output = ()> + Send + use<> {
        let one = |name: &str| {
            let of_name = config().fields(&format!("metadata.name={name}"));
            watcher(self.api.clone(), of_name).backoff(Retry::default()).boxed()
        };
        let names = [SECRET, Source::SelfSigned.secret(), Source::PluggedIn.secret()];
        let mut seen = stream::select_all(names.map(one));
        let changed = Arc::clone(&self.changed);
        async move {
            while let Some(event) = seen.next().await {
                match event {
                    Ok(_) => changed.notify_one(),
                    Err(error) => {
                        tracing::warn!(%error, "watch of the authority's Secrets failed; trying again");
                    }
                }
            }
        }
    }

    async fn get(&self, name: &str) -> Result<Option<Object>, StoreError> {
        let secret =
            self.api.get_opt(name).await.map_err(|error| self.failed("read", "Secret", name, &error))?;
        Ok(secret.map(|secret| {
            let annotations = secret.metadata.annotations.unwrap_or_default();
            let data = secret.data.unwrap_or_default().into_iter();
            Object {
                version: secret.metadata.resource_version.unwrap_or_default(),
                entries: data.map(|(name, value)| (name, value.0.into())).collect(),
                request: annotations.get(REQUEST_ANNOTATION).cloned(),
                files_problem: annotations.get(FILES_ANNOTATION).cloned(),
            }
        }))
    }

    /// Writes entries in place of those of this version; labels and annotations that others put there stay.
    async fn put(
        &self,
        name: &str,
        kind: &str,
        entries: &Entries,
        replaces: Option<&str>,
    ) -> Result<(), StoreError> {
        let failed = |error: kube::Error| self.failed("write", "Secret", name, &error);
        let data: BTreeMap<String, ByteString> =
            entries.iter().map(|(name, value)| (name.clone(), ByteString(value.to_vec()))).collect();
        let Some(version) = replaces else {
            let secret = Secret {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                type_: Some(kind.to_owned()),
                data: Some(data),
                ..Secret::default()
            };
            return self.api.create(&PostParams::default(), &secret).await.map(drop).map_err(failed);
        };
        let mut secret = self.api.get(name).await.map_err(failed)?;
        if secret.metadata.resource_version.as_deref() != Some(version) {
            return Err(StoreError::Conflict(format!("Secret {}/{name}", self.namespace)));
        }
        secret.data = Some(data);
        secret.metadata.managed_fields = None;
        if let Some(annotations) = &mut secret.metadata.annotations {
            annotations.remove(REQUEST_ANNOTATION);
        }
        // With the version in it, the API server takes it only in place of that one.
        self.api.replace(name, &PostParams::default(), &secret).await.map(drop).map_err(failed)
    }

    fn failed(&self, verb: &str, kind: &str, name: &str, error: &kube::Error) -> StoreError {
        let namespace = &self.namespace;
        match error {
            kube::Error::Api(status) if status.code == 409 => {
                StoreError::Conflict(format!("{kind} {namespace}/{name}"))
            }
            _ => StoreError::Failed(format!(
                "cannot {verb} {kind} {namespace}/{name}: {}",
                crate::brief(error)
            )),
        }
    }
}

impl Store for Secrets {
    fn read(&self) -> BoxFuture<'_, Result<Stored, StoreError>> {
        async {
            Ok(Stored {
                rotation: self.get(SECRET).await?,
                self_signed: self.get(Source::SelfSigned.secret()).await?,
                plugged_in: self.get(Source::PluggedIn.secret()).await?,
            })
        }
        .boxed()
    }

    fn write_rotation<'a>(
        &'a self,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.put(SECRET, SECRET_TYPE, entries, replaces).boxed()
    }

    fn write_home<'a>(
        &'a self,
        source: Source,
        entries: &'a Entries,
        replaces: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let kind = match source {
            Source::SelfSigned => "istio.io/ca-root",
            Source::PluggedIn => "Opaque",
        };
        self.put(source.secret(), kind, entries, replaces).boxed()
    }

    fn delete_home<'a>(&'a self, source: Source, replaces: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let name = source.secret();
            let version = Some(replaces.to_owned());
            let preconditions = Some(Preconditions { resource_version: version, uid: None });
            let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
            match self.api.delete(name, &parameters).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                Err(error) => Err(self.failed("delete", "Secret", name, &error)),
            }
        }
        .boxed()
    }

    fn shared(&self) -> BoxFuture<'_, Result<BTreeMap<String, String>, StoreError>> {
        async {
            let found = self.shared.get_opt(SHARED).await;
            let found = found.map_err(|error| self.failed("read", "ConfigMap", SHARED, &error))?;
            Ok(found.and_then(|map| map.data).unwrap_or_default())
        }
        .boxed()
    }

    fn share<'a>(&'a self, news: BTreeMap<String, Option<String>>) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let patch = serde_json::json!({ "data": &news });
            match self.shared.patch(SHARED, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(self.failed("write", "ConfigMap", SHARED, &error)),
            }
            let data = news.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
            let new = ConfigMap {
                metadata: ObjectMeta { name: Some(SHARED.to_owned()), ..ObjectMeta::default() },
                data: Some(data),
                ..ConfigMap::default()
            };
            let made = self.shared.create(&PostParams::default(), &new).await;
            made.map(drop).map_err(|error| self.failed("write", "ConfigMap", SHARED, &error))
        }
        .boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.changed.notified().boxed()
    }
}

//! The root bundle in every namespace (reference mtls 5.6): ConfigMap `istio-ca-root-cert`, restored when edited.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap as FullConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use crate::objects::{ConfigMap, Namespace};
use crate::watch::{Retry, config};

/// The ConfigMap's name.
pub(crate) const NAME: &str = "istio-ca-root-cert";
/// Its key.
pub(crate) const KEY: &str = "root-cert.pem";

/// Namespaces without one.
const WITHOUT: [&str; 2] = ["kube-public", "kube-node-lease"];

/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the bundle in every namespace, for as long as there is somebody who says what it is.
pub(crate) async fn distribute(client: Client, mut roots: watch::Receiver<String>) {
    let of_name = config().fields(&format!("metadata.name={NAME}"));
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), config()).backoff(Retry::default());
    let config_maps = watcher(Api::<ConfigMap>::all(client.clone()), of_name).backoff(Retry::default());
    let (mut namespaces, mut config_maps) = (std::pin::pin!(namespaces), std::pin::pin!(config_maps));
    let mut state = State { roots_pem: roots.borrow_and_update().clone(), ..State::default() };
    let mut retry = tokio::time::interval(RETRY);
    loop {
        let due = tokio::select! {
            Some(event) = namespaces.next() => match event {
                Ok(event) => state.namespace(event),
                Err(error) => { tracing::warn!(%error, "watch of namespaces failed; trying again"); continue }
            },
            Some(event) = config_maps.next() => match event {
                Ok(event) => state.config_map(event),
                Err(error) => { tracing::warn!(%error, "watch of root bundles failed; trying again"); continue }
            },
            changed = roots.changed() => match changed {
                Ok(()) => state.renew(roots.borrow_and_update().clone()),
                Err(_) => return,
            },
            _ = retry.tick(), if !state.owed.is_empty() => std::mem::take(&mut state.owed),
            else => return,
        };
        for namespace in due {
            if !state.lacks(&namespace) {
                continue;
            }
            match write(&client, &namespace, &state.roots_pem).await {
                Ok(()) => {
                    state.good.insert(namespace);
                }
                // A namespace that is going away takes nothing new.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    tracing::debug!(%namespace, reason = %status.message, "root bundle not written");
                    state.owed.insert(namespace);
                }
                Err(error) => {
                    let error = crate::brief(&error);
                    tracing::warn!(%namespace, error, "root bundle not written; trying again");
                    state.owed.insert(namespace);
                }
            }
        }
    }
}

async fn write(client: &Client, namespace: &str, roots_pem: &str) -> kube::Result<()> {
    let api = Api::<FullConfigMap>::namespaced(client.clone(), namespace);
    let data = BTreeMap::from([(KEY.to_owned(), roots_pem.to_owned())]);
    let new = FullConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([("istio.io/config".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..FullConfigMap::default()
    };
    match api.create(&PostParams::default(), &new).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({ "data": { KEY: roots_pem } });
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Who has the bundle and who has not.
#[derive(Debug, Default)]
struct State {
    roots_pem: String,
    namespaces: BTreeSet<String>,
    /// Namespaces whose bundle is right, as last seen or written.
    good: BTreeSet<String>,
    /// Namespaces whose last write failed.
    owed: BTreeSet<String>,
    /// Bundles seen right while a list goes on.
    listed: BTreeSet<String>,
    /// Both watches have told all there is; before, absence means nothing.
    namespaces_known: bool,
    config_maps_known: bool,
}

impl State {
    /// Takes in another bundle; gives the namespaces to look at.
    fn renew(&mut self, roots_pem: String) -> BTreeSet<String> {
        self.roots_pem = roots_pem;
        // None of what was seen or listed so far is right any more.
        self.good.clear();
        self.listed.clear();
        self.all()
    }

    fn lacks(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace) && !self.good.contains(namespace)
    }

    /// Takes in what happened to namespaces; gives those to look at.
    fn namespace(&mut self, event: watcher::Event<Namespace>) -> BTreeSet<String> {
        match event {
            watcher::Event::Init => {
                self.namespaces.clear();
                BTreeSet::new()
            }
            watcher::Event::InitDone => {
                self.namespaces_known = true;
                self.all()
            }
            watcher::Event::InitApply(namespace) => {
                self.note(&namespace);
                BTreeSet::new()
            }
            watcher::Event::Apply(namespace) => {
                let name = self.note(&namespace);
                if self.config_maps_known { name.into_iter().collect() } else { BTreeSet::new() }
            }
            watcher::Event::Delete(namespace) => {
                if let Some(name) = namespace.metadata.name {
                    self.namespaces.remove(&name);
                    self.good.remove(&name);
                    self.owed.remove(&name);
                }
                BTreeSet::new()
            }
        }
    }

    fn note(&mut self, namespace: &Namespace) -> Option<String> {
        let name = namespace.metadata.name.clone()?;
        if namespace.metadata.deletion_timestamp.is_some() {
            self.namespaces.remove(&name);
            self.owed.remove(&name);
            return None;
        }
        (!WITHOUT.contains(&name.as_str())).then(|| {
            self.namespaces.insert(name.clone());
            name
        })
    }

    /// Takes in what happened to bundles; gives the namespaces to look at.
    fn config_map(&mut self, event: watcher::Event<ConfigMap>) -> BTreeSet<String> {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                BTreeSet::new()
            }
            watcher::Event::InitApply(object) => {
                if let Some((namespace, true)) = self.judge(&object) {
                    self.listed.insert(namespace);
                }
                BTreeSet::new()
            }
            watcher::Event::InitDone => {
                self.good = std::mem::take(&mut self.listed);
                self.config_maps_known = true;
                self.all()
            }
            watcher::Event::Apply(object) => match self.judge(&object) {
                Some((namespace, true)) => {
                    self.good.insert(namespace);
                    BTreeSet::new()
                }
                Some((namespace, false)) => {
                    self.good.remove(&namespace);
                    BTreeSet::from([namespace])
                }
                None => BTreeSet::new(),
            },
            watcher::Event::Delete(object) => match self.judge(&object) {
                Some((namespace, _)) => {
                    self.good.remove(&namespace);
                    BTreeSet::from([namespace])
                }
                None => BTreeSet::new(),
            },
        }
    }

    /// The namespace of a bundle, and whether it is right; `None` for another ConfigMap.
    fn judge(&self, object: &ConfigMap) -> Option<(String, bool)> {
        let namespace = object.metadata.namespace.clone()?;
        (object.metadata.name.as_deref() == Some(NAME)).then(|| {
            let found = object.data.as_ref().and_then(|data| data.get(KEY));
            (namespace, found == Some(&self.roots_pem))
        })
    }

    fn all(&self) -> BTreeSet<String> {
        match self.namespaces_known && self.config_maps_known {
            true => self.namespaces.clone(),
            false => BTreeSet::new(),
        }
    }
}

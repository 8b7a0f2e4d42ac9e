//! The revocation lists of a plugged-in CA in every namespace (reference mtls 5.5): ConfigMap `istio-ca-crl`, which the
//! agents of Istio's proxies mount. Restored when edited, and gone when there are no lists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap as FullConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use maille_control::revocation::{CRL_CONFIG_MAP as NAME, CRL_KEY as KEY};
use serde_json::json;
use tokio::sync::watch;

use crate::objects::{ConfigMap, Namespace};
use crate::watch::{Retry, config};

/// Namespaces without one, as of the root bundle.
const WITHOUT: [&str; 2] = ["kube-public", "kube-node-lease"];
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the lists in every namespace, for ever.
pub(crate) async fn distribute(client: Client, mut lists: watch::Receiver<Option<String>>) {
    let of_name = config().fields(&format!("metadata.name={NAME}"));
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), config()).backoff(Retry::default());
    let config_maps = watcher(Api::<ConfigMap>::all(client.clone()), of_name).backoff(Retry::default());
    let (mut namespaces, mut config_maps) = (std::pin::pin!(namespaces), std::pin::pin!(config_maps));
    let mut state = State::default();
    let mut retry = tokio::time::interval(RETRY);
    let mut failed = false;
    loop {
        tokio::select! {
            Some(event) = namespaces.next() => match event {
                Ok(event) => state.namespace(event),
                Err(error) => tracing::warn!(%error, "watch of namespaces failed; trying again"),
            },
            Some(event) = config_maps.next() => match event {
                Ok(event) => state.config_map(event),
                Err(error) => tracing::warn!(%error, "watch of revocation lists failed; trying again"),
            },
            changed = lists.changed() => if changed.is_err() { return },
            _ = retry.tick(), if failed => {}
            else => return,
        }
        let wanted = lists.borrow().clone();
        failed = false;
        for namespace in state.differing(wanted.as_ref()) {
            match write(&client, &namespace, wanted.as_deref()).await {
                Ok(()) => state.written(namespace, wanted.clone()),
                // A namespace that is going away takes nothing new.
                Err(error) => {
                    failed = true;
                    let error = crate::brief(&error);
                    tracing::warn!(%namespace, error, "revocation lists not written; trying again");
                }
            }
        }
    }
}

async fn write(client: &Client, namespace: &str, lists: Option<&str>) -> kube::Result<()> {
    let api = Api::<FullConfigMap>::namespaced(client.clone(), namespace);
    let Some(lists) = lists else {
        return match api.delete(NAME, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        };
    };
    let new = FullConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([("istio.io/config".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), lists.to_owned())])),
        ..FullConfigMap::default()
    };
    match api.create(&PostParams::default(), &new).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({ "data": { KEY: lists } });
            api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Which namespaces there are, and what is in them.
#[derive(Debug, Default)]
struct State {
    namespaces: BTreeSet<String>,
    held: BTreeMap<String, String>,
    /// What was seen while a list goes on.
    listed: BTreeMap<String, String>,
    /// Both watches have told all there is; before, absence means nothing.
    namespaces_known: bool,
    config_maps_known: bool,
}

impl State {
    fn namespace(&mut self, event: watcher::Event<Namespace>) {
        match event {
            watcher::Event::Init => self.namespaces.clear(),
            watcher::Event::InitDone => self.namespaces_known = true,
            watcher::Event::InitApply(namespace) | watcher::Event::Apply(namespace) => {
                let Some(name) = namespace.metadata.name else { return };
                if namespace.metadata.deletion_timestamp.is_some() {
                    self.namespaces.remove(&name);
                } else if !WITHOUT.contains(&name.as_str()) {
                    self.namespaces.insert(name);
                }
            }
            watcher::Event::Delete(namespace) => {
                if let Some(name) = namespace.metadata.name {
                    self.namespaces.remove(&name);
                    self.held.remove(&name);
                }
            }
        }
    }

    fn config_map(&mut self, event: watcher::Event<ConfigMap>) {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(object) => self.listed.extend(read(object)),
            watcher::Event::InitDone => {
                self.held = std::mem::take(&mut self.listed);
                self.config_maps_known = true;
            }
            watcher::Event::Apply(object) => self.held.extend(read(object)),
            watcher::Event::Delete(object) => {
                if let Some((namespace, _)) = read(object) {
                    self.held.remove(&namespace);
                }
            }
        }
    }

    fn differing(&self, wanted: Option<&String>) -> Vec<String> {
        if !self.namespaces_known || !self.config_maps_known {
            return Vec::new();
        }
        self.namespaces.iter().filter(|namespace| self.held.get(*namespace) != wanted).cloned().collect()
    }

    fn written(&mut self, namespace: String, lists: Option<String>) {
        match lists {
            Some(lists) => drop(self.held.insert(namespace, lists)),
            None => drop(self.held.remove(&namespace)),
        }
    }
}

/// The namespace of an object and what it holds; `None` for one of another name.
fn read(object: ConfigMap) -> Option<(String, String)> {
    let namespace = object.metadata.namespace?;
    let held = object.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
    (object.metadata.name.as_deref() == Some(NAME)).then_some((namespace, held))
}

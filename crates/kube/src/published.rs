//! What is in every namespace: the root bundle, and the revocation lists of a plugged-in CA (reference mtls 5.5, 5.6). Each is
//! one key of a ConfigMap that proxies mount; it is restored when edited.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap as FullConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use maille_control::revocation::{CRL_CONFIG_MAP, CRL_KEY};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::objects::{ConfigMap, Namespace};
use crate::watch::{Retry, config};

/// A ConfigMap of every namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    pub(crate) name: &'static str,
    pub(crate) key: &'static str,
}

/// What proxies verify the control plane by.
pub(crate) const ROOTS: Published = Published { name: "istio-ca-root-cert", key: "root-cert.pem" };
/// The revocation lists, which the agents of Istio's proxies mount.
pub(crate) const LISTS: Published = Published { name: CRL_CONFIG_MAP, key: CRL_KEY };

/// What is to be in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That is not known yet: whatever is there stays.
    #[default]
    Unknown,
    /// There is to be no such ConfigMap.
    Nothing,
    /// This.
    Text(String),
}

/// Namespaces without any.
const WITHOUT: [&str; 2] = ["kube-public", "kube-node-lease"];
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps it in every namespace, for as long as there is somebody who says what it is; `done` hears whenever every namespace
/// has it that takes it.
pub(crate) async fn publish<T>(
    client: Client,
    what: Published,
    mut source: watch::Receiver<T>,
    wanted: impl Fn(&T) -> Wanted,
    done: impl Fn(),
) {
    let Published { name, .. } = what;
    let of_name = config().fields(&format!("metadata.name={name}"));
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), config()).backoff(Retry::default());
    let config_maps = watcher(Api::<ConfigMap>::all(client.clone()), of_name).backoff(Retry::default());
    let (mut namespaces, mut config_maps) = (std::pin::pin!(namespaces), std::pin::pin!(config_maps));
    let mut state = State::new(what);
    // Namespaces that the last write failed in, and whether they refused it.
    let mut failed = BTreeMap::new();
    let mut retry = tokio::time::interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut now = wanted(&source.borrow_and_update());
    loop {
        tokio::select! {
            Some(event) = namespaces.next() => match event {
                Ok(event) => state.namespace(event),
                Err(error) => tracing::warn!(%error, name, "watch of namespaces failed; trying again"),
            },
            Some(event) = config_maps.next() => match event {
                Ok(event) => state.config_map(event),
                Err(error) => tracing::warn!(%error, name, "watch of ConfigMaps failed; trying again"),
            },
            changed = source.changed() => {
                if changed.is_err() {
                    return;
                }
                now = wanted(&source.borrow_and_update());
                failed.clear();
            }
            _ = retry.tick(), if !failed.is_empty() => failed.clear(),
            else => return,
        }
        for namespace in state
            .differing(&now)
            .into_iter()
            .filter(|namespace| !failed.contains_key(namespace))
            .collect::<Vec<_>>()
        {
            match write(&client, what, &namespace, &now).await {
                Ok(()) => state.written(namespace, &now),
                // A namespace that is going away takes nothing new.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    tracing::debug!(%namespace, name, reason = %status.message, "ConfigMap not written");
                    failed.insert(namespace, true);
                }
                Err(error) => {
                    let error = crate::brief(&error);
                    tracing::warn!(%namespace, name, error, "ConfigMap not written; trying again");
                    failed.insert(namespace, false);
                }
            }
        }
        if state.is_complete() && now != Wanted::Unknown && failed.values().all(|is_refused| *is_refused) {
            done();
        }
    }
}

async fn write(client: &Client, what: Published, namespace: &str, wanted: &Wanted) -> kube::Result<()> {
    let Published { name, key } = what;
    let api = Api::<FullConfigMap>::namespaced(client.clone(), namespace);
    let text = match wanted {
        Wanted::Unknown => return Ok(()),
        Wanted::Text(text) => text,
        Wanted::Nothing => {
            return match api.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            };
        }
    };
    let new = FullConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([("istio.io/config".to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(key.to_owned(), text.clone())])),
        ..FullConfigMap::default()
    };
    match api.create(&PostParams::default(), &new).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({ "data": { key: text } });
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Which namespaces there are, and what is in them.
#[derive(Debug)]
struct State {
    what: Published,
    namespaces: BTreeSet<String>,
    /// Hashes of what the namespaces hold: lists may be large, and there are many namespaces.
    held: BTreeMap<String, u64>,
    /// What was seen while a list goes on.
    listed: BTreeMap<String, u64>,
    /// With keys that nobody knows, so that nobody can write another text of the same hash.
    hasher: RandomState,
    /// Both watches have told all there is; before, absence means nothing.
    namespaces_known: bool,
    config_maps_known: bool,
}

impl State {
    fn new(what: Published) -> Self {
        Self {
            what,
            namespaces: BTreeSet::new(),
            held: BTreeMap::new(),
            listed: BTreeMap::new(),
            hasher: RandomState::new(),
            namespaces_known: false,
            config_maps_known: false,
        }
    }

    fn is_complete(&self) -> bool {
        self.namespaces_known && self.config_maps_known
    }

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
            watcher::Event::InitApply(object) => self.listed.extend(self.read(object)),
            watcher::Event::InitDone => {
                self.held = std::mem::take(&mut self.listed);
                self.config_maps_known = true;
            }
            watcher::Event::Apply(object) => self.held.extend(self.read(object)),
            watcher::Event::Delete(object) => {
                if let Some((namespace, _)) = self.read(object) {
                    self.held.remove(&namespace);
                }
            }
        }
    }

    /// The namespace of an object and what it holds; `None` for one of another name.
    fn read(&self, object: ConfigMap) -> Option<(String, u64)> {
        let namespace = object.metadata.namespace?;
        let held = object.data.and_then(|mut data| data.remove(self.what.key)).unwrap_or_default();
        (object.metadata.name.as_deref() == Some(self.what.name))
            .then(|| (namespace, self.hasher.hash_one(&held)))
    }

    /// Namespaces that do not hold what they should.
    fn differing(&self, wanted: &Wanted) -> Vec<String> {
        if !self.is_complete() || *wanted == Wanted::Unknown {
            return Vec::new();
        }
        let wanted = self.hash(wanted);
        let differs = |namespace: &&String| self.held.get(*namespace).copied() != wanted;
        self.namespaces.iter().filter(differs).cloned().collect()
    }

    fn written(&mut self, namespace: String, wanted: &Wanted) {
        match self.hash(wanted) {
            Some(hash) => drop(self.held.insert(namespace, hash)),
            None => drop(self.held.remove(&namespace)),
        }
    }

    fn hash(&self, wanted: &Wanted) -> Option<u64> {
        match wanted {
            Wanted::Text(text) => Some(self.hasher.hash_one(text)),
            Wanted::Nothing | Wanted::Unknown => None,
        }
    }
}

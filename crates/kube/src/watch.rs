//! Watches that feed the world.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, utils};
use kube::{Api, Client, Resource};
use maille_control::ControlPlane;
use maille_control::world::{Change, Event};
use maille_core::NamespacedName;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::objects::{self, name_of};
use crate::published::Wanted;
use crate::status::{Book, Kind};
use crate::{mesh_config, policies, revocations};

/// Waits between attempts to watch: short, since the world ages meanwhile; the API server is one of a kind, and
/// this is one of its few clients that matter.
#[derive(Debug)]
pub(crate) struct Retry(Duration);

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl Default for Retry {
    fn default() -> Self {
        Self(FIRST_RETRY)
    }
}

impl Iterator for Retry {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_RETRY);
        Some(wait)
    }
}

impl utils::Backoff for Retry {
    fn reset(&mut self) {
        self.0 = FIRST_RETRY;
    }
}

/// How objects are watched: pages on the first list, bookmarks, and a time limit after which a connection that
/// died silently is noticed.
pub(crate) fn config() -> watcher::Config {
    watcher::Config::default().timeout(120)
}

/// Watches everything the world is made of, for ever.
pub(crate) async fn feed_world(
    client: Client,
    events: mpsc::Sender<Event>,
    control: ControlPlane,
    book: Arc<Book>,
    crls: tokio::sync::watch::Sender<Wanted>,
) {
    let namespace = control.hub.snapshot().world.config().root_namespace.clone();
    tokio::join!(
        feed(client.clone(), &events, Event::Pod, |o: objects::Pod| objects::pod(&o)),
        feed(client.clone(), &events, Event::Service, |o: objects::Service| objects::service(&o)),
        feed(client.clone(), &events, Event::Slice, |o: objects::EndpointSlice| objects::slice(&o)),
        feed(client.clone(), &events, Event::PeerAuthentication, |o| {
            Some(policies::peer_authentication(o))
        }),
        feed(client.clone(), &events, Event::Authorization, |o: objects::AuthorizationPolicy| {
            book.note(Kind::Policy, &o.metadata, &o.status);
            Some(policies::authorization_policy(o))
        }),
        feed(client.clone(), &events, Event::RequestAuthentication, |o: objects::RequestAuthentication| {
            book.note(Kind::Authentication, &o.metadata, &o.status);
            Some(policies::request_authentication(o))
        }),
        mesh_config::feed(client.clone(), &events, &control),
        revocations::feed_list(client.clone(), &namespace, &events),
        revocations::feed_crls(client.clone(), &namespace, &events, crls, &control),
        feed(client.clone(), &events, Event::DestinationRule, |o| Some(policies::destination_rule(o))),
        feed(client.clone(), &events, Event::ServiceEntry, |o| Some(policies::service_entry(o))),
        feed(client.clone(), &events, Event::WorkloadEntry, |o| Some(policies::workload_entry(o))),
        feed(client, &events, Event::Sidecar, |o| Some(policies::sidecar(o))),
    );
}

/// Whether an API server says that it has no such kind. A cluster with the older part of Istio's kinds alone is served
/// all the same: what cannot be written is not there.
fn is_unknown_kind(error: &watcher::Error) -> bool {
    let cause = match error {
        watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => cause,
        _ => return false,
    };
    matches!(cause, kube::Error::Api(status) if status.code == 404)
}

async fn feed<K, T>(
    client: Client,
    events: &mpsc::Sender<Event>,
    event: fn(Change<T>) -> Event,
    read: impl Fn(K) -> Option<T>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&());
    let is_optional = matches!(&*kind, "WorkloadEntry" | "Sidecar");
    let mut stream = std::pin::pin!(watcher(Api::<K>::all(client), config()).backoff(Retry::default()));
    let mut listed: HashMap<NamespacedName, T> = HashMap::new();
    while let Some(seen) = stream.next().await {
        let change = match seen {
            Err(error) if is_optional && is_unknown_kind(&error) => {
                tracing::debug!(%kind, "the API server does not know this kind");
                Change::Replace(Vec::new())
            }
            Err(error) => {
                tracing::warn!(%kind, %error, "watch failed; the last world stays in force, trying again");
                continue;
            }
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                let name = name_of(object.meta());
                match read(object) {
                    Some(object) => listed.insert(name, object),
                    None => listed.remove(&name),
                };
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                Change::Replace(std::mem::take(&mut listed).into_values().collect())
            }
            Ok(watcher::Event::Apply(object)) => {
                let name = name_of(object.meta());
                read(object).map_or(Change::Delete(name), Change::Put)
            }
            Ok(watcher::Event::Delete(object)) => Change::Delete(name_of(object.meta())),
        };
        if events.send(event(change)).await.is_err() {
            return;
        }
    }
}

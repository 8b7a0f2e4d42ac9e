//! Revocations: the list that people write, and those that a plugged-in CA signs.
//!
//! What cannot be read takes nobody's revocation back; only a list that can be read does, and the deletion of the object.

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use maille_control::revocation::{CONFIG_MAP, CRL_KEY, KEY, Listing, Revocations, read_lists};
use maille_control::world::Event;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::objects::ConfigMap;
use crate::root::PLUGGED_IN;
use crate::watch::{Retry, config};

/// Follows the ConfigMap that people write, for ever.
pub(crate) async fn feed_list(client: Client, namespace: &str, events: &mpsc::Sender<Event>) {
    let mut objects = std::pin::pin!(one::<ConfigMap>(client, namespace, CONFIG_MAP));
    let mut before = None;
    // As the world has it, to say what is wrong.
    let mut known = Revocations::default();
    while let Some(object) = objects.next().await {
        let listing = match &object {
            None => Listing::Absent,
            Some(object) => match object.data.as_ref().and_then(|data| data.get(KEY)) {
                None => Listing::NoKey,
                Some(text) => Listing::Text(text.clone()),
            },
        };
        if before.as_ref() == Some(&listing) {
            continue;
        }
        if listing == Listing::Absent && before.is_some() {
            tracing::warn!(
                target: "maille::audit",
                "ConfigMap {namespace}/{CONFIG_MAP} was deleted: what it revoked is revoked no more"
            );
        }
        before = Some(listing.clone());
        known = known.listed(&listing);
        for problem in known.problems() {
            tracing::error!("ConfigMap {namespace}/{CONFIG_MAP}: {problem}; what was revoked stays so");
        }
        let (serials, identities) = (known.serials().len(), known.identities().len());
        tracing::info!(serials, identities, "revocations are in force");
        if events.send(Event::Revocations(listing)).await.is_err() {
            return;
        }
    }
}

/// Follows the lists of the plugged-in CA, for ever. `text` becomes what is in force, for distribution.
pub(crate) async fn feed_crls(
    client: Client,
    namespace: &str,
    events: &mpsc::Sender<Event>,
    text: watch::Sender<Option<String>>,
) {
    let mut objects = std::pin::pin!(one::<Secret>(client, namespace, PLUGGED_IN));
    let mut before = None;
    // The last good ones.
    let mut in_force = Vec::new();
    while let Some(object) = objects.next().await {
        let data = object.and_then(|object| object.data).unwrap_or_default();
        let get = |key: &str| data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        let crl = get(CRL_KEY).filter(|text| !text.trim().is_empty());
        let authorities: Vec<String> =
            ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "tls.crt", "ca.crt"]
                .into_iter()
                .filter_map(get)
                .collect();
        let read = (crl, authorities);
        if before.as_ref() == Some(&read) {
            continue;
        }
        let (crl, authorities) = &read;
        let problems = match crl.as_ref().map(|crl| read_lists(crl, authorities)) {
            None => {
                in_force.clear();
                text.send_replace(None);
                Vec::new()
            }
            Some(Ok(lists)) => {
                in_force = lists;
                text.send_replace(crl.clone());
                Vec::new()
            }
            Some(Err(problem)) => {
                vec![format!("key {CRL_KEY} of Secret {namespace}/{PLUGGED_IN} is not in force: {problem}")]
            }
        };
        before = Some(read);
        for problem in &problems {
            tracing::error!("{problem}; the last good lists stay in force");
        }
        if events.send(Event::RevocationLists(in_force.clone(), problems)).await.is_err() {
            return;
        }
    }
}

/// One object by its name, each time that it is told.
fn one<K>(client: Client, namespace: &str, name: &'static str) -> impl Stream<Item = Option<K>> + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    let api = Api::<K>::namespaced(client, namespace);
    let of_name = config().fields(&format!("metadata.name={name}"));
    let mut listed = None;
    watcher(api, of_name).backoff(Retry::default()).filter_map(move |seen| {
        let is_it = |object: &K| object.meta().name.as_deref() == Some(name);
        let news = match seen {
            Err(error) => {
                tracing::warn!(%error, object = name, "watch failed; what it said stays in force, trying again");
                None
            }
            Ok(watcher::Event::Init) => {
                listed = None;
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = is_it(&object).then_some(object).or(listed.take());
                None
            }
            Ok(watcher::Event::InitDone) => Some(listed.take()),
            Ok(watcher::Event::Apply(object)) => is_it(&object).then_some(Some(object)),
            Ok(watcher::Event::Delete(object)) => is_it(&object).then_some(None),
        };
        std::future::ready(news)
    })
}

//! Revocations: the list that people write, and those that a plugged-in CA signs.
//!
//! What cannot be read takes nobody's revocation back; only a list that can be read does, and the deletion of the object.
//! That holds over restarts, too: what is in force is stored, and the next control plane begins with it.

use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use maille_control::ControlPlane;
use maille_control::authority::Entries;
use maille_control::revocation::{
    CONFIG_MAP, CRL_KEY, KEY, Listed, Listing, lists_pem, read_lists, read_published, with_lists_of_others,
};
use maille_control::world::Event;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::in_force::{InForce, NAME as IN_FORCE};
use crate::objects::ConfigMap;
use crate::published::{LISTS, Wanted};
use crate::root::PLUGGED_IN;
use crate::watch::{Retry, config};

/// How often to look how the authority is: while that is not known, while a CA follows another one, and else.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK_SOON: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Waits after what is in force could not be stored.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Follows the ConfigMap that people write, for ever. Nothing is told before it is known what is revoked.
pub(crate) async fn feed_list(client: Client, namespace: &str, events: &mpsc::Sender<Event>) {
    let store = InForce::new(client.clone(), namespace);
    // As the world has it; an error is what a control plane before has stored, if that cannot be read.
    let mut known = store.load().await;
    let mut objects = std::pin::pin!(one::<ConfigMap>(client, namespace, CONFIG_MAP));
    let mut before = None;
    let mut saving = Saving::default();
    loop {
        let listing = tokio::select! {
            object = objects.next() => match object {
                Some(None) => Listing::Absent,
                Some(Some(object)) => match object.data.as_ref().and_then(|data| data.get(KEY)) {
                    None => Listing::NoKey,
                    Some(text) => Listing::Text(text.clone()),
                },
                None => return,
            },
            // Broken off by a change of the list, it begins anew with that: it reads before it writes.
            saved = saving.save(&store, &known), if saving.is_due => {
                if saving.take(saved)
                    && let Ok(known) = &known
                    && events.send(saving.event(known)).await.is_err()
                {
                    return;
                }
                continue;
            }
        };
        if before.as_ref() == Some(&listing) {
            continue;
        }
        let next = match &known {
            Ok(known) => known.next(&listing),
            Err(problem) => {
                let next = Listed::of(&listing);
                if !next.problems().is_empty() {
                    tracing::error!(
                        "it is not known who is revoked, so that nobody is served: neither ConfigMap \
                         {namespace}/{CONFIG_MAP} can be read in full ({}), nor what was in force before, ConfigMap \
                         {namespace}/{IN_FORCE} ({problem}); mend the first",
                        next.problems().join("; ")
                    );
                    continue;
                }
                next
            }
        };
        if listing == Listing::Absent && known.as_ref().is_ok_and(|known| !known.is_empty()) {
            tracing::warn!(
                target: "maille::audit",
                "ConfigMap {namespace}/{CONFIG_MAP} was deleted: what it revoked is revoked no more"
            );
        }
        for problem in next.problems() {
            tracing::error!("ConfigMap {namespace}/{CONFIG_MAP}: {problem}; what was revoked stays so");
        }
        let (serials, identities) = (next.serials().len(), next.identities().len());
        tracing::info!(serials, identities, "revocations are in force");
        saving.is_due = true;
        if events.send(saving.event(&next)).await.is_err() {
            return;
        }
        before = Some(listing);
        known = Ok(next);
    }
}

/// Whether what is in force has yet to be stored, and why it could not be.
#[derive(Default)]
struct Saving {
    is_due: bool,
    wait: Duration,
    problem: Option<String>,
}

impl Saving {
    /// After the wait of earlier failures.
    async fn save(&self, store: &InForce, known: &Result<Listed, String>) -> Result<(), String> {
        let Ok(known) = known else { return Ok(()) };
        tokio::time::sleep(self.wait).await;
        store.save(known).await
    }

    /// Notes the outcome; whether there is something new to tell of it.
    fn take(&mut self, saved: Result<(), String>) -> bool {
        self.is_due = saved.is_err();
        self.wait = if self.is_due { (self.wait * 2).clamp(FIRST_WAIT, LAST_WAIT) } else { Duration::ZERO };
        let problem = saved.err().map(|error| {
            format!("what is revoked is in force but not kept for a restart in ConfigMap {IN_FORCE}: {error}")
        });
        let is_news = problem != self.problem;
        if let Some(problem) = problem.as_ref().filter(|_| is_news) {
            tracing::error!("{problem}");
        }
        self.problem = problem;
        is_news
    }

    fn event(&self, known: &Listed) -> Event {
        let known = known.clone();
        Event::Revocations(match &self.problem {
            Some(problem) => known.with_problem(problem.clone()),
            None => known,
        })
    }
}

/// Follows the lists of the plugged-in CA, for ever. `text` becomes what is in force, for distribution.
///
/// A CA stays in force when its Secret is deleted, and is believed until a rotation has ended when the Secret is replaced;
/// so are its lists.
pub(crate) async fn feed_crls(
    client: Client,
    namespace: &str,
    events: &mpsc::Sender<Event>,
    text: watch::Sender<Wanted>,
    control: &ControlPlane,
) {
    let mut objects = std::pin::pin!(one::<Secret>(client.clone(), namespace, PLUGGED_IN));
    let mut secret = None;
    let mut before = None;
    // The last good ones.
    let mut in_force: Option<Vec<Vec<u8>>> = None;
    // When to look again how the authority is.
    let mut again = None;
    loop {
        let look_again = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            object = objects.next() => match object {
                Some(object) => secret = object,
                None => return,
            },
            () = look_again => {}
        }
        let standing = match (&secret, control.has_plugged_in()) {
            (Some(secret), _) if control.signs_alone(entries(secret)) => Standing::Alone,
            (Some(_), _) => Standing::AmongOthers,
            // The authority is read at the same time.
            (None, None) => {
                again = Some(FIRST_LOOK);
                continue;
            }
            (None, Some(true)) => Standing::Orphaned,
            (None, Some(false)) => Standing::Alone,
        };
        again = Some(if standing == Standing::AmongOthers { LOOK_SOON } else { LOOK_EVERY });
        let get = |key: &str| {
            let bytes = secret.as_ref()?.data.as_ref()?.get(key)?;
            Some(String::from_utf8_lossy(&bytes.0).into_owned())
        };
        let crl = get(CRL_KEY).filter(|text| !text.trim().is_empty());
        let authorities: Vec<String> =
            ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "tls.crt", "ca.crt"]
                .into_iter()
                .filter_map(get)
                .collect();
        let read = (crl, authorities, standing);
        if before.as_ref() == Some(&read) {
            continue;
        }
        let (crl, authorities, _) = &read;
        let mut problems = Vec::new();
        // Of the CA's own.
        let found = match crl {
            _ if standing == Standing::Orphaned => Err("it is gone, and its CA is in force".to_owned()),
            None => Ok(Vec::new()),
            Some(crl) => read_lists(crl, authorities),
        };
        let found = match (found, standing) {
            (Ok(own), Standing::AmongOthers) => {
                let earlier = match &in_force {
                    Some(lists) => Ok(lists.clone()),
                    None => published(&client, namespace, &text).await,
                };
                // What is published and cannot be read says nothing against what can be.
                let earlier = earlier.unwrap_or_else(|problem| {
                    problems.push(format!("ConfigMap {namespace}/{} cannot be used: {problem}", LISTS.name));
                    Vec::new()
                });
                with_lists_of_others(own, &earlier, authorities)
            }
            (found, _) => found,
        };
        let lists = match found {
            Ok(lists) => {
                text.send_replace(match crl {
                    // As it was written, if that is all.
                    Some(crl) if read_published(crl).as_ref() == Ok(&lists) => Wanted::Text(crl.clone()),
                    _ if lists.is_empty() => Wanted::Nothing,
                    _ => Wanted::Text(lists_pem(&lists)),
                });
                lists
            }
            Err(problem) => {
                let problem =
                    format!("key {CRL_KEY} of Secret {namespace}/{PLUGGED_IN} cannot be read: {problem}");
                let last_good = match &in_force {
                    Some(lists) => Ok(lists.clone()),
                    None => published(&client, namespace, &text).await,
                };
                match last_good {
                    Ok(lists) => {
                        // Without lists, a Secret that is gone is the authority's trouble alone.
                        if standing != Standing::Orphaned || !lists.is_empty() {
                            tracing::error!("{problem}; the last good lists stay in force");
                            problems.push(problem);
                        }
                        lists
                    }
                    Err(too) => {
                        tracing::error!(
                            "it is not known who is revoked, so that nobody is served: {problem}; and ConfigMap \
                             {namespace}/{}, with the last good lists, cannot be used: {too}; mend the first",
                            LISTS.name
                        );
                        continue;
                    }
                }
            }
        };
        before = Some(read);
        in_force = Some(lists.clone());
        if events.send(Event::RevocationLists(lists, problems)).await.is_err() {
            return;
        }
    }
}

/// Whether other CAs are believed beside the one whose Secret there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// None is.
    Alone,
    /// It comes after one, or before one, or is not in force, or that is not known yet.
    AmongOthers,
    /// One is in force, and the Secret is gone.
    Orphaned,
}

/// What the Secret holds, as the authority reads it.
fn entries(secret: &Secret) -> Entries {
    let data = secret.data.iter().flatten();
    data.map(|(name, value)| (name.clone(), value.0.clone().into())).collect()
}

/// The lists that a control plane before has published, to go on with; none if it has published none. Waits for as long as
/// that cannot be had.
async fn published(
    client: &Client,
    namespace: &str,
    text: &watch::Sender<Wanted>,
) -> Result<Vec<Vec<u8>>, String> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let mut waits = Retry::default();
    let found = loop {
        match api.get_opt(LISTS.name).await {
            Ok(found) => break found,
            Err(error) => {
                let (error, name) = (crate::brief(&error), LISTS.name);
                tracing::warn!(error, "ConfigMap {name} cannot be read; trying again");
            }
        }
        tokio::time::sleep(waits.next().unwrap_or_default()).await;
    };
    let Some(found) = found else { return Ok(Vec::new()) };
    let pem = found.data.and_then(|mut data| data.remove(LISTS.key));
    let pem = pem.ok_or_else(|| format!("it has no key {}", LISTS.key))?;
    let lists = read_published(&pem)?;
    text.send_replace(Wanted::Text(pem));
    Ok(lists)
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

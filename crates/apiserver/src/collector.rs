//! What follows from changes: dependents of what is gone, contents of namespaces that end.
//!
//! Source: garbage collector and namespace controller of kube-controller-manager.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::admission::namespaces;
use crate::api::Api;
use crate::bootstrap;
use crate::json;
use crate::request::Target;
use crate::resources::{self, Resource};
use crate::status::ApiResult;
use crate::store::{Change, ChangeKind, Event, Key, State};
use crate::verbs::delete::{self, DeleteOptions, FOREGROUND, ORPHAN};
use crate::verbs::write;

/// After a failure of the store, the work is tried again this much later.
const RETRY: Duration = Duration::from_secs(2);

/// How long events are kept, as in kube-apiserver (`--event-ttl`).
const EVENT_TTL: SignedDuration = SignedDuration::from_hours(1);
/// How often old events are looked for.
const EVENT_SWEEP: Duration = Duration::from_secs(60);
/// The oldest go first when there are more than this.
const MAX_EVENTS: usize = 10_000;

/// Runs for ever.
pub(crate) async fn run(api: Arc<Api>) {
    let mut revisions = api.store.subscribe();
    let mut position = 0;
    let mut due = true;
    let mut expiry = tokio::time::interval(EVENT_SWEEP);
    expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let latest = *revisions.borrow_and_update();
        // What is forgotten may have mattered.
        let events = api.store.read(|s| s.events_after(position, |_| true));
        due = due || events.map_or(true, |events| events.iter().any(|e| matters(e)));
        position = latest;
        if due {
            let working = api.clone();
            let done = tokio::task::spawn_blocking(move || sweep(&working)).await.unwrap_or(false);
            due = !done;
            if due {
                tokio::time::sleep(RETRY).await;
                continue;
            }
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() {
                return;
            },
            _ = expiry.tick() => {
                let working = api.clone();
                let expired = tokio::task::spawn_blocking(move || expire(&working, Timestamp::now())).await;
                if let Ok(Err(error)) = expired {
                    tracing::warn!(%error, "old events could not be removed");
                }
            }
        }
    }
}

/// Removes events that are old or too many.
fn expire(api: &Api, now: Timestamp) -> ApiResult<()> {
    api.store.commit(|state| {
        let mut dated: Vec<(Timestamp, Key)> = state
            .list("events", None)
            .map(|event| {
                let times = [&["lastTimestamp"][..], &["eventTime"], &["metadata", "creationTimestamp"]];
                let last = times.iter().filter_map(|path| json::text(event, path).parse().ok()).max();
                let key = Key::new("events", json::namespace(event), json::name(event));
                (last.unwrap_or(Timestamp::MIN), key)
            })
            .collect();
        dated.sort();
        let surplus = dated.len().saturating_sub(MAX_EVENTS);
        let changes = dated
            .into_iter()
            .enumerate()
            .filter(|(i, (at, _))| *i < surplus || now.duration_since(*at) > EVENT_TTL)
            .map(|(_, (_, key))| Change::Delete(key))
            .collect();
        Ok((changes, ()))
    })?;
    Ok(())
}

fn matters(event: &Event) -> bool {
    if &*event.key.store == "events" && !json::is_terminating(&event.object) {
        return false;
    }
    event.kind == ChangeKind::Deleted
        || json::is_terminating(&event.object)
        || event.kind == ChangeKind::Added && has_owners(&event.object)
        || event.key.name == namespaces::ROOT_CONFIG_MAP
}

fn has_owners(object: &Value) -> bool {
    !json::items(object, &["metadata", "ownerReferences"]).is_empty()
}

/// Work found by one look at the state.
#[derive(Debug, Default)]
struct Work {
    delete: Vec<(&'static Resource, Arc<Value>)>,
    /// Finalizers of the collector whose condition holds.
    release: Vec<(&'static Resource, Arc<Value>, &'static str)>,
    orphan: Vec<(&'static Resource, Arc<Value>)>,
    namespaces: Vec<Arc<Value>>,
    restore: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.delete.is_empty()
            && self.release.is_empty()
            && self.orphan.is_empty()
            && self.namespaces.is_empty()
            && !self.restore
    }
}

/// Does what there is to do until nothing is left; `false` when something failed.
fn sweep(api: &Api) -> bool {
    // Each round frees what the next one finds: Deployment, ReplicaSet, Pod.
    for _ in 0..64 {
        let work = api.store.read(|state| look(api, state));
        if work.is_empty() {
            return true;
        }
        if let Err(error) = perform(api, &work) {
            tracing::warn!(%error, "garbage collection will be tried again");
            return false;
        }
    }
    true
}

fn resource_of(store: &str) -> Option<&'static Resource> {
    resources::all().iter().find(|r| r.store == store && r.shape == resources::Shape::Stored)
}

fn look(api: &Api, state: &State) -> Work {
    let mut work = Work { restore: !bootstrap::roots(api, state).is_empty(), ..Work::default() };
    let mut objects = Vec::new();
    let mut uids = HashMap::new();
    let mut children: HashMap<String, Vec<(&'static Resource, Arc<Value>)>> = HashMap::new();
    let mut populated = HashSet::new();
    for (store, object) in state.everything() {
        let Some(resource) = resource_of(store) else { continue };
        uids.insert(json::uid(object).to_owned(), object.clone());
        populated.insert(json::namespace(object).to_owned());
        for owner in json::items(object, &["metadata", "ownerReferences"]) {
            let uid = json::text(owner, &["uid"]).to_owned();
            children.entry(uid).or_default().push((resource, object.clone()));
        }
        objects.push((resource, object.clone()));
    }
    for (resource, object) in &objects {
        let owners = json::items(object, &["metadata", "ownerReferences"]);
        if !owners.is_empty() && !json::is_terminating(object) {
            let mut gone = owners.iter().map(|owner| owner_is_gone(owner, &uids));
            if gone.all(|g| g) {
                work.delete.push((resource, object.clone()));
                continue;
            }
        }
        if !json::is_terminating(object) {
            continue;
        }
        let dependents = children.get(json::uid(object)).map_or(&[][..], Vec::as_slice);
        if json::finalizers(object).any(|f| f == ORPHAN) {
            work.orphan.extend(dependents.iter().cloned());
            work.release.push((resource, object.clone(), ORPHAN));
        } else if json::finalizers(object).any(|f| f == FOREGROUND) {
            let living: Vec<_> =
                dependents.iter().filter(|(_, d)| !json::is_terminating(d)).cloned().collect();
            let blocking = dependents.iter().any(|(_, d)| blocks(d, object));
            work.delete.extend(living);
            if !blocking {
                work.release.push((resource, object.clone(), FOREGROUND));
            }
        }
        if resource.is("", "namespaces") {
            let name = json::name(object);
            if populated.contains(name) {
                let inside = objects
                    .iter()
                    .filter(|(r, o)| r.namespaced && json::namespace(o) == name && !json::is_terminating(o));
                work.delete.extend(inside.cloned());
            } else if !json::items(object, &["spec", "finalizers"]).is_empty() {
                work.namespaces.push(object.clone());
            }
        }
    }
    work
}

fn owner_is_gone(owner: &Value, uids: &HashMap<String, Arc<Value>>) -> bool {
    let group = json::text(owner, &["apiVersion"]).rsplit_once('/').map_or("", |(group, _)| group);
    // Owners of kinds that are not served cannot be judged.
    resources::by_kind(group, json::text(owner, &["kind"])).is_some()
        && !uids.contains_key(json::text(owner, &["uid"]))
}

/// Whether a dependent holds up the foreground deletion of its owner.
fn blocks(dependent: &Value, owner: &Value) -> bool {
    json::items(dependent, &["metadata", "ownerReferences"]).iter().any(|reference| {
        json::text(reference, &["uid"]) == json::uid(owner)
            && reference.get("blockOwnerDeletion") == Some(&Value::Bool(true))
    })
}

fn target(resource: &'static Resource, object: &Value) -> Target {
    Target {
        resource,
        version: resource.versions.first().copied().unwrap_or("v1"),
        namespace: resource.namespaced.then(|| json::namespace(object).to_owned()),
        name: Some(json::name(object).to_owned()),
        subresource: None,
        rest: String::new(),
    }
}

fn perform(api: &Api, work: &Work) -> ApiResult<()> {
    if work.restore {
        api.store.commit(|state| Ok((bootstrap::roots(api, state), ())))?;
    }
    for (resource, object) in &work.orphan {
        change(api, resource, object, |new| {
            let gone: Vec<String> = work.release.iter().map(|(_, o, _)| json::uid(o).to_owned()).collect();
            if let Some(Value::Array(owners)) = json::metadata_mut(new).get_mut("ownerReferences") {
                owners.retain(|o| !gone.iter().any(|uid| uid == json::text(o, &["uid"])));
            }
        })?;
    }
    for (resource, object) in &work.delete {
        match delete::delete(api, &target(resource, object), &DeleteOptions::background()) {
            Err(error) if error.code >= 500 => return Err(error),
            _ => {}
        }
    }
    for (resource, object, finalizer) in &work.release {
        change(api, resource, object, |new| {
            if let Some(Value::Array(list)) = json::metadata_mut(new).get_mut("finalizers") {
                list.retain(|f| f.as_str() != Some(finalizer));
            }
        })?;
    }
    for object in &work.namespaces {
        let Some(resource) = resources::by_name("", "namespaces") else { continue };
        change(api, resource, object, |new| {
            json::object_mut(json::map_of(new), "spec").shift_remove("finalizers");
        })?;
    }
    Ok(())
}

/// Changes the current state of an object, and deletes it when nothing holds it any longer.
fn change(
    api: &Api,
    resource: &'static Resource,
    object: &Value,
    alter: impl FnOnce(&mut Value),
) -> ApiResult<()> {
    let target = target(resource, object);
    let key = Key::new(&resource.store, target.ns(), json::name(object));
    api.store.commit(|state| {
        let current = state.get(&key.store, &key.namespace, &key.name);
        let Some(current) = current.filter(|c| json::uid(c) == json::uid(object)) else {
            return Ok((Vec::new(), ()));
        };
        let mut new = Value::clone(current);
        alter(&mut new);
        let mut changes = Vec::new();
        if write::is_finished(&target, &new) {
            changes.push(Change::Delete(key.clone()));
        } else if new != **current {
            changes.push(Change::Put(key.clone(), new));
        }
        Ok((changes, ()))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::tests::scene;

    #[test]
    fn events_older_than_an_hour_go() {
        let scene = scene(crate::store::RingLimits::default());
        let event = |name: &str, at: &str| {
            let key = Key::new("events", "default", name);
            Change::Put(
                key,
                serde_json::json!({
                    "metadata": { "name": name, "namespace": "default" }, "lastTimestamp": at,
                }),
            )
        };
        let changes = vec![event("old", "2026-01-01T00:00:00Z"), event("new", "2026-01-01T02:30:00Z")];
        scene.api.store.commit(|_| Ok((changes, ()))).expect("committed");
        expire(&scene.api, "2026-01-01T03:00:00Z".parse().expect("a time")).expect("removed");
        let left: Vec<String> =
            scene.api.store.read(|s| s.list("events", None).map(|e| json::name(e).to_owned()).collect());
        assert_eq!(left, ["new"]);
    }
}

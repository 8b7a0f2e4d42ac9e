//! Conditions in the status of policies: what of them is not in force (`kubectl describe`, `kubectl get -o yaml`).
//!
//! Written only where they differ from what is stored, so that a restart over many objects writes nothing, and replicas
//! that see the same world write the same. Conditions of others stay. Only objects that have conditions of ours are
//! remembered; the status of all others is read when there is something to write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use maille_control::conditions::{Conditions, TYPES};
use maille_control::world::World;
use maille_control::{Hub, conditions::Condition};
use maille_core::NamespacedName;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::objects::{AuthorizationPolicy, RequestAuthentication, name_of};

/// How long changes are gathered before they are looked at: statuses are for people.
const PATIENCE: Duration = Duration::from_secs(1);
/// Writes that failed are tried again after this.
const RETRY: Duration = Duration::from_secs(10);
/// A condition whose text alone changes, such as the error of an unreachable host, is written this often at most.
const REWORDING: Duration = Duration::from_secs(60);

/// Kinds whose status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Policy,
    Authentication,
}

type Id = (Kind, NamespacedName);

/// The conditions of ours that objects have, as last seen.
#[derive(Debug, Default)]
pub(crate) struct Book {
    stored: Mutex<BTreeMap<Id, Stored>>,
    changed: Notify,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Stored {
    generation: i64,
    conditions: Vec<Value>,
    /// Looked for in the world in vain; once may be the watch that is ahead of the world.
    missing: bool,
}

impl Book {
    /// Takes in what the watch tells of an object.
    pub(crate) fn note(&self, kind: Kind, metadata: &ObjectMeta, status: &Value) {
        let conditions: Vec<Value> = conditions(status).filter(|c| is_ours(c)).cloned().collect();
        let id = (kind, name_of(metadata));
        let mut stored = self.stored.lock();
        let before = stored.remove(&id);
        if !conditions.is_empty() {
            let new =
                Stored { generation: metadata.generation.unwrap_or_default(), conditions, missing: false };
            let is_new = before.as_ref() != Some(&new);
            stored.insert(id, new);
            if is_new {
                self.changed.notify_one();
            }
        }
    }
}

fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
    status.get("conditions").and_then(Value::as_array).into_iter().flatten()
}

fn is_ours(condition: &Value) -> bool {
    text(condition, "type").is_some_and(|name| TYPES.contains(&name))
}

fn text<'v>(condition: &'v Value, field: &str) -> Option<&'v str> {
    condition.get(field)?.as_str()
}

/// Keeps the statuses as the world is, for ever.
pub(crate) async fn write(client: Client, hub: Arc<Hub>, book: Arc<Book>) {
    let mut world_changed = hub.generations();
    let mut written = BTreeMap::<Id, Instant>::new();
    loop {
        world_changed.mark_unchanged();
        let snapshot = hub.snapshot();
        let due = due(&snapshot.world, &book);
        let mut again = None;
        for (id, wanted) in due {
            let is_recent = written.get(&id).is_some_and(|at| at.elapsed() < REWORDING);
            if is_recent && only_reworded(&book, &id, &wanted) {
                again = Some(REWORDING);
                continue;
            }
            let outcome = match id.0 {
                Kind::Policy => put::<AuthorizationPolicy>(&client, &id, &wanted).await,
                Kind::Authentication => put::<RequestAuthentication>(&client, &id, &wanted).await,
            };
            match outcome {
                Ok(Some((metadata, status))) => book.note(id.0, &metadata, &status),
                // Gone: the watch will say so.
                Ok(None) => {}
                Err(error) => {
                    let error = crate::brief(&error);
                    tracing::warn!(name = %id.1, error, "status not written; trying again");
                    again = Some(RETRY);
                }
            }
            written.insert(id, Instant::now());
        }
        written.retain(|_, at| at.elapsed() < REWORDING);
        let again = async {
            match again {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = world_changed.changed() => if changed.is_err() { return },
            () = book.changed.notified() => {}
            () = again => {}
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

/// The objects whose conditions are not what they should be.
fn due(world: &World, book: &Book) -> Vec<(Id, Conditions)> {
    let policies =
        world.policies().map(|policy| ((Kind::Policy, policy.name()), world.conditions_of_policy(policy)));
    let authentications = world
        .authentications()
        .map(|found| ((Kind::Authentication, found.name()), world.conditions_of_authentication(found)));
    let mut stored = book.stored.lock();
    let mut seen = BTreeSet::new();
    let mut due = Vec::new();
    for (id, wanted) in policies.chain(authentications) {
        let known = stored.get(&id);
        if known.is_some() {
            seen.insert(id.clone());
        }
        if !is_right(
            known.map_or(&[], |known| &known.conditions),
            known.map(|known| known.generation),
            &wanted,
        ) {
            due.push((id, wanted));
        }
    }
    stored.retain(|id, known| {
        let stays = seen.contains(id) || !known.missing;
        known.missing = !seen.contains(id);
        stays
    });
    due
}

/// Whether the stored conditions of ours say what is wanted, of this generation.
fn is_right(stored: &[Value], generation: Option<i64>, wanted: &Conditions) -> bool {
    TYPES.iter().all(|claim| {
        let found = stored.iter().find(|condition| text(condition, "type") == Some(claim));
        let wanted_one = wanted.present.iter().find(|condition| condition.claim == *claim);
        match (found, wanted_one) {
            _ if wanted.undecided.contains(claim) => true,
            (None, None) => true,
            (Some(found), Some(wanted)) => {
                says(found, wanted) && found.get("observedGeneration").and_then(Value::as_i64) == generation
            }
            _ => false,
        }
    })
}

fn says(found: &Value, wanted: &Condition) -> bool {
    text(found, "status") == Some("False")
        && text(found, "reason") == Some(wanted.reason)
        && text(found, "message") == Some(&wanted.message)
}

/// Whether the stored conditions differ from what is wanted in their texts alone.
fn only_reworded(book: &Book, id: &Id, wanted: &Conditions) -> bool {
    let stored = book.stored.lock();
    let Some(stored) = stored.get(id) else { return false };
    let heads = |condition: &Value| {
        let reason = text(condition, "reason").unwrap_or_default().to_owned();
        let generation = condition.get("observedGeneration").and_then(Value::as_i64);
        (text(condition, "type").unwrap_or_default().to_owned(), reason, generation)
    };
    let found: BTreeSet<_> = stored.conditions.iter().map(heads).collect();
    let generation = Some(stored.generation);
    let wanted = wanted.present.iter().map(|c| (c.claim.to_owned(), c.reason.to_owned(), generation));
    found == wanted.collect()
}

/// Reads an object's status and makes its conditions right; gives what is stored then, `None` if there is no such object.
async fn put<K>(client: &Client, id: &Id, wanted: &Conditions) -> kube::Result<Option<(ObjectMeta, Value)>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasStatus
        + Clone
        + DeserializeOwned
        + Debug,
{
    let (_, NamespacedName { namespace, name }) = id;
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let Some(object) = api.get_opt(name).await? else { return Ok(None) };
    let metadata = object.meta().clone();
    let generation = metadata.generation.unwrap_or_default();
    let Some(new) = merged(object.status(), generation, wanted, &now()) else {
        return Ok(Some((metadata, object.status().clone())));
    };
    // Of the version that was read only: somebody else's condition must not get lost.
    let patch = json!({ "metadata": { "resourceVersion": metadata.resource_version }, "status": new });
    let parameters = PatchParams { field_manager: Some("istiod".to_owned()), ..PatchParams::default() };
    let stored = api.patch_status(name, &parameters, &Patch::Merge(&patch)).await?;
    Ok(Some((stored.meta().clone(), stored.status().clone())))
}

/// As Kubernetes writes times: whole seconds.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// The status with our conditions as they should be, for a merge patch; `None` if it is so already.
fn merged(status: &Value, generation: i64, wanted: &Conditions, now: &str) -> Option<Value> {
    let stored: Vec<Value> = conditions(status).filter(|c| is_ours(c)).cloned().collect();
    if is_right(&stored, Some(generation), wanted) {
        return None;
    }
    let mut all: Vec<Value> = conditions(status).filter(|c| !is_ours(c)).cloned().collect();
    for claim in TYPES {
        let before = stored.iter().find(|condition| text(condition, "type") == Some(claim));
        if wanted.undecided.contains(claim) {
            all.extend(before.cloned());
        } else if let Some(wanted) = wanted.present.iter().find(|condition| condition.claim == claim) {
            let since = before
                .filter(|before| text(before, "status") == Some("False"))
                .and_then(|before| text(before, "lastTransitionTime"));
            all.push(json!({
                "type": claim,
                "status": "False",
                "reason": wanted.reason,
                "message": wanted.message,
                "lastTransitionTime": since.unwrap_or(now),
                "observedGeneration": generation,
            }));
        }
    }
    let others = status.as_object().is_some_and(|status| status.keys().any(|key| key != "conditions"));
    Some(match (all.is_empty(), others) {
        (false, _) => json!({ "conditions": all }),
        (true, true) => json!({ "conditions": null }),
        (true, false) => Value::Null,
    })
}

/// Objects with a status.
pub(crate) trait HasStatus {
    fn status(&self) -> &Value;
}

impl HasStatus for AuthorizationPolicy {
    fn status(&self) -> &Value {
        &self.status
    }
}

impl HasStatus for RequestAuthentication {
    fn status(&self) -> &Value {
        &self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(message: &str) -> Conditions {
        let condition = Condition { claim: TYPES[0], reason: "R", message: message.into() };
        Conditions { present: vec![condition], ..Conditions::default() }
    }

    #[test]
    fn conditions_of_others_and_the_time_of_the_transition_stay() {
        let other = json!({ "type": "Theirs", "status": "True" });
        let status = json!({ "conditions": [other], "more": 1 });
        let first = merged(&status, 3, &wanted("m"), "t1").expect("differs");
        assert_eq!(first["conditions"][0], other);
        let ours = json!({
            "type": TYPES[0], "status": "False", "reason": "R", "message": "m", "lastTransitionTime": "t1",
            "observedGeneration": 3,
        });
        assert_eq!(first["conditions"][1], ours);
        assert_eq!(merged(&first, 3, &wanted("m"), "t2"), None, "it is as it should be");
        let reworded = merged(&first, 4, &wanted("n"), "t2").expect("differs");
        let changed = &reworded["conditions"][1];
        assert_eq!(
            (&changed["lastTransitionTime"], &changed["observedGeneration"]),
            (&json!("t1"), &json!(4))
        );
        let gone = merged(&first, 4, &Conditions::default(), "t2").expect("differs");
        assert_eq!(gone, json!({ "conditions": [other] }));
    }

    #[test]
    fn the_last_condition_leaves_nothing_behind() {
        let status = merged(&Value::Null, 1, &wanted("m"), "t").expect("differs");
        assert_eq!(merged(&status, 1, &Conditions::default(), "t"), Some(Value::Null));
        let mut more = status;
        more["more"] = json!(1);
        assert_eq!(merged(&more, 1, &Conditions::default(), "t"), Some(json!({ "conditions": null })));
        assert_eq!(merged(&Value::Null, 1, &Conditions::default(), "t"), None);
    }

    #[test]
    fn what_is_undecided_stays_as_it_was_said() {
        let status = merged(&Value::Null, 1, &wanted("m"), "t").expect("differs");
        let undecided = Conditions { present: Vec::new(), undecided: [TYPES[0]].into() };
        assert_eq!(merged(&status, 1, &undecided, "t"), None);
        assert_eq!(merged(&Value::Null, 1, &undecided, "t"), None);
    }
}

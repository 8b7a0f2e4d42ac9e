//! ReplicaSet: as many Pods of one template as asked for.

use futures::StreamExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::k8s::jiff::Timestamp;
use maille_config::k8s::meta::{ObjectMeta, Time};
use serde_json::json;

use super::{is_not_found, ownership, pods};
use crate::kubelet::Recorder;

/// Pods that are created at once, at most; the rest follows.
const BURST: usize = 50;

/// The condition of a ReplicaSet, and of its Deployment, whose Pods the API refuses.
pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) async fn reconcile(
    client: &Client,
    events: &Recorder,
    namespace: &str,
    name: &str,
) -> Result<(), kube::Error> {
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
    let Some(set) = sets.get_opt(name).await? else { return Ok(()) };
    let Some(uid) = set.uid().filter(|_| set.metadata.deletion_timestamp.is_none()) else { return Ok(()) };

    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let owned: Vec<Pod> = api
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter(|pod| ownership::is_controlled_by(pod, &uid) && pods::is_active(pod))
        .collect();

    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let mut failure = None;
    if owned.len() < wanted {
        for _ in 0..(wanted - owned.len()).min(BURST) {
            match api.create(&PostParams::default(), &new_pod(&set, namespace)).await {
                Ok(_) => {}
                // The template is at fault, or something that it names is missing: people are told, and the resync
                // tries again.
                Err(kube::Error::Api(refused)) if matches!(refused.code, 400 | 403 | 404 | 422) => {
                    let message = without_suffix(&refused.message, &format!("{}-", set.name_any()));
                    let told = format!("Error creating: {message}");
                    events.record(
                        ownership::object_reference(&set),
                        true,
                        "FailedCreate",
                        told,
                        "replicaset-controller",
                    );
                    failure = Some(message);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    } else if owned.len() > wanted {
        let mut by_worth = owned.clone();
        pods::by_worth(&mut by_worth);
        let surplus = by_worth.iter().take(owned.len() - wanted);
        let deletions = surplus.map(|pod| delete(&api, pod.name_any()));
        for outcome in futures::stream::iter(deletions).buffer_unordered(8).collect::<Vec<_>>().await {
            outcome?;
        }
    }
    write_status(&sets, &set, &owned, failure).await
}

/// The message without what the API put behind the Pod's generated name: it would be another message each time, and
/// another status, which would be looked at again at once.
pub(super) fn without_suffix(message: &str, generate_name: &str) -> String {
    match message.split_once(generate_name) {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
            format!("{before}{generate_name}{after}")
        }
        None => message.to_owned(),
    }
}

/// That Pods cannot be created, and since when.
fn replica_failure(before: Option<&ReplicaSetStatus>, message: String) -> ReplicaSetCondition {
    let last = before.and_then(|status| {
        status.conditions.iter().flatten().find(|c| c.type_.as_deref() == Some(REPLICA_FAILURE))
    });
    ReplicaSetCondition {
        type_: Some(REPLICA_FAILURE.to_owned()),
        status: Some("True".to_owned()),
        reason: Some("FailedCreate".to_owned()),
        message: Some(message),
        last_transition_time: last
            .map_or_else(|| Some(Time(Timestamp::now())), |condition| condition.last_transition_time.clone()),
    }
}

async fn delete(api: &Api<Pod>, name: String) -> Result<(), kube::Error> {
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn new_pod(set: &ReplicaSet, namespace: &str) -> Pod {
    let template = set.spec.template.clone().unwrap_or_default();
    let described = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: Some(namespace.to_owned()),
            labels: described.labels,
            annotations: described.annotations,
            owner_references: Some(vec![ownership::reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

async fn write_status(
    sets: &Api<ReplicaSet>,
    set: &ReplicaSet,
    owned: &[Pod],
    failure: Option<String>,
) -> Result<(), kube::Error> {
    let count = |n: usize| Some(i32::try_from(n).unwrap_or(i32::MAX));
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let now = Timestamp::now();
    let status = ReplicaSetStatus {
        replicas: i32::try_from(owned.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: count(owned.len()),
        ready_replicas: count(owned.iter().filter(|pod| pods::is_ready(pod)).count()),
        available_replicas: count(owned.iter().filter(|pod| pods::is_available(pod, min_ready, now)).count()),
        observed_generation: set.metadata.generation,
        conditions: failure.map(|message| vec![replica_failure(set.status.as_ref(), message)]),
        ..ReplicaSetStatus::default()
    };
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let mut patch = json!({ "status": status });
    if status.conditions.is_none() {
        // A merge patch takes away only what it names.
        patch["status"]["conditions"] = serde_json::Value::Null;
    }
    let patch = Patch::Merge(patch);
    sets.patch_status(&set.name_any(), &PatchParams::default(), &patch).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_the_same_each_time() {
        let refusal = |name: &str| format!("pods \"web-7f-{name}\" is forbidden: no account \"x\"");
        let expected = "pods \"web-7f-\" is forbidden: no account \"x\"";
        assert_eq!(without_suffix(&refusal("2226x"), "web-7f-"), expected);
        assert_eq!(without_suffix(&refusal("dz2gq"), "web-7f-"), expected);
        assert_eq!(without_suffix("quota", "web-7f-"), "quota");
    }

    #[test]
    fn a_failure_is_as_old_as_its_first_time() {
        let first = replica_failure(None, "a".to_owned());
        let status =
            ReplicaSetStatus { conditions: Some(vec![first.clone()]), ..ReplicaSetStatus::default() };
        assert_eq!(
            replica_failure(Some(&status), "b".to_owned()).last_transition_time,
            first.last_transition_time
        );
    }
}

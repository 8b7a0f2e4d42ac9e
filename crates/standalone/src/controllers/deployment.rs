//! Deployment: ReplicaSets of its templates, old ones replaced by the new one step by step.

use std::collections::BTreeMap;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use maille_config::k8s::api::core::v1::PodTemplateSpec;
use maille_config::k8s::jiff::Timestamp;
use maille_config::k8s::meta::{ObjectMeta, Time};
use serde_json::json;

use super::replicaset::REPLICA_FAILURE;
use super::rollout::{Bounds, Set, scale_down, scale_up};
use super::{is_not_found, ownership};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

pub(super) async fn reconcile(client: &Client, namespace: &str, name: &str) -> Result<(), kube::Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let Some(deployment) = deployments.get_opt(name).await? else { return Ok(()) };
    let Some(uid) = deployment.uid().filter(|_| deployment.metadata.deletion_timestamp.is_none()) else {
        return Ok(());
    };
    let spec = &deployment.spec;

    let api: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
    let mut owned: Vec<ReplicaSet> = api
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter(|set| ownership::is_controlled_by(set, &uid))
        .collect();
    owned.sort_by_key(|set| (set.creation_timestamp().map(|time| time.0), set.name_any()));

    let hash = template_hash(&spec.template);
    let is_new = |set: &ReplicaSet| set.labels().get(HASH) == Some(&hash);
    let mut new = owned.iter().position(is_new).map(|index| owned.remove(index));
    let old = owned;
    if spec.paused != Some(true) {
        new = Some(current_set(&api, &deployment, spec, &hash, new, &old).await?);
        if let Some(new) = new.as_mut() {
            match spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) {
                Some("Recreate") => recreate(&api, spec, new, &old).await?,
                _ => roll(&api, spec, new, &old).await?,
            }
        }
        forget_old(&api, spec, &old).await?;
    }
    write_status(&deployments, &deployment, spec, new.as_ref(), &old).await
}

/// The ReplicaSet of the Deployment's template, made or brought to the newest revision.
async fn current_set(
    api: &Api<ReplicaSet>,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    hash: &str,
    there: Option<ReplicaSet>,
    old: &[ReplicaSet],
) -> Result<ReplicaSet, kube::Error> {
    let latest_old = old.iter().map(revision).max().unwrap_or(0);
    match there {
        Some(set) if revision(&set) > latest_old => Ok(set),
        Some(set) => {
            let patch =
                json!({"metadata": {"annotations": {REVISION: latest_old.saturating_add(1).to_string()}}});
            api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
        }
        None => {
            let set = new_set(deployment, spec, hash, latest_old.saturating_add(1));
            api.create(&PostParams::default(), &set).await
        }
    }
}

fn new_set(deployment: &Deployment, spec: &DeploymentSpec, hash: &str, revision: i64) -> ReplicaSet {
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH.to_owned(), hash.to_owned());
        Some(labels)
    };
    let mut template = spec.template.clone();
    let mut described = template.metadata.take().unwrap_or_default();
    described.labels = with_hash(described.labels);
    let labels = described.labels.clone();
    template.metadata = Some(described);
    let mut selector = spec.selector.clone();
    selector.match_labels = with_hash(selector.match_labels);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(BTreeMap::from([(REVISION.to_owned(), revision.to_string())])),
            owner_references: Some(vec![ownership::reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            selector,
            template: Some(template),
            min_ready_seconds: spec.min_ready_seconds,
        },
        status: None,
    }
}

async fn roll(
    api: &Api<ReplicaSet>,
    spec: &DeploymentSpec,
    new: &mut ReplicaSet,
    old: &[ReplicaSet],
) -> Result<(), kube::Error> {
    let desired = spec.replicas.unwrap_or(1);
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let bounds = Bounds::resolve(
        desired,
        rolling.and_then(|rolling| rolling.max_surge.as_ref()),
        rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
    );
    let all = old.iter().map(asked).fold(asked(new), i32::saturating_add);
    let next = scale_up(desired, bounds, as_set(new), all);
    if next != asked(new) {
        *new = scale(api, new, next).await?;
    }
    let before: Vec<Set> = old.iter().map(as_set).collect();
    for (set, next) in old.iter().zip(scale_down(desired, bounds, as_set(new), &before)) {
        if next != asked(set) {
            scale(api, set, next).await?;
        }
    }
    Ok(())
}

/// No Pod of the new template before the last of the old ones is gone.
async fn recreate(
    api: &Api<ReplicaSet>,
    spec: &DeploymentSpec,
    new: &mut ReplicaSet,
    old: &[ReplicaSet],
) -> Result<(), kube::Error> {
    for set in old.iter().filter(|set| asked(set) > 0) {
        scale(api, set, 0).await?;
    }
    let remaining: i32 = old.iter().map(|set| set.status.as_ref().map_or(0, |status| status.replicas)).sum();
    let desired = spec.replicas.unwrap_or(1);
    if remaining == 0 && asked(new) != desired {
        *new = scale(api, new, desired).await?;
    }
    Ok(())
}

async fn scale(api: &Api<ReplicaSet>, set: &ReplicaSet, replicas: i32) -> Result<ReplicaSet, kube::Error> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    api.patch(&set.name_any(), &PatchParams::default(), &patch).await
}

/// Removes empty ReplicaSets beyond `revisionHistoryLimit`, oldest first.
async fn forget_old(
    api: &Api<ReplicaSet>,
    spec: &DeploymentSpec,
    old: &[ReplicaSet],
) -> Result<(), kube::Error> {
    let kept = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<&ReplicaSet> = old
        .iter()
        .filter(|set| asked(set) == 0 && set.status.as_ref().is_none_or(|status| status.replicas == 0))
        .collect();
    empty.sort_by_key(|set| revision(set));
    let surplus = empty.len().saturating_sub(kept);
    for set in empty.into_iter().take(surplus) {
        match api.delete(&set.name_any(), &DeleteParams::default()).await {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn write_status(
    api: &Api<Deployment>,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
) -> Result<(), kube::Error> {
    let desired = spec.replicas.unwrap_or(1);
    let sum = |field: fn(&ReplicaSet) -> i32| new.into_iter().chain(old).map(field).sum::<i32>();
    let replicas = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let available = sum(available_of);
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let before = deployment.status.clone().unwrap_or_default();
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let bounds = Bounds::resolve(
        desired,
        rolling.and_then(|rolling| rolling.max_surge.as_ref()),
        rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
    );
    let complete = updated == desired && replicas == desired && available == desired;
    let is_available = available >= desired - bounds.max_unavailable;
    let progressed = before.updated_replicas.unwrap_or(0) < updated
        || before.ready_replicas.unwrap_or(0) < ready
        || before.available_replicas.unwrap_or(0) < available
        || before.observed_generation != deployment.metadata.generation;
    let mut conditions = vec![
        availability(&before, is_available),
        progress(&before, spec, new.map(ResourceExt::name_any), complete, progressed),
    ];
    let failure = new.and_then(|set| set.status.as_ref()?.conditions.as_ref()?.first());
    if let Some(failure) = failure.filter(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE)) {
        let message = failure.message.clone().unwrap_or_default();
        conditions.push(condition(&before, REPLICA_FAILURE, "True", "FailedCreate", message, false));
    }
    let status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(replicas),
        updated_replicas: Some(updated),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        unavailable_replicas: Some((desired.max(replicas) - available).max(0)),
        conditions: Some(conditions),
        ..before.clone()
    };
    let revision_changed = new.is_some_and(|set| {
        deployment.annotations().get(REVISION).map(String::as_str) != Some(revision(set).to_string().as_str())
    });
    if let Some(set) = new.filter(|_| revision_changed) {
        let patch = json!({"metadata": {"annotations": {REVISION: revision(set).to_string()}}});
        api.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    if status == before {
        return Ok(());
    }
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(&deployment.name_any(), &PatchParams::default(), &patch).await.map(|_| ())
}

fn availability(before: &DeploymentStatus, is_available: bool) -> DeploymentCondition {
    let (status, reason, message) = match is_available {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    condition(before, "Available", status, reason, message.to_owned(), false)
}

fn progress(
    before: &DeploymentStatus,
    spec: &DeploymentSpec,
    set: Option<String>,
    complete: bool,
    progressed: bool,
) -> DeploymentCondition {
    let name = set.unwrap_or_default();
    if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        return condition(before, "Progressing", "True", "NewReplicaSetAvailable", message, false);
    }
    let since = before
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_.as_deref() == Some("Progressing"))
        .and_then(|condition| condition.last_update_time.as_ref())
        .map(|time| Timestamp::now().duration_since(time.0).as_secs());
    let deadline = i64::from(spec.progress_deadline_seconds.unwrap_or(600));
    if !progressed && since.is_some_and(|seconds| seconds > deadline) {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        return condition(before, "Progressing", "False", "ProgressDeadlineExceeded", message, false);
    }
    let message = format!("ReplicaSet \"{name}\" is progressing.");
    condition(before, "Progressing", "True", "ReplicaSetUpdated", message, progressed)
}

/// The condition, with the times of the one before it where nothing changed.
fn condition(
    before: &DeploymentStatus,
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    touched: bool,
) -> DeploymentCondition {
    let now = Some(Time(Timestamp::now()));
    let last = before.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(type_));
    let same_status = last.filter(|condition| condition.status.as_deref() == Some(status));
    let same = same_status.filter(|condition| condition.reason.as_deref() == Some(reason) && !touched);
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: same_status
            .map_or(now.clone(), |condition| condition.last_transition_time.clone()),
        last_update_time: same.map_or(now, |condition| condition.last_update_time.clone()),
    }
}

fn asked(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(0)
}

fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn as_set(set: &ReplicaSet) -> Set {
    Set { replicas: asked(set), available: available_of(set) }
}

fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A short name of the template: ten of the letters and digits that Kubernetes uses for it.
/// The same template always has the same name (FNV-1a over its JSON).
pub(super) fn template_hash(template: &PodTemplateSpec) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let json = serde_json::to_vec(template).unwrap_or_default();
    let mut hash = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut name = String::with_capacity(10);
    for _ in 0..10 {
        let index = usize::try_from(hash % 27).unwrap_or(0);
        name.push(char::from(ALPHABET.get(index).copied().unwrap_or(b'b')));
        hash /= 27;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_name_and_another_template_another() {
        let template = |image: &str| -> PodTemplateSpec {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a", "image": image}]}}))
                .expect("valid")
        };
        assert_eq!(template_hash(&template("x")), template_hash(&template("x")));
        assert_ne!(template_hash(&template("x")), template_hash(&template("y")));
        assert_eq!(template_hash(&template("x")).len(), 10);
    }

    #[test]
    fn a_condition_keeps_its_times_while_nothing_changes() {
        let first = availability(&DeploymentStatus::default(), true);
        let status =
            DeploymentStatus { conditions: Some(vec![first.clone()]), ..DeploymentStatus::default() };
        assert_eq!(availability(&status, true), first);
        assert_eq!(availability(&status, false).status.as_deref(), Some("False"));
    }
}

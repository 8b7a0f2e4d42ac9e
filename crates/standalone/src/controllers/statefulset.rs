//! StatefulSet: Pods with numbers that keep name, address and data when they are made again.
//!
//! Source: Kubernetes pkg/controller/statefulset/stateful_set_control.go.

mod claims;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::IntOrString;
use maille_config::k8s::api::apps::v1::{StatefulSet, StatefulSetStatus};
use maille_config::k8s::api::core::v1::{Pod, PodTemplateSpec};
use maille_config::k8s::jiff::Timestamp;
use maille_config::k8s::meta::ObjectMeta;
use serde_json::json;

use super::revisions::{History, REVISION_HASH, template_of};
use super::rollout::share;
use super::{Again, Desk, is_not_found, ownership, pods};
use claims::Claims;
use plan::{Action, BURST, Rules, Slot, Strategy};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
const COMPONENT: &str = "statefulset-controller";

/// A wait before the next Pods of a set that asks for many; others get their turn.
const NEXT_BURST: Duration = Duration::from_millis(100);

pub(super) async fn reconcile(desk: &Desk, namespace: &str, name: &str) -> Result<Again, kube::Error> {
    let sets: Api<StatefulSet> = desk.api(namespace);
    let Some(set) = sets.get_opt(name).await? else { return Ok(None) };
    let Some(uid) = set.uid().filter(|_| set.metadata.deletion_timestamp.is_none()) else { return Ok(None) };

    let mut history = History::of(desk, namespace, &uid).await?;
    let newest = history.current(&set, &set.spec.template).await?;
    let update = newest.name_any();
    let before = set.status.clone().unwrap_or_default();
    // The revision before the update that is under way, as long as it is kept.
    let current = before.current_revision.clone().filter(|name| history.named(name).is_some());
    let current = current.unwrap_or_else(|| update.clone());
    let old_template = history.named(&current).and_then(template_of);

    let api: Api<Pod> = desk.api(namespace);
    let mut owned: BTreeMap<i32, Pod> = BTreeMap::new();
    for pod in api.list(&ListParams::default()).await?.items {
        if ownership::is_controlled_by(&pod, &uid)
            && let Some(ordinal) = ordinal_of(&pod, name)
        {
            owned.insert(ordinal, pod);
        }
    }
    let now = Timestamp::now();
    let rules = rules_of(&set);
    let slots: BTreeMap<i32, Slot> =
        owned.iter().map(|(ordinal, pod)| (*ordinal, slot_of(pod, &set, &update, now))).collect();
    let claims = Claims::of(desk, &set).await?;
    for pod in owned.values() {
        claims.keep(pod).await?;
    }
    let actions = plan::next(&rules, &slots);
    let mut again = (actions.len() >= BURST).then_some(NEXT_BURST);
    for action in actions {
        match action {
            Action::Create { ordinal, updated } => {
                let (revision, template) = match (&old_template, updated) {
                    (Some(old), false) => (&current, old),
                    _ => (&update, &set.spec.template),
                };
                let pod = new_pod(&set, ordinal, revision, template);
                if !create(desk, &api, &set, &claims, &pod).await? {
                    again = None;
                    break;
                }
            }
            Action::Delete { ordinal, scaled_down } => {
                let Some(pod) = owned.get(&ordinal) else { continue };
                if scaled_down {
                    claims.give_up(pod).await?;
                }
                delete(desk, &api, &set, pod).await?;
            }
        }
    }
    let after: Vec<&Pod> = owned.values().filter(|pod| pods::is_active(pod)).collect();
    let status = status(&set, &after, &current, &update, now);
    let used: BTreeSet<String> = owned
        .values()
        .filter_map(|pod| pod.labels().get(REVISION_HASH).cloned())
        .chain(status.current_revision.clone())
        .chain([update])
        .collect();
    history.forget(&used, set.spec.revision_history_limit).await?;
    if set.status.as_ref() != Some(&status) {
        let patch = Patch::Merge(json!({ "status": status }));
        sets.patch_status(name, &PatchParams::default(), &patch).await?;
    }
    Ok(again)
}

/// The number at the end of a Pod's name.
fn ordinal_of(pod: &Pod, set: &str) -> Option<i32> {
    let name = pod.name_any();
    name.strip_prefix(set)?.strip_prefix('-')?.parse().ok().filter(|ordinal| *ordinal >= 0)
}

fn rules_of(set: &StatefulSet) -> Rules {
    let spec = &set.spec;
    let replicas = spec.replicas.unwrap_or(1).max(0);
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let spare = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    Rules {
        start: spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0).max(0),
        replicas,
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        strategy: match strategy.and_then(|strategy| strategy.type_.as_deref()) {
            Some("OnDelete") => Strategy::OnDelete,
            _ => Strategy::Rolling {
                partition: rolling.and_then(|rolling| rolling.partition).unwrap_or(0).max(0),
                // Rounded up, and never nothing, as otherwise nothing could move.
                max_unavailable: share(spare.unwrap_or(&IntOrString::Int(1)), replicas, true).max(1),
            },
        },
    }
}

fn slot_of(pod: &Pod, set: &StatefulSet, update: &str, now: Timestamp) -> Slot {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    Slot {
        updated: pod.labels().get(REVISION_HASH).map(String::as_str) == Some(update),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
        available: phase == Some("Running")
            && pods::is_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now),
    }
}

fn new_pod(set: &StatefulSet, ordinal: i32, revision: &str, template: &PodTemplateSpec) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let described = template.metadata.clone().unwrap_or_default();
    let mut labels = described.labels.unwrap_or_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.service_name.clone().filter(|service| !service.is_empty());
    claims::mount(set, &name, &mut spec);
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: described.annotations,
            owner_references: Some(vec![ownership::reference(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// Makes a Pod with its claims; `false` if the API refuses, which people are told and the resync tries again.
async fn create(
    desk: &Desk,
    api: &Api<Pod>,
    set: &StatefulSet,
    claims: &Claims<'_>,
    pod: &Pod,
) -> Result<bool, kube::Error> {
    let name = pod.name_any();
    let made = match claims.make(&name).await {
        Ok(()) => api.create(&PostParams::default(), pod).await.map(|_| ()),
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => {
            let told = format!("create Pod {name} in StatefulSet {} successful", set.name_any());
            desk.tell(set, false, "SuccessfulCreate", told, COMPONENT);
            Ok(true)
        }
        Err(kube::Error::Api(refused)) if matches!(refused.code, 400 | 403 | 404 | 409 | 422) => {
            let told = format!(
                "create Pod {name} in StatefulSet {} failed error: {}",
                set.name_any(),
                refused.message
            );
            desk.tell(set, true, "FailedCreate", told, COMPONENT);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn delete(desk: &Desk, api: &Api<Pod>, set: &StatefulSet, pod: &Pod) -> Result<(), kube::Error> {
    let name = pod.name_any();
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => {
            let told = format!("delete Pod {name} in StatefulSet {} successful", set.name_any());
            desk.tell(set, false, "SuccessfulDelete", told, COMPONENT);
            Ok(())
        }
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn status(
    set: &StatefulSet,
    active: &[&Pod],
    current: &str,
    update: &str,
    now: Timestamp,
) -> StatefulSetStatus {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let of =
        |revision: &str| count(&|pod| pod.labels().get(REVISION_HASH).map(String::as_str) == Some(revision));
    let replicas = count(&|_| true);
    let ready = count(&pods::is_ready);
    let (mut current, mut current_replicas, updated) = (current, of(current), of(update));
    let wanted = set.spec.replicas.unwrap_or(1);
    let rolls = set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if rolls && updated == wanted && replicas == wanted && ready == wanted {
        (current, current_replicas) = (update, updated);
    }
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(count(&|pod| pods::is_available(pod, min_ready, now))),
        current_replicas: Some(current_replicas),
        updated_replicas: Some(updated),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: Some(0),
        conditions: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "a", "uid": "u", "generation": 4},
            "spec": {"replicas": 2, "serviceName": "db", "selector": {}, "ordinals": {"start": 3},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1, "maxUnavailable": "50%"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "db"}]}}},
        }))
        .expect("a StatefulSet")
    }

    #[test]
    fn a_pod_bears_its_number_and_is_found_by_it() {
        let set = set();
        let pod = new_pod(&set, 3, "db-1", &set.spec.template);
        assert_eq!((pod.name_any().as_str(), ordinal_of(&pod, "db")), ("db-3", Some(3)));
        assert_eq!((pod.labels()[POD_NAME].as_str(), pod.labels()[POD_INDEX].as_str()), ("db-3", "3"));
        let spec = pod.spec.expect("a spec");
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-3"), Some("db")));
        for other in ["db-x", "db-", "dbs-1", "db--1"] {
            let named: Pod = serde_json::from_value(json!({"metadata": {"name": other}})).expect("a Pod");
            assert_eq!(ordinal_of(&named, "db"), None, "{other}");
        }
    }

    #[test]
    fn rules_are_read_with_their_defaults() {
        let mut set = set();
        let rolling = Strategy::Rolling { partition: 1, max_unavailable: 1 };
        assert_eq!(rules_of(&set), Rules { start: 3, replicas: 2, ordered: true, strategy: rolling });
        set.spec.update_strategy = None;
        set.spec.ordinals = None;
        set.spec.pod_management_policy = Some("Parallel".to_owned());
        let rolling = Strategy::Rolling { partition: 0, max_unavailable: 1 };
        assert_eq!(rules_of(&set), Rules { start: 0, replicas: 2, ordered: false, strategy: rolling });
    }

    #[test]
    fn the_update_is_over_when_all_are_ready_with_it() {
        let set = set();
        let pod = |revision: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"labels": {REVISION_HASH: revision}},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a Pod")
        };
        let now = Timestamp::now();
        let (old, new, unready) = (pod("db-1", "True"), pod("db-2", "True"), pod("db-2", "False"));
        let half = status(&set, &[&old, &new], "db-1", "db-2", now);
        assert_eq!((half.current_revision.as_deref(), half.updated_replicas), (Some("db-1"), Some(1)));
        let waits = status(&set, &[&unready, &new], "db-1", "db-2", now);
        assert_eq!((waits.current_revision.as_deref(), waits.ready_replicas), (Some("db-1"), Some(1)));
        let done = status(&set, &[&new, &new], "db-1", "db-2", now);
        assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("db-2"), Some(2)));
    }
}

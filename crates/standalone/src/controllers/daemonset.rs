//! DaemonSet: one Pod on every node, of which there is one.
//!
//! Source: Kubernetes pkg/controller/daemon/{daemon_controller,update}.go.

use std::collections::BTreeSet;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::api::apps::v1::{DaemonSet, DaemonSetStatus};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::k8s::jiff::Timestamp;
use maille_config::k8s::meta::ObjectMeta;
use serde_json::json;

use super::replicaset::without_suffix;
use super::revisions::{History, REVISION_HASH, hash_of};
use super::rollout::share;
use super::{Again, Desk, is_not_found, ownership, pods};

const COMPONENT: &str = "daemonset-controller";

pub(super) async fn reconcile(desk: &Desk, namespace: &str, name: &str) -> Result<Again, kube::Error> {
    let sets: Api<DaemonSet> = desk.api(namespace);
    let Some(set) = sets.get_opt(name).await? else { return Ok(None) };
    let Some(uid) = set.uid().filter(|_| set.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
    let mut history = History::of(desk, namespace, &uid).await?;
    let newest = history.current(&set, &set.spec.template).await?;
    let hash = hash_of(&newest).to_owned();

    let api: Api<Pod> = desk.api(namespace);
    let mut owned = api.list(&ListParams::default()).await?.items;
    owned.retain(|pod| ownership::is_controlled_by(pod, &uid));
    owned.sort_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()));
    let now = Timestamp::now();
    let daemons: Vec<Daemon> = owned.iter().map(|pod| daemon_of(pod, &set, &hash, now)).collect();
    let step = next(&daemons, rolls(&set), surges(&set));
    for pod in step.delete.iter().filter_map(|index| owned.get(*index)) {
        match api.delete(&pod.name_any(), &DeleteParams::default()).await {
            Ok(_) => desk.tell(
                &set,
                false,
                "SuccessfulDelete",
                format!("Deleted pod: {}", pod.name_any()),
                COMPONENT,
            ),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if step.create {
        match api.create(&PostParams::default(), &new_pod(&set, &hash)).await {
            Ok(pod) => {
                let told = format!("Created pod: {}", pod.name_any());
                desk.tell(&set, false, "SuccessfulCreate", told, COMPONENT);
            }
            // The template is at fault, or something that it names is missing: the resync tries again.
            Err(kube::Error::Api(refused)) if matches!(refused.code, 400 | 403 | 404 | 422) => {
                let message = without_suffix(&refused.message, &format!("{name}-"));
                desk.tell(&set, true, "FailedCreate", format!("Error creating: {message}"), COMPONENT);
            }
            Err(error) => return Err(error),
        }
    }
    let used: BTreeSet<String> = owned
        .iter()
        .filter_map(|pod| pod.labels().get(REVISION_HASH))
        .map(|hash| format!("{name}-{hash}"))
        .chain([newest.name_any()])
        .collect();
    history.forget(&used, set.spec.revision_history_limit).await?;
    let status = status(&set, &owned, &daemons);
    if set.status.as_ref() != Some(&status) {
        let patch = Patch::Merge(json!({ "status": status }));
        sets.patch_status(name, &PatchParams::default(), &patch).await?;
    }
    Ok(None)
}

/// A Pod as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Daemon {
    updated: bool,
    terminating: bool,
    ended: bool,
    available: bool,
}

/// What to do now: Pods to delete, by index, and whether to make one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    delete: Vec<usize>,
    create: bool,
}

/// The next step for Pods in the order of their age; pure.
fn next(daemons: &[Daemon], rolls: bool, surges: bool) -> Step {
    let mut step = Step::default();
    let living = |daemon: &Daemon| !daemon.terminating && !daemon.ended;
    for (index, daemon) in daemons.iter().enumerate() {
        if daemon.ended && !daemon.terminating {
            step.delete.push(index);
        }
    }
    let of = |updated: bool| {
        let daemons = daemons.iter().enumerate();
        daemons.filter(move |(_, daemon)| living(daemon) && daemon.updated == updated)
    };
    let (old, new): (Vec<_>, Vec<_>) = (of(false).collect(), of(true).collect());
    // Of several of one template the oldest stays.
    step.delete.extend(old.iter().skip(1).map(|(index, _)| *index));
    step.delete.extend(new.iter().skip(1).map(|(index, _)| *index));
    match (old.first(), new.first()) {
        (None, None) => step.create = daemons.iter().all(|daemon| surges && daemon.terminating),
        (None, Some(_)) => {}
        // It may go as soon as its successor serves.
        (Some((index, _)), Some((_, successor))) => {
            if successor.available || !surges {
                step.delete.push(*index);
            }
        }
        (Some(_), None) if rolls && surges => step.create = true,
        (Some((index, _)), None) if rolls => step.delete.push(*index),
        (Some(_), None) => {}
    }
    step
}

fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.update_strategy.as_ref();
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// Whether the new Pod comes before the old one goes.
fn surges(set: &DaemonSet) -> bool {
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.max_surge.as_ref()).is_some_and(|surge| share(surge, 1, true) > 0)
}

fn daemon_of(pod: &Pod, set: &DaemonSet, hash: &str, now: Timestamp) -> Daemon {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    Daemon {
        updated: pod.labels().get(REVISION_HASH).map(String::as_str) == Some(hash),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
        available: pods::is_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now),
    }
}

fn new_pod(set: &DaemonSet, hash: &str) -> Pod {
    let template = set.spec.template.clone();
    let described = template.metadata.unwrap_or_default();
    let mut labels = described.labels.unwrap_or_default();
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: described.annotations,
            owner_references: Some(vec![ownership::reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn status(set: &DaemonSet, owned: &[Pod], daemons: &[Daemon]) -> DaemonSetStatus {
    let any = |wanted: &dyn Fn(&Pod, &Daemon) -> bool| {
        let living = owned.iter().zip(daemons).filter(|(_, daemon)| !daemon.terminating && !daemon.ended);
        i32::from(living.into_iter().any(|(pod, daemon)| wanted(pod, daemon)))
    };
    let available = any(&|_, daemon| daemon.available);
    DaemonSetStatus {
        observed_generation: set.metadata.generation,
        desired_number_scheduled: 1,
        current_number_scheduled: any(&|_, _| true),
        number_misscheduled: 0,
        number_ready: any(&|pod, _| pods::is_ready(pod)),
        number_available: Some(available),
        number_unavailable: Some(1 - available),
        updated_number_scheduled: Some(any(&|_, daemon| daemon.updated)),
        ..DaemonSetStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Daemon = Daemon { updated: true, terminating: false, ended: false, available: true };
    const OLD: Daemon = Daemon { updated: false, ..NEW };
    const STARTING: Daemon = Daemon { available: false, ..NEW };
    const GOING: Daemon = Daemon { terminating: true, ..OLD };

    fn step(delete: &[usize], create: bool) -> Step {
        Step { delete: delete.to_vec(), create }
    }

    #[test]
    fn there_is_one_pod_and_it_is_replaced_in_the_way_asked_for() {
        assert_eq!(next(&[], true, false), step(&[], true));
        assert_eq!(next(&[NEW], true, false), step(&[], false));
        assert_eq!(next(&[NEW, NEW], true, false), step(&[1], false));
        assert_eq!(next(&[Daemon { ended: true, ..NEW }], true, false), step(&[0], false));
        // First away, then new.
        assert_eq!(next(&[OLD], true, false), step(&[0], false));
        assert_eq!(next(&[GOING], true, false), step(&[], false));
        // First new, then away.
        assert_eq!(next(&[OLD], true, true), step(&[], true));
        assert_eq!(next(&[OLD, STARTING], true, true), step(&[], false));
        assert_eq!(next(&[OLD, NEW], true, true), step(&[0], false));
        assert_eq!(next(&[GOING], true, true), step(&[], true));
        // Only when somebody deletes it.
        assert_eq!(next(&[OLD], false, false), step(&[], false));
    }
}

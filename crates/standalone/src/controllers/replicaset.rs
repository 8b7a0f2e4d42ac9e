//! ReplicaSet: as many Pods of one template as asked for.

use futures::StreamExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use maille_config::k8s::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use maille_config::k8s::api::core::v1::Pod;
use maille_config::k8s::jiff::Timestamp;
use maille_config::k8s::meta::ObjectMeta;
use serde_json::json;

use super::{is_not_found, ownership, pods};

/// Pods that are created at once, at most; the rest follows.
const BURST: usize = 50;

pub(super) async fn reconcile(client: &Client, namespace: &str, name: &str) -> Result<(), kube::Error> {
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
    if owned.len() < wanted {
        for _ in 0..(wanted - owned.len()).min(BURST) {
            api.create(&PostParams::default(), &new_pod(&set, namespace)).await?;
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
    write_status(&sets, &set, &owned).await
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

async fn write_status(sets: &Api<ReplicaSet>, set: &ReplicaSet, owned: &[Pod]) -> Result<(), kube::Error> {
    let count = |n: usize| Some(i32::try_from(n).unwrap_or(i32::MAX));
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let now = Timestamp::now();
    let status = ReplicaSetStatus {
        replicas: i32::try_from(owned.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: count(owned.len()),
        ready_replicas: count(owned.iter().filter(|pod| pods::is_ready(pod)).count()),
        available_replicas: count(owned.iter().filter(|pod| pods::is_available(pod, min_ready, now)).count()),
        observed_generation: set.metadata.generation,
        ..ReplicaSetStatus::default()
    };
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let patch = Patch::Merge(json!({ "status": status }));
    sets.patch_status(&set.name_any(), &PatchParams::default(), &patch).await.map(|_| ())
}

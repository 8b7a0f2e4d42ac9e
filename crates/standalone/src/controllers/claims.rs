//! PersistentVolumeClaims: each is given a directory of this machine, which stays until the claim goes.
//!
//! There are no storage classes and no volumes as objects: what a claim is bound to is named after it, as a dynamic
//! provisioner would, and its data is beside the store, so that both outlive `maille down` together.

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::json;

use super::{Desk, is_not_found};

/// Keeps a claim in the API as long as it is in use.
const PROTECTION: &str = "kubernetes.io/pvc-protection";
const COMPONENT: &str = "persistentvolume-controller";

/// The claims that a Pod mounts.
pub(super) fn of_pod(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let claims = volumes.into_iter().flatten().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    claims.map(|source| source.claim_name.clone())
}

pub(super) async fn reconcile(desk: &Desk, namespace: &str, name: &str) -> Result<(), kube::Error> {
    let api: Api<PersistentVolumeClaim> = desk.api(namespace);
    let Some(claim) = api.get_opt(name).await? else { return Ok(()) };
    let Some(uid) = claim.uid() else { return Ok(()) };
    if claim.metadata.deletion_timestamp.is_some() {
        return release(desk, &api, &claim, &uid).await;
    }
    let spec = claim.spec.clone().unwrap_or_default();
    let volume = format!("pvc-{uid}");
    if spec.volume_name.as_deref().is_some_and(|named| !named.is_empty() && named != volume) {
        let message = "a claim is given a directory of its own: leave volumeName out".to_owned();
        desk.tell(&claim, true, "FailedBinding", message, COMPONENT);
        return Ok(());
    }
    let capacity = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
    let bound = claim.status.as_ref().is_some_and(|status| {
        status.phase.as_deref() == Some("Bound") && status.capacity.as_ref() == capacity.as_ref()
    });
    if bound {
        return Ok(());
    }
    let directory = desk.data.volume(&uid);
    if let Err(error) = std::fs::create_dir_all(&directory) {
        let message = format!("failed to provision volume: {}: {error}", directory.display());
        desk.tell(&claim, true, "ProvisioningFailed", message, COMPONENT);
        return Ok(());
    }
    if spec.volume_name.is_none() {
        let patch = json!({"metadata": {"uid": uid}, "spec": {"volumeName": volume}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let message = format!("Successfully provisioned volume {volume}");
        desk.tell(&claim, false, "ProvisioningSucceeded", message, COMPONENT);
    }
    let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": capacity});
    let patch = json!({"metadata": {"uid": uid}, "status": status});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
}

/// Takes the directory away, and lets the claim go, once no Pod uses it.
async fn release(
    desk: &Desk,
    api: &Api<PersistentVolumeClaim>,
    claim: &PersistentVolumeClaim,
    uid: &str,
) -> Result<(), kube::Error> {
    if !claim.finalizers().iter().any(|finalizer| finalizer == PROTECTION) {
        return Ok(());
    }
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let pods = desk.api::<Pod>(&namespace).list(&ListParams::default()).await?;
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    if pods.iter().any(|pod| !ended(pod) && of_pod(pod).any(|used| used == name)) {
        return Ok(());
    }
    let directory = desk.data.volume(uid);
    let removed = tokio::task::spawn_blocking(move || crate::remove::tree(&directory)).await;
    if let Err(error) = removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        let message = format!("failed to delete volume: {error}");
        desk.tell(claim, true, "VolumeFailedDelete", message, COMPONENT);
        return Ok(());
    }
    let rest: Vec<&String> = claim.finalizers().iter().filter(|finalizer| *finalizer != PROTECTION).collect();
    let patch = json!({"metadata": {"uid": uid, "finalizers": rest}});
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

//! The claims of a StatefulSet's Pods: made before the Pod, kept when it goes, unless the retention policy says
//! otherwise.
//!
//! Source: Kubernetes pkg/controller/statefulset/stateful_pod_control.go, KEP-1847.

use std::collections::BTreeMap;

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::api::apps::v1::StatefulSet;
use maille_config::k8s::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodSpec, Volume,
};
use maille_config::k8s::meta::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::super::{Desk, ownership};

/// The claims in the namespace of a StatefulSet that has templates for them.
pub(super) struct Claims<'s> {
    set: &'s StatefulSet,
    api: Api<PersistentVolumeClaim>,
    there: BTreeMap<String, PersistentVolumeClaim>,
}

impl<'s> Claims<'s> {
    pub(super) async fn of(desk: &Desk, set: &'s StatefulSet) -> Result<Self, kube::Error> {
        let api: Api<PersistentVolumeClaim> = desk.api(&set.namespace().unwrap_or_default());
        let listed = match templates(set) {
            [] => Vec::new(),
            _ => api.list(&Default::default()).await?.items,
        };
        let there = listed.into_iter().map(|claim| (claim.name_any(), claim)).collect();
        Ok(Self { set, api, there })
    }

    /// Makes the claims of a Pod that are missing.
    pub(super) async fn make(&self, pod: &str) -> Result<(), kube::Error> {
        for template in templates(self.set) {
            let name = claim_name(template, pod);
            if self.there.contains_key(&name) {
                continue;
            }
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(self.set.spec.selector.match_labels.clone().unwrap_or_default());
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: self.set.namespace(),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    owner_references: self.owner(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            match self.api.create(&PostParams::default(), &claim).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Brings the owners of a Pod's claims in line with the retention policy.
    pub(super) async fn keep(&self, pod: &Pod) -> Result<(), kube::Error> {
        let set = self.set.uid();
        for claim in self.of_pod(pod) {
            let owned = claim.owner_references().iter().any(|owner| Some(&owner.uid) == set.as_ref());
            let wanted = self.owner();
            if owned != wanted.is_some() && pod.metadata.deletion_timestamp.is_none() {
                self.set_owners(claim, wanted).await?;
            }
        }
        Ok(())
    }

    /// Ties the claims of a Pod that is not wanted any longer to that Pod, if they are to go with it.
    pub(super) async fn give_up(&self, pod: &Pod) -> Result<(), kube::Error> {
        if policy(self.set, |policy| policy.when_scaled.as_deref()) != "Delete" {
            return Ok(());
        }
        for claim in self.of_pod(pod) {
            self.set_owners(claim, Some(vec![not_controlling(ownership::reference(pod))])).await?;
        }
        Ok(())
    }

    fn of_pod(&self, pod: &Pod) -> impl Iterator<Item = &PersistentVolumeClaim> {
        let name = pod.name_any();
        templates(self.set).iter().filter_map(move |template| self.there.get(&claim_name(template, &name)))
    }

    fn owner(&self) -> Option<Vec<OwnerReference>> {
        let deleted = policy(self.set, |policy| policy.when_deleted.as_deref()) == "Delete";
        deleted.then(|| vec![not_controlling(ownership::reference(self.set))])
    }

    async fn set_owners(
        &self,
        claim: &PersistentVolumeClaim,
        owners: Option<Vec<OwnerReference>>,
    ) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {"uid": claim.uid(), "ownerReferences": owners.unwrap_or_default()}});
        self.api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())
    }
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.volume_claim_templates.as_deref().unwrap_or_default()
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

fn policy<'s>(
    set: &'s StatefulSet,
    field: impl Fn(
        &'s maille_config::k8s::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy,
    ) -> Option<&'s str>,
) -> &'s str {
    set.spec.persistent_volume_claim_retention_policy.as_ref().and_then(field).unwrap_or("Retain")
}

/// People may hold a claim up without holding up its owner.
fn not_controlling(reference: OwnerReference) -> OwnerReference {
    OwnerReference { controller: None, block_owner_deletion: None, ..reference }
}

/// Adds the volumes of a Pod's claims to its spec, in place of others of the same name.
pub(super) fn mount(set: &StatefulSet, pod: &str, spec: &mut PodSpec) {
    if templates(set).is_empty() {
        return;
    }
    let mut volumes = spec.volumes.take().unwrap_or_default();
    for template in templates(set) {
        let name = template.name_any();
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume {
            name,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, pod),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    spec.volumes = Some(volumes);
}

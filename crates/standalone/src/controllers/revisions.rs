//! ControllerRevisions: the templates that a StatefulSet or DaemonSet had, numbered, for updates that stop half way
//! and for `kubectl rollout history` and `undo`.
//!
//! Source: Kubernetes pkg/controller/history, pkg/controller/statefulset/stateful_set_utils.go.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use maille_config::k8s::RawExtension;
use maille_config::k8s::api::apps::v1::ControllerRevision;
use maille_config::k8s::api::core::v1::PodTemplateSpec;
use maille_config::k8s::meta::ObjectMeta;
use serde_json::{Value, json};

use super::deployment::template_hash;
use super::{Desk, is_not_found, ownership};

/// The label of Pods that names the revision they were made of.
pub(super) const REVISION_HASH: &str = "controller-revision-hash";
/// The label of a revision that holds its hash.
const HASH: &str = "controller.kubernetes.io/hash";

/// The revisions of one owner.
pub(super) struct History {
    api: Api<ControllerRevision>,
    /// By number, oldest first.
    revisions: Vec<ControllerRevision>,
}

impl History {
    pub(super) async fn of(desk: &Desk, namespace: &str, uid: &str) -> Result<Self, kube::Error> {
        let api: Api<ControllerRevision> = desk.api(namespace);
        let mut revisions = api.list(&ListParams::default()).await?.items;
        revisions.retain(|revision| ownership::is_controlled_by(revision, uid));
        revisions.sort_by_key(|revision| (number(revision), revision.name_any()));
        Ok(Self { api, revisions })
    }

    /// The revision of this template, made or brought to the newest number.
    pub(super) async fn current<K>(
        &mut self,
        owner: &K,
        template: &PodTemplateSpec,
    ) -> Result<ControllerRevision, kube::Error>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let hash = template_hash(template);
        let latest = self.revisions.last().map_or(0, number);
        let there = self.revisions.iter().position(|revision| hash_of(revision) == hash);
        let revision = match there.map(|index| self.revisions.remove(index)) {
            Some(revision) if number(&revision) == latest => revision,
            Some(revision) => {
                let patch = json!({ "revision": latest + 1 });
                self.api.patch(&revision.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?
            }
            None => {
                let revision = new_revision(owner, template, &hash, latest + 1);
                self.api.create(&PostParams::default(), &revision).await?
            }
        };
        self.revisions.push(revision.clone());
        Ok(revision)
    }

    /// The revision of this name.
    pub(super) fn named(&self, name: &str) -> Option<&ControllerRevision> {
        self.revisions.iter().find(|revision| revision.name_any() == name)
    }

    /// Removes what is not in use beyond the limit, oldest first.
    pub(super) async fn forget(
        &self,
        used: &BTreeSet<String>,
        limit: Option<i32>,
    ) -> Result<(), kube::Error> {
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let unused: Vec<_> =
            self.revisions.iter().map(ResourceExt::name_any).filter(|name| !used.contains(name)).collect();
        for name in unused.iter().take(unused.len().saturating_sub(limit)) {
            match self.api.delete(name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// The hash in a revision's label.
pub(super) fn hash_of(revision: &ControllerRevision) -> &str {
    revision.labels().get(HASH).map_or("", String::as_str)
}

/// The template that a revision holds.
pub(super) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.pointer("/spec/template")?.clone();
    if let Value::Object(template) = &mut template {
        template.shift_remove("$patch");
    }
    serde_json::from_value(template).ok()
}

fn new_revision<K>(owner: &K, template: &PodTemplateSpec, hash: &str, number: i64) -> ControllerRevision
where
    K: kube::Resource<DynamicType = ()>,
{
    let mut labels: BTreeMap<String, String> =
        template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    // kubectl sends what is in here as a strategic merge patch, to go back to it.
    let mut data = json!({ "spec": { "template": template } });
    if let Some(Value::Object(template)) = data.pointer_mut("/spec/template") {
        template.insert("$patch".to_owned(), "replace".into());
    }
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name_any())),
            namespace: owner.namespace(),
            labels: Some(labels),
            // People write the cause of a change here, and the history shows it.
            annotations: owner
                .annotations()
                .get("kubernetes.io/change-cause")
                .map(|cause| BTreeMap::from([("kubernetes.io/change-cause".to_owned(), cause.clone())])),
            owner_references: Some(vec![ownership::reference(owner)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data),
        revision: Some(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maille_config::k8s::api::apps::v1::StatefulSet;

    #[test]
    fn a_revision_gives_back_the_template_it_was_made_of() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "a", "uid": "u"},
            "spec": {"selector": {}, "serviceName": "db", "template": {"metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "db", "image": "x"}]}}},
        }))
        .expect("a StatefulSet");
        let template = &set.spec.template;
        let hash = template_hash(template);
        let revision = new_revision(&set, template, &hash, 3);
        assert_eq!(template_of(&revision).as_ref(), Some(template));
        assert_eq!((hash_of(&revision), revision.name_any()), (hash.as_str(), format!("db-{hash}")));
        assert_eq!(revision.data.0["spec"]["template"]["$patch"], "replace");
        assert!(ownership::is_controlled_by(&revision, "u"));
    }
}

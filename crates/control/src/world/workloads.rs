//! WorkloadEntries, and what ServiceEntries and Services select of them and of Pods (reference mtls 4.1, SE-14).

use std::sync::Arc;

use maille_config::istio::{self, ServiceEntry, WorkloadEntrySpec};
use maille_config::service_entry::namespace_of;
use maille_core::{Labels, NamespacedName};

use super::changes::{ChangeSet, Key};
use super::{Pod, Service, World, in_namespace};

/// A workload outside of the cluster's Pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Namespace and name.
    pub name: NamespacedName,
    /// What it is; its labels with those of the object, which go first as in Istio.
    pub spec: WorkloadEntrySpec,
}

/// What a selector found.
#[derive(Debug, Clone, Copy)]
pub enum Selected<'w> {
    /// A WorkloadEntry.
    Entry(&'w WorkloadEntry),
    /// A Pod, ready or not.
    Pod(&'w Pod),
}

/// Whether an entry selects a workload of its namespace. No labels select nothing (istio pkg/config/labels, `Match`).
pub(super) fn selects(entry: &ServiceEntry, labels: &Labels) -> bool {
    let selector = entry.spec.workload_selector.as_ref().filter(|selector| !selector.labels.is_empty());
    selector.is_some_and(|s| s.labels.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

impl World {
    /// The WorkloadEntries of one namespace.
    pub fn workload_entries_in<'w>(
        &'w self,
        namespace: &'w str,
    ) -> impl Iterator<Item = &'w Arc<WorkloadEntry>> {
        in_namespace(&self.workload_entries, namespace)
    }

    /// The WorkloadEntries that a Service selects, in the order of their names. Istio takes them for endpoints of
    /// Services as it takes Pods (`PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES`, on by default).
    pub fn workload_entries_of<'w>(
        &'w self,
        service: &'w Service,
    ) -> impl Iterator<Item = &'w Arc<WorkloadEntry>> {
        let selector = service.selector.as_ref().filter(|selector| !selector.is_empty());
        let all = selector.map(|selector| {
            let own = self.workload_entries_in(&service.name.namespace);
            own.filter(move |entry| selector.selects(&entry.spec.labels))
        });
        all.into_iter().flatten()
    }

    /// What a ServiceEntry selects, in the order of names.
    pub fn selected_by<'w>(&'w self, entry: &'w ServiceEntry) -> impl Iterator<Item = Selected<'w>> {
        let namespace = entry.spec.workload_selector.as_ref().map(|_| namespace_of(entry));
        let entries = namespace.into_iter().flat_map(|namespace| self.workload_entries_in(namespace));
        let entries = entries.filter(|found| selects(entry, &found.spec.labels));
        let pods = namespace.into_iter().flat_map(|namespace| self.pods_in(namespace));
        let pods = pods.filter(|pod| selects(entry, &pod.labels));
        entries.map(|found| Selected::Entry(found)).chain(pods.map(|pod| Selected::Pod(pod)))
    }

    /// The ServiceEntries that select a Pod.
    pub fn entries_selecting<'w>(&'w self, pod: &'w Pod) -> impl Iterator<Item = &'w Arc<ServiceEntry>> {
        self.entries_in(&pod.name.namespace).filter(|entry| selects(entry, &pod.labels))
    }

    /// A workload of these labels changed: so does what selects it.
    pub(super) fn touch_entries_selecting(&self, namespace: &str, labels: &Labels, changes: &mut ChangeSet) {
        for entry in self.entries_in(namespace).filter(|entry| selects(entry, labels)) {
            self.touch_entry(entry, changes);
        }
    }

    /// The Pods that an entry selects learn its ports.
    pub(super) fn touch_selected_pods(&self, entry: &ServiceEntry, changes: &mut ChangeSet) {
        if entry.spec.workload_selector.is_none() {
            return;
        }
        for pod in self.pods_in(namespace_of(entry)).filter(|pod| selects(entry, &pod.labels)) {
            changes.add(Key::Workload(pod.name.clone()));
        }
    }

    pub(super) fn set_workload_entry(
        &mut self,
        name: &NamespacedName,
        new: Option<istio::WorkloadEntry>,
        changes: &mut ChangeSet,
    ) {
        let new = new.map(|object| {
            let mut spec = object.spec;
            spec.labels.extend(object.metadata.labels.unwrap_or_default());
            Arc::new(WorkloadEntry { name: name.clone(), spec })
        });
        let old = self.workload_entries.get(name).cloned();
        if old == new {
            return;
        }
        let entries = Arc::make_mut(&mut self.workload_entries);
        match &new {
            Some(entry) => entries.insert(name.clone(), Arc::clone(entry)),
            None => entries.remove(name),
        };
        for entry in [old, new].into_iter().flatten() {
            let labels = &entry.spec.labels;
            self.touch_entries_selecting(&name.namespace, labels, changes);
            let selecting = |service: &&Arc<Service>| {
                service.selector.as_ref().is_some_and(|s| !s.is_empty() && s.selects(labels))
            };
            let services = self.services_in(&name.namespace).filter(selecting);
            let services: Vec<_> = services.map(|service| service.name.clone()).collect();
            for service in services {
                self.touch_service(&service, changes);
                self.touch_endpoints(&service, false, changes);
            }
        }
    }
}

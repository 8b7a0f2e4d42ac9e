//! Services of type ExternalName: other names of something else.
//!
//! As in Istio (`pilot/pkg/model`, `resolveServiceAliases`), another name of a service of the mesh is that service; of
//! anything else it is a host outside of the mesh.

use std::sync::Arc;

use maille_config::HostPattern;
use maille_core::NamespacedName;

use super::changes::{ChangeSet, Key};
use super::names::service_named;
use super::{Asked, OwnedHost, Service, Sight, World};

/// Names of names that are followed.
const MAX_HOPS: usize = 8;

/// What a service of type ExternalName is.
pub(crate) enum Alias<'w> {
    /// A service of the cluster.
    Service(&'w Arc<Service>),
    /// A host of a ServiceEntry.
    Entry(OwnedHost<'w>),
    /// A host outside of the mesh.
    External(&'w str),
    /// Nothing, for this client: something hidden, or names that lead in a circle.
    Nothing,
}

impl World {
    /// Full name of a service.
    pub(crate) fn full_name(&self, name: &NamespacedName) -> HostPattern {
        HostPattern::new(&format!("{}.{}.svc.{}", name.name, name.namespace, self.config.cluster_domain))
    }

    /// What is behind another name, as a client sees it.
    pub(crate) fn behind_alias<'w>(&'w self, target: &'w str, sight: &Sight<'_>) -> Alias<'w> {
        let domain = &self.config.cluster_domain;
        let mut target = target;
        for _ in 0..MAX_HOPS {
            let service = service_named(target, None, domain).and_then(|name| self.service(&name));
            if let Some(service) = service {
                if !sight.sees_service(service, &HostPattern::new(target)) {
                    return Alias::Nothing;
                }
                match &service.external_name {
                    Some(next) => target = next,
                    None => return Alias::Service(service),
                }
                continue;
            }
            let entry = match Asked::read(target, sight.client.namespace, domain) {
                Asked::Host(host) => self.entry_for(&host, sight),
                Asked::Address(_) | Asked::Port(_) | Asked::Nothing => None,
            };
            return entry.map_or(Alias::External(target), Alias::Entry);
        }
        Alias::Nothing
    }

    pub(super) fn note_alias(&mut self, name: &NamespacedName, old: Option<&Service>, new: Option<&Service>) {
        let target = |service: Option<&Service>| {
            service.and_then(|s| s.external_name.as_ref()).map(|host| HostPattern::new(host))
        };
        let (old, new) = (target(old), target(new));
        if old == new {
            return;
        }
        let aliases = Arc::make_mut(&mut self.aliases);
        if let Some(old) = old {
            super::event::remove_from(aliases, &old, name);
        }
        if let Some(new) = new {
            aliases.entry(new).or_default().insert(name.clone());
        }
    }

    /// What is behind a host changed, and so what is behind its other names.
    pub(super) fn touch_aliases(&self, host: &HostPattern, changes: &mut ChangeSet) {
        let mut hosts = vec![host.clone()];
        while let Some(host) = hosts.pop() {
            let exact = self.aliases.get(&host).into_iter();
            let wildcards =
                self.aliases.iter().filter(|(target, _)| host.suffix().is_some() && host.covers(target));
            for name in exact.chain(wildcards.map(|(_, names)| names)).flatten() {
                if changes.add(Key::Service(name.clone())) {
                    hosts.push(self.full_name(name));
                }
            }
        }
    }
}

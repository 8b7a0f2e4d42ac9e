//! Sidecars in the world: which services a client may know (reference mtls 4.3). A service that a Sidecar or `exportTo`
//! hides is unknown to the client.

use std::collections::BTreeMap;
use std::sync::Arc;

use maille_config::destination_rule::Client;
use maille_config::istio::{self, ConnectionPoolSettings, OutboundMode};
use maille_config::sidecar::{EgressScope, in_force, outbound_mode};
use maille_config::{HostPattern, exported_to};
use maille_core::{Labels, NamespacedName};

use super::changes::{ChangeSet, Key};
use super::{Service, World};

/// A Sidecar, with what it lets workloads of its own namespace see.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sidecar {
    object: istio::Sidecar,
    egress: Option<Arc<EgressScope>>,
}

impl Sidecar {
    fn of(object: istio::Sidecar, namespace: &str) -> Self {
        let egress = EgressScope::of(&object.spec, namespace).map(Arc::new);
        Self { object, egress }
    }
}

/// What one client may know of the registry.
#[derive(Debug, Clone)]
pub struct Sight<'w> {
    /// Who asks.
    pub client: Client<'w>,
    egress: Option<Arc<EgressScope>>,
}

impl Sight<'_> {
    /// Whether the Sidecar in force lets the client see a host of a namespace. `exportTo` is looked at elsewhere.
    pub fn sees(&self, namespace: &str, host: &HostPattern) -> bool {
        self.egress.as_ref().is_none_or(|egress| egress.sees(namespace, host))
    }

    /// Whether the client sees a Service of this full name.
    pub fn sees_service(&self, service: &Service, host: &HostPattern) -> bool {
        let namespace = &service.name.namespace;
        exported_to(&service.export_to, namespace, self.client.namespace) && self.sees(namespace, host)
    }

    pub(super) fn into_egress(self) -> Option<Arc<EgressScope>> {
        self.egress
    }
}

impl World {
    /// The Sidecar in force for a workload.
    fn sidecar_for(&self, namespace: &str, labels: &Labels) -> Option<&istio::Sidecar> {
        if self.sidecars.is_empty() {
            return None;
        }
        let root = self.config.root_namespace.as_str();
        let places = [namespace, root].into_iter().take(if namespace == root { 1 } else { 2 });
        let all = places.filter_map(|place| self.sidecars.get(place)).flat_map(BTreeMap::values);
        in_force(all.map(|sidecar| &sidecar.object), root, namespace, labels)
    }

    /// What a client may know.
    pub fn sight_of<'w>(&self, client: Client<'w>) -> Sight<'w> {
        let egress = self.sidecar_for(client.namespace, client.labels).and_then(|sidecar| {
            let own = self
                .sidecars
                .get(client.namespace)
                .and_then(|all| all.get(sidecar.metadata.name.as_deref()?));
            match own.filter(|own| std::ptr::eq(&own.object, sidecar)) {
                Some(own) => own.egress.clone(),
                // The root namespace's: `.` is the client's namespace.
                None => EgressScope::of(&sidecar.spec, client.namespace).map(Arc::new),
            }
        });
        Sight { client, egress }
    }

    /// Whether unknown destinations are refused to a client.
    pub fn registry_only_for(&self, client: Client<'_>) -> bool {
        let sidecar = self.sidecar_for(client.namespace, client.labels);
        match sidecar.and_then(|sidecar| outbound_mode(&sidecar.spec)) {
            Some(mode) => mode == OutboundMode::RegistryOnly,
            None => self.config.registry_only,
        }
    }

    /// The limits that a workload keeps to as a server, if a Sidecar says any.
    pub fn inbound_connection_pool_of(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> Option<&ConnectionPoolSettings> {
        self.sidecar_for(namespace, labels)?.spec.inbound_connection_pool.as_ref()
    }

    /// Whether some client may see less than another for another reason than a ServiceEntry's `exportTo`.
    pub(super) fn hides_services(&self) -> bool {
        !self.sidecars.is_empty() || !self.exporting.is_empty()
    }

    pub(super) fn set_sidecar(
        &mut self,
        name: NamespacedName,
        new: Option<istio::Sidecar>,
        changes: &mut ChangeSet,
    ) {
        let new = new.map(|sidecar| Arc::new(Sidecar::of(sidecar, &name.namespace)));
        let old = self.sidecars.get(&name.namespace).and_then(|all| all.get(&name.name));
        if old == new.as_ref() {
            return;
        }
        changes.add(Key::Sidecars(name.namespace.clone()));
        let limits = |sidecar: Option<&Arc<Sidecar>>| {
            sidecar.is_some_and(|s| s.object.spec.inbound_connection_pool.is_some())
        };
        if limits(old) || limits(new.as_ref()) {
            // In the root namespace they can be everybody's.
            let in_root = name.namespace == self.config.root_namespace;
            let pods = self.pods.keys().filter(|pod| in_root || pod.namespace == name.namespace);
            for pod in pods {
                changes.add(Key::Workload(pod.clone()));
            }
        }
        super::event::put(Arc::make_mut(&mut self.sidecars), name, new);
    }
}

#[cfg(test)]
mod tests {
    use maille_core::TrustDomain;
    use serde_json::{Value, json};

    use super::*;
    use crate::world::{Change, Event, MeshConfig};

    fn world(sidecars: &[(&str, &str, Value)]) -> World {
        let mut world = World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid")));
        for (age, (namespace, name, spec)) in sidecars.iter().enumerate() {
            let created = format!("2026-01-01T00:00:{age:02}Z");
            let object = json!({
                "metadata": {"namespace": namespace, "name": name, "creationTimestamp": created}, "spec": spec,
            });
            let sidecar: istio::Sidecar = serde_json::from_value(object).expect("a Sidecar");
            world.apply(Event::Sidecar(Change::Put(sidecar)), &mut ChangeSet::default());
        }
        world
    }

    fn egress(hosts: &[&str]) -> Value {
        json!({"egress": [{"hosts": hosts}]})
    }

    fn selecting(app: &str, hosts: &[&str]) -> Value {
        json!({"workloadSelector": {"labels": {"app": app}}, "egress": [{"hosts": hosts}]})
    }

    fn sees(world: &World, client: (&str, &str), service: (&str, &str)) -> bool {
        let labels = [("app".to_owned(), client.1.to_owned())].into();
        let sight = world.sight_of(Client { namespace: client.0, labels: &labels });
        sight.sees(service.0, &HostPattern::new(service.1))
    }

    #[test]
    fn the_selecting_sidecar_goes_before_the_namespaces_and_that_before_the_meshs() {
        let host = |name: &str| format!("{name}.corp");
        let only = |name: &str| egress(&[&format!("*/{}", host(name))]);
        let world = world(&[
            ("istio-system", "default", only("mesh")),
            ("istio-system", "picky", selecting("web", &["*/picky.corp"])),
            ("shop", "default", only("shop")),
            ("shop", "later", only("later")),
            ("shop", "web", selecting("web", &["*/web.corp"])),
            ("shop", "later-web", selecting("web", &["*/later-web.corp"])),
        ]);
        for (client, expected) in [
            (("shop", "web"), "web"),
            (("shop", "cart"), "shop"),
            (("bank", "web"), "mesh"),
            (("istio-system", "web"), "picky"),
        ] {
            for name in ["mesh", "picky", "shop", "later", "web", "later-web"] {
                assert_eq!(
                    sees(&world, client, ("corp", &host(name))),
                    name == expected,
                    "{client:?}: {name}"
                );
            }
        }
    }

    #[test]
    fn a_sidecar_without_egress_hides_nothing_and_may_still_refuse_the_unknown() {
        let strict = json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}});
        let world = world(&[("shop", "default", strict), ("bank", "default", json!({}))]);
        assert!(sees(&world, ("shop", "web"), ("far", "x.corp")));
        let labels = Labels::new();
        let only = |namespace| world.registry_only_for(Client { namespace, labels: &labels });
        assert!(only("shop") && !only("bank") && !only("other"));
    }
}

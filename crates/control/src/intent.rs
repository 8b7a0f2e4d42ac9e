//! What a proxy should hold by the world as it is now: `GET /facts?proxy=NAMESPACE/POD&destinations=NAME,…` of the
//! monitoring port, which `proxy-status POD` compares with what the proxy says it holds.
//!
//! The answer is a `ConfigDump` in protobuf's JSON, as the proxy's own admin port writes it, with `workload`, `facts`
//! and `held`. Destinations are on demand, hence asked for by name.

use std::collections::BTreeSet;

use maille_config::destination_rule::Client;
use maille_core::NamespacedName;
use maille_proto::facts as wire;
use maille_xds::Resource;
use maille_xds::type_urls::{
    AUTHORIZATION, DESTINATION, INBOUND, MESH_SETTINGS, REQUEST_AUTHENTICATION, REVOCATIONS, TRUST_BUNDLE,
};
use prost::Message;
use serde::Deserialize;

use crate::facts::{REVOCATIONS_NAME, SETTINGS_NAME};
use crate::hub::Snapshot;
use crate::world::Asked;

/// Destinations of one question.
const MAX_DESTINATIONS: usize = 1024;

/// Whose facts.
#[derive(Debug, Deserialize)]
pub(crate) struct FactsQuery {
    /// `<namespace>/<pod>`.
    proxy: String,
    /// Names with commas between.
    #[serde(default)]
    destinations: String,
}

impl FactsQuery {
    /// The answer; the error is text for people.
    pub(crate) fn run(&self, snapshot: &Snapshot) -> Result<wire::ConfigDump, String> {
        let unknown = || format!("'{}' is no Pod of this mesh; write NAMESPACE/POD", self.proxy);
        let (namespace, name) = self.proxy.split_once('/').ok_or_else(unknown)?;
        let own = NamespacedName::new(namespace.to_owned(), name.to_owned());
        let world = &snapshot.world;
        let pod = world.pod(&own).ok_or_else(unknown)?;
        let config = world.config();
        let names: BTreeSet<&str> = self.destinations.split(',').filter(|name| !name.is_empty()).collect();
        if names.len() > MAX_DESTINATIONS {
            return Err(format!(
                "{} destinations are too many: at most {MAX_DESTINATIONS} at a time",
                names.len()
            ));
        }

        let mut dump = wire::ConfigDump { workload: self.proxy.clone(), ..Default::default() };
        let mut facts = wire::FactsInForce::default();
        for policy in world.policies_for(&own) {
            let resource = policy.fact().resource(policy.resource_name());
            facts.authorizations.push(taken(&mut dump, AUTHORIZATION, &resource)?);
        }
        for found in world.authentications_for(&own) {
            let resource = found.fact().resource(found.resource_name());
            facts.request_authentications.push(taken(&mut dump, REQUEST_AUTHENTICATION, &resource)?);
        }
        for name in names {
            let client = Client { namespace: &own.namespace, labels: &pod.labels };
            let asked = Asked::read(name, &own.namespace, &config.cluster_domain);
            let resource = snapshot.destination(&asked, client).resource(name);
            let destination = Some(taken(&mut dump, DESTINATION, &resource)?);
            facts.destinations.push(wire::NamedDestination {
                name: name.to_owned(),
                destination,
                ..Default::default()
            });
        }
        if let Some(inbound) = snapshot.inbound(&own) {
            facts.inbound = Some(taken(&mut dump, INBOUND, &inbound.resource(self.proxy.clone()))?);
        }
        let client = Client { namespace: &own.namespace, labels: &pod.labels };
        let settings = snapshot.settings(client).resource(SETTINGS_NAME);
        facts.mesh_settings = Some(taken(&mut dump, MESH_SETTINGS, &settings)?);
        for domain in world.trust_domains() {
            if let Some(bundle) = snapshot.trust_bundle(domain) {
                facts.trust_bundles.push(taken(&mut dump, TRUST_BUNDLE, &bundle.resource(domain.clone()))?);
            }
        }
        if let Some(fact) = snapshot.revocations() {
            let resource = fact.resource(REVOCATIONS_NAME);
            facts.revocations = Some(taken(&mut dump, REVOCATIONS, &resource)?);
        }
        dump.facts = Some(facts);
        Ok(dump)
    }
}

/// Notes a resource as held, and reads it.
fn taken<M: Message + Default>(
    dump: &mut wire::ConfigDump,
    type_url: &str,
    resource: &Resource,
) -> Result<M, String> {
    dump.held.push(wire::HeldResource {
        r#type: type_url.rsplit('.').next().unwrap_or_default().to_owned(),
        name: resource.name.clone(),
        version: resource.version.clone(),
        ..Default::default()
    });
    M::decode(resource.body.value.as_slice()).map_err(|error| format!("a fact cannot be read back: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;
    use crate::world::{Change, Event, MeshConfig, Pod, World};
    use maille_core::TrustDomain;

    fn snapshot() -> std::sync::Arc<Snapshot> {
        let mut world = World::new(MeshConfig::new(TrustDomain::parse("cluster.local").expect("valid")));
        let pod = Pod {
            name: NamespacedName::new("shop", "cart-1"),
            uid: "1".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            labels: Default::default(),
            service_account: "cart".into(),
            workload_name: "cart".into(),
            meshed: true,
            terminating: false,
            named_ports: Vec::new(),
            scrape: None,
            multiplexes: false,
            node: "node-1".into(),
            ready: true,
        };
        world.apply(Event::Pod(Change::Put(pod)), &mut Default::default());
        Hub::new(world).snapshot()
    }

    fn query(proxy: &str, destinations: &str) -> FactsQuery {
        FactsQuery { proxy: proxy.into(), destinations: destinations.into() }
    }

    #[test]
    fn a_proxy_is_meant_to_hold_its_own_facts_and_what_it_asked_for() {
        let dump = query("shop/cart-1", "10.0.0.9,nobody.example.com").run(&snapshot()).expect("known");
        let held: Vec<_> = dump.held.iter().map(|one| (one.r#type.as_str(), one.name.as_str())).collect();
        assert_eq!(
            held,
            [
                ("Destination", "10.0.0.9"),
                ("Destination", "nobody.example.com"),
                ("Inbound", "shop/cart-1"),
                ("MeshSettings", "mesh"),
            ]
        );
        assert!(dump.held.iter().all(|one| !one.version.is_empty()));
        assert_eq!(dump.facts.expect("facts").destinations.len(), 2);
    }

    #[test]
    fn nobody_else_and_not_too_much() {
        for (proxy, destinations, named) in [
            ("shop/other", String::new(), "shop/other"),
            ("cart-1", String::new(), "NAMESPACE/POD"),
            ("shop/cart-1", (0..2000).map(|n| format!("h{n},")).collect(), "too many"),
        ] {
            let error = query(proxy, &destinations).run(&snapshot()).expect_err(proxy);
            assert!(error.contains(named), "{error}");
        }
    }
}

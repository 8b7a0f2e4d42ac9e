//! What a port means of addresses that say nothing of themselves (reference mtls 4.1, 4.3): what Istio's listener on
//! 0.0.0.0 catches (istio pilot/pkg/networking/core/listener.go).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use maille_config::HostPattern;
use maille_config::istio::{Resolution, ServiceEntry};
use maille_config::service_entry::{PortClass, in_order, valid_port};
use maille_core::{NamespacedName, PortProtocol};

use super::changes::ChangeSet;
use super::names::{AskedPort, service_named};
use super::{OwnedHost, Service, Sight, World, allocation, external};

/// Who declares a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Services of the cluster that declare HTTP.
    services: BTreeMap<u16, BTreeSet<NamespacedName>>,
    entries: BTreeMap<u16, BTreeSet<NamespacedName>>,
}

/// What connections to a port mean whose address is nobody's, or not at this port.
#[derive(Debug, Default)]
pub struct AnyAddress<'w> {
    /// Somebody takes requests there, which say whom they are for.
    pub http: bool,
    /// An entry without addresses takes TLS there, whose server names say it.
    pub tls: bool,
    /// All entries that take TLS there; plain requests, too, where a rule has them encrypted.
    pub encrypted: Vec<OwnedHost<'w>>,
    /// The entry that all other bytes are for.
    pub entry: Option<OwnedHost<'w>>,
}

/// A port of an entry, as one client sees it.
struct Declared<'w> {
    owned: OwnedHost<'w>,
    entry: &'w ServiceEntry,
    class: PortClass,
    /// Of a protocol whose server speaks first: nothing that waits for the caller is to be on its port.
    is_alone: bool,
}

impl Declared<'_> {
    fn says_no_address(&self) -> bool {
        self.entry.spec.addresses.is_empty()
    }

    /// Whether nothing but the port tells its opaque connections from others (SE-11, SE-17).
    fn is_known_by_port(&self, is_given_addresses: bool) -> bool {
        let spec = &self.entry.spec;
        let is_opaque = matches!(self.class, PortClass::Tcp | PortClass::Auto);
        // With NONE, what is selected is known by its own addresses; with DYNAMIC_DNS there is no name to look up.
        let is_reached = spec.resolution != Resolution::DynamicDns
            && (spec.resolution != Resolution::None || spec.workload_selector.is_none());
        let host = self.owned.host.as_str();
        let is_given =
            || is_given_addresses && allocation::in_force(self.entry).iter().any(|(h, _)| *h == host);
        is_opaque && is_reached && self.says_no_address() && !is_given()
    }

    fn is_known_by_server_name(&self) -> bool {
        self.class == PortClass::Tls && self.says_no_address()
    }

    /// Whether requests to any address are looked at. A port of no protocol has a listener for each of its addresses,
    /// unless they are blocks.
    fn takes_http(&self) -> bool {
        let addresses = &self.entry.spec.addresses;
        match self.class {
            PortClass::Http | PortClass::Http2 => true,
            PortClass::Auto => addresses.is_empty() || addresses.iter().any(|a| a.contains('/')),
            PortClass::Tcp | PortClass::Tls => false,
        }
    }
}

impl World {
    /// Whether somebody declares a port in a way that may concern all addresses.
    pub fn is_declared(&self, number: u16) -> bool {
        self.ports.services.contains_key(&number) || self.ports.entries.contains_key(&number)
    }

    /// What a port means of addresses that say nothing of themselves, as a client sees it. Of several entries that are
    /// known by nothing else the first counts (SE-12).
    pub fn any_address<'w>(&'w self, asked: AskedPort, sight: &Sight<'_>) -> AnyAddress<'w> {
        let names = self.ports.entries.get(&asked.number).into_iter().flatten();
        let entries = names.filter_map(|name| self.entries.get(name)).map(Arc::as_ref);
        let entries = in_order(entries, sight.client.namespace).into_iter();
        let mut declared: Vec<Declared<'w>> =
            entries.filter_map(|entry| self.declared(entry, asked.number, sight)).collect();
        let services = || {
            let names = self.ports.services.get(&asked.number).into_iter().flatten();
            let services = names.filter_map(|name| self.services.get(name));
            services.filter(|service| sight.sees_service(service, &self.full_name(&service.name)))
        };
        let by_port = |port: &Declared<'_>| port.is_known_by_port(asked.is_given_addresses);
        // SE-13: what comes later is not there.
        if let Some(index) = declared.iter().position(|port| port.is_alone && by_port(port)) {
            let catches =
                |port: &Declared<'_>| port.takes_http() || port.is_known_by_server_name() || by_port(port);
            let is_first = !declared.iter().take(index).any(catches);
            let alone = declared.remove(index);
            if is_first && services().all(|service| service.created_s > created_s(alone.entry)) {
                return AnyAddress { entry: Some(alone.owned), ..AnyAddress::default() };
            }
            declared.retain(|port| !port.is_alone);
        }
        let http = services().next().is_some() || declared.iter().any(Declared::takes_http);
        let tls = declared.iter().any(Declared::is_known_by_server_name);
        let entry = declared.iter().position(by_port).map(|index| declared.remove(index).owned);
        let encrypted = declared.into_iter().filter(|port| port.class == PortClass::Tls);
        AnyAddress { http, tls, encrypted: encrypted.map(|port| port.owned).collect(), entry }
    }

    /// A port of an entry, if some host of the entry is its own and the port is the entry's among those of the host.
    fn declared<'w>(
        &'w self,
        entry: &'w ServiceEntry,
        number: u16,
        sight: &Sight<'_>,
    ) -> Option<Declared<'w>> {
        let port_of = |entry: &'w ServiceEntry| {
            entry.spec.ports.iter().find(move |port| port.number == u32::from(number))
        };
        let port = port_of(entry)?;
        let class = PortClass::parse(&port.protocol)?;
        let mut hosts: Vec<HostPattern> = external::claimed_hosts(entry).collect();
        // As Istio orders the services that it makes of one entry.
        hosts.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        let owned = hosts.into_iter().find_map(|host| {
            let owned = self.owned_host(&host, sight)?;
            let first = owned.entries.iter().find(|entry| port_of(entry).is_some())?;
            std::ptr::eq(*first, entry).then_some(owned)
        })?;
        let is_alone = ["mysql", "mongo"].iter().any(|alone| port.protocol.eq_ignore_ascii_case(alone));
        Some(Declared { owned, entry, class, is_alone })
    }

    /// A host of ServiceEntries as a client sees it, unless it is a Service's (SE-2).
    fn owned_host<'w>(&'w self, host: &HostPattern, sight: &Sight<'_>) -> Option<OwnedHost<'w>> {
        let service = service_named(host.as_str(), None, &self.config.cluster_domain);
        let service = service.and_then(|name| self.services.get(&name));
        let is_services = service.is_some_and(|service| sight.sees_service(service, host));
        if is_services { None } else { self.entry_for_host(host.as_str(), false, sight) }
    }

    /// Takes note of the ports of a service, and of those where it makes a difference now.
    pub(super) fn note_ports_of_service(
        &mut self,
        name: &NamespacedName,
        old: Option<&Service>,
        new: Option<&Service>,
        changes: &mut ChangeSet,
    ) {
        let (before, after) = (http_ports(old), http_ports(new));
        let sight = |service: Option<&Service>| service.map(|s| (s.export_to.clone(), s.created_s));
        let is_seen_otherwise = sight(old) != sight(new);
        for number in before.union(&after) {
            if is_seen_otherwise || before.contains(number) != after.contains(number) {
                changes.add_port(*number);
            }
        }
        if before != after {
            let services = &mut Arc::make_mut(&mut self.ports).services;
            before.difference(&after).for_each(|port| super::event::remove_from(services, port, name));
            for port in after.difference(&before) {
                services.entry(*port).or_default().insert(name.clone());
            }
        }
        if old.is_some() != new.is_some() || is_seen_otherwise {
            // Its name may have been an entry's until now.
            self.touch_ports_of_host(&self.full_name(name), changes);
        }
    }

    /// Takes note of the ports of an entry.
    pub(super) fn note_ports_of_entry(
        &mut self,
        name: &NamespacedName,
        old: Option<&ServiceEntry>,
        new: Option<&ServiceEntry>,
    ) {
        let ports =
            |entry: Option<&ServiceEntry>| entry.into_iter().flat_map(ports_of).collect::<BTreeSet<_>>();
        let (before, after) = (ports(old), ports(new));
        if before == after {
            return;
        }
        let entries = &mut Arc::make_mut(&mut self.ports).entries;
        before.difference(&after).for_each(|port| super::event::remove_from(entries, port, name));
        for port in after.difference(&before) {
            entries.entry(*port).or_default().insert(name.clone());
        }
    }

    /// Whose a host is changed: so does what the ports mean of all who claim it.
    pub(super) fn touch_ports_of_host(&self, host: &HostPattern, changes: &mut ChangeSet) {
        for entry in self.claimants_of(host) {
            ports_of(entry).for_each(|port| changes.add_port(port));
        }
    }
}

/// The ports that an entry declares.
pub(super) fn ports_of(entry: &ServiceEntry) -> impl Iterator<Item = u16> {
    entry.spec.ports.iter().filter_map(|port| valid_port(port.number))
}

fn http_ports(service: Option<&Service>) -> BTreeSet<u16> {
    let ports = service.into_iter().flat_map(|service| &service.ports);
    let http = ports.filter(|port| matches!(port.protocol, PortProtocol::Http | PortProtocol::Http2));
    http.map(|port| port.number).collect()
}

fn created_s(entry: &ServiceEntry) -> i64 {
    entry.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second())
}

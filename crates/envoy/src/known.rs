//! A proxy's facts, put in order for the translations.

use std::collections::{BTreeMap, BTreeSet};

use maille_proto::facts as wire;
use wire::destination::Kind;

/// What a proxy knows of itself and of what its application called.
pub(crate) struct Known<'d> {
    pub(crate) dump: &'d wire::ConfigDump,
    pub(crate) facts: &'d wire::FactsInForce,
    /// By host name. A service may have been asked for by name and by address.
    pub(crate) services: BTreeMap<&'d str, &'d wire::Service>,
    /// What was found out of services whose endpoints are looked up by name, by host name.
    pub(crate) resolved: BTreeMap<&'d str, &'d [wire::Endpoint]>,
    /// Endpoints that are left out because they failed, by host name and port.
    ejections: BTreeMap<(&'d str, u32), BTreeSet<&'d str>>,
    /// Workloads called by their own address.
    pub(crate) workloads: Vec<&'d wire::DirectWorkload>,
    /// Whether a destination nobody knows is refused.
    pub(crate) registry_only: bool,
}

fn service_of(kind: &Kind) -> Option<&wire::Service> {
    match kind {
        Kind::Service(service) => Some(service),
        Kind::AnyAddress(any) => any.service.as_ref(),
        Kind::Workload(_) | Kind::Unknown(_) => None,
    }
}

impl<'d> Known<'d> {
    pub(crate) fn of(dump: &'d wire::ConfigDump, facts: &'d wire::FactsInForce) -> Self {
        let kinds = || facts.destinations.iter().filter_map(|d| d.destination.as_ref()?.kind.as_ref());
        let services = kinds().filter_map(service_of).map(|service| (service.hostname.as_str(), service));
        let resolved = facts.destinations.iter().filter(|d| !d.resolved.is_empty()).filter_map(|d| {
            let service = service_of(d.destination.as_ref()?.kind.as_ref()?)?;
            Some((service.hostname.as_str(), d.resolved.as_slice()))
        });
        let mut ejections: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for destination in &facts.destinations {
            let kind = destination.destination.as_ref().and_then(|d| d.kind.as_ref());
            let Some(service) = kind.and_then(service_of) else { continue };
            for ejection in &destination.ejections {
                let of_port = ejections.entry((service.hostname.as_str(), ejection.port)).or_default();
                of_port.insert(ejection.endpoint.as_str());
            }
        }
        let workloads = kinds().filter_map(|kind| match kind {
            Kind::Workload(workload) => Some(workload),
            Kind::Service(_) | Kind::Unknown(_) | Kind::AnyAddress(_) => None,
        });
        let policy = facts.mesh_settings.as_ref().map(wire::MeshSettings::outbound_policy);
        Self {
            dump,
            facts,
            services: services.collect(),
            resolved: resolved.collect(),
            ejections,
            workloads: workloads.collect(),
            registry_only: policy == Some(wire::mesh_settings::OutboundPolicy::RegistryOnly),
        }
    }

    /// Endpoints of a service port that are left out now, by `address:port` or path.
    pub(crate) fn ejected(&self, host: &str, port: u32) -> BTreeSet<&'d str> {
        self.ejections.get(&(host, port)).cloned().unwrap_or_default()
    }

    /// The own workload's ports that a Service declares or a mode names, each with its class and mode.
    pub(crate) fn own_ports(&self) -> Vec<OwnPort<'d>> {
        let Some(inbound) = &self.facts.inbound else { return Vec::new() };
        let mut ports: BTreeMap<u32, OwnPort<'d>> = BTreeMap::new();
        for declared in &inbound.ports {
            ports.entry(declared.port).or_insert_with(|| OwnPort {
                number: declared.port,
                protocol: declared.protocol(),
                mode: mode_of(inbound, declared.port),
                declared: Some(declared),
            });
        }
        for port in inbound.port_modes.keys() {
            ports.entry(*port).or_insert_with(|| OwnPort {
                number: *port,
                protocol: wire::Protocol::Auto,
                mode: mode_of(inbound, *port),
                declared: None,
            });
        }
        ports.into_values().collect()
    }

    /// The mode of all other ports.
    pub(crate) fn mode(&self) -> wire::MtlsMode {
        self.facts.inbound.as_ref().map_or(wire::MtlsMode::Strict, |inbound| known_mode(inbound.mode()))
    }
}

/// One port of the own workload.
pub(crate) struct OwnPort<'d> {
    pub(crate) number: u32,
    pub(crate) protocol: wire::Protocol,
    pub(crate) mode: wire::MtlsMode,
    /// The Service's port, if one declares it.
    pub(crate) declared: Option<&'d wire::InboundPort>,
}

fn mode_of(inbound: &wire::Inbound, port: u32) -> wire::MtlsMode {
    let own = inbound.port_modes.get(&port).and_then(|mode| wire::MtlsMode::try_from(*mode).ok());
    known_mode(own.unwrap_or(inbound.mode()))
}

/// As the proxy reads it: what is not known is STRICT.
fn known_mode(mode: wire::MtlsMode) -> wire::MtlsMode {
    match mode {
        wire::MtlsMode::Unspecified => wire::MtlsMode::Strict,
        known => known,
    }
}

//! ML0225, ML0226: settings of DestinationRules for ports that the host does not have, or that carry no requests.

use maille_config::HostPattern;
use maille_config::destination_rule::host_of;
use maille_config::istio::{ConnectionPoolSettings, DestinationRule, LoadBalancerSettings};
use maille_core::{CLUSTER_DOMAIN, PortProtocol};

use crate::code::{HTTP_SETTINGS_ON_TCP_PORT, PORT_SETTINGS_WITHOUT_PORT};
use crate::mesh::{Mesh, Service, ServicePort, Typed};
use crate::report::Report;

use super::names::list;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let pattern = host_of(&rule.object, CLUSTER_DOMAIN);
        let covered = |host: &str| pattern.covers(&HostPattern::new(host));
        let services: Vec<&Service<'_>> = mesh.services.iter().filter(|s| covered(&s.host())).collect();
        let of_services = services.iter().flat_map(|service| &service.ports).filter(|port| port.is_tcp());
        let mut known: Vec<u32> = of_services.map(|port| u32::from(port.number)).collect();
        for entry in &mesh.service_entries {
            if entry.object.spec.hosts.iter().any(|host| covered(host)) {
                known.extend(entry.object.spec.ports.iter().map(|port| port.number));
            }
        }
        ports(rule, known, report);
        for service in services {
            for port in service.ports.iter().filter(|port| port.protocol_class() == PortProtocol::Tcp) {
                requests(rule, service, port, report);
            }
        }
    }
}

/// Without any known port the host itself is not known, which is another finding.
fn ports(rule: &Typed<'_, DestinationRule>, mut known: Vec<u32>, report: &mut Report) {
    let Some(policy) = rule.object.spec.traffic_policy.as_ref().filter(|_| !known.is_empty()) else { return };
    known.sort_unstable();
    known.dedup();
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let Some(number) = settings.port.map(|port| port.number).filter(|number| !known.contains(number))
        else {
            continue;
        };
        let text = format!(
            "{} has no port {number}, so that its settings hold for nothing; it is the Service's port that counts: {}",
            rule.object.spec.host,
            list(&known)
        );
        let path = format!("spec.trafficPolicy.portLevelSettings[{index}].port.number");
        report.add(&PORT_SETTINGS_WITHOUT_PORT, rule.resource, &path, text);
    }
}

/// What of the settings that hold for a port of opaque bytes is about requests.
fn requests(
    rule: &Typed<'_, DestinationRule>,
    service: &Service<'_>,
    port: &ServicePort,
    report: &mut Report,
) {
    let Some(policy) = &rule.object.spec.traffic_policy else { return };
    let number = u32::from(port.number);
    let own = policy.port_level_settings.iter().enumerate();
    let own = own.into_iter().find(|(_, settings)| settings.port.is_some_and(|p| p.number == number));
    // What holds for all ports may be meant for the others.
    let Some((index, settings)) = own else { return };
    let path = format!("spec.trafficPolicy.portLevelSettings[{index}]");
    let about = [
        by_request(settings.load_balancer.as_ref()).then_some("loadBalancer.consistentHash"),
        of_http(settings.connection_pool.as_ref()).then_some("connectionPool.http"),
    ];
    for field in about.into_iter().flatten() {
        let text = format!(
            "{field} is about requests, and port {number} of {} carries opaque TCP: it has no effect there; hash by \
             useSourceIp and bound by connectionPool.tcp, or declare the port HTTP (name: http-…)",
            service.host()
        );
        report.add(&HTTP_SETTINGS_ON_TCP_PORT, rule.resource, &format!("{path}.{field}"), text);
    }
}

fn by_request(settings: Option<&LoadBalancerSettings>) -> bool {
    let hash = settings.and_then(|settings| settings.consistent_hash.as_ref());
    hash.is_some_and(|hash| !hash.use_source_ip)
}

fn of_http(settings: Option<&ConnectionPoolSettings>) -> bool {
    settings.is_some_and(|settings| settings.http.is_some() && settings.tcp.is_none())
}

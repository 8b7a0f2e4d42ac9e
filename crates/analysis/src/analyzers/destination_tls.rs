//! ML0203, ML0204: what DestinationRules tell clients to speak, against what the servers accept.

use maille_config::HostPattern;
use maille_config::destination_rule::host_of;
use maille_config::istio::{ClientTlsMode, DestinationRule};
use maille_core::{CLUSTER_DOMAIN, MtlsMode};

use crate::code::{DESTINATION_RULE_AGAINST_SERVER, ISTIO_MUTUAL_WITHOUT_SIDECAR, Level};
use crate::mesh::{Mesh, Service, ServicePort, Typed, Workload};
use crate::report::Report;

use super::names::workloads;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let pattern = host_of(&rule.object, CLUSTER_DOMAIN);
        let covered = |service: &&Service<'_>| pattern.covers(&HostPattern::new(&service.host()));
        for service in mesh.services.iter().filter(covered) {
            for port in service.ports.iter().filter(|port| port.is_tcp()) {
                if let Some((mode, path)) = mode_for(&rule.object, port.number) {
                    against(mesh, rule, mode, &path, service, port, report);
                }
            }
        }
    }
}

/// What the rule says of a service port: an entry for the port replaces everything above it (DR-8).
fn mode_for(rule: &DestinationRule, port: u16) -> Option<(ClientTlsMode, String)> {
    let policy = rule.spec.traffic_policy.as_ref()?;
    let own = policy.port_level_settings.iter().enumerate();
    let own = own.into_iter().find(|(_, p)| p.port.is_some_and(|p| p.number == u32::from(port)));
    match own {
        Some((index, settings)) => {
            let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls.mode");
            settings.tls.as_ref().map(|tls| (tls.mode, path))
        }
        None => policy.tls.as_ref().map(|tls| (tls.mode, "spec.trafficPolicy.tls.mode".to_owned())),
    }
}

fn against(
    mesh: &Mesh<'_>,
    rule: &Typed<'_, DestinationRule>,
    mode: ClientTlsMode,
    path: &str,
    service: &Service<'_>,
    port: &ServicePort,
    report: &mut Report,
) {
    let servers: Vec<(&Workload<'_>, Option<MtlsMode>)> = mesh
        .workloads
        .iter()
        .enumerate()
        .filter(|(_, workload)| service.selects(workload))
        .map(|(index, workload)| {
            let target = port.target_of(workload).filter(|_| workload.meshed);
            let modes = mesh.modes_of(index);
            (workload, target.and_then(|target| modes.map(|modes| modes.for_port(target))))
        })
        .collect();
    let with = |wanted: MtlsMode| {
        let found = servers.iter().filter(|(_, mode)| *mode == Some(wanted));
        found.map(|(workload, _)| *workload).collect::<Vec<_>>()
    };
    let place = format!("port {} of {}", port.number, service.host());
    let mut say = |text| report.add(&DESTINATION_RULE_AGAINST_SERVER, rule.resource, path, text);
    let strict = with(MtlsMode::Strict);
    match mode {
        ClientTlsMode::Disable if !strict.is_empty() => say(format!(
            "clients are told to speak plaintext to {place}, but mutual TLS only (STRICT) is accepted by {}: every \
             call fails; remove the tls block (mutual TLS is automatic), or write ISTIO_MUTUAL",
            workloads(strict)
        )),
        ClientTlsMode::Simple | ClientTlsMode::Mutual if !strict.is_empty() => say(format!(
            "clients are told to speak TLS without their mesh certificate to {place}, but mutual TLS of the mesh only \
             (STRICT) is accepted by {}: every call fails; remove the tls block, or write ISTIO_MUTUAL",
            workloads(strict)
        )),
        ClientTlsMode::IstioMutual => {
            let plaintext = with(MtlsMode::Disable);
            if !plaintext.is_empty() {
                say(format!(
                    "clients are told to speak mutual TLS to {place}, but plaintext only (DISABLE) is accepted by \
                     {}: every call fails; remove the tls block, which leaves the choice to each endpoint",
                    workloads(plaintext)
                ));
            }
            let naked: Vec<_> = servers.iter().filter(|(w, _)| !w.meshed).map(|(w, _)| *w).collect();
            if !naked.is_empty() {
                let all = naked.len() == servers.len();
                let text = format!(
                    "clients are told to speak mutual TLS to {place}, but {} {} no sidecar to understand it: {}; remove \
                     the tls block, which leaves the choice to each endpoint, or give them sidecars",
                    workloads(naked),
                    if all { "have" } else { "among its endpoints have" },
                    if all { "every call fails" } else { "calls to them fail" },
                );
                let level = if all { Level::Error } else { Level::Warning };
                report.add_as(level, &ISTIO_MUTUAL_WITHOUT_SIDECAR, rule.resource, path, text);
            }
        }
        ClientTlsMode::Disable | ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
}

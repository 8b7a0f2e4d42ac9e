//! ML0210: ports where the proxy speaks TLS for the application, and the application's own would be encrypted once more.

use maille_config::HostPattern;
use maille_config::destination_rule::host_of;
use maille_config::istio::{ClientTlsMode, DestinationRule, ServiceEntryPort};
use maille_core::CLUSTER_DOMAIN;

use crate::code::ENCRYPTED_TWICE;
use crate::mesh::{Mesh, Typed};
use crate::report::Report;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let pattern = host_of(&rule.object, CLUSTER_DOMAIN);
        for entry in &mesh.service_entries {
            let hosts = entry.object.spec.hosts.iter().filter(|host| pattern.covers(&HostPattern::new(host)));
            for host in hosts {
                for port in entry.object.spec.ports.iter().filter(|port| speaks_tls(port)) {
                    if let Some((mode, path)) = originated(rule, port.number) {
                        let text = format!(
                            "port {} of {host} is declared {}, and this rule has the sidecar speak TLS ({mode}) to it: \
                             applications call it as http://{host}:{}/; https:// would be encrypted twice, and is \
                             refused",
                            port.number, port.protocol, port.number
                        );
                        report.add(&ENCRYPTED_TWICE, rule.resource, &path, text);
                    }
                }
            }
        }
    }
}

/// The application is expected to speak TLS itself.
fn speaks_tls(port: &ServiceEntryPort) -> bool {
    matches!(port.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS")
}

/// The TLS that the rule has the proxy speak to a port, and the field that says so.
fn originated(rule: &Typed<'_, DestinationRule>, port: u32) -> Option<(&'static str, String)> {
    let policy = rule.object.spec.traffic_policy.as_ref()?;
    let mut own = policy.port_level_settings.iter().enumerate();
    let own = own.find(|(_, settings)| settings.port.is_some_and(|p| p.number == port));
    let (tls, path) = match own {
        Some((index, settings)) => {
            (settings.tls.as_ref()?, format!("spec.trafficPolicy.portLevelSettings[{index}].tls.mode"))
        }
        None => (policy.tls.as_ref()?, "spec.trafficPolicy.tls.mode".to_owned()),
    };
    match tls.mode {
        ClientTlsMode::Simple => Some(("SIMPLE", path)),
        ClientTlsMode::Mutual => Some(("MUTUAL", path)),
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => None,
    }
}

//! IST0128, IST0129: TLS that holds the server's certificate against nothing of its own.

use maille_config::istio::{ClientTlsMode, ClientTlsSettings, DestinationRule};

use crate::code::{
    NO_SERVER_CERTIFICATE_VERIFICATION_DESTINATION_LEVEL, NO_SERVER_CERTIFICATE_VERIFICATION_PORT_LEVEL,
};
use crate::mesh::Mesh;
use crate::report::Report;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for rule in &mesh.destination_rules {
        let Some(policy) = &rule.object.spec.traffic_policy else { continue };
        let host = &rule.object.spec.host;
        let own = &rule.object;
        if let Some((mode, what)) = policy.tls.as_ref().and_then(|tls| unverified(tls, own)) {
            let code = &NO_SERVER_CERTIFICATE_VERIFICATION_DESTINATION_LEVEL;
            let text = format!("TLS of mode {mode} to {host} {what}");
            report.add(code, rule.resource, "spec.trafficPolicy.tls", text);
        }
        for (index, port) in policy.port_level_settings.iter().enumerate() {
            if let Some((mode, what)) = port.tls.as_ref().and_then(|tls| unverified(tls, own)) {
                let number = port.port.map_or(0, |port| port.number);
                let path = format!("spec.trafficPolicy.portLevelSettings[{index}].tls");
                let text = format!("TLS of mode {mode} to port {number} of {host} {what}");
                report.add(&NO_SERVER_CERTIFICATE_VERIFICATION_PORT_LEVEL, rule.resource, &path, text);
            }
        }
    }
}

fn unverified(tls: &ClientTlsSettings, rule: &DestinationRule) -> Option<(&'static str, &'static str)> {
    let mode = match tls.mode {
        ClientTlsMode::Simple => "SIMPLE",
        ClientTlsMode::Mutual => "MUTUAL",
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => return None,
    };
    if tls.insecure_skip_verify == Some(true) {
        return Some((
            mode,
            "does not verify the server's certificate at all; remove insecureSkipVerify and set caCertificates",
        ));
    }
    let from_secret = !tls.credential_name.is_empty() && rule.spec.workload_selector.is_some();
    (tls.ca_certificates.is_empty() && !from_secret).then_some((
        mode,
        "names no caCertificates: whoever any public authority vouches for is taken for the server; name the file of \
         its CA, or write 'system' if public authorities are meant",
    ))
}

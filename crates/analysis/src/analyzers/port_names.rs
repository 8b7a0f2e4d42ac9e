//! IST0118: ports whose names do not say what they carry.

use maille_core::PortProtocol;

use crate::code::PORT_NAME_IS_NOT_UNDER_NAMING_CONVENTION;
use crate::mesh::{Mesh, Service, ServicePort};
use crate::report::Report;

/// Protocols that a name may begin with, or `appProtocol` be.
const PROTOCOLS: [&str; 14] = [
    "http",
    "http2",
    "https",
    "http_proxy",
    "grpc",
    "grpc-web",
    "tcp",
    "tls",
    "mongo",
    "redis",
    "mysql",
    "udp",
    "ws",
    "wss",
];

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for service in mesh.services.iter().filter(|service| !is_system(&service.namespace, mesh)) {
        for port in &service.ports {
            if let Some(text) = problem(service, port) {
                let path = format!("spec.ports[{}]", port.index);
                let code = &PORT_NAME_IS_NOT_UNDER_NAMING_CONVENTION;
                report.add(code, service.resource, &path, text);
            }
        }
    }
}

/// What is wrong with the name of a port.
pub(super) fn problem(service: &Service<'_>, port: &ServicePort) -> Option<String> {
    if !port.is_tcp() || service.external_name {
        return None;
    }
    let by_app = port.app_protocol.as_deref().is_some_and(|protocol| {
        let protocol = protocol.to_ascii_lowercase();
        PROTOCOLS.contains(&protocol.as_str()) || protocol.starts_with("kubernetes.io/")
    });
    let name = port.name.as_deref().unwrap_or_default();
    let prefix = name.split('-').next().unwrap_or_default().to_ascii_lowercase();
    let by_name = PROTOCOLS.contains(&prefix.as_str()) || name == "grpc-web";
    if by_app || by_name || port.protocol_class() != PortProtocol::Auto {
        return None;
    }
    Some(format!(
        "port name '{name}' (port: {}, targetPort: {}) does not tell the protocol, which has to be detected from the \
         first bytes of each connection; name it <protocol>[-suffix], for example http-{}, or set appProtocol",
        port.number,
        port.target,
        if name.is_empty() { "web" } else { name }
    ))
}

fn is_system(namespace: &str, mesh: &Mesh<'_>) -> bool {
    namespace.starts_with("kube-")
        || namespace == mesh.settings.root_namespace
        || (namespace == "default"
            && mesh.services.iter().all(|s| s.namespace != "default" || s.name == "kubernetes"))
}

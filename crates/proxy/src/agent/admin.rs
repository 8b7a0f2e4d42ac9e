//! The admin port (15000): what this proxy lives by, for people and `maille proxy-config`. No secrets; loopback only,
//! and there only for root and the proxy's own user, not for the application.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, StatusCode};
use maille_core::{EndpointTls, PortProtocol};
use maille_pki::Svid;
use maille_telemetry::Registry;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::destinations::Destinations;
use super::facts_in_force::FactsInForce;
use super::options::ProxyOptions;
use super::server::{Answer, Asked, Pages, metrics, text, with_type};
use super::status::Readiness;
use super::status_pages::not_found;
use crate::snapshot::{Destination, Inbound, MeshSettings, Service, Workload};

/// Pages of port 15000.
pub(crate) struct AdminPages {
    pub(crate) options: Arc<ProxyOptions>,
    pub(crate) telemetry: Arc<Registry>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) facts: Arc<Mutex<FactsInForce>>,
    pub(crate) destinations: Arc<Destinations>,
}

impl Pages for AdminPages {
    fn answer(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(async move {
            if !asked.is_operator().await {
                let whom = "only for root and the proxy's own user, addressed as localhost\n";
                return text(StatusCode::FORBIDDEN, whom);
            }
            match (&asked.method, asked.path.as_str()) {
                (&Method::GET, "/config_dump") => page(&self.config()),
                (&Method::GET, "/certs") => page(&self.certificates()),
                (&Method::GET, "/stats" | "/stats/prometheus") => metrics(self.telemetry.render_prometheus()),
                (&Method::GET, "/ready") => match self.readiness.missing(SystemTime::now()) {
                    None => text(StatusCode::OK, "LIVE\n"),
                    Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                },
                (&Method::GET, "/logging") => self.logging(None),
                (&Method::POST, "/logging") => self.logging(asked.parameter("level")),
                (_, "/logging") => text(StatusCode::METHOD_NOT_ALLOWED, "use GET, or POST ?level=\n"),
                _ => not_found("/config_dump, /certs, /stats, /ready, /logging (POST ?level=debug)"),
            }
        })
    }
}

impl AdminPages {
    fn config(&self) -> Value {
        let facts = self.facts.lock();
        let (settings, inbound, policies) = facts.view();
        let policies: Vec<_> = policies
            .iter()
            .map(|p| {
                json!({"namespace": p.namespace, "name": p.name, "dryRun": p.dry_run, "spec": format!("{:?}", p.spec)})
            })
            .collect();
        let generation = facts.shared().map(|shared| shared.snapshot.load().generation);
        json!({
            "workload": self.options.uid(),
            "identity": self.options.identity.uri(),
            "generation": generation,
            "meshSettings": settings.map(mesh_settings),
            "inbound": inbound.map(own_inbound),
            "authorizationPolicies": policies,
            "trustDomains": facts.roots().iter().map(|(d, r)| (d.to_string(), json!(r.len()))).collect::<serde_json::Map<_, _>>(),
            "destinations": self.destinations.held().iter().map(|(name, d)| destination(name, d)).collect::<Vec<_>>(),
        })
    }

    fn certificates(&self) -> Value {
        let facts = self.facts.lock();
        let own = facts.credential().map(|credential| certificate(&credential.svid));
        let roots: serde_json::Map<_, _> = facts
            .roots()
            .iter()
            .map(|(domain, roots)| {
                let pem: Vec<_> = roots.iter().map(maille_pki::certificate_pem).collect();
                (domain.to_string(), Value::from(pem))
            })
            .collect();
        json!({"certificate": own, "roots": roots})
    }

    fn logging(&self, level: Option<&str>) -> Answer {
        let Some(control) = &self.options.log_control else {
            return text(StatusCode::NOT_FOUND, "the log level of this process is fixed\n");
        };
        match level.map(|level| control.set(level)) {
            Some(Err(reason)) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
            _ => text(StatusCode::OK, format!("{}\n", control.current())),
        }
    }
}

fn page(value: &Value) -> Answer {
    with_type(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn certificate(svid: &Svid) -> Value {
    json!({
        "identity": svid.identity().uri(),
        "serial": svid.serial(),
        "notBefore": unix_seconds(svid.not_before()),
        "notAfter": unix_seconds(svid.not_after()),
        "chain": svid.chain_pem(),
    })
}

fn mesh_settings(settings: &MeshSettings) -> Value {
    json!({
        "trustDomain": settings.trust_domain.to_string(),
        "trustDomainAliases": settings.trust_domain_aliases.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rootNamespace": settings.root_namespace,
        "outboundPolicy": format!("{:?}", settings.outbound_policy),
        "pathNormalization": format!("{:?}", settings.path_normalization),
        "protocolDetectionTimeoutMs": settings.protocol_detection_timeout.map(|d| d.as_millis() as u64),
        "clusterDomain": settings.cluster_domain,
    })
}

fn own_inbound(inbound: &Inbound) -> Value {
    let mut numbers: Vec<_> = inbound.ports.keys().chain(inbound.port_modes.keys()).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let ports: Vec<_> = numbers
        .into_iter()
        .map(|number| {
            json!({
                "port": number,
                "mode": inbound.mode_of(number).as_str(),
                "protocol": protocol(inbound.protocol_of(number)),
                "service": inbound.ports.get(&number).map(|p| p.service.hostname.to_string()),
            })
        })
        .collect();
    json!({"workload": workload(&inbound.workload), "mode": inbound.mode.as_str(), "ports": ports})
}

fn workload(workload: &Workload) -> Value {
    json!({
        "uid": *workload.uid,
        "workloadName": *workload.workload_name,
        "identity": workload.identity.as_ref().map(|id| id.uri()),
        "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "meshed": workload.meshed,
    })
}

fn protocol(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Auto => "AUTO",
        PortProtocol::Http => "HTTP",
        PortProtocol::Http2 => "HTTP2",
        PortProtocol::Tcp => "TCP",
    }
}

fn tls(tls: EndpointTls) -> &'static str {
    match tls {
        EndpointTls::Plaintext => "PLAINTEXT",
        EndpointTls::IstioMutual => "ISTIO_MUTUAL",
    }
}

fn destination(name: &str, destination: &Destination) -> Value {
    match destination {
        Destination::Unknown => json!({"name": name, "kind": "unknown"}),
        Destination::Workload(direct) => json!({
            "name": name,
            "kind": "workload",
            "workload": workload(&direct.workload),
            "headlessPorts": direct.headless_ports.iter().map(|p| json!({
                "port": p.port,
                "protocol": protocol(p.protocol),
                "tls": tls(p.tls),
                "service": *p.service.hostname,
                "servicePort": p.service_port,
                "subjectAltNames": *p.subject_alt_names,
            })).collect::<Vec<_>>(),
        }),
        Destination::Service(service) => service_value(name, service),
    }
}

fn service_value(name: &str, service: &Service) -> Value {
    let endpoints: Vec<_> = service
        .endpoints
        .iter()
        .map(|endpoint| {
            let ports: Vec<_> = endpoint
                .ports
                .iter()
                .map(|p| json!({"servicePort": p.service_port, "targetPort": p.target_port, "tls": tls(p.tls)}))
                .collect();
            json!({
                "address": endpoint.address.to_string(),
                "workload": *endpoint.workload.uid,
                "identity": endpoint.workload.identity.as_ref().map(|id| id.uri()),
                "ports": ports,
            })
        })
        .collect();
    json!({
        "name": name,
        "kind": "service",
        "hostname": *service.name.hostname,
        "namespace": *service.name.namespace,
        "addresses": service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "headless": service.headless,
        "ports": service.ports.iter().map(|p| json!({"number": p.number, "protocol": protocol(p.protocol)})).collect::<Vec<_>>(),
        "subjectAltNames": *service.subject_alt_names,
        "endpoints": endpoints,
    })
}

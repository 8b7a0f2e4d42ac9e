//! The admin port (15000): what this proxy lives by, for people and `maille proxy-config`. No secrets; loopback only,
//! and there only for root and the proxy's own user, not for the application.
//!
//! `/config_dump` is a [`wire::ConfigDump`] in protobuf's JSON, made of the resources in force as they came: complete
//! by construction.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use maille_pki::{Moment, certificate_pem};
use maille_proto::facts as wire;
use maille_telemetry::Registry;
use maille_tls::Current;
use maille_xds::type_urls;
use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;

use super::destinations::Destinations;
use super::facts_in_force::{FactsInForce, Received};
use super::options::ProxyOptions;
use super::server::{Answer, Asked, Pages, metrics, text, with_type};
use super::shown_keys;
use super::status::Readiness;
use super::status_pages::not_found;
use crate::snapshot::{Destination, Endpoint, Resolver as _, Service};

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
                (&Method::GET, "/certs") => page(&certificates(&self.facts.lock(), &self.telemetry)),
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
    fn config(&self) -> wire::ConfigDump {
        let facts = self.facts.lock();
        let generation = facts.shared().map_or(0, |shared| shared.snapshot.load().generation);
        let names = self.destinations.names();
        // What was given up is no longer kept current.
        let in_force = || {
            facts
                .received()
                .filter(|(kind, name, _)| *kind != type_urls::DESTINATION || names.contains(*name))
        };
        wire::ConfigDump {
            workload: self.options.uid(),
            identity: facts
                .credential()
                .map_or_else(|| self.options.identity.uri(), |credential| credential.svid.identity().uri()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: u32::try_from(generation).unwrap_or(u32::MAX),
            facts: Some(facts_in_force(in_force(), &self.destinations)),
            certificates: Some(certificates(&facts, &self.telemetry)),
            bootstrap: Some(bootstrap(&self.options)),
            held: in_force().map(|(type_url, name, received)| held(type_url, name, received)).collect(),
        }
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

fn page(message: &impl Serialize) -> Answer {
    match serde_json::to_string_pretty(message) {
        Ok(json) => with_type(StatusCode::OK, "application/json", format!("{json}\n")),
        // A fact with a value of the future, which has no name yet.
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot be shown: {error}\n")),
    }
}

fn facts_in_force<'a>(
    received: impl Iterator<Item = (&'a str, &'a str, &'a Received)>,
    destinations: &Destinations,
) -> wire::FactsInForce {
    let mut facts = wire::FactsInForce::default();
    for (type_url, name, received) in received {
        let body = received.body.as_slice();
        // What is in force was readable when it came.
        match type_url {
            type_urls::MESH_SETTINGS => facts.mesh_settings = wire::MeshSettings::decode(body).ok(),
            type_urls::INBOUND => facts.inbound = wire::Inbound::decode(body).ok(),
            type_urls::AUTHORIZATION => facts.authorizations.extend(wire::Authorization::decode(body)),
            type_urls::REQUEST_AUTHENTICATION => {
                let rules = wire::RequestAuthentication::decode(body).map(|mut rules| {
                    for rule in &mut rules.jwt_rules {
                        rule.jwks = shown_keys::public(&rule.jwks);
                    }
                    rules
                });
                facts.request_authentications.extend(rules);
            }
            type_urls::TRUST_BUNDLE => facts.trust_bundles.extend(wire::TrustBundle::decode(body)),
            type_urls::REVOCATIONS => facts.revocations = wire::Revocations::decode(body).ok(),
            type_urls::DESTINATION => {
                let held = destinations.lookup(name).map(|cell| cell.load().clone());
                let mut named = wire::NamedDestination {
                    name: name.to_owned(),
                    destination: wire::Destination::decode(body).ok(),
                    ..Default::default()
                };
                if let Some(service) = held.as_deref().and_then(Destination::service) {
                    what_it_depends_on(service, &mut named);
                }
                facts.destinations.push(named);
            }
            _ => {}
        }
    }
    facts
}

/// What the proxy found out by itself: addresses behind names, the state of files, and which endpoints fail.
fn what_it_depends_on(service: &Service, named: &mut wire::NamedDestination) {
    if !service.named_endpoints.is_empty() {
        named.resolved = service.endpoints.iter().map(resolved).collect();
        named.lookup_failure = service.lookup_failure.as_deref().unwrap_or_default().to_owned();
    }
    let orders = service.ports.iter().filter_map(|port| Some((port.number, port.order.as_ref()?)));
    let originating = orders.filter(|(_, order)| order.originates());
    named.originations = originating
        .map(|(port, order)| wire::Origination {
            port: port.into(),
            rule: order.rule.to_string(),
            problem: order.material.current().problem.as_deref().unwrap_or_default().to_owned(),
        })
        .collect();
    for port in &service.ports {
        let left_out = port.balance.iter().flat_map(|balance| balance.ejected());
        named.ejections.extend(left_out.map(|(endpoint, left)| wire::Ejection {
            port: port.number.into(),
            endpoint: endpoint.to_owned(),
            remaining_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        }));
    }
}

fn resolved(endpoint: &Endpoint) -> wire::Endpoint {
    let ports = endpoint.ports.iter().map(|port| wire::EndpointPort {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        ..Default::default()
    });
    wire::Endpoint { address: endpoint.address.to_string(), ports: ports.collect(), ..Default::default() }
}

fn held(type_url: &str, name: &str, received: &Received) -> wire::HeldResource {
    wire::HeldResource {
        r#type: type_url.rsplit('.').next().unwrap_or_default().to_owned(),
        name: name.to_owned(),
        version: received.version.clone(),
        updated: Moment(received.at).to_string(),
    }
}

fn certificates(facts: &FactsInForce, telemetry: &Registry) -> wire::Certificates {
    let own = facts.credential().map(|credential| wire::Certificate {
        identity: credential.svid.identity().uri(),
        serial: credential.svid.serial().to_owned(),
        not_before: Moment(credential.svid.not_before()).to_string(),
        not_after: Moment(credential.svid.not_after()).to_string(),
        obtained: Moment(credential.obtained).to_string(),
        chain: credential.svid.chain_pem(),
    });
    let roots = facts.roots().into_iter().map(|(domain, roots)| wire::TrustedRoots {
        trust_domain: domain.to_string(),
        certificates: roots.iter().map(certificate_pem).collect(),
    });
    let tls = facts.tls().map(|tls| tls_in_use(&tls.current(), telemetry));
    wire::Certificates { workload: own, roots: roots.collect(), tls }
}

fn tls_in_use(current: &Current, telemetry: &Registry) -> wire::TlsInUse {
    let parameters = current.parameters();
    let handshakes = telemetry.handshakes().into_iter();
    let handshakes = handshakes.map(|(side, key_exchange, version, count)| wire::Handshakes {
        side: side.to_owned(),
        key_exchange: key_exchange.to_owned(),
        version: version.to_owned(),
        count,
    });
    wire::TlsInUse {
        key_exchanges: parameters.offered().into_iter().map(str::to_owned).collect(),
        oldest_version: parameters.oldest_version().to_owned(),
        revocations: current.trust().revoked.version().to_owned(),
        handshakes: handshakes.collect(),
    }
}

fn bootstrap(options: &ProxyOptions) -> wire::Bootstrap {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let listen = &options.listen;
    wire::Bootstrap {
        cluster: options.cluster.clone(),
        pod_ip: options.pod_ip.to_string(),
        discovery_address: options.discovery_address.clone(),
        ca_address: options.ca_address.clone(),
        workers: u32::try_from(options.workers).unwrap_or(u32::MAX),
        drain_seconds: seconds(options.drain.termination),
        certificate_ttl_seconds: seconds(options.certificate_ttl),
        inbound: listen.inbound.to_string(),
        outbound: listen.outbound.to_string(),
        status: listen.status.to_string(),
        readiness: listen.readiness.to_string(),
        metrics: listen.metrics.to_string(),
        admin: listen.admin.to_string(),
    }
}

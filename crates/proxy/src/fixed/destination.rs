//! Destinations in the file: the messages of `facts.proto` in YAML.

use maille_proto::facts as wire;
use serde::Deserialize;

use super::file::Workload;
use super::traffic::TrafficPolicy;

names!(#[derive(Default)] Protocol {
    #[default] Auto = "AUTO" => wire::Protocol::Auto,
    Http = "HTTP" => wire::Protocol::Http,
    Http2 = "HTTP2" => wire::Protocol::Http2,
    Tcp = "TCP" => wire::Protocol::Tcp,
    Tls = "TLS" => wire::Protocol::Tls,
});
names!(Tls {
    Plaintext = "PLAINTEXT" => wire::EndpointTls::Plaintext,
    IstioMutual = "ISTIO_MUTUAL" => wire::EndpointTls::IstioMutual,
});

names!(#[derive(Default)] Resolution {
    #[default] Static = "STATIC" => wire::Resolution::Endpoints,
    Dns = "DNS" => wire::Resolution::Dns,
    DnsRoundRobin = "DNS_ROUND_ROBIN" => wire::Resolution::DnsRoundRobin,
    None = "NONE" => wire::Resolution::None,
    DynamicDns = "DYNAMIC_DNS" => wire::Resolution::DynamicDns,
});
names!(ClientTlsMode {
    Disable = "DISABLE" => wire::client_tls::Mode::Disable,
    Simple = "SIMPLE" => wire::client_tls::Mode::Simple,
    Mutual = "MUTUAL" => wire::client_tls::Mode::Mutual,
    IstioMutual = "ISTIO_MUTUAL" => wire::client_tls::Mode::IstioMutual,
});

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum DestinationFacts {
    Service(Service),
    Workload(DirectWorkload),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    namespace: String,
    name: String,
    hostname: String,
    #[serde(default)]
    addresses: Vec<String>,
    ports: Vec<ServicePort>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    headless: bool,
    /// Outside the mesh.
    #[serde(default)]
    external: bool,
    #[serde(default)]
    resolution: Resolution,
    /// `<namespace>/<name>` of the ServiceEntry it comes from.
    #[serde(default)]
    service_entry: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServicePort {
    number: u16,
    #[serde(default)]
    name: String,
    #[serde(default)]
    protocol: Protocol,
    /// As a DestinationRule orders it.
    tls: Option<ClientTls>,
    /// With resolution NONE or DYNAMIC_DNS, dialled in place of the application's port.
    target_port: Option<u16>,
    /// As a DestinationRule orders it.
    traffic: Option<TrafficPolicy>,
}

/// The `tls` of a DestinationRule.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClientTls {
    mode: ClientTlsMode,
    /// `<namespace>/<name>` of the rule.
    #[serde(default)]
    rule: String,
    #[serde(default)]
    client_certificate: String,
    #[serde(default)]
    private_key: String,
    #[serde(default)]
    ca_certificates: String,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    sni: String,
    #[serde(default)]
    insecure_skip_verify: bool,
    #[serde(default)]
    ca_crl: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    #[serde(default)]
    workload: Workload,
    #[serde(default)]
    address: String,
    /// Of the other family, for when the first cannot be connected to.
    #[serde(default)]
    other_address: String,
    /// Looked up, in place of `address`.
    #[serde(default)]
    dns_name: String,
    /// Of a Unix socket, in place of `address`.
    #[serde(default)]
    unix_path: String,
    #[serde(default)]
    weight: u32,
    ports: Vec<EndpointPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EndpointPort {
    service_port: u16,
    target_port: u16,
    tls: Tls,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DirectWorkload {
    workload: Workload,
    #[serde(default)]
    headless_ports: Vec<HeadlessPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HeadlessPort {
    port: u16,
    #[serde(default)]
    protocol: Protocol,
    tls: Tls,
    service_hostname: String,
    #[serde(default)]
    service_name: String,
    #[serde(default)]
    service_namespace: String,
    service_port: u16,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    client_tls: Option<ClientTls>,
    traffic: Option<TrafficPolicy>,
}

impl DestinationFacts {
    pub(super) fn message(&self) -> wire::Destination {
        let kind = match self {
            Self::Service(service) => wire::destination::Kind::Service(service.message()),
            Self::Workload(direct) => wire::destination::Kind::Workload(direct.message()),
        };
        wire::Destination { kind: Some(kind) }
    }
}

impl Service {
    fn message(&self) -> wire::Service {
        let ports = self.ports.iter().map(|p| wire::ServicePort {
            number: p.number.into(),
            name: p.name.clone(),
            protocol: p.protocol.proto(),
            tls: p.tls.as_ref().map(ClientTls::message),
            target_port: p.target_port.unwrap_or_default().into(),
            traffic: p.traffic.as_ref().map(TrafficPolicy::message),
            ..Default::default()
        });
        let endpoints = self.endpoints.iter().map(|e| {
            let ports = e.ports.iter().map(|p| wire::EndpointPort {
                service_port: p.service_port.into(),
                target_port: p.target_port.into(),
                tls: p.tls.proto(),
            });
            wire::Endpoint {
                workload: Some(e.workload.message()),
                address: e.address.clone(),
                other_address: e.other_address.clone(),
                dns_name: e.dns_name.clone(),
                unix_path: e.unix_path.clone(),
                weight: e.weight,
                ports: ports.collect(),
                ..Default::default()
            }
        });
        wire::Service {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            hostname: self.hostname.clone(),
            addresses: self.addresses.clone(),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            subject_alt_names: self.subject_alt_names.clone(),
            headless: self.headless,
            external: self.external,
            resolution: self.resolution.proto(),
            service_entry: self.service_entry.clone(),
        }
    }
}

impl DirectWorkload {
    fn message(&self) -> wire::DirectWorkload {
        let ports = self.headless_ports.iter().map(|p| wire::HeadlessPort {
            port: p.port.into(),
            protocol: p.protocol.proto(),
            tls: p.tls.proto(),
            service_hostname: p.service_hostname.clone(),
            service_name: p.service_name.clone(),
            service_namespace: p.service_namespace.clone(),
            service_port: p.service_port.into(),
            subject_alt_names: p.subject_alt_names.clone(),
            client_tls: p.client_tls.as_ref().map(ClientTls::message),
            traffic: p.traffic.as_ref().map(TrafficPolicy::message),
        });
        wire::DirectWorkload { workload: Some(self.workload.message()), headless_ports: ports.collect() }
    }
}

impl ClientTls {
    fn message(&self) -> wire::ClientTls {
        wire::ClientTls {
            mode: self.mode.proto(),
            rule: self.rule.clone(),
            client_certificate: self.client_certificate.clone(),
            private_key: self.private_key.clone(),
            ca_certificates: self.ca_certificates.clone(),
            subject_alt_names: self.subject_alt_names.clone(),
            sni: self.sni.clone(),
            insecure_skip_verify: self.insecure_skip_verify,
            ca_crl: self.ca_crl.clone(),
            ..Default::default()
        }
    }
}

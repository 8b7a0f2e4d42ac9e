//! What a DestinationRule orders for a client and the ports of a service (reference mtls 2.2).

use maille_config::HostPattern;
use maille_config::destination_rule::{Client, InForce, Mesh, PortTls, Target, in_force};
use maille_config::istio::{ClientTlsMode, ClientTlsSettings};
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::client_tls::Mode;

use crate::world::World;

/// The rule in force for one client and one service, if there is any.
pub(super) struct Order<'w>(Option<InForce<'w>>);

impl<'w> Order<'w> {
    pub(super) fn of(world: &'w World, client: Client<'_>, host: &HostPattern, namespace: &str) -> Self {
        let config = world.config();
        let mesh = Mesh { root_namespace: &config.root_namespace, cluster_domain: &config.cluster_domain };
        let rules = world.rules_for(client.namespace, namespace);
        Self(in_force(rules, mesh, client, Target { host, namespace }))
    }

    fn port(&self, number: u16) -> PortTls<'w> {
        self.0.as_ref().map_or(PortTls::Auto { endpoints: None }, |found| found.tls(number))
    }

    /// What the client's proxy is told of a port; `None` leaves it to auto mTLS. `entry_names` are a ServiceEntry's
    /// `subjectAltNames`.
    pub(super) fn client_tls(&self, number: u16, entry_names: &[String]) -> Option<wire::ClientTls> {
        let PortTls::Explicit(settings) = self.port(number) else { return None };
        let rule = self.0.as_ref().and_then(|found| found.decisive);
        let name = rule.map(|r| (r.metadata.namespace.as_deref(), r.metadata.name.as_deref()));
        let (namespace, name) = name.unwrap_or_default();
        let mode = mode(settings);
        let mut names = settings.subject_alt_names.clone();
        if names.is_empty() && matches!(mode, Mode::Simple | Mode::Mutual) {
            names = entry_names.to_vec();
        }
        Some(wire::ClientTls {
            mode: mode.into(),
            rule: format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()),
            client_certificate: settings.client_certificate.clone(),
            private_key: settings.private_key.clone(),
            ca_certificates: settings.ca_certificates.clone(),
            subject_alt_names: names,
            sni: settings.sni.clone(),
            insecure_skip_verify: settings.insecure_skip_verify == Some(true),
            ..Default::default()
        })
    }

    /// How an endpoint's port is reached, given what auto mTLS would choose. `each` tells whether that choice is made for
    /// each endpoint apart.
    pub(super) fn endpoint_tls(
        &self,
        number: u16,
        each: bool,
        auto: impl FnOnce() -> wire::EndpointTls,
    ) -> wire::EndpointTls {
        match self.port(number) {
            PortTls::Explicit(settings) if settings.mode == ClientTlsMode::IstioMutual => IstioMutual,
            PortTls::Explicit(_) => Plaintext,
            // DR-8: a mode above the port's own settings still marks the endpoints, where they are marked at all.
            PortTls::Auto { endpoints: Some(ClientTlsMode::IstioMutual) } if each => IstioMutual,
            PortTls::Auto { endpoints: Some(_) } if each => Plaintext,
            PortTls::Auto { .. } => auto(),
        }
    }
}

/// What cannot be kept closes the port: a rule with a Secret or with revoked certificates must not lead to
/// connections that are less than it asks for.
fn mode(settings: &ClientTlsSettings) -> Mode {
    match settings.mode {
        ClientTlsMode::Disable => Mode::Disable,
        ClientTlsMode::IstioMutual => Mode::IstioMutual,
        _ if !settings.credential_name.is_empty() || !settings.ca_crl.is_empty() => Mode::Unspecified,
        ClientTlsMode::Simple => Mode::Simple,
        ClientTlsMode::Mutual => Mode::Mutual,
    }
}

//! What a DestinationRule orders for a client and the ports of a service (reference mtls 2.2).

use std::collections::BTreeSet;

use maille_config::HostPattern;
use maille_config::destination_rule::{
    Client, InForce, Mesh, PortPolicy, PortTls, Target, in_force, in_force_inbound,
};
use maille_config::istio::{ClientTlsMode, ClientTlsSettings, DestinationRule};
use maille_core::Labels;
use maille_proto::facts as wire;
use wire::EndpointTls::{IstioMutual, Plaintext};
use wire::client_tls::Mode;

use super::traffic;
use crate::world::{CredentialSource, World};

/// The rule in force for one client and one service, if there is any.
pub(super) struct Order<'w> {
    found: Option<InForce<'w>>,
    /// The client's.
    namespace: &'w str,
    /// Keys of the labels by which subsets choose.
    subset_keys: BTreeSet<&'w str>,
}

impl<'w> Order<'w> {
    pub(super) fn of(world: &'w World, client: Client<'w>, host: &HostPattern, namespace: &str) -> Self {
        let config = world.config();
        let mesh = Mesh { root_namespace: &config.root_namespace, cluster_domain: &config.cluster_domain };
        let rules = world.rules_for(client.namespace, namespace);
        let found = in_force(rules, mesh, client, Target { host, namespace });
        let subsets = found.as_ref().map(InForce::subsets).unwrap_or_default();
        let subset_keys = subsets.iter().flat_map(|(_, s)| s.labels.keys().map(String::as_str)).collect();
        Self { found, namespace: client.namespace, subset_keys }
    }

    fn policy(&self, number: u16) -> Option<PortPolicy<'w>> {
        self.found.as_ref().map(|found| found.port(number))
    }

    fn port(&self, number: u16) -> PortTls<'w> {
        self.policy(number).map_or(PortTls::Auto { endpoints: None }, |policy| policy.tls)
    }

    /// What the client's proxy is told of a port; `None` leaves it to auto mTLS. `entry_names` are a ServiceEntry's
    /// `subjectAltNames`.
    pub(super) fn client_tls(&self, number: u16, entry_names: &[String]) -> Option<wire::ClientTls> {
        let rule = self.found.as_ref().and_then(|found| found.decisive)?;
        self.told_tls(self.port(number), rule, entry_names)
    }

    fn told_tls(
        &self,
        tls: PortTls<'_>,
        rule: &DestinationRule,
        entry_names: &[String],
    ) -> Option<wire::ClientTls> {
        let PortTls::Explicit(settings) = tls else { return None };
        let (mode, credential) = self.mode(settings, rule);
        let mut names = settings.subject_alt_names.clone();
        if names.is_empty() && matches!(mode, Mode::Simple | Mode::Mutual) {
            names = entry_names.to_vec();
        }
        Some(wire::ClientTls {
            mode: mode.into(),
            rule: name_of(rule),
            client_certificate: settings.client_certificate.clone(),
            private_key: settings.private_key.clone(),
            ca_certificates: settings.ca_certificates.clone(),
            subject_alt_names: names,
            sni: settings.sni.clone(),
            insecure_skip_verify: settings.insecure_skip_verify == Some(true),
            ca_crl: settings.ca_crl.clone(),
            credential: credential.map(|source| source.to_string()).unwrap_or_default(),
        })
    }

    /// What cannot be kept closes the port: a rule with keys that are not to be had must not lead to connections that are
    /// less than it asks for. In Istio such a rule is taken for none, and plaintext leaves (G-16).
    fn mode(&self, settings: &ClientTlsSettings, rule: &DestinationRule) -> (Mode, Option<CredentialSource>) {
        let mode = match settings.mode {
            ClientTlsMode::Disable => Mode::Disable,
            ClientTlsMode::IstioMutual => Mode::IstioMutual,
            ClientTlsMode::Simple => Mode::Simple,
            ClientTlsMode::Mutual => Mode::Mutual,
        };
        match CredentialSource::of(settings, rule) {
            Ok(None) => (mode, None),
            Ok(Some(source)) if source.name().namespace == self.namespace => (mode, Some(source)),
            // Istio reads a ConfigMap of the client's namespace, whoever wrote the rule; here it is the rule's own.
            Ok(Some(_)) | Err(()) => (Mode::Unspecified, None),
        }
    }

    /// What holds of a port beyond TLS.
    pub(super) fn traffic(&self, number: u16) -> Option<wire::TrafficPolicy> {
        let rule = self.found.as_ref().and_then(|found| found.decisive)?;
        traffic::traffic_policy(&name_of(rule), &self.policy(number)?)
    }

    /// Whether connections to a port go where they were dialled.
    pub(super) fn is_passthrough(&self, number: u16) -> bool {
        self.policy(number).is_some_and(|policy| traffic::is_passthrough(&policy))
    }

    /// The named groups of endpoints, as they hold for a port.
    pub(super) fn subsets(&self, number: u16, entry_names: &[String]) -> Vec<wire::Subset> {
        let Some(found) = &self.found else { return Vec::new() };
        let told = |(rule, subset): (&'w DestinationRule, _)| {
            let policy = found.subset_port(subset, number);
            // A block that the subset does not have is the decisive rule's.
            let of_subset = subset.traffic_policy.is_some();
            let rule = if of_subset { rule } else { found.decisive.unwrap_or(rule) };
            wire::Subset {
                name: subset.name.clone(),
                labels: subset.labels.clone(),
                tls: self.told_tls(policy.tls, rule, entry_names),
                traffic: traffic::traffic_policy(&name_of(rule), &policy),
            }
        };
        found.subsets().into_iter().map(told).collect()
    }

    /// Those labels of a workload by which subsets choose.
    pub(super) fn subset_labels(&self, labels: &Labels) -> Labels {
        let looked_at = labels.iter().filter(|(key, _)| self.subset_keys.contains(key.as_str()));
        looked_at.map(|(key, value)| (key.clone(), value.clone())).collect()
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

/// The limits to which a workload keeps as a server, by what rules say of a service of its namespace (reference mtls 2.3,
/// last paragraph; istio `buildInboundCluster`).
pub(super) struct ServerOrder<'w>(Option<InForce<'w>>);

impl<'w> ServerOrder<'w> {
    pub(super) fn of(world: &'w World, host: &HostPattern, namespace: &str) -> Self {
        let config = world.config();
        let mesh = Mesh { root_namespace: &config.root_namespace, cluster_domain: &config.cluster_domain };
        let rules = world.rules_for(namespace, namespace);
        Self(in_force_inbound(rules, mesh, namespace, Target { host, namespace }))
    }

    pub(super) fn connection_pool(&self, service_port: u16) -> Option<wire::ConnectionPool> {
        self.0.as_ref()?.port(service_port).connection_pool.map(traffic::connection_pool)
    }
}

fn name_of(rule: &DestinationRule) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&rule.metadata.namespace), part(&rule.metadata.name))
}

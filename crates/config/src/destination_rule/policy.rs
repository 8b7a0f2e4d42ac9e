//! What the rules in force say of one port, as a whole and of a subset (reference mtls 2.2, DR-7 to DR-10).

use std::collections::BTreeSet;

use super::{InForce, PortTls};
use crate::istio::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, LoadBalancerSettings,
    OutlierDetection, PortTrafficPolicy, Subset, TrafficPolicy,
};

/// The blocks of a traffic policy that hold for one port. One that is absent is the default of its sort: nothing is
/// inherited past an entry of `portLevelSettings` (DR-8).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PortPolicy<'r> {
    /// TLS to the port.
    pub tls: PortTls<'r>,
    /// How requests are spread.
    pub load_balancer: Option<&'r LoadBalancerSettings>,
    /// Bounds of connections and requests.
    pub connection_pool: Option<&'r ConnectionPoolSettings>,
    /// When an endpoint is left out for a while.
    pub outlier_detection: Option<&'r OutlierDetection>,
}

/// The four blocks, and whether they stand in an entry for the port.
#[derive(Clone, Copy, Default)]
struct Blocks<'r> {
    tls: Option<&'r ClientTlsSettings>,
    load_balancer: Option<&'r LoadBalancerSettings>,
    connection_pool: Option<&'r ConnectionPoolSettings>,
    outlier_detection: Option<&'r OutlierDetection>,
    of_the_port: bool,
}

impl<'r> InForce<'r> {
    /// All that holds for a port of the service (DR-7). An entry for the port replaces everything above it (DR-8).
    pub fn port(&self, service_port: u16) -> PortPolicy<'r> {
        let policy = self.policy();
        Blocks::of(policy, service_port).finish(mode_above(policy, service_port))
    }

    /// What holds of TLS for a port of the service.
    pub fn tls(&self, service_port: u16) -> PortTls<'r> {
        self.port(service_port).tls
    }

    /// The subsets of all rules that were merged, with the rule of each; of several with one name the first (2.3, 4).
    pub fn subsets(&self) -> Vec<(&'r DestinationRule, &'r Subset)> {
        let mut names = BTreeSet::new();
        let all =
            self.rules.iter().flat_map(|rule| rule.spec.subsets.iter().map(move |subset| (*rule, subset)));
        all.filter(|(_, subset)| names.insert(subset.name.as_str())).collect()
    }

    /// What holds for a port of a subset: block by block its own, else the rule's for the port (DR-9, DR-10). An entry
    /// of the subset for the port replaces all four blocks.
    pub fn subset_port(&self, subset: &'r Subset, service_port: u16) -> PortPolicy<'r> {
        let own = subset.traffic_policy.as_ref();
        let mode = mode_above(own, service_port).or_else(|| mode_above(self.policy(), service_port));
        let above = Blocks::of(self.policy(), service_port);
        Blocks::of(own, service_port).over(above).finish(mode)
    }
}

impl<'r> Blocks<'r> {
    fn of(policy: Option<&'r TrafficPolicy>, service_port: u16) -> Self {
        let Some(policy) = policy else { return Self::default() };
        match entry(policy, service_port) {
            Some(port) => Self {
                tls: port.tls.as_ref(),
                load_balancer: port.load_balancer.as_ref(),
                connection_pool: port.connection_pool.as_ref(),
                outlier_detection: port.outlier_detection.as_ref(),
                of_the_port: true,
            },
            None => Self {
                tls: policy.tls.as_ref(),
                load_balancer: policy.load_balancer.as_ref(),
                connection_pool: policy.connection_pool.as_ref(),
                outlier_detection: policy.outlier_detection.as_ref(),
                of_the_port: false,
            },
        }
    }

    fn over(self, above: Self) -> Self {
        if self.of_the_port {
            return self;
        }
        Self {
            tls: self.tls.or(above.tls),
            load_balancer: self.load_balancer.or(above.load_balancer),
            connection_pool: self.connection_pool.or(above.connection_pool),
            outlier_detection: self.outlier_detection.or(above.outlier_detection),
            of_the_port: false,
        }
    }

    fn finish(self, mode_above: Option<ClientTlsMode>) -> PortPolicy<'r> {
        PortPolicy {
            tls: match self.tls {
                Some(settings) => PortTls::Explicit(settings),
                None => PortTls::Auto { endpoints: mode_above },
            },
            load_balancer: self.load_balancer,
            connection_pool: self.connection_pool,
            outlier_detection: self.outlier_detection,
        }
    }
}

fn entry(policy: &TrafficPolicy, service_port: u16) -> Option<&PortTrafficPolicy> {
    let own =
        |entry: &&PortTrafficPolicy| entry.port.is_some_and(|port| port.number == u32::from(service_port));
    policy.port_level_settings.iter().find(own)
}

/// The mode by which Istio marks endpoints: the entry's for the port, else the one above it, even where the entry
/// replaced that (the quirk of DR-8; istio pilot/pkg/xds/endpoints, trafficPolicyTLSModeForPort).
fn mode_above(policy: Option<&TrafficPolicy>, service_port: u16) -> Option<ClientTlsMode> {
    let policy = policy?;
    let own = entry(policy, service_port).and_then(|entry| entry.tls.as_ref());
    own.or(policy.tls.as_ref()).map(|tls| tls.mode)
}

#[cfg(test)]
mod tests;

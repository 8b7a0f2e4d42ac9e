use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::TLS13;
use rustls::{CommonState, NamedGroup, ProtocolVersion, SupportedProtocolVersion};

use crate::context::VERSIONS;
use crate::provider::provider;

/// A way to agree upon keys, by its name in `meshMTLS.ecdhCurves`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyExchange {
    /// X25519 with ML-KEM-768 (draft-ietf-tls-ecdhe-mlkem): what is recorded today stays secret from the quantum computers
    /// of tomorrow. TLS 1.3 only.
    X25519MlKem768,
    /// X25519.
    X25519,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl KeyExchange {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::X25519MlKem768, Self::X25519, Self::P256, Self::P384].into_iter().find(|kx| kx.name() == name)
    }

    /// Its name, as Istio and Envoy have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "X25519",
            Self::P256 => "P-256",
            Self::P384 => "P-384",
        }
    }

    fn group(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519MlKem768 => kx_group::X25519MLKEM768,
            Self::X25519 => kx_group::X25519,
            Self::P256 => kx_group::SECP256R1,
            Self::P384 => kx_group::SECP384R1,
        }
    }
}

/// What mutual TLS of the mesh may negotiate (`meshConfig.meshMTLS`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// In order of preference; empty: X25519MLKEM768 first, then all others.
    pub key_exchanges: Vec<KeyExchange>,
    /// No TLS 1.2.
    pub tls13_only: bool,
}

impl Parameters {
    /// X25519MLKEM768 or nothing.
    pub fn post_quantum_only() -> Self {
        Self { key_exchanges: vec![KeyExchange::X25519MlKem768], tls13_only: true }
    }

    pub(crate) fn provider(&self) -> Arc<CryptoProvider> {
        if self.key_exchanges.is_empty() {
            return provider();
        }
        let kx_groups = self.key_exchanges.iter().map(|kx| kx.group()).collect();
        // Who fears quantum computers gets the longer keys first.
        let preferred =
            if self.is_only_hybrid() { aws_lc_rs::default_provider() } else { (*provider()).clone() };
        Arc::new(CryptoProvider { kx_groups, ..preferred })
    }

    fn is_only_hybrid(&self) -> bool {
        let is_hybrid = |kx: &KeyExchange| *kx == KeyExchange::X25519MlKem768;
        !self.key_exchanges.is_empty() && self.key_exchanges.iter().all(is_hybrid)
    }

    pub(crate) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        const NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];
        // TLS 1.2 knows nothing of the hybrid exchange.
        if self.tls13_only || self.is_only_hybrid() { NEWEST } else { VERSIONS }
    }

    /// Whether a connection whose ends agreed upon this may go on.
    pub fn allows(&self, agreed: &Negotiated) -> bool {
        let is_allowed = |kx: &KeyExchange| kx.name() == agreed.key_exchange;
        let key_exchange = self.key_exchanges.is_empty() || self.key_exchanges.iter().any(is_allowed);
        key_exchange && self.versions().iter().any(|version| version_name(version.version) == agreed.version)
    }

    /// The names of what is offered, in order.
    pub fn offered(&self) -> Vec<&'static str> {
        let groups = self.provider();
        groups.kx_groups.iter().map(|group| group_name(group.name())).collect()
    }

    /// The oldest version that is accepted.
    pub fn oldest_version(&self) -> &'static str {
        if self.versions().len() == 1 { "TLSv1.3" } else { "TLSv1.2" }
    }
}

/// What two ends agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Negotiated {
    /// The key exchange: `X25519MLKEM768`, `X25519`, `P-256`, `P-384`, or `other`.
    pub key_exchange: &'static str,
    /// `TLSv1.3`, `TLSv1.2`, or `other`.
    pub version: &'static str,
}

impl Negotiated {
    /// Of a connection after its handshake.
    pub fn of(connection: &CommonState) -> Self {
        let group = connection.negotiated_key_exchange_group();
        Self {
            key_exchange: group.map_or("other", |group| group_name(group.name())),
            version: connection.protocol_version().map_or("other", version_name),
        }
    }

    /// Whether the keys stay secret from quantum computers.
    pub fn is_post_quantum(&self) -> bool {
        self.key_exchange == KeyExchange::X25519MlKem768.name()
    }
}

impl fmt::Display for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.key_exchange)
    }
}

fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        _ => "other",
    }
}

fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_on_only_by_a_key_exchange_and_a_version_that_are_allowed() {
        let hybrid = Negotiated { key_exchange: "X25519MLKEM768", version: "TLSv1.3" };
        let classic = Negotiated { key_exchange: "P-256", version: "TLSv1.3" };
        let old = Negotiated { key_exchange: "P-256", version: "TLSv1.2" };
        let named = |key_exchanges: &[KeyExchange], tls13_only| Parameters {
            key_exchanges: key_exchanges.to_vec(),
            tls13_only,
        };
        for (parameters, allowed) in [
            (Parameters::default(), [true, true, true]),
            (named(&[], true), [true, true, false]),
            (named(&[KeyExchange::P256], false), [false, true, true]),
            (named(&[KeyExchange::P256], true), [false, true, false]),
            (Parameters::post_quantum_only(), [true, false, false]),
            (named(&[KeyExchange::X25519MlKem768], false), [true, false, false]),
        ] {
            assert_eq!(
                [hybrid, classic, old].map(|agreed| parameters.allows(&agreed)),
                allowed,
                "{parameters:?}"
            );
        }
    }
}

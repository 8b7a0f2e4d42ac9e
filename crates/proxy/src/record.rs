//! What the data path tells telemetry: labels of a connection, and why something was refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use maille_core::Identity;
use maille_policy::{ConnectionPolicy, DecidedBy, Decision, RequestAttributes, RuleId};
use maille_telemetry::{
    ConnectionLabels, Peer, PolicyRef, Protocol, Refusal, RefusalKind, Reporter, ResponseFlags, Security,
    ServiceLabels, TlsReason, WorkloadLabels,
};
use maille_tls::{HandshakeError, Reason};

use crate::snapshot::{Inbound, ServiceName, Workload};

/// A refusal that outlives what it was made of.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    kind: RefusalKind,
    policy: Option<RuleId>,
    reason: String,
    flags: ResponseFlags,
    tls: Option<TlsReason>,
    details: Option<Box<str>>,
}

impl Refused {
    pub(crate) fn new(kind: RefusalKind, reason: String) -> Self {
        Self { kind, policy: None, reason, flags: kind.flags(), tls: kind.tls(), details: None }
    }

    /// Names the rule that stands behind it.
    pub(crate) fn with_rule(mut self, rule: &RuleId) -> Self {
        self.policy = Some(rule.clone());
        self
    }

    /// What the access log gives as `RESPONSE_CODE_DETAILS`, where that does not follow from the kind.
    pub(crate) fn with_details(mut self, details: String) -> Self {
        self.details = Some(details.into());
        self
    }

    /// Says why there was no mutual TLS, if that is known better than its kind tells.
    pub(crate) fn with_tls(mut self, reason: Option<TlsReason>) -> Self {
        self.tls = reason.or(self.tls);
        self
    }

    pub(crate) fn with_flags(mut self, flags: ResponseFlags) -> Self {
        self.flags = flags;
        self
    }

    /// The refusal that a decision is, if it is one.
    pub(crate) fn unless_allowed(
        policy: &ConnectionPolicy,
        request: Option<&RequestAttributes<'_>>,
        decision: &Decision<'_>,
    ) -> Option<Self> {
        if decision.is_allowed() {
            return None;
        }
        let kind = match decision.action {
            DecidedBy::DenyRule => RefusalKind::DenyRule,
            _ => RefusalKind::NoAllowRule,
        };
        let reason = policy.explain(request, decision);
        Some(Self { policy: decision.policy.cloned(), ..Self::new(kind, reason) })
    }

    /// As telemetry takes it.
    pub(crate) fn refusal(&self) -> Refusal<'_> {
        let policy = self.policy.as_ref().map(policy_ref);
        let details = self.details.as_deref();
        Refusal { kind: self.kind, policy, reason: &self.reason, flags: self.flags, tls: self.tls, details }
    }

    pub(crate) fn kind(&self) -> RefusalKind {
        self.kind
    }

    pub(crate) fn flags(&self) -> ResponseFlags {
        self.flags
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }
}

/// What a failed handshake is counted as.
pub(crate) fn tls_reason(error: &HandshakeError) -> TlsReason {
    match error {
        HandshakeError::Refused(refusal) => match &refusal.reason {
            Reason::UnknownIssuer { .. } | Reason::NoBundle(_) => TlsReason::UntrustedCa,
            Reason::TrustDomain { .. } => TlsReason::TrustDomain,
            Reason::Expired { .. } => TlsReason::Expired,
            reason if reason.is_revocation() => TlsReason::Revoked,
            Reason::NotYetValid { .. } => TlsReason::NotYetValid,
            Reason::Name { .. } => TlsReason::SanMismatch,
            _ => TlsReason::BadCertificate,
        },
        HandshakeError::NoCertificate => TlsReason::NoClientCertificate,
        HandshakeError::BadSignature => TlsReason::BadSignature,
        HandshakeError::Certificate(_) => TlsReason::BadCertificate,
        HandshakeError::RefusedByPeer(_) => TlsReason::RefusedByPeer,
        HandshakeError::Incompatible(_) => TlsReason::Incompatible,
        HandshakeError::Protocol(_) => TlsReason::Protocol,
        HandshakeError::Io(_) => TlsReason::Broken,
    }
}

/// What an open connection is ended for whose peer is believed no more.
pub(crate) fn peer_lost(refusal: &maille_tls::Refusal) -> Refused {
    let kind = match &refusal.reason {
        Reason::Expired { .. } => RefusalKind::CertificateExpired,
        _ => RefusalKind::CertificateRevoked,
    };
    Refused::new(kind, refusal.to_string())
}

/// A rule as telemetry names it.
pub(crate) fn policy_ref(id: &RuleId) -> PolicyRef<'_> {
    PolicyRef { namespace: &id.namespace, name: &id.name, rule: id.rule }
}

/// A workload of the registry as telemetry knows it; the principal only if it was proved.
pub(crate) fn peer(workload: &Workload, verified: Option<&Identity>, address: Option<IpAddr>) -> Peer {
    Peer {
        workload: Arc::new(WorkloadLabels {
            name: workload.workload_name.to_string(),
            namespace: verified
                .map_or_else(|| workload.namespace.to_string(), |id| id.namespace().to_owned()),
            principal: verified.map(ToString::to_string).unwrap_or_default(),
            app: workload.app.to_string(),
            canonical_name: workload.canonical_name.to_string(),
            canonical_revision: workload.canonical_revision.to_string(),
        }),
        uid: workload.uid.clone(),
        address,
    }
}

/// A service as telemetry knows it.
pub(crate) fn service(name: &ServiceName) -> Arc<ServiceLabels> {
    Arc::new(ServiceLabels {
        host: name.hostname.to_string(),
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
    })
}

/// Stands for what is no service (reference cli-and-telemetry 3.1, `destination_service_name`).
pub(crate) fn pseudo_service(name: &str, host: String) -> Arc<ServiceLabels> {
    Arc::new(ServiceLabels { host, name: name.to_owned(), namespace: String::new() })
}

/// The caller, as the registry has it at its address; nobody if the identity it proved is another one.
pub(crate) fn caller(
    workload: &Workload,
    proved: Option<&Identity>,
    address: Option<IpAddr>,
) -> Option<Peer> {
    let fits = proved.is_none() || workload.identity.as_ref() == proved;
    fits.then(|| peer(workload, proved, address))
}

/// Labels of a connection that reached this workload. `own` is the identity that this proxy shows, `caller` the
/// workload that the registry has at the caller's address; a proved identity that is not its own is believed instead.
pub(crate) fn inbound_labels(
    inbound: &Inbound,
    own: &Identity,
    caller: Option<&Workload>,
    from: SocketAddr,
    to: SocketAddr,
    identity: Option<&Identity>,
    protocol: Protocol,
) -> ConnectionLabels {
    let named = caller.and_then(|workload| self::caller(workload, identity, Some(from.ip())));
    let source = match (named, identity) {
        (Some(named), _) => named,
        (None, Some(identity)) => Peer::of_identity(identity, Some(from.ip())),
        (None, None) => Peer::of_address(from.ip()),
    };
    let service = match inbound.ports.get(&to.port()) {
        Some(port) if !port.service.hostname.is_empty() => service(&port.service),
        _ => pseudo_service("InboundPassthroughCluster", String::new()),
    };
    ConnectionLabels {
        reporter: Reporter::Destination,
        source,
        destination: peer(&inbound.workload, identity.map(|_| own), Some(to.ip())),
        service,
        port: to.port(),
        protocol,
        security: if identity.is_some() { Security::MutualTls } else { Security::None },
        mtls: identity.is_some(),
        key_exchange: "",
    }
}

/// Who is called, as an outbound connection knows it.
#[derive(Debug, Clone)]
pub(crate) struct Called {
    pub(crate) workload: Arc<Workload>,
    pub(crate) service: Arc<ServiceLabels>,
    pub(crate) address: SocketAddr,
}

/// Who proved what on an outbound connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proven {
    /// Nobody: plaintext, or TLS without a client certificate.
    Nothing,
    /// Both ends an identity of the mesh.
    InMesh,
    /// Both ends something, by the certificates of a DestinationRule.
    Outside,
}

/// Labels of a connection that this workload opened.
pub(crate) fn outbound_labels(
    inbound: &Inbound,
    own: &Identity,
    called: &Called,
    verified: Option<&Identity>,
    proven: Proven,
    protocol: Protocol,
) -> ConnectionLabels {
    ConnectionLabels {
        reporter: Reporter::Source,
        source: peer(
            &inbound.workload,
            (proven == Proven::InMesh).then_some(own),
            inbound.workload.addresses.first().copied(),
        ),
        destination: peer(&called.workload, verified, Some(called.address.ip())),
        service: called.service.clone(),
        port: called.address.port(),
        protocol,
        security: Security::Unknown,
        mtls: proven != Proven::Nothing,
        key_exchange: "",
    }
}

//! Why something was refused, in the words that metrics, flows and the access log share.

use maille_proto::flows::Decision;

use crate::labels::ResponseFlags;

/// The policy and rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRef<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    /// The policy's name.
    pub name: &'a str,
    /// Index of the rule within it.
    pub rule: u32,
}

/// What kind of refusal it is; the `reason` label of `maille_refusals_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalKind {
    /// A DENY rule matched.
    DenyRule,
    /// ALLOW policies exist and no rule of theirs matched.
    NoAllowRule,
    /// A token that does not verify.
    InvalidToken,
    /// The external authorizer of a CUSTOM rule refused.
    AuthorizerDenied,
    /// The external authorizer of a CUSTOM rule could not be asked, or answered nonsense.
    AuthorizerFailed,
    /// A CUSTOM rule matched whose external authorizer is unknown or misconfigured.
    AuthorizerUnusable,
    /// Plaintext on a STRICT port.
    Plaintext,
    /// The TLS handshake failed, or the caller showed no certificate that verifies.
    TlsHandshake,
    /// The server did not prove to be who it should be.
    ServerIdentity,
    /// The registry does not know the destination and policy forbids to pass it through.
    UnknownDestination,
    /// The control plane cannot be asked what the destination is.
    ControlPlaneUnreachable,
    /// The request is malformed, or asks for something that must not be.
    BadRequest,
    /// The destination could not be reached.
    UpstreamFailed,
    /// An open connection that a changed policy forbids.
    PolicyChanged,
    /// The peer's certificate expired while the connection was open.
    CertificateExpired,
    /// The peer's certificate or identity was revoked, or its root withdrawn, while the connection was open.
    CertificateRevoked,
    /// The proxy is out of some resource, or not ready.
    Overload,
}

impl RefusalKind {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DenyRule => "deny_rule",
            Self::NoAllowRule => "no_allow_rule",
            Self::InvalidToken => "invalid_token",
            Self::AuthorizerDenied => "authorizer_denied",
            Self::AuthorizerFailed => "authorizer_failed",
            Self::AuthorizerUnusable => "authorizer_unusable",
            Self::Plaintext => "plaintext",
            Self::TlsHandshake => "tls_handshake",
            Self::ServerIdentity => "server_identity",
            Self::UnknownDestination => "unknown_destination",
            Self::ControlPlaneUnreachable => "control_plane_unreachable",
            Self::BadRequest => "bad_request",
            Self::UpstreamFailed => "upstream_failed",
            Self::PolicyChanged => "policy_changed",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateRevoked => "certificate_revoked",
            Self::Overload => "overload",
        }
    }

    /// The `response_flags` that go with it, unless the caller knows better.
    pub fn flags(self) -> ResponseFlags {
        match self {
            Self::DenyRule
            | Self::NoAllowRule
            | Self::InvalidToken
            | Self::AuthorizerUnusable
            | Self::BadRequest => ResponseFlags::None,
            Self::AuthorizerDenied | Self::AuthorizerFailed => ResponseFlags::ExternalAuthorization,
            Self::Plaintext => ResponseFlags::NoRoute,
            Self::TlsHandshake | Self::ServerIdentity => ResponseFlags::TlsFailure,
            Self::UnknownDestination | Self::ControlPlaneUnreachable => ResponseFlags::NoCluster,
            Self::UpstreamFailed => ResponseFlags::UpstreamConnectFailure,
            Self::PolicyChanged | Self::CertificateExpired | Self::CertificateRevoked => {
                ResponseFlags::LocalReset
            }
            Self::Overload => ResponseFlags::Overload,
        }
    }

    /// Why there was no mutual TLS, as far as the kind tells.
    pub fn tls(self) -> Option<TlsReason> {
        match self {
            Self::Plaintext => Some(TlsReason::Plaintext),
            Self::TlsHandshake => Some(TlsReason::Protocol),
            Self::ServerIdentity => Some(TlsReason::BadCertificate),
            Self::CertificateExpired => Some(TlsReason::Expired),
            Self::CertificateRevoked => Some(TlsReason::Revoked),
            _ => None,
        }
    }

    /// What flows say of it.
    pub fn decision(self) -> Decision {
        match self {
            Self::DenyRule
            | Self::NoAllowRule
            | Self::InvalidToken
            | Self::AuthorizerDenied
            | Self::AuthorizerFailed
            | Self::AuthorizerUnusable
            | Self::PolicyChanged
            | Self::UnknownDestination => Decision::Denied,
            Self::Plaintext
            | Self::TlsHandshake
            | Self::ServerIdentity
            | Self::CertificateExpired
            | Self::CertificateRevoked => Decision::RefusedTls,
            Self::BadRequest | Self::UpstreamFailed | Self::ControlPlaneUnreachable | Self::Overload => {
                Decision::Failed
            }
        }
    }
}

/// Why there was no mutual TLS; the `reason` label of `maille_mtls_rejected_total` (reference cli-and-telemetry 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsReason {
    /// Plaintext where mutual TLS is demanded.
    Plaintext,
    /// No known root stands behind the certificate.
    UntrustedCa,
    /// The certificate's trust domain is not accepted.
    TrustDomain,
    /// The certificate has expired.
    Expired,
    /// The certificate is revoked, or its identity.
    Revoked,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate names somebody else than was expected.
    SanMismatch,
    /// No certificate was shown.
    NoClientCertificate,
    /// The peer does not hold the key of the certificate it shows.
    BadSignature,
    /// The certificate cannot be read, or breaks another rule.
    BadCertificate,
    /// The peer refused our certificate.
    RefusedByPeer,
    /// No TLS version, cipher suite, group or application protocol in common.
    Incompatible,
    /// What the peer sent is no valid TLS.
    Protocol,
    /// The handshake took too long.
    Timeout,
    /// The connection broke during the handshake.
    Broken,
}

impl TlsReason {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::UntrustedCa => "untrusted_ca",
            Self::TrustDomain => "trust_domain",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::NotYetValid => "not_yet_valid",
            Self::SanMismatch => "san_mismatch",
            Self::NoClientCertificate => "no_client_cert",
            Self::BadSignature => "bad_signature",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Incompatible => "incompatible",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
        }
    }
}

/// A refusal, with everything that explains it.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'a> {
    /// What kind it is.
    pub kind: RefusalKind,
    /// The policy and rule that decided, if one did.
    pub policy: Option<PolicyRef<'a>>,
    /// For people: why, with the nearest rule. Goes into flows and the log, never into metrics.
    pub reason: &'a str,
    /// Usually [`RefusalKind::flags`].
    pub flags: ResponseFlags,
    /// Why there was no mutual TLS, if that is what it is about.
    pub tls: Option<TlsReason>,
    /// What [`Refusal::details`] says, where that does not follow from kind and policy.
    pub details: Option<&'a str>,
}

impl<'a> Refusal<'a> {
    /// A refusal with the flags that usually go with its kind.
    pub fn new(kind: RefusalKind, policy: Option<PolicyRef<'a>>, reason: &'a str) -> Self {
        Self { kind, policy, reason, flags: kind.flags(), tls: kind.tls(), details: None }
    }

    /// `RESPONSE_CODE_DETAILS`, or for TCP `CONNECTION_TERMINATION_DETAILS`
    /// (reference authorization 16, cli-and-telemetry 4.1): no blanks.
    pub fn details(&self) -> String {
        if let Some(details) = self.details {
            return details.replace(char::is_whitespace, "_");
        }
        match (self.kind, self.policy) {
            (RefusalKind::NoAllowRule, _) => "rbac_access_denied_matched_policy[none]".to_owned(),
            (RefusalKind::DenyRule, Some(p)) => format!(
                "rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{}]]",
                p.namespace, p.name, p.rule
            ),
            (RefusalKind::Plaintext, _) => "filter_chain_not_found".to_owned(),
            (RefusalKind::AuthorizerDenied, _) => "ext_authz_denied".to_owned(),
            (RefusalKind::AuthorizerFailed, _) => "ext_authz_error".to_owned(),
            (kind, _) => kind.as_str().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference authorization 16.
    #[test]
    fn details_are_istios() {
        let policy = PolicyRef { namespace: "foo", name: "no-post", rule: 1 };
        let deny = Refusal::new(RefusalKind::DenyRule, Some(policy), "method POST");
        assert_eq!(deny.details(), "rbac_access_denied_matched_policy[ns[foo]-policy[no-post]-rule[1]]");
        let none = Refusal::new(RefusalKind::NoAllowRule, None, "");
        assert_eq!(none.details(), "rbac_access_denied_matched_policy[none]");
        assert_eq!(none.flags.as_str(), "-");
        let plain = Refusal::new(RefusalKind::Plaintext, None, "");
        assert_eq!((plain.details().as_str(), plain.flags.as_str()), ("filter_chain_not_found", "NR"));
    }
}

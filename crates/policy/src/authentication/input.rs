//! What is compiled, and what is said about it.

use maille_config::istio;

pub use maille_config::istio::{ClaimToHeader, JwtHeader};

/// A RequestAuthentication that applies to the workload; selection has been done.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestAuthentication {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// `spec.jwtRules`.
    pub rules: Vec<JwtRule>,
}

/// Tokens of one issuer (reference authorization 19); the members that are not described are those of
/// [`istio::JwtRule`].
#[derive(Clone, PartialEq)]
pub struct JwtRule {
    /// Must equal claim `iss`; empty: not checked.
    pub issuer: String,
    /// Claim `aud` must hold one; empty: not checked.
    pub audiences: Vec<String>,
    /// The key set (RFC 7517), or why there is none: every token of the rule is refused then.
    pub jwks: Result<String, String>,
    #[allow(missing_docs, reason = "named by Istio")]
    pub from_headers: Vec<JwtHeader>,
    #[allow(missing_docs, reason = "named by Istio")]
    pub from_params: Vec<String>,
    #[allow(missing_docs, reason = "named by Istio")]
    pub from_cookies: Vec<String>,
    #[allow(missing_docs, reason = "named by Istio")]
    pub forward_original_token: bool,
    /// Empty: none.
    pub output_payload_to_header: String,
    #[allow(missing_docs, reason = "named by Istio")]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    #[allow(missing_docs, reason = "named by Istio")]
    pub space_delimited_claims: Vec<String>,
}

impl JwtRule {
    /// A rule as the user wrote it, with the key set that it inlines or that was fetched for it.
    pub fn of_spec(spec: &istio::JwtRule, jwks: Result<String, String>) -> Self {
        Self {
            issuer: spec.issuer.clone(),
            audiences: spec.audiences.clone(),
            jwks,
            from_headers: spec.from_headers.clone(),
            from_params: spec.from_params.clone(),
            from_cookies: spec.from_cookies.clone(),
            forward_original_token: spec.forward_original_token,
            output_payload_to_header: spec.output_payload_to_header.clone(),
            output_claim_to_headers: spec.output_claim_to_headers.clone(),
            space_delimited_claims: spec.space_delimited_claims.clone(),
        }
    }
}

impl std::fmt::Debug for JwtRule {
    /// Without the key set, which may hold a shared secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtRule")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

/// Why a rule is not what it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request authentication {namespace}/{name}, {field}: {message}; {effect}")]
pub struct AuthenticationProblem {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Path of the offending field, such as `spec.jwtRules[0].jwks`.
    pub field: String,
    /// What is wrong with it; never holds key material.
    pub message: String,
    /// What follows from it.
    pub effect: &'static str,
}

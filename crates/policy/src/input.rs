//! What is compiled, and what is said about it.

use maille_config::istio::AuthorizationPolicySpec;
use maille_core::TrustDomain;

/// A policy that applies to the workload; selection has been done.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Annotated `istio.io/dry-run`: never affects a decision (reference authorization 14).
    pub dry_run: bool,
    /// The policy; `selector` and `targetRefs` are not looked at.
    pub spec: AuthorizationPolicySpec,
}

/// The mesh's names, which some values of policies refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustContext {
    /// The mesh's own trust domain.
    pub trust_domain: TrustDomain,
    /// Other trust domains that count as the mesh's own (reference authorization 12.5).
    pub aliases: Vec<TrustDomain>,
    /// The namespace of mesh-wide policy.
    pub root_namespace: String,
}

impl TrustContext {
    /// The trust domain and its aliases, each once.
    pub fn domains(&self) -> Vec<&str> {
        let mut all = vec![self.trust_domain.as_str()];
        for alias in &self.aliases {
            if !all.contains(&alias.as_str()) {
                all.push(alias.as_str());
            }
        }
        all
    }
}

/// Why a policy could not be compiled. It refuses in the meantime: as ALLOW it matches nothing but
/// counts, as DENY it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authorization policy {namespace}/{name}, {field}: {message}; {effect}")]
pub struct CompileProblem {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Path of the offending field, such as `spec.rules[0].to[0].operation.ports[1]`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What the policy does because of it.
    pub effect: &'static str,
}

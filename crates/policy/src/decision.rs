//! Decisions, and the rules they name.

use std::fmt;
use std::sync::Arc;

/// May the connection or request go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// What made the decision (reference authorization 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecidedBy {
    /// No DENY rule matched and no ALLOW policy applies: allowed.
    NoPolicy,
    /// An ALLOW rule matched and no DENY rule did: allowed.
    AllowRule,
    /// A DENY rule matched: refused.
    DenyRule,
    /// ALLOW policies apply and none of their rules matched: refused.
    NoAllowRule,
}

/// One rule of one policy; printed as in access logs: `ns[foo]-policy[no-post]-rule[1]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleId {
    /// Namespace of the policy.
    pub namespace: Arc<str>,
    /// Name of the policy.
    pub name: Arc<str>,
    /// Index of the rule in the policy's YAML, from 0.
    pub rule: u32,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ns[{}]-policy[{}]-rule[{}]", self.namespace, self.name, self.rule)
    }
}

/// The answer for one connection or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether it may go on.
    pub verdict: Verdict,
    /// Why.
    pub action: DecidedBy,
    /// The rule that matched, for [`DecidedBy::AllowRule`] and [`DecidedBy::DenyRule`]. When several
    /// match: the one whose printed id is smallest in byte order (reference authorization 16).
    pub policy: Option<&'a RuleId>,
}

impl Decision<'_> {
    /// Whether the verdict is [`Verdict::Allow`].
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }

    /// `RESPONSE_CODE_DETAILS` (HTTP) or `CONNECTION_TERMINATION_DETAILS` (TCP) of a refusal
    /// (reference authorization 16).
    pub fn details(&self) -> String {
        match self.policy {
            Some(id) if self.action == DecidedBy::DenyRule => {
                format!("rbac_access_denied_matched_policy[{id}]")
            }
            _ => "rbac_access_denied_matched_policy[none]".to_owned(),
        }
    }
}

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

/// What beyond DENY and ALLOW a workload has policies for: what is false here need not be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// CUSTOM.
    pub asks: bool,
    /// AUDIT.
    pub audits: bool,
    /// DENY or ALLOW, as a dry run.
    pub shadows: bool,
}

/// A CUSTOM rule matched: its provider decides before any DENY or ALLOW policy (reference authorization 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<'a> {
    /// `spec.provider.name`; empty if the policy names none.
    pub provider: &'a str,
    /// The rule that matched. When several match: the one whose printed id is smallest in byte order.
    pub rule: &'a RuleId,
    /// Why nobody can be asked, whoever the provider is: to be refused.
    pub problem: Option<&'a str>,
}

/// What the dry-run policies would decide (reference authorization 14).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shadow<'a> {
    /// What those with action DENY say; `None`: there is none.
    pub deny: Option<ShadowResult<'a>>,
    /// What those with action ALLOW say; `None`: there is none.
    pub allow: Option<ShadowResult<'a>>,
}

/// What the dry-run policies of one action would decide, if they were enforced and there were no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowResult<'a> {
    /// Whether they let it through.
    pub allowed: bool,
    /// The rule that matched, smallest printed id first.
    pub rule: Option<&'a RuleId>,
}

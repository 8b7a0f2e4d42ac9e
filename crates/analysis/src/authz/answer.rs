use maille_policy::{DecidedBy, Decision};
use serde::Serialize;

/// What policy says to one question; its JSON is part of the public contract (design, "The public contract").
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// Whether the request may go through.
    pub allowed: bool,
    /// What kind of rule decided.
    pub action: Action,
    /// `namespace/name` of the policy that decided.
    pub policy: Option<String>,
    /// Index of its rule, from 0.
    pub rule: Option<u32>,
    /// Why, for people.
    pub reason: String,
}

/// The action of the rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// An ALLOW rule matched.
    Allow,
    /// A DENY rule matched.
    Deny,
    /// No rule matched, or no policy selects the workload.
    None,
}

impl Action {
    /// As in YAML and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::None => "NONE",
        }
    }
}

impl Answer {
    /// The engine's decision in the contract's words.
    pub fn new(decision: &Decision<'_>, reason: String) -> Self {
        Self {
            allowed: decision.is_allowed(),
            action: match decision.action {
                DecidedBy::AllowRule => Action::Allow,
                DecidedBy::DenyRule => Action::Deny,
                DecidedBy::NoPolicy | DecidedBy::NoAllowRule => Action::None,
            },
            policy: decision.policy.map(|id| format!("{}/{}", id.namespace, id.name)),
            rule: decision.policy.map(|id| id.rule),
            reason,
        }
    }
}

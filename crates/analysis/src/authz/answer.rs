use maille_policy::{DecidedBy, Decision, RuleId};
use serde::Serialize;

/// What policy says to one question; its JSON is part of the public contract (design, "The public contract"). Fields
/// beyond the contract's five are left out where they have nothing to say.
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
    /// A provider would decide, and was not asked; `allowed` is false then. In the JSON, action CUSTOM and the reason say
    /// so.
    #[serde(skip)]
    pub undecided: bool,
    /// The external authorizer that is asked about the request, as policies name it. It can refuse what the others
    /// allow, and allow nothing that they refuse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The AUDIT rule that marks the request in the access log; it decides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<RuleName>,
    /// What dry-run policies would do; they decide nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowAnswer>,
}

/// One rule of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleName {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// Index of the rule, from 0.
    pub rule: u32,
}

/// What would become of the request if the dry-run policies were in force (reference authorization 14).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShadowAnswer {
    /// Whether DENY and ALLOW policies together with the dry-run ones would let it through.
    pub allowed: bool,
    /// What the dry-run DENY policies say by themselves; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny: Option<ShadowResult>,
    /// What the dry-run ALLOW policies say by themselves; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<ShadowResult>,
    /// The same, for people.
    pub reason: String,
}

/// What the dry-run policies of one action say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShadowResult {
    /// Whether they let the request through.
    pub allowed: bool,
    /// `namespace/name` of the policy whose rule matched.
    pub policy: Option<String>,
    /// Index of that rule, from 0.
    pub rule: Option<u32>,
}

/// The action of the rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// An ALLOW rule matched.
    Allow,
    /// A DENY rule matched.
    Deny,
    /// A CUSTOM rule matched: its provider decides, and cannot be asked here.
    Custom,
    /// No rule matched, or no policy selects the workload.
    None,
}

impl Action {
    /// As in YAML and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Custom => "CUSTOM",
            Self::None => "NONE",
        }
    }
}

impl Answer {
    /// An answer that no rule gave.
    pub fn without_rule(allowed: bool, reason: String) -> Self {
        Self {
            allowed,
            action: Action::None,
            policy: None,
            rule: None,
            reason,
            undecided: false,
            provider: None,
            audit: None,
            shadow: None,
        }
    }

    /// The engine's decision in the contract's words.
    pub(super) fn new(decision: &Decision<'_>, reason: String) -> Self {
        let action = match decision.action {
            DecidedBy::AllowRule => Action::Allow,
            DecidedBy::DenyRule => Action::Deny,
            DecidedBy::NoPolicy | DecidedBy::NoAllowRule => Action::None,
        };
        let rule = decision.policy.map(RuleName::of);
        Self { action, ..Self::without_rule(decision.is_allowed(), reason) }.by(rule)
    }

    /// A CUSTOM rule matched, and whom it asks does not say yes.
    pub(super) fn custom(rule: &RuleId, provider: &str, reason: String) -> Self {
        let answer = Self {
            action: Action::Custom,
            provider: Some(provider.to_owned()),
            ..Self::without_rule(false, reason)
        };
        answer.by(Some(RuleName::of(rule)))
    }

    fn by(mut self, rule: Option<RuleName>) -> Self {
        (self.policy, self.rule) = rule.map(|rule| (rule.policy, rule.rule)).unzip();
        self
    }
}

impl RuleName {
    pub(super) fn of(id: &RuleId) -> Self {
        Self { policy: format!("{}/{}", id.namespace, id.name), rule: id.rule }
    }
}

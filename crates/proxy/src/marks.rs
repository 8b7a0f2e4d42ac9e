//! What policies say that do not decide: AUDIT, and dry-run ones (reference authorization 3 and 14).

use maille_policy::{ConnectionPolicy, RequestAttributes, RuleId, ShadowResult};
use maille_telemetry::{Edge, Marks, Shadow};

use crate::record::policy_ref;

/// Marks that outlive the policy they were made by.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marked {
    audit: Option<RuleId>,
    shadow_allow: Option<Shadowed>,
    shadow_deny: Option<Shadowed>,
}

#[derive(Debug, Clone)]
struct Shadowed {
    allowed: bool,
    rule: Option<RuleId>,
}

impl Shadowed {
    fn of(result: ShadowResult<'_>) -> Self {
        Self { allowed: result.allowed, rule: result.rule.cloned() }
    }

    fn borrow(&self) -> Shadow<'_> {
        Shadow { allowed: self.allowed, policy: self.rule.as_ref().map(policy_ref) }
    }
}

impl Marked {
    /// The marks of a request; `None` if the workload has no policy that marks, which costs nothing then.
    pub(crate) fn of_http(
        policy: &ConnectionPolicy,
        attributes: &RequestAttributes<'_>,
    ) -> Option<Box<Self>> {
        let needs = policy.needs();
        if !needs.audits && !needs.shadows {
            return None;
        }
        let shadow = policy.shadow_http(attributes);
        Self::unless_empty(policy.audit_http(attributes), shadow.allow, shadow.deny)
    }

    /// The marks of a connection of opaque bytes.
    pub(crate) fn of_tcp(policy: &ConnectionPolicy) -> Option<Box<Self>> {
        let needs = policy.needs();
        if !needs.audits && !needs.shadows {
            return None;
        }
        let shadow = policy.shadow_tcp();
        Self::unless_empty(policy.audit_tcp(), shadow.allow, shadow.deny)
    }

    fn unless_empty(
        audit: Option<&RuleId>,
        allow: Option<ShadowResult<'_>>,
        deny: Option<ShadowResult<'_>>,
    ) -> Option<Box<Self>> {
        let is_empty = audit.is_none() && allow.is_none() && deny.is_none();
        (!is_empty).then(|| {
            Box::new(Self {
                audit: audit.cloned(),
                shadow_allow: allow.map(Shadowed::of),
                shadow_deny: deny.map(Shadowed::of),
            })
        })
    }

    /// As telemetry takes them.
    pub(crate) fn borrow(&self) -> Marks<'_> {
        Marks {
            audit: self.audit.as_ref().map(policy_ref),
            shadow_allow: self.shadow_allow.as_ref().map(Shadowed::borrow),
            shadow_deny: self.shadow_deny.as_ref().map(Shadowed::borrow),
        }
    }

    /// Counts on a pair's flow what dry-run policies would have refused of what was allowed.
    pub(crate) fn would_refuse(&self, edge: &Edge) {
        for shadow in [&self.shadow_allow, &self.shadow_deny].into_iter().flatten().filter(|s| !s.allowed) {
            edge.would_refuse(shadow.rule.as_ref().map(policy_ref));
        }
    }
}

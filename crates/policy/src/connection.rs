//! The policies of a workload as they stand for one connection.

use std::sync::Arc;

use crate::set::{CompiledRule, PolicySet};
use crate::test::{Connection, Request};
use crate::{ConnectionAttributes, DecidedBy, Decision, RequestAttributes, Verdict};

/// What a policy set says about one connection and the requests on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionPolicy {
    set: Arc<PolicySet>,
    connection: Arc<Connection>,
}

impl ConnectionPolicy {
    pub(crate) fn new(set: Arc<PolicySet>, attributes: &ConnectionAttributes<'_>) -> Self {
        Self { set, connection: Arc::new(Connection::new(attributes)) }
    }

    /// Decides about opaque bytes.
    pub fn decide_tcp(&self) -> Decision<'_> {
        let first = |rules: &'_ [CompiledRule]| {
            rules.iter().position(|r| {
                r.tcp.as_ref().is_some_and(|t| t.matches(&self.set.tests, &self.connection, None))
            })
        };
        self.decision(first(&self.set.deny), || first(&self.set.allow))
    }

    /// Decides about one HTTP request.
    pub fn decide_http(&self, request: &RequestAttributes<'_>) -> Decision<'_> {
        let request = Request::new(request);
        let first = |rules: &'_ [CompiledRule]| {
            rules.iter().position(|r| r.http.matches(&self.set.tests, &self.connection, Some(&request)))
        };
        self.decision(first(&self.set.deny), || first(&self.set.allow))
    }

    /// Whether some HTTP request could still be allowed. May say yes too often, never no.
    pub fn can_allow_http(&self) -> bool {
        true
    }

    fn decision(&self, deny: Option<usize>, allow: impl FnOnce() -> Option<usize>) -> Decision<'_> {
        let (verdict, action, rule) = match deny.and_then(|i| self.set.deny.get(i)) {
            Some(rule) => (Verdict::Deny, DecidedBy::DenyRule, Some(rule)),
            None if !self.set.has_allow => (Verdict::Allow, DecidedBy::NoPolicy, None),
            None => match allow().and_then(|i| self.set.allow.get(i)) {
                Some(rule) => (Verdict::Allow, DecidedBy::AllowRule, Some(rule)),
                None => (Verdict::Deny, DecidedBy::NoAllowRule, None),
            },
        };
        Decision { verdict, action, policy: rule.map(|r| &r.id) }
    }

    /// The reason of a decision, for people. `request` is the one decided about; `None`: TCP.
    pub fn explain(&self, request: Option<&RequestAttributes<'_>>, decision: &Decision<'_>) -> String {
        let _ = request;
        match (decision.action, decision.policy) {
            (DecidedBy::DenyRule, Some(id)) => {
                format!("DENY policy {}/{}, rule {} matches", id.namespace, id.name, id.rule)
            }
            (DecidedBy::AllowRule, Some(id)) => {
                format!("ALLOW policy {}/{}, rule {} matches", id.namespace, id.name, id.rule)
            }
            (DecidedBy::NoPolicy, _) => "no DENY rule matches and no ALLOW policy applies".to_owned(),
            _ => "ALLOW policies apply and no rule of theirs matches".to_owned(),
        }
    }
}

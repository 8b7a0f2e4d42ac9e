//! The policies of a workload as they stand for one connection.

use std::sync::Arc;

use crate::set::PolicySet;
use crate::side::{Open, Rank, Side};
use crate::test::{Connection, Request};
use crate::{
    Ask, ConnectionAttributes, DecidedBy, Decision, Needs, RequestAttributes, RuleId, Shadow, ShadowResult,
    Verdict,
};

/// What a policy set says about one connection and the requests on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionPolicy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: Arc<PolicySet>,
    connection: Connection,
    deny: Option<Open>,
    allow: Option<Open>,
    /// What most workloads have no policies for.
    rare: Option<Box<Rare>>,
}

#[derive(Debug)]
struct Rare {
    custom: Option<Open>,
    audit: Option<Open>,
    shadow_deny: Option<Open>,
    shadow_allow: Option<Open>,
}

impl ConnectionPolicy {
    pub(crate) fn new(set: Arc<PolicySet>, attributes: &ConnectionAttributes<'_>) -> Self {
        let connection = Connection::new(attributes);
        let open = |side: &Option<Side>| side.as_ref().map(|side| side.open(&connection));
        let (deny, allow) = (open(&set.deny), open(&set.allow));
        let rare = (set.needs() != Needs::default()).then(|| {
            Box::new(Rare {
                custom: open(&set.custom),
                audit: open(&set.audit),
                shadow_deny: open(&set.shadow_deny),
                shadow_allow: open(&set.shadow_allow),
            })
        });
        Self { inner: Arc::new(Inner { set, connection, deny, allow, rare }) }
    }

    /// Decides about opaque bytes: DENY and ALLOW. [`Self::ask_tcp`] comes before.
    pub fn decide_tcp(&self) -> Decision<'_> {
        self.inner.decision(None)
    }

    /// Decides about one HTTP request: DENY and ALLOW. [`Self::ask_http`] comes before. Does not allocate, unless
    /// a header that proxies fold (`accept`, `via` …) comes in several lines and a rule asks for it.
    pub fn decide_http(&self, request: &RequestAttributes<'_>) -> Decision<'_> {
        self.inner.decision(Some(&Request::new(request)))
    }

    /// Whether some HTTP request could still be allowed; if not, the connection serves nobody. May say yes
    /// too often, never no.
    pub fn can_allow_http(&self) -> bool {
        let Inner { deny, allow, rare, .. } = &*self.inner;
        let always_asks = rare.as_ref().and_then(|rare| rare.custom.as_ref()?.http);
        deny.as_ref().is_none_or(|open| open.http.is_none())
            && allow.as_ref().is_none_or(Open::can_match_http)
            && self.ask(always_asks).is_none_or(|ask| ask.problem.is_none())
    }

    /// What beyond DENY and ALLOW the workload has policies for.
    pub fn needs(&self) -> Needs {
        self.inner.set.needs()
    }

    /// Whom to ask about opaque bytes before [`Self::decide_tcp`]; `None`: nobody.
    pub fn ask_tcp(&self) -> Option<Ask<'_>> {
        self.ask(self.inner.rare(|set| &set.custom, |rare| &rare.custom, None)?.1)
    }

    /// Whom to ask about a request before [`Self::decide_http`]; `None`: nobody.
    pub fn ask_http(&self, request: &RequestAttributes<'_>) -> Option<Ask<'_>> {
        let request = Request::new(request);
        self.ask(self.inner.rare(|set| &set.custom, |rare| &rare.custom, Some(&request))?.1)
    }

    fn ask(&self, rank: Option<Rank>) -> Option<Ask<'_>> {
        let set = &*self.inner.set;
        let rank = set.never_asked.or(rank)?;
        let asked = set.asked.get(rank as usize)?;
        let rule = set.custom.as_ref()?.id(rank)?;
        Some(Ask { provider: &asked.provider, rule, problem: asked.problem.as_deref() })
    }

    /// The AUDIT rule that marks opaque bytes.
    pub fn audit_tcp(&self) -> Option<&RuleId> {
        let (side, rank) = self.inner.rare(|set| &set.audit, |rare| &rare.audit, None)?;
        side.id(rank?)
    }

    /// The AUDIT rule that marks a request.
    pub fn audit_http(&self, request: &RequestAttributes<'_>) -> Option<&RuleId> {
        let request = Request::new(request);
        let (side, rank) = self.inner.rare(|set| &set.audit, |rare| &rare.audit, Some(&request))?;
        side.id(rank?)
    }

    /// What dry-run policies would decide about opaque bytes.
    pub fn shadow_tcp(&self) -> Shadow<'_> {
        self.inner.shadow(None)
    }

    /// What dry-run policies would decide about a request.
    pub fn shadow_http(&self, request: &RequestAttributes<'_>) -> Shadow<'_> {
        self.inner.shadow(Some(&Request::new(request)))
    }

    pub(crate) fn set(&self) -> &PolicySet {
        &self.inner.set
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// The ALLOW rules, and what of them is left for the connection.
    pub(crate) fn allowing(&self) -> Option<(&Side, &Open)> {
        self.inner.set.allow.as_ref().zip(self.inner.allow.as_ref())
    }
}

impl Inner {
    /// The first rule of one action that matches; `request`: `None` for TCP.
    fn first(&self, side: &Side, open: &Open, request: Option<&Request<'_>>) -> Option<Rank> {
        match request {
            Some(request) => side.first(open, &self.connection, request),
            None => open.tcp,
        }
    }

    /// The rules of one of the rarer actions, if there are any, and the first of them that matches.
    fn rare(
        &self,
        side: fn(&PolicySet) -> &Option<Side>,
        open: fn(&Rare) -> &Option<Open>,
        request: Option<&Request<'_>>,
    ) -> Option<(&Side, Option<Rank>)> {
        let open = open(self.rare.as_ref()?).as_ref()?;
        let side = side(&self.set).as_ref()?;
        Some((side, self.first(side, open, request)))
    }

    fn decision(&self, request: Option<&Request<'_>>) -> Decision<'_> {
        let decision = |verdict, action, policy| Decision { verdict, action, policy };
        if let Some((side, open)) = self.set.deny.as_ref().zip(self.deny.as_ref())
            && let Some(rank) = self.first(side, open, request)
        {
            return decision(Verdict::Deny, DecidedBy::DenyRule, side.id(rank));
        }
        let Some((side, open)) = self.set.allow.as_ref().zip(self.allow.as_ref()) else {
            return decision(Verdict::Allow, DecidedBy::NoPolicy, None);
        };
        match self.first(side, open, request) {
            Some(rank) => decision(Verdict::Allow, DecidedBy::AllowRule, side.id(rank)),
            None => decision(Verdict::Deny, DecidedBy::NoAllowRule, None),
        }
    }

    fn shadow(&self, request: Option<&Request<'_>>) -> Shadow<'_> {
        let deny = self.rare(|set| &set.shadow_deny, |rare| &rare.shadow_deny, request);
        let allow = self.rare(|set| &set.shadow_allow, |rare| &rare.shadow_allow, request);
        Shadow { deny: deny.map(|found| result(found, false)), allow: allow.map(|found| result(found, true)) }
    }
}

/// The answer of policies whose match allows, or refuses.
fn result((side, rank): (&Side, Option<Rank>), allows: bool) -> ShadowResult<'_> {
    ShadowResult { allowed: rank.is_some() == allows, rule: rank.and_then(|rank| side.id(rank)) }
}

//! The policies of a workload as they stand for one connection.

use std::sync::Arc;

use crate::set::{Consequence, Part, PartId, PolicySet, Posting, Rank, Side};
use crate::test::{Connection, Request};
use crate::{ConnectionAttributes, DecidedBy, Decision, RequestAttributes, Verdict};

/// What a policy set says about one connection and the requests on it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionPolicy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: Arc<PolicySet>,
    connection: Connection,
    satisfied: Bits,
    deny: Open,
    allow: Open,
}

/// What of one action is left for a connection.
#[derive(Debug, Default)]
struct Open {
    /// The first rule that matches TCP.
    tcp: Option<Rank>,
    /// The first rule that matches every HTTP request.
    http: Option<Rank>,
    /// Satisfied parts with rules to judge on each request.
    attached: Vec<PartId>,
    /// Whether the index over requests may find a rule that counts.
    indexed: bool,
}

impl Open {
    fn add(&mut self, part: PartId, consequence: &Consequence) {
        let first = |a: Option<Rank>, b: Option<Rank>| a.into_iter().chain(b).min();
        self.tcp = first(self.tcp, consequence.tcp);
        self.http = first(self.http, consequence.http);
        if !consequence.attached.is_empty() {
            self.attached.push(part);
        }
        self.indexed |= consequence.indexed;
    }
}

/// A set of part ids.
#[derive(Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn contains(&self, id: PartId) -> bool {
        self.0.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    fn insert(&mut self, id: PartId) {
        if let Some(word) = self.0.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }
}

impl ConnectionPolicy {
    pub(crate) fn new(set: Arc<PolicySet>, attributes: &ConnectionAttributes<'_>) -> Self {
        let connection = Connection::new(attributes);
        let mut satisfied = Bits(vec![0; set.parts.len().div_ceil(64)].into());
        let (mut deny, mut allow) = (Open::default(), Open::default());
        let mut judge = |parts: &[PartId]| {
            for id in parts {
                let Some(part) = set.parts.get(*id as usize) else { continue };
                if !satisfied.contains(*id) && part.tree.matches(&set.tests, &connection, None) {
                    satisfied.insert(*id);
                    deny.add(*id, &part.deny);
                    allow.add(*id, &part.allow);
                }
            }
        };
        judge(&set.unindexed_parts);
        set.part_index.visit(&connection, None, &mut judge);
        Self { inner: Arc::new(Inner { set, connection, satisfied, deny, allow }) }
    }

    /// Decides about opaque bytes.
    pub fn decide_tcp(&self) -> Decision<'_> {
        self.inner.decision(self.inner.deny.tcp, || self.inner.allow.tcp)
    }

    /// Decides about one HTTP request. Does not allocate, unless a header that proxies fold (`accept`,
    /// `via` …) comes in several lines and a rule asks for it.
    pub fn decide_http(&self, request: &RequestAttributes<'_>) -> Decision<'_> {
        let inner = &*self.inner;
        let request = Request::new(request);
        let deny = inner.first(&inner.set.deny, &inner.deny, |part| &part.deny, &request);
        inner.decision(deny, || inner.first(&inner.set.allow, &inner.allow, |part| &part.allow, &request))
    }

    /// Whether some HTTP request could still be allowed; if not, the connection serves nobody. May say yes
    /// too often, never no.
    pub fn can_allow_http(&self) -> bool {
        let Inner { set, deny, allow, .. } = &*self.inner;
        deny.http.is_none()
            && (!set.has_allow || allow.http.is_some() || !allow.attached.is_empty() || allow.indexed)
    }

    pub(crate) fn set(&self) -> &PolicySet {
        &self.inner.set
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// ALLOW rules that the connection satisfies or the request hits, most promising first; may repeat.
    pub(crate) fn promising(&self, request: Option<&Request<'_>>, visit: &mut dyn FnMut(Rank)) {
        let Inner { set, connection, allow, .. } = &*self.inner;
        let parts = allow.attached.iter().filter_map(|id| set.parts.get(*id as usize));
        parts.flat_map(|part| &part.allow.attached).for_each(|rank| visit(*rank));
        if request.is_some() {
            let mut each = |found: &[Posting]| found.iter().for_each(|posting| visit(posting.rank));
            set.allow.pairs.visit(connection, request, &mut each);
            set.allow.index.visit(connection, request, &mut each);
        }
    }
}

impl Inner {
    /// The first rule of one action that matches the request.
    fn first(
        &self,
        side: &Side,
        open: &Open,
        consequence: fn(&Part) -> &Consequence,
        request: &Request<'_>,
    ) -> Option<Rank> {
        let set = &*self.set;
        let matches = |rank: Rank| {
            let rule = side.rules.get(rank as usize);
            rule.is_some_and(|rule| rule.request.matches(&set.tests, &self.connection, Some(request)))
        };
        let mut best = open.http;
        for part in open.attached.iter().filter_map(|id| set.parts.get(*id as usize)) {
            let below = consequence(part).attached.iter().take_while(|rank| best.is_none_or(|b| **rank < b));
            best = below.copied().find(|rank| matches(*rank)).or(best);
        }
        if open.indexed {
            let mut judge = |found: &[Posting]| {
                let below = found.iter().take_while(|posting| best.is_none_or(|b| posting.rank < b));
                let mut open = below.filter(|posting| self.satisfied.contains(posting.part));
                let first = open.find(|posting| posting.settled || matches(posting.rank));
                best = first.map(|posting| posting.rank).or(best);
            };
            side.index.visit(&self.connection, Some(request), &mut judge);
            side.pairs.visit(&self.connection, Some(request), &mut judge);
        }
        best
    }

    fn decision(&self, deny: Option<Rank>, allow: impl FnOnce() -> Option<Rank>) -> Decision<'_> {
        let (verdict, action, side, rank) = match deny {
            Some(rank) => (Verdict::Deny, DecidedBy::DenyRule, &self.set.deny, Some(rank)),
            None if !self.set.has_allow => (Verdict::Allow, DecidedBy::NoPolicy, &self.set.allow, None),
            None => match allow() {
                Some(rank) => (Verdict::Allow, DecidedBy::AllowRule, &self.set.allow, Some(rank)),
                None => (Verdict::Deny, DecidedBy::NoAllowRule, &self.set.allow, None),
            },
        };
        let policy = rank.and_then(|rank| side.rules.get(rank as usize)).map(|rule| &rule.id);
        Decision { verdict, action, policy }
    }
}

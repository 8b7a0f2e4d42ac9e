//! Who talks to whom, once: the reports of both ends and of connections and requests taken together.

use std::collections::{BTreeMap, BTreeSet};

use crate::flows::{Counts, Decision, Flow, Peer, Reporter, WouldRefuse};
use crate::objects::Inventory;
use crate::text::short;

/// Addresses of unknown clients shown one by one; those beyond are one.
const MOST_ADDRESSES: usize = 12;
const OTHER_ADDRESSES: &str = "other addresses";

/// A workload, or what stands for one: a service, a host, an identity or an address outside of every namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Empty for what is outside.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// As it stands in a link: `namespace/name`.
    pub(crate) fn parameter(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Reads what [`Key::parameter`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (!name.is_empty()).then(|| Self::new(namespace, name))
    }

    /// As people read it.
    pub(crate) fn label(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { self.parameter() }
    }
}

/// What becomes of an edge's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verdict {
    /// By policy, or below it.
    Refused,
    /// Allowed, and in the clear.
    Plaintext,
    /// The destination could not be reached.
    Failed,
    /// Allowed, over mutual TLS.
    Mtls,
}

/// What decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    /// `namespace/name`; empty if none.
    pub(crate) policy: String,
    /// Negative if none.
    pub(crate) rule: i64,
    pub(crate) reason: String,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    pub(crate) from: Key,
    pub(crate) to: Key,
    pub(crate) from_principals: BTreeSet<String>,
    pub(crate) to_principals: BTreeSet<String>,
    /// Names by which the destination was called.
    pub(crate) services: BTreeSet<String>,
    pub(crate) port: u64,
    pub(crate) protocol: String,
    pub(crate) mtls: bool,
    pub(crate) verdict: Verdict,
    /// Refused below policy: plaintext under STRICT, a certificate that does not verify.
    pub(crate) below_policy: bool,
    pub(crate) cause: Cause,
    /// Whether only the client's proxy told it.
    pub(crate) from_client: bool,
    pub(crate) total: Counts,
    pub(crate) per_s: f64,
    pub(crate) first_seen_ms: u64,
    pub(crate) last_seen_ms: u64,
    pub(crate) would_refuse: WouldRefuse,
}

impl Conversation {
    /// Calls that a dry-run policy would refuse, and it; a line for each.
    pub(crate) fn dry_runs(&self) -> Vec<String> {
        let line = |((policy, rule), count): (&(String, i64), &u64)| {
            let calls = if self.total.requests > 0 { "requests" } else { "connections" };
            match policy.as_str() {
                "" => format!("{count} {calls} would be refused: no dry-run ALLOW rule matches"),
                policy if *rule >= 0 => format!("{count} {calls} would be refused by {policy}, rule {rule}"),
                policy => format!("{count} {calls} would be refused by {policy}"),
            }
        };
        self.would_refuse.iter().map(line).collect()
    }

    fn add_dry_runs(&mut self, other: &WouldRefuse) {
        for (by, count) in other {
            let sum = self.would_refuse.entry(by.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// What decided, in a few words; `None` where nothing needed to.
    pub(crate) fn headline(&self) -> Option<String> {
        let Cause { policy, rule, .. } = &self.cause;
        if !policy.is_empty() {
            let own = policy.strip_prefix(&format!("{}/", self.to.namespace)).unwrap_or(policy);
            return Some(if *rule >= 0 { format!("{own}, rule {rule}") } else { own.to_owned() });
        }
        match self.verdict {
            Verdict::Refused if self.is_no_allow() => Some("no ALLOW rule matches".to_owned()),
            Verdict::Refused if self.below_policy && !self.mtls => {
                Some("STRICT: plaintext refused".to_owned())
            }
            Verdict::Refused if self.below_policy => Some("TLS refused".to_owned()),
            Verdict::Refused => Some("refused".to_owned()),
            Verdict::Failed => Some("unreachable".to_owned()),
            Verdict::Plaintext | Verdict::Mtls => None,
        }
    }

    /// The headline as it fits beside an edge.
    pub(crate) fn badge(&self) -> Option<String> {
        let Cause { policy, .. } = &self.cause;
        if !policy.is_empty() {
            let name = policy.rsplit('/').next().unwrap_or(policy);
            return Some(short(name, 24));
        }
        match self.verdict {
            Verdict::Refused if self.is_no_allow() => Some("no ALLOW rule".to_owned()),
            Verdict::Refused if self.below_policy && !self.mtls => Some("STRICT: plaintext".to_owned()),
            _ => self.headline(),
        }
    }

    fn is_no_allow(&self) -> bool {
        self.cause.reason.to_ascii_lowercase().starts_with("no allow rule")
    }

    fn is_judgement(&self) -> bool {
        self.total.requests > 0 || matches!(self.verdict, Verdict::Refused | Verdict::Failed)
    }
}

/// Takes flows together. `recent` holds the same flows with the counts of the last `recent_s` seconds.
pub(crate) fn conversations(
    flows: &[Flow],
    recent: &[Flow],
    recent_s: f64,
    inventory: &Inventory,
    now_ms: u64,
) -> Vec<Conversation> {
    let mut names = Names { inventory, addresses: BTreeSet::new() };
    let mut found: BTreeMap<RowKey, Conversation> = BTreeMap::new();
    for flow in flows {
        let row = names.row(flow);
        let conversation = found.entry(row.clone()).or_insert_with(|| row.begin(flow));
        conversation.add(flow);
    }
    for flow in recent {
        let row = names.row(flow);
        if let Some(conversation) = found.get_mut(&row) {
            // A flow that began a moment ago is not a slow one.
            let since_s = now_ms.saturating_sub(conversation.first_seen_ms) as f64 / 1000.0;
            conversation.per_s += flow.counts.calls() as f64 / since_s.clamp(10.0, recent_s.max(10.0));
        }
    }
    settle(found)
}

/// What makes two flows the same line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    from: Key,
    to: Key,
    port: u64,
    reporter: Reporter,
    protocol: String,
    mtls: bool,
    decision: Decision,
    policy: String,
    rule: i64,
    /// Connections that were let in, before anything was asked of them.
    only_connections: bool,
}

impl RowKey {
    fn begin(&self, flow: &Flow) -> Conversation {
        Conversation {
            from: self.from.clone(),
            to: self.to.clone(),
            from_principals: BTreeSet::new(),
            to_principals: BTreeSet::new(),
            services: BTreeSet::new(),
            port: self.port,
            protocol: self.protocol.clone(),
            mtls: self.mtls,
            verdict: match self.decision {
                Decision::Denied | Decision::RefusedTls => Verdict::Refused,
                Decision::Failed => Verdict::Failed,
                Decision::Allowed if self.mtls => Verdict::Mtls,
                Decision::Allowed => Verdict::Plaintext,
            },
            below_policy: self.decision == Decision::RefusedTls,
            cause: Cause { policy: self.policy.clone(), rule: self.rule, reason: flow.reason.clone() },
            from_client: self.reporter == Reporter::Source,
            total: Counts::default(),
            per_s: 0.0,
            first_seen_ms: flow.first_seen_ms,
            last_seen_ms: flow.last_seen_ms,
            would_refuse: WouldRefuse::new(),
        }
    }
}

impl Conversation {
    fn add(&mut self, flow: &Flow) {
        /// Names kept of one line's ends: a workload may change its account, but not for ever.
        const MOST: usize = 8;
        let keep = |names: &mut BTreeSet<String>, name: &String| {
            if !name.is_empty() && names.len() < MOST {
                names.insert(name.clone());
            }
        };
        keep(&mut self.from_principals, &flow.source.principal);
        keep(&mut self.to_principals, &flow.destination.principal);
        keep(&mut self.services, &flow.destination.service);
        self.total.add(&flow.counts);
        self.add_dry_runs(&flow.would_refuse);
        self.first_seen_ms = self.first_seen_ms.min(flow.first_seen_ms);
        if flow.last_seen_ms >= self.last_seen_ms {
            self.last_seen_ms = flow.last_seen_ms;
            if !flow.reason.is_empty() {
                self.cause.reason.clone_from(&flow.reason);
            }
        }
    }
}

/// Of what was told of one pair and port, what says what became of the calls:
/// - a connection that carries HTTP is let in before its requests are judged one by one; where there were requests, that
///   it was let in says nothing;
/// - the destination's proxy is the one that judges, so where it speaks, the client's adds only what never arrived;
/// - what could not be reached once, and was reached later, can be reached.
fn settle(found: BTreeMap<RowKey, Conversation>) -> Vec<Conversation> {
    let mut groups: BTreeMap<(Key, Key, u64), Vec<Conversation>> = BTreeMap::new();
    for conversation in found.into_values() {
        let key = (conversation.from.clone(), conversation.to.clone(), conversation.port);
        groups.entry(key).or_default().push(conversation);
    }
    let mut arrived: BTreeMap<(Key, Key), u64> = BTreeMap::new();
    for ((from, to, _), group) in &groups {
        let reached = group.iter().filter(|c| c.verdict != Verdict::Failed).map(|c| c.last_seen_ms).max();
        if let Some(at) = reached {
            let latest = arrived.entry((from.clone(), to.clone())).or_default();
            *latest = at.max(*latest);
        }
    }
    let mut settled = Vec::new();
    for ((from, to, _), mut group) in groups {
        let reached_at = arrived.get(&(from, to)).copied().unwrap_or(0);
        group.retain(|c| c.verdict != Verdict::Failed || c.last_seen_ms > reached_at);
        if group.iter().any(|c| !c.from_client) {
            group.retain(|c| {
                !c.from_client || c.below_policy || matches!(c.verdict, Verdict::Failed | Verdict::Refused)
            });
        }
        if group.iter().any(Conversation::is_judgement) {
            group.retain(Conversation::is_judgement);
        }
        settled.append(&mut merged(group));
    }
    settled
}

/// Lines that people cannot tell apart become one: HTTP connections and their requests, for one.
fn merged(group: Vec<Conversation>) -> Vec<Conversation> {
    let mut out: Vec<Conversation> = Vec::new();
    for c in group {
        let same = |o: &&mut Conversation| {
            (o.verdict, o.mtls, &o.cause.policy, o.cause.rule, &o.protocol, o.from_client)
                == (c.verdict, c.mtls, &c.cause.policy, c.cause.rule, &c.protocol, c.from_client)
                && o.below_policy == c.below_policy
        };
        match out.iter_mut().find(same) {
            None => out.push(c),
            Some(other) => {
                other.total.add(&c.total);
                other.add_dry_runs(&c.would_refuse);
                other.per_s += c.per_s;
                other.first_seen_ms = other.first_seen_ms.min(c.first_seen_ms);
                other.last_seen_ms = other.last_seen_ms.max(c.last_seen_ms);
                other.from_principals.extend(c.from_principals);
                other.to_principals.extend(c.to_principals);
                other.services.extend(c.services);
            }
        }
    }
    out
}

/// Finds the name by which people know a flow's end.
struct Names<'a> {
    inventory: &'a Inventory,
    /// Of unknown ends, those met so far.
    addresses: BTreeSet<String>,
}

impl Names<'_> {
    fn row(&mut self, flow: &Flow) -> RowKey {
        RowKey {
            from: self.source(&flow.source),
            to: self.destination(&flow.destination),
            port: flow.port,
            reporter: flow.reporter,
            protocol: flow.protocol.clone(),
            mtls: flow.mtls,
            decision: flow.decision,
            policy: flow.policy.clone(),
            rule: flow.rule,
            only_connections: flow.counts.requests == 0,
        }
    }

    fn source(&mut self, peer: &Peer) -> Key {
        if !peer.workload_name.is_empty() {
            return Key::new(peer.namespace.clone(), peer.workload_name.clone());
        }
        if !peer.principal.is_empty() {
            return Key::new("", peer.principal.clone());
        }
        self.address(&peer.address)
    }

    fn destination(&mut self, peer: &Peer) -> Key {
        if !peer.workload_name.is_empty() {
            return Key::new(peer.namespace.clone(), peer.workload_name.clone());
        }
        let mut parts = peer.service.split('.');
        if let (Some(name), Some(namespace), Some("svc")) = (parts.next(), parts.next(), parts.next()) {
            return Key::new(namespace, name);
        }
        if let Some((namespace, name)) = self.inventory.services.get(&peer.address) {
            return Key::new(namespace.clone(), name.clone());
        }
        if !peer.service.is_empty() && peer.service != peer.address {
            return Key::new("", peer.service.clone());
        }
        self.address(&peer.address)
    }

    fn address(&mut self, address: &str) -> Key {
        if address.is_empty() {
            return Key::new("", "unknown");
        }
        if !self.addresses.contains(address) {
            if self.addresses.len() >= MOST_ADDRESSES {
                return Key::new("", OTHER_ADDRESSES);
            }
            self.addresses.insert(address.to_owned());
        }
        Key::new("", address)
    }
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;

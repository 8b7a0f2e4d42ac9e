use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use maille_proto::flows::{Decision, Flow, Peer, Protocol, Reporter};

/// How much is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Distinct flows; beyond, those seen longest ago are forgotten.
    pub flows: usize,
    /// Counts kept per time slot, over all flows; beyond, the oldest slots are forgotten.
    pub counts: usize,
    /// Length of a time slot in milliseconds.
    pub slot_ms: u64,
    /// How far back slots reach.
    pub slots: u64,
    /// How long a flow is remembered after it was last seen, in milliseconds.
    pub remember_ms: u64,
}

/// Some 6 MB at most: 4096 flows, counts of the last 15 minutes in slots of 10 seconds,
/// flows themselves for a day.
impl Default for Limits {
    fn default() -> Self {
        Self { flows: 4096, counts: 32_768, slot_ms: 10_000, slots: 90, remember_ms: 86_400_000 }
    }
}

/// Longest text kept of what a proxy reports.
const MAX_TEXT: usize = 256;
/// Longest reason kept: it names the nearest rule with what it expected.
const MAX_REASON: usize = 1024;

/// What makes two reports the same flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FlowKey {
    reporter: i32,
    source: End,
    destination: End,
    port: u32,
    protocol: i32,
    mtls: bool,
    decision: i32,
    policy: String,
    rule: i32,
}

/// A workload, or an address where no workload is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct End {
    namespace: String,
    workload: String,
    principal: String,
    address: String,
    service: String,
}

impl End {
    fn of(peer: &Peer) -> Self {
        let known = !peer.workload_name.is_empty();
        Self {
            namespace: peer.namespace.clone(),
            workload: peer.workload_name.clone(),
            principal: peer.principal.clone(),
            address: if known { String::new() } else { peer.address.clone() },
            service: peer.service.clone(),
        }
    }
}

/// Dry-run policies remembered of one flow; a workload has few that would refuse the same caller.
const MAX_WOULD_REFUSE: usize = 8;

/// What one dry-run policy would have refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WouldRefuse {
    pub(crate) policy: Arc<str>,
    pub(crate) rule: i32,
    pub(crate) count: u64,
}

/// Counts of one flow within one time slot, or since it was first seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) responses: [u64; 5],
    pub(crate) duration_us: u64,
    pub(crate) would_refuse: Vec<WouldRefuse>,
}

impl Counts {
    fn of(flow: &Flow) -> Self {
        let mut responses = [0; 5];
        for (slot, count) in responses.iter_mut().zip(&flow.responses) {
            *slot = *count;
        }
        let would_refuse = flow.would_refuse.iter().take(MAX_WOULD_REFUSE).map(|one| WouldRefuse {
            policy: one.policy.as_str().into(),
            rule: one.rule,
            count: one.count,
        });
        Self {
            connections: flow.connections,
            requests: flow.requests,
            bytes_sent: flow.bytes_sent,
            bytes_received: flow.bytes_received,
            responses,
            duration_us: flow.duration_us,
            would_refuse: would_refuse.collect(),
        }
    }

    /// Adds; a proxy that reports nonsense cannot make it overflow.
    fn add(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.duration_us = self.duration_us.saturating_add(other.duration_us);
        for (mine, theirs) in self.responses.iter_mut().zip(other.responses) {
            *mine = mine.saturating_add(theirs);
        }
        for theirs in &other.would_refuse {
            let is_full = self.would_refuse.len() >= MAX_WOULD_REFUSE;
            let same = |mine: &&mut WouldRefuse| mine.policy == theirs.policy && mine.rule == theirs.rule;
            match self.would_refuse.iter_mut().find(same) {
                Some(mine) => mine.count = mine.count.saturating_add(theirs.count),
                None if !is_full => self.would_refuse.push(theirs.clone()),
                None => {}
            }
        }
    }
}

/// One flow with all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The latest report: both ends and the reason as last seen.
    pub(crate) sample: Flow,
    pub(crate) total: Counts,
    pub(crate) first_seen_ms: u64,
    pub(crate) last_seen_ms: u64,
}

/// The bounded history of flows.
#[derive(Debug, Default)]
pub struct FlowStore {
    limits: Limits,
    ids: HashMap<FlowKey, u64>,
    records: BTreeMap<u64, Record>,
    keys: BTreeMap<u64, FlowKey>,
    last_id: u64,
    /// Counts by time slot, oldest first.
    slots: VecDeque<(u64, HashMap<u64, Counts>)>,
    counts: usize,
    forgotten: u64,
}

impl FlowStore {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// How many flows are remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was reported yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many flows were forgotten early, for there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Adds one report. Times that the reporter's clock puts into the future count as now.
    pub fn record(&mut self, flow: Flow, now_ms: u64) {
        let mut flow = bounded(flow);
        let last_seen_ms = match flow.last_seen_ms {
            0 => now_ms,
            time => time.min(now_ms),
        };
        let first_seen_ms = match flow.first_seen_ms {
            0 => last_seen_ms,
            time => time.min(last_seen_ms),
        };
        let counts = Counts::of(&flow);
        let key = FlowKey {
            reporter: flow.reporter,
            source: End::of(flow.source.get_or_insert_default()),
            destination: End::of(flow.destination.get_or_insert_default()),
            port: flow.port,
            protocol: flow.protocol,
            mtls: flow.mtls,
            decision: flow.decision,
            policy: flow.policy.clone(),
            rule: flow.rule,
        };
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None => {
                self.forget_old(now_ms);
                self.last_id += 1;
                self.ids.insert(key.clone(), self.last_id);
                self.keys.insert(self.last_id, key);
                self.last_id
            }
        };
        let record = self.records.entry(id).or_insert_with(|| Record {
            sample: flow.clone(),
            total: Counts::default(),
            first_seen_ms,
            last_seen_ms,
        });
        record.total.add(&counts);
        record.first_seen_ms = record.first_seen_ms.min(first_seen_ms);
        record.last_seen_ms = record.last_seen_ms.max(last_seen_ms);
        // The latest reason: who mends what it says must see what is wrong now.
        if flow.reason.is_empty() {
            flow.reason.clone_from(&record.sample.reason);
        }
        if flow.key_exchange.is_empty() {
            flow.key_exchange.clone_from(&record.sample.key_exchange);
        }
        record.sample = flow;
        self.count(id, &counts, now_ms);
    }

    fn count(&mut self, id: u64, counts: &Counts, now_ms: u64) {
        let slot = now_ms / self.limits.slot_ms;
        if self.slots.back().is_none_or(|(last, _)| *last < slot) {
            self.slots.push_back((slot, HashMap::new()));
        }
        if let Some((_, flows)) = self.slots.back_mut() {
            let new = !flows.contains_key(&id);
            flows.entry(id).or_default().add(counts);
            self.counts += usize::from(new);
        }
        let oldest = slot.saturating_sub(self.limits.slots);
        while let Some((first, flows)) = self.slots.front() {
            let one_left = self.slots.len() == 1;
            if *first >= oldest && (self.counts <= self.limits.counts || one_left) {
                break;
            }
            self.counts -= flows.len();
            self.slots.pop_front();
        }
    }

    /// Makes room for one more flow.
    fn forget_old(&mut self, now_ms: u64) {
        let oldest = now_ms.saturating_sub(self.limits.remember_ms);
        if self.records.len() < self.limits.flows {
            return;
        }
        let mut by_age: Vec<_> = self.records.iter().map(|(id, r)| (r.last_seen_ms, *id)).collect();
        by_age.sort_unstable();
        // An eighth at once, so that the sorting is paid for.
        let crowd = (self.limits.flows / 8).max(1);
        for (index, (last_seen_ms, id)) in by_age.into_iter().enumerate() {
            if last_seen_ms >= oldest && index >= crowd {
                break;
            }
            self.records.remove(&id);
            if let Some(key) = self.keys.remove(&id) {
                self.ids.remove(&key);
            }
            self.forgotten += 1;
        }
    }

    /// All flows seen since `since_ms`, with their counts since then, or in all if `None`; the most recent
    /// first. Counts reach back as far as slots are kept and are exact to a slot.
    pub(crate) fn since(&self, since_ms: Option<u64>) -> Vec<(&Record, Counts)> {
        let mut found: Vec<_> = match since_ms {
            None => self.records.values().map(|record| (record, record.total.clone())).collect(),
            Some(since_ms) => {
                let first = since_ms / self.limits.slot_ms;
                let mut sums: HashMap<u64, Counts> = HashMap::new();
                for (_, flows) in self.slots.iter().filter(|(slot, _)| *slot >= first) {
                    for (id, counts) in flows {
                        sums.entry(*id).or_default().add(counts);
                    }
                }
                let recent = self.records.iter().filter(|(_, record)| record.last_seen_ms >= since_ms);
                recent.map(|(id, record)| (record, sums.get(id).cloned().unwrap_or_default())).collect()
            }
        };
        found.sort_by_key(|(record, _)| std::cmp::Reverse(record.last_seen_ms));
        found
    }
}

/// A report with texts of bearable length, and enumerations that say nothing where they say nonsense.
pub(crate) fn bounded(mut flow: Flow) -> Flow {
    let cut = |text: &mut String, most: usize| {
        if text.len() > most {
            let end = (0..=most).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(end);
        }
    };
    cut(&mut flow.policy, MAX_TEXT * 2);
    cut(&mut flow.reason, MAX_REASON);
    cut(&mut flow.key_exchange, 32);
    flow.would_refuse.iter_mut().for_each(|one| cut(&mut one.policy, MAX_TEXT * 2));
    for peer in [&mut flow.source, &mut flow.destination].into_iter().flatten() {
        for text in [
            &mut peer.uid,
            &mut peer.namespace,
            &mut peer.workload_name,
            &mut peer.principal,
            &mut peer.address,
            &mut peer.service,
        ] {
            cut(text, MAX_TEXT);
        }
    }
    if Reporter::try_from(flow.reporter).is_err() {
        flow.reporter = Reporter::Unspecified.into();
    }
    if Protocol::try_from(flow.protocol).is_err() {
        flow.protocol = Protocol::Unspecified.into();
    }
    if Decision::try_from(flow.decision).is_err() {
        flow.decision = Decision::Unspecified.into();
    }
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, decision: Decision, requests: u64, seen_ms: u64) -> Flow {
        let peer = |name: &str| Peer {
            namespace: "shop".into(),
            workload_name: name.into(),
            uid: format!("shop/{name}-{seen_ms}"),
            ..Default::default()
        };
        Flow {
            reporter: Reporter::Destination.into(),
            source: Some(peer(source)),
            destination: Some(peer("cart")),
            port: 8080,
            decision: decision.into(),
            requests,
            last_seen_ms: seen_ms,
            reason: format!("because of {seen_ms}"),
            ..Default::default()
        }
    }

    #[test]
    fn what_dry_runs_would_refuse_is_summed_by_policy_and_by_time() {
        let mut store = FlowStore::new(Limits::default());
        let refusing = |policy: &str, count: u64, seen_ms: u64| {
            let one = maille_proto::flows::WouldRefuse { policy: policy.into(), rule: 0, count };
            Flow { would_refuse: vec![one], ..flow("web", Decision::Allowed, count, seen_ms) }
        };
        for (policy, count, now_ms) in [("shop/a", 2, 10_000), ("shop/a", 3, 60_000), ("shop/b", 1, 60_000)] {
            store.record(refusing(policy, count, now_ms), now_ms);
        }
        let told = |store: &FlowStore, since: Option<u64>| -> Vec<(String, u64)> {
            let found = store.since(since);
            found[0].1.would_refuse.iter().map(|one| (one.policy.to_string(), one.count)).collect()
        };
        assert_eq!(told(&store, None), [("shop/a".to_owned(), 5), ("shop/b".to_owned(), 1)]);
        assert_eq!(told(&store, Some(50_000)), [("shop/a".to_owned(), 3), ("shop/b".to_owned(), 1)]);
        // A proxy that names ever new policies fills nothing.
        for index in 0..100 {
            store.record(refusing(&format!("shop/{index}"), 1, 60_000), 60_000);
        }
        assert_eq!(told(&store, None).len(), MAX_WOULD_REFUSE);
    }

    #[test]
    fn pods_of_one_workload_are_one_flow_with_the_latest_reason() {
        let mut store = FlowStore::new(Limits::default());
        store.record(flow("web", Decision::Denied, 2, 1000), 1000);
        store.record(flow("web", Decision::Denied, 3, 2000), 2000);
        store.record(flow("web", Decision::Allowed, 1, 2000), 2000);
        let found = store.since(None);
        assert_eq!(found.len(), 2);
        let denied = found.iter().find(|(r, _)| r.sample.decision == i32::from(Decision::Denied));
        let (record, counts) = denied.expect("there");
        assert_eq!((counts.requests, record.first_seen_ms, record.last_seen_ms), (5, 1000, 2000));
        assert_eq!(record.sample.reason, "because of 2000");
    }

    #[test]
    fn a_window_counts_only_what_happened_in_it() {
        let mut store = FlowStore::new(Limits::default());
        store.record(flow("web", Decision::Allowed, 2, 10_000), 10_000);
        store.record(flow("web", Decision::Allowed, 3, 60_000), 60_000);
        store.record(flow("old", Decision::Allowed, 9, 10_000), 60_000);
        let found = store.since(Some(50_000));
        assert_eq!(found.len(), 1);
        assert_eq!(found.first().map(|(_, counts)| counts.requests), Some(3));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let limits = Limits { flows: 80, counts: 100, slot_ms: 10, slots: 1000, remember_ms: 1 << 40 };
        let mut store = FlowStore::new(limits);
        for n in 0..1000 {
            store.record(flow(&format!("w{n}"), Decision::Allowed, 1, n), n);
        }
        assert!(store.len() <= 80, "{}", store.len());
        assert!(store.counts <= 110, "{}", store.counts);
        let newest = store.since(None).first().map(|(r, _)| r.last_seen_ms);
        assert_eq!(newest, Some(999));
        assert!(store.forgotten() >= 920);
    }

    #[test]
    fn nonsense_is_survived() {
        let mut store = FlowStore::new(Limits::default());
        let nonsense = Flow {
            decision: 99,
            requests: u64::MAX,
            responses: vec![u64::MAX; 9],
            reason: "ü".repeat(5000),
            last_seen_ms: u64::MAX,
            ..Default::default()
        };
        store.record(nonsense.clone(), 5);
        store.record(nonsense, 5);
        let found = store.since(None);
        let (record, counts) = found.first().expect("one");
        assert_eq!(counts.requests, u64::MAX);
        assert_eq!(record.last_seen_ms, 5);
        assert!(record.sample.reason.len() <= MAX_REASON);
    }
}

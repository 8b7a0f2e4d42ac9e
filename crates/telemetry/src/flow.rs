//! Flows: aggregates of what one worker saw, per pair of workloads and outcome.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use maille_proto::flows;
use parking_lot::Mutex;

use crate::histogram::Counter;
use crate::labels::{ConnectionLabels, Peer, Protocol, Reporter};
use crate::refusal::PolicyRef;

/// What a flow's outcome is kept by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Outcome {
    pub(crate) decision: flows::Decision,
    /// `<namespace>/<name>`; empty if no policy decided.
    pub(crate) policy: String,
    /// -1 if none.
    pub(crate) rule: i32,
}

impl Outcome {
    pub(crate) fn allowed() -> Self {
        Self::of(flows::Decision::Allowed, None)
    }

    pub(crate) fn allowed_by(policy: PolicyRef<'_>) -> Self {
        Self::of(flows::Decision::Allowed, Some(policy))
    }

    pub(crate) fn of(decision: flows::Decision, policy: Option<PolicyRef<'_>>) -> Self {
        Self {
            decision,
            policy: policy.map(|policy| format!("{}/{}", policy.namespace, policy.name)).unwrap_or_default(),
            rule: policy.map_or(-1, |policy| i32::try_from(policy.rule).unwrap_or(i32::MAX)),
        }
    }
}

/// Dry-run refusals told apart per flow and report; what does not fit is counted under `other`.
const MAX_WOULD_REFUSE: usize = 16;

/// Running totals of one flow; deltas are made by whoever reads.
#[derive(Debug, Default)]
pub(crate) struct FlowCounters {
    pub(crate) connections: Counter,
    pub(crate) requests: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    /// By status class, 1xx … 5xx.
    pub(crate) responses: [Counter; 5],
    pub(crate) duration_us: Counter,
    pub(crate) would_refuse: WouldRefuse,
}

/// What dry-run policies would have refused since the last report. Its lock is taken only where such a policy applies, by
/// the worker and whoever reports.
#[derive(Debug, Default)]
pub(crate) struct WouldRefuse(Mutex<Vec<flows::WouldRefuse>>);

impl WouldRefuse {
    /// Counts one refusal by a DENY rule, or (`None`) for want of an ALLOW rule.
    pub(crate) fn count(&self, policy: Option<PolicyRef<'_>>) {
        let mut counts = self.0.lock();
        let rule = policy.map_or(-1, |policy| i32::try_from(policy.rule).unwrap_or(i32::MAX));
        let is_same = |known: &flows::WouldRefuse| match policy {
            None => known.policy.is_empty(),
            Some(PolicyRef { namespace, name, .. }) => {
                known.rule == rule && known.policy.split_once('/') == Some((namespace, name))
            }
        };
        if let Some(known) = counts.iter_mut().find(|known| is_same(known)) {
            known.count += 1;
            return;
        }
        let (policy, rule) = match policy {
            _ if counts.len() >= MAX_WOULD_REFUSE => ("other".to_owned(), -1),
            Some(policy) => (format!("{}/{}", policy.namespace, policy.name), rule),
            None => (String::new(), -1),
        };
        match counts.iter_mut().find(|known| known.policy == policy && known.rule == rule) {
            Some(known) => known.count += 1,
            None => counts.push(flows::WouldRefuse { policy, rule, count: 1 }),
        }
    }

    /// The counts, which begin anew.
    pub(crate) fn take(&self) -> Vec<flows::WouldRefuse> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// The totals at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FlowReading {
    connections: u64,
    requests: u64,
    bytes_sent: u64,
    bytes_received: u64,
    responses: [u64; 5],
    duration_us: u64,
}

impl FlowCounters {
    pub(crate) fn reading(&self) -> FlowReading {
        FlowReading {
            connections: self.connections.value(),
            requests: self.requests.value(),
            bytes_sent: self.bytes_sent.value(),
            bytes_received: self.bytes_received.value(),
            responses: std::array::from_fn(|i| self.responses.get(i).map_or(0, Counter::value)),
            duration_us: self.duration_us.value(),
        }
    }

    /// Counts one finished request; codes outside 100..=599 belong to no class.
    pub(crate) fn request(&self, code: u16, duration_us: u64) {
        self.requests.add(1);
        self.duration_us.add(duration_us);
        let class = usize::from(code / 100);
        if let Some(counter) = class.checked_sub(1).and_then(|index| self.responses.get(index)) {
            counter.add(1);
        }
    }
}

impl FlowReading {
    /// What came since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            connections: self.connections.wrapping_sub(before.connections),
            requests: self.requests.wrapping_sub(before.requests),
            bytes_sent: self.bytes_sent.wrapping_sub(before.bytes_sent),
            bytes_received: self.bytes_received.wrapping_sub(before.bytes_received),
            responses: std::array::from_fn(|i| {
                let at = |reading: &Self| reading.responses.get(i).copied().unwrap_or(0);
                at(self).wrapping_sub(at(before))
            }),
            duration_us: self.duration_us.wrapping_sub(before.duration_us),
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// The message for one flow's delta.
pub(crate) fn message(
    labels: &ConnectionLabels,
    outcome: &Outcome,
    reason: String,
    delta: &FlowReading,
    first_seen: SystemTime,
    last_seen: SystemTime,
) -> flows::Flow {
    let reporter = match labels.reporter {
        Reporter::Source => flows::Reporter::Source,
        Reporter::Destination => flows::Reporter::Destination,
    };
    let protocol = match labels.protocol {
        Protocol::Tcp => flows::Protocol::Tcp,
        Protocol::Http => flows::Protocol::Http,
    };
    flows::Flow {
        reporter: reporter.into(),
        source: Some(peer(&labels.source, "")),
        destination: Some(peer(&labels.destination, &labels.service.host)),
        port: u32::from(labels.port),
        protocol: protocol.into(),
        mtls: labels.mtls,
        decision: outcome.decision.into(),
        policy: outcome.policy.clone(),
        rule: outcome.rule,
        reason,
        connections: delta.connections,
        requests: delta.requests,
        bytes_sent: delta.bytes_sent,
        bytes_received: delta.bytes_received,
        responses: delta.responses.to_vec(),
        duration_us: delta.duration_us,
        first_seen_ms: unix_ms(first_seen),
        last_seen_ms: unix_ms(last_seen),
        would_refuse: Vec::new(),
        key_exchange: labels.key_exchange.to_owned(),
    }
}

fn peer(peer: &Peer, service: &str) -> flows::Peer {
    flows::Peer {
        uid: peer.uid.to_string(),
        namespace: peer.workload.namespace.clone(),
        workload_name: peer.workload.name.clone(),
        principal: peer.workload.principal.clone(),
        address: peer.address.as_ref().map(IpAddr::to_string).unwrap_or_default(),
        service: service.to_owned(),
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

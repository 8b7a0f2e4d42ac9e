//! What one worker knows, by what it is kept, and within which bounds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use maille_proto::flows;

use crate::flow::{self, FlowCounters, FlowReading, Outcome};
use crate::labels::{ConnectionLabels, Peer, Reporter, Security, ServiceLabels, WorkloadLabels};
use crate::naming::Unnamed;
use crate::refusal::{PolicyRef, Refusal, RefusalKind, TlsReason};
use crate::series::Series;

/// Metric label sets per worker; beyond it everything is counted under the label value `other`.
pub(crate) const MAX_SERIES: usize = 1024;
/// Flows per worker between two reports; beyond it they are counted under one unnamed pair.
pub(crate) const MAX_FLOWS: usize = 2048;
/// Distinct refusal counters per worker.
const MAX_REFUSALS: usize = 512;
/// Reports after which a flow without traffic and without open connections is forgotten.
const IDLE_REPORTS: u8 = 12;

/// What metrics are kept by: the connection's labels without addresses, pods and ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SeriesKey {
    pub(crate) reporter: Reporter,
    pub(crate) source: Arc<WorkloadLabels>,
    pub(crate) destination: Arc<WorkloadLabels>,
    pub(crate) service: Arc<ServiceLabels>,
    pub(crate) security: Security,
    /// Of a caller that waits for its name.
    pub(crate) unnamed: Option<IpAddr>,
}

impl SeriesKey {
    fn of(labels: &ConnectionLabels, security: Security, unnamed: Option<IpAddr>) -> Self {
        Self {
            reporter: labels.reporter,
            source: labels.source.workload.clone(),
            destination: labels.destination.workload.clone(),
            service: labels.service.clone(),
            security,
            unnamed,
        }
    }

    /// Where label sets beyond the bound are counted.
    fn other(reporter: Reporter, security: Security) -> Self {
        let other = || "other".to_owned();
        let workload = Arc::new(WorkloadLabels {
            name: other(),
            namespace: other(),
            principal: String::new(),
            app: other(),
            canonical_name: other(),
            canonical_revision: other(),
        });
        let service = Arc::new(ServiceLabels { host: other(), name: other(), namespace: other() });
        Self { reporter, source: workload.clone(), destination: workload, service, security, unnamed: None }
    }
}

/// What `maille_refusals_total` is kept by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RefusalKey {
    pub(crate) reporter: Reporter,
    pub(crate) kind: RefusalKind,
    pub(crate) policy_namespace: String,
    pub(crate) policy: String,
    pub(crate) rule: Option<u32>,
}

/// What `maille_authz_decisions_total` is kept by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DecisionKey {
    pub(crate) reporter: Reporter,
    /// `audit`, `would_allow` or `would_deny`.
    pub(crate) decision: &'static str,
    /// `ALLOW`, `DENY` or `AUDIT`.
    pub(crate) action: &'static str,
    pub(crate) policy_namespace: String,
    pub(crate) policy: String,
    pub(crate) rule: Option<u32>,
}

impl DecisionKey {
    pub(crate) fn new(
        reporter: Reporter,
        decision: &'static str,
        action: &'static str,
        policy: Option<PolicyRef<'_>>,
    ) -> Self {
        Self {
            reporter,
            decision,
            action,
            policy_namespace: policy.map(|p| p.namespace.to_owned()).unwrap_or_default(),
            policy: policy.map(|p| p.name.to_owned()).unwrap_or_default(),
            rule: policy.map(|p| p.rule),
        }
    }
}

/// What `maille_mtls_rejected_total` is kept by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RejectionKey {
    pub(crate) reporter: Reporter,
    pub(crate) reason: TlsReason,
    pub(crate) source: Arc<WorkloadLabels>,
    pub(crate) destination: Arc<WorkloadLabels>,
    /// Of a caller that waits for its name.
    pub(crate) unnamed: Option<IpAddr>,
}

/// What `maille_tls_handshakes_total` is kept by: side, key exchange, version; names that the proxy chooses.
pub(crate) type HandshakeKey = (&'static str, &'static str, &'static str);

#[derive(Debug)]
struct FlowCell {
    counters: Arc<FlowCounters>,
    /// The latest reason given.
    reason: String,
    reported: FlowReading,
    idle_reports: u8,
    since: SystemTime,
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// What one worker knows. Its lock is taken by that worker when it meets a connection or a refusal, and by
/// the exporter for as long as it takes to copy handles; never per request on a known handle.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) series: Map<SeriesKey, Arc<Series>>,
    flows: Map<(ConnectionLabels, Outcome), FlowCell>,
    pub(crate) refusals: Map<RefusalKey, u64>,
    pub(crate) rejections: Map<RejectionKey, u64>,
    pub(crate) decisions: Map<DecisionKey, u64>,
    pub(crate) handshakes: Map<HandshakeKey, u64>,
    pub(crate) unnamed: Unnamed,
}

/// Counts of what did not fit or was lost, shared by all workers; touched only then.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) series: AtomicU64,
    pub(crate) flows: AtomicU64,
}

impl Tables {
    pub(crate) fn series(
        &mut self,
        labels: &ConnectionLabels,
        security: Security,
        losses: &Losses,
    ) -> Arc<Series> {
        let key = SeriesKey::of(labels, security, self.unnamed(labels));
        if let Some(series) = self.series.get(&key) {
            return series.clone();
        }
        let key = if self.series.len() + self.unnamed.len() < MAX_SERIES {
            key
        } else {
            losses.series.fetch_add(1, Ordering::Relaxed);
            SeriesKey::other(labels.reporter, security)
        };
        self.series.entry(key).or_default().clone()
    }

    /// The address to count a caller by until it has a name.
    fn unnamed(&mut self, labels: &ConnectionLabels) -> Option<IpAddr> {
        let waits = labels.reporter == Reporter::Destination && labels.source.workload.name.is_empty();
        labels.source.address.filter(|address| waits && self.unnamed.admit(*address))
    }

    pub(crate) fn flow(
        &mut self,
        labels: &ConnectionLabels,
        outcome: Outcome,
        reason: &str,
        losses: &Losses,
    ) -> Arc<FlowCounters> {
        let mut key = (labels.clone(), outcome);
        if !self.flows.contains_key(&key) && self.flows.len() >= MAX_FLOWS {
            losses.flows.fetch_add(1, Ordering::Relaxed);
            key = (anonymous(labels), Outcome { decision: key.1.decision, policy: String::new(), rule: -1 });
        }
        let cell = self.flows.entry(key).or_insert_with(|| FlowCell {
            counters: Arc::default(),
            reason: String::new(),
            reported: FlowReading::default(),
            idle_reports: 0,
            since: SystemTime::now(),
        });
        if cell.reason != reason {
            reason.clone_into(&mut cell.reason);
        }
        cell.counters.clone()
    }

    pub(crate) fn refusal(&mut self, labels: &ConnectionLabels, refusal: &Refusal<'_>) {
        let reporter = labels.reporter;
        if let Some(reason) = refusal.tls {
            self.rejection(labels, reason);
        }
        let mut key = RefusalKey {
            reporter,
            kind: refusal.kind,
            policy_namespace: refusal.policy.map(|p| p.namespace.to_owned()).unwrap_or_default(),
            policy: refusal.policy.map(|p| p.name.to_owned()).unwrap_or_default(),
            rule: refusal.policy.map(|p| p.rule),
        };
        if self.refusals.len() >= MAX_REFUSALS && !self.refusals.contains_key(&key) {
            key.policy_namespace = "other".to_owned();
            key.policy = "other".to_owned();
            key.rule = None;
        }
        *self.refusals.entry(key).or_default() += 1;
    }

    pub(crate) fn decision(&mut self, mut key: DecisionKey) {
        if self.decisions.len() >= MAX_REFUSALS && !self.decisions.contains_key(&key) {
            key = DecisionKey { policy_namespace: "other".into(), policy: "other".into(), rule: None, ..key };
        }
        *self.decisions.entry(key).or_default() += 1;
    }

    pub(crate) fn rejection(&mut self, labels: &ConnectionLabels, reason: TlsReason) {
        let mut key = RejectionKey {
            reporter: labels.reporter,
            reason,
            source: labels.source.workload.clone(),
            destination: labels.destination.workload.clone(),
            unnamed: self.unnamed(labels),
        };
        if self.rejections.len() >= MAX_REFUSALS && !self.rejections.contains_key(&key) {
            let other = SeriesKey::other(labels.reporter, labels.security);
            key = RejectionKey { source: other.source, destination: other.destination, unnamed: None, ..key };
        }
        *self.rejections.entry(key).or_default() += 1;
    }

    /// Every flow that moved since the last call; forgets idle ones. Only copies handles and names, since the worker
    /// waits meanwhile; [`MovedFlow::message`] does the rest.
    pub(crate) fn take_flows(&mut self, now: SystemTime, out: &mut Vec<MovedFlow>) {
        self.flows.retain(|(labels, outcome), cell| {
            let reading = cell.counters.reading();
            let delta = reading.since(&cell.reported);
            let since = std::mem::replace(&mut cell.since, now);
            if delta.is_zero() {
                cell.idle_reports = cell.idle_reports.saturating_add(1);
                return cell.idle_reports < IDLE_REPORTS || Arc::strong_count(&cell.counters) > 1;
            }
            let (labels, outcome, reason) = (labels.clone(), outcome.clone(), cell.reason.clone());
            let would_refuse = cell.counters.would_refuse.take();
            out.push(MovedFlow { labels, outcome, reason, delta, would_refuse, since });
            cell.reported = reading;
            cell.idle_reports = 0;
            true
        });
    }
}

/// One flow's part since the report before.
pub(crate) struct MovedFlow {
    labels: ConnectionLabels,
    outcome: Outcome,
    reason: String,
    delta: FlowReading,
    would_refuse: Vec<flows::WouldRefuse>,
    since: SystemTime,
}

impl MovedFlow {
    pub(crate) fn message(self, now: SystemTime) -> flows::Flow {
        let mut message =
            flow::message(&self.labels, &self.outcome, self.reason, &self.delta, self.since, now);
        message.would_refuse = self.would_refuse;
        message
    }
}

/// A pair of whom nothing is said, for flows beyond the bound.
fn anonymous(labels: &ConnectionLabels) -> ConnectionLabels {
    ConnectionLabels {
        source: Peer::default(),
        destination: Peer::default(),
        service: Arc::default(),
        port: 0,
        ..labels.clone()
    }
}

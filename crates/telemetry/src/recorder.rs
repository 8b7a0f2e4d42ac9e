//! What a worker records with, and the handles it records on.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::access_log::{AccessLog, Coverage, Entry, Event, Marks, RequestLine, Shadow, Transfer, Way};
use crate::flow::{FlowCounters, Outcome};
use crate::labels::{ConnectionLabels, Reporter, ResponseFlags, Security};
use crate::refusal::{PolicyRef, Refusal, RefusalKind};
use crate::series::{RequestKey, Series};
use crate::tables::{DecisionKey, Losses, Tables};

/// Records for one worker. Share it within the worker's thread; another worker takes its own.
#[derive(Debug)]
pub struct WorkerRecorder {
    tables: Arc<Mutex<Tables>>,
    losses: Arc<Losses>,
    access_log: AccessLog,
    coverage: Cell<Coverage>,
}

/// The size, time and outcome of one finished request.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestOutcome {
    /// 0 if no response was sent (the caller went away).
    pub code: u16,
    /// Response flags.
    pub flags: ResponseFlags,
    /// The request is gRPC (`content-type: application/grpc…`).
    pub grpc: bool,
    /// `grpc-status`, if there was one.
    pub grpc_status: Option<u32>,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// Headers and body, as they came.
    pub request_bytes: u64,
    /// Headers and body, as they went.
    pub response_bytes: u64,
    /// Headers alone, of `request_bytes`.
    pub request_head_bytes: u64,
    /// Headers alone, of `response_bytes`.
    pub response_head_bytes: u64,
    /// From the request's way out to the first of the response's way in, if it was sent on.
    pub upstream_time: Option<Duration>,
}

impl WorkerRecorder {
    pub(crate) fn new(tables: Arc<Mutex<Tables>>, losses: Arc<Losses>, access_log: AccessLog) -> Self {
        Self { tables, losses, access_log, coverage: Cell::default() }
    }

    /// What is logged from now on by this worker.
    pub fn cover(&self, coverage: Coverage) {
        self.coverage.set(coverage);
    }

    /// Whether every request and connection is to be logged, so that a line is worth preparing.
    pub fn logs_everything(&self) -> bool {
        self.access_log.is_read() && matches!(self.coverage.get(), Coverage::Everything(_))
    }

    /// Logs a request that policy let through, if it is to be logged.
    pub fn log_request(&self, edge: &Edge, line: &RequestLine<'_>, outcome: &RequestOutcome) {
        if self.logs_everything() || line.marks.audit.is_some() {
            self.log(&edge.labels, None, Event::Request(line, outcome));
        }
    }

    /// Logs a connection of opaque bytes that policy let through, if it is to be logged.
    pub fn log_connection(
        &self,
        labels: &ConnectionLabels,
        marks: &Marks<'_>,
        way: &Way<'_>,
        transfer: Transfer,
    ) {
        if self.logs_everything() || marks.audit.is_some() {
            self.log(labels, None, Event::Connection(marks, way, transfer));
        }
    }

    fn log(&self, labels: &ConnectionLabels, refusal: Option<&Refusal<'_>>, event: Event<'_>) {
        let entry = Entry { labels, refusal, event, ended: SystemTime::now() };
        self.access_log.write(&entry, self.coverage.get());
    }

    /// Counts what policies say that do not decide, in metrics.
    pub fn marked(&self, reporter: Reporter, marks: &Marks<'_>) {
        let Marks { audit, shadow_allow, shadow_deny } = marks;
        if audit.is_none() && shadow_allow.is_none() && shadow_deny.is_none() {
            return;
        }
        let mut tables = self.tables.lock();
        if let Some(audit) = audit {
            tables.decision(DecisionKey::new(reporter, "audit", "AUDIT", Some(*audit)));
        }
        for (action, shadow) in [("ALLOW", shadow_allow), ("DENY", shadow_deny)] {
            if let Some(Shadow { allowed, policy }) = *shadow {
                let decision = if allowed { "would_allow" } else { "would_deny" };
                tables.decision(DecisionKey::new(reporter, decision, action, policy));
            }
        }
    }

    /// A handle for requests over these labels, without a connection of its own: what a client's proxy
    /// uses for each destination that one application connection reaches. Keep it with the pool.
    pub fn edge(&self, labels: &ConnectionLabels) -> Edge {
        let mut tables = self.tables.lock();
        let series = tables.series(labels, labels.security, &self.losses);
        let flow = tables.flow(labels, Outcome::allowed(), "", &self.losses);
        Edge { labels: labels.clone(), series, flow }
    }

    /// The same pair, for what one ALLOW rule lets through: the same metrics, and a flow that names the rule. Takes the
    /// worker's lock; keep the handle for as long as the same rule decides.
    pub fn allowed_by(&self, edge: &Edge, policy: PolicyRef<'_>) -> Edge {
        let flow = self.tables.lock().flow(&edge.labels, Outcome::allowed_by(policy), "", &self.losses);
        Edge { flow, ..edge.clone() }
    }

    /// Counts a connection as opened and allowed; dropping or closing the handle counts it as closed.
    pub fn connection_opened(&self, labels: &ConnectionLabels) -> Connection {
        self.connection_on(self.edge(labels))
    }

    /// As [`WorkerRecorder::connection_opened`], in the flow of the rule that let it through, if one did.
    pub fn connection_allowed(&self, labels: &ConnectionLabels, policy: Option<PolicyRef<'_>>) -> Connection {
        let edge = self.edge(labels);
        self.connection_on(match policy {
            Some(policy) => self.allowed_by(&edge, policy),
            None => edge,
        })
    }

    fn connection_on(&self, edge: Edge) -> Connection {
        edge.series.tcp(ResponseFlags::None).opened.add(1);
        edge.flow.connections.add(1);
        Connection { edge, flags: ResponseFlags::None }
    }

    /// A handshake of mutual TLS that succeeded. `side` is this proxy's: `client` or `server`; each is one of a few names
    /// that the proxy itself has.
    pub fn handshake(&self, side: &'static str, key_exchange: &'static str, version: &'static str) {
        *self.tables.lock().handshakes.entry((side, key_exchange, version)).or_default() += 1;
    }

    /// A connection that was refused: counted as opened and closed, in flows, and logged. `reporter`
    /// destination and no TLS means `connection_security_policy="none"`: set it so in the labels.
    pub fn refused_connection(
        &self,
        labels: &ConnectionLabels,
        refusal: &Refusal<'_>,
        marks: &Marks<'_>,
        way: &Way<'_>,
    ) {
        {
            let mut tables = self.tables.lock();
            let security = security_of(labels, refusal);
            let series = tables.series(labels, security, &self.losses);
            let cell = series.tcp(refusal.flags);
            cell.opened.add(1);
            cell.closed.add(1);
            tables.refusal(labels, refusal);
            tables.flow(labels, outcome_of(refusal), refusal.reason, &self.losses).connections.add(1);
        }
        self.log(labels, Some(refusal), Event::Connection(marks, way, Transfer::default()));
    }

    /// An open connection that is cut: what it moved until now is counted already; this adds the refusal, and
    /// closes it with the refusal's flags.
    pub fn connection_cut(
        &self,
        mut connection: Connection,
        refusal: &Refusal<'_>,
        marks: &Marks<'_>,
        way: &Way<'_>,
        transfer: Transfer,
    ) {
        {
            let mut tables = self.tables.lock();
            tables.refusal(&connection.edge.labels, refusal);
            tables
                .flow(&connection.edge.labels, outcome_of(refusal), refusal.reason, &self.losses)
                .connections
                .add(1);
        }
        self.log(&connection.edge.labels, Some(refusal), Event::Connection(marks, way, transfer));
        connection.flags = refusal.flags;
    }

    /// A stream that a request had turned into was cut: the request is counted already; this adds the refusal.
    pub fn stream_cut(&self, edge: &Edge, request: &RequestLine<'_>, refusal: &Refusal<'_>) {
        {
            let mut tables = self.tables.lock();
            tables.refusal(&edge.labels, refusal);
            let outcome = outcome_of(refusal);
            tables.flow(&edge.labels, outcome, refusal.reason, &self.losses).connections.add(1);
        }
        let outcome = RequestOutcome { code: 101, flags: refusal.flags, ..RequestOutcome::default() };
        self.log(&edge.labels, Some(refusal), Event::Request(request, &outcome));
    }

    /// A request that was refused: counted with its code, in flows, and logged.
    pub fn refused_request(
        &self,
        edge: &Edge,
        request: &RequestLine<'_>,
        outcome: &RequestOutcome,
        refusal: &Refusal<'_>,
    ) {
        edge.count(outcome);
        {
            let mut tables = self.tables.lock();
            tables.refusal(&edge.labels, refusal);
            let flow = tables.flow(&edge.labels, outcome_of(refusal), refusal.reason, &self.losses);
            flow.request(outcome.code, micros(outcome.duration));
            flow.bytes_received.add(outcome.request_bytes);
            flow.bytes_sent.add(outcome.response_bytes);
        }
        self.log(&edge.labels, Some(refusal), Event::Request(request, outcome));
    }
}

/// A handshake that failed, or that never began, was neither plaintext nor mutual TLS. Who looks for plaintext callers
/// must not be sent after a workload whose certificate has expired.
fn security_of(labels: &ConnectionLabels, refusal: &Refusal<'_>) -> Security {
    match (refusal.kind, labels.security) {
        (RefusalKind::TlsHandshake | RefusalKind::Overload, Security::None) => Security::Unknown,
        (_, security) => security,
    }
}

fn outcome_of(refusal: &Refusal<'_>) -> Outcome {
    Outcome::of(refusal.kind.decision(), refusal.policy)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A handle on one pair's counters in one worker. Recording on it neither locks nor allocates.
#[derive(Debug, Clone)]
pub struct Edge {
    labels: ConnectionLabels,
    series: Arc<Series>,
    flow: Arc<FlowCounters>,
}

impl Edge {
    /// The labels it was made with.
    pub fn labels(&self) -> &ConnectionLabels {
        &self.labels
    }

    /// Counts a finished request that policy allowed, whatever became of it.
    pub fn request(&self, outcome: &RequestOutcome) {
        self.count(outcome);
        self.flow.request(outcome.code, micros(outcome.duration));
        self.flow.bytes_received.add(outcome.request_bytes);
        self.flow.bytes_sent.add(outcome.response_bytes);
    }

    /// Counts that dry-run policies would have refused what this was: by a DENY rule, or (`None`) because no ALLOW rule
    /// matches.
    pub fn would_refuse(&self, policy: Option<PolicyRef<'_>>) {
        self.flow.would_refuse.count(policy);
    }

    fn count(&self, outcome: &RequestOutcome) {
        let counters = self.series.request(RequestKey {
            code: outcome.code,
            flags: outcome.flags,
            grpc_status: outcome.grpc_status,
            grpc: outcome.grpc,
        });
        counters.duration.record(micros(outcome.duration));
        counters.request_bytes.record(outcome.request_bytes.saturating_mul(1000));
        counters.response_bytes.record(outcome.response_bytes.saturating_mul(1000));
    }
}

/// One open connection. Counts itself as closed when it goes.
#[derive(Debug)]
pub struct Connection {
    edge: Edge,
    flags: ResponseFlags,
}

impl Connection {
    /// The handle for its requests.
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Adds bytes moved since the last call: `sent` towards the caller, `received` from it, whoever
    /// reports (reference cli-and-telemetry 3.1). Long connections call it every few seconds.
    pub fn bytes(&self, sent: u64, received: u64) {
        let cell = self.edge.series.tcp(ResponseFlags::None);
        cell.sent.add(sent);
        cell.received.add(received);
        if self.edge.labels.protocol == crate::labels::Protocol::Tcp {
            self.edge.flow.bytes_sent.add(sent);
            self.edge.flow.bytes_received.add(received);
        }
    }

    /// Closes with flags that say why.
    pub fn close(mut self, flags: ResponseFlags) {
        self.flags = flags;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.edge.series.tcp(self.flags).closed.add(1);
    }
}

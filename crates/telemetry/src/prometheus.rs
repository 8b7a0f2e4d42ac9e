//! The Prometheus text page (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::histogram::{BOUNDS, HistogramReading};
use crate::labels::{Reporter, ResponseFlags, Security, WorkloadLabels};
use crate::registry::{GaugeReading, OwnWorkload};
use crate::series::{RequestKey, Series};
use crate::tables::{DecisionKey, HandshakeKey, Losses, RefusalKey, RejectionKey, SeriesKey};

#[derive(Default, Clone)]
struct Requests {
    duration: HistogramReading,
    request_bytes: HistogramReading,
    response_bytes: HistogramReading,
}

#[derive(Default, Clone, Copy)]
struct Tcp {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

/// Sums over workers, sorted, so that two scrapes list in the same order.
#[derive(Default)]
pub(crate) struct Page {
    requests: BTreeMap<(SeriesKey, RequestKey), Requests>,
    tcp: BTreeMap<(SeriesKey, ResponseFlags), Tcp>,
    refusals: BTreeMap<RefusalKey, u64>,
    /// By what is shown of their key.
    rejections: BTreeMap<String, u64>,
    decisions: BTreeMap<DecisionKey, u64>,
    handshakes: BTreeMap<HandshakeKey, u64>,
}

impl Page {
    pub(crate) fn add_worker(
        &mut self,
        series: &[(SeriesKey, Arc<Series>)],
        refusals: impl IntoIterator<Item = (RefusalKey, u64)>,
        rejections: impl IntoIterator<Item = (RejectionKey, u64)>,
    ) {
        for (key, series) in series {
            self.add_series(key, series);
        }
        for (key, count) in refusals {
            *self.refusals.entry(key).or_default() += count;
        }
        for (key, count) in rejections {
            *self.rejections.entry(rejection_labels(&key)).or_default() += count;
        }
    }

    pub(crate) fn add_decisions(&mut self, decisions: impl IntoIterator<Item = (DecisionKey, u64)>) {
        for (key, count) in decisions {
            *self.decisions.entry(key).or_default() += count;
        }
    }

    pub(crate) fn add_handshakes(&mut self, handshakes: impl IntoIterator<Item = (HandshakeKey, u64)>) {
        for (key, count) in handshakes {
            *self.handshakes.entry(key).or_default() += count;
        }
    }

    fn add_series(&mut self, key: &SeriesKey, series: &Arc<Series>) {
        // Callers that wait for their names are unknown together.
        let key = &SeriesKey { unnamed: None, ..key.clone() };
        for (request, counters) in series.requests.iter() {
            // The cell that takes the rest exists from the start; without a count it is no series.
            let mut duration = HistogramReading::default();
            counters.duration.read_into(&mut duration);
            if duration.count() == 0 {
                continue;
            }
            let sum = self.requests.entry((key.clone(), request)).or_default();
            counters.duration.read_into(&mut sum.duration);
            counters.request_bytes.read_into(&mut sum.request_bytes);
            counters.response_bytes.read_into(&mut sum.response_bytes);
        }
        for (flags, counters) in series.tcp.iter() {
            if counters.opened.value() == 0 && counters.closed.value() == 0 {
                continue;
            }
            let sum = self.tcp.entry((key.clone(), flags)).or_default();
            sum.opened += counters.opened.value();
            sum.closed += counters.closed.value();
            sum.sent += counters.sent.value();
            sum.received += counters.received.value();
        }
    }

    pub(crate) fn render(
        &self,
        own: &OwnWorkload,
        gauges: &GaugeReading,
        losses: &Losses,
        lines_dropped: u64,
    ) -> String {
        let mut out = String::with_capacity(4096 + 4096 * self.requests.len() + 1024 * self.tcp.len());
        self.requests_families(&mut out, own);
        self.tcp_families(&mut out, own);
        self.refusals_family(&mut out);
        self.rejections_family(&mut out);
        self.decisions_family(&mut out);
        self.handshakes_family(&mut out);
        own_families(&mut out, own, gauges, losses, lines_dropped);
        out
    }

    fn requests_families(&self, out: &mut String, own: &OwnWorkload) {
        if self.requests.is_empty() {
            return;
        }
        // By what is shown: an absent label and one that says `unknown` are the same there.
        let mut labels: BTreeMap<String, Requests> = BTreeMap::new();
        for ((key, request), sum) in &self.requests {
            let shown = labels.entry(request_labels(key, request, own)).or_default();
            shown.duration.add(&sum.duration);
            shown.request_bytes.add(&sum.request_bytes);
            shown.response_bytes.add(&sum.response_bytes);
        }
        head(out, "istio_requests_total", "counter", "HTTP requests.");
        for (labels, sum) in &labels {
            line(out, "istio_requests_total", labels, sum.duration.count());
        }
        type Field = fn(&Requests) -> &HistogramReading;
        let families: [(&str, &str, Field); 3] = [
            ("istio_request_duration_milliseconds", "Duration of requests.", |r| &r.duration),
            ("istio_request_bytes", "Size of requests, headers included.", |r| &r.request_bytes),
            ("istio_response_bytes", "Size of responses, headers included.", |r| &r.response_bytes),
        ];
        for (name, help, field) in families {
            head(out, name, "histogram", help);
            for (labels, sum) in &labels {
                histogram(out, name, labels, field(sum));
            }
        }
    }

    fn tcp_families(&self, out: &mut String, own: &OwnWorkload) {
        if self.tcp.is_empty() {
            return;
        }
        let mut labels: BTreeMap<String, Tcp> = BTreeMap::new();
        for ((key, flags), sum) in &self.tcp {
            let shown = labels.entry(tcp_labels(key, *flags, own)).or_default();
            shown.opened += sum.opened;
            shown.closed += sum.closed;
            shown.sent += sum.sent;
            shown.received += sum.received;
        }
        type Field = fn(&Tcp) -> u64;
        let families: [(&str, &str, Field); 4] = [
            ("istio_tcp_connections_opened_total", "Connections opened, refused ones and HTTP's too.", |t| {
                t.opened
            }),
            ("istio_tcp_connections_closed_total", "Connections closed.", |t| t.closed),
            ("istio_tcp_sent_bytes_total", "Bytes towards the caller.", |t| t.sent),
            ("istio_tcp_received_bytes_total", "Bytes from the caller.", |t| t.received),
        ];
        for (name, help, field) in families {
            head(out, name, "counter", help);
            for (labels, sum) in &labels {
                line(out, name, labels, field(sum));
            }
        }
    }

    fn rejections_family(&self, out: &mut String) {
        if self.rejections.is_empty() {
            return;
        }
        let name = "maille_mtls_rejected_total";
        head(
            out,
            name,
            "counter",
            "Connections refused or failed for want of mutual TLS, by reason and workloads.",
        );
        for (labels, count) in &self.rejections {
            line(out, name, labels, *count);
        }
    }

    fn decisions_family(&self, out: &mut String) {
        if self.decisions.is_empty() {
            return;
        }
        let name = "maille_authz_decisions_total";
        head(
            out,
            name,
            "counter",
            "What policies said that do not decide: dry-run ones (would_allow, would_deny), and AUDIT (audit).",
        );
        for (key, count) in &self.decisions {
            let rule = key.rule.map(|r| r.to_string()).unwrap_or_default();
            let mut labels = String::new();
            label(&mut labels, "direction", direction(key.reporter));
            label(&mut labels, "decision", key.decision);
            label(&mut labels, "action", key.action);
            label(&mut labels, "policy_namespace", &key.policy_namespace);
            label(&mut labels, "policy", &key.policy);
            label(&mut labels, "rule", &rule);
            line(out, name, &labels, *count);
        }
    }

    fn handshakes_family(&self, out: &mut String) {
        if self.handshakes.is_empty() {
            return;
        }
        let name = "maille_tls_handshakes_total";
        head(
            out,
            name,
            "counter",
            "Handshakes of mutual TLS, by key exchange, version and the proxy's side.",
        );
        for ((side, key_exchange, version), count) in &self.handshakes {
            let mut labels = String::new();
            label(&mut labels, "group", key_exchange);
            label(&mut labels, "version", version);
            label(&mut labels, "side", side);
            line(out, name, &labels, *count);
        }
    }

    fn refusals_family(&self, out: &mut String) {
        if self.refusals.is_empty() {
            return;
        }
        let name = "maille_refusals_total";
        head(out, name, "counter", "Connections and requests refused or failed, by reason and policy.");
        for (key, count) in &self.refusals {
            let rule = key.rule.map(|r| r.to_string()).unwrap_or_default();
            let mut labels = String::new();
            label(&mut labels, "direction", direction(key.reporter));
            label(&mut labels, "reason", key.kind.as_str());
            label(&mut labels, "policy_namespace", &key.policy_namespace);
            label(&mut labels, "policy", &key.policy);
            label(&mut labels, "rule", &rule);
            line(out, name, &labels, *count);
        }
    }
}

fn own_families(
    out: &mut String,
    own: &OwnWorkload,
    gauges: &GaugeReading,
    losses: &Losses,
    lines_dropped: u64,
) {
    let mut build = String::new();
    label(&mut build, "component", "proxy");
    label(&mut build, "tag", &own.version);
    head(out, "istio_build", "gauge", "What runs here.");
    line(out, "istio_build", &build, 1);
    let kinds = [("leaf", "default", gauges.certificate_expiry), ("root", "ROOTCA", gauges.root_expiry)];
    let ends: Vec<_> = kinds.into_iter().filter(|(_, _, end)| *end != 0).collect();
    if !ends.is_empty() {
        let name = "maille_cert_expiry_timestamp_seconds";
        head(
            out,
            name,
            "gauge",
            "When the certificate in use, and the first of the roots that came with it, expire.",
        );
        for (kind, _, end) in &ends {
            let mut labels = String::new();
            label(&mut labels, "identity", known(&gauges.identity));
            label(&mut labels, "kind", kind);
            line(out, name, &labels, end);
        }
        let name = "istio_agent_cert_expiry_seconds";
        head(out, name, "gauge", "Seconds until the certificate expires; negative once it has.");
        for (_, resource, end) in &ends {
            let mut labels = String::new();
            label(&mut labels, "resource_name", resource);
            line(out, name, &labels, end.saturating_sub(gauges.now));
        }
    }
    if gauges.certificate_renewed_at != 0 {
        let (name, at) = ("maille_cert_rotation_timestamp_seconds", gauges.certificate_renewed_at);
        head(out, name, "gauge", "When the workload certificate was obtained last.");
        line(out, name, "", at);
        let name = "maille_cert_rotation_age_seconds";
        head(out, name, "gauge", "Seconds since the workload certificate was obtained last.");
        line(out, name, "", gauges.now.saturating_sub(at));
    }
    if let Some(skew) = gauges.clock_skew {
        let name = "maille_clock_skew_seconds";
        head(
            out,
            name,
            "gauge",
            "By how much the own clock is ahead of the control plane's; negative if behind.",
        );
        let mut labels = String::new();
        label(&mut labels, "peer", "control_plane");
        line(out, name, &labels, skew);
    }
    if gauges.xds_last_update != 0 {
        let name = "maille_xds_last_update_timestamp_seconds";
        head(out, name, "gauge", "When the control plane last sent something.");
        line(out, name, "", gauges.xds_last_update);
    }
    let [requests, upstream_requests, upstream_failures] = gauges.dns.unwrap_or_default();
    for (name, help, count) in [
        ("istio_agent_dns_requests_total", "DNS questions of the application.", requests),
        (
            "istio_agent_dns_upstream_requests_total",
            "DNS questions passed on to resolvers.",
            upstream_requests,
        ),
        (
            "istio_agent_dns_upstream_failures_total",
            "DNS questions that a resolver did not answer.",
            upstream_failures,
        ),
    ] {
        if gauges.dns.is_some() {
            head(out, name, "counter", help);
            line(out, name, "", count);
        }
    }
    let plain = [
        (
            "maille_xds_connected",
            "gauge",
            "1 while connected to the control plane.",
            gauges.xds_connected.into(),
        ),
        (
            "maille_config_generation",
            "gauge",
            "Number of the configuration in force.",
            gauges.config_generation,
        ),
        ("maille_destinations", "gauge", "Destinations held on demand.", gauges.destinations),
        (
            "maille_certificate_rotations_total",
            "counter",
            "Workload certificates obtained.",
            gauges.certificate_rotations,
        ),
        (
            "maille_certificate_failures_total",
            "counter",
            "Failed attempts to obtain a workload certificate.",
            gauges.certificate_failures,
        ),
        (
            "maille_tcp_connections_expiring",
            "gauge",
            "Open TCP connections of peers whose certificate ends soon, and the connection with it.",
            gauges.expiring_connections,
        ),
        ("maille_xds_rejections_total", "counter", "Resources rejected (nack).", gauges.xds_rejections),
        (
            "maille_label_sets_overflowed_total",
            "counter",
            "Lookups counted under the label value other, because there are too many label sets.",
            losses.series.load(Ordering::Relaxed),
        ),
        (
            "maille_flows_overflowed_total",
            "counter",
            "Lookups counted under an unnamed pair, because there are too many flows.",
            losses.flows.load(Ordering::Relaxed),
        ),
        (
            "maille_access_log_lines_dropped_total",
            "counter",
            "Lines the log's reader was too slow for.",
            lines_dropped,
        ),
    ];
    for (name, kind, help, value) in plain {
        head(out, name, kind, help);
        line(out, name, "", value);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = if labels.is_empty() {
        writeln!(out, "{name} {value}")
    } else {
        writeln!(out, "{name}{{{labels}}} {value}")
    };
}

fn histogram(out: &mut String, name: &str, labels: &str, reading: &HistogramReading) {
    let mut cumulative = 0;
    for ((_, bound), cell) in BOUNDS.iter().zip(&reading.cells) {
        cumulative += cell;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {cumulative}");
    }
    let count = reading.count();
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", reading.sum_thousandths as f64 / 1000.0);
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

fn direction(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Source => "outbound",
        Reporter::Destination => "inbound",
    }
}

fn rejection_labels(key: &RejectionKey) -> String {
    let mut labels = String::with_capacity(200);
    label(&mut labels, "direction", direction(key.reporter));
    label(&mut labels, "reason", key.reason.as_str());
    for (end, workload) in [("source", &key.source), ("destination", &key.destination)] {
        label(&mut labels, &format!("{end}_workload"), known(&workload.name));
        label(&mut labels, &format!("{end}_workload_namespace"), known(&workload.namespace));
    }
    labels
}

/// Adds one label, its value escaped as the format asks.
fn label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

fn known(value: &str) -> &str {
    if value.is_empty() { "unknown" } else { value }
}

fn request_labels(key: &SeriesKey, request: &RequestKey, own: &OwnWorkload) -> String {
    let mut labels = common_labels(key, if request.grpc { "grpc" } else { "http" }, request.flags, own);
    label(&mut labels, "response_code", &request.code.to_string());
    let grpc = request.grpc_status.map(|status| status.to_string()).unwrap_or_default();
    label(&mut labels, "grpc_response_status", &grpc);
    labels
}

fn tcp_labels(key: &SeriesKey, flags: ResponseFlags, own: &OwnWorkload) -> String {
    // Always `tcp`, as Istio's dashboards filter by it; HTTP connections are counted here too.
    common_labels(key, "tcp", flags, own)
}

fn common_labels(key: &SeriesKey, protocol: &str, flags: ResponseFlags, own: &OwnWorkload) -> String {
    let mut labels = String::with_capacity(900);
    label(&mut labels, "reporter", key.reporter.as_str());
    peer_labels(&mut labels, "source", &key.source, own);
    peer_labels(&mut labels, "destination", &key.destination, own);
    label(&mut labels, "destination_service", known(&key.service.host));
    label(&mut labels, "destination_service_name", known(&key.service.name));
    label(&mut labels, "destination_service_namespace", known(&key.service.namespace));
    label(&mut labels, "request_protocol", protocol);
    label(&mut labels, "response_flags", flags.as_str());
    // Only the server's side says it (reference cli-and-telemetry 3.1).
    let security = if key.reporter == Reporter::Source { Security::Unknown } else { key.security };
    label(&mut labels, "connection_security_policy", security.as_str());
    labels
}

fn peer_labels(labels: &mut String, end: &str, workload: &WorkloadLabels, own: &OwnWorkload) {
    let principal = if workload.principal.is_empty() {
        "unknown".to_owned()
    } else {
        format!("spiffe://{}", workload.principal)
    };
    let cluster = if workload.name.is_empty() { "unknown" } else { known(&own.cluster) };
    let revision =
        if workload.canonical_revision.is_empty() { "latest" } else { workload.canonical_revision.as_str() };
    // The registry has no `version` label of its own; the canonical revision falls back to it.
    let version = if revision == "latest" { "unknown" } else { revision };
    for (name, value) in [
        ("workload", known(&workload.name)),
        ("workload_namespace", known(&workload.namespace)),
        ("principal", principal.as_str()),
        ("app", known(&workload.app)),
        ("version", version),
        ("canonical_service", known(&workload.canonical_name)),
        ("canonical_revision", revision),
        ("cluster", cluster),
    ] {
        label(labels, &format!("{end}_{name}"), value);
    }
}

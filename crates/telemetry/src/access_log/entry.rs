//! What a line says, and the two text shapes of it.
//!
//! Istio's default text (reference cli-and-telemetry 4.1), byte for byte, for everything that went its way; what Istio's
//! line has no place for (why it was refused, who called, what AUDIT and dry-run policies say of it) follows as
//! `key="value"`, only where there is something to say. When only refusals are logged, the line is for people:
//! `START_TIME refused DIRECTION PROTOCOL "METHOD PATH" CODE FLAGS DETAILS key="value" …`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::bounded;
use crate::labels::{ConnectionLabels, Peer, Reporter, ResponseFlags};
use crate::recorder::RequestOutcome;
use crate::refusal::{PolicyRef, Refusal};

/// What a log line says of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestLine<'a> {
    /// Method.
    pub method: &'a str,
    /// Host or `:authority`.
    pub authority: &'a str,
    /// Path; what follows `?` is not logged.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// `x-forwarded-for`, empty if there is none.
    pub forwarded_for: &'a str,
    /// `user-agent`, empty if there is none.
    pub user_agent: &'a str,
    /// `x-request-id`, empty if there is none.
    pub request_id: &'a str,
    /// What policies say of it that does not decide.
    pub marks: Marks<'a>,
    /// From where to where.
    pub way: Way<'a>,
}

/// What policies say that do not decide (reference authorization 3 and 14).
#[derive(Debug, Clone, Copy, Default)]
pub struct Marks<'a> {
    /// The AUDIT rule that matched.
    pub audit: Option<PolicyRef<'a>>,
    /// What the dry-run ALLOW policies would have done; `None` without such policies.
    pub shadow_allow: Option<Shadow<'a>>,
    /// What the dry-run DENY policies would have done; `None` without such policies.
    pub shadow_deny: Option<Shadow<'a>>,
}

/// What dry-run policies of one action would have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow<'a> {
    /// Whether they would have let it through.
    pub allowed: bool,
    /// The rule that matched, if one did.
    pub policy: Option<PolicyRef<'a>>,
}

impl Shadow<'_> {
    pub(crate) fn result(&self) -> &'static str {
        if self.allowed { "allowed" } else { "denied" }
    }
}

/// From where to where; what is not known is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way<'a> {
    /// Whom it was sent to.
    pub upstream: Option<SocketAddr>,
    /// From which address of ours.
    pub upstream_local: Option<SocketAddr>,
    /// The address that was called.
    pub downstream_local: Option<SocketAddr>,
    /// The caller's.
    pub downstream_remote: Option<SocketAddr>,
    /// Of the caller's ClientHello.
    pub server_name: &'a str,
}

/// What a connection of opaque bytes moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Transfer {
    /// From the caller.
    pub received: u64,
    /// To the caller.
    pub sent: u64,
    /// How long it was open.
    pub duration: Duration,
    /// How it ended.
    pub flags: ResponseFlags,
}

/// What happened.
#[derive(Clone, Copy)]
pub(crate) enum Event<'a> {
    Request(&'a RequestLine<'a>, &'a RequestOutcome),
    Connection(&'a Marks<'a>, &'a Way<'a>, Transfer),
}

pub(crate) struct Entry<'a> {
    pub(crate) labels: &'a ConnectionLabels,
    /// `None`: it was not refused.
    pub(crate) refusal: Option<&'a Refusal<'a>>,
    pub(crate) event: Event<'a>,
    /// When it was over.
    pub(crate) ended: SystemTime,
}

impl Entry<'_> {
    pub(super) fn marks(&self) -> &Marks<'_> {
        match &self.event {
            Event::Request(line, _) => &line.marks,
            Event::Connection(marks, ..) => marks,
        }
    }

    pub(super) fn way(&self) -> &Way<'_> {
        match &self.event {
            Event::Request(line, _) => &line.way,
            Event::Connection(_, way, _) => way,
        }
    }

    fn duration(&self) -> Duration {
        match &self.event {
            Event::Request(_, outcome) => outcome.duration,
            Event::Connection(.., transfer) => transfer.duration,
        }
    }

    pub(super) fn duration_ms(&self) -> u64 {
        u64::try_from(self.duration().as_millis()).unwrap_or(u64::MAX)
    }

    /// When it began, as Envoy writes it.
    pub(super) fn start_time(&self) -> String {
        let began = self.ended.checked_sub(self.duration()).unwrap_or(self.ended);
        jiff::Timestamp::try_from(began).map(|t| format!("{t:.3}")).unwrap_or_default()
    }

    pub(super) fn direction(&self) -> &'static str {
        match self.labels.reporter {
            Reporter::Source => "outbound",
            Reporter::Destination => "inbound",
        }
    }

    /// What it is in one word.
    pub(super) fn word(&self) -> &'static str {
        match (self.refusal, self.marks().audit, &self.event) {
            (Some(_), ..) => "refused",
            (None, Some(_), _) => "audited",
            (None, None, Event::Request(..)) => "request",
            (None, None, Event::Connection(..)) => "connection",
        }
    }

    pub(super) fn flags(&self) -> ResponseFlags {
        match (self.refusal, &self.event) {
            (Some(refusal), _) => refusal.flags,
            (None, Event::Request(_, outcome)) => outcome.flags,
            (None, Event::Connection(.., transfer)) => transfer.flags,
        }
    }

    /// `RESPONSE_CODE_DETAILS`, in Envoy's words where it has some.
    pub(super) fn response_code_details(&self) -> Option<String> {
        let Event::Request(_, outcome) = &self.event else { return None };
        if let Some(refusal) = self.refusal {
            return Some(refusal.details());
        }
        let details = match outcome.flags {
            ResponseFlags::DownstreamDisconnect => "downstream_remote_disconnect",
            ResponseFlags::UpstreamClosed if outcome.code == 0 => "upstream_reset_before_response_started",
            _ => "via_upstream",
        };
        Some(details.to_owned())
    }

    /// `CONNECTION_TERMINATION_DETAILS`: of a connection of opaque bytes that was refused.
    pub(super) fn termination_details(&self) -> Option<String> {
        match (&self.event, self.refusal) {
            (Event::Connection(..), Some(refusal)) => Some(refusal.details()),
            _ => None,
        }
    }

    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`: why there was no TLS to the upstream.
    pub(super) fn transport_failure(&self) -> Option<String> {
        let refusal = self.refusal.filter(|r| r.tls.is_some() && self.labels.reporter == Reporter::Source)?;
        Some(refusal.reason.replace(char::is_whitespace, "_"))
    }

    /// Bytes of the bodies, or of the connection: received, sent.
    pub(super) fn bytes(&self) -> (u64, u64) {
        match &self.event {
            Event::Request(_, outcome) => (
                outcome.request_bytes.saturating_sub(outcome.request_head_bytes),
                outcome.response_bytes.saturating_sub(outcome.response_head_bytes),
            ),
            Event::Connection(.., transfer) => (transfer.received, transfer.sent),
        }
    }

    pub(super) fn upstream_time_ms(&self) -> Option<u64> {
        let Event::Request(_, outcome) = &self.event else { return None };
        Some(u64::try_from(outcome.upstream_time?.as_millis()).unwrap_or(u64::MAX))
    }

    /// The name that Istio gives to where it went.
    pub(super) fn cluster(&self) -> Option<String> {
        let service = &self.labels.service;
        match (self.labels.reporter, service.name.as_str()) {
            (_, name @ ("PassthroughCluster" | "BlackHoleCluster" | "InboundPassthroughCluster")) => {
                Some(name.to_owned())
            }
            (Reporter::Destination, _) => Some(format!("inbound|{}||", self.labels.port)),
            (Reporter::Source, _) if service.host.is_empty() => None,
            (Reporter::Source, _) => {
                let called = self.way().downstream_local.map_or(self.labels.port, |called| called.port());
                Some(format!("outbound|{called}||{}", service.host))
            }
        }
    }

    pub(super) fn route(&self) -> Option<&'static str> {
        let Event::Request(..) = self.event else { return None };
        match self.labels.service.name.as_str() {
            "PassthroughCluster" => Some("allow_any"),
            "BlackHoleCluster" => Some("block_all"),
            _ => Some("default"),
        }
    }

    /// Istio's default line, and after it what that has no place for.
    pub(super) fn istio_text(&self) -> String {
        let mut out = String::with_capacity(384);
        let (method, path, protocol, code) = match &self.event {
            Event::Request(line, outcome) => {
                (line.method, without_query(line.path), line.protocol, outcome.code)
            }
            Event::Connection(..) => ("", "", "", 0),
        };
        let _ = write!(out, "[{}] \"", self.start_time());
        for (separator, part) in [("", method), (" ", path), (" ", protocol)] {
            out.push_str(separator);
            push(&mut out, part);
        }
        let (received, sent) = self.bytes();
        let _ = write!(out, "\" {code} {} ", self.flags().as_str());
        push(&mut out, &self.response_code_details().unwrap_or_default());
        out.push(' ');
        push(&mut out, &self.termination_details().unwrap_or_default());
        out.push_str(" \"");
        push(&mut out, &self.transport_failure().unwrap_or_default());
        let _ = write!(out, "\" {received} {sent} {} ", self.duration_ms());
        push(&mut out, &self.upstream_time_ms().map(|ms| ms.to_string()).unwrap_or_default());
        let line = match &self.event {
            Event::Request(line, _) => **line,
            Event::Connection(..) => RequestLine::default(),
        };
        let way = self.way();
        let upstream = shown(way.upstream);
        for quoted in [line.forwarded_for, line.user_agent, line.request_id, line.authority, &upstream] {
            out.push_str(" \"");
            push(&mut out, quoted);
            out.push('"');
        }
        for bare in [
            &self.cluster().unwrap_or_default(),
            &shown(way.upstream_local),
            &shown(way.downstream_local),
            &shown(way.downstream_remote),
            way.server_name,
            self.route().unwrap_or_default(),
        ] {
            out.push(' ');
            push(&mut out, bare);
        }
        self.push_more(&mut out);
        out
    }

    /// The line for people, when only refusals and audited requests are logged.
    pub(super) fn text(&self) -> String {
        let mut out = String::with_capacity(512);
        let (protocol, method, path) = match &self.event {
            Event::Request(line, _) => ("HTTP", line.method, without_query(line.path)),
            Event::Connection(..) => ("TCP", "", ""),
        };
        let code = match &self.event {
            Event::Request(_, outcome) => outcome.code,
            Event::Connection(..) => 0,
        };
        let _ = write!(out, "{} {} {} {protocol} \"", self.start_time(), self.word(), self.direction());
        push(&mut out, method);
        out.push(' ');
        push(&mut out, path);
        let _ = write!(out, "\" {code} {} ", self.flags().as_str());
        push(
            &mut out,
            &self.response_code_details().or_else(|| self.termination_details()).unwrap_or_default(),
        );
        self.push_more(&mut out);
        if let Event::Request(line, _) = &self.event {
            pair(&mut out, "authority", line.authority);
        }
        out
    }

    /// What a refusal, AUDIT and dry-run policies add, as `key="value"`.
    fn push_more(&self, out: &mut String) {
        let marks = self.marks();
        if let Some(refusal) = self.refusal {
            pair(out, "refusal", refusal.kind.as_str());
            pair(out, "policy", &refusal.policy.map(|p| policy_name(&p)).unwrap_or_default());
            pair(out, "rule", &refusal.policy.map(|p| p.rule.to_string()).unwrap_or_default());
            pair(out, "reason", refusal.reason);
        }
        if let Some(audit) = &marks.audit {
            pair(out, "audit_policy", &rule_id(audit));
        }
        for (key, id_key, shadow) in shadows(marks) {
            pair(out, key, shadow.result());
            pair(out, id_key, &shadow.policy.as_ref().map(rule_id).unwrap_or_else(|| "none".to_owned()));
        }
        if self.refusal.is_some() || marks.audit.is_some() {
            for (end, peer) in [("source", &self.labels.source), ("destination", &self.labels.destination)] {
                push_peer(out, end, peer);
            }
            pair(out, "port", &self.labels.port.to_string());
            pair(out, "service", &self.labels.service.host);
            pair(out, "mtls", if self.labels.mtls { "true" } else { "false" });
        }
    }
}

/// The dry-run results that there are, with Istio's names for them (reference authorization 14).
pub(super) fn shadows<'a>(
    marks: &'a Marks<'a>,
) -> impl Iterator<Item = (&'static str, &'static str, &'a Shadow<'a>)> {
    let allow = marks.shadow_allow.as_ref().map(|shadow| {
        ("istio_dry_run_allow_shadow_engine_result", "istio_dry_run_allow_shadow_effective_policy_id", shadow)
    });
    let deny = marks.shadow_deny.as_ref().map(|shadow| {
        ("istio_dry_run_deny_shadow_engine_result", "istio_dry_run_deny_shadow_effective_policy_id", shadow)
    });
    allow.into_iter().chain(deny)
}

pub(super) fn policy_name(policy: &PolicyRef<'_>) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

/// As Istio names a rule in logs (reference authorization 16).
pub(super) fn rule_id(policy: &PolicyRef<'_>) -> String {
    format!("ns[{}]-policy[{}]-rule[{}]", policy.namespace, policy.name, policy.rule)
}

pub(super) fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

pub(super) fn shown(address: Option<SocketAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

/// A value, or `-`. `escape_debug` keeps a caller's line breaks and quotes from forging a line.
fn push(out: &mut String, value: &str) {
    if value.is_empty() {
        out.push('-');
    } else {
        out.extend(bounded(value).escape_debug());
    }
}

fn pair(out: &mut String, key: &str, value: &str) {
    let _ = write!(out, " {key}=\"");
    push(out, value);
    out.push('"');
}

fn push_peer(out: &mut String, end: &str, peer: &Peer) {
    pair(out, &format!("{end}_identity"), &peer.workload.principal);
    pair(out, &format!("{end}_workload"), &peer.workload.name);
    pair(out, &format!("{end}_namespace"), &peer.workload.namespace);
    pair(out, &format!("{end}_address"), &peer.address.map(|a| a.to_string()).unwrap_or_default());
}

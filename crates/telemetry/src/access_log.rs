//! The access log: one line per refusal, written by a thread of its own.
//!
//! A worker formats a line and hands it over through a bounded queue; when the reader of the
//! log does not keep up, lines are dropped, counted, and the loss is said in the log. Query strings
//! and headers are never logged: they carry tokens.
//!
//! JSON, one object per line. Keys are Istio's where Istio has one (reference cli-and-telemetry 4.1): `start_time`,
//! `method`, `path`, `protocol` (`HTTP` or `TCP`), `authority`, `response_code`, `response_flags`,
//! `response_code_details` (HTTP) or `connection_termination_details` (TCP), `bytes_received`, `bytes_sent`, `duration`
//! (ms). Added: `event` = `refused`, `pod`, `direction`, `refusal` (the `reason` label of `maille_refusals_total`), `policy`
//! (`namespace/name`), `rule`, `reason` (for people), `mtls`, `port`, `service`, and for `source` and `destination`:
//! `…_identity`, `…_workload`, `…_namespace`, `…_address`. Missing is `null`.
//!
//! Text: `START_TIME refused DIRECTION PROTOCOL "METHOD PATH" CODE FLAGS DETAILS`, then the rest as `key="value"`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::labels::{ConnectionLabels, Peer, Reporter};
use crate::recorder::RequestOutcome;
use crate::refusal::Refusal;

/// Lines that wait for the writer: about 512 kB of refusals.
const QUEUE: usize = 1024;
/// Longest value of a caller's making that is logged.
const MAX_VALUE: usize = 512;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Coverage {
    /// Refusals, and what an AUDIT policy marks.
    #[default]
    Refusals,
    /// Every request and every connection of opaque bytes, in Istio's default format.
    Everything(Format),
}

/// What a log line says of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLine<'a> {
    /// Method.
    pub method: &'a str,
    /// Host or `:authority`.
    pub authority: &'a str,
    /// Path; what follows `?` is not logged.
    pub path: &'a str,
}

pub(crate) struct RefusalLine<'a> {
    pub(crate) labels: &'a ConnectionLabels,
    pub(crate) refusal: &'a Refusal<'a>,
    pub(crate) request: Option<(&'a RequestLine<'a>, &'a RequestOutcome)>,
}

/// Where refusals are written. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    sink: Option<SyncSender<String>>,
    format: Format,
    /// `<namespace>/<pod>` of the reporter.
    pod: Arc<str>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// A log that writes to `writer` on a thread of its own. The thread ends with the last clone of the log.
    ///
    /// Fails only if the thread cannot be started.
    pub fn to(writer: impl Write + Send + 'static, format: Format, pod: &str) -> std::io::Result<Self> {
        let (sink, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let losses = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || write_lines(writer, &lines, &losses))?;
        Ok(Self { sink: Some(sink), format, pod: Arc::from(pod), dropped })
    }

    /// A log to standard output.
    pub fn to_stdout(format: Format, pod: &str) -> std::io::Result<Self> {
        Self::to(std::io::stdout(), format, pod)
    }

    /// A log that nobody reads.
    pub fn disabled() -> Self {
        Self { sink: None, format: Format::Text, pod: Arc::from(""), dropped: Arc::default() }
    }

    /// How many lines were dropped because the reader did not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn refusal(&self, line: &RefusalLine<'_>) {
        let Some(sink) = &self.sink else { return };
        let object = line.object(&self.pod, SystemTime::now());
        let text = match self.format {
            Format::Json => object.to_string(),
            Format::Text => line.text(&object),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sink.try_send(text) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines(mut writer: impl Write, lines: &Receiver<String>, dropped: &AtomicU64) {
    let mut reported = 0;
    while let Ok(line) = lines.recv() {
        let lost = dropped.load(Ordering::Relaxed);
        let notice = (lost > reported).then(|| format!("access log: {} lines dropped\n", lost - reported));
        reported = lost;
        let mut chunk = notice.unwrap_or_default();
        chunk.push_str(&line);
        chunk.push('\n');
        // One write for what has gathered meanwhile, so that a burst costs few kernel crossings.
        while chunk.len() < 16 * 1024 {
            let Ok(next) = lines.try_recv() else { break };
            chunk.push_str(&next);
            chunk.push('\n');
        }
        if writer.write_all(chunk.as_bytes()).and_then(|()| writer.flush()).is_err() {
            // Nobody reads any more; the queue's senders see it and count.
            return;
        }
    }
}

/// Cut to the bound at a character's border.
fn bounded(text: &str) -> &str {
    let mut end = text.len().min(MAX_VALUE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn text_or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::from(bounded(text)) }
}

impl RefusalLine<'_> {
    fn object(&self, pod: &str, now: SystemTime) -> Value {
        let labels = self.labels;
        let time = jiff::Timestamp::try_from(now).map(|t| format!("{t:.3}")).unwrap_or_default();
        let direction = match labels.reporter {
            Reporter::Source => "outbound",
            Reporter::Destination => "inbound",
        };
        let policy = self.refusal.policy.map(|p| format!("{}/{}", p.namespace, p.name));
        let mut object = json!({
            "start_time": time,
            "event": "refused",
            "pod": text_or_null(pod),
            "direction": direction,
            "protocol": if self.request.is_some() { "HTTP" } else { "TCP" },
            "refusal": self.refusal.kind.as_str(),
            "policy": policy,
            "rule": self.refusal.policy.map(|p| p.rule),
            "reason": text_or_null(self.refusal.reason),
            "mtls": labels.mtls,
            "port": labels.port,
            "service": text_or_null(&labels.service.host),
            "response_flags": self.refusal.flags.as_str(),
        });
        let Some(map) = object.as_object_mut() else { return object };
        for (end, peer) in [("source", &labels.source), ("destination", &labels.destination)] {
            insert_peer(map, end, peer);
        }
        match self.request {
            Some((request, outcome)) => {
                let path = request.path.split('?').next().unwrap_or_default();
                map.insert("method".into(), text_or_null(request.method));
                map.insert("path".into(), text_or_null(path));
                map.insert("authority".into(), text_or_null(request.authority));
                map.insert("response_code".into(), outcome.code.into());
                map.insert("response_code_details".into(), self.refusal.details().into());
                map.insert("bytes_received".into(), outcome.request_bytes.into());
                map.insert("bytes_sent".into(), outcome.response_bytes.into());
                map.insert("duration".into(), Value::from(outcome.duration.as_millis() as u64));
            }
            None => {
                map.insert("response_code".into(), 0.into());
                map.insert("connection_termination_details".into(), self.refusal.details().into());
            }
        }
        object
    }

    /// The same as `object`, for people.
    fn text(&self, object: &Value) -> String {
        let field = |key: &str| match object.get(key) {
            None | Some(Value::Null) => "-".to_owned(),
            // `escape_debug` keeps a caller's line breaks and quotes from forging a line.
            Some(Value::String(text)) => text.escape_debug().to_string(),
            Some(other) => other.to_string(),
        };
        let request = match self.request {
            Some(_) => format!("\"{} {}\"", field("method"), field("path")),
            None => "\"- -\"".to_owned(),
        };
        let details = match self.request {
            Some(_) => field("response_code_details"),
            None => field("connection_termination_details"),
        };
        let mut line = format!(
            "{} refused {} {} {request} {} {} {details}",
            field("start_time"),
            field("direction"),
            field("protocol"),
            field("response_code"),
            field("response_flags"),
        );
        for key in [
            "refusal",
            "policy",
            "rule",
            "reason",
            "source_identity",
            "source_workload",
            "source_namespace",
            "source_address",
            "destination_identity",
            "destination_workload",
            "destination_namespace",
            "destination_address",
            "port",
            "service",
            "authority",
            "mtls",
        ] {
            line.push_str(&format!(" {key}=\"{}\"", field(key)));
        }
        line
    }
}

fn insert_peer(map: &mut serde_json::Map<String, Value>, end: &str, peer: &Peer) {
    map.insert(format!("{end}_identity"), text_or_null(&peer.workload.principal));
    map.insert(format!("{end}_workload"), text_or_null(&peer.workload.name));
    map.insert(format!("{end}_namespace"), text_or_null(&peer.workload.namespace));
    map.insert(format!("{end}_address"), peer.address.map(|a| a.to_string()).into());
}

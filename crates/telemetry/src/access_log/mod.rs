//! The access log: one line per event, written by a thread of its own.
//!
//! A worker formats a line and hands it over through a bounded queue; when the reader of the
//! log does not keep up, lines are dropped, counted, and the loss is said in the log. Query strings are never logged, and
//! of headers only `x-forwarded-for`, `user-agent` and `x-request-id`: the others carry tokens.
//!
//! [`Coverage`] says what is an event: refusals (and what an AUDIT policy marks), or everything. `entry` holds the lines'
//! shapes.

mod entry;
mod json;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

pub(crate) use entry::{Entry, Event};
pub use entry::{Marks, RequestLine, Shadow, Transfer, Way};

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

/// Where lines are written. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AccessLog {
    sink: Option<SyncSender<String>>,
    format: Format,
    /// `<namespace>/<pod>` of the reporter.
    pod: Arc<str>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// A log that writes to `writer` on a thread of its own; `format` holds unless the mesh orders one. The thread ends
    /// with the last clone of the log.
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

    pub(crate) fn is_read(&self) -> bool {
        self.sink.is_some()
    }

    pub(crate) fn write(&self, entry: &Entry<'_>, coverage: Coverage) {
        let Some(sink) = &self.sink else { return };
        let text = match coverage {
            Coverage::Everything(Format::Text) => entry.istio_text(),
            Coverage::Everything(Format::Json) => entry.json(&self.pod),
            Coverage::Refusals => match self.format {
                Format::Json => entry.json(&self.pod),
                Format::Text => entry.text(),
            },
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

//! What was issued to whom, and what was refused: one line of JSON each, in a file that only grows, and the newest in
//! memory.
//!
//! Whatever is issued has its line. Of one address that is refused again and again a few refusals have; the others are
//! counted, and the count is a line about a minute later: `refused` with `count`, and the address `others` where there were
//! too many addresses to tell apart.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use maille_core::Identity;
use maille_pki::Issued;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::attest::{Peer, Proof};
use crate::audit_pace::{Omitted, Pace};

/// Issues and refusals that are kept in memory, each: those who are refused can not push out what was issued.
const ISSUED_KEPT: usize = 8000;
const REFUSED_KEPT: usize = 2000;
/// Longest reason, in bytes: parts of it come from callers.
const MAX_REASON: usize = 512;

/// Where the log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditOptions {
    /// The file (`CA_AUDIT_LOG`): appended to, made with mode 0600, rotated by nobody.
    pub file: Option<PathBuf>,
    /// Whether nothing is issued that is not in the file (`CA_AUDIT_REQUIRED`).
    pub required: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, RFC 3339 with milliseconds.
    pub time: String,
    /// `issued` or `refused`.
    pub event: String,
    /// To whom, or what was asked for where that is known.
    pub identity: Option<String>,
    /// The Pod of the caller, `namespace/name`.
    pub pod: Option<String>,
    /// Where the caller called from.
    pub address: String,
    /// Serial number, lower-case hexadecimal.
    pub serial: Option<String>,
    /// Start of validity.
    pub not_before: Option<String>,
    /// End of validity.
    pub not_after: Option<String>,
    /// Fingerprint of the certificate that signed.
    pub signer: Option<String>,
    /// What the caller proved itself with: `token`, `certificate`, or either with ` of ` the account that acted for
    /// another.
    pub proof: Option<String>,
    /// Seconds from now to the end.
    pub ttl_s: Option<u64>,
    /// Why it was refused.
    pub reason: Option<String>,
    /// How many refusals this line stands for, where that is not one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A refusal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal<'a> {
    pub(crate) address: IpAddr,
    pub(crate) peer: Option<&'a Peer>,
    /// Whose certificate it would have been.
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) reason: &'a str,
}

/// What is said of the log as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditState {
    /// The file, if there is one.
    pub file: Option<String>,
    /// What keeps lines from the file now, if anything does.
    pub problem: Option<String>,
    /// Certificates issued since the start.
    pub issued: u64,
    /// Requests refused since the start.
    pub refused: u64,
    /// Those of them that have no line of their own, but are counted in one, or will be.
    #[serde(default)]
    pub omitted: u64,
    /// Lines that are in memory no more.
    pub forgotten: u64,
    /// Lines that are not in the file because it could not be written.
    pub lost: u64,
}

/// The log.
#[derive(Debug)]
pub struct AuditLog {
    options: AuditOptions,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<File>,
    problem: Option<String>,
    /// The last write was cut off within a line.
    torn: bool,
    next: u64,
    issued: VecDeque<(u64, AuditEntry)>,
    refused: VecDeque<(u64, AuditEntry)>,
    count_issued: u64,
    count_refused: u64,
    count_omitted: u64,
    pace: Pace,
    lost: u64,
}

impl AuditLog {
    /// Opens the log. A file that cannot be opened is an error if it is required, else it is reported, and tried
    /// again with each line.
    pub fn open(options: AuditOptions) -> io::Result<Self> {
        if options.required && options.file.is_none() {
            let reason = "CA_AUDIT_REQUIRED is set, but no file is (CA_AUDIT_LOG)";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut inner = Inner::default();
        if let Some(path) = &options.file {
            match open(path) {
                Ok(file) => inner.file = Some(file),
                Err(error) => {
                    let problem = format!("audit log {}: {error}", path.display());
                    if options.required {
                        return Err(io::Error::new(error.kind(), problem));
                    }
                    tracing::error!(
                        "{problem}; certificates are issued all the same (CA_AUDIT_REQUIRED is not set)"
                    );
                    inner.problem = Some(error.to_string());
                }
            }
        }
        Ok(Self { options, inner: Mutex::new(inner) })
    }

    /// In memory only.
    pub fn in_memory() -> Self {
        Self { options: AuditOptions::default(), inner: Mutex::default() }
    }

    /// Notes what was issued. An error: it is not in the file, and must be, so that it may not be handed out.
    pub(crate) fn issued(
        &self,
        peer: &Peer,
        identity: &Identity,
        issued: &Issued,
        now: SystemTime,
    ) -> Result<(), String> {
        let entry = AuditEntry {
            identity: Some(identity.uri()),
            serial: Some(issued.serial.clone()),
            not_before: Some(moment(issued.not_before)),
            not_after: Some(moment(issued.not_after)),
            signer: Some(issued.signer.clone()),
            ttl_s: Some(issued.not_after.duration_since(now).unwrap_or_default().as_secs()),
            proof: Some(proof_of(peer, identity)),
            ..entry("issued", peer.address(), Some(peer), now)
        };
        tracing::info!(
            target: "maille::audit",
            identity = %identity,
            pod = %peer.pod().name,
            serial = %issued.serial,
            not_after = %moment(issued.not_after),
            address = %peer.address(),
            proof = entry.proof.as_deref().unwrap_or_default(),
            "certificate issued"
        );
        let mut inner = self.inner.lock();
        inner.count_issued += 1;
        let written = self.write(&mut inner, &entry);
        inner.keep(entry);
        written.or_else(|problem| if self.options.required { Err(problem) } else { Ok(()) })
    }

    /// Notes what was refused.
    pub(crate) fn refused(&self, refusal: Refusal<'_>, now: SystemTime) {
        let Refusal { address, peer, identity, reason } = refusal;
        let identity = identity.or(peer.map(Peer::identity));
        let end = (0..=MAX_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        let entry = AuditEntry {
            identity: identity.map(Identity::uri),
            proof: peer
                .map(|peer| identity.map_or_else(|| peer.proof().to_string(), |id| proof_of(peer, id))),
            reason: Some(reason.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()),
            ..entry("refused", address, peer, now)
        };
        let mut inner = self.inner.lock();
        inner.count_refused += 1;
        if inner.pace.admits(address, Instant::now()) {
            self.note_refused(&mut inner, entry);
        } else {
            inner.count_omitted += 1;
        }
    }

    /// Writes the counts of refusals that have no lines, as far as they are due. To be called now and then.
    pub(crate) fn count_omitted(&self, now: SystemTime) {
        let mut inner = self.inner.lock();
        for omitted in inner.pace.due(Instant::now()) {
            self.note_refused(&mut inner, count(&omitted, now));
        }
    }

    fn note_refused(&self, inner: &mut Inner, entry: AuditEntry) {
        let (identity, reason) = (entry.identity.as_deref().unwrap_or_default(), entry.reason.as_deref());
        tracing::warn!(
            target: "maille::audit",
            address = entry.address, identity, reason = reason.unwrap_or_default(), "certificate refused"
        );
        // A refusal that cannot be written is still one.
        let _ = self.write(inner, &entry);
        inner.keep(entry);
    }

    fn write(&self, inner: &mut Inner, entry: &AuditEntry) -> Result<(), String> {
        let Some(path) = &self.options.file else { return Ok(()) };
        let had_problem = inner.problem.is_some();
        match inner.append(path, entry) {
            Ok(()) => {
                inner.problem = None;
                if had_problem {
                    tracing::info!(file = %path.display(), lost = inner.lost, "the audit log is written again");
                }
                Ok(())
            }
            Err(error) => {
                inner.lost += 1;
                let problem = error.to_string();
                // Once, not with every certificate.
                if !had_problem {
                    let file = path.display();
                    tracing::error!(%file, %error, "the audit log cannot be written; is the disk full?");
                }
                inner.problem = Some(problem.clone());
                Err(format!("audit log {} cannot be written: {problem}", path.display()))
            }
        }
    }

    /// What is remembered, the newest first, as the question wants it.
    pub(crate) fn recent(&self, fits: impl Fn(&AuditEntry) -> bool, limit: usize) -> Vec<AuditEntry> {
        let inner = self.inner.lock();
        let (mut issued, mut refused) =
            (inner.issued.iter().rev().peekable(), inner.refused.iter().rev().peekable());
        let newest_first = std::iter::from_fn(|| match (issued.peek(), refused.peek()) {
            (Some((a, _)), Some((b, _))) if a < b => refused.next(),
            (Some(_), _) => issued.next(),
            (None, _) => refused.next(),
        });
        newest_first.map(|(_, entry)| entry).filter(|entry| fits(entry)).take(limit).cloned().collect()
    }

    /// What is to be said of the log as a whole.
    pub fn state(&self) -> AuditState {
        let inner = self.inner.lock();
        let kept = u64::try_from(inner.issued.len() + inner.refused.len()).unwrap_or(u64::MAX);
        AuditState {
            file: self.options.file.as_ref().map(|path| path.display().to_string()),
            problem: inner.problem.clone(),
            issued: inner.count_issued,
            refused: inner.count_refused,
            omitted: inner.count_omitted,
            forgotten: inner.next.saturating_sub(kept),
            lost: inner.lost,
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        for omitted in inner.pace.rest() {
            self.note_refused(&mut inner, count(&omitted, SystemTime::now()));
        }
    }
}

impl Inner {
    fn append(&mut self, path: &Path, entry: &AuditEntry) -> io::Result<()> {
        // One write for the line: others may append to the same file.
        let mut line = String::from(if self.torn { "\n" } else { "" });
        line.push_str(&serde_json::to_string(entry).map_err(io::Error::other)?);
        line.push('\n');
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(open(path)?),
        };
        match file.write(line.as_bytes()) {
            Ok(written) if written == line.len() => {
                self.torn = false;
                Ok(())
            }
            Ok(written) => {
                self.torn |= written > 0;
                Err(io::Error::new(io::ErrorKind::WriteZero, "a line was cut off"))
            }
            Err(error) => {
                // Opened anew for the next line: the file system may have been mounted again.
                self.file = None;
                Err(error)
            }
        }
    }

    fn keep(&mut self, entry: AuditEntry) {
        let number = self.next;
        self.next += 1;
        let (kept, limit) = match entry.event.as_str() {
            "issued" => (&mut self.issued, ISSUED_KEPT),
            _ => (&mut self.refused, REFUSED_KEPT),
        };
        if kept.len() >= limit {
            kept.pop_front();
        }
        kept.push_back((number, entry));
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn entry(event: &str, address: IpAddr, peer: Option<&Peer>, now: SystemTime) -> AuditEntry {
    AuditEntry {
        time: precise(now),
        event: event.to_owned(),
        identity: None,
        pod: peer.map(|peer| peer.pod().name.to_string()),
        address: address.to_string(),
        serial: None,
        not_before: None,
        not_after: None,
        signer: None,
        proof: None,
        ttl_s: None,
        reason: None,
        count: None,
    }
}

/// The line that stands for refusals without lines.
fn count(omitted: &Omitted, now: SystemTime) -> AuditEntry {
    let Omitted { of, count } = omitted;
    let address = of.map_or_else(|| "others".to_owned(), |address| address.to_string());
    let of = of.map_or_else(|| "other addresses".to_owned(), |address| address.to_string());
    AuditEntry {
        address,
        reason: Some(format!("{count} more refusals of {of} were not written one by one")),
        count: Some(*count),
        ..entry("refused", IpAddr::V4(Ipv4Addr::UNSPECIFIED), None, now)
    }
}

/// The caller's proof; of whom, where it acted for another.
fn proof_of(peer: &Peer, identity: &Identity) -> String {
    let proof = match peer.proof() {
        Proof::Certificate => "certificate",
        Proof::Token => "token",
    };
    match identity == peer.identity() {
        true => proof.to_owned(),
        false => format!("{proof} of {}", peer.identity().uri()),
    }
}

fn stamp(time: SystemTime) -> jiff::Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let stamp = jiff::Timestamp::from_millisecond(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    stamp.unwrap_or(jiff::Timestamp::MAX)
}

/// RFC 3339; certificates tell whole seconds.
fn moment(time: SystemTime) -> String {
    stamp(time).to_string()
}

/// RFC 3339 with milliseconds always, so that text sorts as time does.
fn precise(time: SystemTime) -> String {
    format!("{:.3}", stamp(time))
}

/// Which lines to show: `/ca/issued?identity=spiffe://…&since=2026-01-01T00:00:00Z&limit=100`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// Only this SPIFFE ID.
    identity: Option<String>,
    /// Only since this moment (RFC 3339).
    since: Option<String>,
    /// At most so many, the newest; all that are remembered unless given.
    limit: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub(crate) struct AuditAnswer {
    issued: Vec<AuditEntry>,
    log: AuditState,
}

impl AuditQuery {
    /// The lines asked for, the newest first; an error says what is wrong with the question.
    pub(crate) fn run(&self, log: &AuditLog) -> Result<AuditAnswer, String> {
        let since =
            match &self.since {
                None => None,
                Some(text) => Some(text.parse::<jiff::Timestamp>().map_err(|_| {
                    format!("since '{}' is no time such as 2026-01-31T12:00:00Z", brief(text))
                })?),
            };
        let limit = match &self.limit {
            None => usize::MAX,
            Some(text) => {
                text.parse().map_err(|_| format!("limit '{}' is no number of lines", brief(text)))?
            }
        };
        let fits = |entry: &AuditEntry| {
            self.identity.as_ref().is_none_or(|wanted| entry.identity.as_ref() == Some(wanted))
                && since
                    .is_none_or(|since| entry.time.parse::<jiff::Timestamp>().is_ok_and(|time| time >= since))
        };
        Ok(AuditAnswer { issued: log.recent(fits, limit), log: log.state() })
    }
}

fn brief(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_again_and_again_fills_neither_file_nor_memory_and_is_counted() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("issued.jsonl");
        let log = AuditLog::open(AuditOptions { file: Some(file.clone()), required: false }).expect("opens");
        let refuse = |last: u8| {
            let address = Ipv4Addr::new(10, 0, 0, last).into();
            let refusal = Refusal { address, peer: None, identity: None, reason: "no proof" };
            log.refused(refusal, SystemTime::now());
        };
        refuse(1);
        (0..1000).for_each(|_| refuse(2));
        refuse(3);
        let state = log.state();
        assert_eq!((state.refused, state.omitted, state.forgotten), (1002, 980, 0));
        let addresses: Vec<String> =
            log.recent(|_| true, 30).into_iter().map(|entry| entry.address).collect();
        assert_eq!((addresses.len(), &*addresses[0], &*addresses[21]), (22, "10.0.0.3", "10.0.0.1"));
        drop(log);
        let text = std::fs::read_to_string(&file).expect("the log");
        let lines: Vec<AuditEntry> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 23);
        let last = lines.last().expect("one");
        assert_eq!(
            (last.event.as_str(), last.address.as_str(), last.count),
            ("refused", "10.0.0.2", Some(980))
        );
        assert!(last.reason.as_deref().is_some_and(|reason| reason.starts_with("980 more refusals")));
        assert!(!text.lines().next().expect("one").contains("count"), "the format of other lines stays");
    }
}

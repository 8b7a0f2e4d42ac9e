//! The control plane's log of TLS refusals: one line per pair and reason, however often it happens.
//!
//! Istio's guide looks for connection failures with `kubectl logs -n istio-system -l app=istiod | grep -i tls`, where
//! Istio itself never shows them: only the refusing proxy knows. Proxies report them as flows; here they become lines.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use maille_proto::flows::{Decision, Flow, Peer, Reporter};
use parking_lot::Mutex;

/// A pair that goes on being refused is logged again after this time, with how often it was meanwhile; then after twice
/// that time, and so on up to the longest, so that the last hundred lines are not all about one pair.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
const AGAIN_AFTER_LONGEST: Duration = Duration::from_secs(600);
/// Pairs remembered; beyond, those logged longest ago are forgotten.
const MAX_PAIRS: usize = 1024;
/// Lines at once, and per second in the long run.
const BURST: f64 = 50.0;
const PER_SECOND: f64 = 1.0;

/// Decides which refusals become lines.
#[derive(Debug)]
pub(crate) struct RefusalLog(Mutex<State>);

#[derive(Debug)]
struct State {
    pairs: HashMap<Pair, Seen>,
    tokens: f64,
    filled: Instant,
}

/// What makes two refusals the same for a reader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pair {
    source: String,
    destination: String,
    port: u32,
    reporter: i32,
    /// Without digits: times and serial numbers differ from one connection to the next.
    reason: String,
}

#[derive(Debug)]
struct Seen {
    logged: Option<Instant>,
    again_after: Duration,
    unlogged: u64,
}

impl RefusalLog {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(State { pairs: HashMap::new(), tokens: BURST, filled: now }))
    }

    /// The line that this flow is worth, if it is one; and how many connections were refused, 0 if it is no refusal
    /// for TLS.
    pub(crate) fn note(&self, flow: &Flow, now: Instant) -> (u64, Option<RefusalLine>) {
        if flow.decision() != Decision::RefusedTls {
            return (0, None);
        }
        let count = flow.connections.max(flow.requests).max(1);
        let line = RefusalLine::of(flow, count);
        let pair = Pair {
            source: line.source.clone(),
            destination: line.destination.clone(),
            port: flow.port,
            reporter: flow.reporter,
            reason: flow.reason.chars().filter(|c| !c.is_ascii_digit()).collect(),
        };
        (count, self.0.lock().admit(pair, count, now).map(|count| RefusalLine { count, ..line }))
    }
}

impl State {
    /// How many refusals the line stands for, if there is to be one now.
    fn admit(&mut self, pair: Pair, count: u64, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * PER_SECOND).min(BURST);
        self.filled = now;
        if self.pairs.len() >= MAX_PAIRS && !self.pairs.contains_key(&pair) {
            let oldest = self.pairs.iter().min_by_key(|(_, seen)| seen.logged).map(|(pair, _)| pair.clone());
            if let Some(oldest) = oldest {
                self.pairs.remove(&oldest);
            }
        }
        let seen =
            self.pairs.entry(pair).or_insert(Seen { logged: None, again_after: AGAIN_AFTER, unlogged: 0 });
        seen.unlogged = seen.unlogged.saturating_add(count);
        let waited = seen.logged.map(|at| now.saturating_duration_since(at));
        let is_due = waited.is_none_or(|waited| waited >= seen.again_after);
        if !is_due || self.tokens < 1.0 {
            return None;
        }
        self.tokens -= 1.0;
        seen.logged = Some(now);
        seen.again_after = match waited {
            Some(waited) if waited < seen.again_after * 4 => (seen.again_after * 2).min(AGAIN_AFTER_LONGEST),
            // It is new, or had ended and began anew.
            _ => AGAIN_AFTER,
        };
        Some(std::mem::take(&mut seen.unlogged))
    }
}

/// What the log says of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusalLine {
    source: String,
    destination: String,
    port: u32,
    by: &'static str,
    reason: String,
    count: u64,
}

impl RefusalLine {
    fn of(flow: &Flow, count: u64) -> Self {
        Self {
            source: who(flow.source.as_ref(), true),
            destination: who(flow.destination.as_ref(), false),
            port: flow.port,
            by: if flow.reporter() == Reporter::Source { "source" } else { "destination" },
            reason: plain(&flow.reason),
            count,
        }
    }
}

impl fmt::Display for RefusalLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, port, by, reason, count } = self;
        let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
        write!(f, "TLS refused {times} by the {by}'s proxy: {source} to {destination} port {port}: {reason}")
    }
}

/// Workload, Pod and address, as far as they are known. The Pod is left out for the called: any of its kind answers.
fn who(peer: Option<&Peer>, with_pod: bool) -> String {
    let Some(peer) = peer else { return "unknown".to_owned() };
    let mut known = Vec::new();
    if with_pod && !peer.uid.is_empty() {
        known.push(format!("Pod {}", peer.uid));
    }
    if with_pod && !peer.address.is_empty() {
        known.push(peer.address.clone());
    }
    let name = match (peer.workload_name.is_empty(), peer.address.is_empty()) {
        (false, _) => format!("{}/{}", peer.namespace, peer.workload_name),
        (true, false) => format!("an unknown caller at {}", peer.address),
        (true, true) => "an unknown caller".to_owned(),
    };
    let text = if known.is_empty() || peer.workload_name.is_empty() {
        name
    } else {
        format!("{name} ({})", known.join(", "))
    };
    plain(&text)
}

/// A line is a line: what a proxy or its peer chose must not begin another.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(source: &str, reason: &str) -> Flow {
        let peer = |name: &str| Peer {
            namespace: "legacy".into(),
            workload_name: name.into(),
            uid: format!("legacy/{name}-1"),
            address: "10.244.0.9".into(),
            ..Default::default()
        };
        Flow {
            reporter: Reporter::Destination.into(),
            source: Some(peer(source)),
            destination: Some(peer("inventory")),
            port: 8080,
            decision: Decision::RefusedTls.into(),
            reason: reason.into(),
            connections: 2,
            ..Default::default()
        }
    }

    #[test]
    fn a_refusal_is_a_line_that_says_who_whom_where_and_why() {
        let now = Instant::now();
        let log = RefusalLog::new(now);
        let (count, line) = log.note(&refused("client", "port 8080 is STRICT\nforged"), now);
        let expected = "TLS refused 2 times by the destination's proxy: legacy/client (Pod legacy/client-1, \
                        10.244.0.9) to legacy/inventory port 8080: port 8080 is STRICT forged";
        assert_eq!((count, line.expect("a line").to_string().as_str()), (2, expected));
        let mut allowed = refused("client", "");
        allowed.decision = Decision::Denied.into();
        assert_eq!(log.note(&allowed, now), (0, None));
        let mut stranger = refused("", "expired at 12:00");
        stranger.source = Some(Peer { address: "192.0.2.7".into(), ..Default::default() });
        let (_, line) = log.note(&stranger, now);
        assert!(line.expect("a line").to_string().contains("an unknown caller at 192.0.2.7 to"));
    }

    #[test]
    fn what_goes_on_is_logged_now_and_then_with_its_count() {
        let start = Instant::now();
        let log = RefusalLog::new(start);
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(log.note(&refused("client", "expired at 12:00:01"), at(0)).1.is_some());
        for second in 1..30 {
            let reason = format!("expired at 12:00:{second}");
            assert_eq!(log.note(&refused("client", &reason), at(second)).1, None, "{second}");
        }
        let line = log.note(&refused("client", "expired at 12:00:30"), at(30)).1.expect("again");
        assert_eq!(line.count, 60);
        assert_eq!(log.note(&refused("client", "expired at 12:00:31"), at(61)).1, None, "twice as long");
        assert!(log.note(&refused("client", "expired at 12:00:31"), at(90)).1.is_some());
        assert!(log.note(&refused("other", "expired at 12:00:30"), at(30)).1.is_some(), "another pair");
        assert!(log.note(&refused("client", "no certificate"), at(30)).1.is_some(), "another reason");
    }

    #[test]
    fn a_flood_of_pairs_costs_few_lines_and_little_memory() {
        let start = Instant::now();
        let log = RefusalLog::new(start);
        let lines = (0..5000u64).filter(|n| {
            let flow = refused(&format!("w{n}"), "plaintext");
            log.note(&flow, start + Duration::from_millis(*n)).1.is_some()
        });
        assert!(lines.count() <= 56);
        assert!(log.0.lock().pairs.len() <= MAX_PAIRS);
    }
}

use maille_proto::flows::{Decision, Flow, Peer, Protocol, Reporter};
use serde::{Deserialize, Serialize};

use super::store::{Counts, FlowStore, Record};

/// Which flows to show: `/flows?from=…&to=…&denied&plaintext&since=60s`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowQuery {
    /// Source: `workload`, `namespace/workload`, `namespace/` or an address.
    pub from: Option<String>,
    /// Destination, in the same form.
    pub to: Option<String>,
    /// Only what was refused: `true`, or given without a value.
    pub denied: Option<String>,
    /// Only what was not mutual TLS.
    pub plaintext: Option<String>,
    /// Only what was seen within this time, and counts since then: `30s`, `5m`, `2h`, or seconds.
    pub since: Option<String>,
}

/// One flow as JSON: names as in `flows.proto`, in camel case; enumerations without their prefix.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "flows.proto says what each is")]
pub struct FlowView {
    pub reporter: &'static str,
    pub source: PeerSummary,
    pub destination: PeerSummary,
    pub port: u32,
    pub protocol: &'static str,
    pub mtls: bool,
    pub key_exchange: String,
    pub decision: &'static str,
    pub policy: String,
    pub rule: i32,
    pub reason: String,
    pub connections: u64,
    pub requests: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub responses: [u64; 5],
    pub duration_us: u64,
    pub first_seen_ms: u64,
    pub last_seen_ms: u64,
    pub would_refuse: Vec<WouldRefuseView>,
}

/// What one dry-run policy would have refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "flows.proto says what each is")]
pub struct WouldRefuseView {
    pub policy: String,
    pub rule: i32,
    pub count: u64,
}

/// One end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "flows.proto says what each is")]
pub struct PeerSummary {
    pub uid: String,
    pub namespace: String,
    pub workload_name: String,
    pub principal: String,
    pub address: String,
    pub service: String,
}

impl FlowQuery {
    /// The flows asked for, most recent first; an error says what is wrong with the question.
    pub fn run(&self, store: &FlowStore, now_ms: u64) -> Result<Vec<FlowView>, String> {
        let denied = flag("denied", self.denied.as_deref())?;
        let plaintext = flag("plaintext", self.plaintext.as_deref())?;
        let since = self.since.as_deref().map(window_ms).transpose()?;
        let since_ms = since.map(|window| now_ms.saturating_sub(window));
        let fits = |peer: &Option<Peer>, wanted: &Option<String>| {
            wanted.as_deref().is_none_or(|wanted| peer.as_ref().is_some_and(|p| is(p, wanted)))
        };
        let wanted = |flow: &Flow| {
            fits(&flow.source, &self.from)
                && fits(&flow.destination, &self.to)
                && (!denied || matches!(flow.decision(), Decision::Denied | Decision::RefusedTls))
                && (!plaintext || !flow.mtls)
        };
        let found = store.since(since_ms).into_iter().filter(|(record, _)| wanted(&record.sample));
        Ok(found.map(|(record, counts)| FlowView::of(record, &counts)).collect())
    }
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("false") => Ok(false),
        Some("" | "true") => Ok(true),
        Some(other) => Err(format!("{name}={other}: give true, false, or no value")),
    }
}

fn window_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("since={text}: give a number of seconds, or one with s, m or h, such as 5m");
    let (digits, factor) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1000),
        Some(b'm') => (&text[..text.len() - 1], 60_000),
        Some(b'h') => (&text[..text.len() - 1], 3_600_000),
        _ => (text, 1000),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

fn is(peer: &Peer, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((namespace, "")) => peer.namespace == namespace,
        Some((namespace, workload)) => {
            peer.namespace == namespace && (peer.workload_name == workload || peer.uid == wanted)
        }
        None => peer.workload_name == wanted || peer.address == wanted,
    }
}

impl FlowView {
    fn of(record: &Record, counts: &Counts) -> Self {
        let flow = &record.sample;
        Self {
            reporter: match flow.reporter() {
                Reporter::Unspecified => "UNSPECIFIED",
                Reporter::Source => "SOURCE",
                Reporter::Destination => "DESTINATION",
            },
            source: PeerSummary::of(flow.source.as_ref()),
            destination: PeerSummary::of(flow.destination.as_ref()),
            port: flow.port,
            protocol: match flow.protocol() {
                Protocol::Unspecified => "UNSPECIFIED",
                Protocol::Tcp => "TCP",
                Protocol::Http => "HTTP",
            },
            mtls: flow.mtls,
            key_exchange: flow.key_exchange.clone(),
            decision: match flow.decision() {
                Decision::Unspecified => "UNSPECIFIED",
                Decision::Allowed => "ALLOWED",
                Decision::Denied => "DENIED",
                Decision::RefusedTls => "REFUSED_TLS",
                Decision::Failed => "FAILED",
            },
            policy: flow.policy.clone(),
            rule: flow.rule,
            reason: flow.reason.clone(),
            connections: counts.connections,
            requests: counts.requests,
            bytes_sent: counts.bytes_sent,
            bytes_received: counts.bytes_received,
            responses: counts.responses,
            duration_us: counts.duration_us,
            first_seen_ms: record.first_seen_ms,
            last_seen_ms: record.last_seen_ms,
            would_refuse: counts
                .would_refuse
                .iter()
                .map(|one| WouldRefuseView {
                    policy: one.policy.to_string(),
                    rule: one.rule,
                    count: one.count,
                })
                .collect(),
        }
    }
}

impl PeerSummary {
    fn of(peer: Option<&Peer>) -> Self {
        let peer = peer.cloned().unwrap_or_default();
        Self {
            uid: peer.uid,
            namespace: peer.namespace,
            workload_name: peer.workload_name,
            principal: peer.principal,
            address: peer.address,
            service: peer.service,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Limits;

    fn store() -> FlowStore {
        let peer = |namespace: &str, name: &str| {
            Some(Peer { namespace: namespace.into(), workload_name: name.into(), ..Default::default() })
        };
        let mut store = FlowStore::new(Limits::default());
        for (from, decision, mtls) in [
            ("web", Decision::Allowed, true),
            ("spy", Decision::Denied, true),
            ("old", Decision::RefusedTls, false),
        ] {
            let flow = Flow {
                reporter: Reporter::Destination.into(),
                source: peer("shop", from),
                destination: peer("shop", "cart"),
                decision: decision.into(),
                mtls,
                requests: 1,
                ..Default::default()
            };
            store.record(flow, 100_000);
        }
        store
    }

    fn sources(query: &FlowQuery) -> Vec<String> {
        let found = query.run(&store(), 100_000).expect("valid");
        let mut names: Vec<_> = found.into_iter().map(|f| f.source.workload_name).collect();
        names.sort();
        names
    }

    #[test]
    fn filters_narrow_the_answer() {
        let some = |text: &str| Some(text.to_owned());
        let all = FlowQuery::default();
        assert_eq!(sources(&all), ["old", "spy", "web"]);
        assert_eq!(sources(&FlowQuery { from: some("shop/web"), ..all.clone() }), ["web"]);
        assert_eq!(sources(&FlowQuery { from: some("web"), to: some("shop/"), ..all.clone() }), ["web"]);
        assert_eq!(sources(&FlowQuery { denied: some(""), ..all.clone() }), ["old", "spy"]);
        assert_eq!(sources(&FlowQuery { plaintext: some("true"), ..all.clone() }), ["old"]);
        assert_eq!(sources(&FlowQuery { to: some("other"), ..all.clone() }), Vec::<String>::new());
    }

    #[test]
    fn bad_questions_are_answered_with_what_would_be_right() {
        for query in ["since=soon", "denied=maybe"] {
            let (key, value) = query.split_once('=').expect("pair");
            let query = FlowQuery {
                since: (key == "since").then(|| value.to_owned()),
                denied: (key == "denied").then(|| value.to_owned()),
                ..FlowQuery::default()
            };
            assert!(query.run(&store(), 0).expect_err("refused").contains(value));
        }
        assert_eq!(window_ms("5m"), Ok(300_000));
        assert_eq!(window_ms("90"), Ok(90_000));
    }
}

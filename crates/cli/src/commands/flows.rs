//! `maille flows`: what really happened, as the proxies saw it.

use std::collections::HashSet;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Outcome;
use crate::client::{Api, ApiArgs, ApiError};
use crate::output::{aligned, out, write_out};

#[derive(Debug, clap::Args)]
pub(crate) struct FlowsArgs {
    /// Only from this workload: NAME or NAMESPACE/NAME.
    #[arg(long)]
    from: Option<String>,
    /// Only to this workload: NAME or NAMESPACE/NAME.
    #[arg(long)]
    to: Option<String>,
    /// Only what was refused.
    #[arg(long)]
    denied: bool,
    /// Only what a dry-run policy would refuse (in JSON: wouldRefuse, a list of {"policy","rule","count"}).
    #[arg(long)]
    dry_run: bool,
    /// Only what was not mutual TLS.
    #[arg(long)]
    plaintext: bool,
    /// Only what was seen within this time, with the counts of it: 30s, 5m, 2h.
    #[arg(long, value_parser = seconds)]
    since: Option<u64>,
    /// Form of the output; json has what both ends' proxies saw, the table the called one's word where there is one.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: FlowsArgs) -> Result<Outcome> {
    let api = Api::connect(&args.api).await?;
    let mut flows = fetch_since(&api, args.since).await?;
    // What a caller's proxy let out is not let in by that: where the called one speaks, its word counts.
    let judged: HashSet<Pair> =
        flows.iter().filter(|flow| flow.reporter == "DESTINATION").map(Flow::pair).collect();
    flows.retain(|flow| {
        args.from.as_deref().is_none_or(|name| flow.source.is(name))
            && args.to.as_deref().is_none_or(|name| flow.destination.is(name))
            && (!args.denied || flow.is_refused())
            && (!args.dry_run || !flow.would_refuse.is_empty())
            && (!args.plaintext || !flow.mtls)
    });
    if args.output.is_some() {
        let values: Vec<&Value> = flows.iter().map(|flow| &flow.raw).collect();
        out!("{}", serde_json::to_string_pretty(&values)?);
    } else if flows.is_empty() {
        eprintln!("no flows");
    } else {
        flows.retain(|flow| !(flow.is_only_sent() && judged.contains(&flow.pair())));
        flows.sort_by_key(|flow| (flow.pair(), flow.decision.clone()));
        write_out(&table(&flows));
    }
    Ok(Outcome::Fine)
}

/// One end of a flow.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct End {
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) principal: String,
    pub(crate) address: String,
    /// Of a destination: the host that was called.
    pub(crate) service: String,
}

impl End {
    fn read(value: &Value) -> Self {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        Self {
            namespace: text("namespace"),
            workload: text("workloadName"),
            principal: text("principal"),
            address: text("address"),
            service: text("service"),
        }
    }

    fn is(&self, name: &str) -> bool {
        match name.split_once('/') {
            Some((namespace, workload)) => self.namespace == namespace && self.workload == workload,
            None => self.workload == name || self.service == name,
        }
    }

    /// `namespace/workload`, else the identity, else the host, else the address.
    pub(crate) fn label(&self) -> String {
        if !self.workload.is_empty() {
            format!("{}/{}", self.namespace, self.workload)
        } else if !self.principal.is_empty() {
            self.principal.clone()
        } else if !self.service.is_empty() {
            self.service.clone()
        } else if !self.address.is_empty() {
            self.address.clone()
        } else {
            "unknown".to_owned()
        }
    }
}

/// One aggregate, as the control plane tells it.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) port: u64,
    pub(crate) mtls: bool,
    /// Of mutual TLS, as far as the reporter knows it.
    pub(crate) key_exchange: String,
    pub(crate) decision: String,
    pub(crate) policy: String,
    pub(crate) rule: i64,
    pub(crate) reason: String,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) reporter: String,
    pub(crate) last_seen_ms: u64,
    would_refuse: Vec<WouldRefuse>,
    raw: Value,
}

/// What one dry-run policy would have refused of a flow.
#[derive(Debug)]
struct WouldRefuse {
    /// Empty: dry-run ALLOW policies apply, and none of their rules matched.
    policy: String,
    rule: i64,
    count: u64,
}

impl std::fmt::Display for WouldRefuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} would be refused", self.count)?;
        match (self.policy.as_str(), self.rule) {
            ("", _) => f.write_str(": no dry-run ALLOW rule matches"),
            (policy, 0..) => write!(f, " by {policy} rule {}", self.rule),
            (policy, _) => write!(f, " by {policy}"),
        }
    }
}

/// From, to, port.
type Pair = (String, String, u64);

impl Flow {
    fn pair(&self) -> Pair {
        (self.source.label(), self.destination.label(), self.port)
    }

    /// Let out by the caller's proxy, which says nothing of what became of it.
    fn is_only_sent(&self) -> bool {
        self.reporter == "SOURCE" && self.decision == "ALLOWED"
    }

    pub(crate) fn read(raw: &Value) -> Self {
        let text = |field: &str| raw[field].as_str().unwrap_or_default().to_owned();
        Self {
            source: End::read(&raw["source"]),
            destination: End::read(&raw["destination"]),
            port: number(&raw["port"]),
            mtls: raw["mtls"].as_bool().unwrap_or(false),
            key_exchange: text("keyExchange"),
            decision: text("decision"),
            policy: text("policy"),
            rule: raw["rule"].as_i64().unwrap_or(-1),
            reason: text("reason"),
            requests: number(&raw["requests"]),
            connections: number(&raw["connections"]),
            reporter: text("reporter"),
            last_seen_ms: number(&raw["lastSeenMs"]),
            would_refuse: raw["wouldRefuse"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| WouldRefuse {
                    policy: one["policy"].as_str().unwrap_or_default().to_owned(),
                    rule: one["rule"].as_i64().unwrap_or(-1),
                    count: number(&one["count"]),
                })
                .collect(),
            raw: raw.clone(),
        }
    }

    /// Refused by policy, or below it.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.decision.as_str(), "DENIED" | "REFUSED_TLS")
    }
}

/// Numbers of 64 bits may come as text, as protobuf's JSON writes them.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok())).unwrap_or(0)
}

/// All flows that the control plane remembers.
pub(crate) async fn fetch(api: &Api) -> Result<Vec<Flow>, ApiError> {
    fetch_since(api, None).await
}

/// Flows of the last seconds, and what was counted in these; all if `None`. Only the control plane knows when each call
/// was counted.
async fn fetch_since(api: &Api, seconds: Option<u64>) -> Result<Vec<Flow>, ApiError> {
    let window = seconds.map(|seconds| format!("?since={seconds}s")).unwrap_or_default();
    let path = format!(
        "/api/v1/namespaces/{}/services/istiod:{}/proxy/flows{window}",
        maille_core::ROOT_NAMESPACE,
        maille_core::ports::CONTROL_MONITORING
    );
    let answer = api.get(&path).await?;
    let list = answer.as_array().or_else(|| answer["flows"].as_array());
    let list = list.context("the control plane answered something that is no list of flows")?;
    Ok(list.iter().map(Flow::read).collect())
}

fn table(flows: &[Flow]) -> String {
    let mut headings =
        vec!["FROM", "TO", "PORT", "TRANSPORT", "DECISION", "CONNECTIONS", "REQUESTS", "REPORTER", "BY"];
    // A column for those who try policies.
    let has_dry_runs = flows.iter().any(|flow| !flow.would_refuse.is_empty());
    if has_dry_runs {
        headings.push("DRY RUN");
    }
    // Proxies of before do not tell it.
    let has_key_exchange = flows.iter().any(|flow| !flow.key_exchange.is_empty());
    if has_key_exchange {
        headings.insert(4, "KEY EXCHANGE");
    }
    let mut lines = vec![headings.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for flow in flows {
        let mut line = vec![
            flow.source.label(),
            flow.destination.label(),
            flow.port.to_string(),
            if flow.mtls { "mTLS" } else { "plaintext" }.to_owned(),
            flow.decision.to_lowercase(),
            flow.connections.to_string(),
            flow.requests.to_string(),
            flow.reporter.to_lowercase(),
            by(flow),
        ];
        if has_key_exchange {
            let known = if flow.key_exchange.is_empty() { "-" } else { &flow.key_exchange };
            line.insert(4, known.to_owned());
        }
        if has_dry_runs {
            let each: Vec<String> = flow.would_refuse.iter().map(ToString::to_string).collect();
            line.push(if each.is_empty() { "-".to_owned() } else { each.join(", ") });
        }
        lines.push(line);
    }
    aligned(&lines)
}

/// What decided: the policy and its rule, or the reason.
pub(crate) fn by(flow: &Flow) -> String {
    match (flow.policy.as_str(), flow.rule) {
        ("", _) if flow.reason.is_empty() => "-".to_owned(),
        ("", _) => flow.reason.clone(),
        (policy, rule) if rule >= 0 => format!("{policy} rule {rule}"),
        (policy, _) => policy.to_owned(),
    }
}

/// Reads 30s, 5m, 2h or a bare number of seconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is no time like 30s, 5m or 2h"))?;
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too long a time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(
            (seconds("30s"), seconds("5m"), seconds("2h"), seconds("7")),
            (Ok(30), Ok(300), Ok(7200), Ok(7))
        );
        assert!(seconds("x").is_err() && seconds("").is_err() && seconds("99999999999999999999h").is_err());
    }

    #[test]
    fn what_dry_runs_would_refuse_has_a_column_where_there_are_any() {
        let flow = |would: Value| Flow::read(&serde_json::json!({"port": 8080, "wouldRefuse": would}));
        let plain = flow(serde_json::json!([]));
        let tried = flow(serde_json::json!([
            {"policy": "shop/try", "rule": 0, "count": "3"}, {"policy": "", "rule": -1, "count": 2}
        ]));
        assert!(!table(&[plain]).contains("DRY RUN"));
        let text = table(&[flow(Value::Null), tried]);
        assert!(text.contains("DRY RUN"), "{text}");
        assert!(
            text.contains(
                "3 would be refused by shop/try rule 0, 2 would be refused: no dry-run ALLOW rule matches"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_key_exchange_has_a_column_where_it_is_known() {
        let flow = |value: Value| Flow::read(&value);
        let plain = || flow(serde_json::json!({"port": 8080}));
        assert!(!table(&[plain()]).contains("KEY EXCHANGE"));
        let known = flow(serde_json::json!({"port": 80, "mtls": true, "keyExchange": "X25519MLKEM768"}));
        let text = table(&[plain(), known]);
        assert!(text.contains("KEY EXCHANGE") && text.contains("X25519MLKEM768"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("plaintext") && lines[2].contains("mTLS"), "{text}");
    }

    #[test]
    fn a_flow_is_read_and_labelled() {
        let flow = Flow::read(&serde_json::json!({
            "source": {"namespace": "production", "workloadName": "cart"},
            "destination": {"address": "10.0.0.1"},
            "port": 8080, "mtls": true, "decision": "DENIED", "policy": "a/b", "rule": 2, "requests": "7"
        }));
        assert!(flow.is_refused() && flow.source.is("cart") && flow.source.is("production/cart"));
        assert_eq!(
            (flow.destination.label().as_str(), flow.requests, by(&flow).as_str()),
            ("10.0.0.1", 7, "a/b rule 2")
        );
    }
}

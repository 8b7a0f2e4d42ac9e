//! `maille ca issued`: which certificates the authority issued and refused, to whom and by which proof.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::asking::{Asked, now};
use crate::Outcome;
use crate::commands::admin::{self, MeshArgs};
use crate::output::{aligned, out, write_out};

/// Shows which certificates were issued and refused lately: when, to which identity and Pod, from where, with which
/// serial number, and by which proof.
///
/// The control plane holds the newest 10000 in memory; the whole log is in the file that it was given (CA_AUDIT_LOG), and
/// in its own log. -o json prints a list of {"time", "event", "identity", "pod", "address", "serial", "not_before",
/// "not_after", "signer", "proof", "ttl_s", "reason"}, the newest first.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct IssuedArgs {
    /// Whose: a Pod ([TYPE/]NAME[.NAMESPACE]) or spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT; everybody's unless given.
    #[arg(value_name = "POD|IDENTITY")]
    whose: Option<String>,
    /// Only those of this time: 30s, 5m, 2h.
    #[arg(long, value_name = "TIME", value_parser = crate::commands::flows::seconds)]
    since: Option<u64>,
    /// At most so many, the newest.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Only what was refused.
    #[arg(long)]
    refused: bool,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) async fn run(args: IssuedArgs) -> Result<Outcome> {
    let asked = Asked::connect(&args.mesh).await?;
    let mut pod = None;
    let mut query = Vec::new();
    match args.whose.as_deref() {
        Some(identity) if identity.contains("://") => {
            maille_core::Identity::parse_uri(identity)
                .with_context(|| format!("'{identity}' is no SPIFFE ID of a workload"))?;
            query.push(format!("identity={identity}"));
        }
        Some(named) => {
            let found = admin::find_pod(&asked.api, named, args.mesh.namespace()).await?;
            pod = Some(format!("{}/{}", found.namespace, found.name));
        }
        None => {}
    }
    if let Some(seconds) = args.since {
        let since =
            now().checked_sub(std::time::Duration::from_secs(seconds)).unwrap_or(std::time::UNIX_EPOCH);
        query.push(format!("since={}", super::described::moment(since)));
    }
    // What is looked through here must not be cut off there.
    if pod.is_none() && !args.refused {
        query.push(format!("limit={}", args.limit));
    }
    let path = match query.is_empty() {
        true => "/ca/issued".to_owned(),
        false => format!("/ca/issued?{}", query.join("&")),
    };
    let mut entries = Vec::new();
    for control_plane in asked.control_planes().await? {
        let answer: Value = asked.monitoring(&control_plane, &path).await?;
        entries.extend(answer["issued"].as_array().cloned().unwrap_or_default());
    }
    let mut entries = chosen(entries, pod.as_deref(), args.refused);
    entries.truncate(args.limit);
    if args.output.is_some() {
        out!("{}", serde_json::to_string_pretty(&json!(entries))?);
    } else if entries.is_empty() {
        eprintln!(
            "nothing was {} that the control plane remembers",
            if args.refused { "refused" } else { "issued" }
        );
    } else {
        write_out(&aligned(&table(&entries)));
    }
    Ok(Outcome::Fine)
}

/// Those that are asked for, the newest first.
fn chosen(mut entries: Vec<Value>, pod: Option<&str>, refused: bool) -> Vec<Value> {
    entries.retain(|entry| {
        pod.is_none_or(|pod| entry["pod"] == pod) && (!refused || entry["event"] == "refused")
    });
    let time = |entry: &Value| entry["time"].as_str().unwrap_or_default().to_owned();
    entries.sort_by_key(|entry| std::cmp::Reverse(time(entry)));
    entries
}

fn table(entries: &[Value]) -> Vec<Vec<String>> {
    let titles = ["TIME", "EVENT", "IDENTITY", "POD", "SERIAL", "NOT AFTER", "PROOF", "WHY"];
    let mut table = vec![titles.map(str::to_owned).to_vec()];
    for entry in entries {
        let text = |field: &str| match entry[field].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => "-".to_owned(),
        };
        let mut cells =
            ["time", "event", "identity", "pod", "serial", "not_after", "proof"].map(text).to_vec();
        cells.push(entry["reason"].as_str().unwrap_or_default().to_owned());
        table.push(cells);
    }
    table
}

/// What `log` of the answer says: whether all of it reaches the file.
pub(super) fn log_state(log: &Value) -> String {
    let count = |field: &str| log[field].as_u64().unwrap_or(0);
    let mut kept =
        format!("{} issued, {} refused since the control plane started", count("issued"), count("refused"));
    if count("omitted") > 0 {
        kept.push_str(&format!(" ({} of these are counted in lines of others)", count("omitted")));
    }
    if count("lost") > 0 {
        kept.push_str(&format!("; {} lines did not reach the file", count("lost")));
    }
    match (log["file"].as_str(), log["problem"].as_str()) {
        (Some(file), Some(problem)) => format!("{kept}; {file} is not complete: {problem}"),
        (Some(file), None) => format!("{kept}; all in {file}"),
        (None, _) => format!("{kept}; in no file (CA_AUDIT_LOG), in the control plane's own log only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_several_control_planes_are_one_list_newest_first() {
        let entry = |time: &str, pod: &str, event: &str| json!({"time": time, "pod": pod, "event": event});
        let all = vec![
            entry("2026-01-01T00:00:01Z", "shop/a", "issued"),
            entry("2026-01-01T00:00:03Z", "shop/a", "refused"),
            entry("2026-01-01T00:00:02Z", "shop/b", "issued"),
        ];
        let times = |entries: &[Value]| {
            entries.iter().map(|e| e["time"].as_str().expect("a time")[17..19].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(times(&chosen(all.clone(), None, false)), ["03", "02", "01"]);
        assert_eq!(times(&chosen(all.clone(), Some("shop/a"), false)), ["03", "01"]);
        assert_eq!(times(&chosen(all, Some("shop/a"), true)), ["03"]);
    }

    #[test]
    fn the_table_has_a_dash_for_what_is_not_known() {
        let table = table(&[json!({"time": "t", "event": "refused", "reason": "token expired"})]);
        assert_eq!(table[1], ["t", "refused", "-", "-", "-", "-", "-", "token expired"]);
    }
}

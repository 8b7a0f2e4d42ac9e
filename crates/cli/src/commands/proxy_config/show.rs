//! The sections of a proxy's configuration.

use anyhow::Result;
use maille_envoy::{Dump, tables};
use serde_json::{Value, json};
use tables::{ClusterFilter, EndpointFilter, ListenerFilter, Table};

use super::{Form, Source, print, print_table};
use crate::output::{out, write_out};

/// Said when only what every proxy has is there.
const NOTHING_CALLED: &str = "note: the application behind this proxy has called nothing lately, so that the proxy holds no destination; it asks \
     for one when it is first used";

#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    #[command(flatten)]
    filter: ClusterFlags,
    /// Service port.
    #[arg(long, value_name = "PORT")]
    port: Option<u32>,
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, clap::Args)]
struct ClusterFlags {
    /// Part of the service's host name.
    #[arg(long, value_name = "TEXT")]
    fqdn: Option<String>,
    /// Part of the subset's name.
    #[arg(long, value_name = "TEXT")]
    subset: Option<String>,
    /// inbound or outbound.
    #[arg(long, value_name = "DIRECTION", value_parser = ["inbound", "outbound"], ignore_case = true)]
    direction: Option<String>,
}

impl ClusterFlags {
    fn filter(self, port: Option<u32>) -> ClusterFilter {
        ClusterFilter { fqdn: self.fqdn, port, subset: self.subset, direction: self.direction }
    }
}

pub(super) async fn cluster(args: ClusterArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    note_if_nothing_called(&dump, form);
    let filter = args.filter.filter(args.port);
    let wanted: Vec<Value> = dump.clusters.into_iter().filter(|cluster| filter.wants(cluster)).collect();
    match form {
        Form::Short => print_table(&tables::clusters(&wanted), ""),
        _ => print(&json!(wanted), form),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ListenerArgs {
    /// Address of the listener.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Port of the listener: 15006 takes what comes in, 15001 what goes out.
    #[arg(long, value_name = "PORT")]
    port: Option<u64>,
    /// HTTP, TCP, HTTP+TCP or UNKNOWN.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    #[command(flatten)]
    verbose: Verbose,
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, clap::Args)]
struct Verbose {
    /// Show matches and destinations; --verbose=false for one line each.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", action = clap::ArgAction::Set)]
    verbose: bool,
}

pub(super) async fn listener(args: ListenerArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    let inbound_only = args.port == Some(u64::from(maille_core::ports::INBOUND));
    if !inbound_only {
        note_if_nothing_called(&dump, form);
    }
    let filter = ListenerFilter { address: args.address, port: args.port, kind: args.kind };
    let wanted: Vec<Value> = dump.listeners.into_iter().filter(|listener| filter.wants(listener)).collect();
    match form {
        Form::Short if args.verbose.verbose => print_table(&tables::listeners(&wanted), ""),
        Form::Short => print_table(&tables::listeners_brief(&wanted), ""),
        _ => print(&json!(wanted), form),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct RouteArgs {
    /// Name of the route.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    verbose: Verbose,
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn route(args: RouteArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    note_if_nothing_called(&dump, form);
    let is_wanted = |route: &Value| args.name.as_ref().is_none_or(|name| route["name"] == name.as_str());
    let wanted: Vec<Value> = dump.routes.into_iter().filter(is_wanted).collect();
    match form {
        Form::Short if args.verbose.verbose => print_table(&tables::routes(&wanted), ""),
        Form::Short => print_table(&tables::routes_brief(&wanted), ""),
        _ => print(&json!(wanted), form),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct EndpointArgs {
    /// Address of the endpoint.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Port of the endpoint.
    #[arg(long, value_name = "PORT")]
    port: Option<u64>,
    /// Name of the cluster, whole.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// healthy, unhealthy, draining, …
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn endpoint(args: EndpointArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    note_if_nothing_called(&dump, form);
    let filter =
        EndpointFilter { address: args.address, port: args.port, cluster: args.cluster, status: args.status };
    let wanted = filter.select(&dump.endpoints);
    match form {
        Form::Short => print_table(&tables::endpoints(&wanted), ""),
        _ => print(&json!(wanted), form),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct BootstrapArgs {
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "json")]
    output: String,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn bootstrap(args: BootstrapArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    match form {
        Form::Short => {
            write_out(&bootstrap_lines(&dump));
            Ok(())
        }
        _ => print(&json!({"bootstrap": dump.bootstrap}), form),
    }
}

/// istioctl's three lines; a Maille proxy has no Envoy.
fn bootstrap_lines(dump: &Dump) -> String {
    let node = &dump.bootstrap["node"];
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let istio = text(&node["metadata"]["ISTIO_VERSION"]);
    let (agent, build) = (text(&node["userAgentName"]), &node["userAgentBuildVersion"]["version"]);
    let proxy = match build.as_object() {
        Some(version) => {
            let part = |name: &str| version.get(name).and_then(Value::as_u64).unwrap_or(0);
            format!("{}.{}.{}", part("majorNumber"), part("minorNumber"), part("patch"))
        }
        None => format!("{agent} {}", text(&node["userAgentVersion"])),
    };
    format!("Istio Version: {istio}\nIstio Proxy Version: {istio}\nEnvoy Version: {proxy}\n")
}

#[derive(Debug, clap::Args)]
pub(super) struct SecretArgs {
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn secret(args: SecretArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    match form {
        Form::Short if dump.secrets.is_empty() && dump.warming_secrets.is_empty() => {
            out!("No active or warming secrets found.");
            Ok(())
        }
        Form::Short => {
            print_table(&secret_table(&dump), "")?;
            let lines = tls_lines(&dump.tls);
            // Scripts that know istioctl's table get that and nothing else.
            if !lines.is_empty() && !crate::called::as_istioctl() {
                out!("");
                write_out(&crate::output::aligned(&lines));
            }
            Ok(())
        }
        _ => print(&dump.secrets_shown(), form),
    }
}

/// What the proxy's mutual TLS negotiates, and by which revocations it judges; nothing of what is not known.
fn tls_lines(tls: &Value) -> Vec<Vec<String>> {
    if !tls.is_object() {
        return Vec::new();
    }
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let exchanges: Vec<String> = tls["keyExchanges"].as_array().into_iter().flatten().map(text).collect();
    let hybrid_only = exchanges.len() == 1 && exchanges.iter().all(|name| name.contains("MLKEM"));
    let policy = if hybrid_only { ", and nothing else: post-quantum is required" } else { "" };
    let mut lines = vec![
        vec![
            "KEY EXCHANGE".to_owned(),
            format!("{} ({} and up){policy}", exchanges.join(", "), text(&tls["oldestVersion"])),
        ],
        vec![
            "REVOCATIONS".to_owned(),
            tls["revocations"]
                .as_str()
                .map_or_else(|| "none".to_owned(), |version| format!("version {version}")),
        ],
    ];
    for (number, handshakes) in tls["handshakes"].as_array().into_iter().flatten().enumerate() {
        lines.push(vec![
            if number == 0 { "HANDSHAKES".to_owned() } else { String::new() },
            format!(
                "{} as {}: {}, {}",
                handshakes["count"].as_u64().unwrap_or(0),
                text(&handshakes["side"]),
                text(&handshakes["keyExchange"]),
                text(&handshakes["version"])
            ),
        ]);
    }
    lines
}

fn secret_table(dump: &Dump) -> Table {
    let now = jiff::Timestamp::now().as_second();
    let time = |seconds| {
        jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
    };
    tables::secrets(&dump.warming_secrets, &dump.secrets, now, time)
}

#[derive(Debug, clap::Args)]
pub(super) struct AllArgs {
    #[command(flatten)]
    filter: ClusterFlags,
    /// Port of a cluster, listener or endpoint.
    #[arg(long, value_name = "PORT")]
    port: Option<u32>,
    /// Address of a listener or endpoint.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Type of a listener: HTTP, TCP, HTTP+TCP or UNKNOWN.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Name of a route.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    verbose: Verbose,
    /// Put a banner before each table, and what it is before each name.
    #[arg(long)]
    with_headers: bool,
    /// Form of the output: json, yaml or short.
    #[arg(short = 'o', long, default_value = "short")]
    output: String,
    #[command(flatten)]
    source: Source,
}

pub(super) async fn all(args: AllArgs) -> Result<()> {
    let form = Form::parse(&args.output)?;
    let dump = args.source.read().await?;
    if form != Form::Short {
        return print(&dump.to_config_dump(), form);
    }
    note_if_nothing_called(&dump, form);
    let clusters = args.filter.filter(args.port);
    let wanted = |list: &[Value], wants: &dyn Fn(&Value) -> bool| -> Vec<Value> {
        list.iter().filter(|item| wants(item)).cloned().collect()
    };
    let port = args.port.map(u64::from);
    let listeners = ListenerFilter { address: args.address.clone(), port, kind: args.kind };
    let endpoints = EndpointFilter { address: args.address, port, ..EndpointFilter::default() };
    let listeners = wanted(&dump.listeners, &|listener| listeners.wants(listener));
    let routes =
        wanted(&dump.routes, &|route| args.name.as_ref().is_none_or(|name| route["name"] == name.as_str()));
    let verbose = args.verbose.verbose;
    let sections: [(&str, Table); 5] = [
        ("cluster", tables::clusters(&wanted(&dump.clusters, &|cluster| clusters.wants(cluster)))),
        (
            "listener",
            if verbose { tables::listeners(&listeners) } else { tables::listeners_brief(&listeners) },
        ),
        ("route", if verbose { tables::routes(&routes) } else { tables::routes_brief(&routes) }),
        ("secret", secret_table(&dump)),
        ("endpoint", tables::endpoints(&endpoints.select(&dump.endpoints))),
    ];
    banner(args.with_headers, "bootstrap");
    write_out(&bootstrap_lines(&dump));
    for (name, table) in sections {
        out!("");
        banner(args.with_headers, name);
        print_table(&if args.with_headers { with_names(name, table) } else { table }, "")?;
    }
    Ok(())
}

fn banner(wanted: bool, name: &str) {
    if wanted {
        out!("------ {} INFO ------", name.to_uppercase());
    }
}

/// The first column as `cluster/<name>`.
fn with_names(kind: &str, mut table: Table) -> Table {
    for (index, row) in table.iter_mut().enumerate() {
        if let Some(first) = row.first_mut() {
            *first = if index == 0 { "NAME".to_owned() } else { format!("{kind}/{first}") };
        }
    }
    table
}

/// A proxy holds on demand what its application calls: an empty list is no fault.
fn note_if_nothing_called(dump: &Dump, form: Form) {
    let is_outbound =
        |cluster: &Value| cluster["name"].as_str().is_some_and(|name| name.starts_with("outbound|"));
    if form == Form::Short && !dump.clusters.is_empty() && !dump.clusters.iter().any(is_outbound) {
        eprintln!("{NOTHING_CALLED}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_exchange_and_the_revocations_stand_below_the_table() {
        let tls = json!({
            "keyExchanges": ["X25519MLKEM768"], "oldestVersion": "TLSv1.3", "revocations": null,
            "handshakes": [{"side": "client", "keyExchange": "X25519MLKEM768", "version": "TLSv1.3", "count": 3}]
        });
        let lines: Vec<String> = tls_lines(&tls).iter().map(|line| line.join(" | ")).collect();
        assert_eq!(
            lines,
            [
                "KEY EXCHANGE | X25519MLKEM768 (TLSv1.3 and up), and nothing else: post-quantum is required",
                "REVOCATIONS | none",
                "HANDSHAKES | 3 as client: X25519MLKEM768, TLSv1.3",
            ]
        );
        assert!(tls_lines(&Value::Null).is_empty(), "of Envoy nothing is known");
    }
}

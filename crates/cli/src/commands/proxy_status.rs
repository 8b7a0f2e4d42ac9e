//! `maille proxy-status`: which proxies are connected, and whether they hold what they should.

mod compare;

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use serde_json::{Value, json};

use super::admin::{self, MeshArgs, PodRef};
use super::proxy_config::{self, Form};
use crate::Outcome;
use crate::client::Api;

/// Maille's facts, with the columns of istioctl that they stand for.
const TYPES: [(&str, &str); 6] = [
    ("Inbound", "LDS"),
    ("Authorization", "LDS"),
    ("Destination", "CDS,EDS,RDS"),
    ("TrustBundle", "SDS"),
    ("MeshSettings", ""),
    ("Revocations", "SDS"),
];

/// Shows which proxies are connected to the control plane, and how far each has got.
///
/// With -v 1 there is a column for each kind of facts, with istioctl's kinds behind the slash: SYNCED, STALE (sent and
/// not yet acknowledged), ERROR (rejected), NOT SENT, IGNORED (not asked for), and for how long; and one that says when
/// the proxy's certificate ends. With a Pod, [TYPE/]NAME[.NAMESPACE], what the proxy holds is compared with what the
/// control plane means it to hold.
///
/// -o json prints a list with a DiscoveryResponse per control plane, whose resources are ClientConfigs: node,
/// genericXdsConfigs[] {typeUrl, configStatus, lastUpdated, errorState}; node.metadata has CERTIFICATE_SERIAL,
/// CERTIFICATE_NOT_AFTER and REVOCATIONS as the proxy says that it uses them.
///
/// Exit code 1 if a proxy is STALE or in ERROR, or does not match; called as istioctl 0.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProxyStatusArgs {
    /// Pod to compare with the control plane.
    pod: Option<String>,
    /// Form of the output: table, json or yaml.
    #[arg(short = 'o', long, default_value = "table")]
    output: String,
    /// 1 for a column per kind of facts.
    #[arg(short = 'v', long, value_name = "LEVEL", default_value_t = 0)]
    verbosity: u8,
    /// Port of the admin page inside of the Pod.
    #[arg(long, value_name = "PORT", default_value_t = maille_core::ports::ADMIN)]
    proxy_admin_port: u16,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) async fn run(args: ProxyStatusArgs) -> Result<Outcome> {
    let form = match args.output.as_str() {
        "table" | "short" => Form::Short,
        "json" => Form::Json,
        "yaml" => Form::Yaml,
        other => bail!("output format {other:?} not supported; it can be table, json or yaml"),
    };
    let api = Api::connect(&args.mesh.api).await?;
    let control_planes = admin::select_pods(&api, "app=istiod", Some(&args.mesh.istio_namespace)).await?;
    ensure!(
        !control_planes.is_empty(),
        "there is no control plane in namespace {} (no Pod with label app=istiod)",
        args.mesh.istio_namespace
    );
    if let Some(pod) = &args.pod {
        let pod = admin::find_pod(&api, pod, args.mesh.namespace()).await?;
        let control_plane = control_planes.first().context("there is no control plane")?;
        let held = admin::config_dump(&api, &pod, args.proxy_admin_port).await?;
        let matches = compare::run(&api, control_plane, &pod, &held).await?;
        return Ok(if matches || crate::called::as_istioctl() { Outcome::Fine } else { Outcome::NotFine });
    }
    let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let mut rows = Vec::new();
    for control_plane in &control_planes {
        let port = maille_core::ports::CONTROL_MONITORING;
        let answer = admin::ask(&api, control_plane, port, Method::GET, "/proxies").await?;
        let answer: Value = serde_json::from_slice(&answer).context("the control plane answered no JSON")?;
        let proxies = answer["proxies"].as_array().cloned().unwrap_or_default();
        let wanted = |proxy: &Value| args.mesh.namespace().is_none_or(|n| proxy["namespace"] == n);
        rows.extend(proxies.into_iter().filter(wanted).map(|proxy| Row { control_plane, proxy }));
    }
    rows.sort_by_key(Row::name);
    match form {
        Form::Short => {
            proxy_config::print_table(&table(&rows, args.verbosity, now_ms), "no proxy is connected")?
        }
        _ => proxy_config::print(&responses(&control_planes, &rows), form)?,
    }
    let is_bad = |row: &Row<'_>| {
        TYPES.iter().any(|(kind, _)| {
            matches!(State::of(&row.proxy["types"][kind]), State::Stale(_) | State::Error(_))
        })
    };
    let fine = crate::called::as_istioctl() || !rows.iter().any(is_bad);
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

/// One proxy, as one control plane tells of it.
struct Row<'c> {
    control_plane: &'c PodRef,
    proxy: Value,
}

impl Row<'_> {
    /// `<pod>.<namespace>`.
    fn name(&self) -> String {
        let text = |field: &str| self.proxy[field].as_str().unwrap_or_default();
        format!("{}.{}", text("pod"), text("namespace"))
    }

    fn text(&self, field: &str) -> String {
        self.proxy[field].as_str().unwrap_or_default().to_owned()
    }
}

impl Row<'_> {
    /// When the certificate in use ends, as the proxy says.
    fn certificate(&self, now_ms: u64) -> String {
        match self.proxy["svid"]["notAfterMs"].as_u64() {
            Some(end) if end > now_ms => format!("ends in {}", age((end - now_ms) / 1000)),
            Some(end) if end > 0 => format!("EXPIRED ({})", age((now_ms - end) / 1000)),
            _ => "-".to_owned(),
        }
    }

    /// The same for programs; nothing where the proxy has not said it.
    fn add_certificate(&self, metadata: &mut serde_json::Map<String, Value>) {
        let svid = &self.proxy["svid"];
        let end = svid["notAfterMs"].as_u64().and_then(crate::commands::ca::described::of_millis);
        if let Some(end) = end {
            metadata.insert("CERTIFICATE_SERIAL".to_owned(), svid["serial"].clone());
            let end = crate::commands::ca::described::moment(end);
            metadata.insert("CERTIFICATE_NOT_AFTER".to_owned(), json!(end));
            metadata.insert("REVOCATIONS".to_owned(), svid["revocations"].clone());
        }
    }
}

/// How far a proxy has got with one kind of facts, and when (Unix milliseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Synced(u64),
    Stale(u64),
    Error(u64),
    NotSent,
    Ignored,
}

impl State {
    /// Reads one entry of `types`; what is not there was not asked for.
    fn of(summary: &Value) -> Self {
        let time = |field: &str| summary[field].as_u64().unwrap_or(0);
        if !summary.is_object() {
            Self::Ignored
        } else if summary["rejected"].is_string() {
            Self::Error(time("rejectedMs"))
        } else if summary["sentNonce"].is_null() {
            Self::NotSent
        } else if summary["settled"] == true {
            Self::Synced(time("ackedMs"))
        } else {
            Self::Stale(time("sentMs"))
        }
    }

    fn cell(self, now_ms: u64) -> String {
        let with_age = |word: &str, at: u64| format!("{word} ({})", age(now_ms.saturating_sub(at) / 1000));
        match self {
            Self::Synced(at) => with_age("SYNCED", at),
            Self::Stale(at) => with_age("STALE", at),
            Self::Error(at) => with_age("ERROR", at),
            Self::NotSent => "NOT SENT".to_owned(),
            Self::Ignored => "IGNORED".to_owned(),
        }
    }

    /// Envoy's `ConfigStatus`.
    fn config_status(self) -> &'static str {
        match self {
            Self::Synced(_) => "SYNCED",
            Self::Stale(_) => "STALE",
            Self::Error(_) => "ERROR",
            Self::NotSent => "NOT_SENT",
            Self::Ignored => "UNKNOWN",
        }
    }
}

/// `45s`, `2m15s`, `1h2m`, `3d4h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

fn table(rows: &[Row<'_>], verbosity: u8, now_ms: u64) -> Vec<Vec<String>> {
    let mut titles = vec!["NAME".to_owned(), "CLUSTER".to_owned()];
    if verbosity == 0 {
        titles.extend(["ISTIOD", "VERSION", "SUBSCRIBED TYPES"].map(str::to_owned));
    } else {
        titles.extend(TYPES.iter().map(|(kind, istio)| match *istio {
            "" => kind.to_uppercase(),
            istio => format!("{}/{istio}", kind.to_uppercase()),
        }));
        titles.extend(["CERTIFICATE", "ISTIOD", "VERSION"].map(str::to_owned));
    }
    let mut table = vec![titles];
    for row in rows {
        // One cluster is all there is until meshes span several.
        let mut cells = vec![row.name(), "Kubernetes".to_owned()];
        let origin = [row.control_plane.name.clone(), row.text("version")];
        let states: Vec<(&str, State)> =
            TYPES.iter().map(|(kind, _)| (*kind, State::of(&row.proxy["types"][kind]))).collect();
        if verbosity == 0 {
            let names: Vec<&str> =
                states.iter().filter(|(_, state)| *state != State::Ignored).map(|(kind, _)| *kind).collect();
            cells.extend(origin);
            cells.push(match names.len() {
                0 => "0".to_owned(),
                count => format!("{count} ({})", names.join(",")),
            });
        } else {
            cells.extend(states.iter().map(|(_, state)| state.cell(now_ms)));
            cells.push(row.certificate(now_ms));
            cells.extend(origin);
        }
        table.push(cells);
    }
    table
}

fn responses(control_planes: &[PodRef], rows: &[Row<'_>]) -> Value {
    let of = |control_plane: &PodRef| {
        let own = rows.iter().filter(|row| row.control_plane == control_plane);
        json!({
            "resources": own.map(client_config).collect::<Vec<_>>(),
            "typeUrl": "istio.io/debug/syncz",
            "controlPlane": {"identifier": control_plane.name}
        })
    };
    Value::Array(control_planes.iter().map(of).collect())
}

fn client_config(row: &Row<'_>) -> Value {
    let configs = TYPES.iter().filter_map(|(kind, _)| {
        let summary = &row.proxy["types"][kind];
        let state = State::of(summary);
        let mut config = json!({
            "typeUrl": format!("type.googleapis.com/maille.facts.v1.{kind}"),
            "configStatus": state.config_status(),
        });
        let fields = config.as_object_mut().filter(|_| state != State::Ignored)?;
        if let State::Synced(at) | State::Stale(at) | State::Error(at) = state
            && let Some(time) =
                i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok())
        {
            fields.insert("lastUpdated".to_owned(), json!(time.to_string()));
        }
        if let Some(reason) = summary["rejected"].as_str() {
            fields.insert("errorState".to_owned(), json!({"details": reason}));
        }
        Some(config)
    });
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.service.status.v3.ClientConfig",
        "node": {
            "id": row.name(),
            "metadata": {
                "NAMESPACE": row.text("namespace"),
                "CLUSTER_ID": "Kubernetes",
                "ISTIO_VERSION": row.text("version"),
                "WORKLOAD_NAME": row.text("workload")
            }
        },
        "genericXdsConfigs": configs.collect::<Vec<_>>()
    });
    if let Some(metadata) = config.pointer_mut("/node/metadata").and_then(Value::as_object_mut) {
        row.add_certificate(metadata);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_istioctl_writes_them() {
        let sent =
            json!({"sentNonce": "4", "ackedNonce": "4", "settled": true, "sentMs": 1000, "ackedMs": 5000});
        let mut waiting = sent.clone();
        waiting["settled"] = json!(false);
        let mut rejected = sent.clone();
        rejected["rejected"] = json!("why");
        rejected["rejectedMs"] = json!(2000);
        for (summary, cell) in [
            (sent, "SYNCED (2m0s)"),
            (waiting, "STALE (2m4s)"),
            (rejected, "ERROR (2m3s)"),
            (json!({"settled": true}), "NOT SENT"),
            (Value::Null, "IGNORED"),
        ] {
            assert_eq!(State::of(&summary).cell(125_000), cell);
        }
        assert_eq!((age(59), age(3_700), age(100_000)), ("59s".into(), "1h1m".into(), "1d3h".into()));
    }

    #[test]
    fn the_tables_have_istioctls_columns() {
        let control_plane = PodRef { namespace: "istio-system".into(), name: "istiod".into() };
        let row = Row {
            control_plane: &control_plane,
            proxy: json!({
                "pod": "cart-1", "namespace": "shop", "version": "0.1.0",
                "types": {"Inbound": {"sentNonce": "1", "settled": true, "ackedMs": 1000}}
            }),
        };
        let lines: Vec<String> = table(&[row], 0, 2000).iter().map(|line| line.join("|")).collect();
        assert_eq!(
            lines,
            [
                "NAME|CLUSTER|ISTIOD|VERSION|SUBSCRIBED TYPES",
                "cart-1.shop|Kubernetes|istiod|0.1.0|1 (Inbound)"
            ]
        );
    }

    #[test]
    fn the_end_of_the_certificate_is_shown_and_goes_into_the_nodes_metadata() {
        let control_plane = PodRef { namespace: "istio-system".into(), name: "istiod".into() };
        let row = |svid: Value| Row {
            control_plane: &control_plane,
            proxy: json!({"pod": "cart-1", "namespace": "shop", "version": "0.1.0", "svid": svid}),
        };
        let known = row(json!({"serial": "a1", "notAfterMs": 3_600_000, "revocations": "7f"}));
        assert_eq!(known.certificate(0), "ends in 1h0m");
        assert_eq!(known.certificate(3_660_000), "EXPIRED (1m0s)");
        assert_eq!(row(Value::Null).certificate(0), "-");
        let metadata = &client_config(&known)["node"]["metadata"];
        assert_eq!(metadata["CERTIFICATE_NOT_AFTER"], "1970-01-01T01:00:00Z");
        assert_eq!((&metadata["CERTIFICATE_SERIAL"], &metadata["REVOCATIONS"]), (&json!("a1"), &json!("7f")));
        assert!(client_config(&row(Value::Null))["node"]["metadata"].get("REVOCATIONS").is_none());
    }
}

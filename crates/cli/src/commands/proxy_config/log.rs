//! `maille proxy-config log`: what a proxy logs, and how much of it.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use http::Method;

use crate::client::Api;
use crate::commands::admin::{self, MeshArgs, PodRef};
use crate::output::out;

/// istioctl's names of loggers, and the parts of the proxy that they are.
const LOGGERS: [(&str, &str); 9] = [
    ("admin", "maille_proxy::agent::server"),
    ("connection", "maille_proxy::worker"),
    ("dns", "maille_proxy::upkeep::names"),
    ("flows", "maille_proxy::agent::flows"),
    ("rbac", "maille_proxy::agent::facts_in_force"),
    ("secret", "maille_proxy::agent::identity"),
    ("tcp_proxy", "maille_proxy::tcp"),
    ("tls", "maille_proxy::upkeep::files"),
    ("xds", "maille_proxy::agent::discovery"),
];

/// What a proxy logs when its Pod does not say.
const DEFAULT: &str = "info";

/// Without --level and --reset the current levels are shown. Refusals are always in the access log, whatever the
/// levels are.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct LogArgs {
    /// Pods: [TYPE/]NAME[.NAMESPACE]; a Deployment or another owner stands for all of its Pods.
    workload: Option<String>,
    /// Pods with these labels, in place of a name.
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Level of everything, or of some: trace, debug, info, warning, error, critical, off; LOGGER:LEVEL,…
    #[arg(long, value_name = "LEVELS")]
    level: Option<String>,
    /// Back to the levels that the Pod was started with.
    #[arg(short = 'r', long, conflicts_with = "level")]
    reset: bool,
    /// Not for this command.
    #[arg(short = 'o', long, hide = true)]
    output: Option<String>,
    /// Port of the admin page inside of the Pod.
    #[arg(long, value_name = "PORT", default_value_t = maille_core::ports::ADMIN)]
    proxy_admin_port: u16,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(super) async fn run(args: LogArgs) -> Result<()> {
    ensure!(args.output.is_none(), "--output is not applicable to this command");
    // Before anything is asked or changed.
    let wanted = args.level.as_deref().map(parse_levels).transpose()?;
    let api = Api::connect(&args.mesh.api).await?;
    let pods = match (&args.workload, &args.selector) {
        (Some(workload), None) => admin::find_pods(&api, workload, args.mesh.namespace()).await?,
        (None, Some(selector)) => admin::select_pods(&api, selector, args.mesh.namespace()).await?,
        (None, None) => bail!("name a Pod, or Pods by their labels with --selector; see --help"),
        (Some(_), Some(_)) => bail!("name either a Pod or labels, not both"),
    };
    ensure!(!pods.is_empty(), "no Pod is selected");
    for pod in &pods {
        let port = args.proxy_admin_port;
        let current = String::from_utf8(admin::ask(&api, pod, port, Method::GET, "/logging").await?)?;
        let next = match &wanted {
            Some(wanted) => Some(merged(&current, wanted)),
            None if args.reset => Some(started_with(&api, pod).await?),
            None => None,
        };
        let in_force = match next {
            Some(directives) => {
                let path = format!("/logging?level={directives}");
                String::from_utf8(admin::ask(&api, pod, port, Method::POST, &path).await?)?
            }
            None => current,
        };
        show(pod, in_force.trim());
    }
    Ok(())
}

/// A level for everything (`""`) or for parts, in the proxy's words.
fn parse_levels(text: &str) -> Result<BTreeMap<String, &'static str>> {
    let mut levels = BTreeMap::new();
    for part in text.split(',') {
        let (logger, level) = match part.split_once([':', '=']) {
            Some((logger, level)) => (Some(logger), level.trim_start_matches(':')),
            None => (None, part),
        };
        let level = match level {
            "trace" => "trace",
            "debug" => "debug",
            "info" => "info",
            "warning" | "warn" => "warn",
            "error" | "critical" => "error",
            "off" => "off",
            other => bail!(
                "unrecognized logging level {other:?}; it can be trace, debug, info, warning, error, critical or off"
            ),
        };
        let target = match logger {
            None | Some("all" | "level") => "",
            Some(name) => match LOGGERS.iter().find(|(known, _)| *known == name) {
                Some((_, target)) => target,
                None => {
                    let known: Vec<_> = LOGGERS.iter().map(|(known, _)| *known).collect();
                    bail!("unrecognized logger {name:?}; this proxy has {}", known.join(", "));
                }
            },
        };
        levels.insert(target.to_owned(), level);
    }
    Ok(levels)
}

/// Directives as the proxy writes them: `info,maille_proxy::tcp=debug`.
fn parse_directives(text: &str) -> BTreeMap<String, String> {
    let parts = text.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((target, level)) => (target.to_owned(), level.to_owned()),
            None => (String::new(), part.to_owned()),
        })
        .collect()
}

/// A level for everything takes the place of all levels before.
fn merged(current: &str, wanted: &BTreeMap<String, &'static str>) -> String {
    let mut levels = if wanted.contains_key("") { BTreeMap::new() } else { parse_directives(current) };
    levels.extend(wanted.iter().map(|(target, level)| (target.clone(), (*level).to_owned())));
    let parts = levels.iter().map(|(target, level)| match target.as_str() {
        "" => level.clone(),
        target => format!("{target}={level}"),
    });
    parts.collect::<Vec<_>>().join(",")
}

/// What the sidecar's environment says.
async fn started_with(api: &Api, pod: &PodRef) -> Result<String> {
    let object = api.get(&format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)).await?;
    let containers = ["containers", "initContainers"];
    let all = containers.iter().flat_map(|list| object["spec"][list].as_array().into_iter().flatten());
    let sidecar = all.into_iter().find(|container| container["name"] == "istio-proxy");
    let variables = sidecar.and_then(|container| container["env"].as_array());
    let own = variables.into_iter().flatten().find(|variable| variable["name"] == "MAILLE_LOG");
    Ok(own.and_then(|variable| variable["value"].as_str()).unwrap_or(DEFAULT).to_owned())
}

fn show(pod: &PodRef, directives: &str) {
    let levels = parse_directives(directives);
    let of = |target: &str| {
        // The most specific directive decides.
        let prefixes = levels.iter().filter(|(prefix, _)| target.starts_with(prefix.as_str()));
        prefixes.max_by_key(|(prefix, _)| prefix.len()).map_or("off", |(_, level)| level.as_str()).to_owned()
    };
    out!("{pod}:");
    out!("active loggers:");
    for (name, target) in LOGGERS {
        out!("  {name}: {}", of(target).replace("warn", "warning"));
    }
    out!("");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_for_one_part_leaves_the_others() {
        let wanted = parse_levels("rbac:debug,connection=warning").expect("levels");
        assert_eq!(
            merged("info,maille_proxy::tcp=trace\n", &wanted),
            "info,maille_proxy::agent::facts_in_force=debug,maille_proxy::tcp=trace,maille_proxy::worker=warn"
        );
        assert_eq!(
            merged("info,maille_proxy::tcp=trace", &parse_levels("critical").expect("a level")),
            "error"
        );
    }

    #[test]
    fn what_nobody_knows_is_refused_before_anything_changes() {
        for (text, named) in [("loud", "loud"), ("jwt:debug", "rbac"), ("rbac:loud", "loud"), ("", "\"\"")] {
            let error = parse_levels(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}

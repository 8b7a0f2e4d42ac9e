//! `maille version`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};

use super::admin::{self, MeshArgs};
use super::proxy_config::{self, Form};
use crate::Outcome;
use crate::client::Api;
use crate::output::out;

/// Prints the version of this binary, and with --remote those of the control plane and the proxies connected to it.
///
/// -o json prints clientVersion {version} and, with --remote, meshVersion[] {Component, Info {version}} and
/// dataPlaneVersion[] {ID, IstioVersion}. Called as istioctl, --remote is the default.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct VersionArgs {
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json", "yaml"])]
    output: Option<String>,
    /// Ask the mesh too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    remote: Option<bool>,
    /// One line each, which is how it is printed anyway.
    #[arg(short = 's', long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    short: Option<bool>,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// What runs in a mesh.
#[derive(Debug, Default)]
struct Remote {
    /// Pod and version of each control plane.
    control_planes: Vec<(String, String)>,
    /// Name and version of each connected proxy.
    proxies: Vec<(String, String)>,
}

pub(crate) async fn run(args: VersionArgs) -> Result<Outcome> {
    let own = env!("CARGO_PKG_VERSION");
    let istioctl = crate::called::as_istioctl();
    let remote = match args.remote.unwrap_or(istioctl) {
        true => match ask(&args.mesh).await {
            Ok(remote) => Some(remote),
            // istioctl tells its own version all the same; who asked for the mesh's gets an error.
            Err(error) if args.remote.is_none() => {
                eprintln!("the mesh was not asked: {error:#}");
                None
            }
            Err(error) => return Err(error),
        },
        false => None,
    };
    match args.output.as_deref() {
        Some(form) => print(own, remote.as_ref(), form)?,
        None if remote.is_some() || istioctl => lines(own, remote.as_ref()),
        None => out!("maille {own}"),
    }
    Ok(Outcome::Fine)
}

async fn ask(mesh: &MeshArgs) -> Result<Remote> {
    let api = Api::connect(&mesh.api).await?;
    let mut remote = Remote::default();
    for pod in admin::select_pods(&api, "app=istiod", Some(&mesh.istio_namespace)).await? {
        let port = maille_core::ports::CONTROL_MONITORING;
        let answer = admin::ask(&api, &pod, port, Method::GET, "/proxies").await?;
        let answer: Value = serde_json::from_slice(&answer).context("the control plane answered no JSON")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        remote.control_planes.push((pod.name, text(&answer["version"])));
        for proxy in answer["proxies"].as_array().into_iter().flatten() {
            let name = format!("{}.{}", text(&proxy["pod"]), text(&proxy["namespace"]));
            remote.proxies.push((name, text(&proxy["version"])));
        }
    }
    remote.proxies.sort();
    Ok(remote)
}

fn lines(own: &str, remote: Option<&Remote>) {
    out!("client version: {own}");
    let Some(remote) = remote else { return };
    let mut versions: Vec<&str> = remote.control_planes.iter().map(|(_, version)| version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    match versions.as_slice() {
        [] => out!("control plane version: none"),
        [one] => out!("control plane version: {one}"),
        _ => {
            for (pod, version) in &remote.control_planes {
                out!("{pod} version: {version}");
            }
        }
    }
    out!("data plane version: {}", data_plane(&remote.proxies));
}

/// `0.1.0 (9 proxies), 0.2.0 (1 proxies)`, as istioctl counts.
fn data_plane(proxies: &[(String, String)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, version) in proxies {
        *counts.entry(version).or_default() += 1;
    }
    match counts.is_empty() {
        true => "none".to_owned(),
        false => {
            let each = counts.iter().map(|(version, count)| format!("{version} ({count} proxies)"));
            each.collect::<Vec<_>>().join(", ")
        }
    }
}

fn print(own: &str, remote: Option<&Remote>, form: &str) -> Result<()> {
    let mut value = json!({"clientVersion": {"version": own}});
    if let (Some(remote), Some(fields)) = (remote, value.as_object_mut()) {
        let mesh: Vec<_> = remote
            .control_planes
            .iter()
            .map(|(_, version)| json!({"Component": "pilot", "Info": {"version": version}}))
            .collect();
        let proxies: Vec<_> =
            remote.proxies.iter().map(|(id, version)| json!({"ID": id, "IstioVersion": version})).collect();
        fields.insert("meshVersion".to_owned(), json!(mesh));
        fields.insert("dataPlaneVersion".to_owned(), json!(proxies));
    }
    proxy_config::print(&value, if form == "yaml" { Form::Yaml } else { Form::Json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_counted_by_version() {
        let proxies = |versions: &[&str]| {
            versions.iter().map(|v| ("x".to_owned(), (*v).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(
            data_plane(&proxies(&["0.1.0", "0.2.0", "0.1.0"])),
            "0.1.0 (2 proxies), 0.2.0 (1 proxies)"
        );
        assert_eq!(data_plane(&[]), "none");
    }
}

//! `maille proxy-config`: what a running proxy lives by, in Envoy's shapes.

mod log;
mod show;

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use maille_envoy::Dump;
use serde_json::Value;

use super::admin::{self, MeshArgs};
use crate::Outcome;
use crate::client::Api;
use crate::output::{aligned, write_out};

/// Shows what a running proxy lives by, as it says itself, in Envoy's shapes and with istioctl's columns.
///
/// A Pod is named [TYPE/]NAME[.NAMESPACE]; a Deployment or another owner stands for the first of its Pods. -o json
/// prints the resources themselves, with protobuf's names; `secret` and `bootstrap` print the section, `all` the whole
/// dump as Envoy's /config_dump has it. A proxy knows of the outside what its application called lately.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProxyConfigArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the clusters: what connections can be sent to
    #[command(visible_aliases = ["clusters", "c"])]
    Cluster(show::ClusterArgs),
    /// Show the listeners, with what each takes and where it goes
    #[command(visible_aliases = ["listeners", "l"])]
    Listener(show::ListenerArgs),
    /// Show the routes of HTTP
    #[command(visible_aliases = ["routes", "r"])]
    Route(show::RouteArgs),
    /// Show the endpoints of the clusters
    #[command(visible_aliases = ["endpoints", "ep"])]
    Endpoint(show::EndpointArgs),
    /// Show what the proxy was started with
    #[command(visible_aliases = ["b"])]
    Bootstrap(show::BootstrapArgs),
    /// Show the certificates, never a key
    #[command(visible_aliases = ["secrets", "s"])]
    Secret(show::SecretArgs),
    /// Show everything
    #[command(visible_aliases = ["a"])]
    All(show::AllArgs),
    /// Show or change what the proxy logs
    #[command(visible_aliases = ["o"])]
    Log(log::LogArgs),
}

pub(crate) async fn run(args: ProxyConfigArgs) -> Result<Outcome> {
    match args.what {
        What::Cluster(args) => show::cluster(args).await,
        What::Listener(args) => show::listener(args).await,
        What::Route(args) => show::route(args).await,
        What::Endpoint(args) => show::endpoint(args).await,
        What::Bootstrap(args) => show::bootstrap(args).await,
        What::Secret(args) => show::secret(args).await,
        What::All(args) => show::all(args).await,
        What::Log(args) => log::run(args).await,
    }?;
    Ok(Outcome::Fine)
}

/// Whose configuration: a Pod's, or one that was kept in a file.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Pod: [TYPE/]NAME[.NAMESPACE].
    pod: Option<String>,
    /// A dump in place of a Pod's: Envoy's /config_dump or Maille's; `-` is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Port of the admin page inside of the Pod.
    #[arg(long, value_name = "PORT", default_value_t = maille_core::ports::ADMIN)]
    proxy_admin_port: u16,
    #[command(flatten)]
    mesh: MeshArgs,
}

impl Source {
    /// Reads the dump.
    pub(crate) async fn read(&self) -> Result<Dump> {
        match (&self.pod, &self.file) {
            (Some(pod), None) => {
                let api = Api::connect(&self.mesh.api).await?;
                let pod = admin::find_pod(&api, pod, self.mesh.namespace()).await?;
                let dump = admin::config_dump(&api, &pod, self.proxy_admin_port).await?;
                for problem in admin::problems(&dump) {
                    eprintln!("note: {problem}");
                }
                Ok(Dump::of_proxy(&dump))
            }
            (None, Some(file)) => {
                Dump::read(&read_file(file)?).with_context(|| format!("{} is not usable", file.display()))
            }
            (None, None) => bail!("name a Pod, or a dump with --file; see --help"),
            (Some(_), Some(_)) => bail!("name either a Pod or a dump with --file, not both"),
        }
    }
}

pub(crate) fn read_file(path: &std::path::Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(bytes)
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Short,
    Json,
    Yaml,
}

impl Form {
    /// Not clap's business: istioctl has exit code 1 for a form it does not know, and 64 for a flag.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "short" => Ok(Self::Short),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            other => bail!("output format {other:?} not supported; it can be json, yaml or short"),
        }
    }
}

/// JSON with istioctl's indent of four, or the same as YAML.
pub(crate) fn print(value: &Value, form: Form) -> Result<()> {
    if form == Form::Yaml {
        write_out(&serde_saphyr::to_string(value)?);
        return Ok(());
    }
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(value, &mut serializer)?;
    text.push(b'\n');
    write_out(&String::from_utf8(text)?);
    Ok(())
}

/// A table, or a word on standard error that it would be empty.
pub(crate) fn print_table(table: &[Vec<String>], if_empty: &str) -> Result<()> {
    ensure!(!table.is_empty(), "a table without headings");
    write_out(&aligned(table));
    if table.len() == 1 && !if_empty.is_empty() {
        eprintln!("{if_empty}");
    }
    Ok(())
}

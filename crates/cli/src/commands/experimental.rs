//! `maille x …`: what istioctl has under `experimental`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use maille_envoy::{ANONYMOUS, Dump, loaded_policies};

use super::admin::{self, MeshArgs};
use super::{describe, proxy_config};
use crate::Outcome;
use crate::client::Api;

#[derive(Debug, clap::Args)]
pub(crate) struct ExperimentalArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Describe a Pod or a Service, and what the mesh makes of it
    #[command(visible_alias = "des")]
    Describe(describe::DescribeArgs),
    /// Ask a proxy which authorization policies it enforces
    Authz(AuthzArgs),
    /// As `maille proxy-config`
    #[command(visible_alias = "pc", hide = true)]
    ProxyConfig(proxy_config::ProxyConfigArgs),
    /// As `maille proxy-status`
    #[command(visible_alias = "ps", hide = true)]
    ProxyStatus(super::proxy_status::ProxyStatusArgs),
}

#[derive(Debug, clap::Args)]
struct AuthzArgs {
    #[command(subcommand)]
    command: AuthzCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuthzCommand {
    /// List the policies that a proxy has loaded, with how many rules of each
    Check(LoadedArgs),
}

/// What is loaded, not what is allowed: `maille authz check` answers that.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadedArgs {
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

pub(crate) async fn run(args: ExperimentalArgs) -> Result<Outcome> {
    match args.command {
        Command::Describe(args) => describe::run(args).await,
        Command::Authz(AuthzArgs { command: AuthzCommand::Check(args) }) => loaded(args).await,
        Command::ProxyConfig(args) => proxy_config::run(args).await,
        Command::ProxyStatus(args) => super::proxy_status::run(args).await,
    }
}

/// `ACTION | AuthorizationPolicy | RULES`, DENY before ALLOW, LOG and CUSTOM.
async fn loaded(args: LoadedArgs) -> Result<Outcome> {
    let dump = match (&args.pod, &args.file) {
        (Some(pod), None) => {
            let api = Api::connect(&args.mesh.api).await?;
            let pod = admin::find_pod(&api, pod, args.mesh.namespace()).await?;
            Dump::of_proxy(&admin::config_dump(&api, &pod, args.proxy_admin_port).await?)
        }
        (None, Some(file)) => Dump::read(&proxy_config::read_file(file)?)
            .with_context(|| format!("{} is not usable", file.display()))?,
        _ => bail!("name either a Pod or a dump with --file; see --help"),
    };
    let policies = loaded_policies(&dump.listeners);
    let mut table = vec![["ACTION", "AuthorizationPolicy", "RULES"].map(str::to_owned).to_vec()];
    let is_anonymous = policies.iter().any(|policy| policy.policy == ANONYMOUS);
    table.extend(policies.into_iter().map(|p| vec![p.action, p.policy, p.rules.to_string()]));
    proxy_config::print_table(&table, "no policy is loaded: every caller that gets through is allowed")?;
    if is_anonymous {
        eprintln!(
            "note: {ANONYMOUS} is an ALLOW filter without a rule, which lets nothing through: that of TCP connections \
             where all rules ask about HTTP requests"
        );
    }
    Ok(Outcome::Fine)
}

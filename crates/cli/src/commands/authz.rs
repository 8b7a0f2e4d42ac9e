//! `maille authz check`: what policy decides, offline and on a running Pod.

mod offline;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::Outcome;
use crate::client::ApiArgs;

#[derive(Debug, clap::Args)]
pub(crate) struct AuthzArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Ask whether requests may go through, and why
    ///
    /// Offline, over policies in files:
    ///
    ///   maille authz check -f POLICIES.yaml --request REQUESTS.json
    ///
    /// A request is {"workload":{"namespace":…,"labels":{…}},"request":{"source_principal":…|null,"source_ip":…,
    /// "remote_ip":…,"destination_ip":…,"destination_port":…,"protocol":"http"|"tcp","method":…,"host":…,"path":…,
    /// "headers":{NAME:VALUE|[VALUE,…]},"sni":…|null,"jwt":{…}|null}}, or a list of such; any key may be left out. With
    /// -o json the answer is a list, in the same order, of {"allowed","action","policy","rule","reason"}, where action is
    /// ALLOW, DENY, CUSTOM or NONE. PeerAuthentication plays no part; paths count as normalized, a jwt as verified.
    ///
    /// Exit code 0 if everything is allowed, 1 if something is refused, 2 if the question could not be answered.
    #[command(verbatim_doc_comment)]
    Check(Box<CheckArgs>),
}

/// The questions of `authz check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// File or folder with the AuthorizationPolicies; objects of other kinds play no part. `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", num_args = 1.., requires = "request")]
    files: Vec<PathBuf>,
    /// File with the requests to decide, as JSON; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "files")]
    request: Option<PathBuf>,
    /// Namespace of policies that name none.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "DOMAIN", default_value = maille_core::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// Another trust domain that counts as the mesh's own. May be given several times.
    #[arg(long = "trust-domain-alias", value_name = "DOMAIN")]
    trust_domain_aliases: Vec<String>,
    /// Namespace of mesh-wide policy.
    #[arg(short = 'i', long = "istioNamespace", alias = "root-namespace", value_name = "NAMESPACE",
          default_value = maille_core::ROOT_NAMESPACE)]
    root_namespace: String,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: AuthzArgs) -> Result<Outcome> {
    let Command::Check(args) = args.command;
    check(*args).await
}

/// `authz check`, also as `x authz check`.
pub(crate) async fn check(args: CheckArgs) -> Result<Outcome> {
    match &args.request {
        Some(request) => offline::run(&args, request),
        None => {
            bail!("name the policies and the requests to decide: -f POLICIES.yaml --request REQUESTS.json")
        }
    }
}

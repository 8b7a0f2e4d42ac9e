//! `maille authz check`: what policy decides, offline and on a running Pod.

mod held;
mod listing;
mod offline;
mod question;
mod rules;
mod token;

use std::net::IpAddr;
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
    /// On a running workload, as its proxy holds them: what each port accepts, the RequestAuthentications with the state
    /// of their keys, and all policies, those too that only ask, mark or try (CUSTOM, AUDIT, dry run)
    ///
    ///   maille authz check cart-7c9d-x2x1k.production
    ///   maille authz check deploy/cart.production
    ///
    /// or one decision, PeerAuthentication included
    ///
    ///   maille authz check deploy/orders.production --from production/payment-service --path /api/v1/orders/1
    ///   maille authz check deploy/orders.production --from-plaintext
    ///   maille authz check deploy/web.shop --from edge/gw --jwt '{"iss": "https://idp", "sub": "u1"}'
    ///
    /// or whether it takes a token: which rule accepts it, or why all refuse it. The token itself is never printed. With
    /// --from the request is judged by what the token says.
    ///
    ///   maille authz check deploy/web.shop --token token.txt
    ///
    /// Offline, over policies in files:
    ///
    ///   maille authz check -f POLICIES.yaml --request REQUESTS.json
    ///
    /// A request is
    ///
    ///   {"workload": {"namespace": "…", "labels": {…}},
    ///    "request": {"source_principal": "cluster.local/ns/a/sa/b"|null, "source_ip": "…", "remote_ip": "…",
    ///                "destination_ip": "…", "destination_port": 8080, "protocol": "http"|"tcp",
    ///                "method": "GET", "host": "…", "path": "/…", "headers": {"name": "value"|["value", …]},
    ///                "sni": "…"|null, "jwt": {claims}|null}}
    ///
    /// or a list of such; any key may be left out. -o json answers with a list, in the same order, of
    ///
    ///   {"allowed": bool, "action": "ALLOW"|"DENY"|"CUSTOM"|"NONE", "policy": "ns/name"|null, "rule": n|null,
    ///    "reason": "…"}
    ///
    /// and, only where there is something to say,
    ///
    ///   "provider": "…"     the external authorizer that is asked about the request. It can refuse what the other
    ///                       policies allow: "action" is CUSTOM and "allowed" false then, since nobody asks it here
    ///   "audit": {"policy": "ns/name", "rule": n}     the AUDIT rule that marks the request; it decides nothing
    ///   "shadow": {"allowed": bool, "reason": "…",    what would become of it if dry-run policies were in force, and
    ///              "deny": R, "allow": R}             what those of one action say by themselves; R is
    ///                                                 {"allowed": bool, "policy": "ns/name"|null, "rule": n|null}
    ///
    /// On a running workload the answer is one such object, with "pod", "port", "mtls" and "source" ("proxy" or "api").
    ///
    /// Offline, PeerAuthentication plays no part, paths count as normalized and a jwt as verified. Of a ConfigMap `istio`
    /// among the files trust domain, aliases, root namespace and extension providers are taken, and of
    /// RequestAuthentications which claims are lists of words.
    ///
    /// Exit code 0 if everything is allowed (a token: accepted), 1 if something is refused, 2 if the question could not be
    /// answered.
    #[command(verbatim_doc_comment)]
    Check(Box<CheckArgs>),
}

/// The questions of `authz check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The workload to ask: NAME, NAME.NAMESPACE or TYPE/NAME.NAMESPACE.
    #[arg(value_name = "POD", conflicts_with = "files")]
    pod: Option<String>,
    /// Who calls: NAMESPACE/SERVICEACCOUNT, a principal or a SPIFFE ID.
    #[arg(long, value_name = "IDENTITY", requires = "pod", group = "caller")]
    from: Option<String>,
    /// The caller has no sidecar, and comes in plaintext.
    #[arg(long, requires = "pod", conflicts_with = "from", group = "caller")]
    from_plaintext: bool,
    #[command(flatten)]
    call: Call,
    /// File or folder with the AuthorizationPolicies, and what else decides: RequestAuthentications, the ConfigMap
    /// `istio`. Objects of other kinds play no part. `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", num_args = 1.., requires = "request")]
    files: Vec<PathBuf>,
    /// File with the requests to decide, as JSON; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "files")]
    request: Option<PathBuf>,
    /// Namespace of a POD that names none, and of policies in files that name none.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Offline: trust domain of the mesh; else that of the ConfigMap, else cluster.local.
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Offline: another trust domain that counts as the mesh's own. May be given several times.
    #[arg(long = "trust-domain-alias", value_name = "DOMAIN")]
    trust_domain_aliases: Vec<String>,
    /// Namespace of mesh-wide policy; else that of the ConfigMap, else istio-system.
    #[arg(short = 'i', long = "istioNamespace", alias = "root-namespace", value_name = "NAMESPACE")]
    root_namespace: Option<String>,
    /// File with a token to verify as the workload would; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "pod", conflicts_with = "jwt")]
    token: Option<PathBuf>,
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

/// A request on the command line.
#[derive(Debug, clap::Args)]
#[group(multiple = true, requires = "pod")]
pub(crate) struct Call {
    /// Port of the workload (not of a Service); needed where it has several.
    #[arg(long, requires = "caller")]
    port: Option<u16>,
    /// Method of the request.
    #[arg(long, requires = "caller", default_value = "GET", hide_default_value = true)]
    method: String,
    /// Path of the request.
    #[arg(long, requires = "caller", default_value = "/", hide_default_value = true)]
    path: String,
    /// Host of the request; else that of the port's Service.
    #[arg(long, requires = "caller")]
    host: Option<String>,
    /// A header of the request, `NAME: VALUE`. May be given several times.
    #[arg(long = "header", requires = "caller", value_name = "HEADER", value_parser = question::header)]
    headers: Vec<(String, String)>,
    /// Claims of a token that counts as verified: JSON, or a file with it.
    #[arg(long, requires = "caller", value_name = "FILE_OR_JSON")]
    jwt: Option<String>,
    /// The caller's address.
    #[arg(long, requires = "caller", value_name = "ADDRESS")]
    source_ip: Option<IpAddr>,
    /// Opaque bytes in place of a request.
    #[arg(long, requires = "caller")]
    tcp: bool,
}

pub(crate) async fn run(args: AuthzArgs) -> Result<Outcome> {
    let Command::Check(args) = args.command;
    check(*args).await
}

/// `authz check`, also as `x authz check`.
pub(crate) async fn check(args: CheckArgs) -> Result<Outcome> {
    match (&args.pod, &args.request) {
        (Some(pod), _) if args.from.is_some() || args.from_plaintext => question::run(&args, pod).await,
        (Some(pod), _) if args.token.is_some() => token::run(&args, pod).await,
        (Some(pod), _) => listing::run(&args, pod).await,
        (None, Some(request)) => offline::run(&args, request),
        (None, None) => bail!(
            "name a workload (authz check POD.NAMESPACE), or policies and requests (-f POLICIES.yaml --request \
             REQUESTS.json)"
        ),
    }
}

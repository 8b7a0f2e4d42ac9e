//! `maille x describe`: a Pod or Service, and what the mesh makes of it (reference cli 1.4).

mod facts;
mod pod;
mod ports;
mod security;
mod sidecar;
mod tokens;

use anyhow::{Result, ensure};

use super::admin::{self, MeshArgs};
use crate::Outcome;
use crate::client::Api;
use crate::output::out;

/// Describes a Pod or a Service: its ports as the mesh understands them, the rules that concern it, the mutual TLS that
/// is in force, the tokens that it takes, the policies that apply, and what a plaintext caller gets.
///
/// What is in force comes from the proxy itself. Where the objects of the API say something else, the proxy is stale,
/// and a WARNING says so. Exit code 1 if there is a WARNING; called as istioctl 0.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DescribeArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Describe a Pod: NAME[.NAMESPACE], or TYPE/NAME for the first of its Pods
    #[command(visible_alias = "po")]
    Pod(OneArgs),
    /// Describe a Service: NAME[.NAMESPACE]
    #[command(visible_alias = "svc")]
    Service(OneArgs),
}

#[derive(Debug, clap::Args)]
struct OneArgs {
    /// Name, and namespace behind the last dot.
    name: String,
    /// Go on for Pods without a sidecar.
    #[arg(long = "ignoreUnmeshed", alias = "ignore-unmeshed")]
    ignore_unmeshed: bool,
    /// Port of the admin page inside of the Pod.
    #[arg(long, value_name = "PORT", default_value_t = maille_core::ports::ADMIN)]
    proxy_admin_port: u16,
    #[command(flatten)]
    mesh: MeshArgs,
}

pub(crate) async fn run(args: DescribeArgs) -> Result<Outcome> {
    let mut report = Report::default();
    match args.what {
        What::Pod(args) => {
            let api = Api::connect(&args.mesh.api).await?;
            let pod = admin::find_pod(&api, &args.name, args.mesh.namespace()).await?;
            let facts = facts::Facts::read(&api, &args.mesh.istio_namespace, &pod.namespace).await?;
            pod::describe(&api, &facts, &pod, args.proxy_admin_port, args.ignore_unmeshed, &mut report)
                .await?;
        }
        What::Service(args) => {
            let api = Api::connect(&args.mesh.api).await?;
            let named = admin::parse_named(&args.name)?;
            ensure!(
                named.kind.is_none(),
                "'{}' is no name of a Service; write NAME or NAME.NAMESPACE",
                args.name
            );
            let namespace = admin::namespace_of(&api, &named, args.mesh.namespace())?;
            let facts = facts::Facts::read(&api, &args.mesh.istio_namespace, &namespace).await?;
            pod::describe_service(&api, &facts, &named.name, &namespace, args.proxy_admin_port, &mut report)
                .await?;
        }
    }
    let fine = report.warnings == 0 || crate::called::as_istioctl();
    Ok(if fine { Outcome::Fine } else { Outcome::NotFine })
}

/// What is printed, with a count of the warnings in it.
#[derive(Debug, Default)]
struct Report {
    warnings: usize,
}

impl Report {
    fn line(&mut self, text: impl std::fmt::Display) {
        out!("{text}");
    }

    fn warn(&mut self, indent: &str, text: impl std::fmt::Display) {
        self.warnings += 1;
        out!("{indent}WARNING: {text}");
    }

    fn separate(&mut self) {
        out!("--------------------");
    }
}

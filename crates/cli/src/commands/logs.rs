//! `maille logs`: what a container wrote.

use std::io::Write;

use anyhow::Result;

use crate::Outcome;
use crate::client::{Api, ApiArgs, NamespaceArgs};

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Pod, or deploy/NAME, statefulset/NAME, job/NAME … for its newest Pod; without -n, NAME.NAMESPACE too.
    pod: String,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// Container; the Pod's first that is no sidecar, unless given.
    #[arg(short = 'c', long)]
    container: Option<String>,
    /// Go on printing what is written.
    #[arg(short = 'f', long)]
    follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// The container's previous run.
    #[arg(short = 'p', long)]
    previous: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(crate) async fn run(args: LogsArgs) -> Result<Outcome> {
    let api = Api::connect(&args.api).await?;
    let super::exec::Picked { namespace, pod, container } =
        super::exec::pick(&api, &args.namespace, &args.pod, args.container.as_deref()).await?;
    let mut path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}");
    if args.follow {
        path.push_str("&follow=true");
    }
    if args.previous {
        path.push_str("&previous=true");
    }
    if let Some(lines) = args.tail {
        path.push_str(&format!("&tailLines={lines}"));
    }
    let mut stdout = std::io::stdout().lock();
    let printed = api
        .stream(&path, |bytes| {
            stdout.write_all(bytes)?;
            Ok(stdout.flush()?)
        })
        .await;
    printed?;
    Ok(Outcome::Fine)
}

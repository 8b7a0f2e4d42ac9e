//! `maille proxy-config`: what a running proxy lives by, in Envoy's shapes.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct ProxyConfigArgs {}

pub(crate) async fn run(_args: ProxyConfigArgs) -> Result<Outcome> {
    bail!("not built yet")
}

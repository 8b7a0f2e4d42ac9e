//! `maille proxy-status`: which proxies hold which facts.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct ProxyStatusArgs {}

pub(crate) async fn run(_args: ProxyStatusArgs) -> Result<Outcome> {
    bail!("not built yet")
}

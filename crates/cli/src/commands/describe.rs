//! `maille x describe`: a Pod or Service, and what the mesh makes of it.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArgs {}

pub(crate) async fn run(_args: DescribeArgs) -> Result<Outcome> {
    bail!("not built yet")
}

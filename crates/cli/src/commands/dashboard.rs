//! `maille dashboard`: the page that shows who talks to whom.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct DashboardArgs {}

pub(crate) async fn run(_args: DashboardArgs) -> Result<Outcome> {
    bail!("not built yet")
}

//! `maille x …`: describe, authz check.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct ExperimentalArgs {}

pub(crate) async fn run(_args: ExperimentalArgs) -> Result<Outcome> {
    bail!("not built yet")
}

//! `maille analyze`: mistakes in the configuration, with Istio's codes.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct AnalyzeArgs {}

pub(crate) async fn run(_args: AnalyzeArgs) -> Result<Outcome> {
    bail!("not built yet")
}

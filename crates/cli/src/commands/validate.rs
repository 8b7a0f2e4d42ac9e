//! `maille validate`: whether files hold valid objects.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {}

pub(crate) async fn run(_args: ValidateArgs) -> Result<Outcome> {
    bail!("not built yet")
}

//! `maille authz check`: what policy decides, offline and on a running Pod.

use anyhow::{Result, bail};

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct AuthzArgs {}

pub(crate) async fn run(_args: AuthzArgs) -> Result<Outcome> {
    bail!("not built yet")
}

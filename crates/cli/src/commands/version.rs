//! `maille version`.

use anyhow::Result;
use serde_json::json;

use crate::Outcome;
use crate::output::out;

#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// Form of the output.
    #[arg(short = 'o', long, value_parser = ["json"])]
    output: Option<String>,
}

pub(crate) fn run(args: &VersionArgs) -> Result<Outcome> {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        Some(_) => out!("{}", serde_json::to_string_pretty(&json!({"clientVersion": {"version": version}}))?),
        None => out!("maille {version}"),
    }
    Ok(Outcome::Fine)
}

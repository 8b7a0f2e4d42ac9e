//! `maille ca`: the authority, whom it trusts and is trusted by, and what it has signed.

pub(crate) mod asking;
pub(crate) mod described;
mod issued;
mod revoke;
pub(crate) mod roots;
mod rotate;
pub(crate) mod rotation;
pub(crate) mod serving;
pub(crate) mod status;

use anyhow::Result;

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct CaArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what signs, what is trusted, how far a rotation is, and who is revoked
    Status(status::StatusArgs),
    /// Print the roots that the mesh distributes
    Roots(roots::RootsArgs),
    /// Show which certificates were issued and refused lately, to whom and by which proof
    Issued(issued::IssuedArgs),
    /// Take a workload's right away before its certificate ends, or give it back
    Revoke(revoke::RevokeArgs),
    /// Replace the authority, step by step, without losing a call
    Rotate(rotate::RotateArgs),
}

pub(crate) async fn run(args: CaArgs) -> Result<Outcome> {
    match args.command {
        Command::Status(args) => status::run(args).await,
        Command::Roots(args) => roots::run(args).await,
        Command::Issued(args) => issued::run(args).await,
        Command::Revoke(args) => revoke::run(args).await,
        Command::Rotate(args) => rotate::run(args).await,
    }
}

//! The project's own commands.
//!
//! `cargo xtask demo` builds Maille and starts the demo mesh; `cargo xtask test` runs every check that
//! CI runs. Both first install what they need, say what that is, and can be run any number of times.

#![forbid(unsafe_code)]

mod checks;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [ARG…]   build Maille and run `maille up --demo ARG…` (try --check, --detach)
  test          everything CI checks: lint, unit tests, end-to-end tests
  lint          formatting, clippy, licenses and sources of dependencies
  unit          the tests of every crate
  e2e [NAME…]   the end-to-end tests, or those whose name contains NAME
  bench         requests through two sidecars beside a direct connection and Envoy
  bench policies  what 5,000 policies cost beside one
  soak [S]      load for S seconds (600) while Pods, policies and certificates change
  fuzz [S]      each fuzz target for S seconds (60), with nightly Rust and cargo-fuzz
  setup         install what the above need";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let outcome = match command {
        "demo" => demo(rest),
        "test" => test(),
        "lint" => checks::lint(),
        "unit" => checks::unit(),
        "e2e" => checks::end_to_end(rest),
        "bench" => checks::bench(rest),
        "soak" => checks::soak(rest),
        "fuzz" => checks::fuzz(rest),
        "setup" => tools::install(tools::Wanted::Everything),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => Err(anyhow::anyhow!("there is no command '{other}'\n\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &[String]) -> Result<()> {
    tools::install(tools::Wanted::Demo)?;
    let binary = build_maille(Profile::Demo)?;
    run(Command::new(binary).args(["up", "--demo"]).args(arguments))
}

fn test() -> Result<()> {
    let started = Instant::now();
    tools::install(tools::Wanted::Everything)?;
    checks::lint()?;
    checks::unit()?;
    checks::end_to_end(&[])?;
    println!("xtask: all checks passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// How a binary is optimized.
#[derive(Clone, Copy)]
enum Profile {
    /// Enough to try it and to test it, linked in seconds.
    Demo,
    /// As it is shipped: with link-time optimization, which is worth a sixth of the CPU of a request and takes minutes.
    Release,
}

/// Builds the binary and answers its path.
fn build_maille(profile: Profile) -> Result<PathBuf> {
    let name = match profile {
        Profile::Demo => "demo",
        Profile::Release => "release",
    };
    step(&format!("building maille (profile {name})"));
    run(cargo().args(["build", "--profile", name, "--package", "maille-cli", "--bin", "maille"]))?;
    Ok(target_dir().join(name).join("maille"))
}

/// A cargo of the same toolchain, at the workspace root.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The workspace's root folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Runs a command with this terminal; anything but success is an error that names it.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        bail!("`{name} {}` ended with {status}", arguments.join(" "));
    }
    Ok(())
}

fn step(what: &str) {
    println!("xtask: {what}");
}

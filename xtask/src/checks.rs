//! What CI checks, step by step.

use anyhow::Result;

use crate::{build_maille, cargo, run, step, tools};

/// Formatting, clippy with warnings as errors, dependency licenses, bans and sources.
pub(crate) fn lint() -> Result<()> {
    step("formatting");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    step("licenses, bans and sources of dependencies");
    run(std::process::Command::new(tools::cargo_deny()).current_dir(crate::root()).args([
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))?;
    step("clippy");
    run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// The tests of every crate, in the development profile.
pub(crate) fn unit() -> Result<()> {
    step("tests of the crates");
    run(cargo()
        .args(["test", "--quiet", "--workspace", "--exclude", "maille-e2e"])
        .env("MAILLE_KUBECTL", tools::kubectl())
        .env("MAILLE_ENVOY", tools::envoy()))
}

/// The end-to-end tests, on the binary that the demo runs.
pub(crate) fn end_to_end(names: &[String]) -> Result<()> {
    let binary = build_maille()?;
    step("end-to-end tests");
    run(cargo()
        .args(["test", "--quiet", "--package", "maille-e2e", "--"])
        .args(names)
        .env("MAILLE_BIN", binary)
        .env("MAILLE_KUBECTL", tools::kubectl()))
}

/// Side-by-side figures; reports, never asserts.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    tools::install(tools::Wanted::Everything)?;
    let binary = build_maille()?;
    run(std::process::Command::new("python3")
        .arg(crate::root().join("bench/sidecars.py"))
        .args(arguments)
        .env("MAILLE_BIN", binary))
}

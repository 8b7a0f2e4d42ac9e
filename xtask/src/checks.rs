//! What CI checks, step by step.

use anyhow::{Context, Result, bail};

use crate::{Profile, build_maille, cargo, run, step, tools};

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
        .args(["test", "--quiet", "--no-fail-fast", "--workspace", "--exclude", "maille-e2e"])
        .env("MAILLE_KUBECTL", tools::kubectl())
        .env("MAILLE_ENVOY", tools::envoy()))
}

/// The end-to-end tests, on the binary that the demo runs.
pub(crate) fn end_to_end(names: &[String]) -> Result<()> {
    in_end_to_end(names, &[])
}

fn in_end_to_end(names: &[String], settings: &[(&str, String)]) -> Result<()> {
    let binary = build_maille(Profile::Demo)?;
    step("end-to-end tests");
    run(cargo()
        .args(["test", "--quiet", "--package", "maille-e2e", "--"])
        .args(names)
        .env("MAILLE_BIN", binary)
        .env("MAILLE_KUBECTL", tools::kubectl())
        .env("MAILLE_ENVOY", tools::envoy())
        .env("MAILLE_PYTHON_LIBRARIES", tools::python_libraries())
        .envs(settings.iter().map(|(name, value)| (name, value))))
}

/// The scenarios under load, for longer than the tests run them.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    let seconds: u32 = match arguments.first() {
        Some(text) => text.parse().with_context(|| format!("'{text}' is no number of seconds"))?,
        None => 600,
    };
    tools::install(tools::Wanted::Everything)?;
    step(&format!("load for {seconds} s while everything changes"));
    in_end_to_end(&["nothing_is_lost".to_owned()], &[("MAILLE_SOAK_SECONDS", seconds.to_string())])
}

/// Every fuzz target for so many seconds, one job, starting from the seeds.
pub(crate) fn fuzz(arguments: &[String]) -> Result<()> {
    let seconds: u32 = match arguments.first() {
        Some(text) => text.parse().with_context(|| format!("'{text}' is no number of seconds"))?,
        None => 60,
    };
    let folder = crate::root().join("fuzz");
    let in_fuzz = |arguments: &[&str]| {
        let mut command = std::process::Command::new("cargo");
        // This command's own toolchain is not the one to use.
        command
            .current_dir(&folder)
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["+nightly", "fuzz"]);
        command.args(arguments);
        command
    };
    let targets = in_fuzz(&["list"]).output().context("cannot start cargo")?;
    if !targets.status.success() {
        bail!("fuzzing needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`");
    }
    for target in String::from_utf8_lossy(&targets.stdout).lines() {
        step(&format!("fuzzing {target} for {seconds} s"));
        let (corpus, seeds) = (format!("corpus/{target}"), format!("seeds/{target}"));
        std::fs::create_dir_all(folder.join(&corpus)).context("no folder for the corpus")?;
        let limit = format!("-max_total_time={seconds}");
        run(&mut in_fuzz(&["run", target, &corpus, &seeds, "--", &limit]))?;
    }
    Ok(())
}

/// Side-by-side figures; reports, never asserts. `policies` as first argument: what many policies cost.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    tools::install(tools::Wanted::Everything)?;
    let binary = build_maille(Profile::Release)?;
    let (script, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "policies" => ("bench/policies.py", rest),
        _ => ("bench/sidecars.py", arguments),
    };
    run(std::process::Command::new("python3")
        .arg(crate::root().join(script))
        .args(arguments)
        .env("MAILLE_BIN", binary)
        .env("MAILLE_ENVOY", tools::envoy()))
}

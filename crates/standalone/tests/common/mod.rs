//! A test `main` of one thread per process: namespaces are entered by the process itself, and the sandbox
//! starts the binary it runs in.

pub(crate) mod roles;

use std::process::ExitCode;

/// A test's name and body.
pub(crate) type Test = (&'static str, fn());

/// Runs the tests that the arguments (those of `cargo test`) ask for.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        if !args.iter().any(|arg| arg == "--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED (needs root): {} tests", tests.len());
        return ExitCode::SUCCESS;
    }
    let exact = args.iter().any(|arg| arg == "--exact");
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if exact { f.as_str() == name } else { name.contains(f.as_str()) })
    };
    let mut failed = Vec::new();
    for (name, body) in tests.iter().filter(|(name, _)| wanted(name)) {
        println!("test {name} ...");
        if std::panic::catch_unwind(body).is_err() {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        println!("test result: ok");
        return ExitCode::SUCCESS;
    }
    eprintln!("test result: FAILED: {}", failed.join(", "));
    ExitCode::FAILURE
}

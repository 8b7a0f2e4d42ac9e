//! The one-way arrows of the house: a crate depends only on crates in rows above its own.

use std::collections::BTreeMap;
use std::process::Command;

/// ARCHITECTURE.md's table, row by row. Crates of one row never know each other.
const ROWS: &[&[&str]] = &[
    &["core"],
    &["config", "proto", "pki", "net"],
    &["policy", "tls", "xds", "telemetry", "inject"],
    &["analysis", "envoy", "proxy", "control"],
    &["kube", "apiserver", "standalone", "dashboard"],
    &["cli"],
];

/// Crates for tests only: they may know everything up to row 2 and those before them, and only tests may know them.
const DEVELOPMENT: &[&str] = &["oracle", "testkit", "fuzz"];

#[test]
fn every_arrow_points_to_a_row_above() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .expect("cargo metadata runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let row_of: BTreeMap<&str, usize> = ROWS
        .iter()
        .enumerate()
        .flat_map(|(row, crates)| crates.iter().map(move |name| (*name, row)))
        .collect();

    let position = |name: &str| DEVELOPMENT.iter().position(|other| *other == name);

    let mut wrong = Vec::new();
    let mut seen = 0;
    for package in metadata["packages"].as_array().expect("packages") {
        let Some(name) = package["name"].as_str().and_then(|name| name.strip_prefix("maille-")) else {
            continue;
        };
        if name == "e2e" {
            continue;
        }
        let row = row_of.get(name);
        assert!(row.is_some() || DEVELOPMENT.contains(&name), "crate {name} has no row in the house");
        seen += 1;
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let Some(other) = dependency["name"].as_str().and_then(|name| name.strip_prefix("maille-"))
            else {
                continue;
            };
            // A test may stand two rooms beside each other that never meet in the binary.
            let for_tests = dependency["kind"].as_str() == Some("dev");
            let fits = for_tests
                || match (row, row_of.get(other)) {
                    (Some(own), Some(other)) => other < own,
                    (None, Some(other)) => *other <= 2,
                    (None, None) => position(other) < position(name),
                    (_, None) => false,
                };
            if !fits {
                wrong.push(format!("{name} -> {other}"));
            }
        }
    }
    assert!(seen > 15, "the workspace's crates were not found");
    assert!(wrong.is_empty(), "arrows that do not point up: {}", wrong.join(", "));
}

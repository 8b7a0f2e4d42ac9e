//! Bad YAML is refused with its place and what would be right, and nothing changes.

use std::process::Command;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::mesh::{Mesh, Ran, binary};

/// What is wrong, the YAML, and what the refusal must say: the place, the object, the field, the hint.
struct Case {
    what: &'static str,
    yaml: &'static str,
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        what: "an unknown field",
        yaml: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  mtsl:\n    mode: STRICT\n",
        says: &[":7:3", "PeerAuthentication", "default/bad", "spec.mtsl", "mtls"],
    },
    Case {
        what: "a wrong type",
        yaml: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  rules: yes-please\n",
        says: &[":7:", "AuthorizationPolicy", "default/bad", "spec.rules", "list"],
    },
    Case {
        what: "a bad enum value",
        yaml: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  mtls:\n    mode: STRIKT\n",
        says: &[":8:", "PeerAuthentication", "default/bad", "spec.mtls.mode", "STRICT"],
    },
    Case {
        what: "DENY without rules",
        yaml: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  action: DENY\n",
        says: &["AuthorizationPolicy", "default/bad", "rules", "{}"],
    },
    Case {
        what: "portLevelMtls without selector",
        yaml: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  portLevelMtls:\n    8080:\n      mode: STRICT\n",
        says: &[":7:3", "PeerAuthentication", "default/bad", "portLevelMtls", "selector"],
    },
    Case {
        what: "a bad CIDR",
        yaml: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  rules:\n  - from:\n    - source:\n        ipBlocks: [\"10.0.0.0/33\"]\n",
        says: &[
            ":10:",
            "AuthorizationPolicy",
            "default/bad",
            "spec.rules[0].from[0].source.ipBlocks[0]",
            "10.0.0.0/33",
        ],
    },
    Case {
        what: "a bad port",
        yaml: "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  rules:\n  - to:\n    - operation:\n        ports: [\"http\"]\n",
        says: &[
            ":10:",
            "AuthorizationPolicy",
            "default/bad",
            "spec.rules[0].to[0].operation.ports[0]",
            "65535",
        ],
    },
    Case {
        what: "a duplicate key",
        yaml: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  mtls:\n    mode: STRICT\n  mtls:\n    mode: DISABLE\n",
        says: &[":9:3", "PeerAuthentication", "default/bad", "spec.mtls", "twice", "line 7"],
    },
    Case {
        what: "no YAML",
        yaml: "apiVersion: v1\nkind: [unclosed\n  x: {\n",
        says: &[":3:4", "ML0101", "brackets"],
    },
    Case {
        what: "a good document beside a bad one",
        yaml: "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: bad\n  namespace: default\nspec:\n  mtls:\n    mode: STRICT\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: worse\n  namespace: default\nspec:\n  mtls:\n    mode: strict-ish\n",
        says: &[":17:", "PeerAuthentication", "default/worse", "spec.mtls.mode", "STRICT"],
    },
];

fn explains(case: &Case, ran: &Ran) -> Result<()> {
    ensure!(ran.code != 0, "{} was accepted: {}", case.what, ran.stdout);
    let text = format!("{}{}", ran.stdout, ran.stderr);
    for part in case.says {
        ensure!(
            text.to_lowercase().contains(&part.to_lowercase()),
            "{}: '{part}' is not in\n{text}",
            case.what
        );
    }
    Ok(())
}

pub(crate) fn ten_kinds_through_apply(mesh: &Mesh) -> Result<()> {
    let folder = TempDir::new()?;
    for case in CASES {
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, case.yaml)?;
        let ran = mesh.maille(&["apply", "-f", &file.to_string_lossy()])?;
        ensure!(ran.stderr.contains("bad.yaml"), "{} names no file: {}", case.what, ran.stderr);
        explains(case, &ran)?;
        let left = mesh.kubectl(&[
            "get",
            "peerauthentications,authorizationpolicies",
            "-n",
            "default",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "{} left {left}", case.what);
    }
    Ok(())
}

pub(crate) fn through_up() -> Result<()> {
    let folder = TempDir::new()?;
    for case in CASES {
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, case.yaml)?;
        let ran: Ran = Command::new(binary())
            .args(["up", "--check", "-f"])
            .arg(&file)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .output()?
            .into();
        explains(case, &ran)?;
        ensure!(!folder.path().join("data/kubeconfig").exists(), "{}: a mesh was started", case.what);
    }
    Ok(())
}

pub(crate) fn through_kubectl(mesh: &Mesh) -> Result<()> {
    for (what, field) in [
        ("an unknown field", "spec.mtsl"),
        ("a bad enum value", "spec.mtls.mode"),
        ("DENY without rules", "spec.rules"),
        ("portLevelMtls without selector", "spec.portLevelMtls"),
        ("a bad CIDR", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ("a bad port", "spec.rules[0].to[0].operation.ports[0]"),
    ] {
        let Some(case) = CASES.iter().find(|case| case.what == what) else { continue };
        let ran = mesh.kubectl_ran(&["apply", "-f", "-"], Some(case.yaml))?;
        ensure!(ran.code != 0, "kubectl applied {what}");
        ensure!(ran.stderr.contains(field), "{what}: kubectl does not name {field}: {}", ran.stderr);
    }
    let later = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: later, namespace: default}\nspec: {}\n";
    let ran = mesh.kubectl_ran(&["apply", "-f", "-"], Some(later))?;
    ensure!(
        ran.code != 0 && ran.stderr.contains("not enforced"),
        "a kind that nothing enforces: {}{}",
        ran.stdout,
        ran.stderr
    );
    Ok(())
}

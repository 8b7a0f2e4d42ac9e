//! Being called by the name `istioctl`: its flags, its words for errors, its exit codes; and dumps from files.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The binary under another name, which goes when this does.
struct Link {
    folder: tempfile::TempDir,
}

impl Link {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_maille"), folder.path().join("istioctl"))
            .expect("a link");
        Self { folder }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(self.folder.path().join("istioctl"), arguments)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_string_lossy().into_owned()
    }
}

fn run(binary: PathBuf, arguments: &[&str]) -> Output {
    Command::new(binary)
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env_remove("MAILLE_DATA_DIR")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .expect("it starts")
}

fn maille(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_maille").into(), arguments)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A Maille proxy's dump, as its admin port writes it.
const DUMP: &str = r#"{
  "workload": "production/cart-1",
  "identity": "spiffe://cluster.local/ns/production/sa/cart",
  "facts": {
    "inbound": {
      "mode": "MTLS_MODE_STRICT",
      "ports": [{"port": 8080, "protocol": "PROTOCOL_HTTP", "serviceHostname": "cart.production.svc.cluster.local"}]
    },
    "authorizations": [{
      "namespace": "production", "name": "allow-frontend", "action": "ACTION_ALLOW",
      "rules": [{"from": [{"principals": ["cluster.local/ns/production/sa/frontend"]}]}, {}]
    }]
  },
  "certificates": {"workload": {"chain": ["-----BEGIN CERTIFICATE-----\n"], "obtained": "2026-08-22T15:00:18Z"}}
}"#;

#[test]
fn errors_read_and_end_as_istioctls() {
    let link = Link::new();
    for (arguments, code, named) in [
        (&["frobnicate"][..], 64, "frobnicate"),
        (&["proxy-config", "secret", "x", "--frobnicate"], 64, "--frobnicate"),
        (&["proxy-config", "secret", "x", "-o", "xml"], 1, "\"xml\" not supported"),
        (&["proxy-status", "-o", "xml"], 1, "\"xml\" not supported"),
        (&["proxy-config", "secret"], 1, "name a Pod"),
        (&["proxy-config", "log", "x", "-o", "json"], 1, "not applicable"),
        (&["proxy-config", "log", "x", "--level", "loud"], 1, "loud"),
        (&["proxy-config", "secret", "x", "--data-dir", "/nonexistent"], 1, "maille up"),
        (&["x", "describe", "pod", "x", "--data-dir", "/nonexistent"], 1, "maille up"),
    ] {
        let output = link.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("Error: "), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", stdout(&output));
    }
    assert_eq!(
        maille(&["proxy-config", "secret"]).status.code(),
        Some(2),
        "as maille, 2: it could not do its work"
    );
}

#[test]
fn help_is_no_error() {
    let link = Link::new();
    for arguments in [&["--help"][..], &[], &["proxy-config", "--help"], &["x", "describe", "--help"]] {
        assert_eq!(link.run(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn aliases_and_global_flags_stand_where_istioctl_has_them() {
    let link = Link::new();
    let dump = link.file("dump.json", DUMP);
    for arguments in [
        &["-n", "production", "pc", "l", "--file", &dump, "--port", "15006"][..],
        &["proxy-config", "-c", "/nonexistent", "listeners", "-f", &dump, "--port=15006"],
        &["--context=c", "-i", "istio-system", "proxy-config", "listener", "--port", "15006", "-f", &dump],
    ] {
        let output = link.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        let text = stdout(&output);
        assert!(text.starts_with("ADDRESSES"), "{text}");
        assert!(text.contains("Trans: tls; Addr: *:8080"), "{text}");
        assert!(!text.contains("raw_buffer"), "STRICT takes no plaintext: {text}");
    }
}

#[test]
fn a_pod_and_a_file_exclude_each_other() {
    let link = Link::new();
    let dump = link.file("dump.json", DUMP);
    let output = link.run(&["pc", "secret", "x", "--file", &dump]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not both"), "{}", stderr(&output));
    let other = link.file("other.json", "{\"kind\": \"List\"}");
    let output = link.run(&["pc", "secret", "--file", &other]);
    assert!(
        stderr(&output).contains("other.json") && stderr(&output).contains("configs"),
        "{}",
        stderr(&output)
    );
}

/// What scripts decode, four blanks deep, with the workload's certificate first and no key.
#[test]
fn secrets_are_printed_as_scripts_expect_them() {
    let link = Link::new();
    let dump = link.file("dump.json", DUMP);
    let output = link.run(&["proxy-config", "secret", "-f", &dump, "-o", "json"]);
    assert!(
        stdout(&output).starts_with("{\n    \"dynamicActiveSecrets\": [\n        {\n"),
        "{}",
        stdout(&output)
    );
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let first = &value["dynamicActiveSecrets"][0];
    assert_eq!(first["name"], "default");
    assert_eq!(first["secret"]["tlsCertificate"]["privateKey"]["inlineBytes"], "W3JlZGFjdGVkXQ==");
}

/// The whole dump is Envoy's, and is itself a file to ask.
#[test]
fn the_raw_dump_can_be_asked_again() {
    let link = Link::new();
    let dump = link.file("dump.json", DUMP);
    let raw = link.run(&["pc", "all", "-f", &dump, "-o", "json"]);
    assert!(stdout(&raw).contains("\"dynamic_active_secrets\""), "{}", stdout(&raw));
    let again = link.file("raw.json", &stdout(&raw));
    for section in ["cluster", "listener", "route", "secret", "endpoint"] {
        let (one, other) =
            (link.run(&["pc", section, "-f", &dump]), link.run(&["pc", section, "-f", &again]));
        assert_eq!(stdout(&one), stdout(&other), "{section}");
    }
}

#[test]
fn loaded_policies_are_listed_with_their_rules() {
    let link = Link::new();
    let dump = link.file("dump.json", DUMP);
    let output = link.run(&["x", "authz", "check", "-f", &dump]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines: Vec<Vec<String>> =
        stdout(&output).lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect();
    assert_eq!(
        lines,
        [["ACTION", "AuthorizationPolicy", "RULES"], ["ALLOW", "allow-frontend.production", "2"]]
    );
}

#[test]
fn the_version_is_told_without_a_mesh() {
    let output = Link::new().run(&["version", "--data-dir", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("client version: {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(maille(&["version", "--remote", "--data-dir", "/nonexistent"]).status.code(), Some(2));
    assert_eq!(stdout(&maille(&["version"])), format!("maille {}\n", env!("CARGO_PKG_VERSION")));
}

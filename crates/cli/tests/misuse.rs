//! What the binary says to people who use it wrongly, and how it ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn maille(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maille"))
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .expect("maille starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_bad_file_is_refused_with_its_place_and_exit_code_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.yaml");
    std::fs::write(&file, "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: y}\nspec: {mtls: {mode: STRIKT}}\n")
        .expect("written");
    for command in ["apply", "up"] {
        let output = maille(&[command, "-f", &file.to_string_lossy(), "--data-dir", "/nonexistent"]);
        assert_eq!(output.status.code(), Some(1), "{command}: {}", text(&output));
        assert!(text(&output).contains("bad.yaml:4:"), "{command}: {}", text(&output));
        assert!(text(&output).contains("STRICT"), "{command} says what would be right: {}", text(&output));
    }
}

#[test]
fn a_missing_file_is_named_and_ends_with_2() {
    let output = maille(&["apply", "-f", "/nonexistent/x.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("/nonexistent/x.yaml"), "{}", text(&output));
}

/// CA-20: before anything starts, with what is there, what lacks and what would be right.
#[test]
fn up_refuses_a_folder_that_holds_no_whole_ca() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED (needs root): up_refuses_a_folder_that_holds_no_whole_ca");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (ca, data) = (folder.path().join("ca"), folder.path().join("data"));
    std::fs::create_dir(&ca).expect("a folder");
    let up = || maille(&["up", "--ca-dir", &ca.to_string_lossy(), "--data-dir", &data.to_string_lossy()]);
    let refused = |says: &[&str]| {
        let output = up();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        for says in says {
            assert!(text(&output).contains(says), "{says}: {}", text(&output));
        }
        assert!(!data.exists(), "something was started");
    };
    refused(&["holds no CA", "ca-cert.pem"]);
    std::fs::write(ca.join("ca-key.pem"), "").expect("written");
    refused(&["holds ca-key.pem and lacks ca-cert.pem, root-cert.pem"]);
    std::fs::remove_dir_all(&ca).expect("removed");
    refused(&["cannot read the CA's folder"]);
}

#[test]
fn without_a_mesh_commands_say_how_to_start_one() {
    let output = maille(&["get", "pods", "--data-dir", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("maille up"), "{}", text(&output));
}

#[test]
fn an_unknown_kind_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\n\
         contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n",
    )
    .expect("written");
    let output = maille(&["get", "podz", "--kubeconfig", &kubeconfig.to_string_lossy()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("podz"), "{}", text(&output));
}

#[test]
fn status_without_a_mesh_is_1_and_still_json() {
    let output = maille(&["status", "-o", "json", "--data-dir", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["ready"], false);
    for field in ["kubeconfig", "dashboard", "control_plane", "workloads"] {
        assert!(status.get(field).is_some(), "{field}");
    }
}

/// A reader that has seen enough is no error.
#[test]
fn a_broken_pipe_is_quiet() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_maille"))
        .args(["version", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("maille starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.stderr.is_empty(), "{}", text(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn up_without_root_says_so() {
    if !rustix::process::geteuid().is_root() {
        let output = maille(&["up", "--data-dir", "/nonexistent"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output).contains("root"), "{}", text(&output));
        return;
    }
    // As root: drop to an unprivileged user, who may still read the binary.
    let binary = Path::new(env!("CARGO_BIN_EXE_maille"));
    let folder = tempfile::Builder::new().prefix("maille-cli-").tempdir_in("/var/tmp").expect("a folder");
    let copy = folder.path().join("maille");
    std::fs::copy(binary, &copy).expect("copied");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["up", "--data-dir", "/nonexistent"])
        .output()
        .expect("setpriv starts");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("root"), "{}", text(&output));
}

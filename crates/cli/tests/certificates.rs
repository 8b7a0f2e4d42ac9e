//! The commands about certificates, used wrongly: nothing is written, and what would be right is said.

use std::process::{Command, Output, Stdio};

fn maille(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maille"))
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env_remove("MAILLE_DATA_DIR")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .expect("maille starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A kubeconfig of an API that nobody serves.
fn nowhere(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("kubeconfig");
    std::fs::write(
        &path,
        "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\n\
         contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\ncurrent-context: a\n",
    )
    .expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn what_can_be_refused_is_refused_before_the_mesh_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = nowhere(&folder);
    let empty = folder.path().to_string_lossy().into_owned();
    for (arguments, said) in [
        (vec!["ca", "revoke"], "POD|IDENTITY"),
        (vec!["ca", "revoke", "--serial", "xyz"], "hexadecimal"),
        (vec!["ca", "revoke", "--serial", "a1", "cart"], "cannot be used with"),
        (vec!["ca", "revoke", "spiffe://cluster.local/cart"], "no SPIFFE ID of a workload"),
        (
            vec!["ca", "revoke", "spiffe://cluster.local/ns/a/sa/b", "--before", "soon"],
            "2026-01-31T12:00:00Z",
        ),
        (
            vec!["ca", "revoke", "spiffe://cluster.local/ns/a/sa/b", "--before", "2999-01-31T12:00:00Z"],
            "has not come yet",
        ),
        (vec!["ca", "revoke", "cart", "--undo", "--reason", "x"], "cannot be used with"),
        (vec!["ca", "issued", "spiffe://x"], "no SPIFFE ID of a workload"),
        (vec!["ca", "issued", "--since", "soon"], "30s, 5m or 2h"),
        (vec!["ca", "rotate", "--to", "/nonexistent/ca"], "/nonexistent/ca"),
        (vec!["ca", "rotate", "--to", &empty], "lacks ca-cert.pem, ca-key.pem, root-cert.pem"),
        (vec!["ca", "rotate", "--intermediate"], "--to"),
        (vec!["ca", "rotate", "--rollback", "--dry-run"], "cannot be used with"),
        (vec!["ca", "rotate", "--proceed", "--past", "cart"], "NAMESPACE/POD, as `maille ca status`"),
        (vec!["check", "--fail-on", "note"], "warning"),
        (vec!["check", "--cert-days", "soon"], "no number of days"),
        (vec!["check", "--cert-days", "-1"], "no number of days"),
    ] {
        let mut all = arguments.clone();
        all.extend(["--kubeconfig", &kubeconfig]);
        let output = maille(&all);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(said), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn without_a_mesh_there_is_nothing_to_say_of_its_authority() {
    for arguments in [
        &["ca", "status"] as &[&str],
        &["ca", "roots"],
        &["ca", "issued"],
        &["ca", "rotate"],
        &["check", "--fail-on", "warning"],
    ] {
        let output = maille(&[arguments, &["--data-dir", "/nonexistent"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output).contains("maille up"), "{arguments:?}: {}", text(&output));
    }
}

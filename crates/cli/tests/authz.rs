//! `authz check` on files: the public contract of its JSON, and how it ends.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: production}
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-frontend-to-catalog, namespace: production}
spec:
  selector: {matchLabels: {app: product-catalog}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/production/sa/frontend]}}]
    to: [{operation: {methods: [GET], paths: [/api/v1/products, /api/v1/products/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-from-untrusted, namespace: production}
spec:
  action: DENY
  rules: [{from: [{source: {namespaces: [development, testing]}}]}]
---
# Objects of other kinds play no part.
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: x}
";

fn check(policies: &str, request: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("policies.yaml");
    std::fs::write(&file, policies).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_maille"))
        .args(["authz", "check", "-f"])
        .arg(&file)
        .args(["--request", "-"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // A program that ends without reading is judged by its exit code.
    let _ = child.stdin.take().expect("standard input").write_all(request.as_bytes());
    child.wait_with_output().expect("ends")
}

fn answers(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn answers_have_the_contracts_shape_and_order() {
    let catalog = json!({"namespace": "production", "labels": {"app": "product-catalog"}});
    let from = |account: &str, namespace: &str| format!("cluster.local/ns/{namespace}/sa/{account}");
    let requests = json!([
        {"workload": catalog, "request": {"source_principal": from("frontend", "production"), "source_ip": "10.0.0.1",
            "remote_ip": "10.0.0.1", "destination_ip": "10.0.0.2", "destination_port": 8080, "protocol": "http",
            "method": "GET", "host": "product-catalog", "path": "/api/v1/products/1",
            "headers": {"x-a": ["1", "2"], "x-b": "3"}, "sni": null, "jwt": null}},
        {"workload": catalog, "request": {"source_principal": from("cart", "production"), "method": "GET"}},
        {"workload": catalog, "request": {"source_principal": from("dev-service", "development"), "jwt": {"iss": "a"}}},
        {"workload": {"namespace": "legacy"}, "request": {"protocol": "tcp"}},
    ]);
    let output = check(POLICIES, &requests.to_string(), &["-o", "json"]);
    let answers = answers(&output);
    let without_reasons: Vec<Value> = answers
        .as_array()
        .expect("a list")
        .iter()
        .map(|answer| {
            assert!(answer["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{answer}");
            let mut answer = answer.clone();
            answer.as_object_mut().expect("an object").remove("reason");
            answer
        })
        .collect();
    assert_eq!(
        json!(without_reasons),
        json!([
            {"allowed": true, "action": "ALLOW", "policy": "production/allow-frontend-to-catalog", "rule": 0},
            {"allowed": false, "action": "NONE", "policy": null, "rule": null},
            {"allowed": false, "action": "DENY", "policy": "production/deny-from-untrusted", "rule": 0},
            {"allowed": true, "action": "NONE", "policy": null, "rule": null},
        ])
    );
    assert_eq!(output.status.code(), Some(1), "something is refused");
    assert_eq!(err(&output), "", "nothing to say beside the answer");
}

#[test]
fn one_object_is_one_question_and_all_allowed_is_0() {
    let output = check(POLICIES, r#"{"workload": {"namespace": "legacy"}}"#, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(answers(&output).as_array().map(Vec::len), Some(1));
    let empty = check(POLICIES, "[]", &["-o", "json"]);
    assert_eq!((empty.status.code(), answers(&empty)), (Some(0), json!([])));
}

#[test]
fn the_human_form_has_a_block_for_each_request() {
    let output = check(
        POLICIES,
        r#"[{"workload": {"namespace": "production"}, "request": {"method": "GET", "path": "/x"}}]"#,
        &[],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "1. REFUSED",
        "namespace production",
        "plaintext, no identity",
        "GET /x",
        "no ALLOW rule matches",
        "0 allowed, 1 refused",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn mistakes_in_requests_are_named_with_their_place() {
    for (request, message) in [
        ("[\n{\"request\": {\"verb\": \"GET\"}}]", "<stdin>:2:19: request 1: unknown field `verb`"),
        ("{\"request\": {\"destination_port\": \"http\"}}", "destination_port: invalid type"),
        ("{\"request\": {\"source_principal\": \"frontend\"}}", "is no principal"),
        ("nonsense", "<stdin>:1:"),
    ] {
        let output = check(POLICIES, request, &["-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{request}");
        assert!(err(&output).contains(message), "{request}: {}", err(&output));
        assert!(output.stdout.is_empty(), "{request}");
    }
}

#[test]
fn policies_that_cannot_be_judged_are_refused_with_their_place() {
    let rule = |rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n  rules:\n  - {rule}\n"
        )
    };
    for (policies, message) in [
        (rule("from: [{source: {requestPrincipals: [\"*\"]}}]"), "policies.yaml:6:"),
        (rule("from: [{source: {princpals: [\"*\"]}}]"), "did you mean 'principals'?"),
        (rule("to: [{operation: {ports: [http]}}]"), "policies.yaml:6:"),
        ("a: [".to_owned(), "policies.yaml:"),
    ] {
        let output = check(&policies, "{}", &["-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{policies}");
        assert!(err(&output).contains(message), "{policies}: {}", err(&output));
    }
    let jwt = check(&rule("from: [{source: {requestPrincipals: [\"*\"]}}]"), "{}", &[]);
    assert!(err(&jwt).contains("requestPrincipals"), "{}", err(&jwt));
}

#[test]
fn a_question_needs_policies_or_a_workload() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_maille")).args(["authz", "check"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("--request"), "{}", err(&output));
}

#[test]
fn a_request_of_nobody_is_no_question() {
    for more in [&["--method", "GET"][..], &["--port", "9090"], &["--tcp"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maille"));
        let output =
            command.args(["authz", "check", "pod.production"]).args(more).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(err(&output).contains("--from-plaintext"), "{more:?}: {}", err(&output));
    }
}

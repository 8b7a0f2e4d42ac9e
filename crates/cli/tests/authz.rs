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
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name}\nspec:\n  rules:\n  - {rule}\n",
            name = "{name: p, namespace: a}"
        )
    };
    for (policies, message) in [
        (rule("from: [{source: {princpals: [\"*\"]}}]"), "did you mean 'principals'?"),
        (rule("to: [{operation: {ports: [http]}}]"), "policies.yaml:6:"),
        (rule("when: [{key: \"experimental.envoy.filters.a[b]\", values: [x]}]"), "policies.yaml:6:"),
        ("a: [".to_owned(), "policies.yaml:"),
    ] {
        let output = check(&policies, "{}", &["-o", "json"]);
        assert_eq!(output.status.code(), Some(2), "{policies}");
        assert!(err(&output).contains(message), "{policies}: {}", err(&output));
    }
}

const TOKENS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec:
  rules:
  - from: [{source: {requestPrincipals: [\"https://idp/*\"]}}]
    when: [{key: \"request.auth.claims[roles]\", values: [admin]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: idp, namespace: shop}
spec: {jwtRules: [{issuer: \"https://idp\", jwksUri: \"https://idp/keys\", spaceDelimitedClaims: [roles]}]}
";

#[test]
fn claims_of_a_request_count_as_verified() {
    let asked = |jwt: Value| json!({"workload": {"namespace": "shop"}, "request": {"jwt": jwt}});
    let requests = json!([
        asked(json!({"iss": "https://idp", "sub": "u", "roles": "user admin"})),
        asked(json!({"iss": "https://other", "sub": "u", "roles": "admin"})),
        asked(Value::Null),
    ]);
    let output = check(TOKENS, &requests.to_string(), &["-o", "json"]);
    let allowed: Vec<bool> = answers(&output)
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|answer| answer["allowed"].as_bool())
        .collect();
    assert_eq!(allowed, [true, false, false], "{}", err(&output));
    let people = check(TOKENS, &requests.to_string(), &[]);
    let text = String::from_utf8_lossy(&people.stdout).into_owned();
    assert!(text.contains("token of https://idp/u"), "{text}");
    // The nearest rule, and what of it failed first.
    assert!(text.contains("shop/users"), "{text}");
}

/// A mesh with another trust domain, and one extension provider.
const MESH: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: td-new
    trustDomainAliases: [td-old]
    rootNamespace: policies
    extensionProviders:
    - name: opa
      envoyExtAuthzGrpc: {service: opa.auth.svc.cluster.local, port: 9191}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: base, namespace: policies}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admin, namespace: shop}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [\"/admin*\"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try, namespace: shop, annotations: {istio.io/dry-run: \"true\"}}
spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
";

#[test]
fn the_meshs_configuration_among_the_files_counts() {
    let asked = |domain: &str, method: &str, path: &str| {
        json!({"workload": {"namespace": "shop"}, "request": {
            "source_principal": format!("{domain}/ns/shop/sa/web"), "method": method, "path": path}})
    };
    let requests = json!([
        asked("td-old", "GET", "/"),
        asked("cluster.local", "GET", "/"),
        asked("td-new", "GET", "/admin/x"),
        asked("td-new", "DELETE", "/"),
    ]);
    let output = check(MESH, &requests.to_string(), &["-o", "json"]);
    let answers = answers(&output);
    let short = |index: usize| {
        let answer = &answers[index];
        json!([answer["allowed"], answer["action"], answer["policy"]])
    };
    assert_eq!(short(0), json!([true, "ALLOW", "policies/base"]), "{}", err(&output));
    assert_eq!(short(1), json!([false, "NONE", null]), "cluster.local stands for the mesh's own domain");
    assert_eq!(short(2), json!([false, "CUSTOM", "shop/admin"]));
    assert_eq!(answers[2]["provider"], "opa");
    assert!(answers[2]["reason"].as_str().is_some_and(|r| r.contains("offline nobody can be asked")));
    assert_eq!(short(3), json!([true, "ALLOW", "policies/base"]));
    assert_eq!(answers[3]["shadow"]["allowed"], false);
    assert_eq!(answers[3]["shadow"]["deny"], json!({"allowed": false, "policy": "shop/try", "rule": 0}));

    let people = check(MESH, &requests.to_string(), &[]);
    let text = String::from_utf8_lossy(&people.stdout).into_owned();
    for part in [
        "UNDECIDED, refused unless the provider says yes: by shop/admin, rule 0 (CUSTOM)",
        "asks provider opa (opa.auth.svc.cluster.local:9191)",
        "dry run   dry-run shop/try rule 0 (DENY) would refuse it",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A flag goes before the configuration.
    let flag = check(MESH, &asked("a.b", "GET", "/").to_string(), &["--trust-domain", "a.b", "-o", "json"]);
    assert_eq!(flag.status.code(), Some(0), "{}", err(&flag));
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let wrong = MESH.replace("port: 9191", "port: 91910");
    let output = check(&wrong, "{}", &["-o", "json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("policies.yaml:12:"), "{}", err(&output));
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

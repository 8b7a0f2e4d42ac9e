//! Tokens, external authorizers, dry runs and the mesh's configuration: the document, and what it leaves out.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::guide;
use crate::mesh::{Mesh, eventually, run_with_input};

const PATIENCE: Duration = Duration::from_secs(20);

const FRONTEND: &str = "production/frontend";

/// The whole of docs/policy.md, in order, on a fresh mesh.
pub(crate) fn the_document_is_true() -> Result<()> {
    guide::document_is_true("docs/policy.md")
}

/// Signs tokens with openssl, and knows nothing of the mesh.
struct Issuer<'a> {
    folder: &'a Path,
}

impl Issuer<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(guide::example("policy/token.sh"));
        command.arg(self.folder).args(arguments);
        let ran = run_with_input(command, None)?;
        ensure!(ran.code == 0, "token.sh {arguments:?}: {}", ran.stderr);
        Ok(ran.stdout.trim().to_owned())
    }

    fn jwks(&self) -> Result<String> {
        self.run(&["jwks"])
    }

    /// A token of this issuer for `sub`, good until 2100.
    fn token(&self, sub: &str) -> Result<String> {
        let claims = json!({"iss": "https://issuer.example", "sub": sub, "exp": 4_102_444_800_u64});
        self.run(&["token", &claims.to_string()])
    }
}

/// A RequestAuthentication for the cart.
fn cart_tokens(rule: &Value) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "e2e-tokens", "namespace": "production"},
        "spec": {"selector": {"matchLabels": {"app": "cart"}}, "jwtRules": [rule]},
    })
    .to_string()
}

/// Waits until the cart answers the frontend with this code.
fn cart_answers(mesh: &Mesh, arguments: &[&str], code: u16) -> Result<String> {
    eventually(PATIENCE, || {
        let (seen, body) = mesh.curl(FRONTEND, &[arguments, &["http://cart/"]].concat())?;
        ensure!(seen == code, "{seen}, not {code}: {body}");
        Ok(body)
    })
}

/// Keys that are replaced take their tokens with them, at once; keys that cannot be had refuse every token and nothing
/// else, and the object says so.
pub(crate) fn keys_are_replaced(mesh: &Mesh) -> Result<()> {
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (first, second) = (Issuer { folder: first.path() }, Issuer { folder: second.path() });
    let inline = |jwks: String| cart_tokens(&json!({"issuer": "https://issuer.example", "jwks": jwks}));
    let bearer = |token: String| format!("authorization: Bearer {token}");
    let (old, new) = (bearer(first.token("ann")?), bearer(second.token("ann")?));

    mesh.apply(&inline(first.jwks()?))?;
    cart_answers(mesh, &["-H", &new], 401)?;
    cart_answers(mesh, &["-H", &old], 200)?;
    mesh.apply(&inline(second.jwks()?))?;
    cart_answers(mesh, &["-H", &old], 401)?;
    cart_answers(mesh, &["-H", &new], 200)?;

    let nowhere = json!({"issuer": "https://issuer.example", "jwksUri": "http://nowhere.auth.svc/jwks.json"});
    mesh.apply(&cart_tokens(&nowhere))?;
    let body = cart_answers(mesh, &["-H", &new], 401)?;
    ensure!(body.starts_with("Jwt"), "the refusal is the token's: {body}");
    cart_answers(mesh, &[], 200)?;
    let conditions = conditions(mesh, "requestauthentication", "e2e-tokens")?;
    ensure!(conditions.contains("nowhere.auth.svc"), "the object does not say what is wrong: {conditions}");

    mesh.kubectl(&["delete", "requestauthentication", "e2e-tokens", "-n", "production"])?;
    cart_answers(mesh, &["-H", "authorization: Bearer nonsense"], 200)?;
    Ok(())
}

/// What an object's status says, once it says anything.
fn conditions(mesh: &Mesh, kind: &str, name: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let path = "jsonpath={.status.conditions}";
        let text = mesh.kubectl(&["get", kind, name, "-n", "production", "-o", path])?;
        ensure!(text.contains("\"status\""), "{kind} {name} has no condition yet: {text}");
        Ok(text)
    })
}

/// A policy for gateways does nothing to Pods, and says that nothing enforces it.
pub(crate) fn targets_are_reported(mesh: &Mesh) -> Result<()> {
    let policy = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: e2e-gateway, namespace: production}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules: [{}]
";
    mesh.apply(policy)?;
    let conditions = conditions(mesh, "authorizationpolicy", "e2e-gateway")?;
    ensure!(conditions.contains("\"False\""), "no condition is false: {conditions}");
    let found = mesh.maille(&["analyze", "-n", "production"])?;
    ensure!(found.stdout.contains("e2e-gateway"), "analyze is silent: {}{}", found.stdout, found.stderr);
    let (code, _) = mesh.curl(FRONTEND, &["http://cart/"])?;
    ensure!(code == 200, "the policy was applied to a Pod: {code}");
    mesh.kubectl(&["delete", "authorizationpolicy", "e2e-gateway", "-n", "production"])?;
    Ok(())
}

fn mesh_config(yaml: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": yaml},
    })
    .to_string()
}

/// Each setting of the mesh takes effect without a restart, and goes when it is taken back.
pub(crate) fn configuration_is_in_force_at_once(mesh: &Mesh) -> Result<()> {
    let before =
        mesh.kubectl(&["get", "configmap", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}"])?;
    // Somewhere outside of the registry: the node's own address space, where nothing answers.
    let unknown = ["-o", "/dev/null", "http://198.51.100.1/"];
    let deny_slashes = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: e2e-slashes, namespace: production}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules: [{to: [{operation: {paths: [/a/b]}}]}]
";
    let mesh_wide = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: e2e-mesh-wide, namespace: development}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules: [{to: [{operation: {paths: [/mesh-wide]}}]}]
";
    mesh.apply(deny_slashes)?;
    mesh.apply(mesh_wide)?;
    let cart = |path: &str| mesh.curl(FRONTEND, &["--path-as-is", &format!("http://cart{path}")]);
    eventually(PATIENCE, || {
        ensure!(cart("/a/b")?.0 == 403, "the policy is not there yet");
        ensure!(cart("/a//b")?.0 == 200, "slashes are merged before anybody said so");
        ensure!(cart("/mesh-wide")?.0 == 200, "a policy of development holds in production");
        Ok(())
    })?;

    mesh.apply(&mesh_config(
        "rootNamespace: development\n\
         outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
         pathNormalization: {normalization: MERGE_SLASHES}\n\
         accessLogFile: /dev/stdout\n\
         accessLogEncoding: JSON\n\
         maille: {explainInResponse: true}\n",
    ))?;
    eventually(PATIENCE, || {
        ensure!(cart("/a//b")?.0 == 403, "slashes are not merged");
        ensure!(cart("/mesh-wide")?.0 == 403, "development is not the root namespace");
        let (code, head) = mesh.curl(FRONTEND, &["-D", "-", "-o", "/dev/null", "http://cart/mesh-wide"])?;
        ensure!(code == 403 && head.contains("x-maille-reason: "), "no reason in the answer: {head}");
        let (code, _) = mesh.curl(FRONTEND, &unknown)?;
        ensure!(code == 502, "an unknown destination answers {code}");
        let logs =
            mesh.maille(&["logs", "deploy/cart", "-n", "production", "-c", "istio-proxy", "--tail", "200"])?;
        let is_logged = |line: &str| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|line| line["response_code"] == 200 && line["method"] == "GET")
        };
        ensure!(logs.stdout.lines().any(is_logged), "no request that went well is logged");
        Ok(())
    })?;

    // What is wrong is refused by name, and what was in force stays.
    let wrong = mesh_config("pathNormalization: {normalization: MERGE}\n");
    let refused = mesh.kubectl_ran(&["apply", "-f", "-"], Some(&wrong))?;
    ensure!(refused.code != 0 && refused.stderr.contains("MERGE_SLASHES"), "{}", refused.stderr);
    ensure!(cart("/a//b")?.0 == 403, "a refused configuration changed something");

    mesh.apply(&mesh_config(&before))?;
    eventually(PATIENCE, || {
        ensure!(cart("/a//b")?.0 == 200 && cart("/mesh-wide")?.0 == 200, "the old configuration is not back");
        Ok(())
    })?;
    for (name, namespace) in [("e2e-slashes", "production"), ("e2e-mesh-wide", "development")] {
        mesh.kubectl(&["delete", "authorizationpolicy", name, "-n", namespace])?;
    }
    Ok(())
}

/// A question in a file is answered as the running mesh answers, for every pair of the shop.
pub(crate) fn offline_answers_are_the_meshs(mesh: &Mesh) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("requests.json");
    let mut questions = Vec::new();
    let mut seen = Vec::new();
    for (target, path) in
        [("cart", "/"), ("orders", "/api/v1/orders/1"), ("product-catalog", "/api/v1/products")]
    {
        for method in ["GET", "DELETE"] {
            let (code, _) = mesh.curl(FRONTEND, &["-X", method, &format!("http://{target}{path}")])?;
            seen.push(code != 403);
            questions.push(json!({
                "workload": {"namespace": "production", "labels": {"app": target}},
                "request": {
                    "source_principal": "cluster.local/ns/production/sa/frontend",
                    "method": method, "path": path, "host": target, "destination_port": 8080,
                },
            }));
        }
    }
    std::fs::write(&file, serde_json::to_string(&questions)?)?;
    let policies = guide::example("shop/05-policies.yaml");
    let request = file.display().to_string();
    let arguments = ["authz", "check", "-f", &policies, "--request", &request, "-o", "json"];
    let ran = mesh.maille(&arguments)?;
    ensure!(ran.code == 1, "some are refused: {}{}", ran.stdout, ran.stderr);
    let answers: Vec<Value> = serde_json::from_str(&ran.stdout).context("authz check prints a list")?;
    let allowed: Vec<bool> = answers.iter().map(|answer| answer["allowed"] == true).collect();
    ensure!(allowed == seen, "offline {allowed:?}, in the mesh {seen:?}");
    ensure!(seen.contains(&true) && seen.contains(&false), "a test that only sees one answer: {seen:?}");
    Ok(())
}

//! Kinds of workloads, and how they begin and end beside a sidecar.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::{Mesh, eventually};

const NAMESPACE: &str = "workloads";
const PATIENCE: Duration = Duration::from_secs(30);

struct Lab<'a> {
    mesh: &'a Mesh,
}

impl<'a> Lab<'a> {
    fn start(mesh: &'a Mesh) -> Result<Self> {
        mesh.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}}})
            .to_string(),
        )?;
        let lab = Self { mesh };
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures");
        let files = ["named.py", "soak.py", "last.py"]
            .map(|name| format!("--from-file={}", fixtures.join(name).display()));
        let create = ["create", "configmap", "programs", "-n", NAMESPACE];
        mesh.kubectl(&[&create[..], &files.each_ref().map(String::as_str)].concat())?;
        // Something to call, which takes its time if asked to.
        for object in [
            service("server", false, "server"),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("server"), "spec": {
                "selector": {"matchLabels": {"app": "server"}},
                "template": template("server", &json!({
                    "terminationGracePeriodSeconds": 10,
                    "containers": [container(&["python3", "/programs/soak.py", "serve"])]}))}}),
        ] {
            mesh.apply(&object.to_string())?;
        }
        mesh.kubectl(&["rollout", "status", "deployment/server", "-n", NAMESPACE, "--timeout=60s"])?;
        Ok(lab)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.mesh.kubectl(&[arguments, &["-n", NAMESPACE]].concat())
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = self.mesh.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE})
}

fn service(name: &str, headless: bool, app: &str) -> Value {
    let mut spec = json!({"selector": {"app": app}, "ports": [{"name": "http", "port": 8080}]});
    if headless {
        spec["clusterIP"] = json!("None");
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(name), "spec": spec})
}

fn container(command: &[&str]) -> Value {
    json!({"name": "main", "image": "tests", "command": command,
        "volumeMounts": [{"name": "programs", "mountPath": "/programs"}]})
}

fn template(app: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["volumes"] = json!([{"name": "programs", "configMap": {"name": "programs"}}]);
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

pub(crate) fn all(mesh: &Mesh) -> Result<()> {
    let lab = Lab::start(mesh)?;
    jobs_end(&lab)?;
    stateful_pods_have_names(&lab)?;
    requests_under_way_are_finished(&lab)?;
    last_words_arrive(&lab)
}

/// A Job whose first act is a call through its sidecar succeeds, and ends although the sidecar would go on for ever; so
/// do those that a CronJob makes. A Job that fails is tried again, and given up.
fn jobs_end(lab: &Lab<'_>) -> Result<()> {
    let job = |line: &str| {
        let mut spec = template(
            "job",
            &json!({"restartPolicy": "Never", "containers": [container(&["sh", "-c", line])]}),
        );
        // Held back until the sidecar serves: otherwise the first call may find nobody (G-30).
        spec["metadata"]["annotations"] =
            json!({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true"});
        json!({"backoffLimit": 1, "template": spec})
    };
    let call = "curl -sS --fail --max-time 5 http://server:8080/";
    let object =
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("calls"), "spec": job(call)});
    lab.mesh.apply(&object.to_string())?;
    lab.kubectl(&["wait", "--for=condition=complete", "job/calls", "--timeout=60s"])
        .with_context(|| lab.kubectl(&["describe", "job,pods"]).unwrap_or_default())?;
    let failed =
        lab.kubectl(&["get", "job", "calls", "-o", "jsonpath={.status.succeeded} {.status.failed}"])?;
    ensure!(matches!(failed.trim(), "1" | "1 0"), "it succeeded and failed so often: {failed}");

    let object = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("fails"), "spec": job("exit 3")});
    lab.mesh.apply(&object.to_string())?;
    lab.kubectl(&["wait", "--for=condition=failed", "job/fails", "--timeout=90s"])?;

    let object = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata("often"),
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": {"spec": job(call)}}});
    lab.mesh.apply(&object.to_string())?;
    lab.kubectl(&["create", "job", "by-hand", "--from=cronjob/often"])?;
    lab.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"])?;
    Ok(())
}

/// Each Pod of a StatefulSet has a name of its own, under which others reach it over mutual TLS.
fn stateful_pods_have_names(lab: &Lab<'_>) -> Result<()> {
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata("db"), "spec": {
        "serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}},
        "template": template("db", &json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [container(&["sh", "-c", "exec python3 /programs/named.py $(hostname)"])]}))}});
    lab.mesh.apply(&service("db", true, "db").to_string())?;
    lab.mesh.apply(&set.to_string())?;
    lab.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    for name in ["db-0", "db-1"] {
        eventually(PATIENCE, || {
            let url = format!("http://{name}.db.{NAMESPACE}.svc.cluster.local:8080/");
            let (code, body) = lab.mesh.curl("workloads/server", &[&url])?;
            ensure!(code == 200 && body.starts_with(name), "{url} answered {code} {body}");
            Ok(())
        })?;
    }
    // STRICT is in force, so an answer means mutual TLS; without a sidecar there is none.
    let ran = lab.mesh.exec(
        "legacy/legacy-client",
        &["curl", "-sS", "--max-time", "5", "http://db-0.db.workloads:8080/"],
    )?;
    ensure!(ran.code != 0, "plaintext was answered: {}", ran.stdout);
    Ok(())
}

/// LC-1: a Pod that is deleted finishes what it has begun; new requests find the others.
fn requests_under_way_are_finished(lab: &Lab<'_>) -> Result<()> {
    let arguments = ["exec", "statefulset/db", "-n", NAMESPACE, "--"];
    let call = ["curl", "-sS", "--max-time", "8", "http://server:8080/slow"];
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut command = lab.mesh.maille_command(&[&arguments[..], &call].concat());
        slow.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        std::thread::sleep(Duration::from_millis(40));
        if slow.len() == 4 {
            lab.kubectl(&["rollout", "restart", "deployment/server"])?;
        }
    }
    for child in slow {
        let output = child.wait_with_output()?;
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(text.trim() == "0", "a request was lost with its Pod: {text}{errors}");
    }
    Ok(())
}

/// An application that ends with its last answer: its sidecar stays until a caller that takes its time has read it.
fn last_words_arrive(lab: &Lab<'_>) -> Result<()> {
    const SIZE: &str = "16000000";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("last"), "spec": {
        "selector": {"matchLabels": {"app": "last"}},
        "template": template("last", &json!({
            "terminationGracePeriodSeconds": 20,
            "containers": [container(&["python3", "/programs/last.py", SIZE])]}))}});
    lab.mesh.apply(&format!("{}\n---\n{deployment}", service("last", false, "last")))?;
    lab.kubectl(&["rollout", "status", "deployment/last", "--timeout=60s"])?;
    let mut caller = lab.mesh.maille_command(&[
        "exec",
        "deploy/server",
        "-n",
        NAMESPACE,
        "--",
        "curl",
        "-sS",
        "--retry",
        "5",
        "--retry-all-errors",
        "--limit-rate",
        "8M",
        "--max-time",
        "30",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}",
        "http://last:8080/",
    ]);
    let caller = caller.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    eventually(PATIENCE, || {
        let seen = lab.kubectl(&["logs", "deploy/last", "-c", "main"])?;
        ensure!(seen.contains("asked"), "the request has not arrived: {seen}");
        Ok(())
    })?;
    lab.kubectl(&["delete", "deployment", "last", "--wait=false"])?;
    let output = caller.wait_with_output()?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(text.trim() == format!("200 {SIZE}"), "the last answer did not arrive: {text} {errors}");
    Ok(())
}

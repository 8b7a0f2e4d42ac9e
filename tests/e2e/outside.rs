//! Destinations that the mesh does not run: what is let out, by which name, and what a `Sidecar` hides.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::guide;
use crate::mesh::{Mesh, eventually};

const NAMESPACE: &str = "outside";
const CLIENT: &str = "outside/client";
const PATIENCE: Duration = Duration::from_secs(20);

/// The whole of docs/traffic.md, in order, on a fresh mesh.
pub(crate) fn the_document_is_true() -> Result<()> {
    guide::document_is_true("docs/traffic.md")
}

/// Two servers without sidecar or Service, and a client whose sidecar answers its DNS questions.
struct Lab<'a> {
    mesh: &'a Mesh,
    one: String,
    two: String,
}

impl<'a> Lab<'a> {
    fn start(mesh: &'a Mesh) -> Result<Self> {
        mesh.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}}})
            .to_string(),
        )?;
        let mut lab = Self { mesh, one: String::new(), two: String::new() };
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/named.py");
        let file = format!("--from-file={}", program.display());
        mesh.kubectl(&["create", "configmap", "programs", "-n", NAMESPACE, &file])?;
        let serve = |name: &str| {
            let line = format!(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
                 -keyout /tmp/key.pem -out /tmp/cert.pem 2>/dev/null; \
                 exec python3 /programs/named.py {name} /tmp/cert.pem /tmp/key.pem"
            );
            json!(["sh", "-c", line])
        };
        for (name, command) in
            [("one", serve("one")), ("two", serve("two")), ("client", json!(["sleep", "infinity"]))]
        {
            mesh.apply(&deployment(name, &command, name == "client").to_string())?;
        }
        for name in ["one", "two", "client"] {
            let deployment = format!("deployment/{name}");
            mesh.kubectl(&["rollout", "status", &deployment, "-n", NAMESPACE, "--timeout=60s"])?;
        }
        lab.one = mesh.pod_ip("outside/one")?;
        lab.two = mesh.pod_ip("outside/two")?;
        Ok(lab)
    }

    /// What a shell line in the client's Pod printed, whatever it came to.
    fn run(&self, line: &str) -> Result<String> {
        let ran = self.mesh.exec(CLIENT, &["timeout", "10", "bash", "-c", line])?;
        Ok(ran.stdout + &ran.stderr)
    }

    fn expect(&self, line: &str, expected: &str) -> Result<()> {
        eventually(PATIENCE, || {
            let seen = self.run(line)?;
            ensure!(seen.contains(expected), "`{line}` printed\n{seen}\nwithout '{expected}'");
            Ok(())
        })
    }

    /// The mesh's configuration with another outbound policy.
    fn outbound_policy(&self, mode: &str) -> Result<()> {
        let held = self.mesh.kubectl(&["get", "configmap", "istio", "-n", "istio-system", "-o", "json"])?;
        let held: Value = serde_json::from_str(&held)?;
        let text = held["data"]["mesh"].as_str().context("no mesh configuration")?;
        let kept = text.split("\noutboundTrafficPolicy:").next().unwrap_or(text).trim_end();
        let next = format!("{kept}\noutboundTrafficPolicy:\n  mode: {mode}\n");
        let patch = json!({"data": {"mesh": next}}).to_string();
        self.mesh.kubectl(&["patch", "configmap", "istio", "-n", "istio-system", "-p", &patch])?;
        Ok(())
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = self.outbound_policy("ALLOW_ANY");
        let _ = self.mesh.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

fn deployment(name: &str, command: &Value, meshed: bool) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {
                "labels": {"app": name, "sidecar.istio.io/inject": meshed.to_string()},
                "annotations":
                    {"proxy.istio.io/config": "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n"},
            },
            "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "tests", "command": command,
                    "volumeMounts": [{"name": "programs", "mountPath": "/programs"}]}],
                "volumes": [{"name": "programs", "configMap": {"name": "programs"}}]}}}})
}

fn networking(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
    .to_string()
}

/// Every row of reference mtls 4.3, SE-15 to SE-17, and a `Sidecar`.
pub(crate) fn all(mesh: &Mesh) -> Result<()> {
    let lab = Lab::start(mesh)?;
    unknown_destinations(&lab)?;
    names_get_addresses(&lab)?;
    a_sidecar_hides(&lab)
}

fn unknown_destinations(lab: &Lab<'_>) -> Result<()> {
    let (tcp, http) =
        (format!("timeout 5 cat < /dev/tcp/{}/5432", lab.one), format!("http://{}:8080/", lab.one));
    let curl = "curl -sS --max-time 5 -o - -w '%{http_code}'";
    // Somebody declares HTTP on this port, so that requests are routed by their host.
    let web = json!({"hosts": ["web.example"], "resolution": "STATIC", "location": "MESH_EXTERNAL",
        "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}],
        "endpoints": [{"address": lab.two}]});
    lab.mesh.apply(&networking("ServiceEntry", "web", &web))?;
    lab.expect(&format!("{curl} -H 'Host: web.example:8080' {http}"), "two / web.example:8080")?;

    // OT-1, OT-2, OT-4: let out as they came.
    lab.expect(&tcp, "one")?;
    lab.expect(&format!("{curl} {http}path"), "one /path")?;
    lab.expect(&format!("{curl} -H 'Host: unknown.example' {http}"), "one / unknown.example")?;
    lab.expect(&format!("{curl} -k https://{}:8443/", lab.one), "one /")?;

    lab.outbound_policy("REGISTRY_ONLY")?;
    // OT-2: an empty 502; the registry's own names go on.
    lab.expect(&format!("{curl} -H 'Host: unknown.example' {http}"), "502")?;
    lab.expect(&format!("{curl} -H 'Host: web.example:8080' {http}"), "two /")?;
    let seen = lab.run(&format!("{curl} -H 'Host: unknown.example' {http}"))?;
    ensure!(seen == "502", "the answer has a body: {seen}");
    // OT-1: nobody takes requests on the next port, so that none is answered.
    let seen = lab.run(&format!("{curl} http://{}:8081/", lab.one))?;
    ensure!(seen.starts_with("000"), "HTTP to an unknown address where nobody has HTTP: {seen}");
    // OT-1, OT-4: accepted and closed.
    let seen = lab.run(&format!("{tcp}; echo ended"))?;
    ensure!(!seen.contains("one") && seen.contains("ended"), "TCP to an unknown address: {seen}");
    let seen = lab.run(&format!("{curl} -k https://{}:8443/", lab.one))?;
    ensure!(!seen.contains("one /") && seen.contains("curl: (35)"), "TLS to an unknown address: {seen}");
    // SE-11: the port is allowed at every address.
    let any = json!({"hosts": ["any.example"], "resolution": "NONE", "location": "MESH_EXTERNAL",
        "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}]});
    lab.mesh.apply(&networking("ServiceEntry", "any", &any))?;
    lab.expect(&tcp, "one")?;
    lab.mesh.kubectl(&["delete", "serviceentry", "any", "-n", NAMESPACE])?;
    eventually(PATIENCE, || {
        let seen = lab.run(&tcp)?;
        ensure!(!seen.contains("one"), "TCP to any address without the entry: {seen}");
        Ok(())
    })?;
    lab.outbound_policy("ALLOW_ANY")?;
    lab.expect(&tcp, "one")
}

/// SE-15 to SE-17: two names, one port, and nobody's DNS knows either.
fn names_get_addresses(lab: &Lab<'_>) -> Result<()> {
    for (name, address) in [("one", &lab.one), ("two", &lab.two)] {
        let spec = json!({"hosts": [format!("db-{name}.corp")], "resolution": "STATIC",
            "location": "MESH_EXTERNAL", "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}],
            "endpoints": [{"address": address}]});
        lab.mesh.apply(&networking("ServiceEntry", name, &spec))?;
    }
    for name in ["one", "two"] {
        lab.expect(&format!("timeout 5 cat < /dev/tcp/db-{name}.corp/5432"), &format!("{name}\n"))?;
        let looked = lab.run(&format!("getent ahostsv4 db-{name}.corp"))?;
        ensure!(looked.starts_with("240.240."), "db-{name}.corp is at {looked}");
        let status =
            ["get", "serviceentry", name, "-n", NAMESPACE, "-o", "jsonpath={.status.addresses[*].value}"];
        let listed = lab.mesh.kubectl(&status)?;
        let address = looked.split_whitespace().next().unwrap_or_default();
        ensure!(listed.split(' ').any(|value| value == address), "{name}: {listed} does not list {address}");
    }
    // Names of the cluster, and of others, are answered as before.
    lab.expect(
        "getent hosts frontend.production.svc.cluster.local",
        "frontend.production.svc.cluster.local",
    )?;
    let seen = lab.run("getent hosts nobody.nowhere.corp; echo $?")?;
    ensure!(seen.trim() == "2", "an unknown name: {seen}");
    Ok(())
}

/// What a `Sidecar` does not list is unknown to its workloads, and what is unknown is refused where it says so.
fn a_sidecar_hides(lab: &Lab<'_>) -> Result<()> {
    let curl = "curl -sS --max-time 5 -o /dev/null -w '%{http_code}' http://frontend.production/";
    lab.expect(curl, "403")?;
    let sidecar = json!({"workloadSelector": {"labels": {"app": "client"}},
        "egress": [{"hosts": ["./*", "istio-system/*"]}],
        "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}});
    lab.mesh.apply(&networking("Sidecar", "client", &sidecar))?;
    // OT-1: what it sees has no HTTP on the port.
    lab.expect(curl, "000")?;
    let other = json!({"hosts": ["other.example"], "resolution": "NONE", "location": "MESH_EXTERNAL",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
    lab.mesh.apply(&networking("ServiceEntry", "other", &other))?;
    // OT-2: now it has.
    lab.expect(curl, "502")?;
    lab.expect("timeout 5 cat < /dev/tcp/db-one.corp/5432", "one\n")?;
    lab.mesh.kubectl(&["delete", "sidecar", "client", "-n", NAMESPACE])?;
    match lab.expect(curl, "403") {
        Ok(()) => Ok(()),
        Err(error) => bail!("after the Sidecar was deleted: {error:#}"),
    }
}

//! Two meshes that believe each other.
//!
//! A standalone mesh is reached by nobody from outside: what a load balancer does in a cluster, a link into the node's
//! network namespace and a relay do here.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::{Mesh, eventually};

const SHOP: &str = "shop";
/// For a bundle that was fetched to be in force everywhere.
const SOON: Duration = Duration::from_secs(60);
/// For a rotation whose new root everybody has.
const ROTATION: &str = "120s";

/// Hands connections on to Pods of a mesh.
struct Relay(Child);

impl Relay {
    fn start(mesh: &Mesh, address: &str, ways: &[String]) -> Result<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/relay.py");
        let mut command = mesh.on_node("python3")?;
        let mut child = command.arg(program).arg(address).args(ways).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output");
        let relay = Self(child);
        let mut line = String::new();
        BufReader::new(output?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the relay said '{line}'");
        Ok(relay)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mesh with a trust domain of its own that is reached at an address.
struct Side {
    // Before the mesh, whose namespace it is in.
    relays: Vec<Relay>,
    mesh: Mesh,
    domain: &'static str,
    address: String,
}

impl Side {
    /// The network has one address for the machine, and one for the mesh.
    fn start(domain: &'static str, network: u8) -> Result<Self> {
        let mesh = Mesh::start(&[])?;
        let (machine, address) =
            (format!("198.51.100.{}", network + 1), format!("198.51.100.{}", network + 2));
        let node = mesh.node_namespace()?;
        let link = format!("m{}e{network}", std::process::id());
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "outside", "netns", &node])?;
        ip(&["address", "add", &format!("{machine}/30"), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        ip(&["-n", &node, "address", "add", &format!("{address}/30"), "dev", "outside"])?;
        ip(&["-n", &node, "link", "set", "outside", "up"])?;
        let mut side = Self { relays: Vec::new(), mesh, domain, address };
        // What was begun with stays an alias for as long as a certificate of it may be in use.
        side.mesh.configure(&format!("trustDomain: {domain}\ntrustDomainAliases: [cluster.local]\n"))?;
        let text =
            side.mesh.kubectl(&["get", "pods", "-n", "istio-system", "-l", "app=istiod", "-o", "json"])?;
        let pods: Value = serde_json::from_str(&text)?;
        let control = pods["items"][0]["status"]["podIP"].as_str().context("no control plane")?.to_owned();
        side.relay(15016, &format!("{control}:15016"))?;
        Ok(side)
    }

    fn relay(&mut self, port: u16, target: &str) -> Result<()> {
        self.relays.push(Relay::start(&self.mesh, &self.address, &[format!("{port}={target}")])?);
        Ok(())
    }

    /// Believes another mesh, whose root was brought here by somebody who is trusted.
    fn believe(&self, other: &Self) -> Result<()> {
        // A control plane is ready a moment before its roots are published.
        let roots = eventually(SOON, || {
            let ran = other.mesh.maille(&["ca", "roots"])?;
            ensure!(
                ran.code == 0 && ran.stdout.contains("BEGIN CERTIFICATE"),
                "{}{}",
                ran.stdout,
                ran.stderr
            );
            Ok(ran.stdout)
        })?;
        let roots: String = roots.lines().map(|line| format!("    {line}\n")).collect();
        self.mesh.configure(&format!(
            "caCertificates:\n- trustDomains: [{}]\n  spiffeBundleUrl: https://{}:15016/\n  pem: |\n{roots}",
            other.domain, other.address
        ))
    }

    /// Fingerprints of the roots of a trust domain that are believed here.
    fn roots_of(&self, domain: &str) -> Result<Vec<String>> {
        let status: Value = serde_json::from_str(&self.mesh.maille(&["ca", "status", "-o", "json"])?.stdout)?;
        let roots = status["trust"][domain].as_array().cloned().unwrap_or_default();
        Ok(roots.iter().filter_map(|root| root["fingerprint"].as_str()).map(str::to_owned).collect())
    }

    fn run(&self, names: &[(&str, &[&str])]) -> Result<()> {
        let labels = json!({"istio-injection": "enabled"});
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP, "labels": labels}});
        self.mesh.apply(&namespace.to_string())?;
        for (name, command) in names {
            let metadata = json!({"name": name, "namespace": SHOP});
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
            let config = "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n";
            let template = json!({
                "metadata": {"labels": {"app": name}, "annotations": {"proxy.istio.io/config": config}},
                "spec": {
                    "serviceAccountName": name, "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "tests", "command": command}],
                },
            });
            let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": template}});
            self.mesh.apply(&format!("{account}\n---\n{deployment}"))?;
        }
        for (name, _) in names {
            let deployment = format!("deployment/{name}");
            self.mesh.kubectl(&["rollout", "status", &deployment, "-n", SHOP, "--timeout=120s"])?;
        }
        Ok(())
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn example(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/federation").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// One mesh's workload calls another mesh's, which lets in that one and no other; and goes on to while the first mesh gets
/// another root.
pub(crate) fn two_meshes() -> Result<()> {
    let (a, mut b) = (Side::start("a.example", 0)?, Side::start("b.example", 4)?);
    let outcome = believe_each_other(&a, &mut b);
    if outcome.is_err() {
        for (side, workload) in [(&a, "frontend"), (&b, "orders")] {
            println!("=== {} ===", side.domain);
            side.mesh.print_diagnosis();
            let log = side.mesh.sidecar_log(&format!("{SHOP}/{workload}"), 15);
            let trust = side.mesh.maille(&["ca", "status"]).map(|ran| ran.stdout).unwrap_or_default();
            println!("--- ca status ---\n{trust}");
            println!("--- sidecar of {workload} ---\n{}", log.unwrap_or_else(|error| error.to_string()));
        }
    }
    outcome
}

fn believe_each_other(a: &Side, b: &mut Side) -> Result<()> {
    a.believe(b)?;
    b.believe(a)?;
    let idle = ["sleep", "infinity"];
    a.run(&[("frontend", &idle), ("other", &idle)])?;
    b.run(&[("orders", &["python3", "-m", "http.server", "8080"])])?;
    b.mesh.apply(&example("b.yaml")?)?;
    let orders = b.mesh.pod_ip("shop/orders")?;
    b.relay(8080, &format!("{orders}:8080"))?;
    // A connection for each request: nothing goes on only because it went on before.
    let each = "trafficPolicy:\n    connectionPool: {http: {maxRequestsPerConnection: 1}}\n";
    let yaml = example("a.yaml")?.replace("ADDRESS", &b.address).replace("trafficPolicy:\n", each);
    a.mesh.apply(&yaml)?;

    let call = |from: &str| a.mesh.curl(&format!("{SHOP}/{from}"), &["http://orders.b.example/"]);
    eventually(SOON, || {
        let (code, body) = call("frontend")?;
        ensure!(code == 200, "the call to the other mesh is answered {code} {body}");
        Ok(())
    })?;
    let (code, body) = call("other")?;
    ensure!(code == 403, "somebody else of the other mesh is answered {code} {body}");
    // Neither is the right name enough without the other mesh's certificate.
    let script =
        "curl -s -o /dev/null -w '%{http_code}' --max-time 5 http://orders:8080/ -H 'Host: orders.b.example'";
    let ran = b
        .mesh
        .on_node("sh")?
        .args(["-c", &script.replace("orders:8080", &format!("{orders}:8080"))])
        .output()?;
    ensure!(String::from_utf8_lossy(&ran.stdout).starts_with("000"), "plaintext is answered: {ran:?}");
    rotates(a, b)
}

/// Rotates a mesh's root, which waits for the other mesh, and goes on once that has the new root too.
fn past_the_others(a: &Side, b: &Side) -> Result<()> {
    let rotate = |more: &[&str]| {
        let ran = a.mesh.maille(&[&["ca", "rotate"], more].concat())?;
        ensure!(ran.code == 0, "{more:?}: {}{}", ran.stdout, ran.stderr);
        Ok(())
    };
    rotate(&["--no-wait"])?;
    eventually(SOON * 2, || {
        let roots = b.roots_of(a.domain)?;
        ensure!(roots.len() == 2, "of {} roots the other mesh believes {roots:?}", a.domain);
        Ok(())
    })?;
    let status: Value = serde_json::from_str(&a.mesh.maille(&["ca", "status", "-o", "json"])?.stdout)?;
    let rotation = &status["rotation"];
    ensure!(rotation["waiting"][0]["name"] == "other-meshes", "the rotation does not wait: {rotation}");
    rotate(&["--proceed", "--past", "other-meshes", "--timeout", ROTATION])
}

/// The caller's mesh gets another root under load.
fn rotates(a: &Side, b: &Side) -> Result<()> {
    let before = b.roots_of(a.domain)?;
    let line = "while [ ! -e /tmp/stop ]; do curl -s -o /dev/null -w '%{http_code}\\n' --max-time 5 \
                http://orders.b.example/; sleep 0.1; done | sort | uniq -c";
    let arguments = ["exec", "deploy/frontend", "-n", SHOP, "--", "timeout", "500", "bash", "-c", line];
    let load = a.mesh.maille_command(&arguments).stdout(Stdio::piped()).spawn()?;
    let started = Instant::now();
    let rotated = past_the_others(a, b);
    let followed = eventually(SOON * 3, || {
        let now = b.roots_of(a.domain)?;
        ensure!(now.len() == 1 && now != before, "the other mesh believes {now:?}, and did {before:?}");
        Ok(())
    });
    a.mesh.exec(&format!("{SHOP}/frontend"), &["touch", "/tmp/stop"])?;
    let calls = String::from_utf8_lossy(&load.wait_with_output()?.stdout).trim().to_owned();
    println!("        calls during {} s: {calls}", started.elapsed().as_secs());
    rotated.with_context(|| calls.clone())?;
    followed.with_context(|| calls.clone())?;
    ensure!(calls.ends_with(" 200") && calls.lines().count() == 1, "calls were answered:\n{calls}");
    Ok(())
}

//! The second address of everything: Pods, Services and names in IPv6, with the same roads, guards and rules.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::{Mesh, eventually};

const NAMESPACE: &str = "dual";
const PATIENCE: Duration = Duration::from_secs(20);
/// Where Pods have their second address.
const PODS: &str = "fd00:10:244::";

struct Lab<'a>(&'a Mesh);

impl<'a> Lab<'a> {
    fn start(mesh: &'a Mesh) -> Result<Self> {
        mesh.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}}})
            .to_string(),
        )?;
        let lab = Self(mesh);
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/named.py");
        let file = format!("--from-file={}", program.display());
        mesh.kubectl(&["create", "configmap", "programs", "-n", NAMESPACE, &file])?;
        let serve = ["python3", "/programs/named.py", "server"];
        let idle = ["sleep", "infinity"];
        for (name, command, meshed) in
            [("server", &serve[..], true), ("client", &idle[..], true), ("naked", &idle[..], false)]
        {
            mesh.apply(&deployment(name, command, meshed).to_string())?;
        }
        for (name, headless) in [("server", false), ("each", true)] {
            mesh.apply(&service(name, headless).to_string())?;
        }
        for name in ["server", "client", "naked"] {
            let deployment = format!("deployment/{name}");
            mesh.kubectl(&["rollout", "status", &deployment, "-n", NAMESPACE, "--timeout=60s"])?;
        }
        Ok(lab)
    }

    fn get(&self, object: &str, path: &str) -> Result<String> {
        let path = format!("jsonpath={{{path}}}");
        Ok(self.0.kubectl(&["get", object, "-n", NAMESPACE, "-o", &path])?.trim().to_owned())
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

fn deployment(name: &str, command: &[&str], meshed: bool) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name, "sidecar.istio.io/inject": meshed.to_string()}},
            "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "tests", "command": command,
                    "volumeMounts": [{"name": "programs", "mountPath": "/programs"}]}],
                "volumes": [{"name": "programs", "configMap": {"name": "programs"}}]}}}})
}

fn service(name: &str, headless: bool) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "selector": {"app": "server"},
            "ports": [{"name": "http", "port": 8080}]}});
    if headless {
        service["spec"]["clusterIP"] = json!("None");
    }
    service
}

pub(crate) fn all(mesh: &Mesh) -> Result<()> {
    if !Path::new("/proc/net/if_inet6").exists() {
        eprintln!("SKIPPED (needs IPv6 in the kernel): dual stack");
        return Ok(());
    }
    let lab = Lab::start(mesh)?;
    everything_has_two_addresses(&lab)?;
    both_families_are_the_same_road(&lab)?;
    rules_hold_in_both(&lab)
}

fn everything_has_two_addresses(lab: &Lab<'_>) -> Result<()> {
    let pod = lab.0.pod("dual/server")?;
    let addresses: Vec<&str> =
        pod["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|ip| ip["ip"].as_str()).collect();
    let [v4, v6] = addresses[..] else { anyhow::bail!("the Pod has the addresses {addresses:?}") };
    ensure!(pod["status"]["podIP"] == v4 && v6.starts_with(PODS), "{addresses:?}");
    let families = lab.get("service/server", ".spec.ipFamilies[*]")?;
    let virtual_addresses = lab.get("service/server", ".spec.clusterIPs[*]")?;
    ensure!(families == "IPv4 IPv6", "the Service has the families {families}");
    let (_, second) = virtual_addresses.split_once(' ').context("one address only")?;
    for (name, wanted) in [("server", second), ("each", v6)] {
        eventually(PATIENCE, || {
            let ran = lab.0.exec("dual/client", &["getent", "ahostsv6", name])?;
            ensure!(ran.stdout.starts_with(&format!("{wanted} ")), "{name} is at {}", ran.stdout);
            Ok(())
        })?;
    }
    Ok(())
}

fn both_families_are_the_same_road(lab: &Lab<'_>) -> Result<()> {
    // The headless name leads to the Pod's own address, in the family that is dialled: the application sees from where
    // its sidecar delivers.
    for (family, peer) in [("-4", "peer=::ffff:127.0.0.6"), ("-6", "peer=::6")] {
        eventually(PATIENCE, || {
            let (code, body) = lab.0.curl("dual/client", &[family, "http://each:8080/"])?;
            ensure!(code == 200 && body.contains(peer), "each, {family}: {code} {body}");
            let (code, body) = lab.0.curl("dual/client", &[family, "http://server:8080/"])?;
            ensure!(code == 200 && body.starts_with("server"), "server, {family}: {code} {body}");
            Ok(())
        })?;
    }
    Ok(())
}

fn rules_hold_in_both(lab: &Lab<'_>) -> Result<()> {
    for family in ["-4", "-6"] {
        // The mesh is STRICT: plaintext is cut off.
        let call = ["curl", "-sS", family, "--max-time", "8", "http://each.dual:8080/"];
        let ran = lab.0.exec("dual/naked", &call)?;
        ensure!(ran.code != 0 && ran.stdout.is_empty(), "naked, {family}: {ran:?}");
    }
    let deny = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "no-v6", "namespace": NAMESPACE},
        "spec": {"action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": [format!("{PODS}/64")]}}]}]}});
    lab.0.apply(&deny.to_string())?;
    for (family, expected) in [("-6", 403), ("-4", 200)] {
        eventually(PATIENCE, || {
            let (code, body) = lab.0.curl("dual/client", &[family, "http://each:8080/"])?;
            ensure!(code == expected, "with a rule about IPv6 addresses, {family}: {code} {body}");
            Ok(())
        })?;
    }
    Ok(())
}

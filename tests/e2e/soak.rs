//! Load while everything around it changes: Pods, policies, certificates, sidecars.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::mesh::{Mesh, eventually};
use crate::rotation::{Operator, is_signed_by_files};

pub(crate) const NAMESPACE: &str = "soak";

/// What a sidecar may have kept after a load, which does not depend on the load's length: 2.5 to 4.9 MB were seen after one
/// minute and after ten.
const KEPT_KIB: u64 = 6 << 10;

/// One minute in the tests; `cargo xtask soak` asks for ten.
fn length() -> Duration {
    let seconds = std::env::var("MAILLE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Servers that come and go, one that stays, and a load in the mesh and beside it.
pub(crate) struct Soak<'a> {
    mesh: &'a Mesh,
    /// By which clocks workloads' sidecars go that do not go by the machine's.
    clocks: Vec<(&'static str, &'a Clock)>,
}

impl<'a> Soak<'a> {
    /// With certificates of this life, as `SECRET_TTL` has it.
    pub(crate) fn start(mesh: &'a Mesh, life: &str) -> Result<Self> {
        Self::start_by(mesh, life, Vec::new())
    }

    /// With sidecars that go by clocks of a test.
    pub(crate) fn start_by(
        mesh: &'a Mesh,
        life: &str,
        clocks: Vec<(&'static str, &'a Clock)>,
    ) -> Result<Self> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"istio-injection": "enabled"}},
        });
        mesh.apply(&namespace.to_string())?;
        let soak = Self { mesh, clocks };
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/soak.py");
        let file = format!("--from-file={}", program.display());
        mesh.kubectl(&["create", "configmap", "programs", "-n", NAMESPACE, &file])?;
        soak.live(life)?;
        Ok(soak)
    }

    /// Starts the workloads with certificates that live for so long.
    fn live(&self, life: &str) -> Result<()> {
        for (name, role, replicas, meshed) in [
            ("changing", "serve", 3, true),
            ("steady", "serve", 1, true),
            ("load", "load", 1, true),
            ("bare-changing", "serve", 3, false),
            ("bare-steady", "serve", 1, false),
            ("bare-load", "load", 1, false),
        ] {
            let clock = self.clocks.iter().find(|(of, _)| *of == name).map(|(_, clock)| *clock);
            for object in workload(name, role, replicas, meshed, life, clock) {
                self.mesh.apply(&object.to_string())?;
            }
        }
        self.settled()
    }

    fn settled(&self) -> Result<()> {
        for name in ["changing", "steady", "load", "bare-changing", "bare-steady", "bare-load"] {
            let deployment = format!("deployment/{name}");
            self.mesh.kubectl(&["rollout", "status", &deployment, "-n", NAMESPACE, "--timeout=120s"])?;
        }
        Ok(())
    }

    /// Starts a load for `length`, or until [`Soak::stop`]; its report comes when it has ended.
    pub(crate) fn load(&self, prefix: &str, length: Duration) -> Result<Child> {
        let seconds = length.as_secs().to_string();
        let target = format!("deploy/{prefix}load");
        let (host, steady) = (format!("{prefix}changing"), format!("{prefix}steady"));
        let program = ["python3", "/programs/soak.py", "load", &host, &seconds, &steady];
        let arguments = [&["exec", &target, "-n", NAMESPACE, "--"][..], &program].concat();
        let mut command = self.mesh.maille_command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start the load")
    }

    /// Ends the load in the mesh.
    pub(crate) fn stop(&self) -> Result<()> {
        let ran = self.mesh.exec(&format!("{NAMESPACE}/load"), &["touch", "/tmp/stop"])?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        Ok(())
    }

    /// Resident memory of the sidecar of the Deployment's first Pod, in KiB, and what of it is its own and not the program's
    /// file's.
    fn resident_kib(&self, name: &str) -> Result<(u64, u64)> {
        let line = "grep -hsE 'VmRSS|RssAnon' /proc/[0-9]*/status | head -2 | awk '{print $2}'";
        let workload = format!("{NAMESPACE}/{name}");
        let ran = self.mesh.exec_in(&workload, Some("istio-proxy"), &["sh", "-c", line])?;
        let figures = ran.stdout.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
        match figures.as_deref() {
            Ok(&[all, own]) => Ok((all, own)),
            _ => anyhow::bail!("{}{}", ran.stdout, ran.stderr),
        }
    }

    /// What the sidecar of the load in the mesh logged in the seconds in which something was lost, but for what went well.
    fn log_of(&self, lost: &[String]) -> String {
        let log = self.mesh.sidecar_log(&format!("{NAMESPACE}/load"), 100_000);
        let log = log.unwrap_or_else(|error| error.to_string());
        let seconds: Vec<_> =
            lost.iter().filter_map(|line| Some(format!("T{}", line.split_whitespace().next()?))).collect();
        let is_of_them = |line: &&str| seconds.iter().any(|second| line.contains(second.as_str()));
        let lines = log.lines().filter(is_of_them).filter(|line| !line.contains(" 200 - "));
        lines.take(20).collect::<Vec<_>>().join("\n")
    }

    /// Something that concerns neither the load nor its servers: another workload's policy, and one more of theirs that
    /// allows what is allowed anyway.
    fn flip(&self, turn: u64) -> Result<()> {
        let policy = |name: &str, app: &str, path: String| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"selector": {"matchLabels": {"app": app}}, "action": "DENY",
                    "rules": [{"to": [{"operation": {"ports": ["8080"], "paths": [path]}}]}]},
            })
        };
        let other = policy("another", "nobody", format!("/{turn}"));
        let own = policy("never-matches", "changing", format!("/never/{turn}"));
        self.mesh.apply(&format!("{other}\n---\n{own}"))
    }
}

impl Drop for Soak<'_> {
    fn drop(&mut self) {
        let _ = self.mesh.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=60s"]);
    }
}

fn workload(
    name: &str,
    role: &str,
    replicas: u32,
    meshed: bool,
    life: &str,
    clock: Option<&Clock>,
) -> Vec<Value> {
    let mut annotations = json!({"proxy.istio.io/config": format!("proxyMetadata:\n  SECRET_TTL: {life}\n")});
    for (annotation, value) in clock.filter(|_| meshed).map(Clock::annotations).into_iter().flatten() {
        annotations[annotation] = value.into();
    }
    let metadata = json!({"name": name, "namespace": NAMESPACE});
    let command = match role {
        "serve" => json!(["python3", "/programs/soak.py", "serve"]),
        _ => json!(["sleep", "infinity"]),
    };
    let mut container = json!({
        "name": "main", "image": "tests", "command": command,
        "volumeMounts": [{"name": "programs", "mountPath": "/programs"}],
    });
    if role == "serve" {
        container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    }
    let template = json!({
        "metadata": {
            "labels": {"app": name, "sidecar.istio.io/inject": meshed.to_string()},
            "annotations": annotations,
        },
        "spec": {
            "serviceAccountName": name, "terminationGracePeriodSeconds": 10, "containers": [container],
            "volumes": [{"name": "programs", "configMap": {"name": "programs"}}],
        },
    });
    let ports = json!([{"name": "http", "port": 8080}, {"name": "tcp", "port": 9000}]);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": {"app": name}, "ports": ports}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}, "template": template}}),
    ]
}

/// What a load reports.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) done: Value,
    pub(crate) lost: Vec<String>,
}

impl Report {
    pub(crate) fn last_lost(&self, count: usize) -> &[String] {
        &self.lost[self.lost.len().saturating_sub(count)..]
    }

    /// Fails if anything was lost, or if next to nothing was done.
    pub(crate) fn nothing_is_lost(&self, during: &str) -> Result<()> {
        println!("        {during}: {}, {} lost", self.done, self.lost.len());
        ensure!(self.lost.is_empty(), "{} lost {during}:\n{}", self.lost.len(), self.lost.join("\n"));
        for what in ["requests", "connections", "turns"] {
            ensure!(self.done[what].as_u64() > Some(20), "the load did next to nothing: {}", self.done);
        }
        Ok(())
    }
}

/// Waits for a load to end.
pub(crate) fn report(load: Child) -> Result<Report> {
    let output = load.wait_with_output()?;
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let seen: Value =
        serde_json::from_str(&text).with_context(|| format!("the load printed {text}{errors}"))?;
    let lost = seen["lost"].as_array().cloned().unwrap_or_default();
    let lost = lost.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Report { done: seen["done"].clone(), lost })
}

/// Pods come and go, policies change every second, certificates live for half a minute, and the CA, which is in files, is
/// replaced by another; nothing is lost that would not be lost without the mesh, and memory does not grow.
pub(crate) fn churn() -> Result<()> {
    let operators = tempfile::tempdir()?;
    let authority = |name: &str| {
        Operator::new(operators.path(), name, &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"])?
            .intermediate("ca")
    };
    let (files, others) = (authority("one")?, authority("other")?);
    let mesh = Mesh::start(&["--demo", "--ca-dir", &files.to_string_lossy()])?;
    // For whoever wants to know what became of a request that was lost.
    mesh.configure("accessLogFile: /dev/stdout\n")?;
    // Certificates that have to be renewed four times a minute.
    let soak = Soak::start(&mesh, "30s")?;
    is_signed_by_files(&mesh, "soak/steady", &files)?;
    // What is opened once and kept belongs to the start.
    report(soak.load("", Duration::from_secs(5))?)?;
    let resident = || Ok::<_, anyhow::Error>([soak.resident_kib("load")?, soak.resident_kib("steady")?]);
    let before = resident()?;
    let length = length();
    let (meshed, bare) = (soak.load("", length)?, soak.load("bare-", length)?);
    let ends = Instant::now() + length;
    let mut turn = 0;
    while Instant::now() < ends {
        let next = Instant::now() + Duration::from_secs(1);
        soak.flip(turn)?;
        if turn % 10 == 2 {
            for name in ["changing", "bare-changing"] {
                mesh.kubectl(&["rollout", "restart", &format!("deployment/{name}"), "-n", NAMESPACE])?;
            }
        }
        if turn == 15 {
            // One after the other, as somebody copies them: for a moment they are no CA.
            for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem", "ca-key.pem"] {
                std::fs::copy(others.join(file), files.join(file))?;
            }
        }
        turn += 1;
        if turn % 60 == 0 {
            println!("        after {turn} s: {:?} KiB resident, of it their own", resident()?);
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (meshed, bare) = (report(meshed)?, report(bare)?);
    println!(
        "        in the mesh: {}, {} lost; without it: {}, {} lost",
        meshed.done,
        meshed.lost.len(),
        bare.done,
        bare.lost.len()
    );
    if !bare.lost.is_empty() {
        println!("        without it: {}", bare.lost.join("; "));
    }
    ensure!(
        meshed.lost.is_empty(),
        "{} lost in the mesh:\n{}\n{}",
        meshed.lost.len(),
        meshed.lost.join("\n"),
        soak.log_of(&meshed.lost)
    );
    ensure!(meshed.done["requests"].as_u64() > Some(500), "the load did next to nothing: {}", meshed.done);
    is_signed_by_files(&mesh, "soak/steady", &others)?;
    eventually(Duration::from_secs(90), || {
        let after = resident()?;
        // The allocator keeps some of what it once had, and code that has run once stays until the kernel wants the room.
        let grew = before.iter().zip(after).any(|((before, _), (after, _))| after > before + KEPT_KIB);
        ensure!(!grew, "memory grew from {before:?} to {after:?} KiB");
        println!(
            "        resident memory of the caller's and the callee's sidecar (and what of it is their own), KiB: \
             {before:?}, then {after:?}"
        );
        Ok(())
    })?;
    slept(&soak)?;
    replaced(&soak)
}

/// The whole mesh stands still, as on a machine that is suspended, until its certificates have ended; then it goes on by
/// itself.
fn slept(soak: &Soak<'_>) -> Result<()> {
    let processes: Vec<_> =
        soak.mesh.pids()?.into_iter().filter_map(rustix::process::Pid::from_raw).collect();
    ensure!(processes.len() > 20, "the mesh has {} processes", processes.len());
    for process in &processes {
        // Some are gone by now.
        let _ = rustix::process::kill_process(*process, rustix::process::Signal::STOP);
    }
    std::thread::sleep(Duration::from_secs(40));
    for process in &processes {
        let _ = rustix::process::kill_process(*process, rustix::process::Signal::CONT);
    }
    eventually(Duration::from_secs(90), || {
        report(soak.load("", Duration::from_secs(4))?)?
            .nothing_is_lost("after a sleep longer than certificates live")
    })
}

/// Every sidecar is replaced by a new process, twice, under the same load: what listens is handed over, and what is open
/// stays where it is.
fn replaced(soak: &Soak<'_>) -> Result<()> {
    let load = soak.load("", Duration::from_secs(25))?;
    for turn in ["1", "2"] {
        std::thread::sleep(Duration::from_secs(6));
        let annotation = format!("maille.dev/replace-sidecar={turn}");
        soak.mesh.kubectl(&["annotate", "pods", "--all", "-n", NAMESPACE, &annotation, "--overwrite"])?;
    }
    report(load)?.nothing_is_lost("while every sidecar was replaced twice")?;
    let events =
        soak.mesh.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"])?;
    let count = events.split(' ').filter(|reason| *reason == "SidecarReplaced").count();
    // Five Pods with a sidecar.
    ensure!(count >= 5, "{count} sidecars were replaced: {events}");
    Ok(())
}

//! What signs and what is trusted is replaced while everything goes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::control_plane_away::{istiod_is_ready, sidecar_pid};
use crate::guide;
use crate::mesh::{Mesh, eventually};
use crate::soak::{self, Soak};

/// A rotation takes a few seconds; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(120);
/// The load ends when it is told to.
const LOAD: Duration = Duration::from_secs(400);

/// `maille ca status -o json`.
fn status(mesh: &Mesh) -> Result<Value> {
    let ran = mesh.maille(&["ca", "status", "-o", "json"])?;
    serde_json::from_str(&ran.stdout)
        .with_context(|| format!("ca status printed {}{}", ran.stdout, ran.stderr))
}

fn phase(mesh: &Mesh) -> Result<String> {
    Ok(status(mesh)?["phase"].as_str().context("no phase")?.to_owned())
}

/// Fingerprints of what is trusted.
fn roots(mesh: &Mesh) -> Result<Vec<String>> {
    let status = status(mesh)?;
    let roots = status["authority"]["roots"].as_array().cloned().unwrap_or_default();
    Ok(roots.iter().filter_map(|root| root["fingerprint"].as_str()).map(str::to_owned).collect())
}

fn signer(mesh: &Mesh) -> Result<String> {
    Ok(status(mesh)?["authority"]["signer"]["fingerprint"].as_str().context("no signer")?.to_owned())
}

/// `maille ca rotate ARGUMENTS…`, to its end.
fn rotate(mesh: &Mesh, arguments: &[&str]) -> Result<()> {
    let command = [&["ca", "rotate", "--timeout", "120"], arguments].concat();
    let ran = mesh.maille(&command)?;
    ensure!(ran.code == 0, "{command:?} ended with {}: {}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(phase(mesh)? == "idle", "the command has ended and the rotation has not");
    Ok(())
}

/// What `openssl` makes of the sidecar's own listing of its certificate.
pub(crate) fn is_verified(mesh: &Mesh, workload: &str, folder: &Path) -> Result<()> {
    let pod = mesh.pod(workload)?;
    let metadata = &pod["metadata"];
    let name = format!(
        "{}.{}",
        metadata["name"].as_str().context("no name")?,
        metadata["namespace"].as_str().context("no namespace")?
    );
    let ran = mesh.maille(&["proxy-config", "secret", &name, "-o", "json"])?;
    let shown: Value = serde_json::from_str(&ran.stdout).with_context(|| ran.stderr.clone())?;
    let secrets = shown["dynamicActiveSecrets"].as_array().cloned().unwrap_or_default();
    let bytes = |name: &str, path: &str| -> Result<Vec<u8>> {
        let secret = secrets.iter().find(|secret| secret["name"] == name).context("no such secret")?;
        let text = secret["secret"].pointer(path).and_then(Value::as_str).context("no inline bytes")?;
        decode(text)
    };
    std::fs::write(
        folder.join("chain.pem"),
        bytes("default", "/tlsCertificate/certificateChain/inlineBytes")?,
    )?;
    std::fs::write(folder.join("root.pem"), bytes("ROOTCA", "/validationContext/trustedCa/inlineBytes")?)?;
    let distributed = mesh.maille(&["ca", "roots"])?;
    std::fs::write(folder.join("distributed.pem"), &distributed.stdout)?;
    for root in ["root.pem", "distributed.pem"] {
        openssl(folder, &["verify", "-CAfile", root, "-untrusted", "chain.pem", "chain.pem"])
            .with_context(|| format!("{workload} by {root}"))?;
    }
    Ok(())
}

fn decode(base64: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for letter in base64.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => bail!("{other} is not base64"),
        };
        (bits, held) = (bits << 6 | u32::from(value), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Ok(bytes)
}

fn openssl(folder: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output()?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A CA as an operator makes one: a root that is kept elsewhere, and intermediates of it.
pub(crate) struct Operator {
    folder: PathBuf,
}

impl Operator {
    /// With a root of this name and kind of key, as `openssl req -newkey` takes it.
    pub(crate) fn new(folder: &Path, name: &str, key: &[&str]) -> Result<Self> {
        let operator = Self { folder: folder.join(name) };
        std::fs::create_dir_all(&operator.folder)?;
        let subject = format!("/O=Operator/CN={name}");
        let is_authority = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
        let make = ["req", "-x509", "-nodes", "-days", "30", "-subj", &subject, "-newkey"];
        let into = ["-keyout", "root-key.pem", "-out", "root-cert.pem"];
        let says = ["-addext", is_authority[0], "-addext", is_authority[1]];
        openssl(&operator.folder, &[&make[..], key, &into, &says].concat())?;
        Ok(operator)
    }

    /// A folder with `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem`.
    pub(crate) fn intermediate(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(
            folder.join("ext.cnf"),
            "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n",
        )?;
        let subject = format!("/O=Operator/CN={name}");
        openssl(&folder, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca-key.pem"])?;
        openssl(&folder, &["req", "-new", "-key", "ca-key.pem", "-subj", &subject, "-out", "request.pem"])?;
        openssl(
            &folder,
            &[
                "x509",
                "-req",
                "-in",
                "request.pem",
                "-CA",
                "../root-cert.pem",
                "-CAkey",
                "../root-key.pem",
                "-CAcreateserial",
                "-days",
                "20",
                "-extfile",
                "ext.cnf",
                "-out",
                "ca-cert.pem",
            ],
        )?;
        for other in ["ext.cnf", "request.pem"] {
            std::fs::remove_file(folder.join(other))?;
        }
        std::fs::copy(self.folder.join("root-cert.pem"), folder.join("root-cert.pem"))?;
        std::fs::copy(folder.join("ca-cert.pem"), folder.join("cert-chain.pem"))?;
        Ok(folder)
    }
}

/// Whether a CA that an operator keeps in files signs, and nothing else does.
pub(crate) fn is_signed_by_files(mesh: &Mesh, workload: &str, files: &Path) -> Result<()> {
    is_over(mesh)?;
    let source = status(mesh)?["authority"]["source"].clone();
    ensure!(source == "cacerts", "the authority comes from {source}");
    let own =
        mesh.kubectl(&["get", "secret", "istio-ca-secret", "-n", "istio-system", "--ignore-not-found"])?;
    ensure!(own.is_empty(), "the mesh has a CA of its own: {own}");
    is_verified(mesh, workload, mesh.folder())?;
    let root = files.join("root-cert.pem");
    let by = ["-CAfile", root.to_str().context("no text")?, "-untrusted", "chain.pem", "chain.pem"];
    openssl(mesh.folder(), &[&["verify"][..], &by].concat()).context("by the files' own root")
}

/// A process that stands still until this is dropped.
struct Frozen(Pid);

impl Frozen {
    fn sidecar(mesh: &Mesh, workload: &str) -> Result<Self> {
        let pid = sidecar_pid(mesh, &mesh.pod_ip(workload)?)?;
        let pid = Pid::from_raw(pid).context("no process")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

pub(crate) fn the_document_is_true() -> Result<()> {
    guide::document_is_true("docs/identity.md")
}

/// A new root, a CA of an operator's, another intermediate of the same root; a proxy that does not answer; a control plane
/// that is killed at every step. Requests over kept connections, new connections and long streams go on all the while.
pub(crate) fn under_load() -> Result<()> {
    let mesh = Mesh::start(&["--demo"])?;
    let soak = Soak::start(&mesh, "1h")?;
    let mut load = Load::start(&soak)?;

    let (before, signed_by) = (roots(&mesh)?, signer(&mesh)?);
    rotate(&mesh, &[])?;
    let after = roots(&mesh)?;
    ensure!(after.len() == 1 && !before.contains(&after[0]), "the roots were {before:?} and are {after:?}");
    ensure!(signer(&mesh)? != signed_by, "the same certificate signs");
    for workload in ["production/cart", "soak/steady", "soak/load"] {
        is_verified(&mesh, workload, mesh.folder())?;
    }
    load.next("while the root was rotated")?;

    let operator = Operator::new(mesh.folder(), "root", &["rsa:2048"])?;
    rotate(&mesh, &["--to", &operator.intermediate("one")?.to_string_lossy()])?;
    let plugged = roots(&mesh)?;
    ensure!(plugged.len() == 1 && plugged != after, "the roots were {after:?} and are {plugged:?}");
    load.next("while a CA was plugged in")?;

    let signed_by = signer(&mesh)?;
    rotate(&mesh, &["--to", &operator.intermediate("two")?.to_string_lossy()])?;
    ensure!(roots(&mesh)? == plugged, "a change of the intermediate changed the root");
    ensure!(signer(&mesh)? != signed_by, "the same intermediate signs");
    is_verified(&mesh, "soak/steady", mesh.folder())?;
    load.next("while the intermediate was replaced")?;

    waits_for_a_frozen_proxy(&mesh)?;
    load.next("while a rotation waited for a frozen proxy")?;

    survives_the_control_plane(&mesh, &operator)?;
    load.next("while the control plane was killed at every step of a rotation")?;
    is_verified(&mesh, "soak/steady", mesh.folder())
}

/// The load, in pieces with a report each.
struct Load<'a> {
    soak: &'a Soak<'a>,
    under_way: Option<std::process::Child>,
}

impl<'a> Load<'a> {
    fn start(soak: &'a Soak<'a>) -> Result<Self> {
        let mut load = Self { soak, under_way: None };
        load.begin()?;
        Ok(load)
    }

    fn begin(&mut self) -> Result<()> {
        self.under_way = Some(self.soak.load("", LOAD)?);
        // So that its streams are older than what comes.
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    fn next(&mut self, during: &str) -> Result<()> {
        std::thread::sleep(Duration::from_secs(2));
        self.soak.stop()?;
        let under_way = self.under_way.take().context("no load is under way")?;
        soak::report(under_way)?.nothing_is_lost(during)?;
        self.begin()
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let _ = self.soak.stop();
        if let Some(mut load) = self.under_way.take() {
            let _ = load.wait();
        }
    }
}

fn waits_for_a_frozen_proxy(mesh: &Mesh) -> Result<()> {
    let before = roots(mesh)?;
    let another = Operator::new(mesh.folder(), "another", &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"])?;
    let frozen = Frozen::sidecar(mesh, "development/dev-service")?;
    let to = another.intermediate("one")?;
    let ran = mesh.maille(&["ca", "rotate", "--no-wait", "--to", &to.to_string_lossy()])?;
    ensure!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    let named = |status: &Value| -> Vec<String> {
        let waiting = status["rotation"]["waiting"].as_array().cloned().unwrap_or_default();
        waiting.iter().filter_map(|one| one["name"].as_str()).map(str::to_owned).collect()
    };
    eventually(LIMIT, || {
        let status = status(mesh)?;
        let names = named(&status);
        ensure!(
            names.len() == 1 && names[0].starts_with("development/dev-service"),
            "waited for are {names:?}"
        );
        Ok(())
    })?;
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(6) {
        ensure!(phase(mesh)? == "distributing", "it went on without a live proxy: {}", status(mesh)?);
    }
    // Told to somebody who looks, too.
    let shown = mesh.maille(&["ca", "status"])?.stdout;
    ensure!(shown.contains("development/dev-service"), "`ca status` does not name it:\n{shown}");
    ensure!(
        before.iter().all(|root| roots(mesh).is_ok_and(|now| now.contains(root))),
        "the old root is gone already"
    );
    drop(frozen);
    is_over(mesh)?;
    ensure!(roots(mesh)? != before, "the roots are the old ones");
    Ok(())
}

fn is_over(mesh: &Mesh) -> Result<()> {
    eventually(LIMIT, || {
        let status = status(mesh)?;
        ensure!(
            status["phase"] == "idle",
            "the rotation is still {}: {}",
            status["phase"],
            status["rotation"]
        );
        Ok(())
    })
}

/// Killed as soon as a step is seen, it goes on with that step.
fn survives_the_control_plane(mesh: &Mesh, operator: &Operator) -> Result<()> {
    let before = roots(mesh)?;
    let to = operator.intermediate("three")?;
    let ran = mesh.maille(&["ca", "rotate", "--no-wait", "--to", &to.to_string_lossy()])?;
    ensure!(ran.code == 0, "{}{}", ran.stdout, ran.stderr);
    let mut killed = Vec::new();
    let started = Instant::now();
    loop {
        ensure!(
            started.elapsed() < LIMIT * 2,
            "the rotation does not end; killed in {killed:?}: {}",
            status(mesh)?
        );
        // While the control plane is away there is no answer.
        let Ok(now) = phase(mesh) else { continue };
        if now == "idle" && !killed.is_empty() {
            break;
        }
        if now != "idle" && !killed.contains(&now) {
            ensure!(mesh.signal(Signal::KILL, &["control-plane"])? > 0, "there is no control plane to kill");
            killed.push(now);
            istiod_is_ready(mesh)?;
        }
    }
    println!("        the control plane was killed while it was {}", killed.join(", "));
    let after = roots(mesh)?;
    ensure!(after.len() == 1 && after != before, "the roots were {before:?} and are {after:?}");
    let (code, body) = mesh.curl("production/frontend", &["http://cart/"])?;
    ensure!(code == 200, "after the rotation a call of the shop is answered with {code} {body}");
    Ok(())
}

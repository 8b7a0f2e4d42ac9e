//! How meshes begin and end.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::mesh::{Mesh, Ran, binary, eventually, namespaces};

/// What a mesh could leave on a machine.
#[derive(Debug, PartialEq)]
struct Remains {
    namespaces: Vec<String>,
    mounts: Vec<String>,
    links: String,
    rules: String,
}

impl Remains {
    fn now() -> Result<Self> {
        let text = |program: &str, arguments: &[&str]| -> Result<String> {
            Ok(String::from_utf8_lossy(&Command::new(program).args(arguments).output()?.stdout).into_owned())
        };
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        Ok(Self {
            namespaces: namespaces()?.into_iter().filter(|name| name.starts_with("maille-")).collect(),
            mounts: mounts.lines().filter(|line| line.contains("maille")).map(str::to_owned).collect(),
            links: text("ip", &["-o", "link"])?,
            rules: text("nft", &["list", "ruleset"])?,
        })
    }
}

/// Processes of a mesh with this data folder, wherever they run.
fn processes_of(data_dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(data_dir) {
            found.push(line);
        }
    }
    found
}

pub(crate) fn up_check() -> Result<()> {
    let folder = TempDir::new()?;
    let before = Remains::now()?;
    let ran: Ran = Command::new(binary())
        .args(["up", "--demo", "--check", "--data-dir"])
        .arg(folder.path().join("data"))
        .stdin(Stdio::null())
        .output()?
        .into();
    ensure!(ran.code == 0, "exit code {}:\n{}{}", ran.code, ran.stdout, ran.stderr);
    ensure!(ran.stdout.contains("AS EXPECTED") && !ran.stdout.contains("NO: "), "{}", ran.stdout);
    ensure!(Remains::now()? == before, "left behind: {:?}", Remains::now()?);
    Ok(())
}

/// The objects of a mesh outlive it; so they must not know where the binary was.
pub(crate) fn starts_again_from_another_place() -> Result<()> {
    let folder = TempDir::new()?;
    let elsewhere = folder.path().join("maille");
    std::fs::copy(binary(), &elsewhere)?;
    for program in [elsewhere, binary()] {
        let ran: Ran = Command::new(&program)
            .args(["up", "--demo", "--check", "--data-dir"])
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .output()?
            .into();
        ensure!(
            ran.code == 0,
            "{} ended with {}:\n{}{}",
            program.display(),
            ran.code,
            ran.stdout,
            ran.stderr
        );
    }
    Ok(())
}

pub(crate) fn nothing_left_behind() -> Result<()> {
    let before = Remains::now()?;
    let mut mesh = Mesh::start(&[])?;
    let data_dir = mesh.data_dir().to_string_lossy().into_owned();
    ensure!(Remains::now()?.namespaces.len() > before.namespaces.len(), "a mesh has no namespaces");
    // A crash: the supervisor has no time for anything.
    if let Some(pid) = i32::try_from(mesh.supervisor_pid()).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process(pid, Signal::KILL)?;
    }
    mesh.stop()?;
    let ran = mesh.maille(&["down"])?;
    ensure!(ran.code == 0, "down after a crash: {}{}", ran.stdout, ran.stderr);
    eventually(Duration::from_secs(10), || {
        let left = processes_of(&data_dir);
        ensure!(left.is_empty(), "processes are left: {left:?}");
        let now = Remains::now()?;
        ensure!(now == before, "left behind: {now:?}, before: {before:?}");
        Ok(())
    })
}

pub(crate) fn rollout(mesh: &Mesh) -> Result<()> {
    let script = "for i in $(seq 80); do curl -s -o /dev/null --max-time 5 -w '%{http_code}\\n' http://cart/$i; sleep 0.1; done";
    let child = mesh
        .maille_command(&["exec", "deploy/frontend", "-n", "production", "--", "bash", "-c", script])
        .stdout(Stdio::piped())
        .spawn()?;
    mesh.kubectl(&["rollout", "restart", "deployment/cart", "-n", "production"])?;
    mesh.kubectl(&["rollout", "status", "deployment/cart", "-n", "production", "--timeout=60s"])?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = text.lines().filter(|code| *code != "200").count();
    ensure!(failed == 0, "{failed} requests failed during the rollout: {}", text.replace('\n', " "));
    Ok(())
}

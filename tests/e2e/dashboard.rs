//! The page beside a mesh: it tells the shop's story, to those with its key, and runs with next to no rights.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::mesh::{Mesh, eventually};

pub(crate) fn tells_the_shops_story(mesh: &Mesh) -> Result<()> {
    let address = Address::of(mesh)?;
    eventually(Duration::from_secs(60), || {
        let page = address.page()?;
        for wanted in [
            "<svg class=\"graph",
            "production/frontend to production/cart: allowed, mutual TLS",
            "production/frontend to production/orders: refused; port 8080: no ALLOW rule matches",
            "development/dev-service to production/frontend: refused; port 8080: deny-from-untrusted, rule 0",
            "legacy/legacy-client to production/frontend: refused; port 8080: STRICT: plaintext refused",
            "legacy/legacy-client to legacy/inventory: allowed, plaintext",
        ] {
            ensure!(page.contains(wanted), "the page does not say: {wanted}");
        }
        Ok(())
    })?;
    let (code, body) = curl(&[&format!("{}/", address.origin)])?;
    ensure!(code == 403 && !body.contains("frontend"), "without the key: {code} {body}");
    let (code, _) = curl(&["-H", "Host: evil.example", &address.url])?;
    ensure!(code == 403, "under a foreign name: {code}");
    Ok(())
}

pub(crate) fn runs_as_nobody(mesh: &Mesh) -> Result<()> {
    let pid = process(mesh)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        found.map(|rest| rest.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    };
    ensure!(line("Uid:") == "65534 65534 65534 65534", "it runs as {}", line("Uid:"));
    ensure!(line("Groups:").is_empty(), "it is in the groups {}", line("Groups:"));
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapInh:", "CapAmb:"] {
        ensure!(line(set) == "0000000000000000", "{set} {}", line(set));
    }
    ensure!(line("NoNewPrivs:") == "1", "it could gain privileges");
    let root = PathBuf::from(format!("/proc/{pid}/root/"));
    let files = std::fs::read_dir(&root)?.count();
    ensure!(files == 0, "it sees {files} files in its root");
    for (verb, what, want) in [
        ("list", "pods", "yes"),
        ("list", "secrets", "no"),
        ("get", "configmaps", "no"),
        ("delete", "pods", "no"),
        ("create", "pods/exec", "no"),
    ] {
        let account = "--as=system:serviceaccount:istio-system:maille-dashboard";
        let ran = mesh.kubectl_ran(&["auth", "can-i", verb, what, "-A", account], None)?;
        ensure!(ran.stdout.trim() == want, "can it {verb} {what}? {}{}", ran.stdout, ran.stderr);
    }
    Ok(())
}

pub(crate) fn comes_back_at_its_address(mesh: &Mesh) -> Result<()> {
    let before = Address::of(mesh)?;
    let pid = process(mesh)?;
    kill_process(Pid::from_raw(pid).context("a process number")?, Signal::KILL)?;
    eventually(Duration::from_secs(60), || {
        ensure!(process(mesh)? != pid, "it still ends");
        before.page().map(|_| ())
    })?;
    ensure!(Address::of(mesh)?.url == before.url, "it came back elsewhere");
    Ok(())
}

struct Address {
    url: String,
    origin: String,
}

impl Address {
    fn of(mesh: &Mesh) -> Result<Self> {
        let url = mesh.status()?["dashboard"].as_str().context("status names no dashboard")?.to_owned();
        let (origin, _) = url.split_once("/?key=").context("the address has no key")?;
        Ok(Self { origin: origin.to_owned(), url: url.clone() })
    }

    /// As a browser opens it: with the key, then with the cookie it gets for that.
    fn page(&self) -> Result<String> {
        let (code, body) = curl(&["--location", "--cookie", "", &self.url])?;
        ensure!(code == 200, "the page answered {code}: {body}");
        Ok(body)
    }
}

/// curl on the host: status and body.
fn curl(arguments: &[&str]) -> Result<(u16, String)> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"])
        .args(arguments)
        .output()
        .context("cannot start curl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').context("curl printed nothing")?;
    Ok((code.trim().parse().unwrap_or(0), body.to_owned()))
}

/// The page's process: the child of this mesh's supervisor that serves it.
fn process(mesh: &Mesh) -> Result<i32> {
    let wanted = mesh.data_dir().join("empty").display().to_string();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(" dashboard-server ") && line.contains(&wanted) {
            return Ok(pid);
        }
    }
    anyhow::bail!("the dashboard has no process")
}

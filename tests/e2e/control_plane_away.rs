//! The mesh without its control plane.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::mesh::{Mesh, eventually};

/// Requests in a loop, ten a second; answers the codes.
fn load(mesh: &Mesh, seconds: u32) -> Result<std::process::Child> {
    let script = format!(
        "for i in $(seq {}); do curl -s -o /dev/null --max-time 5 -w '%{{http_code}}\\n' http://cart/$i; sleep 0.1; done",
        seconds * 8
    );
    let mut command =
        mesh.maille_command(&["exec", "deploy/frontend", "-n", "production", "--", "bash", "-c", &script]);
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

fn all_succeeded(child: std::process::Child) -> Result<()> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = text.lines().filter(|code| *code != "200").count();
    ensure!(text.lines().count() > 10, "too few requests were made: {text}");
    ensure!(failed == 0, "{failed} of {} requests failed: {}", text.lines().count(), text.replace('\n', " "));
    Ok(())
}

pub(crate) fn istiod_is_ready(mesh: &Mesh) -> Result<()> {
    eventually(Duration::from_secs(60), || {
        let pod = mesh.pod("istio-system/istiod")?;
        ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "istiod is not ready");
        Ok(())
    })
}

pub(crate) fn killed(mesh: &Mesh) -> Result<()> {
    let requests = load(mesh, 6)?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(mesh.signal(Signal::KILL, &["control-plane"])? > 0, "there is no control plane to kill");
    all_succeeded(requests)?;
    istiod_is_ready(mesh)?;
    // All converges: a change made now arrives.
    converges(mesh)
}

pub(crate) fn sidecar_restarts(mesh: &Mesh) -> Result<()> {
    mesh.kubectl(&["scale", "deployment", "istiod", "-n", "istio-system", "--replicas=0"])?;
    let away = eventually(Duration::from_secs(60), || {
        ensure!(mesh.pod("istio-system/istiod").is_err(), "istiod is still there");
        Ok(())
    });
    let served = away.and_then(|()| restart_sidecar_of_cart(mesh));
    mesh.kubectl(&["scale", "deployment", "istiod", "-n", "istio-system", "--replicas=1"])?;
    istiod_is_ready(mesh)?;
    served?;
    converges(mesh)
}

fn restart_sidecar_of_cart(mesh: &Mesh) -> Result<()> {
    let restarts = |pod: &serde_json::Value| -> u64 {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let proxy = statuses.iter().find(|status| status["name"] == "istio-proxy");
        proxy.and_then(|status| status["restartCount"].as_u64()).unwrap_or(0)
    };
    let before = restarts(&mesh.pod("production/cart")?);
    let killed = mesh.exec_in("production/cart", Some("istio-proxy"), &["sh", "-c", "kill -9 1"])?;
    // PID 1 of a namespace ignores SIGKILL from within; from outside it does not.
    let _ = killed;
    let address = mesh.pod_ip("production/cart")?;
    let pid = sidecar_pid(mesh, &address)?;
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::kill_process(pid, Signal::KILL)?;
    }
    eventually(Duration::from_secs(30), || {
        ensure!(restarts(&mesh.pod("production/cart")?) > before, "the sidecar was not restarted");
        Ok(())
    })?;
    eventually(Duration::from_secs(20), || {
        let (code, body) = mesh.curl("production/frontend", &["http://cart/after-restart"])?;
        ensure!(code == 200, "the restarted sidecar answers {code} {body}");
        let (code, _) = mesh.curl("development/dev-service", &["http://cart.production/"])?;
        ensure!(code == 403, "the restarted sidecar lets others through: {code}");
        Ok(())
    })
}

/// The process that listens on the inbound port in the network namespace of this address.
pub(crate) fn sidecar_pid(mesh: &Mesh, address: &str) -> Result<i32> {
    for pid in mesh.pids()? {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_here =
            environment.split(|byte| *byte == 0).any(|v| v == format!("INSTANCE_IP={address}").as_bytes());
        if arguments.get(1) == Some(&b"proxy".as_slice()) && is_here {
            return Ok(pid);
        }
    }
    anyhow::bail!("no sidecar runs at {address}")
}

fn converges(mesh: &Mesh) -> Result<()> {
    mesh.kubectl(&["delete", "authorizationpolicy", "allow-frontend-to-cart", "-n", "production"])?;
    let refused = eventually(Duration::from_secs(15), || {
        let (code, _) = mesh.curl("production/frontend", &["http://cart/"])?;
        ensure!(code == 403, "a change after the return is not in force: {code}");
        Ok(())
    });
    mesh.kubectl(&[
        "apply",
        "-f",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop/05-policies.yaml"),
    ])?;
    refused?;
    eventually(Duration::from_secs(15), || {
        let (code, _) = mesh.curl("production/frontend", &["http://cart/"])?;
        ensure!(code == 200, "after the policy is back: {code}");
        Ok(())
    })
}

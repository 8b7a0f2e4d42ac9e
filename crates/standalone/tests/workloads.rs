//! StatefulSets, DaemonSets, Jobs and CronJobs in a mesh, asked for and looked at with kubectl.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use maille_standalone::{SupervisorOptions, run_supervisor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    if let Some(code) = common::roles::play() {
        return code;
    }
    if kubectl().is_none() {
        assert!(std::env::var_os("CI").is_none(), "no kubectl was found");
        eprintln!("SKIPPED (needs kubectl): set MAILLE_KUBECTL");
        return ExitCode::SUCCESS;
    }
    common::run(&[
        ("numbered_pods_keep_name_and_data_and_roll_in_order", stateful_sets),
        ("jobs_come_to_an_end_in_every_way", jobs),
        ("schedules_make_jobs_and_daemons_are_replaced", schedules_and_daemons),
    ])
}

const WAIT: Duration = Duration::from_secs(60);

fn kubectl() -> Option<PathBuf> {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/kubectl");
    let named = std::env::var_os("MAILLE_KUBECTL").map(PathBuf::from);
    let in_path = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.exists());
    [named, Some(local), in_path].into_iter().flatten().find(|path| path.exists())
}

/// A mesh without a control plane, and a kubectl for it.
struct Mesh {
    dir: tempfile::TempDir,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    runtime: tokio::runtime::Runtime,
}

impl Mesh {
    fn up() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (shutdown, ready) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        let options = SupervisorOptions {
            data_dir: dir.path().to_owned(),
            binary: std::env::current_exe().unwrap(),
            api_port: 0,
            api_command: None,
            dns_upstreams: Vec::new(),
            egress: false,
            builtin: false,
            prepare: None,
            ready: Some(ready.0),
            shutdown: shutdown.clone(),
        };
        let task = runtime.spawn(run_supervisor(options));
        runtime.block_on(ready.1).unwrap();
        Self { dir, shutdown, task: Some(task), runtime }
    }

    fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write as _;
        use std::process::Stdio;
        let mut child = Command::new(kubectl().unwrap())
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .args(arguments)
            .env("KUBECACHEDIR", self.dir.path().join("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(out) } else { Err(out + &String::from_utf8_lossy(&output.stderr)) }
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut outcome = self.try_kubectl(arguments, "");
        // It tells restarts apart by their second.
        while outcome.as_ref().is_err_and(|error| error.contains("within the past second")) {
            std::thread::sleep(Duration::from_millis(200));
            outcome = self.try_kubectl(arguments, "");
        }
        outcome.unwrap_or_else(|error| {
            let (events, all) =
                (self.try_kubectl(&["get", "events"], ""), self.try_kubectl(&["get", "all"], ""));
            panic!(
                "kubectl {arguments:?}: {error}\n{}\n{}",
                events.unwrap_or_default(),
                all.unwrap_or_default()
            )
        })
    }

    fn apply(&self, object: &Value) {
        self.try_kubectl(&["apply", "-f", "-"], &object.to_string()).unwrap();
    }

    /// What `kubectl get` prints of one path.
    fn get(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    fn until(&self, what: &str, look: impl Fn() -> Result<(), String>) {
        let deadline = Instant::now() + WAIT;
        while let Err(seen) = look() {
            assert!(Instant::now() < deadline, "{what} did not come; last seen: {seen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn until_is(&self, object: &str, path: &str, wanted: &str) {
        self.until(&format!("{object} {path} {wanted}"), || {
            let found = self.try_kubectl(&["get", object, "-o", &format!("jsonpath={path}")], "")?;
            if found == wanted { Ok(()) } else { Err(found) }
        });
    }

    fn until_gone(&self, object: &str) {
        self.until(&format!("the end of {object}"), || {
            match self.try_kubectl(&["get", object, "-o", "name"], "") {
                Err(error) if error.contains("NotFound") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            let ended = self.runtime.block_on(task);
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

fn stateful_sets() {
    let mesh = Mesh::up();
    let line = "echo $(hostname) >> /data/log; exec sleep 600";
    mesh.apply(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "db", "image": "x", "command": ["sh", "-c", line],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            }},
            "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
        },
    }));
    mesh.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]);
    let pods = || mesh.kubectl(&["get", "pods", "-l", "app=db", "-o", "name"]);
    assert_eq!(pods(), "pod/db-0\npod/db-1");
    assert_eq!(mesh.get("pvc", "{.items[*].status.phase}"), "Bound Bound");
    assert_eq!(
        mesh.get(
            "pod/db-1",
            "{.spec.hostname}.{.spec.subdomain} {.metadata.labels.apps\\.kubernetes\\.io/pod-index}"
        ),
        "db-1.db 1"
    );

    // One that is deleted comes back under its name, with its data, though as another user.
    let first = mesh.get("pod/db-0", "{.metadata.uid}");
    mesh.kubectl(&["delete", "pod", "db-0"]);
    mesh.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]);
    mesh.until("another Pod of the same name", || {
        let uid =
            mesh.try_kubectl(&["get", "pod", "db-0", "-o", "jsonpath={.metadata.uid} {.status.phase}"], "")?;
        if uid != format!("{first} Running") && uid.ends_with(" Running") { Ok(()) } else { Err(uid) }
    });
    let volume = |claim: &str| {
        let uid = mesh.get(&format!("pvc/{claim}"), "{.metadata.uid}");
        mesh.dir.path().join("volumes").join(uid)
    };
    let log = volume("data-db-0").join("log");
    mesh.until("both lines", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        if log == "db-0\ndb-0\n" { Ok(()) } else { Err(log) }
    });

    // An update stops at the partition, goes on without it, and can be undone.
    let revision = |pod: &str| mesh.get(&format!("pod/{pod}"), "{.metadata.labels.controller-revision-hash}");
    let before = revision("db-0");
    let partition = |from: u32| {
        let patch = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": from}}}}).to_string();
        mesh.kubectl(&["patch", "sts", "db", "--type=merge", "-p", &patch]);
    };
    partition(1);
    mesh.kubectl(&["rollout", "restart", "sts/db"]);
    mesh.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]);
    assert_eq!((revision("db-0") == before, revision("db-1") == before), (true, false));
    // What is made anew below the partition is made of the older template.
    mesh.kubectl(&["delete", "pod", "db-0"]);
    mesh.until_is("sts/db", "{.status.readyReplicas} {.status.updatedReplicas}", "2 1");
    assert_eq!(revision("db-0"), before);
    partition(0);
    mesh.until_is("sts/db", "{.status.readyReplicas} {.status.updatedReplicas}", "2 2");
    let history = mesh.kubectl(&["rollout", "history", "sts/db"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    mesh.kubectl(&["rollout", "undo", "sts/db"]);
    mesh.until("the first template", || {
        let found =
            mesh.try_kubectl(&["get", "sts", "db", "-o", "jsonpath={.status.currentRevision}"], "")?;
        if found == before { Ok(()) } else { Err(found) }
    });

    mesh.kubectl(&["scale", "sts/db", "--replicas=1"]);
    mesh.until_gone("pod/db-1");
    assert_eq!(pods(), "pod/db-0");
    mesh.kubectl(&["delete", "sts", "db"]);
    mesh.until_gone("pod/db-0");
    // The data stays until somebody deletes the claim.
    let (kept, removed) = (volume("data-db-0"), volume("data-db-1"));
    mesh.kubectl(&["delete", "pvc", "data-db-1", "--timeout=30s"]);
    assert!(kept.join("log").is_file() && !removed.exists());
}

fn job(name: &str, line: &str, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "x", "command": ["sh", "-c", line]}]}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

fn jobs() {
    let mesh = Mesh::up();
    mesh.apply(&job(
        "numbers",
        "echo number $JOB_COMPLETION_INDEX on $(hostname)",
        json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}),
    ));
    mesh.apply(&job("fails", "exit 3", json!({"backoffLimit": 0})));
    mesh.apply(&job("late", "exec sleep 600", json!({"activeDeadlineSeconds": 1})));
    mesh.apply(&job("gone", "true", json!({"ttlSecondsAfterFinished": 0})));
    mesh.apply(&job("waits", "true", json!({"suspend": true})));
    let rules = json!([{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]);
    mesh.apply(&job("fatal", "exit 42", json!({"backoffLimit": 6, "podFailurePolicy": {"rules": rules}})));

    mesh.kubectl(&["wait", "--for=condition=complete", "job/numbers", "--timeout=60s"]);
    assert_eq!(
        mesh.get("job/numbers", "{.status.succeeded} {.status.completedIndexes} {.status.active}"),
        "3 0-2 0"
    );
    let logs = mesh.kubectl(&["logs", "-l", "job-name=numbers", "--tail=-1"]);
    for index in 0..3 {
        assert!(logs.contains(&format!("number {index} on numbers-{index}")), "{logs}");
    }
    // Pods that are counted can go, and the count stays.
    mesh.kubectl(&["delete", "pods", "-l", "job-name=numbers", "--timeout=30s"]);
    assert_eq!(mesh.get("job/numbers", "{.status.succeeded}"), "3");

    for (name, reason) in
        [("fails", "BackoffLimitExceeded"), ("late", "DeadlineExceeded"), ("fatal", "PodFailurePolicy")]
    {
        let job = format!("job/{name}");
        mesh.kubectl(&["wait", "--for=condition=failed", &job, "--timeout=60s"]);
        assert_eq!(
            mesh.get(
                &job,
                "{.status.failed} {.status.active} {.status.conditions[?(@.type==\"Failed\")].reason}"
            ),
            format!("1 0 {reason}")
        );
    }
    mesh.until_gone("job/gone");
    mesh.until("no Pod of the Job that is gone", || {
        let left = mesh.try_kubectl(&["get", "pods", "-l", "job-name=gone", "-o", "name"], "")?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    mesh.until_is("job/waits", "{.status.conditions[0].type}", "Suspended");
    assert_eq!(mesh.kubectl(&["get", "pods", "-l", "job-name=waits", "-o", "name"]), "");
    mesh.kubectl(&["patch", "job", "waits", "--type=merge", "-p", r#"{"spec":{"suspend":false}}"#]);
    mesh.kubectl(&["wait", "--for=condition=complete", "job/waits", "--timeout=60s"]);
    // Deleting a Job that runs takes its Pods along, though they are still to be counted.
    mesh.apply(&job("runs", "exec sleep 600", json!({})));
    mesh.until_is("job/runs", "{.status.ready}", "1");
    mesh.kubectl(&["delete", "job", "runs"]);
    mesh.until("no Pod of the deleted Job", || {
        let left = mesh.try_kubectl(&["get", "pods", "-l", "job-name=runs", "-o", "name"], "")?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn schedules_and_daemons() {
    let mesh = Mesh::up();
    let template = job("x", "exec sleep 600", json!({}))["spec"].clone();
    mesh.apply(&json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "often"},
        "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Forbid", "timeZone": "Europe/Berlin",
            "jobTemplate": {"spec": template}},
    }));
    let daemon = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {
            "metadata": {"labels": {"app": "agent"}}, "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": "x", "command": ["sleep", "600"]}]}}},
    });
    mesh.apply(&daemon);

    // One Job runs, and while it does no other is made.
    mesh.until_is("cronjob/often", "{.status.active[*].kind}", "Job");
    let name = mesh.get("cronjob/often", "{.status.active[0].name}");
    assert_eq!(mesh.get(&format!("job/{name}"), "{.metadata.ownerReferences[0].name}"), "often");
    mesh.until("the reason why there is no second one", || {
        let events = mesh.try_kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"], "")?;
        if events.contains("JobAlreadyActive") { Ok(()) } else { Err(events) }
    });
    assert_eq!(mesh.kubectl(&["get", "jobs", "-o", "name"]), format!("job.batch/{name}"));
    assert!(!mesh.get("cronjob/often", "{.status.lastScheduleTime}").is_empty());
    mesh.kubectl(&["delete", "cronjob", "often"]);
    mesh.until_gone(&format!("job/{name}"));

    mesh.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    let pod = || mesh.kubectl(&["get", "pods", "-l", "app=agent", "-o", "name"]);
    let first = pod();
    mesh.kubectl(&["rollout", "restart", "ds/agent"]);
    mesh.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    let second = pod();
    assert!(first.lines().count() == 1 && second.lines().count() == 1 && first != second, "{first} {second}");
    // First the new one, then the old one goes.
    let surge = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}});
    mesh.kubectl(&["patch", "ds", "agent", "--type=merge", "-p", &surge.to_string()]);
    mesh.kubectl(&["rollout", "restart", "ds/agent"]);
    mesh.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"]);
    mesh.until("one Pod, another one", || {
        let third = pod();
        if third.lines().count() == 1 && third != second { Ok(()) } else { Err(third) }
    });
    assert!(mesh.kubectl(&["rollout", "history", "ds/agent"]).contains("\n3 "));
}

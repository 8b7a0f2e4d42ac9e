//! A supervisor with a real API: Pods, Services, volumes, probes, restarts, and what is left afterwards.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use maille_standalone::exec::{Containers, ExecError, Streams};
use maille_standalone::{DataDir, Ready, SupervisorOptions, run_supervisor, teardown};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    if let Some(code) = common::roles::play() {
        return code;
    }
    if std::env::args().nth(1).as_deref() == Some("supervise") {
        return supervise(&PathBuf::from(std::env::args().nth(2).unwrap()));
    }
    common::run(&[
        ("a_deployment_serves_through_its_service_and_name", deployment),
        ("volumes_and_environment_show_their_sources_and_follow_them", volumes),
        ("failing_containers_are_told_and_restarted", failures),
        ("a_pod_without_command_or_as_root_says_why", refused),
        ("liveness_restarts_and_readiness_gates", probes),
        ("commands_and_connections_reach_into_a_pod", reached),
        ("the_api_comes_back_on_its_port_and_pods_stay", api_killed),
        ("nothing_is_left_after_shutdown", clean_shutdown),
        ("nothing_is_left_after_sigkill_and_down", killed),
    ])
}

const WAIT: Duration = Duration::from_secs(40);

struct Mesh {
    dir: std::sync::Arc<tempfile::TempDir>,
    client: Client,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

/// A test that failed takes its mesh down too.
impl Drop for Mesh {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let deadline = Instant::now() + Duration::from_secs(20);
        // The lock is free once the supervisor's thread has swept.
        while DataDir::open(self.dir.path()).is_ok_and(|data| data.lock().is_err())
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Mesh {
    async fn up() -> Self {
        Self::up_in(std::sync::Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn up_in(dir: std::sync::Arc<tempfile::TempDir>) -> Self {
        let (shutdown, ready) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        let mut task = tokio::spawn(run_supervisor(options(dir.path(), ready.0, shutdown.clone())));
        let told = tokio::select! {
            told = ready.1 => told.unwrap(),
            ended = &mut task => panic!("the supervisor ended: {ended:?}; {}",
                std::fs::read_to_string(dir.path().join("api.log")).unwrap_or_default()),
        };
        Self { dir, client: told.client, shutdown, task: Some(task) }
    }

    async fn down(&mut self) {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create_pod(&self, value: Value) {
        let pod: Pod = serde_json::from_value(value).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    async fn pod_until(&self, name: &str, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let api = self.pods();
        let seen = until(what, || async {
            let pod = serde_json::to_value(api.get_opt(name).await.unwrap()).unwrap();
            if reached(&pod) { Ok(pod) } else { Err(format!("{:#}", pod["status"])) }
        });
        seen.await
    }

    fn exec(&self, pod: &Value, command: &[&str]) -> (i32, String) {
        let spec = json!({"dir": self.dir.path(), "uid": pod["metadata"]["uid"],
            "container": pod["spec"]["containers"][0]["name"], "command": command});
        let output = Command::new("/proc/self/exe").args(["exec", &spec.to_string()]).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn log(&self, pod: &Value, container: &str) -> String {
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let path = self.dir.path().join("pods").join(uid).join(format!("{container}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

fn options(
    dir: &Path,
    ready: tokio::sync::oneshot::Sender<Ready>,
    shutdown: CancellationToken,
) -> SupervisorOptions {
    SupervisorOptions {
        data_dir: dir.to_owned(),
        binary: std::env::current_exe().unwrap(),
        api_port: 0,
        api_command: None,
        dns_upstreams: Vec::new(),
        egress: true,
        builtin: true,
        prepare: None,
        ready: Some(ready),
        shutdown,
    }
}

async fn until<T, F: Future<Output = Result<T, String>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + WAIT;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("{what} did not come; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn on_mesh(test: impl AsyncFnOnce(Mesh)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { test(Mesh::up().await).await });
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn sleeper(name: &str, extra: Value) -> Value {
    let mut container = json!({"name": "main", "image": "x", "command": ["sleep", "600"]});
    for (key, value) in extra.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [container]}})
}

fn deployment() {
    on_mesh(async |mut mesh| {
        let web: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "x", "command": ["maille", "serve", "80", "hello"],
                    "ports": [{"name": "http", "containerPort": 80}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}}]}
            }}
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080, "targetPort": "http"}]}
        }))
        .unwrap();
        let deployments: Api<Deployment> = Api::namespaced(mesh.client.clone(), "default");
        let services: Api<Service> = Api::namespaced(mesh.client.clone(), "default");
        services.create(&PostParams::default(), &service).await.unwrap();
        deployments.create(&PostParams::default(), &web).await.unwrap();
        mesh.create_pod(sleeper("client", json!({}))).await;
        let client = mesh.pod_until("client", "the client", ready).await;
        until("two available replicas", || async {
            let status = deployments.get("web").await.unwrap().status.unwrap_or_default();
            if status.available_replicas == Some(2) { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        for name in ["web:8080", "web.default.svc.cluster.local:8080"] {
            until("an answer", || async {
                let (code, text) = mesh.exec(&client, &["maille", "fetch", name]);
                if (code, text.as_str()) == (0, "hello") { Ok(()) } else { Err(text) }
            })
            .await;
        }
        let none = json!({"spec": {"replicas": 0}});
        deployments.patch("web", &PatchParams::default(), &Patch::Merge(&none)).await.unwrap();
        let slices: Api<EndpointSlice> = Api::namespaced(mesh.client.clone(), "default");
        let of_web = kube::api::ListParams::default().labels("kubernetes.io/service-name=web");
        until("an empty slice", || async {
            let left = slices.list(&of_web).await.unwrap();
            let empty = left.iter().all(|slice| slice.endpoints.as_ref().is_none_or(Vec::is_empty));
            if empty { Ok(()) } else { Err(format!("{:?}", left.items)) }
        })
        .await;
        // Without endpoints the virtual address refuses at once, which a dead one would not.
        until("a refusal", || async {
            let (_, text) = mesh.exec(&client, &["maille", "fetch", "web:8080"]);
            if text.contains("refused") { Ok(()) } else { Err(text) }
        })
        .await;
        // It may not read the API: a ServiceAccount starts with no rights.
        let (_, token) = mesh.exec(&client, &["cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"]);
        assert_eq!(token.split('.').count(), 3, "{token}");
        mesh.down().await;
    });
}

fn volumes() {
    on_mesh(async |mut mesh| {
        let maps: Api<ConfigMap> = Api::namespaced(mesh.client.clone(), "default");
        let map = |text: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": "settings"}, "data": {"mode": text}})).unwrap()
        };
        mesh.create_pod(json!({
            "metadata": {"name": "reader", "labels": {"app": "reader"}},
            "spec": {
                "initContainers": [{"name": "first", "image": "x", "command": ["sh", "-c", "echo made > /work/file"],
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
                "containers": [{"name": "main", "image": "x", "workingDir": "/work",
                    "command": ["sh", "-c", "echo $(MODE) $(POD); cat file; sleep 600"],
                    "env": [{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
                            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "work", "mountPath": "/work"},
                        {"name": "settings", "mountPath": "/etc/settings"},
                        {"name": "memory", "mountPath": "/memory"},
                        {"name": "labels", "mountPath": "/labels"}]}],
                "volumes": [{"name": "work", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "settings", "configMap": {"name": "settings"}},
                    {"name": "labels", "downwardAPI": {"items": [{"path": "all", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]
            }
        }))
        .await;
        // What is missing is waited for.
        tokio::time::sleep(Duration::from_millis(300)).await;
        maps.create(&PostParams::default(), &map("one")).await.unwrap();
        let pod = mesh.pod_until("reader", "the Pod", ready).await;
        until("its output", || async {
            let log = mesh.log(&pod, "main");
            if log.contains(" stdout F one reader\n") && log.contains(" stdout F made\n") {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        assert_eq!(mesh.exec(&pod, &["cat", "/labels/all"]).1, "app=\"reader\"");
        assert_eq!(mesh.exec(&pod, &["stat", "-f", "-c", "%T", "/memory"]).1, "tmpfs");
        assert_ne!(
            mesh.exec(&pod, &["sh", "-c", "head -c 2M /dev/zero > /memory/x"]).0,
            0,
            "its size is bounded"
        );
        assert_eq!(mesh.exec(&pod, &["cat", "/etc/settings/mode"]).1, "one");
        maps.patch("settings", &PatchParams::default(), &Patch::Merge(&map("two"))).await.unwrap();
        until("the new content", || async {
            let (_, text) = mesh.exec(&pod, &["cat", "/etc/settings/mode"]);
            if text == "two" { Ok(()) } else { Err(text) }
        })
        .await;
        mesh.down().await;
    });
}

fn failures() {
    on_mesh(async |mut mesh| {
        mesh.create_pod(sleeper("crash", json!({"command": ["sh", "-c", "echo last words; exit 3"]}))).await;
        let pod = mesh
            .pod_until("crash", "back-off", |pod| {
                let status = &pod["status"]["containerStatuses"][0];
                status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                    && status["restartCount"].as_i64() >= Some(2)
            })
            .await;
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")));
        assert!(mesh.log(&pod, "main").contains("last words"));

        let mut once = sleeper("once", json!({"command": ["true"]}));
        once["spec"]["restartPolicy"] = json!("Never");
        mesh.create_pod(once).await;
        let pod = mesh.pod_until("once", "success", |pod| pod["status"]["phase"] == "Succeeded").await;
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");

        mesh.create_pod(sleeper("missing", json!({"command": ["no-such-program"]}))).await;
        mesh.pod_until("missing", "the reason", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerError"
                && waiting["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("no-such-program") && m.contains("not found"))
        })
        .await;
        // Deletion is prompt: sleep does not handle SIGTERM, and no one waits for its grace period.
        mesh.create_pod(sleeper("sleeping", json!({}))).await;
        mesh.pod_until("sleeping", "a running Pod", ready).await;
        let before = Instant::now();
        mesh.pods().delete("sleeping", &DeleteParams::default()).await.unwrap();
        mesh.pod_until("sleeping", "the end", Value::is_null).await;
        assert!(before.elapsed() < Duration::from_secs(20));
        mesh.down().await;
    });
}

fn refused() {
    on_mesh(async |mut mesh| {
        for (name, extra, message) in [
            ("no-command", json!({"command": []}), "has no command"),
            ("root", json!({"securityContext": {"runAsUser": 0}}), "root"),
            ("privileged", json!({"securityContext": {"privileged": true}}), "privileged"),
        ] {
            mesh.create_pod(sleeper(name, extra)).await;
            mesh.pod_until(name, "the reason", |pod| {
                let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                waiting["reason"] == "CreateContainerConfigError"
                    && waiting["message"].as_str().is_some_and(|m| m.contains(message))
            })
            .await;
        }
        mesh.down().await;
    });
}

fn probes() {
    on_mesh(async |mut mesh| {
        let script = "echo up; touch /tmp/ready; sleep 600";
        mesh.create_pod(sleeper("probed", json!({
            "command": ["sh", "-c", script],
            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["test", "!", "-e", "/tmp/broken"]}, "periodSeconds": 1, "failureThreshold": 1},
        })))
        .await;
        let pod = mesh.pod_until("probed", "readiness", ready).await;
        assert_eq!(mesh.exec(&pod, &["rm", "/tmp/ready"]).0, 0);
        let pod = mesh.pod_until("probed", "unreadiness", |pod| !ready(pod)).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(mesh.exec(&pod, &["touch", "/tmp/broken"]).0, 0);
        mesh.pod_until("probed", "a restart", |pod| {
            ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
        mesh.down().await;
    });
}

fn reached() {
    on_mesh(async |mut mesh| {
        mesh.create_pod(sleeper("reached", json!({"command": ["maille", "serve", "8080", "hello"]}))).await;
        let pod = mesh.pod_until("reached", "the Pod", ready).await;
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        let containers = Containers::open(mesh.dir.path()).unwrap();
        let start = async |script: &str, tty| {
            let command = ["sh", "-c", script].map(str::to_owned).to_vec();
            containers.exec(uid, "main", command, true, tty).await.unwrap()
        };

        let answer = until("an answer on the Pod's loopback", || async {
            let told = |error: std::io::Error| error.to_string();
            let mut stream = containers.dial(uid, 8080).await.map_err(told)?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.map_err(told)?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.map_err(told)?;
            Ok(text)
        });
        assert!(answer.await.ends_with("hello"));
        let refused = containers.dial(uid, 9999).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

        let echo = start("cat; exit 3", false).await;
        let Streams::Pipes { stdin: Some(mut stdin), mut stdout, .. } = echo.streams else {
            panic!("no pipes")
        };
        stdin.write_all(b"through").await.unwrap();
        drop(stdin);
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), echo.command.wait().await), ("through", 3));

        let shell = start("read go; stty size; test -t 2 && echo on a terminal; sleep 600", true).await;
        let Streams::Terminal(mut terminal) = shell.streams else { panic!("no terminal") };
        terminal.resize(101, 33);
        terminal.write_all(b"go\n").await.unwrap();
        let mut seen = String::new();
        while !seen.contains("on a terminal") {
            let mut piece = [0; 64];
            let count = terminal.read(&mut piece).await.unwrap();
            assert!(count > 0, "hung up after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        assert!(seen.contains("33 101"), "{seen}");
        // Nobody wants it any more: it ends, and with it the terminal.
        drop(shell.command);
        terminal.read_to_string(&mut seen).await.unwrap();

        let none = containers.exec(uid, "other", vec!["true".into()], false, false).await;
        assert!(matches!(none, Err(ExecError::NotRunning)), "{none:?}");
        mesh.down().await;
        let gone = containers.dial(uid, 8080).await.unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
    });
}

fn api_killed() {
    on_mesh(async |mut mesh| {
        mesh.create_pod(sleeper("stays", json!({}))).await;
        mesh.pod_until("stays", "the Pod", ready).await;
        let wanted = format!("api-server --data-dir {} ", mesh.dir.path().display());
        let api = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(&wanted).then(|| entry.file_name().into_string().ok()?.parse().ok()).flatten()
        });
        let process = maille_net::process::ProcessRef::of(api.unwrap()).unwrap();
        process.signal(rustix::process::Signal::KILL);
        until("the API again", || async {
            if process.is_alive() {
                return Err("the old process lives".to_owned());
            }
            mesh.pods().get("stays").await.map(drop).map_err(|e| e.to_string())
        })
        .await;
        let pod = serde_json::to_value(mesh.pods().get("stays").await.unwrap()).unwrap();
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        mesh.create_pod(sleeper("later", json!({}))).await;
        mesh.pod_until("later", "a Pod made afterwards", ready).await;
        mesh.down().await;
    });
}

/// Everything that carries the mesh's id or path.
fn left_overs(dir: &Path) -> Vec<String> {
    let data = DataDir::open(dir).unwrap();
    let mut found: Vec<String> = maille_net::NetNs::list(&format!("maille-{}-", data.id()))
        .unwrap()
        .into_iter()
        .map(|ns| format!("namespace {}", ns.name()))
        .collect();
    let path = dir.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(path)).map(|line| format!("mount {line}")));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(path) || command.contains("LEFTOVER") {
            found.push(format!("process {command}"));
        }
    }
    found
}

fn clean_shutdown() {
    on_mesh(async |mut mesh| {
        mesh.create_pod(sleeper("left", json!({"command": ["sh", "-c", "sleep 600 # LEFTOVER"]}))).await;
        let before = mesh.pod_until("left", "the Pod", ready).await;
        assert!(!left_overs(mesh.dir.path()).is_empty());
        mesh.down().await;
        assert_eq!(left_overs(mesh.dir.path()), Vec::<String>::new());
        // The same Pod runs again when the mesh does.
        let mut mesh = Mesh::up_in(mesh.dir.clone()).await;
        let after = mesh
            .pod_until("left", "the Pod again", |pod| {
                ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1
            })
            .await;
        assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
        mesh.down().await;
    });
}

/// A supervisor in a process of its own, to be killed.
fn supervise(dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ready, _told) = tokio::sync::oneshot::channel();
        run_supervisor(options(dir, ready, CancellationToken::new())).await.unwrap();
    });
    ExitCode::SUCCESS
}

fn killed() {
    let dir = tempfile::tempdir().unwrap();
    let start = || Command::new("/proc/self/exe").arg("supervise").arg(dir.path()).spawn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut supervisor = start();
        let run_pod = |create: bool| {
            let kubeconfig = dir.path().join("kubeconfig");
            async move {
                let read = kube::config::Kubeconfig::read_from(&kubeconfig).map_err(|e| e.to_string())?;
                let config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
                let client = Client::try_from(config).unwrap();
                let namespaces: Api<Namespace> = Api::all(client.clone());
                namespaces.get("kube-system").await.map_err(|e| e.to_string())?;
                let pods: Api<Pod> = Api::namespaced(client, "default");
                if create && pods.get_opt("left").await.map_err(|e| e.to_string())?.is_none() {
                    let pod = sleeper("left", json!({"command": ["sh", "-c", "sleep 600 # LEFTOVER"]}));
                    let pod: Pod = serde_json::from_value(pod).unwrap();
                    pods.create(&PostParams::default(), &pod).await.map_err(|e| e.to_string())?;
                }
                let pod = pods.get("left").await.map_err(|e| e.to_string())?;
                let value = serde_json::to_value(&pod).unwrap();
                let restarts = value["status"]["containerStatuses"][0]["restartCount"].as_i64();
                if ready(&value) && (create || restarts >= Some(1)) {
                    Ok(pod.name_any())
                } else {
                    Err(value["status"].to_string())
                }
            }
        };
        until("a Pod", || run_pod(true)).await;
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        // The containers die with it, even before anyone sweeps.
        until("the container's end", || async {
            let left = left_overs(dir.path());
            let process = left.iter().find(|item| item.contains("LEFTOVER")).cloned();
            process.map_or(Ok(()), Err)
        })
        .await;
        // The next run takes the Pod up again, and is killed as well.
        let mut supervisor = start();
        until("the Pod after a crash", || run_pod(false)).await;
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
    });
    teardown(dir.path()).unwrap();
    assert_eq!(left_overs(dir.path()), Vec::<String>::new());
}

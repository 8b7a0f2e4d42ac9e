//! How containers begin and end: hooks, sidecars before and after those they serve, Jobs, replacement in place.
//!
//! The sidecar here is a stand-in that listens where a proxy does and writes down what it is told.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use maille_standalone::{DataDir, SupervisorOptions, run_supervisor};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    if let Some(code) = common::roles::play().or_else(play) {
        return code;
    }
    common::run(&[
        ("hooks_come_before_what_follows_them_and_a_failed_one_restarts", hooks),
        ("a_sidecar_drains_at_once_and_ends_last", order),
        ("work_with_a_sidecar_comes_to_its_end", jobs),
        ("a_sidecar_is_replaced_in_place", replaced),
    ])
}

const WAIT: Duration = Duration::from_secs(60);
/// Where everybody writes down what happened to him.
const DIARY: &str = "/diary";

/// What injection starts: the installer of the redirection, the sidecar, and its hooks.
fn play() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["intercept", ..] => Some(ExitCode::SUCCESS),
        ["proxy"] => Some(sidecar()),
        ["proxy", "--drain"] => {
            write_down("sidecar drains");
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn write_down(line: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(Path::new(DIARY).join("log")).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Says which life it is to who asks about readiness; ends when another one has begun, or when it is told to.
fn sidecar() -> ExitCode {
    let life = std::env::var("MAILLE_LIFE").unwrap();
    let owner = Path::new("/var/lib/maille/owner");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15021)).into()).unwrap();
    socket.listen(16).unwrap();
    std::fs::write(owner, &life).unwrap();
    let listener = TcpListener::from(socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (answering, said) = (listener.try_clone().unwrap(), life.clone());
    std::thread::spawn(move || {
        for stream in answering.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let head = format!("HTTP/1.1 200 OK\r\nx-maille-life: {said}\r\nContent-Length: 0\r\n");
            let _ = write!(stream, "{head}Connection: close\r\n\r\n");
        }
    });
    let told = async {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap().recv().await;
        write_down("sidecar ends");
    };
    let succeeded = async {
        while std::fs::read_to_string(owner).unwrap() == life {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Its connections take a while.
        tokio::time::sleep(Duration::from_secs(2)).await;
        write_down("sidecar was replaced");
    };
    runtime.block_on(async {
        tokio::select! {
            () = told => {}
            () = succeeded => {}
        }
    });
    ExitCode::SUCCESS
}

struct Mesh {
    dir: tempfile::TempDir,
    diary: tempfile::TempDir,
    client: Client,
    shutdown: CancellationToken,
}

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
        let (dir, diary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::set_permissions(diary.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(diary.path().join("log"), "").unwrap();
        std::fs::set_permissions(diary.path().join("log"), std::fs::Permissions::from_mode(0o666)).unwrap();
        let (shutdown, (ready, told)) = (CancellationToken::new(), tokio::sync::oneshot::channel());
        tokio::spawn(run_supervisor(SupervisorOptions {
            data_dir: dir.path().to_owned(),
            binary: std::env::current_exe().unwrap(),
            api_port: 0,
            api_command: None,
            dns_upstreams: Vec::new(),
            egress: false,
            builtin: false,
            prepare: None,
            ready: Some(ready),
            shutdown: shutdown.clone(),
        }));
        let client = told.await.unwrap().client;
        // What a control plane would have put there.
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let label = json!({"metadata": {"labels": {"istio-injection": "enabled"}}});
        namespaces.patch("default", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
        let roots = json!({"metadata": {"name": "istio-ca-root-cert"}, "data": {"root-cert.pem": ""}});
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        maps.create(&PostParams::default(), &serde_json::from_value(roots).unwrap()).await.unwrap();
        Self { dir, diary, client, shutdown }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Makes a Pod whose containers all write into the diary.
    async fn create(&self, name: &str, annotations: Value, mut spec: Value) {
        let source = json!({"hostPath": {"path": self.diary.path()}});
        for container in spec["containers"].as_array_mut().unwrap() {
            container["image"] = json!("x");
            container["volumeMounts"] = json!([{"name": "diary", "mountPath": DIARY}]);
        }
        let mut volume = source.clone();
        volume["name"] = json!("diary");
        spec["volumes"] = json!([volume]);
        let mut metadata = json!({"name": name, "annotations": annotations});
        let own = &mut metadata["annotations"];
        own["sidecar.istio.io/userVolume"] = json!(json!({"its-diary": source}).to_string());
        own["sidecar.istio.io/userVolumeMount"] =
            json!(json!([{"name": "its-diary", "mountPath": DIARY}]).to_string());
        let pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    fn diary(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.diary.path().join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    async fn pod_until(&self, name: &str, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let api = self.pods();
        until(what, || async {
            let pod = serde_json::to_value(api.get_opt(name).await.unwrap()).unwrap();
            if reached(&pod) { Ok(pod) } else { Err(format!("{:#}", pod["status"])) }
        })
        .await
    }

    async fn has_event(&self, reason: &str) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        until(reason, || async {
            let all = events.list(&ListParams::default()).await.unwrap();
            let reasons: Vec<_> = all.items.into_iter().filter_map(|event| event.reason).collect();
            if reasons.iter().any(|r| r == reason) { Ok(()) } else { Err(format!("{reasons:?}")) }
        })
        .await;
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

fn on_mesh(test: impl AsyncFnOnce(&Mesh)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mesh = Mesh::up().await;
        test(&mesh).await;
    });
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "command": ["sh", "-c", script]})
}

fn hooks() {
    on_mesh(async |mesh| {
        let no = json!({"sidecar.istio.io/inject": "false"});
        let hook = |script: &str| json!({"exec": {"command": ["sh", "-c", script]}});
        let mut first =
            shell("first", "trap 'echo first ends >> /diary/log; exit 0' TERM; while :; do sleep 0.1; done");
        first["lifecycle"] = json!({"postStart": hook("sleep 0.5; echo hook is done >> /diary/log"),
            "preStop": hook("echo hook before the end >> /diary/log")});
        let second = shell("second", "echo second begins >> /diary/log; exec sleep 600");
        mesh.create("ordered", no.clone(), json!({"containers": [first, second]})).await;
        mesh.pod_until("ordered", "the Pod", is_ready).await;
        until("both lines", || async {
            let seen = mesh.diary();
            if seen == ["hook is done", "second begins"] { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        mesh.pods().delete("ordered", &DeleteParams::default()).await.unwrap();
        mesh.pod_until("ordered", "the end", Value::is_null).await;
        assert_eq!(mesh.diary()[2..], ["hook before the end", "first ends"]);

        let mut failing = shell("failing", "exec sleep 600");
        failing["lifecycle"] = json!({"postStart": hook("exit 3")});
        mesh.create("failing", no, json!({"containers": [failing], "terminationGracePeriodSeconds": 1}))
            .await;
        mesh.pod_until("failing", "restarts", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        })
        .await;
        mesh.has_event("FailedPostStartHook").await;
    });
}

fn order() {
    let ends = "trap 'echo app is told >> /diary/log; sleep 1; echo app ends >> /diary/log; exit 0' TERM; while :; do sleep 0.1; done";
    for native in ["false", "true"] {
        on_mesh(async |mesh| {
            let annotations = json!({"sidecar.istio.io/nativeSidecar": native});
            mesh.create("app", annotations, json!({"containers": [shell("app", ends)]})).await;
            mesh.pod_until("app", "the Pod", is_ready).await;
            mesh.pods().delete("app", &DeleteParams::default()).await.unwrap();
            mesh.pod_until("app", "the end", Value::is_null).await;
            let mut seen = mesh.diary();
            assert_eq!(seen.split_off(2), ["app ends", "sidecar ends"], "native: {native}");
            // At the same time, the one way or the other.
            seen.sort();
            assert_eq!(seen, ["app is told", "sidecar drains"], "native: {native}");
        });
    }
}

fn jobs() {
    on_mesh(async |mesh| {
        for native in ["false", "true"] {
            for (code, phase) in [(0, "Succeeded"), (4, "Failed")] {
                let name = format!("job-{native}-{code}");
                let work = shell("work", &format!("sleep 0.3; exit {code}"));
                let spec = json!({"containers": [work], "restartPolicy": "Never"});
                mesh.create(&name, json!({"sidecar.istio.io/nativeSidecar": native}), spec).await;
                mesh.pod_until(&name, phase, |pod| pod["status"]["phase"] == phase).await;
            }
        }
    });
}

fn replaced() {
    on_mesh(async |mesh| {
        let spec =
            json!({"containers": [shell("app", "exec sleep 600")], "terminationGracePeriodSeconds": 1});
        mesh.create("app", json!({}), spec).await;
        let sidecar = |pod: &Value| {
            let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|c| c["name"] == "istio-proxy").unwrap_or_default()
        };
        let before = sidecar(&mesh.pod_until("app", "the Pod", is_ready).await);
        for round in 1..=2 {
            let wish =
                json!({"metadata": {"annotations": {"maille.dev/replace-sidecar": round.to_string()}}});
            mesh.pods().patch("app", &PatchParams::default(), &Patch::Merge(&wish)).await.unwrap();
            until("the end of the one before", || async {
                let seen = mesh.diary();
                let count = seen.iter().filter(|line| *line == "sidecar was replaced").count();
                if count == round { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        }
        mesh.has_event("SidecarReplaced").await;
        mesh.has_event("SidecarFinished").await;
        let after = mesh.pod_until("app", "another container", |pod| {
            is_ready(pod) && sidecar(pod)["containerID"] != before["containerID"]
        });
        let after = sidecar(&after.await);
        assert_eq!(after["restartCount"], 0, "nothing was restarted");
        assert!(after["state"]["running"].is_object(), "{after}");
    });
}

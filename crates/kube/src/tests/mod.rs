mod ca_files;
mod fake_api;
mod mesh_config;
mod networking;
mod objects;
mod revocations;
mod rotation;
mod secrecy;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fake_api::FakeApi;
use http::StatusCode;
use maille_control::authority::Keeper;
use maille_control::world::{MeshConfig, World};
use maille_control::{ControlPlane, Hub, ReviewError, TokenReviewer};
use maille_core::{SystemClock, TrustDomain};
use maille_pki::Authority;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::ControlPlaneOptions;
use crate::published::ROOTS;
use crate::root::{PLUGGED_IN, Secrets};
use crate::run::{FIRST_PATIENCE, run_with};
use crate::token_review::ApiTokenReviewer;

const SELF_SIGNED: &str = "istio-ca-secret";

struct Running {
    api: FakeApi,
    monitoring: SocketAddr,
    discovery: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn namespace(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "uid": name, "labels": { "app": "cart" } },
        "spec": { "serviceAccountName": "cart", "containers": [{ "name": "app" }, { "name": "istio-proxy" }] },
        "status": { "phase": "Running", "podIP": ip, "hostIP": "192.0.2.1" },
    })
}

async fn start(api: FakeApi) -> Running {
    start_with(api, |_| {}).await
}

async fn start_with(api: FakeApi, set: impl FnOnce(&mut ControlPlaneOptions)) -> Running {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let (discovery, monitoring) = (bind().await.expect("bind"), bind().await.expect("bind"));
    let address = |l: &TcpListener| l.local_addr().expect("address");
    let (discovery_address, monitoring_address) = (address(&discovery), address(&monitoring));
    let (stop, stopped) = watch::channel(false);
    let options = ControlPlaneOptions::new(TrustDomain::parse("cluster.local").expect("valid"));
    // Many of these run at once.
    let mut options = ControlPlaneOptions { bundle_port: None, ..options };
    set(&mut options);
    let running = run_with(api.client(), options, Arc::new(SystemClock), discovery, monitoring, stopped);
    let task = tokio::spawn(running);
    Running { api, monitoring: monitoring_address, discovery: discovery_address, stop, task }
}

impl Running {
    async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.monitoring).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("status");
        (status, text)
    }

    async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.http("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// The facts that a proxy should hold.
    async fn facts(&self, proxy: &str) -> Value {
        let (_, text) = self.http(&format!("/facts?proxy={proxy}")).await;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str::<Value>(body).map(|dump| dump["facts"].clone()).unwrap_or_default()
    }

    async fn ready(&self) {
        eventually("ready", async || (self.http("/ready").await.0 == 200).then_some(())).await;
    }
}

async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("within ten seconds: {what}");
}

fn bundle_of(api: &FakeApi, namespace: &str) -> Option<String> {
    api.get("configmaps", namespace, ROOTS.name)?["data"][ROOTS.key].as_str().map(str::to_owned)
}

#[tokio::test]
async fn the_world_is_followed_and_outlives_the_api_server() {
    let api = FakeApi::new();
    api.put("pods", pod("cart-1", "10.0.0.1"));
    let running = start(api.clone()).await;
    running.ready().await;
    let workloads = async |n: u64| (running.metric("maille_workloads").await == Some(n)).then_some(());
    eventually("the listed pod", async || workloads(1).await).await;
    api.put("pods", pod("cart-2", "10.0.0.2"));
    eventually("the new pod", async || workloads(2).await).await;
    api.set_away(true);
    assert_eq!(running.http("/ready").await.0, 200, "the last world stays in force");
    workloads(2).await.expect("and is whole");
    TcpStream::connect(running.discovery).await.expect("discovery goes on");
    api.delete("pods", "shop", "cart-1");
    api.set_away(false);
    eventually("what happened meanwhile", async || workloads(1).await).await;
    running.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(3), running.task)
        .await
        .expect("quickly")
        .expect("joins")
        .expect("fine");
}

/// What another mesh is given as this one's roots, by a script that waits until the control plane is ready, is not empty.
#[tokio::test]
async fn the_roots_are_told_before_it_is_ready() {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    api.answer_creations(Some(StatusCode::INTERNAL_SERVER_ERROR));
    let running = start(api.clone()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.http("/ready").await.0, 503, "while nobody has them");
    assert_eq!(running.metric("maille_workloads").await, Some(0), "all the same it works");
    api.answer_creations(None);
    running.ready().await;
    assert!(bundle_of(&api, "shop").is_some_and(|bundle| bundle.contains("BEGIN CERTIFICATE")));
}

/// One that is going away, or that somebody else's rules are for.
#[tokio::test]
async fn a_namespace_that_refuses_the_roots_is_not_waited_for() {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    api.answer_creations(Some(StatusCode::FORBIDDEN));
    let began = std::time::Instant::now();
    start(api.clone()).await.ready().await;
    assert!(began.elapsed() < FIRST_PATIENCE, "it was waited for");
    assert_eq!(bundle_of(&api, "shop"), None);
}

/// Proxies that run already have their roots.
#[tokio::test]
async fn it_serves_although_the_roots_cannot_be_told() {
    let api = FakeApi::new();
    api.put("namespaces", namespace("shop"));
    api.forbid(ROOTS.name);
    let running = start(api.clone()).await;
    running.ready().await;
    assert_eq!(bundle_of(&api, "shop"), None);
}

#[tokio::test]
async fn without_an_api_server_it_waits_and_says_so() {
    let api = FakeApi::new();
    api.set_away(true);
    let running = start(api.clone()).await;
    assert_eq!(running.http("/healthz").await.0, 200);
    assert_eq!(running.http("/ready").await.0, 503);
    api.set_away(false);
    running.ready().await;
}

#[tokio::test]
async fn every_namespace_but_two_has_the_bundle_and_an_edit_is_undone() {
    let api = FakeApi::new();
    for name in ["shop", "istio-system", "kube-public", "kube-node-lease"] {
        api.put("namespaces", namespace(name));
    }
    let running = start(api.clone()).await;
    running.ready().await;
    let good = eventually("the bundle", async || bundle_of(&api, "shop")).await;
    assert!(good.starts_with("-----BEGIN CERTIFICATE-----"));
    api.put("namespaces", namespace("new"));
    for name in ["istio-system", "new"] {
        eventually(name, async || (bundle_of(&api, name)? == good).then_some(())).await;
    }
    let edited = json!({
        "metadata": { "namespace": "shop", "name": ROOTS.name },
        "data": { ROOTS.key: "another root" },
    });
    api.put("configmaps", edited);
    eventually("restored", async || (bundle_of(&api, "shop")? == good).then_some(())).await;
    api.delete("configmaps", "new", ROOTS.name);
    eventually("made again", async || (bundle_of(&api, "new")? == good).then_some(())).await;
    assert_eq!(bundle_of(&running.api, "kube-public"), None);
    assert_eq!(bundle_of(&running.api, "kube-node-lease"), None);
}

#[tokio::test]
async fn the_root_is_made_once_and_found_again() {
    let api = FakeApi::new();
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let load = async || {
        let hub = Hub::new(World::new(MeshConfig::new(domain.clone())));
        let reviewer = Arc::new(ApiTokenReviewer(api.client()));
        let control = ControlPlane::new(hub, reviewer, Arc::new(SystemClock));
        let secrets = Arc::new(Secrets::new(api.client(), "istio-system"));
        Keeper::start(control, secrets).await.map(|keeper| keeper.roots().borrow().clone())
    };
    let first = load().await.expect("made");
    let secret = api.get("secrets", "istio-system", SELF_SIGNED).expect("stored");
    assert_eq!(secret["type"], "istio.io/ca-root");
    for key in ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem", "key.pem"] {
        assert!(secret["data"][key].is_string(), "Istio's form has {key}");
    }
    assert_eq!(load().await.expect("found"), first);
    // A replica that is slower takes the faster one's.
    api.delete("secrets", "istio-system", SELF_SIGNED);
    api.lose_race_against(secret.clone());
    assert_eq!(load().await.expect("the other's"), first);
    // What an operator plugs in comes first.
    let own = Authority::self_signed(&domain, std::time::SystemTime::now(), Duration::from_secs(3600))
        .expect("root");
    let mut plugged = secret;
    plugged["metadata"]["name"] = json!(PLUGGED_IN);
    for (key, text) in own.to_secret() {
        plugged["data"][key] = json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
    }
    api.put("secrets", plugged.clone());
    assert_eq!(load().await.expect("plugged in"), own.roots_pem());
    // CA-20: what is incomplete is not taken, and nothing else in its place.
    plugged["data"].as_object_mut().expect("entries").remove("root-cert.pem");
    api.put("secrets", plugged);
    let error = load().await.expect_err("unusable");
    assert!(error.to_string().contains("Secret cacerts"), "{error}");
    assert!(error.to_string().contains("root-cert.pem"), "{error}");
}

#[tokio::test]
async fn tokens_are_reviewed_by_the_api_server() {
    let api = FakeApi::new();
    let reviewer = ApiTokenReviewer(api.client());
    let reviewed = reviewer.review("shop:cart", "istio-ca").await.expect("good");
    assert_eq!(reviewed.service_account, "cart");
    assert!(matches!(reviewer.review("nonsense", "istio-ca").await, Err(ReviewError::Rejected(_))));
    assert!(matches!(reviewer.review("", "istio-ca").await, Err(ReviewError::Rejected(_))));
    assert!(matches!(reviewer.review(&"x".repeat(20_000), "istio-ca").await, Err(ReviewError::Rejected(_))));
    api.set_away(true);
    assert!(matches!(reviewer.review("shop:cart", "istio-ca").await, Err(ReviewError::Unavailable(_))));
}

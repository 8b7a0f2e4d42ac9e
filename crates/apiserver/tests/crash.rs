//! What was answered survives `kill -9`.

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

const DIR: &str = "MAILLE_TEST_SERVE_DIR";

/// Not a test of its own: the process that [`answered_writes_survive_a_killed_server`] kills.
#[test]
fn serve_until_killed() {
    if let Some(dir) = std::env::var_os(DIR) {
        let (_runtime, _ready) = support::start_in(dir.as_ref());
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}

#[test]
fn answered_writes_survive_a_killed_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut answered = Vec::new();
    for round in 0..3 {
        let kubeconfig = dir.path().join("kubeconfig");
        let _ = std::fs::remove_file(&kubeconfig);
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "serve_until_killed", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("a server");
        support::eventually("the server writes its kubeconfig", || kubeconfig.exists());
        runtime.block_on(async {
            let config = Kubeconfig::read_from(&kubeconfig).expect("a kubeconfig");
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
                .await
                .expect("a config");
            let maps: Api<ConfigMap> =
                Api::namespaced(Client::try_from(config).expect("a client"), "default");
            let mut killer = None;
            for i in 0..100_000 {
                let name = format!("m{round}-{i}");
                let map = ConfigMap {
                    metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
                    data: Some(BTreeMap::from([("k".into(), "v".repeat(2000))])),
                    ..Default::default()
                };
                match maps.create(&PostParams::default(), &map).await {
                    Ok(_) => answered.push(name),
                    Err(_) if killer.is_some() => break,
                    // The first request may come before the server accepts.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
                if answered.len() % 40 == 39 && killer.is_none() {
                    // From another thread, so that it hits in the middle of a write.
                    let pid = child.id().to_string();
                    killer = Some(std::thread::spawn(move || {
                        Command::new("kill").args(["-9", &pid]).status().expect("killed")
                    }));
                }
            }
            killer.expect("enough was written").join().expect("killed");
        });
        let _ = child.wait();
    }
    assert!(answered.len() >= 100, "{}", answered.len());
    let (server, _ready) = support::start_in(dir.path());
    let found: Vec<String> = runtime.block_on(async {
        let config = Kubeconfig::read_from(dir.path().join("kubeconfig")).expect("a kubeconfig");
        let config =
            Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("a config");
        let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config).expect("a client"), "default");
        let list = maps.list(&ListParams::default()).await.expect("a list");
        list.items.into_iter().filter_map(|m| m.metadata.name).collect()
    });
    for name in &answered {
        assert!(found.contains(name), "{name} was answered and is lost");
    }
    drop(server);
}

//! The API as the control plane and the supervisor use it: through the `kube` client.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::json;
use support::Server;

async fn client(server: &Server) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    Client::try_from(config).expect("a client")
}

fn on_runtime<F: Future<Output = ()>>(work: impl FnOnce(Arc<Server>) -> F) {
    // Held until after the runtime's end: a server cannot be stopped from within one.
    let server = Arc::new(Server::start());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limit = std::time::Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, work(server.clone())).await.expect("in time") });
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
        data: Some(BTreeMap::from([("k".to_owned(), value.to_owned())])),
        ..Default::default()
    }
}

#[test]
fn objects_are_created_replaced_with_conflicts_and_deleted() {
    on_runtime(|server| async move {
        let maps: Api<ConfigMap> = Api::namespaced(client(&server).await, "default");
        let made = maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("created");
        let mut first = made.clone();
        first.data = Some(BTreeMap::from([("k".into(), "2".into())]));
        let second = maps.replace("a", &PostParams::default(), &first).await.expect("replaced");
        assert_ne!(second.metadata.resource_version, made.metadata.resource_version);
        let stale = maps.replace("a", &PostParams::default(), &made).await.expect_err("stale");
        assert!(matches!(&stale, kube::Error::Api(status) if status.code == 409), "{stale}");
        // The same again writes nothing.
        let again = maps.replace("a", &PostParams::default(), &second).await.expect("the same");
        assert_eq!(again.metadata.resource_version, second.metadata.resource_version);
        let apply = PatchParams::apply("test").force();
        maps.patch("b", &apply, &Patch::Apply(&config_map("b", "x"))).await.expect("applied");
        let dry = PostParams { dry_run: true, ..Default::default() };
        maps.create(&dry, &config_map("c", "1")).await.expect("a dry run");
        assert!(maps.get_opt("c").await.expect("asked").is_none());
        maps.delete("b", &DeleteParams::default()).await.expect("deleted");
        let missing = maps.get("b").await.expect_err("gone");
        assert!(
            matches!(&missing, kube::Error::Api(s) if s.code == 404 && s.reason == "NotFound"),
            "{missing}"
        );
    });
}

#[test]
fn long_lists_come_in_pages_that_show_one_moment() {
    on_runtime(|server| async move {
        let maps: Api<ConfigMap> = Api::namespaced(client(&server).await, "default");
        for i in 0..7 {
            maps.create(&PostParams::default(), &config_map(&format!("m{i}"), "1")).await.expect("created");
        }
        let first = maps.list(&ListParams::default().limit(3)).await.expect("a page");
        assert_eq!(first.items.len(), 3);
        // What changes meanwhile is not in the later pages.
        maps.delete("m5", &DeleteParams::default()).await.expect("deleted");
        maps.create(&PostParams::default(), &config_map("m9", "1")).await.expect("created");
        let mut names: Vec<String> = first.items.iter().filter_map(|m| m.metadata.name.clone()).collect();
        let mut token = first.metadata.continue_;
        while let Some(next) = token.filter(|t| !t.is_empty()) {
            let page =
                maps.list(&ListParams::default().limit(3).continue_token(&next)).await.expect("a page");
            names.extend(page.items.iter().filter_map(|m| m.metadata.name.clone()));
            token = page.metadata.continue_;
        }
        assert_eq!(names, ["kube-root-ca.crt", "m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    });
}

#[test]
fn watches_show_every_change_once_and_in_order() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let start =
            maps.list(&ListParams::default()).await.expect("a list").metadata.resource_version.expect("one");
        maps.create(&PostParams::default(), &config_map("a", "1")).await.expect("created");
        let label = json!({"metadata": {"labels": {"pick": "me"}}});
        maps.patch("a", &PatchParams::default(), &Patch::Merge(&label)).await.expect("patched");
        maps.delete("a", &DeleteParams::default()).await.expect("deleted");
        let kinds = |params: WatchParams| {
            let maps = maps.clone();
            let start = start.clone();
            async move {
                let mut stream = maps.watch(&params, &start).await.expect("a watch").boxed();
                let mut seen = Vec::new();
                while let Some(event) = stream.try_next().await.expect("an event") {
                    seen.push(match event {
                        WatchEvent::Added(_) => "added",
                        WatchEvent::Modified(_) => "modified",
                        WatchEvent::Deleted(_) => "deleted",
                        WatchEvent::Bookmark(_) => continue,
                        WatchEvent::Error(e) => panic!("{e}"),
                    });
                }
                seen
            }
        };
        assert_eq!(kinds(WatchParams::default().timeout(2)).await, ["added", "modified", "deleted"]);
        // By label it is first seen when it gets the label.
        assert_eq!(kinds(WatchParams::default().labels("pick=me").timeout(2)).await, ["added", "deleted"]);
        let old = maps.watch(&WatchParams::default().timeout(2), "0").await.expect("from the state").boxed();
        let initial: Vec<_> = old.try_collect().await.expect("events");
        assert!(matches!(initial.first(), Some(WatchEvent::Added(_))));
    });
}

#[test]
fn the_watcher_works_with_lists_and_with_streamed_lists() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
            maps.create(&PostParams::default(), &config_map("w", "1")).await.expect("created");
            let mut stream = watcher(maps.clone(), config).default_backoff().boxed();
            let mut initial = Vec::new();
            loop {
                match stream.try_next().await.expect("no error").expect("no end") {
                    watcher::Event::Init => {}
                    watcher::Event::InitApply(map) => initial.extend(map.metadata.name),
                    watcher::Event::InitDone => break,
                    other => panic!("before the end of the initial events: {other:?}"),
                }
            }
            initial.sort();
            assert_eq!(initial, ["kube-root-ca.crt", "w"]);
            maps.delete("w", &DeleteParams::default()).await.expect("deleted");
            let next = stream.try_next().await.expect("no error").expect("no end");
            assert!(
                matches!(&next, watcher::Event::Delete(m) if m.metadata.name.as_deref() == Some("w")),
                "{next:?}"
            );
        }
    });
}

#[test]
fn a_future_or_forgotten_revision_is_gone() {
    on_runtime(|server| async move {
        let maps: Api<ConfigMap> = Api::namespaced(client(&server).await, "default");
        let error = maps.watch(&WatchParams::default(), "999999").await.err().expect("refused");
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 410), "{error}");
    });
}

#[test]
fn a_meshed_namespace_gets_sidecars_and_pods_get_their_status_from_the_kubelet_only() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let mesh: Namespace = serde_json::from_value(
            json!({"metadata": {"name": "mesh", "labels": {"istio-injection": "enabled"}}}),
        )
        .expect("valid");
        namespaces.create(&PostParams::default(), &mesh).await.expect("created");
        let pods: Api<Pod> = Api::namespaced(client.clone(), "mesh");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"generateName": "web-"},
            "spec": {"containers": [{"name": "app", "image": "x", "ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running"},
        }))
        .expect("valid");
        let made = pods.create(&PostParams::default(), &pod).await.expect("created");
        let name = made.metadata.name.clone().expect("made");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        let spec = made.spec.clone().expect("a spec");
        let names: Vec<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["istio-proxy", "app"]);
        assert_eq!(spec.node_name.as_deref(), Some("maille"));
        assert_eq!(made.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Pending"));
        // The kubelet's way: strategic merge of the status.
        let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "True"}]}});
        let running = pods
            .patch_status(&name, &PatchParams::default(), &Patch::Strategic(&status))
            .await
            .expect("patched");
        let status = running.status.expect("a status");
        assert_eq!(status.pod_ips.map(|ips| ips.len()), Some(1));
        let kinds: Vec<String> = status.conditions.unwrap_or_default().into_iter().map(|c| c.type_).collect();
        assert_eq!(kinds, ["PodScheduled", "Ready"]);
        assert_eq!(running.metadata.generation, made.metadata.generation);
        // An ordinary change does not touch it, and most of the spec is fixed.
        let wish = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"x": "y"}}});
        let patched =
            pods.patch(&name, &PatchParams::default(), &Patch::Merge(&wish)).await.expect("patched");
        assert_eq!(patched.status.and_then(|s| s.phase).as_deref(), Some("Running"));
        let wish = json!({"spec": {"serviceAccountName": "other"}});
        let error =
            pods.patch(&name, &PatchParams::default(), &Patch::Merge(&wish)).await.expect_err("fixed");
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 422), "{error}");
        // Graceful deletion, as a kubelet ends it.
        pods.delete(&name, &DeleteParams::default()).await.expect("asked");
        let ending = pods.get(&name).await.expect("still there");
        assert!(ending.metadata.deletion_timestamp.is_some());
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("ended");
        assert!(pods.get_opt(&name).await.expect("asked").is_none());
    });
}

#[test]
fn tokens_are_for_their_audience_and_die_with_their_pod() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x"}]}}),
        )
        .expect("valid");
        let pod = pods.create(&PostParams::default(), &pod).await.expect("created");
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let request: TokenRequest = serde_json::from_value(json!({"spec": {
            "audiences": ["istio-ca"], "expirationSeconds": 600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod.metadata.uid},
        }}))
        .expect("valid");
        let answer = accounts
            .create_token_request("default", &PostParams::default(), &request)
            .await
            .expect("a token");
        let token = answer.status.expect("a status").token.expect("a token");
        let reviews: Api<TokenReview> = Api::all(client.clone());
        let review = |audience: &str| {
            let spec = TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.clone() };
            let review = TokenReview { spec, ..Default::default() };
            let reviews = reviews.clone();
            async move {
                reviews
                    .create(&PostParams::default(), &review)
                    .await
                    .expect("reviewed")
                    .status
                    .expect("a status")
            }
        };
        let good = review("istio-ca").await;
        assert_eq!(good.authenticated, Some(true));
        let user = good.user.expect("a user");
        assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:default"));
        assert_eq!(user.extra.expect("extra")["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_ne!(review("other").await.authenticated, Some(true));
        // A token for another audience opens nothing here.
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("a config");
        config.auth_info = Default::default();
        config.auth_info.token = Some(token.clone().into());
        let stranger = Client::try_from(config).expect("a client");
        let error = stranger.apiserver_version().await.err();
        assert!(error.is_none(), "the version is for everyone: {error:?}");
        let error = stranger.list_api_groups().await.expect_err("refused");
        assert!(matches!(&error, kube::Error::Api(s) if s.code == 401), "{error}");
        pods.delete("p", &DeleteParams::default().grace_period(0)).await.expect("deleted");
        assert_ne!(review("istio-ca").await.authenticated, Some(true), "the Pod is gone");
    });
}

#[test]
fn events_of_both_groups_are_the_same() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let new: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client.clone(), "default");
        let event = serde_json::from_value(json!({
            "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "note": "hello", "reason": "R", "type": "Normal",
            "action": "A", "reportingController": "c", "reportingInstance": "i", "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        }))
        .expect("valid");
        new.create(&PostParams::default(), &event).await.expect("created");
        let old: Api<Event> = Api::namespaced(client, "default");
        let found = old.list(&ListParams::default().fields("involvedObject.name=p")).await.expect("listed");
        assert_eq!(found.items.first().and_then(|e| e.message.as_deref()), Some("hello"));
    });
}

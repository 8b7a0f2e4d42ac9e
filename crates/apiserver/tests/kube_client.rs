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
use maille_config::istio::{AuthorizationPolicy, RequestAuthentication};
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

fn policy(name: &str) -> AuthorizationPolicy {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"rules": [{}]}})).expect("valid")
}

fn unenforced(generation: i64) -> serde_json::Value {
    json!({
        "observedGeneration": generation.to_string(),
        "conditions": [{
            "type": "Enforced", "status": "False", "reason": "Targets", "message": "nothing enforces it",
            "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    })
}

/// The control plane writes the status and nothing else; everybody else the rest, and never the status.
#[test]
fn status_and_spec_of_policies_are_written_apart() {
    on_runtime(|server| async move {
        let policies: Api<AuthorizationPolicy> = Api::namespaced(client(&server).await, "default");
        let mut forged = policy("p");
        forged.status = Some(json!({"conditions": []}));
        let made = policies.create(&PostParams::default(), &forged).await.expect("created");
        assert_eq!((made.metadata.generation, &made.status), (Some(1), &None));

        // By merge patch, which may also carry what it must not change.
        let patch =
            json!({"status": unenforced(1), "spec": {"action": "DENY"}, "metadata": {"labels": {"a": "b"}}});
        let patched = policies
            .patch_status("p", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("patched");
        assert_eq!(patched.status, Some(unenforced(1)));
        assert_eq!((patched.metadata.generation, &patched.spec), (Some(1), &made.spec));
        assert_eq!(patched.metadata.labels, None);
        assert_ne!(patched.metadata.resource_version, made.metadata.resource_version);

        // A new spec is a new generation, and keeps the status that was observed of the old one.
        let mut changed = patched.clone();
        changed.spec.action = maille_config::istio::Action::Deny;
        changed.status = None;
        let changed = policies.replace("p", &PostParams::default(), &changed).await.expect("replaced");
        assert_eq!((changed.metadata.generation, &changed.status), (Some(2), &Some(unenforced(1))));
        let labels = json!({"metadata": {"labels": {"a": "b"}}, "status": null});
        let labelled =
            policies.patch("p", &PatchParams::default(), &Patch::Merge(&labels)).await.expect("patched");
        assert_eq!((labelled.metadata.generation, &labelled.status), (Some(2), &Some(unenforced(1))));

        // By replacement, with the whole object as the body; a stale one is a conflict.
        let stale = policies.replace_status("p", &PostParams::default(), &changed).await;
        assert!(matches!(&stale, Err(kube::Error::Api(s)) if s.code == 409), "{stale:?}");
        let mut observed = labelled.clone();
        observed.status = Some(unenforced(2));
        observed.spec = Default::default();
        let observed =
            policies.replace_status("p", &PostParams::default(), &observed).await.expect("replaced");
        assert_eq!((observed.metadata.generation, &observed.spec), (Some(2), &labelled.spec));
        assert_eq!(observed.status, Some(unenforced(2)));
        // The same again writes nothing, so that nobody is told.
        let again = policies.replace_status("p", &PostParams::default(), &observed).await.expect("the same");
        assert_eq!(again.metadata.resource_version, observed.metadata.resource_version);

        // By server-side apply, which owns the status alone, and takes it away when it applies none.
        let apply = PatchParams::apply("istiod").force();
        let config = |status: serde_json::Value| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "p", "labels": {"x": "y"}}, "spec": {"action": "ALLOW"}, "status": status,
            })
        };
        let applied =
            policies.patch_status("p", &apply, &Patch::Apply(config(unenforced(3)))).await.expect("applied");
        assert_eq!(applied.status, Some(unenforced(3)));
        assert_eq!((applied.metadata.generation, &applied.spec), (Some(2), &labelled.spec));
        assert_eq!(applied.metadata.labels, labelled.metadata.labels);
        let owned = serde_json::to_string(&applied.metadata.managed_fields).expect("JSON");
        assert!(owned.contains("f:status") && !owned.contains("f:spec"), "{owned}");
        // The owner of the spec meets no conflict with the owner of the status.
        let by_person = PatchParams::apply("kubectl");
        let spec =
            policies.patch("p", &by_person, &Patch::Apply(config(unenforced(9)))).await.expect("applied");
        assert_eq!((spec.metadata.generation, &spec.status), (Some(3), &Some(unenforced(3))));
        let gone =
            policies.patch_status("p", &apply, &Patch::Apply(config(json!({})))).await.expect("applied");
        let empty = gone.status.as_ref().is_none_or(|status| *status == json!({}));
        assert!(empty, "{:?}", gone.status);
        let cleared = policies
            .patch_status("p", &PatchParams::default(), &Patch::Merge(&json!({"status": null})))
            .await
            .expect("patched");
        assert_eq!(cleared.status, None);
        let shapeless = json!({"status": "fine"});
        let refused = policies.patch_status("p", &PatchParams::default(), &Patch::Merge(&shapeless)).await;
        assert!(matches!(&refused, Err(kube::Error::Api(s)) if s.code == 422), "{refused:?}");
    });
}

#[test]
fn tokens_issuers_are_objects_and_bad_ones_are_refused() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let all: Api<RequestAuthentication> = Api::namespaced(client.clone(), "default");
        let read = |spec: serde_json::Value| -> RequestAuthentication {
            serde_json::from_value(json!({"metadata": {"name": "ra"}, "spec": spec})).expect("valid")
        };
        let good = read(json!({"jwtRules": [{"issuer": "https://idp", "jwksUri": "https://idp/keys"}]}));
        let made = all.create(&PostParams::default(), &good).await.expect("created");
        assert_eq!((made.metadata.generation, made.spec), (Some(1), good.spec));
        let bad = read(json!({"jwtRules": [{"issuer": "https://idp", "jwksUri": "ftp://idp/keys"}]}));
        let refused = all.replace("ra", &PostParams::default(), &bad).await.expect_err("refused");
        assert!(
            matches!(&refused, kube::Error::Api(s) if s.code == 422 && s.message.contains("spec.jwtRules[0].jwksUri")),
            "{refused}"
        );
        let resources = client.list_api_group_resources("security.istio.io/v1").await.expect("discovery");
        let found = resources.resources.iter().find(|r| r.name == "requestauthentications").expect("listed");
        assert_eq!(found.short_names.as_deref(), Some(["ra".to_owned()].as_slice()));
        assert!(resources.resources.iter().any(|r| r.name == "requestauthentications/status"));
    });
}

/// The body names neither its namespace nor, when it is replaced, itself: the path does.
#[test]
fn a_bad_mesh_configuration_is_refused_with_its_line() {
    on_runtime(|server| async move {
        let client = client(&server).await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let root = serde_json::from_value(json!({"metadata": {"name": "istio-system"}})).expect("valid");
        namespaces.create(&PostParams::default(), &root).await.expect("created");
        let maps: Api<ConfigMap> = Api::namespaced(client, "istio-system");
        let mesh = |text: &str| ConfigMap {
            metadata: kube::api::ObjectMeta { name: Some("istio".into()), ..Default::default() },
            data: Some(BTreeMap::from([("mesh".to_owned(), text.to_owned())])),
            ..Default::default()
        };
        let line = "data.mesh: Invalid value: line 2: rootNamespac: unknown field";
        let is_refused = |answer: Result<ConfigMap, kube::Error>| {
            let refused = answer.expect_err("refused");
            assert!(
                matches!(&refused, kube::Error::Api(s) if s.code == 422 && s.message.contains(line)),
                "{refused}"
            );
        };
        let bad = "# mesh\nrootNamespac: a\n";
        is_refused(maps.create(&PostParams::default(), &mesh(bad)).await);
        maps.create(&PostParams::default(), &mesh("rootNamespace: a\n")).await.expect("created");
        is_refused(maps.replace("istio", &PostParams::default(), &mesh(bad)).await);
        let patch = json!({"data": {"mesh": bad}});
        is_refused(maps.patch("istio", &PatchParams::default(), &Patch::Merge(&patch)).await);
        let kept = maps.get("istio").await.expect("there").data.expect("data");
        assert_eq!(kept.get("mesh").map(String::as_str), Some("rootNamespace: a\n"));
    });
}

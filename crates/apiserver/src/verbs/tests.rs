use std::sync::Arc;

use ipnet::Ipv4Net;
use maille_inject::InjectSettings;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::watch::Watch;
use super::write::PatchKind;
use super::{delete, read, write};
use crate::api::{Api, Caller, Settings};
use crate::auth::tokens::Tokens;
use crate::bootstrap;
use crate::injection::Injection;
use crate::json;
use crate::negotiate::Shape;
use crate::request::{self, Query, Route, Target};
use crate::store::{RingLimits, Store};

/// An API without sockets.
pub(crate) struct Scene {
    pub(crate) api: Api,
    admin: Caller,
    _dir: tempfile::TempDir,
}

pub(crate) fn scene(limits: RingLimits) -> Scene {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(&dir.path().join("s"), limits).expect("opened"));
    let domain = maille_core::TrustDomain::parse("cluster.local").expect("valid");
    let api = Api {
        pods: None,
        sessions: Default::default(),
        tokens: Tokens::load(&store).expect("a key"),
        root_pem: "root".into(),
        injection: Injection::new(InjectSettings::new("i", "/maille", domain)),
        settings: Settings {
            service_cidr: "10.96.0.0/16".parse::<Ipv4Net>().expect("valid"),
            service_cidr_v6: Some("fd00:10:96::/112".parse().expect("valid")),
            node_name: "node".into(),
            pod_log_dir: dir.path().into(),
        },
        store,
    };
    bootstrap::run(&api, "10.244.0.1:6443".parse().expect("valid")).expect("the first objects");
    let admin = Caller { name: "a".into(), uid: String::new(), groups: vec![], extra: vec![] };
    Scene { api, admin, _dir: dir }
}

fn target(path: &str) -> Target {
    match request::route(path) {
        Ok(Route::Objects(target)) => target,
        other => panic!("{path}: {other:?}"),
    }
}

impl Scene {
    fn create(&self, path: &str, body: Value) -> crate::status::ApiResult<Value> {
        write::create(&self.api, &self.admin, &target(path), &Query::default(), body).map(|w| w.object)
    }
}

/// JSON made of the words that objects are made of, so that it gets far.
fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "status",
        "containers",
        "ports",
        "port",
        "containerPort",
        "env",
        "volumes",
        "volumeMounts",
        "selector",
        "matchLabels",
        "template",
        "replicas",
        "strategy",
        "rollingUpdate",
        "type",
        "clusterIP",
        "clusterIPs",
        "addressType",
        "endpoints",
        "addresses",
        "rules",
        "from",
        "source",
        "principals",
        "mtls",
        "mode",
        "data",
        "finalizers",
        "ownerReferences",
        "managedFields",
        "fieldsV1",
        "resources",
        "limits",
        "readinessProbe",
        "httpGet",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "generateName",
        "image",
        "uid",
        "resourceVersion",
        "default",
        "a",
        "TCP",
        "STRICT",
        "delete",
        "f:spec",
    ];
    let word = || proptest::sample::select(WORDS).prop_map(str::to_owned);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((word(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

const PLACES: &[&str] = &[
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/services",
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/secrets",
    "/api/v1/namespaces",
    "/apis/apps/v1/namespaces/default/deployments",
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    "/apis/events.k8s.io/v1/namespaces/default/events",
    "/apis/coordination.k8s.io/v1/namespaces/default/leases",
    "/apis/security.istio.io/v1beta1/namespaces/default/peerauthentications",
    "/apis/security.istio.io/v1/namespaces/default/authorizationpolicies",
];

#[test]
fn no_json_makes_a_write_panic() {
    let scene = scene(RingLimits::default());
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
    scene.create("/api/v1/namespaces/default/pods", pod).expect("created");
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}});
    scene.create("/api/v1/namespaces/default/services", service).expect("created");
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let dry = Query::parse("dryRun=All&fieldManager=m&force=true&fieldValidation=Ignore");
    proptest!(config, |(place in proptest::sample::select(PLACES), body in any_json(), spec in any_json())| {
        let (api, admin) = (&scene.api, &scene.admin);
        let _ = write::create(api, admin, &target(place), &dry, body.clone());
        let object = json!({"metadata": {"name": "x"}, "spec": spec.clone(), "data": body.clone(), "endpoints": spec.clone(), "addressType": "IPv4"});
        let _ = write::create(api, admin, &target(place), &dry, object);
        for path in ["/api/v1/namespaces/default/pods/p", "/api/v1/namespaces/default/pods/p/status", "/api/v1/namespaces/default/services/s"] {
            let one = target(path);
            for kind in [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic, PatchKind::Apply] {
                let _ = write::patch(api, admin, &one, &dry, kind, &body);
                let _ = write::patch(api, admin, &one, &dry, kind, &json!({"spec": spec.clone(), "metadata": body.clone()}));
            }
            let _ = write::update(api, admin, &one, &dry, json!({"metadata": {"name": "p"}, "spec": spec.clone(), "status": body.clone()}));
        }
        let _ = delete::DeleteOptions::parse(&dry, Some(&body));
        // What is stored in a strange shape must still be shown.
        let pods = target("/api/v1/namespaces/default/pods");
        let _ = read::present(&pods, &body, Shape::Table, &dry);
        let _ = read::present(&target("/apis/apps/v1/namespaces/default/deployments"), &json!({"spec": spec, "status": body}), Shape::Table, &dry);
    });
}

#[test]
fn addresses_are_unique_fixed_and_given_back() {
    let scene = scene(RingLimits::default());
    let place = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let first = scene.create(place, service("a", "")).expect("created");
    let address = json::text(&first, &["spec", "clusterIP"]).to_owned();
    assert!(address.starts_with("10.96."));
    assert_eq!(first["spec"]["ports"][0]["targetPort"], 80);
    let taken = scene.create(place, service("b", &address)).expect_err("taken");
    assert_eq!(taken.code, 422);
    assert_eq!(scene.create(place, service("c", "10.97.0.1")).expect_err("outside").code, 422);
    assert_eq!(scene.create(place, service("c", "10.96.0.1")).expect_err("the API's own").code, 422);
    scene.create(place, service("dns", "10.96.0.10")).expect("a low address may be asked for");
    assert_eq!(
        scene.create(place, service("headless", "None")).expect("created")["spec"]["clusterIP"],
        "None"
    );
    let one = target("/api/v1/namespaces/default/services/a");
    let moved = json!({"spec": {"clusterIP": "10.96.7.7"}});
    let refused = write::patch(&scene.api, &scene.admin, &one, &Query::default(), PatchKind::Merge, &moved);
    assert_eq!(refused.expect_err("fixed").code, 422);
    // A replacement that leaves the address out keeps it.
    let again =
        write::update(&scene.api, &scene.admin, &one, &Query::default(), service("a", "")).expect("updated");
    assert_eq!(json::text(&again.object, &["spec", "clusterIP"]), address);
    delete::delete(&scene.api, &one, &delete::DeleteOptions::background()).expect("deleted");
    scene.create(place, service("b", &address)).expect("free again");
}

#[test]
fn a_service_gets_and_loses_its_second_address_as_its_policy_changes() {
    let scene = scene(RingLimits::default());
    let place = "/api/v1/namespaces/default/services";
    let first = json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}});
    let before = scene.create(place, first.clone()).expect("created")["spec"]["clusterIPs"].clone();
    let one = target("/api/v1/namespaces/default/services/a");
    let patch = |patch: Value| {
        write::patch(&scene.api, &scene.admin, &one, &Query::default(), PatchKind::Merge, &patch)
            .map(|written| written.object)
    };
    let both = patch(json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).expect("patched");
    let addresses = both["spec"]["clusterIPs"].as_array().expect("a list").clone();
    assert_eq!((addresses.len(), &addresses[0]), (2, &before[0]), "{both}");
    assert!(addresses[1].as_str().is_some_and(|address| address.starts_with("fd00:10:96::")), "{both}");
    let same = write::update(&scene.api, &scene.admin, &one, &Query::default(), first).expect("updated");
    assert_eq!(same.object["spec"]["clusterIPs"], both["spec"]["clusterIPs"], "what is left out stays");
    let back = patch(json!({"spec": {"ipFamilyPolicy": "SingleStack"}})).expect("patched");
    assert_eq!((&back["spec"]["clusterIPs"], &back["spec"]["ipFamilies"]), (&before, &json!(["IPv4"])));
    patch(json!({"spec": {"ipFamilies": ["IPv6"]}})).expect_err("the first family stays");
}

#[test]
fn unknown_fields_are_refused_warned_of_or_dropped_as_asked() {
    let scene = scene(RingLimits::default());
    let pods = target("/api/v1/namespaces/default/pods");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "x", "prots": []}]}});
    let with = |mode: &str| {
        let query = Query::parse(&format!("dryRun=All&fieldValidation={mode}"));
        write::create(&scene.api, &scene.admin, &pods, &query, pod.clone())
    };
    let strict = with("Strict").expect_err("refused");
    assert_eq!(strict.code, 400);
    assert!(strict.message.contains("unknown field \"spec.containers[0].prots\""), "{strict}");
    let warned = with("Warn").expect("accepted");
    assert_eq!(warned.warnings, ["unknown field \"spec.containers[0].prots\""]);
    assert!(warned.object["spec"]["containers"][0].get("prots").is_none());
    assert!(with("Ignore").expect("accepted").warnings.is_empty());
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off_and_costs_no_memory() {
    let scene = scene(RingLimits { events: 8, bytes: 1 << 20 });
    let query = Query::parse("watch=1");
    let maps = target("/api/v1/namespaces/default/configmaps");
    let watch = Watch::new(scene.api.store.clone(), maps, query, Shape::Plain).expect("a watch");
    let (sender, mut receiver) = mpsc::channel(1);
    let running = tokio::spawn(watch.run(sender));
    for i in 0..200 {
        let map = json!({"metadata": {"name": format!("m{i}")}});
        scene.create("/api/v1/namespaces/default/configmaps", map).expect("created");
        tokio::task::yield_now().await;
    }
    let mut last = Value::Null;
    while let Some(bytes) = receiver.recv().await {
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            last = serde_json::from_slice(line).expect("an event");
        }
    }
    running.await.expect("ended");
    assert_eq!(last["type"], "ERROR");
    assert_eq!(last["object"]["code"], 410);
    assert_eq!(last["object"]["reason"], "Expired");
}

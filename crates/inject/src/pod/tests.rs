use super::*;
use serde_json::Value;

fn settings() -> InjectSettings {
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    InjectSettings::new("maille:1", "/usr/local/bin/maille", domain)
}

fn submitted() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "cart-6d5f-",
            "labels": {"app": "cart", "pod-template-hash": "6d5f"},
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9090",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
            },
        },
        "spec": {
            "serviceAccountName": "cart",
            "initContainers": [{"name": "migrate", "command": ["true"]}],
            "containers": [{
                "name": "app",
                "command": ["/srv/cart"],
                "ports": [{"name": "web", "containerPort": 8080}, {"name": "rpc", "containerPort": 9000}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "web", "scheme": "HTTPS",
                    "httpHeaders": [{"name": "Host", "value": "cart"}]}, "timeoutSeconds": 2, "periodSeconds": 5},
                "livenessProbe": {"tcpSocket": {"port": 8080}},
                "startupProbe": {"grpc": {"port": 9000, "service": "cart"}, "failureThreshold": 30},
                "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": 8080}}},
            }, {
                "name": "helper",
                "readinessProbe": {"exec": {"command": ["true"]}},
                "livenessProbe": {"httpGet": {"path": "/x", "port": 15020}},
            }],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    })
}

fn injected(pod: Value) -> Value {
    let pod = serde_json::from_value(pod).expect("a pod");
    serde_json::to_value(inject(pod, "shop", &settings(), "k3y").expect("injected")).expect("JSON")
}

/// `MAILLE_BLESS=1` writes the file anew.
#[test]
fn an_injected_pod_is_as_in_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/pod/injected.json");
    let found = serde_json::to_string_pretty(&injected(submitted())).expect("JSON") + "\n";
    if std::env::var_os("MAILLE_BLESS").is_some() {
        std::fs::write(path, &found).expect("a writable golden file");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file");
    assert!(found == expected, "{path} differs from:\n{found}");
}

/// What injection writes passes the check it would have to pass when submitted.
#[test]
fn an_injected_pod_has_no_unknown_field() {
    let errors = maille_config::check(&injected(submitted())).err().unwrap_or_default();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Reference mtls 7.6.
#[test]
fn probes_go_to_the_status_port_and_the_originals_to_the_agent() {
    let pod = injected(submitted());
    let app = &pod["spec"]["containers"][1];
    assert_eq!(app["name"], "app");
    assert_eq!(
        app["readinessProbe"],
        json!({
            "httpGet": {"path": "/app-health/app/readyz", "port": 15020, "scheme": "HTTP",
                "httpHeaders": [{"name": "Host", "value": "cart"}]},
            "timeoutSeconds": 2,
            "periodSeconds": 5,
        })
    );
    assert_eq!(app["livenessProbe"]["httpGet"]["path"], "/app-health/app/livez");
    assert_eq!(app["livenessProbe"]["tcpSocket"], Value::Null);
    assert_eq!(app["startupProbe"]["httpGet"]["path"], "/app-health/app/startupz");
    assert_eq!(app["startupProbe"]["failureThreshold"], 30);
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["path"], "/app-lifecycle/k3y/app/prestopz");
    let helper = &pod["spec"]["containers"][2];
    assert_eq!(helper["readinessProbe"], json!({"exec": {"command": ["true"]}}));
    assert_eq!(helper["livenessProbe"]["httpGet"]["path"], "/x");

    let env = pod["spec"]["containers"][0]["env"].as_array().expect("an environment").clone();
    let probers = env.iter().find(|e| e["name"] == "ISTIO_KUBE_APP_PROBERS").expect("the originals");
    let probers: Value = serde_json::from_str(probers["value"].as_str().expect("text")).expect("JSON");
    assert_eq!(
        probers,
        json!({
            "/app-health/app/livez": {"tcpSocket": {"port": 8080}},
            "/app-health/app/readyz": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "Host", "value": "cart"}]}, "timeoutSeconds": 2},
            "/app-health/app/startupz": {"grpc": {"port": 9000, "service": "cart"}},
            "/app-lifecycle/k3y/app/prestopz": {"httpGet": {"path": "/drain", "port": 8080}},
        })
    );
}

#[test]
fn probes_stay_when_asked_to() {
    for (annotation, value) in
        [("sidecar.istio.io/rewriteAppHTTPProbers", "false"), ("status.sidecar.istio.io/port", "0")]
    {
        let mut pod = submitted();
        pod["metadata"]["annotations"][annotation] = json!(value);
        let pod = injected(pod);
        assert_eq!(
            pod["spec"]["containers"][1]["livenessProbe"],
            json!({"tcpSocket": {"port": 8080}}),
            "{annotation}"
        );
    }
}

#[test]
fn names_come_from_labels_and_then_from_the_owner() {
    let name = |labels: Value, owner: Value| {
        let pod = json!({
            "metadata": {"name": "cart-6d5f-x1", "labels": labels, "ownerReferences": owner},
            "spec": {"containers": [{"name": "app"}]},
        });
        let labels = injected(pod)["metadata"]["labels"].clone();
        (
            labels[CANONICAL_NAME].as_str().map(str::to_owned),
            labels[CANONICAL_REVISION].as_str().map(str::to_owned),
        )
    };
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-6d5f", "uid": "1", "controller": true}]);
    let is = |name: &str, revision: &str| (Some(name.to_owned()), Some(revision.to_owned()));
    assert_eq!(name(json!({"app": "a", "version": "v2"}), owner.clone()), is("a", "v2"));
    assert_eq!(name(json!({"app": "a", "app.kubernetes.io/name": "b"}), owner.clone()), is("b", "latest"));
    assert_eq!(name(json!({"pod-template-hash": "6d5f"}), owner.clone()), is("cart", "latest"));
    assert_eq!(name(json!({}), json!([])), is("cart-6d5f-x1", "latest"));
    let job = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "bill-29012345", "uid": "1", "controller": true}]);
    assert_eq!(name(json!({}), job), is("bill", "latest"));
}

#[test]
fn without_interception_there_is_no_init_container() {
    let mut pod = submitted();
    pod["metadata"]["annotations"]["sidecar.istio.io/interceptionMode"] = json!("NONE");
    assert_eq!(injected(pod)["spec"]["initContainers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_pod_with_a_sidecar_is_refused() {
    let again = serde_json::from_value(injected(submitted())).expect("a pod");
    assert!(matches!(inject(again, "shop", &settings(), "k3y"), Err(InjectError::ReservedName { .. })));
}

/// Reference cli-and-telemetry 3.4: without a word of the application, the sidecar's own metrics are to be read.
#[test]
fn the_sidecars_metrics_are_read_unless_the_pod_says_no() {
    let annotated = |annotations: Value| {
        let mut pod = submitted();
        pod["metadata"]["annotations"] = annotations;
        let pod = injected(pod);
        let found = pod["metadata"]["annotations"].clone();
        let env = pod["spec"]["containers"][0]["env"].to_string();
        let of = |name: &str| found[format!("prometheus.io/{name}")].as_str().map(str::to_owned);
        (of("scrape"), of("port"), of("path"), env.contains("ISTIO_PROMETHEUS_ANNOTATIONS"))
    };
    let some = |text: &str| Some(text.to_owned());
    let merged = |is_told| (some("true"), some("15020"), some("/stats/prometheus"), is_told);
    assert_eq!(annotated(Value::Null), merged(false));
    assert_eq!(
        annotated(json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090"})),
        merged(true)
    );
    let no = json!({"prometheus.io/scrape": "false"});
    assert_eq!(annotated(no), (some("false"), None, None, false));
    let own = json!({"prometheus.istio.io/merge-metrics": "false", "prometheus.io/scrape": "true", "prometheus.io/port": "9"});
    assert_eq!(annotated(own), (some("true"), some("9"), None, false));
}

/// Reference mtls 7.7.
#[test]
fn a_native_sidecar_stands_before_every_other_container_and_drains_by_a_hook() {
    let mut pod = submitted();
    pod["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"] = json!("true");
    let pod = injected(pod);
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().expect("containers");
        list.iter().map(|c| c["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names("initContainers"), ["istio-init", "istio-proxy", "migrate"]);
    assert_eq!(names("containers"), ["app", "helper"]);
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["restartPolicy"], "Always");
    let drain = json!(["/usr/local/bin/maille", "proxy", "--drain"]);
    assert_eq!(proxy["lifecycle"]["preStop"]["exec"]["command"], drain);
    assert_eq!(proxy["startupProbe"]["httpGet"]["port"], 15021);
    let status = pod["metadata"]["annotations"]["sidecar.istio.io/status"].as_str().expect("text");
    let status: Value = serde_json::from_str(status).expect("JSON");
    assert_eq!(status["initContainers"], json!(["istio-init", "istio-proxy"]));
    assert_eq!(status["containers"], Value::Null);
    let errors = maille_config::check(&pod).err().unwrap_or_default();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(
        crate::forbid_reserved(&serde_json::from_value(pod).expect("a pod")).is_err(),
        "and is known as one"
    );
}

#[test]
fn an_application_is_held_by_a_hook_and_the_proxy_is_told_how_to_end() {
    let mut pod = submitted();
    pod["metadata"]["annotations"]["proxy.istio.io/config"] = json!(
        "{holdApplicationUntilProxyStarts: true, drainDuration: 20s, terminationDrainDuration: 7s, proxyMetadata: \
         {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: \"true\", MINIMUM_DRAIN_DURATION: 3s, SECRET_TTL: 1m, ISTIO_META_DNS_CAPTURE: \"true\"}}"
    );
    let pod = injected(pod);
    let proxy = &pod["spec"]["containers"][0];
    let wait = json!(["/usr/local/bin/maille", "proxy", "--wait"]);
    assert_eq!(proxy["lifecycle"]["postStart"]["exec"]["command"], wait);
    let env = proxy["env"].as_array().expect("an environment");
    let of = |name: &str| {
        env.iter().find(|e| e["name"] == name).map(|e| e["value"].as_str().expect("text").to_owned())
    };
    for (name, value) in [
        ("PROXY_CONFIG", r#"{"holdApplicationUntilProxyStarts":true}"#),
        ("MAILLE_DRAIN_DURATION_SECONDS", "20"),
        ("TERMINATION_DRAIN_DURATION_SECONDS", "7"),
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
        ("MINIMUM_DRAIN_DURATION", "3000ms"),
        ("SECRET_TTL", "60s"),
        ("ISTIO_META_DNS_CAPTURE", "true"),
    ] {
        assert_eq!(of(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(of("MAILLE_WORKERS"), None);
}

/// Reference mtls 6.3.
#[test]
fn applications_see_the_socket_of_the_workload_api_and_nothing_can_take_its_place() {
    const DIRECTORY: &str = "/var/run/secrets/workload-spiffe-uds";
    let mounted = |container: &Value| -> Option<Value> {
        let mounts = container["volumeMounts"].as_array()?;
        mounts.iter().find(|mount| mount["name"] == "workload-socket").cloned()
    };
    let told = |container: &Value, name: &str| -> Option<Value> {
        let env = container["env"].as_array()?;
        env.iter().find(|variable| variable["name"] == name).map(|found| found["value"].clone())
    };
    let mut pod = submitted();
    pod["spec"]["containers"][1]["env"] =
        json!([{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///elsewhere"}]);
    let own = json!({"name": "own", "volumeMounts": [{"name": "tmp", "mountPath": format!("{DIRECTORY}/")}]});
    pod["spec"]["containers"].as_array_mut().expect("containers").push(own);
    let with = injected(pod.clone());
    let containers = &with["spec"]["containers"];
    assert_eq!(mounted(&containers[0]), Some(json!({"name": "workload-socket", "mountPath": DIRECTORY})));
    let socket = json!(format!("{DIRECTORY}/socket"));
    assert_eq!(told(&containers[0], "MAILLE_WORKLOAD_SOCKET"), Some(socket));
    let read_only = json!({"name": "workload-socket", "mountPath": DIRECTORY, "readOnly": true});
    assert_eq!(mounted(&containers[1]), Some(read_only.clone()));
    let endpoint = json!(format!("unix://{DIRECTORY}/socket"));
    assert_eq!(told(&containers[1], "SPIFFE_ENDPOINT_SOCKET"), Some(endpoint.clone()));
    assert_eq!(mounted(&containers[2]), Some(read_only.clone()));
    assert_eq!(told(&containers[2], "SPIFFE_ENDPOINT_SOCKET"), Some(json!("unix:///elsewhere")));
    assert_eq!((mounted(&containers[3]), told(&containers[3], "SPIFFE_ENDPOINT_SOCKET")), (None, None));
    let volumes = with["spec"]["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|volume| volume["name"] == "workload-socket");
    assert_eq!(volume, Some(&json!({"name": "workload-socket", "emptyDir": {"medium": "Memory"}})));
    // Init containers have ended before an ordinary sidecar starts.
    assert_eq!(mounted(&with["spec"]["initContainers"][0]), None);
    let mut native = pod.clone();
    native["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"] = json!("true");
    let native = injected(native);
    let init = native["spec"]["initContainers"].as_array().expect("containers");
    let of = |name: &str| init.iter().find(|container| container["name"] == name).expect("there").clone();
    assert_eq!(mounted(&of("migrate")), Some(read_only));
    assert_eq!(told(&of("migrate"), "SPIFFE_ENDPOINT_SOCKET"), Some(endpoint));
    assert_eq!(mounted(&of("istio-init")), None);

    // Off.
    pod["metadata"]["annotations"]["proxy.istio.io/config"] =
        json!("proxyMetadata: {MAILLE_WORKLOAD_API: \"false\"}");
    let without = injected(pod);
    assert!(!without["spec"].to_string().contains("workload-socket"), "{without}");
    assert_eq!(told(&without["spec"]["containers"][0], "MAILLE_WORKLOAD_SOCKET"), None);
    let status = without["metadata"]["annotations"]["sidecar.istio.io/status"].as_str().expect("a status");
    assert!(!status.contains("workload-socket"), "{status}");
}

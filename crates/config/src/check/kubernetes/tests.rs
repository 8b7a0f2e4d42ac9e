use serde_json::{Value, json};

use crate::check;
use crate::field_error::FieldErrorKind::{self, Duplicate, Enum, Invalid, Required, Type, Unknown};

fn found(api_version: &str, kind: &str, rest: Value) -> Vec<(String, FieldErrorKind)> {
    let mut object =
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a", "namespace": "b"}});
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    check(&object).err().unwrap_or_default().into_iter().map(|e| (e.path, e.kind)).collect()
}

fn expect(api_version: &str, kind: &str, cases: Vec<(Value, Vec<(&str, FieldErrorKind)>)>) {
    for (rest, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(path, kind)| (path.to_owned(), kind)).collect();
        assert_eq!(found(api_version, kind, rest.clone()), expected, "{rest}");
    }
}

fn container(container: Value) -> Value {
    let mut whole = json!({"name": "app"});
    if let (Value::Object(whole), Value::Object(rest)) = (&mut whole, container) {
        whole.extend(rest);
    }
    json!({"spec": {"containers": [whole]}})
}

#[test]
fn pods() {
    expect(
        "v1",
        "Pod",
        vec![
            (
                container(
                    json!({"ports": [{"containerPort": 80, "name": "http"}], "env": [{"name": "A", "value": "b"}]}),
                ),
                vec![],
            ),
            (json!({"spec": {}}), vec![("spec.containers", Required)]),
            (json!({"spec": {"containers": [{}]}}), vec![("spec.containers[0].name", Required)]),
            (json!({"spec": {"containers": [{"name": "A"}]}}), vec![("spec.containers[0].name", Invalid)]),
            (
                json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "a"}]}}),
                vec![("spec.containers[0].name", Duplicate)],
            ),
            (container(json!({"comand": []})), vec![("spec.containers[0].comand", Unknown)]),
            (container(json!({"command": "sh"})), vec![("spec.containers[0].command", Type)]),
            (
                container(json!({"ports": [{}]})),
                vec![("spec.containers[0].ports[0].containerPort", Required)],
            ),
            (
                container(json!({"ports": [{"containerPort": 70000, "protocol": "tcp"}]})),
                vec![
                    ("spec.containers[0].ports[0].containerPort", Invalid),
                    ("spec.containers[0].ports[0].protocol", Enum),
                ],
            ),
            (
                container(json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]})),
                vec![("spec.containers[0].volumeMounts[0].name", Invalid)],
            ),
            (container(json!({"readinessProbe": {}})), vec![("spec.containers[0].readinessProbe", Required)]),
            (
                container(json!({"livenessProbe": {"httpGet": {"port": "8080"}, "tcpSocket": {"port": 0}}})),
                vec![
                    ("spec.containers[0].livenessProbe", Required),
                    ("spec.containers[0].livenessProbe.httpGet.port", Invalid),
                    ("spec.containers[0].livenessProbe.tcpSocket.port", Invalid),
                ],
            ),
            (
                container(json!({"securityContext": {"runAsUser": -1}})),
                vec![("spec.containers[0].securityContext.runAsUser", Invalid)],
            ),
            (
                json!({"spec": {"containers": [{"name": "a"}], "restartPolicy": "always"}}),
                vec![("spec.restartPolicy", Enum)],
            ),
            (
                json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}, "secret": {}}]}}),
                vec![("spec.volumes[0]", Invalid)],
            ),
        ],
    );
}

#[test]
fn services() {
    expect(
        "v1",
        "Service",
        vec![
            (
                json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}], "selector": {"app": "a"}}}),
                vec![],
            ),
            (json!({"spec": {"clusterIP": "None"}}), vec![]),
            (json!({"spec": {"type": "ExternalName", "externalName": "a.example.com"}}), vec![]),
            (json!({"spec": {}}), vec![("spec.ports", Required)]),
            (json!({"spec": {"ports": [{"port": 0}]}}), vec![("spec.ports[0].port", Invalid)]),
            (json!({"spec": {"ports": [{"port": "80"}]}}), vec![("spec.ports[0].port", Type)]),
            (
                json!({"spec": {"ports": [{"port": 80}, {"name": "b", "port": 80, "targetPort": "8080"}]}}),
                vec![
                    ("spec.ports[0].name", Required),
                    ("spec.ports[1].targetPort", Invalid),
                    ("spec.ports[1].port", Duplicate),
                ],
            ),
            (json!({"spec": {"type": "clusterip", "ports": [{"port": 1}]}}), vec![("spec.type", Enum)]),
        ],
    );
    let upper = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "1a"}, "spec": {"ports": [{"port": 1}]}});
    assert!(check(&upper).is_err(), "a service's name begins with a letter");
}

#[test]
fn deployments() {
    let spec = |selector: Value, labels: Value, pod: Value| json!({"spec": {"selector": selector, "template": {"metadata": {"labels": labels}, "spec": pod}}});
    let pod = || json!({"containers": [{"name": "a"}]});
    let app = || json!({"app": "a"});
    expect(
        "apps/v1",
        "Deployment",
        vec![
            (spec(json!({"matchLabels": app()}), json!({"app": "a", "v": "1"}), pod()), vec![]),
            (spec(json!({}), app(), pod()), vec![("spec.selector", Required)]),
            (
                spec(json!({"matchLabels": app()}), json!({"app": "b"}), pod()),
                vec![("spec.selector.matchLabels.app", Invalid)],
            ),
            (
                spec(
                    json!({"matchLabels": app()}),
                    app(),
                    json!({"containers": [{"name": "a"}], "restartPolicy": "Never"}),
                ),
                vec![("spec.template.spec.restartPolicy", Invalid)],
            ),
            (
                spec(json!({"matchLabels": app()}), app(), json!({})),
                vec![("spec.template.spec.containers", Required)],
            ),
        ],
    );
}

#[test]
fn the_other_kinds() {
    expect(
        "v1",
        "ConfigMap",
        vec![
            (json!({"data": {"a.b-c_d": "x"}}), vec![]),
            (json!({"data": {"a/b": "x"}}), vec![("data[a/b]", Invalid)]),
            (json!({"data": {"a": 1}}), vec![("data.a", Type)]),
            (json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}}), vec![("binaryData.a", Duplicate)]),
        ],
    );
    expect(
        "v1",
        "Secret",
        vec![
            (json!({"data": {"a": "eA=="}}), vec![]),
            (json!({"data": {"a": "!"}}), vec![("data.a", Invalid)]),
        ],
    );
    expect(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        vec![
            (
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
                vec![],
            ),
            (
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]}),
                vec![("endpoints[0].addresses[0]", Invalid)],
            ),
        ],
    );
    expect("v1", "Namespace", vec![(json!({}), vec![("metadata.namespace", Invalid)])]);
    expect("v1", "ServiceAccount", vec![(json!({}), vec![])]);
}

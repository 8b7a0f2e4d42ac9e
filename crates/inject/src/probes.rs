//! Probes and hooks of the application, moved to the sidecar's status port (reference mtls 7.6).
//!
//! The kubelet has no identity: under STRICT it could not reach the application, and a `tcpSocket` probe would
//! find the proxy in place of a dead application. The agent makes the original probe from inside the Pod.

use std::collections::BTreeMap;

use maille_config::k8s::IntOrString;
use maille_config::k8s::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, PodSpec, Probe};
use maille_core::ports;
use serde_json::{Map, Value, json};

/// Request path on the status port to the original probe, as `ISTIO_KUBE_APP_PROBERS` has it.
pub(crate) type Originals = BTreeMap<String, Value>;

/// Rewrites the probes and hooks of the application's containers; what they were is the result.
///
/// Paths of probes are Istio's. Those of hooks have `hook_key` in them besides: a probe asks, but a hook makes the
/// application stop, and the status port answers all of the network.
pub(crate) fn rewrite(spec: &mut PodSpec, hook_key: &str) -> Originals {
    let mut originals = Originals::new();
    let restarted = |container: &&mut Container| container.restart_policy.as_deref() == Some("Always");
    let long_lived = spec.init_containers.iter_mut().flatten().filter(restarted);
    for container in spec.containers.iter_mut().chain(long_lived) {
        rewrite_container(container, hook_key, &mut originals);
    }
    originals
}

fn rewrite_container(container: &mut Container, hook_key: &str, originals: &mut Originals) {
    let named: BTreeMap<String, i32> = container
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some((port.name.clone()?, port.container_port)))
        .collect();
    let probes = [
        ("readyz", &mut container.readiness_probe),
        ("livez", &mut container.liveness_probe),
        ("startupz", &mut container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            let path = format!("/app-health/{}/{name}", container.name);
            if let Some(original) = rewrite_probe(probe, &path, &named) {
                originals.insert(path, original);
            }
        }
    }
    let Some(lifecycle) = &mut container.lifecycle else { return };
    for (name, hook) in [("prestopz", &mut lifecycle.pre_stop), ("poststartz", &mut lifecycle.post_start)] {
        if let Some(hook) = hook {
            let path = format!("/app-lifecycle/{hook_key}/{}/{name}", container.name);
            if let Some(original) = rewrite_hook(hook, &path, &named) {
                originals.insert(path, original);
            }
        }
    }
}

fn rewrite_probe(probe: &mut Probe, path: &str, named: &BTreeMap<String, i32>) -> Option<Value> {
    let mut original = Map::new();
    let mut headers = None;
    if let Some(http) = &probe.http_get {
        original.insert("httpGet".to_owned(), http_original(http, named)?);
        headers.clone_from(&http.http_headers);
    } else if let Some(tcp) = &probe.tcp_socket {
        original.insert("tcpSocket".to_owned(), json!({"port": number(&tcp.port, named)?}));
    } else {
        let grpc = probe.grpc.as_ref()?;
        if grpc.port == i32::from(ports::STATUS) {
            return None;
        }
        original.insert("grpc".to_owned(), json!({"port": grpc.port, "service": grpc.service}));
    }
    if let Some(timeout) = probe.timeout_seconds {
        original.insert("timeoutSeconds".to_owned(), json!(timeout));
    }
    (probe.tcp_socket, probe.grpc) = (None, None);
    probe.http_get = Some(HTTPGetAction { http_headers: headers, ..to_status_port(path) });
    Some(Value::Object(original))
}

fn rewrite_hook(hook: &mut LifecycleHandler, path: &str, named: &BTreeMap<String, i32>) -> Option<Value> {
    let mut headers = None;
    let original = if let Some(http) = &hook.http_get {
        headers.clone_from(&http.http_headers);
        json!({"httpGet": http_original(http, named)?})
    } else {
        json!({"tcpSocket": {"port": number(&hook.tcp_socket.as_ref()?.port, named)?}})
    };
    hook.tcp_socket = None;
    hook.http_get = Some(HTTPGetAction { http_headers: headers, ..to_status_port(path) });
    Some(original)
}

fn http_original(http: &HTTPGetAction, named: &BTreeMap<String, i32>) -> Option<Value> {
    let mut original = serde_json::to_value(http).ok()?;
    *original.get_mut("port")? = json!(number(&http.port, named)?);
    Some(original)
}

fn to_status_port(path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(i32::from(ports::STATUS)),
        scheme: Some("HTTP".to_owned()),
        ..Default::default()
    }
}

/// The number of a port; `None` for a name that the container lacks (the kubelet fails such a probe), and for the
/// status port, whose probes are the sidecar's already.
fn number(port: &IntOrString, named: &BTreeMap<String, i32>) -> Option<i32> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match named.get(name) {
            Some(number) => *number,
            None => name.parse().ok()?,
        },
    };
    (number != i32::from(ports::STATUS)).then_some(number)
}

//! Kubernetes' defaults of Pods, in Pods and in templates.
//!
//! Source: kubernetes `pkg/apis/core/v1/defaults.go`.

use serde_json::{Map, Value, json};

use crate::json;

/// Fills in the defaults of a Pod's spec.
pub(crate) fn spec(spec: &mut Value) {
    let map = json::map_of(spec);
    // The old name of the account's field is kept equal to the new one.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|k| map.get(*k).and_then(Value::as_str).filter(|a| !a.is_empty()).map(str::to_owned));
    if let Some(account) = account {
        map.insert("serviceAccountName".into(), account.clone().into());
        map.insert("serviceAccount".into(), account.into());
    }
    let host_network = map.get("hostNetwork") == Some(&Value::Bool(true));
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
    ] {
        json::default_to(map, key, value);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for item in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(item) = item {
                container(item, host_network);
            }
        }
    }
    for item in map.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(item) = item {
            volume(item);
        }
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    // After the last '/', since a registry may have a port.
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    json::default_to(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    json::default_to(container, "terminationMessagePath", "/dev/termination-log");
    json::default_to(container, "terminationMessagePolicy", "File");
    json::default_to(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port {
            json::default_to(port, "protocol", "TCP");
            if host_network && let Some(number) = port.get("containerPort").cloned() {
                json::default_to(port, "hostPort", number);
            }
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = container.get_mut(probe) {
            self::probe(probe);
        }
    }
    if let Some(Value::Object(lifecycle)) = container.get_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(Value::Object(get)) = lifecycle.get_mut(hook).and_then(|h| h.get_mut("httpGet")) {
                http_get(get);
            }
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::Object(reference)) = json::at_mut(variable, &["valueFrom", "fieldRef"]) {
            json::default_to(reference, "apiVersion", "v1");
        }
    }
    quantities(container);
    // A limit without a request is a request of the same size.
    let limits = container.get("resources").and_then(|r| r.get("limits")).cloned();
    if let Some(Value::Object(limits)) = limits {
        let resources = json::object_mut(container, "resources");
        let requests = json::object_mut(resources, "requests");
        for (name, limit) in limits {
            json::default_to(requests, &name, limit);
        }
    }
}

/// Quantities are texts; YAML makes numbers of the plain ones.
fn quantities(container: &mut Map<String, Value>) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    for kind in ["limits", "requests"] {
        for amount in
            resources.get_mut(kind).and_then(Value::as_object_mut).into_iter().flatten().map(|(_, v)| v)
        {
            if amount.is_number() {
                *amount = amount.to_string().into();
            }
        }
    }
}

fn probe(probe: &mut Map<String, Value>) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        // Zero is "not set" to Kubernetes' defaulting.
        if probe.get(key).and_then(Value::as_i64).unwrap_or(0) == 0 {
            probe.insert(key.into(), value.into());
        }
    }
    if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
        http_get(get);
    }
    if let Some(Value::Object(grpc)) = probe.get_mut("grpc") {
        json::default_to(grpc, "service", "");
    }
}

fn http_get(get: &mut Map<String, Value>) {
    json::default_to(get, "scheme", "HTTP");
    if get.get("path").and_then(Value::as_str).unwrap_or_default().is_empty() {
        get.insert("path".into(), "/".into());
    }
}

fn volume(volume: &mut Map<String, Value>) {
    // A volume without a source is an emptyDir.
    if volume.keys().all(|k| k == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for (source, mode) in
        [("secret", 0o644), ("configMap", 0o644), ("projected", 0o644), ("downwardAPI", 0o644)]
    {
        if let Some(Value::Object(source)) = volume.get_mut(source) {
            json::default_to(source, "defaultMode", mode);
        }
    }
    if let Some(Value::Object(path)) = volume.get_mut("hostPath") {
        json::default_to(path, "type", "");
    }
    if let Some(Value::Object(projected)) = volume.get_mut("projected") {
        for source in projected.get_mut("sources").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(Value::Object(token)) = source.get_mut("serviceAccountToken") {
                json::default_to(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                field_refs(downward);
            }
        }
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        field_refs(downward);
    }
}

fn field_refs(downward: &mut Value) {
    for item in json::items_mut(downward, &["items"]) {
        if let Some(Value::Object(reference)) = item.get_mut("fieldRef") {
            json::default_to(reference, "apiVersion", "v1");
        }
    }
}

/// Keeps `podIP` and `podIPs` of a status in step, as Kubernetes' decoding does.
pub(crate) fn status(pod: &mut Value) {
    let Some(Value::Object(status)) = pod.get_mut("status") else { return };
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let single = status.get(one).and_then(Value::as_str).unwrap_or_default().to_owned();
        let first = status
            .get(many)
            .and_then(|l| l.as_array()?.first()?.get("ip")?.as_str())
            .unwrap_or_default()
            .to_owned();
        if !single.is_empty() && first != single {
            status.insert(many.into(), json!([{ "ip": single }]));
        } else if single.is_empty() && !first.is_empty() {
            status.insert(one.into(), first.into());
        }
    }
}

/// `status.qosClass` from the requests and limits of all containers.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers =
        || json::items(spec, &["initContainers"]).iter().chain(json::items(spec, &["containers"]));
    let amount = |c: &Value, kind: &str, name: &str| json::at(c, &["resources", kind, name]).cloned();
    let any = containers().any(|c| {
        ["requests", "limits"]
            .iter()
            .any(|kind| ["cpu", "memory"].iter().any(|name| amount(c, kind, name).is_some()))
    });
    let all = containers().all(|c| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = amount(c, "limits", name);
            limit.is_some() && limit == amount(c, "requests", name)
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_kubernetes_defaults() {
        let mut pod = json!({
            "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
        });
        spec(&mut pod);
        assert_eq!(pod["restartPolicy"], "Always");
        assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(
            pod["containers"][0]["readinessProbe"],
            json!({"httpGet": {"port": 80, "scheme": "HTTP", "path": "/"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(pod["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(pod["volumes"][1]["configMap"]["defaultMode"], 420);
        let again = pod.clone();
        spec(&mut pod);
        assert_eq!(pod, again, "defaulting twice changes nothing");
    }
}

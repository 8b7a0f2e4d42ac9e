//! What is there before anyone asks: namespaces, the node, the API's own Service.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::admission::namespaces;
use crate::api::Api;
use crate::json;
use crate::status::ApiResult;
use crate::store::{Change, Key, State};
use crate::time;
use crate::verbs::write;

/// Namespaces that are always there and may not be deleted.
pub(crate) const SYSTEM_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing and brings up to date what depends on this start.
pub(crate) fn run(api: &Api, advertise: SocketAddr) -> ApiResult<()> {
    api.store.commit(|state| {
        let mut changes = Vec::new();
        for name in SYSTEM_NAMESPACES {
            if state.get("namespaces", "", name).is_none() {
                let mut namespace =
                    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
                write::stamp(&mut namespace);
                let contents = namespaces::create(api, state, &mut namespace);
                changes.push(Change::Put(Key::new("namespaces", "", name), namespace));
                changes.extend(contents);
            }
        }
        let wanted = [
            (Key::new("nodes", "", &api.settings.node_name), node(api)),
            (Key::new("services", "default", "kubernetes"), service(api)),
            (Key::new("endpointslices.discovery.k8s.io", "default", "kubernetes"), endpoints(advertise)),
        ];
        changes.extend(wanted.into_iter().filter_map(|(key, object)| put(state, key, object)));
        changes.extend(roots(api, state));
        Ok((changes, ()))
    })?;
    Ok(())
}

/// Puts an object of the server itself, keeping the identity of one that is there.
fn put(state: &State, key: Key, mut object: Value) -> Option<Change> {
    write::stamp(&mut object);
    let Some(old) = state.get(&key.store, &key.namespace, &key.name) else {
        return Some(Change::Put(key, object));
    };
    if json::metadata_mut(&mut object).get("labels") == json::at(old, &["metadata", "labels"])
        && ["spec", "endpoints", "ports", "addressType"].iter().all(|k| object.get(*k) == old.get(*k))
    {
        return None;
    }
    let mut new = Value::clone(old);
    let map = json::map_of(&mut new);
    for part in ["spec", "endpoints", "ports", "addressType"] {
        if let Some(value) = object.get(part) {
            map.insert(part.into(), value.clone());
        }
    }
    Some(Change::Put(key, new))
}

/// Every namespace's copy of the API's authority, restored where it differs.
pub(crate) fn roots(api: &Api, state: &State) -> Vec<Change> {
    let mut changes = Vec::new();
    for namespace in state.list("namespaces", None).filter(|n| !json::is_terminating(n)) {
        for (key, wanted) in namespaces::contents(api, json::name(namespace)) {
            match state.get(&key.store, &key.namespace, &key.name) {
                None => changes.push(Change::Put(key, wanted)),
                Some(found)
                    if key.name == namespaces::ROOT_CONFIG_MAP && found.get("data") != wanted.get("data") =>
                {
                    let mut mended = Value::clone(found);
                    json::map_of(&mut mended)
                        .insert("data".into(), wanted.get("data").cloned().unwrap_or_default());
                    changes.push(Change::Put(key, mended));
                }
                Some(_) => {}
            }
        }
    }
    changes
}

fn node(api: &Api) -> Value {
    let version = format!("v1.37.0+maille.{}", env!("CARGO_PKG_VERSION"));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let system = read("/etc/os-release")
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|v| v.trim_matches('"').to_owned()))
        .unwrap_or_else(|| "Linux".to_owned());
    let now = time::now();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": api.settings.node_name, "labels": {
            "kubernetes.io/hostname": api.settings.node_name, "kubernetes.io/os": "linux",
            "kubernetes.io/arch": crate::bootstrap::architecture(),
        } },
        "spec": {},
        "status": {
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "MailleReady", "message": "pods run as processes of this machine",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
            "addresses": [{ "type": "Hostname", "address": api.settings.node_name }],
            "nodeInfo": {
                "kubeletVersion": version, "osImage": system, "operatingSystem": "linux",
                "architecture": crate::bootstrap::architecture(), "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "containerRuntimeVersion": format!("maille://{}", env!("CARGO_PKG_VERSION")),
                "machineID": "", "systemUUID": "", "bootID": read("/proc/sys/kernel/random/boot_id"), "kubeProxyVersion": "",
            },
        },
    })
}

fn service(api: &Api) -> Value {
    let address = api.settings.service_cidr.hosts().next().map(|a| a.to_string()).unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP", "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443 }],
        },
        "status": { "loadBalancer": {} },
    })
}

fn endpoints(advertise: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [advertise.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": advertise.port(), "protocol": "TCP" }],
    })
}

/// The machine in Go's words, as clients know them.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

//! A container's environment, as Kubernetes composes it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use maille_net::sandbox::DEFAULT_PATH;

use crate::address::{KUBERNETES_SERVICE, NODE_ADDRESS, NODE_NAME, pod_addresses};
use crate::cluster::Cluster;

/// Where values come from that are not in the Pod.
pub(crate) trait Sources {
    fn config_map(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<ConfigMap>>;
    fn secret(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<Secret>>;
}

impl Sources for Cluster {
    fn config_map(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<ConfigMap>> {
        self.config_maps.get(namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<Secret>> {
        self.secrets.get(namespace, name)
    }
}

/// The environment of a container whose Pod has this address. The error is what the container waits for.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    address: Ipv4Addr,
    sources: &impl Sources,
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("HOSTNAME", &hostname(pod));
    env.set("HOME", "/");
    let host = KUBERNETES_SERVICE.to_string();
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", host.clone()),
        ("KUBERNETES_SERVICE_PORT", "443".to_owned()),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443".to_owned()),
        ("KUBERNETES_PORT", format!("tcp://{host}:443")),
        ("KUBERNETES_PORT_443_TCP", format!("tcp://{host}:443")),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp".to_owned()),
        ("KUBERNETES_PORT_443_TCP_PORT", "443".to_owned()),
        ("KUBERNETES_PORT_443_TCP_ADDR", host.clone()),
    ] {
        env.set(name, &value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match sources.config_map(&namespace, &reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match sources.secret(&namespace, &reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), &String::from_utf8_lossy(&value.0));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) => Some(expand(value, &env.values)),
            (None, Some(source)) => from_source(source, pod, container, address, &namespace, sources)
                .map_err(|e| format!("env {}: {e}", var.name))?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&var.name, &value);
        }
    }
    Ok(env.list())
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        if self.values.insert(name.to_owned(), value.to_owned()).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn list(self) -> Vec<(String, String)> {
        // Neither name nor value can be passed on with a NUL in it.
        let plain = |text: &str| !text.contains('\0');
        self.order
            .into_iter()
            .filter_map(|name| self.values.get(&name).cloned().map(|value| (name, value)))
            .filter(|(name, value)| !name.is_empty() && !name.contains('=') && plain(name) && plain(value))
            .collect()
    }
}

fn from_source(
    source: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    address: Ipv4Addr,
    namespace: &str,
    sources: &impl Sources,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return pod_field(pod, address, field).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_field(container, field).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let map = sources.config_map(namespace, &reference.name);
        let value = map.as_ref().and_then(|map| map.data.as_ref()?.get(&reference.key).cloned());
        return match value {
            None if reference.optional == Some(true) => Ok(None),
            None if map.is_none() => Err(format!("configmap {:?} not found", reference.name)),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
            value => Ok(value),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let secret = sources.secret(namespace, &reference.name);
        let value = secret.as_ref().and_then(|secret| secret.data.as_ref()?.get(&reference.key).cloned());
        return match value {
            None if reference.optional == Some(true) => Ok(None),
            None if secret.is_none() => Err(format!("secret {:?} not found", reference.name)),
            None => {
                Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name))
            }
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
        };
    }
    Err("valueFrom names no source this node knows".to_owned())
}

/// A field of the Pod, for the environment and for downward API files.
pub(crate) fn pod_field(pod: &Pod, address: Ipv4Addr, field: &ObjectFieldSelector) -> Result<String, String> {
    let path = field.field_path.as_str();
    let meta = &pod.metadata;
    let pairs = |map: &Option<BTreeMap<String, String>>| {
        let lines = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => pairs(&meta.labels),
        "metadata.annotations" => pairs(&meta.annotations),
        "spec.nodeName" => NODE_NAME.to_owned(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => NODE_ADDRESS.to_string(),
        "status.podIP" => address.to_string(),
        "status.podIPs" => {
            pod_addresses(address).map(|address| address.to_string()).collect::<Vec<_>>().join(",")
        }
        _ => {
            let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            match (subscript("metadata.labels"), subscript("metadata.annotations")) {
                (Some(key), _) => entry(&meta.labels, key),
                (_, Some(key)) => entry(&meta.annotations, key),
                _ => return Err(format!("unsupported fieldPath {path:?}")),
            }
        }
    })
}

/// A limit or request of a container, divided and rounded up.
pub(crate) fn resource_field(container: &Container, field: &ResourceFieldSelector) -> Result<String, String> {
    let resources = container.resources.as_ref();
    let (kind, name) = field
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource {:?}", field.resource))?;
    let pick = |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|map| map.get(name)).cloned();
    let quantity = match kind {
        "limits" => pick(resources.and_then(|r| r.limits.as_ref())),
        "requests" => pick(resources.and_then(|r| r.requests.as_ref()))
            .or_else(|| pick(resources.and_then(|r| r.limits.as_ref()))),
        _ => return Err(format!("unsupported container resource {:?}", field.resource)),
    };
    let Some(quantity) = quantity else {
        // Without a limit Kubernetes gives what the node has.
        return Ok(match name {
            "cpu" => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
            _ => "0".to_owned(),
        });
    };
    let value = parse_quantity(&quantity.0).ok_or_else(|| format!("bad quantity {:?}", quantity.0))?;
    let divisor = match &field.divisor {
        Some(divisor) if divisor.0 != "0" => {
            parse_quantity(&divisor.0).ok_or_else(|| format!("bad divisor {:?}", divisor.0))?
        }
        _ => 1.0,
    };
    Ok(format!("{}", (value / divisor).ceil()))
}

/// `1.5`, `250m`, `64Mi`, `2G`, `1e3`.
pub(crate) fn parse_quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1.0));
    number.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n * factor)
}

/// The host name a Pod sees.
pub(crate) fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).unwrap_or_else(|| pod.name_any());
    // The kernel takes 64 bytes; Kubernetes cuts at 63.
    own.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Replaces `$(NAME)` by values already known; `$$` is a dollar; an unknown name stays as it is
/// (kubernetes third_party/forked/golang/expansion).
pub(crate) fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or_default();
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match values.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_expands_them() {
        let values = BTreeMap::from([("A".to_owned(), "x".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("$(A)", "x"),
            ("-$(A)-$(B)-", "-x-$(A)-"),
            ("$$(A)", "$(A)"),
            ("$(MISSING) $A $", "$(MISSING) $A $"),
            ("$(A", "$(A"),
            ("ü$(A)ü", "üxü"),
        ] {
            assert_eq!(expand(text, &values), expected, "{text}");
        }
    }

    #[test]
    fn quantities_are_read() {
        for (text, value) in
            [("250m", 0.25), ("64Mi", 67_108_864.0), ("2", 2.0), ("1e3", 1000.0), ("1k", 1000.0)]
        {
            assert_eq!(parse_quantity(text), Some(value), "{text}");
        }
        assert_eq!(parse_quantity("much"), None);
    }

    struct Nothing;
    impl Sources for Nothing {
        fn config_map(&self, _: &str, _: &str) -> Option<std::sync::Arc<ConfigMap>> {
            None
        }
        fn secret(&self, _: &str, _: &str) -> Option<std::sync::Arc<Secret>> {
            None
        }
    }

    #[test]
    fn fields_labels_and_earlier_variables_are_available() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"serviceAccountName": "robot", "containers": [{"name": "c", "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "SA", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "BOTH", "value": "$(NAME)@$(IP)"},
            ]}]}
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = environment(&pod, container, Ipv4Addr::new(10, 244, 1, 1), &Nothing).unwrap();
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("BOTH"), Some("web@10.244.1.1"));
        assert_eq!((get("APP"), get("SA")), (Some("web"), Some("robot")));
        assert_eq!(get("KUBERNETES_SERVICE_HOST"), Some("10.96.0.1"));

        let mut missing = container.clone();
        missing.env = serde_json::from_value(serde_json::json!([
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}
        ]))
        .unwrap();
        let error = environment(&pod, &missing, Ipv4Addr::LOCALHOST, &Nothing).unwrap_err();
        assert!(error.contains("configmap \"m\" not found"), "{error}");
    }
}

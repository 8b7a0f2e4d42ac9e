//! What a Pod's spec must look like, in Pods and in templates.
//!
//! Source: kubernetes `pkg/apis/core/validation`, of which this is the part that the supervisor and the
//! mesh rely on.

use std::collections::HashSet;

use maille_core::is_dns_label;
use serde_json::Value;

use crate::json;
use crate::status::Cause;

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// All that is wrong with a Pod's spec at `path`.
pub(crate) fn spec(spec: &Value, path: &str) -> Vec<Cause> {
    spec_with(spec, path, &[])
}

/// As [`spec()`], for a Pod that is given these volumes beside its own.
pub(crate) fn spec_with(spec: &Value, path: &str, given: &[Value]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut volumes = volumes(spec, path, &mut causes);
    volumes.extend(given.iter().map(|claim| json::name(claim).to_owned()));
    let containers = json::items(spec, &["containers"]);
    if containers.is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in json::items(spec, &[list]).iter().enumerate() {
            self::container(container, &format!("{path}.{list}[{i}]"), &volumes, &mut names, &mut causes);
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "Never", "OnFailure"], &mut causes);
    one_of(
        spec,
        path,
        "dnsPolicy",
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        &mut causes,
    );
    for (key, least) in [("terminationGracePeriodSeconds", 0), ("activeDeadlineSeconds", 1)] {
        if let Some(value) = spec.get(key)
            && value.as_i64().is_none_or(|n| n < least)
        {
            let why = format!("must be greater than or equal to {least}");
            causes.push(Cause::invalid(format!("{path}.{key}"), value, &why));
        }
    }
    causes
}

fn one_of(spec: &Value, path: &str, key: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    let value = json::text(spec, &[key]);
    if !value.is_empty() && !allowed.contains(&value) {
        causes.push(Cause::unsupported(format!("{path}.{key}"), value, allowed));
    }
}

fn label(value: &Value, key: &str, path: &str, causes: &mut Vec<Cause>) -> String {
    let name = json::text(value, &[key]);
    if name.is_empty() {
        causes.push(Cause::required(format!("{path}.{key}"), ""));
    } else if !is_dns_label(name) {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        causes.push(Cause::invalid(format!("{path}.{key}"), &name.into(), why));
    }
    name.to_owned()
}

fn volumes(spec: &Value, path: &str, causes: &mut Vec<Cause>) -> HashSet<String> {
    let mut names = HashSet::new();
    for (i, volume) in json::items(spec, &["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        let name = label(volume, "name", &path, causes);
        if !name.is_empty() && !names.insert(name.clone()) {
            causes.push(Cause::duplicate(format!("{path}.name"), &name));
        }
        let sources: Vec<&str> = volume
            .as_object()
            .map(|m| m.keys().map(String::as_str).filter(|k| *k != "name").collect())
            .unwrap_or_default();
        if sources.len() > 1 {
            causes.push(Cause::forbidden(&path, "may not specify more than 1 volume type"));
        }
        for source in sources {
            const MOUNTED: &[&str] = &[
                "configMap",
                "secret",
                "emptyDir",
                "projected",
                "hostPath",
                "downwardAPI",
                "persistentVolumeClaim",
            ];
            if !MOUNTED.contains(&source) {
                causes.push(Cause::forbidden(
                    format!("{path}.{source}"),
                    "a mesh on one machine mounts configMap, secret, emptyDir, projected, hostPath, downwardAPI and persistentVolumeClaim volumes only",
                ));
            }
        }
        let needs = [
            ("secret", "secretName"),
            ("configMap", "name"),
            ("hostPath", "path"),
            ("persistentVolumeClaim", "claimName"),
        ];
        for (source, key) in needs {
            if volume.get(source).is_some() && json::text(volume, &[source, key]).is_empty() {
                causes.push(Cause::required(format!("{path}.{source}.{key}"), ""));
            }
        }
    }
    names
}

fn container(
    container: &Value,
    path: &str,
    volumes: &HashSet<String>,
    names: &mut HashSet<String>,
    causes: &mut Vec<Cause>,
) {
    let name = label(container, "name", path, causes);
    if !name.is_empty() && !names.insert(name.clone()) {
        causes.push(Cause::duplicate(format!("{path}.name"), &name));
    }
    if json::text(container, &["image"]).trim().is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], causes);
    ports(container, path, causes);
    for (i, variable) in json::items(container, &["env"]).iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        if json::text(variable, &["name"]).is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        }
        let from = variable.get("valueFrom");
        if from.is_some() && !json::text(variable, &["value"]).is_empty() {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{path}.valueFrom"), &Value::from(""), why));
        }
        if let Some(Value::Object(from)) = from
            && from.len() != 1
        {
            let why = "must specify exactly one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            causes.push(Cause::invalid(format!("{path}.valueFrom"), &Value::from(""), why));
        }
    }
    let mut mounted = HashSet::new();
    for (i, mount) in json::items(container, &["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = json::text(mount, &["name"]);
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: \"{name}\""),
                field: format!("{path}.name"),
            });
        }
        let at = json::text(mount, &["mountPath"]);
        if at.is_empty() {
            causes.push(Cause::required(format!("{path}.mountPath"), ""));
        } else if !mounted.insert(at) {
            causes.push(Cause::invalid(format!("{path}.mountPath"), &at.into(), "must be unique"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe) {
            self::probe(value, &format!("{path}.{probe}"), causes);
        }
    }
}

fn probe(probe: &Value, path: &str, causes: &mut Vec<Cause>) {
    let handlers: Vec<&str> =
        ["exec", "httpGet", "tcpSocket", "grpc"].into_iter().filter(|h| probe.get(*h).is_some()).collect();
    match handlers.as_slice() {
        [] => causes.push(Cause::required(path, "must specify a handler type")),
        [_] => {}
        [_, second, ..] => causes
            .push(Cause::forbidden(format!("{path}.{second}"), "may not specify more than 1 handler type")),
    }
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(value) = probe.get(handler) {
            port_or_name(value.get("port"), &format!("{path}.{handler}.port"), causes);
        }
    }
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        if let Some(value) = probe.get(key)
            && value.as_i64().is_none_or(|n| n < 0)
        {
            causes.push(Cause::invalid(format!("{path}.{key}"), value, "must be greater than or equal to 0"));
        }
    }
}

fn ports(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (i, port) in json::items(container, &["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = json::text(port, &["name"]);
        if !name.is_empty() {
            if !is_port_name(name) {
                let why = "must be an IANA_SVC_NAME (at most 15 characters, matching regex [a-z0-9]([a-z0-9-]*[a-z0-9])*, it must contain at least one letter [a-z], and hyphens cannot be adjacent to other hyphens): e.g. \"http\"";
                causes.push(Cause::invalid(format!("{path}.name"), &name.into(), why));
            } else if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), name));
            }
        }
        match port.get("containerPort") {
            None => causes.push(Cause::required(format!("{path}.containerPort"), "")),
            Some(value) => number(value, &format!("{path}.containerPort"), causes),
        }
        one_of(port, &path, "protocol", PROTOCOLS, causes);
    }
}

/// Whether `text` is a service name (RFC 6335 section 5.1).
pub(crate) fn is_port_name(text: &str) -> bool {
    is_dns_label(text)
        && text.len() <= 15
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
}

/// Adds a cause unless `value` is a port number.
pub(crate) fn number(value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !value.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
        causes.push(Cause::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

/// Adds a cause unless `value` is a port's number or name.
pub(crate) fn port_or_name(value: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    match value {
        None | Some(Value::Null) => causes.push(Cause::required(path, "")),
        Some(Value::String(name)) if !is_port_name(name) => {
            causes.push(Cause::invalid(path, &name.as_str().into(), "must be a port's number or its name"));
        }
        Some(Value::String(_)) => {}
        Some(other) => number(other, path, causes),
    }
}

//! Pods and their templates: the part of Kubernetes' validation on which running them relies
//! (kubernetes pkg/apis/core/validation).

use std::collections::BTreeSet;

use maille_core::is_dns_label;

use super::values::{check_choice, check_minimum, check_port_number};
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};

const PROTOCOLS: &[&str] = &["TCP", "UDP", "SCTP"];
const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const HOOKS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];
/// User and group ids (kubernetes `ValidateUserID`).
const MAX_ID: i64 = i32::MAX as i64;

pub(super) fn check(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    check_with(spec, &[], errors);
}

/// As [`check`], for Pods that are given these volumes beside their own.
pub(super) fn check_with(spec: &View<'_>, given: &[&str], errors: &mut Vec<FieldError>) {
    let containers = spec.get("containers");
    if containers.is_empty() {
        errors.push(containers.required("a pod has at least one container").help("for example - name: app"));
    }
    check_choice(&spec.get("restartPolicy"), &["Always", "OnFailure", "Never"], errors);
    check_choice(
        &spec.get("dnsPolicy"),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        errors,
    );
    check_minimum(&spec.get("terminationGracePeriodSeconds"), 0, errors);
    check_ids(&spec.get("securityContext"), errors);

    let mut volumes = check_volumes(&spec.get("volumes"), errors);
    volumes.extend(given);
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get(list).elements() {
            check_name(&container.get("name"), &mut names, "container", errors);
            check_container(&container, &volumes, errors);
        }
    }
}

fn check_container(container: &View<'_>, volumes: &BTreeSet<&str>, errors: &mut Vec<FieldError>) {
    check_choice(&container.get("imagePullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
    check_ids(&container.get("securityContext"), errors);
    let mut port_names = BTreeSet::new();
    for port in container.get("ports").elements() {
        let number = port.get("containerPort");
        if number.is_absent() {
            errors.push(number.required("is required").help("a number from 1 to 65535"));
        }
        check_port_number(&number, errors);
        check_choice(&port.get("protocol"), PROTOCOLS, errors);
        let name = port.get("name");
        if let Some(text) = name.text() {
            check_port_name(&name, text, errors);
            if !port_names.insert(text) {
                errors.push(name.error(FieldErrorKind::Duplicate, format!("another port is named '{text}'")));
            }
        }
    }
    for variable in container.get("env").elements() {
        let name = variable.get("name");
        if name.is_empty() {
            errors.push(name.required("is required").help("the variable's name"));
        }
        let from = variable.get("valueFrom");
        if !variable.get("value").is_empty() && !from.is_absent() {
            errors.push(from.invalid("cannot stand beside a value").help("remove one of the two"));
        }
    }
    for mount in container.get("volumeMounts").elements() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        match name.text() {
            Some(text) if volumes.contains(text) => {}
            Some(text) => errors.push(name.invalid(format!("the pod has no volume '{text}'")).help(
                match volumes.len() {
                    0 => "add it to spec.volumes".to_owned(),
                    _ => format!("it has {}", volumes.iter().copied().collect::<Vec<_>>().join(", ")),
                },
            )),
            None if name.is_absent() => errors.push(name.required("is required").help("the volume's name")),
            None => {}
        }
        if path.is_empty() {
            errors.push(path.required("is required").help("an absolute path in the container"));
        }
    }
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        check_probe(&container.get(probe), probe, errors);
    }
    for hook in ["preStop", "postStart"] {
        check_handler(&container.get("lifecycle").get(hook), &HOOKS, errors);
    }
}

fn check_probe(probe: &View<'_>, name: &str, errors: &mut Vec<FieldError>) {
    check_handler(probe, &HANDLERS, errors);
    check_minimum(&probe.get("initialDelaySeconds"), 0, errors);
    for field in ["periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"] {
        // Zero is the default.
        check_minimum(&probe.get(field), 0, errors);
    }
    let success = probe.get("successThreshold");
    if name != "readinessProbe" && success.number().is_some_and(|n| n > 1) {
        errors.push(success.invalid(format!("a {name} succeeds at once")).help("write 1, or leave it out"));
    }
}

/// Exactly one way to ask, with a port that can be.
fn check_handler(handler: &View<'_>, ways: &[&str], errors: &mut Vec<FieldError>) {
    if !handler.is_object() {
        return;
    }
    let given: Vec<_> = ways.iter().copied().filter(|way| !handler.get(way).is_absent()).collect();
    if given.len() != 1 {
        let problem = match given.as_slice() {
            [] => "says not what to do".to_owned(),
            several => format!("has {} at once", several.join(" and ")),
        };
        errors.push(handler.required(problem).help(format!("exactly one of {}", ways.join(", "))));
    }
    for way in ["httpGet", "tcpSocket", "grpc"] {
        let action = handler.get(way);
        if action.is_object() {
            let port = action.get("port");
            if port.is_absent() {
                errors.push(port.required("is required").help("a port of the container, by number or name"));
            }
            check_port_number(&port, errors);
            if let Some(text) = port.text() {
                check_port_name(&port, text, errors);
            }
        }
    }
    check_choice(&handler.get("httpGet").get("scheme"), &["HTTP", "HTTPS"], errors);
}

/// Names of the volumes, which are unique.
fn check_volumes<'v>(volumes: &View<'v>, errors: &mut Vec<FieldError>) -> BTreeSet<&'v str> {
    let mut names = BTreeSet::new();
    for volume in volumes.elements() {
        check_name(&volume.get("name"), &mut names, "volume", errors);
        let sources: Vec<_> = volume.members().map(|(key, _)| key).filter(|key| *key != "name").collect();
        if sources.len() > 1 {
            errors.push(
                volume.invalid(format!("has {} at once", sources.join(" and "))).help("keep one of them"),
            );
        }
    }
    names
}

fn check_name<'v>(name: &View<'v>, taken: &mut BTreeSet<&'v str>, what: &str, errors: &mut Vec<FieldError>) {
    match name.text() {
        Some(text) if !is_dns_label(text) => {
            errors.push(name.invalid(format!("'{text}' is no name of a {what}")).help(
                "1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
            ))
        }
        Some(text) if !taken.insert(text) => {
            errors.push(name.error(FieldErrorKind::Duplicate, format!("another {what} is named '{text}'")));
        }
        Some(_) => {}
        None if name.is_absent() => {
            errors.push(name.required("is required").help(format!("the {what}'s name")))
        }
        None => {}
    }
}

/// An IANA service name (RFC 6335 5.1).
pub(super) fn check_port_name(at: &View<'_>, name: &str, errors: &mut Vec<FieldError>) {
    let bytes = name.as_bytes();
    let valid = (1..=15).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if !valid {
        errors.push(at.invalid(format!("'{name}' is no name of a port")).help(
            "1 to 15 lower-case letters, digits and '-', with at least one letter; a number has no quotes",
        ));
    }
}

fn check_ids(context: &View<'_>, errors: &mut Vec<FieldError>) {
    let single = ["runAsUser", "runAsGroup", "fsGroup"].map(|field| context.get(field));
    let groups = context.get("supplementalGroups");
    for id in single.into_iter().chain(groups.elements()) {
        if id.number().is_some_and(|n| !(0..=MAX_ID).contains(&n)) {
            errors.push(id.invalid("is no user or group").help(format!("a number from 0 to {MAX_ID}")));
        }
    }
}

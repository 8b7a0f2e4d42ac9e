//! Sidecar (reference mtls 4.3; istio pkg/config/validation, `ValidateSidecar`).

use std::collections::BTreeSet;

use maille_core::{ROOT_NAMESPACE, is_dns_label};

use super::traffic;
use super::values::check_selected_labels;
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::hosts;
use crate::istio::Sidecar;
use crate::path::FieldPath;

/// Parts of an egress listener that nothing enforces.
const LISTENER: &[(&str, &str)] = &[
    ("port", "listeners of one's own for what goes out"),
    ("bind", "listeners of one's own for what goes out"),
];

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    check_selected_labels(&spec.get("workloadSelector").get("labels"), errors);
    let parts = ["ingress", "egress", "outboundTrafficPolicy", "inboundConnectionPool"];
    if parts.iter().all(|part| spec.get(part).is_absent() || is_empty_list(&spec.get(part))) {
        errors.push(
            spec.invalid("says nothing").help("for example egress: [{hosts: [\"./*\", \"istio-system/*\"]}]"),
        );
    }
    let ingress = spec.get("ingress");
    if !ingress.is_absent() && !is_empty_list(&ingress) {
        errors.push(ingress.not_enforced("ingress", "listeners of one's own for what comes in"));
    }
    traffic::check_connection_pool(&spec.get("inboundConnectionPool"), errors);
    let listeners: Vec<_> = spec.get("egress").elements().collect();
    let last = listeners.len().saturating_sub(1);
    for (i, listener) in listeners.iter().enumerate().filter(|(_, listener)| listener.is_object()) {
        let mut own = false;
        for (field, comes_with) in LISTENER {
            let part = listener.get(field);
            if !part.is_empty() {
                own = true;
                errors.push(part.not_enforced(field, comes_with));
            }
        }
        if i != last && !own {
            errors.push(
                listener
                    .invalid("a listener without port is for all ports, and the last of the list")
                    .help("put the hosts of all listeners into one"),
            );
        }
        let capture = listener.get("captureMode");
        if capture.text() == Some("NONE") {
            errors.push(
                capture.not_enforced("captureMode NONE", "applications that dial the proxy themselves"),
            );
        }
        check_hosts(&listener.get("hosts"), errors);
    }
    let proxy = spec.get("outboundTrafficPolicy").get("egressProxy");
    if !proxy.is_absent() {
        errors.push(proxy.not_enforced("egressProxy", "proxies for what the mesh does not know"));
    }
}

fn is_empty_list(part: &View<'_>) -> bool {
    part.value().as_array().is_some_and(Vec::is_empty)
}

fn check_hosts(list: &View<'_>, errors: &mut Vec<FieldError>) {
    if list.is_empty() {
        errors.push(
            list.required("a listener names at least one host")
                .help("for example hosts: [\"./*\"], or [\"~/*\"] for none"),
        );
    }
    for element in list.elements() {
        let Some(text) = element.text() else { continue };
        let Some((place, host)) = text.split_once('/') else {
            errors.push(
                element
                    .invalid(format!("'{text}' is not <namespace>/<host>"))
                    .help("for example ./*, shop/* or */api.example.com"),
            );
            continue;
        };
        let place = place.strip_prefix('~').map_or(place, |rest| if rest.is_empty() { "*" } else { rest });
        if !matches!(place, "*" | ".") && !is_dns_label(place) {
            errors.push(
                element
                    .invalid(format!("'{text}' begins with no namespace"))
                    .help("the name of one, '*' for all, '.' for the own, '~' for none"),
            );
        }
        let problem = match hosts::problem(host) {
            Some(problem) => Some(problem),
            None if host == "*" => None,
            None if !host.contains('.') => Some("is a short name"),
            None if host.starts_with('*') && !host.starts_with("*.") => {
                Some("has its wildcard within a label")
            }
            None => None,
        };
        if let Some(problem) = problem {
            errors.push(
                element
                    .invalid(format!("the host '{host}' {problem}"))
                    .help("for example *, *.example.com or cart.shop.svc.cluster.local"),
            );
        }
    }
}

pub(super) fn warnings(sidecar: &Sidecar) -> Vec<FieldError> {
    let spec = FieldPath::root().key("spec");
    let namespace = sidecar.metadata.namespace.as_deref();
    let mut warnings = Vec::new();
    let mut warn = |path: FieldPath, message: String, help: &str| {
        warnings.push(FieldError::new(path, FieldErrorKind::Invalid, message).help(help));
    };
    if sidecar.spec.workload_selector.as_ref().is_some_and(|selector| selector.labels.is_empty()) {
        warn(
            spec.key("workloadSelector"),
            "the selector names no label: the Sidecar is for all workloads of the namespace".to_owned(),
            "leave it out",
        );
    } else if sidecar.spec.workload_selector.is_some() && namespace == Some(ROOT_NAMESPACE) {
        warn(
            spec.key("workloadSelector"),
            format!("with a selector the Sidecar is for workloads of {ROOT_NAMESPACE} alone"),
            "leave it out for a default of the mesh",
        );
    }
    if sidecar.spec.outbound_traffic_policy.as_ref().is_some_and(|policy| policy.mode.is_none()) {
        warn(
            spec.key("outboundTrafficPolicy"),
            "without a mode it is REGISTRY_ONLY".to_owned(),
            "write mode: REGISTRY_ONLY or ALLOW_ANY",
        );
    }
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (i, listener) in sidecar.spec.egress.iter().enumerate() {
        for (j, text) in listener.hosts.iter().enumerate() {
            let Some((place, host)) = text.split_once('/').filter(|(place, _)| !place.starts_with('~'))
            else {
                continue;
            };
            let place = if place == "." { namespace.unwrap_or(place) } else { place };
            let covered =
                seen.contains(&(place, host)) || seen.contains(&(place, "*")) || seen.contains(&("*", "*"));
            if covered {
                let path = spec.key("egress").index(i).key("hosts").index(j);
                warn(path, format!("'{text}' is seen already, by a host before it"), "remove it");
            }
            seen.insert((place, host));
        }
    }
    warnings
}

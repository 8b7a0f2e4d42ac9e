//! DestinationRule (reference mtls 2.2, cli-and-telemetry 2.6).

use super::values::{check_port_number, check_selector};
use super::view::View;
use super::{client_tls, export};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::hosts;
use crate::istio::DestinationRule;
use crate::path::FieldPath;

/// Parts of a traffic policy that nothing enforces.
const NOT_ENFORCED: &[(&str, &str)] = &[
    ("loadBalancer", "the choice of load balancing"),
    ("connectionPool", "the limits of connections"),
    ("outlierDetection", "the ejection of failing endpoints"),
    ("tunnel", "tunnels through HTTP CONNECT"),
    ("proxyProtocol", "the PROXY protocol"),
    ("retryBudget", "retry budgets"),
];

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    let namespace = object.get("metadata").get("namespace");
    let host = spec.get("host");
    if host.is_empty() {
        errors.push(host.required("a rule names the host it is for").help(
            "the name of a Service, or the host of a ServiceEntry, for example cart.shop.svc.cluster.local",
        ));
    } else if let Some((text, problem)) = host.text().and_then(|text| Some((text, hosts::problem(text)?))) {
        errors.push(
            host.invalid(format!("'{text}' {problem}"))
                .help("for example cart, api.example.com or *.example.com"),
        );
    }
    let subsets = spec.get("subsets");
    if !subsets.is_empty() {
        errors.push(subsets.not_enforced("subsets", "routing to groups of endpoints"));
    }
    check_policy(&spec.get("trafficPolicy"), errors);
    export::check(&spec.get("exportTo"), namespace.text(), false, errors);
    let selector = spec.get("workloadSelector");
    if !selector.is_absent() {
        check_selector(&selector, errors);
        export::check_selector_scope(&spec.get("exportTo"), namespace.text(), errors);
    }
}

fn check_policy(policy: &View<'_>, errors: &mut Vec<FieldError>) {
    if policy.is_absent() {
        return;
    }
    if policy.is_object() && policy.members().all(|(_, member)| member.is_absent()) {
        errors.push(
            policy.invalid("says nothing").help("for example tls: {mode: ISTIO_MUTUAL}, or leave it out"),
        );
    }
    check_parts(policy, errors);
    let mut ports = Vec::new();
    for settings in policy.get("portLevelSettings").elements() {
        let port = settings.get("port").get("number");
        match port.number() {
            None if settings.is_object() => errors.push(
                port.required("settings of a port name it")
                    .help("the Service's port, for example port: {number: 443}"),
            ),
            Some(number) if ports.contains(&number) => errors.push(
                port.error(FieldErrorKind::Duplicate, format!("port {number} has settings already"))
                    .help("only the first ones would count; put them together"),
            ),
            Some(number) => {
                ports.push(number);
                check_port_number(&port, errors);
            }
            None => {}
        }
        let says_something = || settings.members().any(|(name, _)| name != "port");
        if settings.is_object() && !says_something() {
            errors.push(
                settings
                    .invalid("says nothing about the port")
                    .help("for example tls: {mode: SIMPLE}, or leave the port out"),
            );
        }
        check_parts(&settings, errors);
    }
}

/// What stands above the ports and in each of them.
fn check_parts(policy: &View<'_>, errors: &mut Vec<FieldError>) {
    for (field, comes_with) in NOT_ENFORCED {
        let part = policy.get(field);
        if !part.is_absent() {
            errors.push(part.not_enforced(field, comes_with));
        }
    }
    client_tls::check(&policy.get("tls"), errors);
}

pub(super) fn warnings(rule: &DestinationRule) -> Vec<FieldError> {
    let spec = FieldPath::root().key("spec");
    let mut warnings = Vec::new();
    if rule.spec.workload_selector.as_ref().is_some_and(|s| s.match_labels.is_empty()) {
        let path = spec.key("workloadSelector");
        warnings.push(
            FieldError::new(path, FieldErrorKind::Invalid, "the selector names no label").help(
                "leave it out: the rule holds for the whole namespace; exportTo: [\".\"] keeps it there",
            ),
        );
    }
    let Some(policy) = &rule.spec.traffic_policy else {
        let message =
            "without a trafficPolicy the rule changes nothing, and hides rules of farther namespaces";
        warnings.push(
            FieldError::new(spec.key("trafficPolicy"), FieldErrorKind::Invalid, message)
                .help("for example trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"),
        );
        return warnings;
    };
    let path = spec.key("trafficPolicy");
    if let Some(tls) = &policy.tls {
        warnings.extend(client_tls::warnings(tls, &path.key("tls")));
    }
    for (i, settings) in policy.port_level_settings.iter().enumerate() {
        let path = path.key("portLevelSettings").index(i);
        if let Some(tls) = &settings.tls {
            warnings.extend(client_tls::warnings(tls, &path.key("tls")));
        }
    }
    warnings
}

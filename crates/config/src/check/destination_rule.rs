//! DestinationRule (reference mtls 2.2, cli-and-telemetry 2.6).

use maille_core::is_dns_label;

use super::values::{check_port_number, check_selector};
use super::view::View;
use super::{client_tls, export, metadata, traffic};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::hosts;
use crate::istio::{DestinationRule, TrafficPolicy};
use crate::path::FieldPath;

/// Parts of a traffic policy that nothing enforces.
const NOT_ENFORCED: &[(&str, &str)] = &[
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
    let selector = spec.get("workloadSelector");
    let rule = Rule { namespace: namespace.text(), selects: !selector.is_absent() };
    check_policy(&spec.get("trafficPolicy"), rule, errors);
    check_subsets(&spec.get("subsets"), rule, errors);
    export::check(&spec.get("exportTo"), namespace.text(), false, errors);
    if !selector.is_absent() {
        check_selector(&selector, errors);
        export::check_selector_scope(&spec.get("exportTo"), namespace.text(), errors);
    }
}

/// What of the rule its parts must know.
#[derive(Clone, Copy)]
pub(super) struct Rule<'a> {
    /// Its namespace, if that is known yet.
    pub(super) namespace: Option<&'a str>,
    /// It is for some workloads only.
    pub(super) selects: bool,
}

fn check_subsets(subsets: &View<'_>, rule: Rule<'_>, errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for subset in subsets.elements().filter(View::is_object) {
        let name = subset.get("name");
        match name.text().unwrap_or_default() {
            "" if name.is_empty() => {
                errors.push(name.required("a subset has a name").help("for example name: v1"));
            }
            text if !is_dns_label(text) => errors.push(
                name.invalid(format!("'{text}' is no name of a subset"))
                    .help("1 to 63 lower-case letters, digits and '-'"),
            ),
            text if names.contains(&text) => errors
                .push(name.error(FieldErrorKind::Duplicate, format!("a subset is named '{text}' already"))),
            text => names.push(text),
        }
        metadata::check_labels(&subset.get("labels"), errors);
        check_policy(&subset.get("trafficPolicy"), rule, errors);
    }
}

fn check_policy(policy: &View<'_>, rule: Rule<'_>, errors: &mut Vec<FieldError>) {
    if policy.is_absent() {
        return;
    }
    if policy.is_object() && policy.members().all(|(_, member)| member.is_absent()) {
        errors.push(
            policy.invalid("says nothing").help("for example tls: {mode: ISTIO_MUTUAL}, or leave it out"),
        );
    }
    check_parts(policy, rule, errors);
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
        check_parts(&settings, rule, errors);
    }
}

/// What stands above the ports and in each of them.
fn check_parts(policy: &View<'_>, rule: Rule<'_>, errors: &mut Vec<FieldError>) {
    for (field, comes_with) in NOT_ENFORCED {
        let part = policy.get(field);
        if !part.is_absent() {
            errors.push(part.not_enforced(field, comes_with));
        }
    }
    traffic::check_load_balancer(&policy.get("loadBalancer"), errors);
    traffic::check_connection_pool(&policy.get("connectionPool"), errors);
    traffic::check_outlier_detection(&policy.get("outlierDetection"), errors);
    client_tls::check(&policy.get("tls"), rule, errors);
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
    for (i, subset) in rule.spec.subsets.iter().enumerate() {
        let path = spec.key("subsets").index(i);
        if i == 0 {
            let message = "nothing routes to a subset: requests go to all endpoints of the host, by the rule's own policy";
            warnings.push(
                FieldError::new(spec.key("subsets"), FieldErrorKind::Invalid, message)
                    .help("write what is to hold for requests in trafficPolicy"),
            );
        }
        if let Some(policy) = &subset.traffic_policy {
            policy_warnings(policy, &path.key("trafficPolicy"), &mut warnings);
        }
    }
    match &rule.spec.traffic_policy {
        Some(policy) => policy_warnings(policy, &spec.key("trafficPolicy"), &mut warnings),
        None => {
            let message =
                "without a trafficPolicy the rule changes nothing, and hides rules of farther namespaces";
            warnings.push(
                FieldError::new(spec.key("trafficPolicy"), FieldErrorKind::Invalid, message)
                    .help("for example trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"),
            );
        }
    }
    warnings
}

fn policy_warnings(policy: &TrafficPolicy, path: &FieldPath, warnings: &mut Vec<FieldError>) {
    if let Some(tls) = &policy.tls {
        warnings.extend(client_tls::warnings(tls, &path.key("tls")));
    }
    let (balancer, detection) = (policy.load_balancer.as_ref(), policy.outlier_detection.as_ref());
    warnings.extend(traffic::warnings(balancer, detection, path));
    for (i, settings) in policy.port_level_settings.iter().enumerate() {
        let path = path.key("portLevelSettings").index(i);
        if let Some(tls) = &settings.tls {
            warnings.extend(client_tls::warnings(tls, &path.key("tls")));
        }
        let (balancer, detection) = (settings.load_balancer.as_ref(), settings.outlier_detection.as_ref());
        warnings.extend(traffic::warnings(balancer, detection, &path));
    }
}

//! PeerAuthentication (reference mtls 1.1).

use maille_core::ROOT_NAMESPACE;

use super::values::check_selector;
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::PeerAuthentication;
use crate::path::FieldPath;

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    check_selector(&spec.get("selector"), errors);

    let ports = spec.get("portLevelMtls");
    if ports.is_absent() || !ports.is_object() {
        return;
    }
    if ports.is_empty() {
        errors.push(ports.invalid("has no port").help("name a workload port, or leave the field out"));
    }
    if spec.get("selector").get("matchLabels").is_empty() {
        errors.push(
            ports
                .invalid("ports can have modes of their own only in a policy with a selector")
                .help("add spec.selector.matchLabels with the labels of the workload"),
        );
    }
    for (port, mode) in ports.members() {
        let valid =
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
        if !valid {
            errors.push(
                mode.invalid(format!("'{port}' is no port"))
                    .help("a workload port (the container's, not the Service's) from 1 to 65535"),
            );
        }
    }
}

pub(super) fn warnings(policy: &PeerAuthentication) -> Vec<FieldError> {
    let spec = FieldPath::root().key("spec");
    let mut warnings = Vec::new();
    if let Some(selector) = &policy.spec.selector {
        let path = spec.key("selector");
        if selector.match_labels.is_empty() {
            warnings.push(
                FieldError::new(path, FieldErrorKind::Invalid, "the selector names no label")
                    .help("leave it out: the policy holds for the whole namespace"),
            );
        } else if policy.metadata.namespace.as_deref() == Some(ROOT_NAMESPACE) {
            warnings.push(
                FieldError::new(
                    path,
                    FieldErrorKind::Invalid,
                    format!("a policy of the root namespace {ROOT_NAMESPACE} with a selector has no effect"),
                )
                .help("put it into the workload's namespace"),
            );
        }
    }
    warnings
}

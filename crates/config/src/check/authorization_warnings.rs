//! What AuthorizationPolicy accepts but is seldom meant (reference authorization 18).

use super::attachment;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{Action, AuthorizationPolicy, Operation, Rule, Source};
use crate::path::FieldPath;

pub(super) fn warnings(policy: &AuthorizationPolicy) -> Vec<FieldError> {
    let attached = &policy.spec;
    let mut warnings = attachment::warnings(
        attached.selector.as_ref(),
        attached.target_refs.as_ref(),
        attached.target_ref.as_ref(),
    );
    let spec = FieldPath::root().key("spec");
    if policy.spec.action == Action::Deny {
        for (i, rule) in policy.spec.rules.iter().enumerate() {
            if denies_all_tcp(rule) {
                let path = spec.key("rules").index(i);
                warnings.push(
                    FieldError::new(
                        path,
                        FieldErrorKind::Invalid,
                        "only HTTP has what this rule looks at: it denies all traffic to TCP ports in scope",
                    )
                    .help("add to.operation.ports with the HTTP ports"),
                );
            }
        }
    }
    warnings
}

/// The attributes that TCP lacks are left out of a DENY rule on TCP ports (reference authorization 11).
fn denies_all_tcp(rule: &Rule) -> bool {
    let operations = || rule.to.iter().filter_map(|to| to.operation.as_ref());
    if rule.to.is_empty() {
        let sources = || rule.from.iter().filter_map(|from| from.source.as_ref());
        !rule.from.is_empty() && !sources().any(has_tcp_field)
    } else {
        !operations().any(has_port)
    }
}

fn has_port(operation: &Operation) -> bool {
    !operation.ports.is_empty() || !operation.not_ports.is_empty()
}

fn has_tcp_field(source: &Source) -> bool {
    let all_but_tokens =
        Source { request_principals: Vec::new(), not_request_principals: Vec::new(), ..source.clone() };
    all_but_tokens != Source::default()
}

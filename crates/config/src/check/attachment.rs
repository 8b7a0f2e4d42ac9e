//! `selector`, `targetRefs` and `targetRef` of AuthorizationPolicy and RequestAuthentication (reference authorization
//! 2.3, 18).

use super::values::check_selector;
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{TargetRef, WorkloadSelector};
use crate::path::FieldPath;

/// The size of the schema.
const MAX_TARGETS: usize = 16;

/// Group and kind of what can be a target; the core group is also written `core`.
const TARGETS: &[(&str, &str)] = &[
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
];

pub(super) fn check(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let selector = spec.get("selector");
    check_selector(&selector, errors);
    let (list, single) = (spec.get("targetRefs"), spec.get("targetRef"));
    let set: Vec<_> =
        [(!selector.is_absent(), &selector), (!single.is_absent(), &single), (!list.is_empty(), &list)]
            .into_iter()
            .filter_map(|(is_set, view)| is_set.then_some(view))
            .collect();
    if let [_, .., last] = set.as_slice() {
        errors.push(
            last.invalid("only one of selector, targetRef and targetRefs may be set")
                .help("keep selector for workloads, targetRefs for gateways"),
        );
    }
    let count = list.elements().count();
    if count > MAX_TARGETS {
        errors.push(
            list.invalid(format!("has {count} targets"))
                .help(format!("at most {MAX_TARGETS}; split the policy")),
        );
    }
    for target in list.elements().chain(Some(single)).filter(View::is_object) {
        check_target(&target, errors);
    }
}

fn check_target(target: &View<'_>, errors: &mut Vec<FieldError>) {
    if target.get("name").is_empty() {
        errors.push(
            target.get("name").required("a target has a name").help("the name of the gateway or service"),
        );
    }
    let namespace = target.get("namespace");
    if !namespace.is_empty() {
        errors.push(
            namespace
                .invalid("a target stands in the policy's own namespace")
                .help("remove it, and put the policy into that namespace"),
        );
    }
    let (group, kind) = (target.get("group"), target.get("kind"));
    let canonical = match group.text() {
        None | Some("core") => "",
        Some(text) => text,
    };
    if TARGETS.contains(&(canonical, kind.text().unwrap_or_default())) {
        return;
    }
    // A slip in the group is told from one in the kind by what would mend it.
    let same_kind = TARGETS.iter().find(|(_, known)| Some(*known) == kind.text());
    errors.push(match same_kind {
        Some(("", known)) => {
            group.invalid(format!("there is no {known} in group '{canonical}'")).help("leave it out")
        }
        Some((group_of_kind, known)) => group
            .invalid(format!("there is no {known} in group '{canonical}'"))
            .help(format!("write {group_of_kind}")),
        None if kind.is_empty() => kind.required("a target has a kind").help(kinds()),
        None => kind
            .error(
                FieldErrorKind::Invalid,
                format!("'{}' cannot be a target", kind.text().unwrap_or_default()),
            )
            .help(kinds()),
    });
}

fn kinds() -> String {
    let names: Vec<_> = TARGETS.iter().map(|(_, kind)| *kind).collect();
    format!("one of {}", names.join(", "))
}

/// What is accepted but is not in force, or seldom meant.
pub(super) fn warnings(
    selector: Option<&WorkloadSelector>,
    list: Option<&Vec<TargetRef>>,
    single: Option<&TargetRef>,
) -> Vec<FieldError> {
    let spec = FieldPath::root().key("spec");
    let mut warnings = Vec::new();
    if selector.is_some_and(|selector| selector.match_labels.is_empty()) {
        warnings.push(
            FieldError::new(spec.key("selector"), FieldErrorKind::Invalid, "the selector names no label")
                .help("leave it out: the policy holds for all workloads in scope"),
        );
    }
    let field = match (list, single) {
        (Some(list), _) if !list.is_empty() => "targetRefs",
        (_, Some(_)) => "targetRef",
        _ => return warnings,
    };
    warnings.push(
        FieldError::new(
            spec.key(field),
            FieldErrorKind::NotEnforced,
            format!("nothing enforces the policy: {field} attaches it to gateways and waypoints, which the mesh does not have"),
        )
        .help("select workloads with spec.selector; ordinary workloads ignore this policy, as Istio's do"),
    );
    warnings
}

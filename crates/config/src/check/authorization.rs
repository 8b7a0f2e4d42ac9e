//! AuthorizationPolicy (reference authorization 18).

use super::values::{self, check_selector, check_texts};
use super::view::View;
use super::{conditions, path_template};
use crate::field_error::{FieldError, FieldErrorKind};

/// The size of the schema (reference authorization 1).
const MAX_RULES: usize = 512;

const DRY_RUN: &str = "istio.io/dry-run";

const SOURCE_FIELDS: &[&str] = &[
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "trustDomains",
    "notTrustDomains",
];

const OPERATION_FIELDS: &[&str] =
    &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    check_attachment(&spec, errors);
    check_action(&spec, errors);
    check_dry_run(&object, errors);

    let rules = spec.get("rules");
    let count = rules.elements().count();
    if count > MAX_RULES {
        errors.push(
            rules
                .invalid(format!("has {count} rules"))
                .help(format!("at most {MAX_RULES}; split the policy")),
        );
    }
    for rule in rules.elements() {
        for from in rule.get("from").elements() {
            check_source(&from, errors);
        }
        for to in rule.get("to").elements() {
            check_operation(&to, errors);
        }
        for when in rule.get("when").elements() {
            conditions::check(&when, errors);
        }
    }
}

/// Selector or targets.
fn check_attachment(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let selector = spec.get("selector");
    check_selector(&selector, errors);
    for field in ["targetRefs", "targetRef"] {
        let targets = spec.get(field);
        if targets.is_empty() {
            continue;
        }
        errors.push(targets.not_enforced(field, "gateways and services as targets; use selector"));
        if !selector.is_absent() {
            errors.push(targets.invalid(format!("only one of selector and {field} may be set")));
        }
    }
}

fn check_action(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let action = spec.get("action");
    let provider = spec.get("provider");
    match action.text() {
        Some("CUSTOM") => errors.push(action.not_enforced("action CUSTOM", "external authorizers")),
        Some("AUDIT") => errors.push(action.not_enforced("action AUDIT", "the audit mark of the access log")),
        _ if !provider.is_absent() => {
            errors.push(provider.invalid("a provider belongs to action CUSTOM only").help("remove it"));
        }
        _ => {}
    }
    let rules = spec.get("rules");
    if matches!(action.text(), Some("DENY" | "CUSTOM")) && rules.is_empty() {
        let action = action.text().unwrap_or_default();
        errors.push(rules.required(format!("a {action} policy without rules never matches")).help(
            match action {
                "DENY" => "to deny everything write 'rules: [{}]'",
                _ => "to ask about everything write 'rules: [{}]'",
            },
        ));
    }
}

/// `istio.io/dry-run` (reference authorization 14): a Go boolean.
fn check_dry_run(object: &View<'_>, errors: &mut Vec<FieldError>) {
    let annotation = object.get("metadata").get("annotations").get_exactly(DRY_RUN);
    match annotation.text() {
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => errors.push(
            annotation
                .error(
                    FieldErrorKind::NotEnforced,
                    "a dry run is not supported yet: it comes with shadow evaluation",
                )
                .help("remove the annotation to enforce the policy"),
        ),
        None | Some("0" | "f" | "F" | "FALSE" | "false" | "False") => {}
        Some(other) => {
            errors.push(annotation.invalid(format!("'{other}' is no boolean")).help("\"true\" or \"false\""))
        }
    }
}

fn check_source(from: &View<'_>, errors: &mut Vec<FieldError>) {
    let source = from.get("source");
    if !has_content(from, &source, SOURCE_FIELDS, errors) {
        return;
    }
    for field in ["requestPrincipals", "notRequestPrincipals"] {
        let list = source.get(field);
        if !list.is_empty() {
            errors.push(list.not_enforced(field, "the verification of JWTs"));
        }
    }
    for field in SOURCE_FIELDS {
        let rule = match *field {
            "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks" => values::ip_block,
            "serviceAccounts" | "notServiceAccounts" => values::service_account,
            "trustDomains" | "notTrustDomains" => values::trust_domain,
            _ => values::any,
        };
        check_texts(&source.get(field), rule, errors);
    }
    for field in ["serviceAccounts", "notServiceAccounts"] {
        let list = source.get(field);
        values::check_service_account_count(&list, errors);
        let beside = ["principals", "notPrincipals", "namespaces", "notNamespaces"]
            .into_iter()
            .find(|other| !source.get(other).is_empty());
        if let (false, Some(beside)) = (list.is_empty(), beside) {
            errors.push(
                list.invalid(format!("{field} cannot stand beside {beside} in one source"))
                    .help("write <namespace>/<account> and leave the other out, or use two entries of from"),
            );
        }
    }
}

fn check_operation(to: &View<'_>, errors: &mut Vec<FieldError>) {
    let operation = to.get("operation");
    if !has_content(to, &operation, OPERATION_FIELDS, errors) {
        return;
    }
    for field in OPERATION_FIELDS {
        let rule = match *field {
            "ports" | "notPorts" => values::port,
            "paths" | "notPaths" => path_template::path,
            _ => values::any,
        };
        check_texts(&operation.get(field), rule, errors);
    }
}

/// Whether an entry of `from` or `to` says anything; complains if not.
fn has_content(entry: &View<'_>, inner: &View<'_>, fields: &[&str], errors: &mut Vec<FieldError>) -> bool {
    // An entry of another type has been complained about; so has an unknown field, which may be all there is.
    if !entry.is_object() {
        return false;
    }
    let help = || format!("set at least one of {}", fields.join(", "));
    if inner.is_absent() {
        if entry.is_empty() {
            errors.push(inner.required("is required").help(help()));
        }
        return false;
    }
    if inner.is_object() && inner.members().all(|(_, member)| member.is_empty()) {
        errors.push(inner.invalid("is empty, and so would match everything").help(help()));
        return false;
    }
    inner.is_object()
}

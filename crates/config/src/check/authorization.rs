//! AuthorizationPolicy (reference authorization 18).

use super::values::{self, check_texts};
use super::view::View;
use super::{attachment, conditions, path_template};
use crate::field_error::FieldError;

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

/// Those that a CUSTOM policy can have.
const ASKING_FIELDS: &[&str] = &["ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"];

const OPERATION_FIELDS: &[&str] =
    &["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    attachment::check(&spec, errors);
    check_action(&spec, errors);
    check_dry_run(&object, errors);
    let asks = spec.get("action").text() == Some("CUSTOM");

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
            if asks {
                check_asking_source(&from.get("source"), errors);
            }
        }
        for to in rule.get("to").elements() {
            check_operation(&to, errors);
        }
        for when in rule.get("when").elements() {
            conditions::check(&when, errors);
            if asks {
                conditions::check_asking(&when.get("key"), errors);
            }
        }
    }
}

fn check_action(spec: &View<'_>, errors: &mut Vec<FieldError>) {
    let action = spec.get("action");
    let provider = spec.get("provider");
    if action.text() == Some("CUSTOM") {
        let name = provider.get("name");
        if name.is_empty() {
            errors.push(
                name.required("a CUSTOM policy names whom it asks")
                    .help("write a name of extensionProviders of the mesh configuration"),
            );
        }
    } else if !provider.is_absent() {
        errors.push(provider.invalid("a provider belongs to action CUSTOM only").help("remove it"));
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

/// What a policy that asks somebody cannot look at (reference authorization 15).
fn check_asking_source(source: &View<'_>, errors: &mut Vec<FieldError>) {
    for field in SOURCE_FIELDS.iter().filter(|field| !ASKING_FIELDS.contains(field)) {
        let list = source.get(field);
        if !list.is_empty() {
            errors.push(
                list.invalid(format!("a CUSTOM policy cannot look at {field}"))
                    .help("the provider is told who calls; ask it, or write an ALLOW or DENY policy beside"),
            );
        }
    }
}

/// `istio.io/dry-run` (reference authorization 14): a Go boolean, on ALLOW and DENY.
fn check_dry_run(object: &View<'_>, errors: &mut Vec<FieldError>) {
    let annotation = object.get("metadata").get("annotations").get_exactly(DRY_RUN);
    let Some(text) = annotation.text() else { return };
    if dry_run(text).is_none() {
        errors.push(annotation.invalid(format!("'{text}' is no boolean")).help("\"true\" or \"false\""));
    }
    if let Some(action @ ("AUDIT" | "CUSTOM")) = object.get("spec").get("action").text() {
        errors.push(
            annotation
                .invalid(format!("a policy with action {action} has no dry run"))
                .help("remove the annotation, or write action ALLOW or DENY"),
        );
    }
}

/// `istio.io/dry-run` on a kind other than AuthorizationPolicy.
pub(super) fn check_no_dry_run(kind: &str, object: &View<'_>, errors: &mut Vec<FieldError>) {
    let annotation = object.get("metadata").get("annotations").get_exactly(DRY_RUN);
    if !annotation.is_absent() {
        errors.push(
            annotation
                .invalid(format!("a {kind} has no dry run, and would be in force"))
                .help("remove the annotation; only an AuthorizationPolicy has it"),
        );
    }
}

/// What the annotation `istio.io/dry-run` says: a boolean as Go reads it.
pub(crate) fn dry_run(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn check_source(from: &View<'_>, errors: &mut Vec<FieldError>) {
    let source = from.get("source");
    if !has_content(from, &source, SOURCE_FIELDS, errors) {
        return;
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

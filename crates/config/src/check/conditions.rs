//! `rules[].when[]` of AuthorizationPolicy (reference authorization 9, 18).

use super::values::{self, check_texts};
use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::suggest;

type ValueRule = fn(&View<'_>, &str) -> Option<FieldError>;

/// Keys without brackets, and how their values are checked.
const KEYS: &[(&str, ValueRule)] = &[
    ("source.ip", values::ip_block),
    ("remote.ip", values::ip_block),
    ("source.namespace", values::any),
    ("source.serviceAccount", values::service_account),
    ("source.principal", values::any),
    ("source.trustDomain", values::trust_domain),
    ("destination.ip", values::ip_block),
    ("destination.port", values::port),
    ("connection.sni", values::any),
    ("request.auth.principal", values::any),
    ("request.auth.audiences", values::any),
    ("request.auth.presenter", values::any),
];

/// Keys of older versions of Istio, and what took their place.
const REMOVED: &[(&str, &str)] = &[
    ("destination.labels", "use spec.selector"),
    ("destination.name", "use spec.selector"),
    ("destination.namespace", "put the policy into that namespace"),
    ("destination.user", "use spec.selector"),
];

const HEADERS: &str = "request.headers";

const CLAIMS: &str = "request.auth.claims";

/// Keys that a CUSTOM policy cannot have (reference authorization 15), beside all of `request.auth`.
const IDENTITY_KEYS: &[&str] =
    &["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];

pub(super) fn check(when: &View<'_>, errors: &mut Vec<FieldError>) {
    if !when.is_object() {
        return;
    }
    let key = when.get("key");
    let (values, not_values) = (when.get("values"), when.get("notValues"));
    if values.is_empty() && not_values.is_empty() {
        errors
            .push(values.required("a condition has values or notValues").help("set at least one of the two"));
    }
    let rule = match key.text() {
        Some("") => {
            errors.push(key.invalid("is empty").help("for example source.ip or request.headers[x-token]"));
            values::any
        }
        Some(text) => match rule_of(&key, text) {
            Ok(rule) => rule,
            Err(error) => {
                errors.push(error);
                values::any
            }
        },
        None => {
            if key.is_absent() {
                errors.push(
                    key.required("is required").help("for example source.ip or request.headers[x-token]"),
                );
            }
            values::any
        }
    };
    for list in [values, not_values] {
        if key.text() == Some("source.serviceAccount") {
            values::check_service_account_count(&list, errors);
        }
        check_texts(&list, rule, errors);
    }
}

/// `[a]`, `[a][b]` and so on, each with a name.
fn are_brackets(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return false };
    inner.split("][").all(|name| !name.is_empty() && !name.contains(['[', ']']))
}

/// What a policy that asks somebody cannot look at.
pub(super) fn check_asking(key: &View<'_>, errors: &mut Vec<FieldError>) {
    let Some(text) = key.text() else { return };
    if IDENTITY_KEYS.contains(&text) || text.starts_with("request.auth.") {
        errors.push(
            key.invalid(format!("a CUSTOM policy cannot look at {text}"))
                .help("the provider is told who calls; ask it, or write an ALLOW or DENY policy beside"),
        );
    }
}

fn rule_of(at: &View<'_>, key: &str) -> Result<ValueRule, FieldError> {
    if let Some((_, rule)) = KEYS.iter().find(|(name, _)| *name == key) {
        return Ok(*rule);
    }
    let base = key.split('[').next().unwrap_or(key);
    if let Some((_, instead)) = REMOVED.iter().find(|(name, _)| *name == base) {
        return Err(at.invalid(format!("attribute '{key}' is not supported any more")).help(*instead));
    }
    if base == HEADERS {
        let name = key.strip_prefix(HEADERS).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
        return match name {
            Some(name) if !name.is_empty() => Ok(values::any),
            _ => Err(at
                .invalid(format!("'{key}' names no header"))
                .help("write request.headers[<name>], for example request.headers[x-token]")),
        };
    }
    if base == CLAIMS {
        let path = key.strip_prefix(CLAIMS).unwrap_or_default();
        return match are_brackets(path) {
            true => Ok(values::any),
            false => Err(at
                .invalid(format!("'{key}' names no claim"))
                .help("write request.auth.claims[<name>], and another [<name>] for each level below")),
        };
    }
    if base.starts_with("experimental.envoy.filters.") {
        return Err(at
            .error(
                FieldErrorKind::NotEnforced,
                format!("'{key}' is not enforced: it is metadata of Envoy's filters, and the proxy has none"),
            )
            .help("remove the condition"));
    }
    let names = || KEYS.iter().map(|(name, _)| *name);
    let help = match suggest::nearest(base, names().chain([HEADERS, CLAIMS])) {
        Some(family @ (HEADERS | CLAIMS)) => format!("did you mean '{family}[<name>]'?"),
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None => {
            format!("one of {}, {HEADERS}[<name>], {CLAIMS}[<name>]", names().collect::<Vec<_>>().join(", "))
        }
    };
    Err(at.invalid(format!("unknown attribute '{key}'")).help(help))
}

//! `rules[].when[]` of AuthorizationPolicy (reference authorization 9, 18).

use super::values::{self, check_texts};
use super::view::View;
use crate::field_error::FieldError;
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
];

/// Keys of older versions of Istio, and what took their place.
const REMOVED: &[(&str, &str)] = &[
    ("destination.labels", "use spec.selector"),
    ("destination.name", "use spec.selector"),
    ("destination.namespace", "put the policy into that namespace"),
    ("destination.user", "use spec.selector"),
];

const HEADERS: &str = "request.headers";

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
    if base.starts_with("request.auth.") {
        return Err(at.not_enforced(&format!("'{key}'"), "the verification of JWTs"));
    }
    if base.starts_with("experimental.envoy.filters.") {
        return Err(at.not_enforced(&format!("'{key}'"), "filters that set metadata"));
    }
    let names = || KEYS.iter().map(|(name, _)| *name);
    let help = match suggest::nearest(base, names().chain([HEADERS])) {
        Some(HEADERS) => "did you mean 'request.headers[<name>]'?".to_owned(),
        Some(nearest) => format!("did you mean '{nearest}'?"),
        None => format!("one of {}, request.headers[<name>]", names().collect::<Vec<_>>().join(", ")),
    };
    Err(at.invalid(format!("unknown attribute '{key}'")).help(help))
}

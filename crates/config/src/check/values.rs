//! Values that several kinds and fields share: selectors, addresses, ports, service accounts, trust domains.

use std::net::IpAddr;

use ipnet::IpNet;

use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::suggest;

/// At most so many service accounts in one list (istio pkg/config/validation).
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// Namespace (63) and service account (253), with the slash and some room, as Istio bounds it.
const MAX_SERVICE_ACCOUNT_LENGTH: usize = 320;

/// `selector.matchLabels`: literal, non-empty keys.
pub(super) fn check_selector(selector: &View<'_>, errors: &mut Vec<FieldError>) {
    check_selected_labels(&selector.get("matchLabels"), errors);
}

/// Labels that select: literal, non-empty keys.
pub(super) fn check_selected_labels(labels: &View<'_>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.members() {
        if key.is_empty() {
            errors.push(value.invalid("a label has a key").help("write the label's name"));
        }
        if key.contains('*') || value.text().is_some_and(|text| text.contains('*')) {
            errors.push(
                value
                    .invalid("a selector compares labels literally; '*' is no wildcard in it")
                    .help("write the whole value, or select by another label"),
            );
        }
    }
}

/// A value that must not be empty, checked by `rule`.
pub(super) fn check_texts(
    list: &View<'_>,
    rule: fn(&View<'_>, &str) -> Option<FieldError>,
    errors: &mut Vec<FieldError>,
) {
    for element in list.elements() {
        match element.text() {
            Some("") => errors.push(element.invalid("is empty").help("write a value, or remove the element")),
            Some(text) => errors.extend(rule(&element, text)),
            None => {}
        }
    }
}

pub(super) fn any(_at: &View<'_>, _text: &str) -> Option<FieldError> {
    None
}

/// An address, or a block in CIDR notation.
pub(super) fn ip_block(at: &View<'_>, text: &str) -> Option<FieldError> {
    if text.contains('/') {
        let problem = match text.parse::<IpNet>() {
            // As Go reads it, and with it Istio: `/08` would be accepted here and match nothing there.
            Ok(block) if text.ends_with(&format!("/{}", block.prefix_len())) => return None,
            _ => cidr_problem(text),
        };
        return Some(
            at.invalid(format!("'{text}' is no CIDR block: {problem}"))
                .help("for example 10.0.0.0/8 or 2001:db8::/32"),
        );
    }
    match text.parse::<IpAddr>() {
        Ok(_) => None,
        Err(_) => Some(
            at.invalid(format!("'{text}' is neither an IP address nor a CIDR block"))
                .help("for example 10.1.2.3 or 10.0.0.0/8"),
        ),
    }
}

fn cidr_problem(text: &str) -> String {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    match address.parse::<IpAddr>() {
        Err(_) => format!("'{address}' is no IP address"),
        Ok(IpAddr::V4(_)) => format!("the prefix length '{length}' is not 0 to 32 without leading zeros"),
        Ok(IpAddr::V6(_)) => format!("the prefix length '{length}' is not 0 to 128 without leading zeros"),
    }
}

/// Whether a text can be the name of a header (RFC 9110 5.1), or of a pseudo header.
pub(crate) fn header_name(text: &str) -> bool {
    let name = text.strip_prefix(':').unwrap_or(text);
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(is_token)
}

/// A port as a decimal number.
pub(super) fn port(at: &View<'_>, text: &str) -> Option<FieldError> {
    let valid = text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok();
    (!valid).then(|| {
        at.invalid(format!("'{text}' is no port"))
            .help("the number of a workload port (the container's, not the Service's) from 0 to 65535, for example \"8080\"")
    })
}

/// `sa` or `ns/sa`.
pub(super) fn service_account(at: &View<'_>, text: &str) -> Option<FieldError> {
    let parts: Vec<&str> = text.split('/').collect();
    let problem = if text.len() > MAX_SERVICE_ACCOUNT_LENGTH {
        "is longer than 320 characters"
    } else if text.contains('*') {
        "has no wildcards"
    } else if parts.len() > 2 {
        "has more than one '/'"
    } else if parts.iter().any(|part| part.is_empty()) {
        "has an empty part"
    } else {
        return None;
    };
    Some(
        at.invalid(format!("a service account {problem}: '{text}'"))
            .help("write <account> or <namespace>/<account>"),
    )
}

/// The number of elements of a list of service accounts.
pub(super) fn check_service_account_count(list: &View<'_>, errors: &mut Vec<FieldError>) {
    let count = list.elements().count();
    if count > MAX_SERVICE_ACCOUNTS {
        errors.push(
            list.error(FieldErrorKind::Invalid, format!("has {count} service accounts"))
                .help(format!("at most {MAX_SERVICE_ACCOUNTS}; split them over several entries")),
        );
    }
}

/// A trust domain, with at most one `*`, at an end.
pub(super) fn trust_domain(at: &View<'_>, text: &str) -> Option<FieldError> {
    let problem = if text.contains('/') {
        "contains '/'"
    } else if text.matches('*').count() > 1 {
        "has more than one '*'"
    } else if text.contains('*') && !text.starts_with('*') && !text.ends_with('*') {
        "has a '*' in the middle"
    } else {
        return None;
    };
    Some(
        at.invalid(format!("trust domain '{text}' {problem}"))
            .help("for example cluster.local, prod.* or *.example.com"),
    )
}

/// One of `choices`, where Kubernetes' own types hold plain text.
pub(super) fn check_choice(value: &View<'_>, choices: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(text) = value.text().filter(|text| !text.is_empty() && !choices.contains(text)) {
        let nearest = suggest::nearest(text, choices.iter().copied());
        errors.push(
            value
                .error(FieldErrorKind::Enum, format!("'{text}' is none of {}", choices.join(", ")))
                .maybe_help(nearest.map(|nearest| format!("did you mean {nearest}?"))),
        );
    }
}

/// A number that is `minimum` or more.
pub(super) fn check_minimum(value: &View<'_>, minimum: i64, errors: &mut Vec<FieldError>) {
    if value.number().is_some_and(|n| n < minimum) {
        errors.push(value.invalid("is too small").help(format!("at least {minimum}")));
    }
}

/// A number that is `maximum` or less.
pub(super) fn check_maximum(value: &View<'_>, maximum: u64, errors: &mut Vec<FieldError>) {
    if value.value().as_u64().is_some_and(|n| n > maximum) {
        errors.push(value.invalid("is too large").help(format!("at most {maximum}")));
    }
}

/// A port, if it is a number.
pub(super) fn check_port_number(value: &View<'_>, errors: &mut Vec<FieldError>) {
    if let Some(number) = value.number().filter(|n| !(1..=65535).contains(n)) {
        errors.push(value.invalid(format!("{number} is no port")).help("a number from 1 to 65535"));
    }
}

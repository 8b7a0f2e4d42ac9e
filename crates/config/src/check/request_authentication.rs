//! RequestAuthentication (reference authorization 19; istio pkg/config/validation, `validateJwtRule`).

use std::time::Duration;

use super::attachment;
use super::jwks;
use super::values::{any, check_texts, header_name};
use super::view::View;
use crate::duration;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::istio::{JwtRule, RequestAuthentication};
use crate::path::FieldPath;

/// The sizes of the schema.
const MAX_RULES: usize = 4096;

pub(super) fn check(object: View<'_>, errors: &mut Vec<FieldError>) {
    let spec = object.get("spec");
    attachment::check(&spec, errors);
    let rules = spec.get("jwtRules");
    let count = rules.elements().count();
    if count > MAX_RULES {
        errors.push(
            rules
                .invalid(format!("has {count} rules"))
                .help(format!("at most {MAX_RULES}; split the policy")),
        );
    }
    for rule in rules.elements().filter(View::is_object) {
        check_rule(&rule, errors);
    }
}

fn check_rule(rule: &View<'_>, errors: &mut Vec<FieldError>) {
    let (issuer, uri, keys) = (rule.get("issuer"), rule.get("jwksUri"), rule.get("jwks"));
    if issuer.is_empty() && uri.is_empty() {
        errors.push(
            issuer
                .required("a rule names the issuer of its tokens")
                .help("claim iss as the tokens have it; only beside jwksUri it may be left out"),
        );
    }
    if !uri.is_empty() && !keys.is_empty() {
        errors.push(keys.invalid("only one of jwks and jwksUri may be set").help("remove one of the two"));
    }
    if let Some(text) = uri.text().filter(|text| !text.is_empty()) {
        errors.extend(uri_problem(text).map(|problem| {
            uri.invalid(format!("'{text}' {problem}")).help("for example https://issuer.example/jwks.json")
        }));
    }
    if let Some(text) = keys.text().filter(|text| !text.is_empty()) {
        errors.extend(jwks::problem(text).map(|problem| {
            keys.invalid(format!("is no key set: {problem}"))
                .help(r#"JSON such as {"keys":[{"kty":"RSA","n":"…","e":"AQAB"}]}"#)
        }));
    }
    for field in ["audiences", "fromParams", "fromCookies", "spaceDelimitedClaims"] {
        check_texts(&rule.get(field), any, errors);
    }
    for location in rule.get("fromHeaders").elements().filter(View::is_object) {
        check_header(&location.get("name"), errors);
        let prefix = location.get("prefix");
        if prefix.text().is_some_and(|text| !text.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))) {
            errors.push(
                prefix
                    .invalid("no header has such a value")
                    .help("text of one line, for example \"Bearer \""),
            );
        }
    }
    let output = rule.get("outputPayloadToHeader");
    if !output.is_empty() {
        check_output_header(&output, errors);
    }
    for output in rule.get("outputClaimToHeaders").elements().filter(View::is_object) {
        check_output_header(&output.get("header"), errors);
        let claim = output.get("claim");
        if claim.is_empty() {
            errors.push(
                claim.required("is required").help("the name of a claim; dots walk into nested objects"),
            );
        }
    }
    check_timeout(&rule.get("timeout"), errors);
}

/// A header in which a token may stand.
fn check_header(name: &View<'_>, errors: &mut Vec<FieldError>) {
    match name.text() {
        _ if name.is_empty() => {
            errors.push(name.required("is required").help("the name of a header, for example Authorization"));
        }
        Some(text) if !header_name(text) => {
            errors.push(
                name.invalid(format!("'{text}' is no name of a header"))
                    .help("letters, digits and '-', for example x-token"),
            );
        }
        _ => {}
    }
}

/// A header that the proxy writes (istio `ValidateStrictHTTPHeaderName`): letters, digits, `-` and `_`.
fn check_output_header(name: &View<'_>, errors: &mut Vec<FieldError>) {
    let text = name.text().unwrap_or_default();
    if name.is_empty() {
        errors.push(name.required("is required").help("the name of a header, for example x-user"));
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        errors.push(
            name.invalid(format!("'{text}' is no name of a header that a proxy may write"))
                .help("letters, digits, '-' and '_', for example x-user"),
        );
    }
}

/// Of at least one and in whole milliseconds.
fn check_timeout(at: &View<'_>, errors: &mut Vec<FieldError>) {
    let Some(text) = at.text() else { return };
    let problem = match duration::parse(text) {
        None => "is no duration",
        Some(timeout) if timeout < Duration::from_millis(1) => "is less than a millisecond",
        Some(timeout) if timeout.subsec_nanos() % 1_000_000 != 0 => "is not in whole milliseconds",
        Some(_) => return,
    };
    errors.push(at.invalid(format!("'{text}' {problem}")).help("for example 5s or 500ms"));
}

/// Why a text is no URL that keys can be fetched from.
fn uri_problem(text: &str) -> Option<&'static str> {
    let Some((scheme, rest)) = text.split_once("://") else { return Some("is no URL") };
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return Some("is neither http nor https");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("has characters that a URL cannot have");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Some("has a user in it, which is not sent");
    }
    let (host, port) = match authority.strip_prefix('[') {
        // An IPv6 address.
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (host, port),
            _ => return Some("has no host"),
        },
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() {
        return Some("has no host");
    }
    let port = port.strip_prefix(':').unwrap_or(port);
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    (!port.is_empty() && !is_port).then_some("has a bad port")
}

pub(super) fn warnings(policy: &RequestAuthentication) -> Vec<FieldError> {
    let spec = &policy.spec;
    let mut warnings =
        attachment::warnings(spec.selector.as_ref(), spec.target_refs.as_ref(), spec.target_ref.as_ref());
    let rules = FieldPath::root().key("spec").key("jwtRules");
    for (i, rule) in spec.jwt_rules.iter().enumerate() {
        warnings.extend(warning(rule, &rules.index(i)));
    }
    warnings
}

fn warning(rule: &JwtRule, path: &FieldPath) -> Vec<FieldError> {
    let mut warnings = Vec::new();
    if !rule.jwks.is_empty() {
        if jwks::has_private_keys(&rule.jwks) {
            warnings.push(
                FieldError::new(
                    path.key("jwks"),
                    FieldErrorKind::Invalid,
                    "holds private or symmetric keys: whoever can read the policy can sign tokens",
                )
                .help("publish the public half only, and replace these keys"),
            );
        }
        if jwks::is_empty(&rule.jwks) {
            warnings.push(
                FieldError::new(
                    path.key("jwks"),
                    FieldErrorKind::Invalid,
                    "holds no key: every token is refused",
                )
                .help("add the issuer's public keys"),
            );
        }
    } else if rule.jwks_uri.is_empty() && uri_problem(&rule.issuer).is_some() {
        warnings.push(
            FieldError::new(
                path.key("issuer"),
                FieldErrorKind::Invalid,
                format!(
                    "'{}' is no URL at which keys could be discovered: every token is refused",
                    rule.issuer
                ),
            )
            .help("add jwksUri or jwks"),
        );
    }
    warnings
}

//! `extensionProviders` (reference authorization 15; istio pkg/config/validation/agent, `extensionprovider.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use maille_core::{CLUSTER_DOMAIN, is_dns_label};

use super::check::check_duration;
use super::{CheckBody, ExtensionProvider, HttpProvider, ProviderKind};
use crate::check::{View, header_name};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::hosts;

/// Envoy's patience where Istio names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// What a refusal is answered with if the provider failed.
const DEFAULT_STATUS: u16 = 403;

/// A name is as long as a DNS label at most.
const MAX_NAME: usize = 63;

/// Kinds that are not authorizers, and the only content with which Istio has them built in.
const BUILT_IN: &[(&str, &str)] = &[("prometheus", "prometheus")];

const OTHER_KINDS: &[&str] = &[
    "zipkin",
    "lightstep",
    "datadog",
    "stackdriver",
    "opencensus",
    "skywalking",
    "opentelemetry",
    "prometheus",
    "envoyFileAccessLog",
    "envoyHttpAls",
    "envoyTcpAls",
    "envoyOtelAls",
    "sds",
];

/// The authorizers of the list. What is wrong goes to `errors`; then the answer is of no use.
pub(super) fn check(list: &View<'_>, errors: &mut Vec<FieldError>) -> Vec<ExtensionProvider> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for entry in list.elements().filter(View::is_object) {
        let name = check_name(&entry.get("name"), &mut names, errors);
        let (http, grpc) = (entry.get("envoyExtAuthzHttp"), entry.get("envoyExtAuthzGrpc"));
        let others: Vec<_> = OTHER_KINDS.iter().filter(|kind| !entry.get(kind).is_absent()).collect();
        let kinds = others.len() + usize::from(!http.is_absent()) + usize::from(!grpc.is_absent());
        if kinds != 1 {
            let message = match kinds {
                0 => "a provider has a kind",
                _ => "a provider has one kind only",
            };
            errors.push(entry.invalid(message).help("write envoyExtAuthzHttp or envoyExtAuthzGrpc"));
            continue;
        }
        for kind in others {
            let content = entry.get(kind);
            if !(BUILT_IN.contains(&(kind, name.as_str())) && content.is_empty()) {
                errors.push(
                    content
                        .error(FieldErrorKind::NotEnforced, format!("a provider of kind {kind} is not enforced: only authorizers are asked"))
                        .help("remove the provider; metrics are for Prometheus to fetch, and accessLogFile switches the access log on"),
                );
            }
        }
        if http.is_object() {
            let kind = ProviderKind::Http(check_http(&http, errors));
            found.extend(check_common(&http, name, kind, errors));
        } else if grpc.is_object() {
            found.extend(check_common(&grpc, name, ProviderKind::Grpc, errors));
        }
    }
    found
}

fn check_name(at: &View<'_>, names: &mut BTreeSet<String>, errors: &mut Vec<FieldError>) -> String {
    let text = at.text().unwrap_or_default();
    let valid = (1..=MAX_NAME).contains(&text.len()) && is_dns_label(text);
    if at.is_empty() {
        errors.push(at.required("a provider has a name").help("policies name it in spec.provider.name"));
    } else if !valid && at.text().is_some() {
        errors.push(
            at.invalid(format!("'{text}' is no name of a provider")).help(
                "1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
            ),
        );
    } else if names.contains(text) {
        errors.push(at.error(FieldErrorKind::Duplicate, format!("another provider is named '{text}'")));
    }
    names.insert(text.to_owned());
    text.to_owned()
}

/// What both kinds have.
fn check_common(
    at: &View<'_>,
    name: String,
    kind: ProviderKind,
    errors: &mut Vec<FieldError>,
) -> Option<ExtensionProvider> {
    let host = check_service(&at.get("service"), errors);
    let port = check_port(&at.get("port"), errors);
    let timeout = at.get("timeout");
    let timeout = match timeout.text() {
        Some(text) => check_duration(&timeout, text, true, errors),
        None => Some(DEFAULT_TIMEOUT),
    };
    let status = check_status(&at.get("statusOnError"), errors);
    let body = at.get("includeRequestBodyInCheck");
    let body = if body.is_object() { Some(check_body(&body, errors)?) } else { None };
    Some(ExtensionProvider {
        name,
        host: host?,
        port: port?,
        timeout: timeout?,
        fail_open: at.get("failOpen").is_true(),
        status_on_error: status?,
        body,
        kind,
    })
}

/// `[namespace/]host`; the host without what stands before it.
fn check_service(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<String> {
    const EXAMPLE: &str = "for example ext-authz.auth.svc.cluster.local";
    let text = at.text().unwrap_or_default();
    if text.is_empty() {
        // A value of another type has been complained about.
        if at.is_empty() {
            errors.push(at.required("an authorizer has a host").help(EXAMPLE));
        }
        return None;
    }
    let (namespace, host) = match text.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, text),
    };
    let is_address = host.parse::<IpAddr>().is_ok();
    let problem = if host.contains('*') {
        Some("names no single host")
    } else if !is_address && hosts::problem(host).is_some() {
        Some("is no host")
    } else if !is_address && !host.contains('.') {
        Some("is no full name")
    } else if namespace.is_some_and(|namespace| !is_dns_label(namespace)) {
        Some("does not begin with a namespace")
    } else {
        None
    };
    if let Some(problem) = problem {
        errors.push(at.invalid(format!("'{text}' {problem}")).help(EXAMPLE));
        return None;
    }
    if let Some(namespace) = namespace {
        let own = format!(".{namespace}.svc.{CLUSTER_DOMAIN}");
        if host.ends_with(&format!(".svc.{CLUSTER_DOMAIN}")) {
            if !host.ends_with(&own) {
                errors.push(
                    at.invalid(format!("'{host}' is no Service of namespace {namespace}"))
                        .help("remove the namespace and the '/'"),
                );
                return None;
            }
        } else {
            errors.push(
                at.error(
                    FieldErrorKind::NotEnforced,
                    format!("the namespace {namespace} is not enforced: a host has one meaning in the mesh"),
                )
                .help("remove the namespace and the '/'"),
            );
            return None;
        }
    }
    Some(host.to_ascii_lowercase())
}

fn check_port(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<u16> {
    let Some(number) = at.number() else {
        if at.is_absent() {
            errors.push(at.required("an authorizer has a port").help("that of the Service, from 1 to 65535"));
        }
        return None;
    };
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    if port.is_none() {
        errors.push(at.invalid(format!("{number} is no port")).help("a number from 1 to 65535"));
    }
    port
}

/// A status that Envoy knows, and that can end an exchange.
fn check_status(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<u16> {
    let text = match at.text() {
        None | Some("") => return Some(DEFAULT_STATUS),
        Some(text) => text,
    };
    let digits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(status) if digits && is_known_status(status) => Some(status),
        _ => {
            errors.push(
                at.invalid(format!("'{text}' is no HTTP status that is known"))
                    .help("for example \"403\" or \"503\""),
            );
            None
        }
    }
}

/// `envoy.type.v3.StatusCode` from 200 on: an interim status answers nothing.
fn is_known_status(status: u16) -> bool {
    matches!(
        status,
        200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=424 | 426 | 428 | 429 | 431 | 500..=508 | 510 | 511
    )
}

fn check_body(at: &View<'_>, errors: &mut Vec<FieldError>) -> Option<CheckBody> {
    let max = at.get("maxRequestBytes");
    let bytes = max.number().unwrap_or(0);
    if bytes == 0 && (max.is_absent() || max.number().is_some()) {
        errors.push(max.required("says how much of a body is read").help("a number of bytes from 1"));
    }
    Some(CheckBody {
        // Another type, and a number that does not fit, have been complained about by decoding.
        max_request_bytes: u32::try_from(bytes).ok().filter(|bytes| *bytes > 0)?,
        allow_partial_message: at.get("allowPartialMessage").is_true(),
        pack_as_bytes: at.get("packAsBytes").is_true(),
    })
}

fn check_http(at: &View<'_>, errors: &mut Vec<FieldError>) -> HttpProvider {
    let prefix = at.get("pathPrefix");
    let path_prefix = prefix.text().unwrap_or_default();
    let legal = path_prefix.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
    let fine = path_prefix.is_empty() || (path_prefix.starts_with('/') && legal);
    if !fine {
        errors.push(
            prefix.invalid(format!("'{path_prefix}' is no beginning of a path")).help("for example /check"),
        );
    }
    let requested = check_headers(&at.get("includeRequestHeadersInCheck"), errors);
    // The older field counts only where the newer one is empty.
    let older = check_headers(&at.get("includeHeadersInCheck"), errors);
    HttpProvider {
        path_prefix: path_prefix.to_owned(),
        include_request_headers_in_check: if requested.is_empty() { older } else { requested },
        include_additional_headers_in_check: check_fixed(&at.get("includeAdditionalHeadersInCheck"), errors),
        headers_to_upstream_on_allow: check_headers(&at.get("headersToUpstreamOnAllow"), errors),
        headers_to_downstream_on_deny: check_headers(&at.get("headersToDownstreamOnDeny"), errors),
        headers_to_downstream_on_allow: check_headers(&at.get("headersToDownstreamOnAllow"), errors),
    }
}

/// Names, `prefix*` or `*suffix`.
fn check_headers(list: &View<'_>, errors: &mut Vec<FieldError>) -> Vec<String> {
    let mut patterns = Vec::new();
    for element in list.elements() {
        let Some(text) = element.text() else { continue };
        let name = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        if text == "*" {
            errors.push(
                element
                    .invalid("'*' would be every header")
                    .help("name them, or a part: x-user-* or *-token"),
            );
        } else if !header_name(name) {
            errors.push(
                element
                    .invalid(format!("'{text}' is no name of a header, nor the beginning or end of names"))
                    .help("for example x-user, x-user-* or *-token"),
            );
        } else {
            patterns.push(text.to_owned());
        }
    }
    patterns
}

/// Headers that every check carries.
fn check_fixed(map: &View<'_>, errors: &mut Vec<FieldError>) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in map.members() {
        let text = value.text().unwrap_or_default();
        if !header_name(name) || name.starts_with(':') {
            errors
                .push(value.invalid(format!("'{name}' is no name of a header")).help("for example x-source"));
        } else if !text.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
            errors.push(value.invalid("no header has such a value").help("write text of one line"));
        } else {
            headers.insert(name.to_owned(), text.to_owned());
        }
    }
    headers
}

//! ML0217: methods that no request has, since they are compared as they are sent (reference authorization 6, 8).

use maille_config::istio::Rule;

use crate::code::UNKNOWN_METHOD;
use crate::mesh::Mesh;
use crate::report::Report;

use super::names::nearest;

/// IANA's registry of HTTP methods, and those that are in use beside it.
const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.policies {
        for (path, rule) in policy.rules() {
            for (path, value) in named(&path, rule).into_iter().filter(|(_, value)| !fits(value)) {
                let text =
                    format!("no HTTP method is '{value}', so that it matches no request{}", hint(value));
                report.add(&UNKNOWN_METHOD, policy.resource, &path, text);
            }
        }
    }
}

/// Values that are held against a request's method, with their field paths.
fn named<'r>(path: &str, rule: &'r Rule) -> Vec<(String, &'r str)> {
    let mut named = Vec::new();
    for (i, operation) in rule.to.iter().enumerate().filter_map(|(i, to)| Some((i, to.operation.as_ref()?))) {
        for (field, values) in [("methods", &operation.methods), ("notMethods", &operation.not_methods)] {
            let each = values.iter().enumerate();
            named.extend(
                each.map(|(j, value)| (format!("{path}.to[{i}].operation.{field}[{j}]"), value.as_str())),
            );
        }
    }
    for (i, when) in rule.when.iter().enumerate() {
        if !when.key.eq_ignore_ascii_case("request.headers[:method]") {
            continue;
        }
        for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
            let each = values.iter().enumerate();
            named.extend(each.map(|(j, value)| (format!("{path}.when[{i}].{field}[{j}]"), value.as_str())));
        }
    }
    named
}

/// Whether a method is of this form.
fn fits(pattern: &str) -> bool {
    METHODS.iter().any(|method| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => method.ends_with(suffix),
        (None, Some(prefix)) => method.starts_with(prefix),
        (None, None) => *method == pattern,
    })
}

fn hint(value: &str) -> String {
    let upper = value.to_ascii_uppercase();
    if upper != value && fits(&upper) {
        return format!(": methods are compared with case; write '{upper}'");
    }
    let near = nearest(&upper, METHODS.iter().copied());
    near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default()
}

//! `metadata`, as Kubernetes checks it (apimachinery pkg/api/validation, pkg/util/validation).

use maille_core::{is_dns_label, is_dns_subdomain};

use super::view::View;
use crate::field_error::FieldError;
use crate::kinds::Kind;

/// All annotations of one object together, keys and values (apimachinery `TotalAnnotationSizeLimitB`).
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub(super) fn check(kind: &Kind, object: View<'_>, errors: &mut Vec<FieldError>) {
    let metadata = object.get("metadata");
    let (name, prefix) = (metadata.get("name"), metadata.get("generateName"));
    match (name.text(), prefix.text()) {
        (Some(""), _) | (None, None | Some("")) if name.is_empty() => {
            errors.push(name.required("an object has a name").help("for example name: default"));
        }
        (Some(text), _) => errors.extend(name_problem(kind, text).map(|problem| name.invalid(problem))),
        // The generated part ends the name with a letter or digit.
        (None, Some(text)) => {
            let probe = format!("{text}x");
            errors.extend(name_problem(kind, &probe).map(|problem| prefix.invalid(problem)));
        }
        (None, None) => {}
    }
    let namespace = metadata.get("namespace");
    if let Some(text) = namespace.text() {
        if !kind.namespaced {
            errors.push(
                namespace.invalid(format!("a {} belongs to no namespace", kind.kind)).help("remove it"),
            );
        } else if !is_dns_label(text) {
            errors.push(namespace.invalid(format!("'{text}' is no namespace")).help(
                "1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
            ));
        }
    }
    check_labels(&metadata.get("labels"), errors);
    check_annotations(&metadata.get("annotations"), errors);
}

fn name_problem(kind: &Kind, name: &str) -> Option<String> {
    let starts_with_letter = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    match kind.kind {
        "Service" if !is_dns_label(name) || !starts_with_letter => Some(format!(
            "'{name}' is no name of a Service: 1 to 63 lower-case letters, digits and '-', beginning with a letter \
             and ending with a letter or digit"
        )),
        "Namespace" if !is_dns_label(name) => Some(format!(
            "'{name}' is no name of a Namespace: 1 to 63 lower-case letters, digits and '-', beginning and ending \
             with a letter or digit"
        )),
        _ if !is_dns_subdomain(name) => Some(format!(
            "'{name}' is no name of an object: lower-case letters, digits, '-' and '.', beginning and ending with a \
             letter or digit"
        )),
        _ => None,
    }
}

/// Keys and values of labels.
pub(super) fn check_labels(labels: &View<'_>, errors: &mut Vec<FieldError>) {
    for (key, value) in labels.members() {
        check_key(key, &value, errors);
        if value.text().is_some_and(|text| !text.is_empty() && !is_qualified_part(text)) {
            errors.push(value.invalid("is no value of a label").help(
                "at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
            ));
        }
    }
}

fn check_annotations(annotations: &View<'_>, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in annotations.members() {
        check_key(key, &value, errors);
        size += key.len() + value.text().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        errors.push(annotations.invalid(format!("take {size} bytes")).help("at most 256 KiB together"));
    }
}

fn check_key(key: &str, at: &View<'_>, errors: &mut Vec<FieldError>) {
    let valid = match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(&prefix.to_lowercase()) && is_qualified_part(name),
        None => is_qualified_part(key),
    };
    if !valid {
        errors.push(at.invalid(format!("'{key}' is no key of a label or annotation")).help(
            "a name, or <dns prefix>/<name>; at most 63 letters, digits, '-', '_' and '.' in the name",
        ));
    }
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

//! `exportTo` (istio pkg/config/validation).

use maille_core::is_dns_label;

use super::view::View;
use crate::field_error::{FieldError, FieldErrorKind};

/// The list of an object in `namespace`. `~`, nobody, is for ServiceEntries only.
pub(super) fn check(list: &View<'_>, namespace: Option<&str>, nobody: bool, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    let count = list.elements().count();
    for element in list.elements() {
        let Some(text) = element.text() else { continue };
        let meant = if text == "." { namespace.unwrap_or(text) } else { text };
        if seen.contains(&meant) {
            let message = format!("'{text}' is exported to twice");
            errors.push(element.error(FieldErrorKind::Duplicate, message).help("remove one of the two"));
            continue;
        }
        seen.push(meant);
        match text {
            "*" | "~" if count > 1 => errors.push(
                element
                    .invalid(format!("'{text}' cannot stand beside other entries"))
                    .help("'*' alone is everybody, and '~' alone nobody"),
            ),
            "." | "*" => {}
            "~" if nobody => {}
            "~" => errors.push(
                element.invalid("what nobody sees has no effect").help("write '.' for the own namespace"),
            ),
            _ if is_dns_label(text) => {}
            _ => errors.push(
                element
                    .invalid(format!("'{text}' is no namespace"))
                    .help("'.' for the own namespace, '*' for all, or the name of a namespace"),
            ),
        }
    }
}

/// A rule with a workload selector holds in its own namespace only.
pub(super) fn check_selector_scope(list: &View<'_>, namespace: Option<&str>, errors: &mut Vec<FieldError>) {
    // An object whose namespace is not known yet may mean it.
    let elsewhere = |text: &str| text == "*" || (text != "." && namespace.is_some_and(|own| text != own));
    for element in list.elements().filter(|e| e.text().is_some_and(elsewhere)) {
        errors.push(
            element
                .invalid("a rule with a workloadSelector holds in its own namespace only")
                .help("write exportTo: [\".\"], or leave exportTo or the selector out"),
        );
    }
}

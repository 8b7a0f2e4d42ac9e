//! IST0101: namespaces that policies name and that do not exist.

use crate::code::REFERENCED_RESOURCE_NOT_FOUND;
use crate::mesh::Mesh;
use crate::mesh::policy::sources;
use crate::report::Report;

use super::names::nearest;

pub(crate) fn analyze(mesh: &Mesh<'_>, report: &mut Report) {
    for policy in &mesh.policies {
        for (path, rule) in policy.rules() {
            let mut named: Vec<(String, &str)> = Vec::new();
            for (path, source) in sources(&path, rule) {
                for (field, values) in
                    [("namespaces", &source.namespaces), ("notNamespaces", &source.not_namespaces)]
                {
                    let each = values.iter().enumerate();
                    named.extend(each.map(|(i, value)| (format!("{path}.{field}[{i}]"), value.as_str())));
                }
            }
            for (w, when) in rule.when.iter().enumerate().filter(|(_, when)| when.key == "source.namespace") {
                for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
                    let each = values.iter().enumerate();
                    let field = |i| format!("{path}.when[{w}].{field}[{i}]");
                    named.extend(each.map(|(i, value)| (field(i), value.as_str())));
                }
            }
            for (path, value) in named {
                if !mesh.namespaces.keys().any(|namespace| fits(value, namespace)) {
                    let hint = nearest(value, mesh.namespaces.keys().map(String::as_str));
                    let hint = hint.map(|name| format!("; did you mean '{name}'?")).unwrap_or_default();
                    let text = format!("referenced namespace not found: '{value}'{hint}");
                    report.add(&REFERENCED_RESOURCE_NOT_FOUND, policy.resource, &path, text);
                }
            }
        }
    }
}

/// `*` stands for anything, anywhere (reference authorization 12.2); case does not matter, as in Istio's analyzer.
fn fits(pattern: &str, namespace: &str) -> bool {
    let (pattern, namespace) = (pattern.to_ascii_lowercase(), namespace.to_ascii_lowercase());
    let runs: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = runs.as_slice() else { return pattern == namespace };
    let Some(mut rest) = namespace.strip_prefix(first) else { return false };
    for run in middle {
        match rest.split_once(run) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_namespaces() {
        for (pattern, expected) in [
            ("prod-eu", true),
            ("PROD-eu", true),
            ("prod-*", true),
            ("*-eu", true),
            ("p*u", true),
            ("*", true),
            ("prod", false),
            ("x*", false),
            ("prod-eu*eu", false),
        ] {
            assert_eq!(fits(pattern, "prod-eu"), expected, "{pattern}");
        }
    }
}

//! Paths of AuthorizationPolicy, which may be templates (reference authorization 10.2, 18).

use super::view::View;
use crate::field_error::FieldError;

/// A plain path, or a template with `{*}` and `{**}`.
pub(super) fn path(at: &View<'_>, text: &str) -> Option<FieldError> {
    let problem = problem(text)?;
    Some(at.invalid(format!("path '{text}' {problem}")).help(
        "'{*}' stands for one whole segment and '{**}', once and last, for any rest; \
         outside templates a single '*' may begin or end the path",
    ))
}

fn problem(text: &str) -> Option<String> {
    // A plain path: everything is literal but a leading or trailing '*'.
    if !text.contains(['{', '}']) {
        return None;
    }
    let rest = text.strip_prefix('/').unwrap_or(text);
    let segments: Vec<&str> = rest.split('/').collect();
    let mut open_ended = false;
    for (i, segment) in segments.iter().enumerate() {
        match *segment {
            "{*}" | "{**}" if open_ended => {
                return Some("has an operator after '{**}', which must be the last one".to_owned());
            }
            "{**}" => open_ended = true,
            "{*}" => {}
            "" if i + 1 < segments.len() => {
                return Some("has an empty segment, which no template matches".to_owned());
            }
            literal if literal.contains(['{', '}']) => {
                return Some(format!(
                    "has braces that are not a whole '{{*}}' or '{{**}}' segment: '{literal}'"
                ));
            }
            literal => {
                if let Some(c) = literal.chars().find(|c| !is_literal(*c)) {
                    return Some(format!(
                        "has the character '{c}', which a template cannot contain literally"
                    ));
                }
            }
        }
    }
    None
}

/// The characters of a literal segment: those an operator matches, without `*` (envoy
/// source/extensions/path/uri_template_lib, `kLiteral`).
fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_the_reference_are_valid() {
        let all =
            ["/v1/{*}/items", "/v1/{*}", "/v1/{**}", "/v1/{**}/end", "/v1/{*}/x/{**}", "/{**}", "/{*}/"];
        for template in all {
            assert_eq!(problem(template), None, "{template}");
        }
        for plain in ["/a*/b*", "*", "/admin*", "*/x", "no-slash", "/a|b", "//"] {
            assert_eq!(problem(plain), None, "{plain}");
        }
    }

    #[test]
    fn broken_templates_say_what_is_broken() {
        for (template, part) in [
            ("/a/{x}", "'{x}'"),
            ("/a/{*}/*", "character '*'"),
            ("/{**}/{*}", "after '{**}'"),
            ("/{**}/{**}", "after '{**}'"),
            ("/a{*}", "'a{*}'"),
            ("/a}", "'a}'"),
            ("/a//{*}", "empty segment"),
            ("/{*}/a|b", "character '|'"),
        ] {
            let found = problem(template);
            assert!(found.as_deref().is_some_and(|p| p.contains(part)), "{template}: {found:?}");
        }
    }
}

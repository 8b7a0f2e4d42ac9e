//! Text values (reference authorization 6) and path templates (10.2).

use crate::glob::{Token, literal, matches};

/// The four forms, tested in the reference's order; the attribute is there.
pub(crate) fn fits(pattern: &str, text: &[u8]) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Some(end) = pattern.strip_prefix('*') {
        return text.ends_with(end.as_bytes());
    }
    if let Some(start) = pattern.strip_suffix('*') {
        return text.starts_with(start.as_bytes());
    }
    text == pattern.as_bytes()
}

/// As [`fits`] for attributes of which the empty text counts as missing.
pub(crate) fn fits_text(pattern: &str, text: &str) -> bool {
    !text.is_empty() && fits(pattern, text.as_bytes())
}

fn segment_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;:@=".contains(c)
}

fn rest_character(c: char) -> bool {
    segment_character(c) || c == '/'
}

/// A `paths` value against a path without query.
pub(crate) fn fits_path(value: &str, path: &str) -> bool {
    if path.is_empty() {
        return false;
    }
    match template(value) {
        Some(tokens) => matches(&tokens.unwrap_or_default(), path),
        None => fits_text(value, path),
    }
}

/// `None`: a plain value. `Some(None)`: braces that form no template.
pub(crate) fn template(value: &str) -> Option<Option<Vec<Token>>> {
    if !value.contains(['{', '}']) {
        return None;
    }
    Some(read_template(value))
}

fn read_template(value: &str) -> Option<Vec<Token>> {
    let segments: Vec<&str> = value.trim_matches('/').split('/').collect();
    let operators: Vec<&&str> = segments.iter().filter(|s| matches!(**s, "{*}" | "{**}")).collect();
    if operators.iter().rev().skip(1).any(|o| **o == "{**}") {
        return None;
    }
    let plain = |s: &&str| !s.is_empty() && s.chars().all(|c| segment_character(c) && c != '*');
    if !segments.iter().all(|s| matches!(*s, "{*}" | "{**}") || plain(s)) {
        return None;
    }
    let mut tokens = Vec::new();
    for (index, segment) in value.split('/').enumerate() {
        if index > 0 {
            tokens.push(literal("/"));
        }
        tokens.push(match segment {
            "{*}" => Token::Run { min: 1, of: segment_character },
            "{**}" => Token::Run { min: 0, of: rest_character },
            text => literal(text),
        });
    }
    Some(tokens)
}

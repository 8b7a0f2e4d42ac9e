//! Path templates with `{*}` and `{**}` (reference authorization 10.2).

/// One piece of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    /// Literal text, slashes included.
    Literal(Box<str>),
    /// `{*}`: one segment that is not empty.
    Segment,
    /// `{**}`: anything, slashes included.
    Rest,
}

/// A path with `{*}` or `{**}` segments; it matches whole paths.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PathTemplate {
    pieces: Vec<Piece>,
}

/// Whether a path value must be read as a template (or is wrong): a plain path has no braces.
pub(crate) fn has_braces(value: &str) -> bool {
    value.contains(['{', '}'])
}

impl PathTemplate {
    /// Reads a template. Operators must be whole segments and `{**}` the last of them; other segments
    /// may hold only the characters of RFC 3986 `pchar` without `*`, and inner ones must not be empty.
    pub(crate) fn parse(value: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest_seen = false;
        // Slashes at the ends are literal text, however many.
        let inner = value.trim_matches('/');
        let slashes = |text: &str| "/".repeat(value.len() - text.len());
        literal.push_str(&slashes(value.trim_start_matches('/')));
        for (index, segment) in inner.split('/').enumerate() {
            if index > 0 {
                literal.push('/');
            }
            let operator = match segment {
                "{*}" => Piece::Segment,
                "{**}" => Piece::Rest,
                text if has_braces(text) => {
                    return Err(format!("segment '{text}' has braces but is neither {{*}} nor {{**}}"));
                }
                "" => return Err("an inner segment is empty".to_owned()),
                text if text.bytes().all(|b| b != b'*' && is_segment_byte(b)) => {
                    literal.push_str(text);
                    continue;
                }
                text => return Err(format!("segment '{text}' has a character that a template cannot hold")),
            };
            if rest_seen {
                return Err("{**} is not the last operator".to_owned());
            }
            rest_seen = operator == Piece::Rest;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
            }
            pieces.push(operator);
        }
        literal.push_str(&slashes(value.trim_end_matches('/')));
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Self { pieces })
    }

    /// Whether the whole of `path` (without query) matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let mut rest = path.as_bytes();
        let mut pieces = self.pieces.iter();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Literal(text) => match rest.strip_prefix(text.as_bytes()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                // What follows an operator begins with a slash, which the operator cannot take, or is
                // the end: the longest run is the only choice.
                Piece::Segment => {
                    let run = rest.iter().take_while(|b| is_segment_byte(**b)).count();
                    if run == 0 {
                        return false;
                    }
                    rest = rest.get(run..).unwrap_or_default();
                }
                Piece::Rest => {
                    let tail = match pieces.next() {
                        Some(Piece::Literal(text)) => text.as_bytes(),
                        _ => b"",
                    };
                    return rest
                        .strip_suffix(tail)
                        .is_some_and(|run| run.iter().all(|b| *b == b'/' || is_segment_byte(*b)));
                }
            }
        }
        rest.is_empty()
    }

    /// The literal text that every matching path begins with.
    pub(crate) fn literal_prefix(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Literal(text)) => text,
            _ => "",
        }
    }
}

fn is_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;:@=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of reference authorization 10.2 (queries are cut before).
    #[test]
    fn templates_match_as_the_reference_table_says() {
        let cases = [
            ("/v1/{*}/items", "/v1/a/items", true),
            ("/v1/{*}/items", "/v1/a/b/items", false),
            ("/v1/{*}/items", "/v1//items", false),
            ("/v1/{*}", "/v1/", false),
            ("/v1/{*}", "/v1/a/", false),
            ("/v1/{**}", "/v1/", true),
            ("/v1/{**}", "/v1/a/b/c", true),
            ("/v1/{**}", "/v1", false),
            ("/v1/{**}/end", "/v1/a/b/end", true),
            ("/v1/{**}/end", "/v1//end", true),
            ("/v1/{**}/end", "/v1/end", false),
            ("/v1/{*}/x/{**}", "/v1/q/x/", true),
            ("/v1/{*}", "/v1/a*b", true),
            ("/v1/{*}", "/v1/a[b", false),
            ("/v1/{*}", "/v1/a%20b", true),
            ("/v1/{**}", "/v1/a/b[c", false),
            ("/v1/{**}/end", "/v1/a/end/b", false),
            ("/v1/{**}/end", "/v1/end/end", true),
            ("/v1/{*}/", "/v1/a/", true),
            ("/{**}", "/", true),
            ("/{*}/{*}", "/a/b", true),
        ];
        for (template, path, expected) in cases {
            let parsed = PathTemplate::parse(template).expect(template);
            assert_eq!(parsed.matches(path), expected, "{template} {path}");
        }
    }

    /// Reference authorization 18, rows on templates.
    #[test]
    fn bad_templates_are_refused() {
        for bad in [
            "/a/{x}",
            "/a/{*}/*",
            "/{**}/{*}",
            "/{**}/{**}",
            "/a{*}",
            "/{*}b",
            "/{",
            "/a}/{*}",
            "/a//{*}",
            "/a|/{*}",
        ] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}

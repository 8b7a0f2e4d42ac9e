//! Normalization of request paths, before anything judges or forwards them (reference authorization 10.3).

use std::borrow::Cow;

/// `meshConfig.pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Normalization {
    /// Paths stay as they come.
    None,
    /// `BASE`, also called `DEFAULT`: escapes of unreserved characters, backslashes and dot segments are resolved.
    #[default]
    Base,
    /// As `BASE`, then runs of slashes become one.
    MergeSlashes,
    /// Escaped slashes and backslashes are decoded, then as `MERGE_SLASHES`.
    DecodeAndMergeSlashes,
}

/// Why a request target is no path; the request is answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A blank, control character or `#`.
    #[error("the request target has a blank, a control character or a '#'")]
    Character,
    /// `%00`.
    #[error("the path has an escaped zero byte")]
    Zero,
    /// Neither empty (CONNECT), nor `*` (OPTIONS), nor beginning with a slash.
    #[error("the path does not begin with '/'")]
    NotAbsolute,
}

/// The path to judge and to forward, with its query, which is never touched.
///
/// Borrows when nothing changes, which is the usual case.
pub fn normalize(mode: Normalization, path_and_query: &str) -> Result<Cow<'_, str>, PathError> {
    if path_and_query.bytes().any(|b| b <= b' ' || b == b'#' || b == 0x7f) {
        return Err(PathError::Character);
    }
    if mode == Normalization::None || path_and_query.is_empty() || path_and_query == "*" {
        return Ok(Cow::Borrowed(path_and_query));
    }
    if !path_and_query.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let end = path_and_query.find('?').unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(end);
    if path.contains("%00") {
        return Err(PathError::Zero);
    }
    let merge = mode != Normalization::Base;
    if is_canonical(path.as_bytes(), merge) {
        return Ok(Cow::Borrowed(path_and_query));
    }
    let decoded = match mode {
        Normalization::DecodeAndMergeSlashes => decode_slashes(path),
        _ => Cow::Borrowed(path),
    };
    let mut normal = canonicalize(&decoded);
    if merge {
        normal = merge_slashes(&normal);
    }
    normal.push_str(query);
    Ok(Cow::Owned(normal))
}

/// Whether nothing can change: no escape, no character to replace, no segment that begins with a dot.
fn is_canonical(path: &[u8], merge: bool) -> bool {
    let mut previous = 0;
    path.iter().all(|b| {
        let fine = match b {
            b'%' | b'\\' => false,
            b'.' => previous != b'/',
            b'/' => !(merge && previous == b'/'),
            b => !is_escaped_raw(*b),
        };
        previous = *b;
        fine
    })
}

fn is_escaped_raw(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}') || !byte.is_ascii()
}

fn decode_slashes(path: &str) -> Cow<'_, str> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        decoded.push_str(before);
        let (character, width) = match escape.as_bytes() {
            [_, b'2', b'f' | b'F', ..] => ('/', 3),
            [_, b'5', b'c' | b'C', ..] => ('\\', 3),
            _ => ('%', 1),
        };
        decoded.push(character);
        rest = escape.get(width..).unwrap_or_default();
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Steps 1 to 5 of the reference.
fn canonicalize(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 8);
    let mut segments = path.split('/').skip(1).peekable();
    out.push('/');
    while let Some(raw) = segments.next() {
        let last = segments.peek().is_none();
        // Only after a real slash and with plain dots: `..;a=b` acts as `..`.
        let raw = match raw.split_once(';') {
            Some((dots @ ("." | ".."), _)) => dots,
            _ => raw,
        };
        let mut parts = raw.split('\\').peekable();
        while let Some(part) = parts.next() {
            push_segment(&mut out, &decode_unreserved(part), last && parts.peek().is_none());
        }
    }
    out
}

/// Appends a segment to an output that ends with a slash.
fn push_segment(out: &mut String, segment: &[u8], last: bool) {
    match segment {
        b"." => {}
        b".." => {
            // Up, but not above the root.
            let kept = out.strip_suffix('/').unwrap_or(out);
            out.truncate(kept.rfind('/').map_or(1, |at| at + 1));
        }
        other => {
            for byte in other {
                if is_escaped_raw(*byte) {
                    out.push_str(&format!("%{byte:02X}"));
                } else {
                    out.push(char::from(*byte));
                }
            }
            if !last {
                out.push('/');
            }
        }
    }
}

/// Decodes escapes of letters, digits, `-`, `.`, `_` and `~`; all else stays as written.
fn decode_unreserved(segment: &str) -> Cow<'_, [u8]> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment.as_bytes());
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut malformed = None;
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        match escaped(rest) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                decoded.push(byte);
                rest = after.get(2..).unwrap_or_default();
                if let Some(percent) = malformed {
                    keep_malformed(&mut decoded, percent, rest.first().copied());
                }
                continue;
            }
            None if *first == b'%' => malformed = Some(decoded.len()),
            _ => {}
        }
        decoded.push(*first);
        rest = after;
    }
    Cow::Owned(decoded)
}

/// Keeps a lone `%` from forming an escape with what was decoded after it (`%2%41` would become `%2A`): it is
/// escaped itself then, as the reference proxy does.
fn keep_malformed(decoded: &mut Vec<u8>, percent: usize, next: Option<u8>) {
    let forms_escape = match decoded.get(percent..) {
        Some([_, one]) => next.is_some_and(|next| escaped(&[b'%', *one, next]).is_some()),
        Some(three @ [_, _, _]) => escaped(three).is_some(),
        _ => false,
    };
    if forms_escape {
        decoded.splice(percent..=percent, *b"%25");
    }
}

/// The byte that a text begins with in escaped form.
fn escaped(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// Collapses runs of slashes; one at either end stays, also when there is nothing between (`//`).
fn merge_slashes(path: &str) -> String {
    if !path.contains("//") {
        return path.to_owned();
    }
    let mut merged = String::with_capacity(path.len());
    merged.push('/');
    for (index, segment) in path.split('/').filter(|s| !s.is_empty()).enumerate() {
        if index > 0 {
            merged.push('/');
        }
        merged.push_str(segment);
    }
    if path.ends_with('/') {
        merged.push('/');
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
    use super::*;

    fn normal(mode: Normalization, path: &str) -> String {
        normalize(mode, path).expect(path).into_owned()
    }

    /// The table of reference authorization 10.3.
    #[test]
    fn modes_normalize_as_the_reference_table_says() {
        let inputs = ["/a/../b", "/a//b", "/a%2fb", "/a\\b", "/%61"];
        for (mode, expected) in [
            (None, inputs),
            (Base, ["/b", "/a//b", "/a%2fb", "/a/b", "/a"]),
            (MergeSlashes, ["/b", "/a/b", "/a%2fb", "/a/b", "/a"]),
            (DecodeAndMergeSlashes, ["/b", "/a/b", "/a/b", "/a/b", "/a"]),
        ] {
            for (input, expected) in inputs.iter().zip(expected) {
                assert_eq!(normal(mode, input), expected, "{mode:?} {input}");
            }
        }
    }

    /// The numbered steps of reference authorization 10.3.
    #[test]
    fn canonical_form() {
        for (input, expected) in [
            ("/x/..;p=1/y", "/y"),
            ("/x/.;p/y", "/x/y"),
            ("/x/..;p=1", "/"),
            ("/x/.;p", "/x/"),
            ("/x\\..;p/y", "/x/..;p/y"),
            ("/%%36%31", "/%2561"),
            ("/~%2%41", "/~%252A"),
            ("/%%411", "/%25A1"),
            ("/%%41g", "/%Ag"),
            ("/x/%2e%2e;p/y", "/x/..;p/y"),
            ("/a;x=1", "/a;x=1"),
            ("/%7Ea", "/~a"),
            ("/x/%2e%2e/y", "/y"),
            ("/a%3ab", "/a%3ab"),
            ("/%zz", "/%zz"),
            ("/a%", "/a%"),
            ("/a%2", "/a%2"),
            ("/%252e", "/%252e"),
            ("/a\\..\\b", "/b"),
            ("/../x", "/x"),
            ("/..", "/"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a//../b", "/a/b"),
            ("/a|b", "/a%7Cb"),
            ("/\"<>^`{}", "/%22%3C%3E%5E%60%7B%7D"),
            ("/[a]", "/[a]"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/é", "/%C3%A9"),
            ("/a/../b?x=/../%61|", "/b?x=/../%61|"),
            ("/", "/"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normal(Base, input), expected, "{input}");
        }
    }

    #[test]
    fn slashes_merge() {
        for (input, expected) in [
            ("//", "//"),
            ("///", "//"),
            ("//a", "/a"),
            ("/a//", "/a/"),
            ("/a//b///c/", "/a/b/c/"),
            ("/?a//b", "/?a//b"),
        ] {
            assert_eq!(normal(MergeSlashes, input), expected, "{input}");
        }
        assert_eq!(normal(DecodeAndMergeSlashes, "/%2fadmin%5Cx"), "/admin/x");
    }

    #[test]
    fn bad_targets_are_refused() {
        for mode in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
            for bad in ["/a b", "/a#b", "/a?b c", "/a\tb"] {
                assert_eq!(normalize(mode, bad), Err(PathError::Character), "{bad}");
            }
        }
        assert_eq!(normalize(Base, "/a%00"), Err(PathError::Zero));
        assert_eq!(normalize(Base, "a"), Err(PathError::NotAbsolute));
    }

    /// The paragraph after the numbered steps.
    #[test]
    fn what_an_admin_prefix_sees() {
        assert!(normal(Base, "/x/../admin").starts_with("/admin"));
        assert!(!normal(Base, "//admin").starts_with("/admin"));
        assert!(normal(MergeSlashes, "//admin").starts_with("/admin"));
        assert!(!normal(MergeSlashes, "/%2fadmin").starts_with("/admin"));
        assert!(normal(DecodeAndMergeSlashes, "/%2fadmin").starts_with("/admin"));
    }

    proptest::proptest! {
        #[test]
        fn normalizing_never_leaves_dot_segments(path in "/[a./\\\\%2eE;|]{0,20}") {
            for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
                let once = normal(mode, &path);
                proptest::prop_assert!(once.starts_with('/'));
                proptest::prop_assert!(once.split('/').all(|s| s != "." && s != ".."), "{once}");
            }
        }

        #[test]
        fn any_text_is_normalized_or_refused(path in ".*") {
            for mode in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
                let _ = normalize(mode, &path);
            }
        }
    }
}

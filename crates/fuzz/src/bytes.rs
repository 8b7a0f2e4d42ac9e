//! Taking inputs apart.

/// The input as text, and its lines up to the first empty one apart from what follows.
pub(crate) fn head_and_body(input: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(input);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    (head.to_owned(), body.to_owned())
}

/// The first line and the rest.
pub(crate) fn line_and_rest(input: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(input);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, ""));
    (line.to_owned(), rest.to_owned())
}

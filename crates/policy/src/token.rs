//! Patterns over the verified token of a request (reference authorization 20).

use std::sync::Arc;

use serde_json::Value;

use crate::test::Request;
use crate::text::{TextPattern, TextSet};

/// Stands between issuer and subject when both are one text. No text holds it, since it is no part of UTF-8: so
/// patterns over the joined text cannot reach from one half into the other.
const JOINT: u8 = 0xff;

/// Issuer and subject up to this length together are joined without allocating.
const JOINED_BUFFER: usize = 512;

/// `requestPrincipals` values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestPrincipals {
    /// Over the joined text of tokens of which neither half is empty.
    joined: TextSet,
    /// Values that want an empty half. No other value fits a token that has one.
    odd: Vec<(TextPattern, TextPattern)>,
}

impl RequestPrincipals {
    pub(crate) fn parse(values: &[String]) -> Self {
        let mut pairs: Vec<_> = values.iter().map(|value| split(value)).collect();
        pairs.sort();
        pairs.dedup();
        let joined: Vec<_> = pairs.iter().map(|(issuer, subject)| join_patterns(issuer, subject)).collect();
        let empty = TextPattern::Exact(String::new());
        pairs.retain(|(issuer, subject)| *issuer == empty || *subject == empty);
        Self { joined: TextSet::new(&joined, false), odd: pairs }
    }

    /// The values over the joined text, if an index over it tells all: a token with an empty half is not in there.
    pub(crate) fn joined(&self) -> Option<&TextSet> {
        self.odd.is_empty().then_some(&self.joined)
    }

    pub(crate) fn matches(&self, issuer: &str, subject: &str) -> bool {
        if issuer.is_empty() || subject.is_empty() {
            return self.odd.iter().any(|(i, s)| i.fits(issuer) && s.fits(subject));
        }
        let mut found = false;
        with_joined(issuer, subject, &mut |text| found = self.joined.matches(text));
        found
    }
}

/// The table of section 20: values split at the last slash, and only one star counts (Istio
/// pilot/pkg/security/authz/model/generator.go).
fn split(value: &str) -> (TextPattern, TextPattern) {
    use TextPattern::{Exact, Prefix, Present, Suffix};
    let text = str::to_owned;
    if value == "*" {
        return (Present, Present);
    }
    match (value.rsplit_once('/'), value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(("*", subject)), ..) => (Present, Exact(text(subject))),
        (Some((issuer, subject)), Some(_), _) => {
            (Suffix(text(issuer.strip_prefix('*').unwrap_or(issuer))), Exact(text(subject)))
        }
        (None, Some(end), _) => (Present, Suffix(text(end))),
        (Some((issuer, "*")), None, _) => (Exact(text(issuer)), Present),
        (Some((issuer, subject)), None, Some(_)) => {
            (Exact(text(issuer)), Prefix(text(subject.strip_suffix('*').unwrap_or(subject))))
        }
        (None, None, Some(start)) => (Prefix(text(start)), Present),
        (Some((issuer, subject)), None, None) => (Exact(text(issuer)), Exact(text(subject))),
        (None, None, None) => (Exact(text(value)), Exact(String::new())),
    }
}

/// A pattern over the joined text that matches what fits both halves. Each pair that [`split`] makes has one; no other
/// pair is ever joined.
fn join_patterns(issuer: &TextPattern, subject: &TextPattern) -> TextPattern<Vec<u8>> {
    use TextPattern::{Exact, Prefix, Present, Suffix};
    match (issuer, subject) {
        (Exact(i), Exact(s)) => Exact(join(i, s)),
        (Exact(i), Prefix(s)) => Prefix(join(i, s)),
        (Exact(i), Present) => Prefix(join(i, "")),
        (Prefix(i), Present) => Prefix(i.as_bytes().to_vec()),
        (Suffix(i), Exact(s)) => Suffix(join(i, s)),
        (Present, Exact(s)) => Suffix(join("", s)),
        (Present, Suffix(s)) => Suffix(s.as_bytes().to_vec()),
        _ => Present,
    }
}

fn join(issuer: &str, subject: &str) -> Vec<u8> {
    [issuer.as_bytes(), &[JOINT], subject.as_bytes()].concat()
}

/// Calls `visit` with issuer and subject as one text.
pub(crate) fn with_joined(issuer: &str, subject: &str, visit: &mut dyn FnMut(&[u8])) {
    let mut buffer = [0; JOINED_BUFFER];
    let length = issuer.len() + 1 + subject.len();
    match buffer.get_mut(..length).and_then(|text| text.split_at_mut_checked(issuer.len())) {
        Some((first, [joint, second @ ..])) => {
            first.copy_from_slice(issuer.as_bytes());
            *joint = JOINT;
            second.copy_from_slice(subject.as_bytes());
            visit(buffer.get(..length).unwrap_or_default());
        }
        _ => visit(&join(issuer, subject)),
    }
}

/// The place of a claim: a name at the top, and one in each object inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClaimPath {
    names: Arc<[Box<str>]>,
}

impl ClaimPath {
    /// A claim at the top.
    pub(crate) fn top(name: &str) -> Self {
        Self { names: [name.into()].into() }
    }

    /// What follows `request.auth.claims` in a key: `[a]`, `[a][b]`. Brackets that do not pair up that way are part of
    /// one name, as in Istio (pilot/pkg/security/authz/model/util.go). `None`: not of that form, or an empty name.
    pub(crate) fn parse(brackets: &str) -> Option<Self> {
        let whole = brackets.strip_prefix('[')?.strip_suffix(']')?;
        let names: Vec<&str> = whole.split("][").collect();
        let names = if names.iter().any(|name| name.contains(['[', ']'])) { vec![whole] } else { names };
        let named = names.iter().all(|name| !name.is_empty());
        named.then(|| Self { names: names.into_iter().map(Into::into).collect() })
    }

    pub(crate) fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Calls `visit` with each text that policy sees of the claim.
    pub(crate) fn visit(&self, request: &Request<'_>, visit: &mut dyn FnMut(&[u8])) {
        if let Some(value) = request.attributes.claims.and_then(|claims| claims.get(&self.names)) {
            texts(value, visit);
        }
    }
}

/// Calls `visit` with each text that policy sees of a claim: itself, or the elements of its list. Numbers, truth values
/// and objects are nothing that a pattern could match, and neither is the empty text.
pub(crate) fn texts(value: &Value, visit: &mut dyn FnMut(&[u8])) {
    let mut text = |value: &Value| match value.as_str() {
        Some("") | None => {}
        Some(text) => visit(text.as_bytes()),
    };
    match value {
        Value::Array(elements) => elements.iter().for_each(text),
        value => text(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_keys_are_paths_of_bracketed_names() {
        let parse = |text: &str| ClaimPath::parse(text).map(|path| path.names.join(" / "));
        for (key, path) in [
            ("[a]", Some("a")),
            ("[a.b]", Some("a.b")),
            ("[realm][roles]", Some("realm / roles")),
            ("[a[b]]", Some("a[b]")),
            ("[a]x[b]", Some("a]x[b")),
            ("[]", None),
            ("[a][]", None),
            ("", None),
            ("a", None),
            ("[a", None),
            ("[", None),
        ] {
            assert_eq!(parse(key).as_deref(), path, "{key}");
        }
    }

    proptest::proptest! {
        #[test]
        fn joined_patterns_match_as_both_halves_do(
            values in proptest::collection::vec("[ab*/]{1,5}", 0..6),
            issuer in "[ab*/]{0,4}",
            subject in "[ab*/]{0,4}",
        ) {
            let one_by_one = values.iter().any(|value| {
                let (i, s) = split(value);
                i.fits(&issuer) && s.fits(&subject)
            });
            let set = RequestPrincipals::parse(&values);
            proptest::prop_assert_eq!(set.matches(&issuer, &subject), one_by_one);
            if let Some(joined) = set.joined() {
                let mut hit = false;
                with_joined(&issuer, &subject, &mut |text| hit = joined.matches(text));
                let indexed = hit && !issuer.is_empty() && !subject.is_empty();
                proptest::prop_assert_eq!(indexed, one_by_one, "an index is exact");
            }
        }
    }
}

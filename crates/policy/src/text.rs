//! Text patterns with one `*` at an end, and sets of them (reference authorization 6).

use std::cmp::Ordering;

use crate::index::key::KeyValue;

/// One value of a string field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TextPattern<T = String> {
    /// `*`: whatever there is.
    Present,
    /// Equal.
    Exact(T),
    /// `abc*`.
    Prefix(T),
    /// `*abc`.
    Suffix(T),
}

impl TextPattern {
    /// Reads a value. Only one `*` is special: the text is `*`, else it is the first character, else the
    /// last; any other `*` is literal.
    pub(crate) fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(rest) = value.strip_prefix('*') {
            Self::Suffix(rest.to_owned())
        } else if let Some(rest) = value.strip_suffix('*') {
            Self::Prefix(rest.to_owned())
        } else {
            Self::Exact(value.to_owned())
        }
    }

    /// Whether a text that is there, though perhaps empty, fits. `*` wants one that is not.
    pub(crate) fn fits(&self, text: &str) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Exact(exact) => exact == text,
            Self::Prefix(start) => text.starts_with(start.as_str()),
            Self::Suffix(end) => text.ends_with(end.as_str()),
        }
    }
}

/// Values of which one must match, searched in logarithmic time.
///
/// Lists are sorted and without redundant members, so that equal sets are equal values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct TextSet {
    present: bool,
    /// Patterns are in lower case and the text compares without case (hosts).
    fold: bool,
    exact: Vec<Box<[u8]>>,
    // INVARIANT: sorted, and no member is a prefix of another, so that the greatest member not
    // above a text is the only one that can be its prefix.
    prefixes: Vec<Box<[u8]>>,
    // INVARIANT: as `prefixes`, each member reversed.
    suffixes: Vec<Box<[u8]>>,
}

impl TextSet {
    /// The set of these patterns; with `fold`, matching ignores (ASCII) case.
    pub(crate) fn new<T: AsRef<[u8]>>(patterns: &[TextPattern<T>], fold: bool) -> Self {
        let mut set = Self { fold, ..Self::default() };
        let bytes = |text: &T| -> Vec<u8> {
            if fold { text.as_ref().to_ascii_lowercase() } else { text.as_ref().to_vec() }
        };
        for pattern in patterns {
            match pattern {
                TextPattern::Present => set.present = true,
                TextPattern::Exact(text) => set.exact.push(bytes(text).into()),
                TextPattern::Prefix(text) => set.prefixes.push(bytes(text).into()),
                TextPattern::Suffix(text) => set.suffixes.push(bytes(text).into_iter().rev().collect()),
            }
        }
        set.exact.sort();
        set.exact.dedup();
        keep_shortest(&mut set.prefixes);
        keep_shortest(&mut set.suffixes);
        set
    }

    /// Whether a value that is there matches. Whether an empty value is "there" is the caller's question.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        self.present
            || (!self.exact.is_empty() && self.has_exact(text))
            || (!self.prefixes.is_empty() && self.has_end(&self.prefixes, text.iter().copied()))
            || (!self.suffixes.is_empty() && self.has_end(&self.suffixes, text.iter().rev().copied()))
    }

    /// The keys of which a text must hit one to match.
    pub(crate) fn keys(&self) -> Vec<KeyValue> {
        if self.present {
            return vec![KeyValue::Present];
        }
        let exact = self.exact.iter().cloned().map(KeyValue::Exact);
        let prefixes = self.prefixes.iter().cloned().map(KeyValue::Prefix);
        let suffixes = self.suffixes.iter().map(|s| KeyValue::Suffix(s.iter().rev().copied().collect()));
        exact.chain(prefixes).chain(suffixes).collect()
    }

    fn has_exact(&self, text: &[u8]) -> bool {
        if let [only] = self.exact.as_slice() {
            return if self.fold { only.eq_ignore_ascii_case(text) } else { **only == *text };
        }
        let found = if self.fold {
            self.exact.binary_search_by(|e| e.iter().copied().cmp(text.iter().map(u8::to_ascii_lowercase)))
        } else {
            self.exact.binary_search_by(|e| (**e).cmp(text))
        };
        found.is_ok()
    }

    fn has_end(&self, ends: &[Box<[u8]>], text: impl Iterator<Item = u8> + Clone) -> bool {
        let fold = self.fold;
        let text = text.map(move |b| if fold { b.to_ascii_lowercase() } else { b });
        let above = ends.partition_point(|e| e.iter().copied().cmp(text.clone()) != Ordering::Greater);
        let Some(candidate) = above.checked_sub(1).and_then(|i| ends.get(i)) else { return false };
        text.take(candidate.len()).eq(candidate.iter().copied())
    }
}

/// Sorts, and drops every member that another one is a prefix of.
fn keep_shortest(members: &mut Vec<Box<[u8]>>) {
    members.sort();
    members.dedup_by(|later, earlier| later.starts_with(earlier));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> TextSet {
        TextSet::new(&values.iter().map(|v| TextPattern::parse(v)).collect::<Vec<_>>(), false)
    }

    /// Reference authorization 6.
    #[test]
    fn only_one_star_at_an_end_is_special() {
        let cases = [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc*", "abc", true),
            ("abc*", "abcd", true),
            ("abc*", "ab", false),
            ("*abc", "abc", true),
            ("*abc", "xabc", true),
            ("*abc", "abcx", false),
            ("*abc*", "xabc*", true),
            ("*abc*", "xabcx", false),
            ("a*c", "a*c", true),
            ("a*c", "abc", false),
            ("*", "x", true),
            ("**", "x*", true),
            ("**", "x", false),
            ("a.c", "abc", false),
            ("[ab]*", "[ab]c", true),
            ("P*", "PUT", true),
            ("P*", "GET", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(set(&[pattern]).matches(text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn folded_sets_ignore_case() {
        let patterns: Vec<_> = ["Shop.Example", "*.CORP", "api.*"].map(TextPattern::parse).into();
        let set = TextSet::new(&patterns, true);
        for text in ["shop.EXAMPLE", "a.corp", "A.Corp", "API.x"] {
            assert!(set.matches(text.as_bytes()), "{text}");
        }
        assert!(!set.matches(b"shop.example:80"));
    }

    proptest::proptest! {
        #[test]
        fn a_set_matches_as_its_members_do(
            patterns in proptest::collection::vec("[ab*]{1,4}", 0..8),
            text in "[ab*]{0,5}",
        ) {
            let patterns: Vec<_> = patterns.iter().map(|p| TextPattern::parse(p)).collect();
            let one_by_one = patterns.iter().any(|p| match p {
                TextPattern::Present => true,
                TextPattern::Exact(t) => *t == text,
                TextPattern::Prefix(t) => text.starts_with(t.as_str()),
                TextPattern::Suffix(t) => text.ends_with(t.as_str()),
            });
            proptest::prop_assert_eq!(TextSet::new(&patterns, false).matches(text.as_bytes()), one_by_one);
        }
    }
}

//! All stored prefixes (or suffixes) of a text, in time that does not depend on how many are stored.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Which end of the text is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Prefixes.
    Start,
    /// Suffixes.
    Finish,
}

impl End {
    /// The first or last `length` bytes; `length` is at most the text's.
    fn slice(self, text: &[u8], length: usize) -> &[u8] {
        match self {
            Self::Start => text.get(..length),
            Self::Finish => text.get(text.len() - length..),
        }
        .unwrap_or_default()
    }
}

/// A map from affixes to lists.
///
/// The longest stored affix is found by binary search over the lengths that occur, with a hash probe per
/// step (Waldvogel et al., "Scalable High Speed IP Routing Lookups", SIGCOMM 1997: a marker on the search path
/// of each longer affix says "look further", and knows the best answer so far); shorter ones hang on it as parents.
#[derive(Debug)]
pub(crate) struct AffixMap<T> {
    end: End,
    // INVARIANT: sorted, and the same during building and lookup, so that both walk the same path.
    lengths: Vec<usize>,
    /// Affixes and markers, each with the longest affix that it begins (ends) with.
    nodes: HashMap<Box<[u8]>, Option<u32>, RandomState>,
    entries: Vec<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    parent: Option<u32>,
    list: Box<[T]>,
}

impl<T> AffixMap<T> {
    /// A map of these affixes; each occurs once.
    pub(crate) fn new(end: End, mut affixes: Vec<(Box<[u8]>, Vec<T>)>) -> Self {
        affixes.sort_by_key(|(affix, _)| affix.len());
        let mut lengths: Vec<usize> = affixes.iter().map(|(affix, _)| affix.len()).collect();
        lengths.dedup();
        let mut map =
            Self { end, lengths, nodes: HashMap::default(), entries: Vec::with_capacity(affixes.len()) };
        // Shorter ones first: what a marker or parent refers to is then already there.
        for (affix, list) in affixes {
            let parent = affix.len().checked_sub(1).and_then(|below| map.longest(end.slice(&affix, below)));
            let entry = map.entries.len() as u32;
            map.entries.push(Entry { parent, list: list.into() });
            map.insert(&affix, entry);
        }
        map
    }

    fn insert(&mut self, affix: &[u8], entry: u32) {
        let (mut low, mut high) = (0, self.lengths.len());
        while low < high {
            let middle = low.midpoint(high);
            let Some(length) = self.lengths.get(middle).copied() else { return };
            if length == affix.len() {
                self.nodes.insert(affix.into(), Some(entry));
                return;
            }
            if length < affix.len() {
                let marker = self.end.slice(affix, length);
                if !self.nodes.contains_key(marker) {
                    let best = self.longest(marker);
                    self.nodes.insert(marker.into(), best);
                }
                low = middle + 1;
            } else {
                high = middle;
            }
        }
    }

    /// The longest stored affix of the text.
    fn longest(&self, text: &[u8]) -> Option<u32> {
        let (mut low, mut high, mut best) = (0, self.lengths.len(), None);
        while low < high {
            let middle = low.midpoint(high);
            let length = self.lengths.get(middle).copied().filter(|l| *l <= text.len());
            match length.and_then(|l| self.nodes.get(self.end.slice(text, l))) {
                Some(found) => {
                    best = *found;
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
        best
    }

    /// Calls `visit` with the list of each stored affix of the text.
    pub(crate) fn visit(&self, text: &[u8], visit: &mut dyn FnMut(&[T])) {
        if self.entries.is_empty() {
            return;
        }
        let mut next = self.longest(text);
        while let Some(entry) = next.and_then(|e| self.entries.get(e as usize)) {
            visit(&entry.list);
            next = entry.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_stored_affix_of_a_text_is_found(
            affixes in proptest::collection::btree_set("[ab]{0,7}", 0..20),
            text in "[ab]{0,9}",
        ) {
            for end in [End::Start, End::Finish] {
                let stored = affixes.iter().enumerate().map(|(i, a)| (a.as_bytes().into(), vec![i as u32])).collect();
                let map = AffixMap::new(end, stored);
                let mut found = Vec::new();
                map.visit(text.as_bytes(), &mut |list| found.extend_from_slice(list));
                found.sort_unstable();
                let fits = |a: &String| match end {
                    End::Start => text.starts_with(a.as_str()),
                    End::Finish => text.ends_with(a.as_str()),
                };
                let expected: Vec<u32> =
                    affixes.iter().enumerate().filter(|(_, a)| fits(a)).map(|(i, _)| i as u32).collect();
                proptest::prop_assert_eq!(found, expected);
            }
        }
    }
}

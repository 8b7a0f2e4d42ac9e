//! Things found by two attributes at once, where each alone is shared by too many.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::index::Index;
use crate::index::key::{KeyId, Keys};
use crate::test::{Connection, Request};

/// How many keys of pairs a request can hit before finding them allocates.
const HITS: usize = 24;

/// Lists by two keys, both of which the facts must hit.
#[derive(Debug)]
pub(crate) struct Pairs<T> {
    keys: Index<KeyId>,
    // INVARIANT: the smaller key comes first.
    lists: HashMap<(KeyId, KeyId), Box<[T]>, RandomState>,
}

impl<T> Pairs<T> {
    /// An index of these pairs, the smaller key of each first.
    pub(crate) fn new(keys: &Keys, lists: HashMap<(KeyId, KeyId), Vec<T>, RandomState>) -> Self {
        let mut used: Vec<KeyId> = lists.keys().flat_map(|(a, b)| [*a, *b]).collect();
        used.sort_unstable();
        used.dedup();
        Self {
            keys: Index::new(used.into_iter().filter_map(|id| Some((keys.get(id)?, vec![id])))),
            lists: lists.into_iter().map(|(pair, list)| (pair, list.into())).collect(),
        }
    }

    /// Calls `visit` with the list of each pair that the facts hit.
    pub(crate) fn visit(
        &self,
        connection: &Connection,
        request: Option<&Request<'_>>,
        visit: &mut dyn FnMut(&[T]),
    ) {
        if self.keys.is_empty() {
            return;
        }
        let mut few = [0; HITS];
        let mut count = 0;
        let mut many = Vec::new();
        self.keys.visit(connection, request, &mut |keys| {
            for key in keys {
                match few.get_mut(count) {
                    Some(place) => *place = *key,
                    None => many.push(*key),
                }
                count += 1;
            }
        });
        // A request may hit one key over and over: a header's lines, the elements of a claim.
        many.sort_unstable();
        many.dedup();
        let few = few.get(..count.min(HITS)).unwrap_or_default();
        let hits = || few.iter().chain(&many);
        for (index, first) in hits().enumerate() {
            for second in hits().skip(index + 1) {
                let pair = (*first.min(second), *first.max(second));
                if let Some(list) = self.lists.get(&pair) {
                    visit(list);
                }
            }
        }
    }
}

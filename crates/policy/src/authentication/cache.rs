//! Tokens whose signature has been checked already.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::rule::Good;

/// Entries and bytes of each half.
const MAX_ENTRIES: usize = 512;
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// Longer tokens are verified each time.
const MAX_TOKEN: usize = 8 * 1024;

/// What one worker remembers of tokens that were good: at most 1,024, and some 4 MiB.
///
/// A token is known by its SHA-256, so that no token lies in memory longer than its request, and no caller can find
/// another that is taken for it. What is remembered belongs to one rule as it was compiled: a changed key set, like any
/// other change, starts from nothing. That a token is still good now is asked each time.
///
/// Two halves: what is used goes into the young one; when that is full, it becomes the old one, whose entries are
/// forgotten unless they have been used since. So the oldest go first, without an order to maintain.
#[derive(Default)]
pub struct TokenCache {
    young: HashMap<Key, Arc<Good>, foldhash::fast::RandomState>,
    old: HashMap<Key, Arc<Good>, foldhash::fast::RandomState>,
    young_bytes: usize,
    hits: u64,
}

/// A token under a rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    rule: u64,
    hash: [u8; digest::SHA256_OUTPUT_LEN],
}

impl Key {
    /// `None` if the token is too long to be kept.
    pub(super) fn new(rule: u64, token: &[u8]) -> Option<Self> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let hash = digest::digest(&digest::SHA256, token).as_ref().try_into().ok()?;
        Some(Self { rule, hash })
    }
}

impl TokenCache {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many tokens are remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often one was found.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<Good>> {
        let found = match self.young.get(key) {
            Some(found) => found.clone(),
            None => {
                let found = self.old.remove(key)?;
                self.put(*key, found.clone());
                found
            }
        };
        self.hits += 1;
        Some(found)
    }

    pub(super) fn put(&mut self, key: Key, good: Arc<Good>) {
        let size = good.size();
        if self.young.len() >= MAX_ENTRIES || self.young_bytes.saturating_add(size) > MAX_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += size;
        if let Some(before) = self.young.insert(key, good) {
            self.young_bytes -= before.size();
        }
    }

    /// Forgets one that is no good any more.
    pub(super) fn forget(&mut self, key: &Key) {
        self.old.remove(key);
        if let Some(before) = self.young.remove(key) {
            self.young_bytes -= before.size();
        }
    }
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache")
            .field("len", &self.len())
            .field("hits", &self.hits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    fn token(number: usize) -> Key {
        Key::new(0, number.to_string().as_bytes()).expect("it is short")
    }

    #[test]
    fn bytes_are_bounded_whatever_tokens_say() {
        for claim in
            [Value::from("x".repeat(50_000)), Value::from(vec![0; 600]), Value::from(vec![vec![0; 1]; 300])]
        {
            let good = Arc::new(Good::saying(Map::from_iter([("claim".to_owned(), claim)])));
            assert!(good.size() > 40_000, "{}", good.size());
            let mut cache = TokenCache::new();
            for number in 0..1000 {
                cache.put(token(number), good.clone());
                // Putting one twice counts once.
                cache.put(token(number), good.clone());
                assert!(cache.len() * good.size() <= 2 * MAX_BYTES);
            }
            assert!(cache.len() * good.size() > MAX_BYTES / 2);
            assert!(cache.get(&token(999)).is_some() && cache.get(&token(0)).is_none());
        }
    }

    #[test]
    fn what_is_used_stays() {
        let good = Arc::new(Good::saying(Map::new()));
        let mut cache = TokenCache::new();
        cache.put(token(0), good.clone());
        for number in 1..10_000 {
            cache.put(token(number), good.clone());
            if number % 100 == 0 {
                assert!(cache.get(&token(0)).is_some(), "{number}");
            }
            assert!(cache.len() <= 2 * MAX_ENTRIES);
        }
        cache.forget(&token(0));
        assert!(cache.get(&token(0)).is_none());
    }

    #[test]
    fn long_tokens_are_not_kept() {
        assert!(Key::new(0, &[b'a'; MAX_TOKEN]).is_some());
        assert!(Key::new(0, &[b'a'; MAX_TOKEN + 1]).is_none());
    }
}

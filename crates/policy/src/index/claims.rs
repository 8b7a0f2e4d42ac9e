//! Text patterns over the claims of a token, many of them at once.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use serde_json::{Map, Value};

use crate::index::{TextIndex, Values};
use crate::token::{ClaimPath, texts};

/// Indices by claim. Rules and token are walked together, along whichever has fewer names: thousands of rules, each
/// about a claim of its own, cost what the token's few claims cost.
#[derive(Debug)]
pub(crate) struct ClaimIndex<T> {
    children: HashMap<Box<str>, Node<T>, RandomState>,
}

#[derive(Debug)]
struct Node<T> {
    texts: Option<TextIndex<T>>,
    /// Claims inside this one.
    inner: Option<Box<ClaimIndex<T>>>,
}

impl<T> Default for ClaimIndex<T> {
    fn default() -> Self {
        Self { children: HashMap::default() }
    }
}

impl<T> ClaimIndex<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Registers the values of a claim; each claim once.
    pub(super) fn insert(&mut self, path: &ClaimPath, values: Values<'_, T>) {
        self.insert_at(path.names(), TextIndex::new(values));
    }

    fn insert_at(&mut self, names: &[Box<str>], index: TextIndex<T>) {
        let Some((first, rest)) = names.split_first() else { return };
        let node = self.children.entry(first.clone()).or_insert_with(|| Node { texts: None, inner: None });
        match rest {
            [] => node.texts = Some(index),
            rest => node.inner.get_or_insert_default().insert_at(rest, index),
        }
    }

    /// Calls `visit` with each list that a claim hits.
    pub(crate) fn visit(&self, claims: &Map<String, Value>, visit: &mut dyn FnMut(&[T])) {
        if self.children.len() <= claims.len() {
            for (name, node) in &self.children {
                if let Some(value) = claims.get(&**name) {
                    node.visit(value, visit);
                }
            }
        } else {
            for (name, value) in claims {
                if let Some(node) = self.children.get(name.as_str()) {
                    node.visit(value, visit);
                }
            }
        }
    }
}

impl<T> Node<T> {
    fn visit(&self, value: &Value, visit: &mut dyn FnMut(&[T])) {
        if let Some(index) = &self.texts {
            texts(value, &mut |text| index.visit(text, visit));
        }
        if let (Some(inner), Value::Object(object)) = (&self.inner, value) {
            inner.visit(object, visit);
        }
    }
}

//! The tree of a document, with the place of every key and value.

use std::sync::Arc;

use serde_json::Value;

use crate::path::FieldPath;

/// Line and column, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) content: Content,
    /// Where a block of literal text (`|`) begins: its first line, and the last column before its text.
    pub(super) literal: Option<Mark>,
    /// Levels of values inside, aliases followed. INVARIANT: bounded, since dropping a tree recurses.
    pub(super) depth: usize,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar(Value),
    Sequence(Vec<Arc<Node>>),
    /// Members in the order of the text; keys may repeat, which is reported later.
    Mapping(Vec<Member>),
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) key_mark: Mark,
    pub(super) value: Arc<Node>,
}

/// Where a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the field's name; of the element itself in a list.
    pub(super) key: Mark,
    /// Of its value.
    pub(super) value: Mark,
    /// First line, and last column before the text, of a value that is a block of literal text.
    pub(super) literal: Option<Mark>,
}

impl Node {
    /// The place of the field at `path`.
    pub(super) fn find(&self, path: &str) -> Option<Place> {
        self.find_from(path, self.place(self.mark), true)
    }

    fn place(&self, key: Mark) -> Place {
        Place { key, value: self.mark, literal: self.literal }
    }

    fn find_from(&self, path: &str, here: Place, is_root: bool) -> Option<Place> {
        if path.is_empty() {
            return Some(here);
        }
        let rest_after = |step: &str| {
            // `.name` or `[…]`; the first name of a path has no dot.
            let rest = if is_root { path.strip_prefix(step) } else { None };
            rest.or_else(|| path.strip_prefix('.').and_then(|path| path.strip_prefix(step)))
                .or_else(|| step.starts_with('[').then(|| path.strip_prefix(step)).flatten())
                .filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        match &self.content {
            Content::Scalar(_) => None,
            Content::Sequence(elements) => elements.iter().enumerate().find_map(|(index, element)| {
                let rest = rest_after(&format!("[{index}]"))?;
                element.find_from(rest, element.place(element.mark), false)
            }),
            Content::Mapping(members) => members.iter().find_map(|member| {
                let step = FieldPath::root().key(&member.key);
                let rest = rest_after(step.as_str())?;
                member.value.find_from(rest, member.value.place(member.key_mark), false)
            }),
        }
    }
}

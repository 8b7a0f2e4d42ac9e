//! YAML with positions, read as kubectl reads it.
//!
//! A text holds any number of documents; every mistake in any of them is reported with line and column.
//! The parser can be replaced without a change outside this module.

mod compose;
mod node;
mod scalar;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Severity};
use crate::field_error::{FieldError, FieldErrorKind};
use crate::path::{self, FieldPath};
use crate::{Object, check, warnings};
use compose::{Composer, Problem};
use node::{Content, Mark, Node, Place};

/// What aliases may add to one document, in bytes of text and 32 for each value: stops texts that grow exponentially.
const MAX_EXPANSION: usize = 4 * 1024 * 1024;

/// One object of a text.
#[derive(Debug, Clone)]
pub struct Document {
    /// The object as JSON.
    pub value: Value,
    /// The file as the caller named it.
    pub file: String,
    /// The line on which it begins, from 1.
    pub line: u32,
    root: Arc<Node>,
}

/// Reads the documents of `text`; `file` only names it. Empty documents are left out, and the items of a `List` count
/// as documents of their own.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Vec<Diagnostic>> {
    let mut parsed = Parsed::default();
    parsed.read_text(file, text);
    if parsed.diagnostics.is_empty() { Ok(parsed.documents) } else { Err(parsed.diagnostics) }
}

/// Reads a text that is one mapping and no object of Kubernetes: `None` if it is empty.
pub(crate) fn plain(file: &str, text: &str) -> Result<Option<Document>, Vec<Diagnostic>> {
    let mut composer = Composer::new(text);
    let mut found = None;
    while let Some(composed) = composer.next_document() {
        let root = composed.map_err(|problem| vec![diagnostic(file, "ML0101", problem)])?;
        if matches!(root.content, Content::Scalar(Value::Null)) {
            continue;
        }
        let problem =
            |message, help| vec![diagnostic(file, "ML0109", Problem::new(root.mark, message, help))];
        if !matches!(root.content, Content::Mapping(_)) {
            return Err(problem("the text is no mapping of fields", "write <field>: <value>"));
        }
        if found.is_some() {
            return Err(problem("the text has a second document", "remove it, and the '---' before it"));
        }
        let mut reader = Reader { expansion: 0, seen: BTreeSet::new(), duplicates: Vec::new() };
        let value = reader
            .value(&root, &FieldPath::root())
            .map_err(|problem| vec![diagnostic(file, "ML0110", problem)])?;
        if !reader.duplicates.is_empty() {
            return Err(reader.duplicates.into_iter().map(|twice| twice.diagnostic(file, None)).collect());
        }
        found = Some(Document { value, file: file.to_owned(), line: root.mark.line, root });
    }
    Ok(found)
}

/// What could be read, and what is wrong with the texts; a document may have its share in both.
#[derive(Default)]
struct Parsed {
    documents: Vec<Document>,
    diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    fn read_text(&mut self, file: &str, text: &str) {
        let mut composer = Composer::new(text);
        while let Some(composed) = composer.next_document() {
            match composed {
                Ok(root) if matches!(root.content, Content::Scalar(Value::Null)) => {}
                Ok(root) => self.read_document(file, root),
                Err(problem) => self.diagnostics.push(diagnostic(file, "ML0101", problem)),
            }
        }
    }

    fn read_document(&mut self, file: &str, root: Arc<Node>) {
        let mut reader = Reader { expansion: 0, seen: BTreeSet::new(), duplicates: Vec::new() };
        let value = match reader.value(&root, &FieldPath::root()) {
            Ok(value) => value,
            Err(problem) => {
                self.diagnostics.push(diagnostic(file, "ML0110", problem));
                return;
            }
        };
        let document = Document { value, file: file.to_owned(), line: root.mark.line, root };
        if !document.value.is_object() {
            self.diagnostics.push(not_an_object(&document));
            return;
        }
        if let Some(items) = list_items(&document) {
            for item in items {
                self.read_document(file, item);
            }
            return;
        }
        let object = document.object_name();
        let duplicates = reader.duplicates.into_iter();
        self.diagnostics.extend(duplicates.map(|duplicate| duplicate.diagnostic(file, object.clone())));
        self.documents.push(document);
    }
}

/// The items of a `List` (also of a `PodList` and the like), which stand for themselves.
fn list_items(document: &Document) -> Option<Vec<Arc<Node>>> {
    if !document.value.get("kind")?.as_str()?.ends_with("List") {
        return None;
    }
    let Content::Mapping(members) = &document.root.content else { return None };
    match &members.iter().find(|member| member.key == "items")?.value.content {
        Content::Sequence(items) => Some(items.clone()),
        _ => None,
    }
}

fn diagnostic(file: &str, code: &'static str, problem: Problem) -> Diagnostic {
    Diagnostic {
        code,
        severity: Severity::Error,
        file: file.to_owned(),
        line: problem.mark.line,
        column: problem.mark.column,
        object: None,
        field: None,
        message: problem.message,
        help: problem.help.map(str::to_owned),
    }
}

fn not_an_object(document: &Document) -> Diagnostic {
    let found = match &document.value {
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        _ => "a single value",
    };
    let problem = Problem::new(
        document.root.mark,
        format!("the document is {found}, not an object"),
        "begin with apiVersion:, kind: and metadata:",
    );
    diagnostic(&document.file, "ML0109", problem)
}

/// Trees to values, within bounds.
struct Reader {
    expansion: usize,
    /// Nodes met before: to meet one again is to follow an alias.
    seen: BTreeSet<*const Node>,
    duplicates: Vec<Duplicate>,
}

/// A key given twice in one mapping.
struct Duplicate {
    path: FieldPath,
    mark: Mark,
    first: Mark,
}

impl Duplicate {
    fn diagnostic(self, file: &str, object: Option<String>) -> Diagnostic {
        Diagnostic {
            code: FieldErrorKind::Duplicate.code(),
            severity: Severity::Error,
            file: file.to_owned(),
            line: self.mark.line,
            column: self.mark.column,
            object,
            field: Some(self.path.into()),
            message: format!("is given twice, first in line {}", self.first.line),
            help: Some("remove one of the two; kubectl would silently take the last".to_owned()),
        }
    }
}

impl Reader {
    fn value(&mut self, node: &Arc<Node>, path: &FieldPath) -> Result<Value, Problem> {
        if !self.seen.insert(Arc::as_ptr(node)) {
            self.expansion += match &node.content {
                Content::Scalar(Value::String(text)) => 32 + text.len(),
                _ => 32,
            };
            if self.expansion > MAX_EXPANSION {
                return Err(Problem::new(
                    node.mark,
                    "aliases make the document too large",
                    "write values out",
                ));
            }
        }
        Ok(match &node.content {
            Content::Scalar(value) => value.clone(),
            Content::Sequence(elements) => Value::Array(
                elements
                    .iter()
                    .enumerate()
                    .map(|(index, element)| self.value(element, &path.index(index)))
                    .collect::<Result<_, _>>()?,
            ),
            Content::Mapping(members) => {
                let mut object = Map::new();
                for member in members {
                    let path = path.key(&member.key);
                    let value = self.value(&member.value, &path)?;
                    if object.contains_key(&member.key) {
                        let mark = member.key_mark;
                        let first = members.iter().find(|first| first.key == member.key);
                        let first = first.map_or(mark, |first| first.key_mark);
                        self.duplicates.push(Duplicate { path, mark, first });
                    } else {
                        object.insert(member.key.clone(), value);
                    }
                }
                Value::Object(object)
            }
        })
    }
}

impl Document {
    /// Line and column, from 1, of the value at a field path such as `spec.rules[0].to[0].operation.ports[1]`, or of
    /// its name if it begins on a later line; of the nearest value around it if there is none.
    pub fn position(&self, field_path: &str) -> Option<(u32, u32)> {
        // A list or mapping that begins below its name is pointed at by its name.
        let start = |place: Place| if place.value.line > place.key.line { place.key } else { place.value };
        self.root.find(field_path).map(start).map(|mark| (mark.line, mark.column)).or_else(|| {
            path::ancestors(field_path)
                .find_map(|path| self.root.find(path))
                .map(|place| (place.key.line, place.key.column))
        })
    }

    /// Line and column of the name of the field at `field_path`; otherwise as [`Document::position`].
    pub fn key_position(&self, field_path: &str) -> Option<(u32, u32)> {
        match self.root.find(field_path) {
            Some(place) => Some((place.key.line, place.key.column)),
            None => self.position(field_path),
        }
    }

    /// `PeerAuthentication production/default`, as far as that can be read.
    pub fn object_name(&self) -> Option<String> {
        let kind = self.value.get("kind")?.as_str()?;
        let metadata = |field: &str| self.value.get("metadata")?.get(field)?.as_str();
        Some(match (metadata("namespace"), metadata("name").or_else(|| metadata("generateName"))) {
            (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
            (None, Some(name)) => format!("{kind} {name}"),
            (_, None) => kind.to_owned(),
        })
    }

    /// Findings by field path as findings by line and column, in the order of the text.
    pub fn diagnostics(&self, errors: Vec<FieldError>, severity: Severity) -> Vec<Diagnostic> {
        let mut diagnostics: Vec<_> = errors.iter().map(|error| self.diagnostic(error, severity)).collect();
        diagnostics.sort_by_key(|d| (d.line, d.column));
        diagnostics
    }

    /// Line and column of a finding.
    pub fn position_of(&self, error: &FieldError) -> (u32, u32) {
        let of_field = || match error.kind {
            FieldErrorKind::Unknown | FieldErrorKind::Duplicate => self.key_position(&error.path),
            _ => self.position(&error.path),
        };
        self.position_within(error).or_else(of_field).unwrap_or((self.line, 1))
    }

    /// The place of a finding within a block of literal text, such as the YAML that a ConfigMap holds.
    fn position_within(&self, error: &FieldError) -> Option<(u32, u32)> {
        let (line, column) = error.within?;
        let origin = self.root.find(&error.path)?.literal?;
        Some((origin.line.checked_add(line)?.checked_sub(1)?, origin.column.checked_add(column)?))
    }

    fn diagnostic(&self, error: &FieldError, severity: Severity) -> Diagnostic {
        let (line, column) = self.position_of(error);
        let (problem, help) = error.parts();
        Diagnostic {
            code: error.kind.code(),
            severity,
            file: self.file.clone(),
            line,
            column,
            object: self.object_name(),
            field: Some(error.path.clone()).filter(|path| !path.is_empty()),
            message: problem.to_owned(),
            help: help.map(str::to_owned),
        }
    }

    /// [`check()`] with positions.
    pub fn check(&self) -> Result<Object, Vec<Diagnostic>> {
        check(&self.value).map_err(|errors| self.diagnostics(errors, Severity::Error))
    }

    /// [`warnings()`] with positions; none for an object that is not even right.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        match check(&self.value) {
            Ok(object) => self.diagnostics(warnings(&object), Severity::Warning),
            Err(_) => Vec::new(),
        }
    }
}

/// Reads and checks a set of texts as one: all their objects, or everything that is wrong in any of them.
pub fn load(sources: &[(String, String)]) -> Result<Vec<Document>, Vec<Diagnostic>> {
    let mut parsed = Parsed::default();
    for (file, text) in sources {
        parsed.read_text(file, text);
    }
    let Parsed { documents, mut diagnostics } = parsed;
    diagnostics.extend(documents.iter().filter_map(|document| document.check().err()).flatten());
    if diagnostics.is_empty() {
        return Ok(documents);
    }
    let order = |file: &str| sources.iter().position(|(name, _)| name == file);
    diagnostics.sort_by_cached_key(|d| (order(&d.file), d.line, d.column));
    Err(diagnostics)
}

#[cfg(test)]
mod tests;

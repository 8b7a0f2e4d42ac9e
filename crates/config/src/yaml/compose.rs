//! Events of the YAML parser to trees: aliases, merge keys and the meaning of scalars.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::node::{Content, Mark, Member, Node};
use super::scalar;

/// Values nested deeper than any real object are refused; what walks them recurses.
const MAX_DEPTH: usize = 128;
/// So many members may come from merge keys: stops texts that grow exponentially.
const MAX_MERGED: usize = 10_000;

/// Why a document is no tree, and where.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) mark: Mark,
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(mark: Mark, message: impl Into<String>, help: &'static str) -> Self {
        Self { mark, message: message.into(), help: Some(help) }
    }
}

impl Problem {
    fn of_scan(error: &ScanError, text: &str) -> Self {
        let message = error.info();
        let at = mark(error.marker());
        if message.contains("found a tab") {
            // The parser names the start of the scalar that the tab would continue.
            return Self::new(first_tab(text, at), "a tab cannot indent", "indent with blanks");
        }
        let help = if message.contains("mapping values are not allowed") {
            "put text that contains ': ' in quotes, and check the indentation"
        } else {
            "check brackets, quotes and indentation here and just before"
        };
        Self::new(at, message, help)
    }
}

fn first_tab(text: &str, from: Mark) -> Mark {
    let lines = (1u32..).zip(text.lines()).skip_while(|(line, _)| *line < from.line);
    let mut tabs = lines.filter_map(|(line, text)| {
        let before = text.chars().position(|c| c == '\t')?;
        Some(Mark { line, column: u32::try_from(before).ok()?.checked_add(1)? })
    });
    tabs.find(|tab| *tab >= from).unwrap_or(from)
}

pub(super) fn mark(marker: &Marker) -> Mark {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Mark { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

/// Composes the documents of one text.
pub(super) struct Composer<'t> {
    text: &'t str,
    parser: Parser<'t, StrInput<'t>>,
    /// Anchored nodes of the document; `None` while one is still being read.
    anchors: HashMap<usize, Option<Arc<Node>>>,
    /// Members merged so far in the document.
    merged: usize,
    /// Collections that are open.
    level: usize,
}

impl<'t> Composer<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let options = serde_saphyr::granit_parser::options! { emit_comments: false };
        Self {
            text,
            parser: Parser::new_from_str_with_options(text, options),
            anchors: HashMap::new(),
            merged: 0,
            level: 0,
        }
    }

    /// The next document: `None` at the end, and after a mistake the next document again.
    pub(super) fn next_document(&mut self) -> Option<Result<Arc<Node>, Problem>> {
        self.anchors.clear();
        self.merged = 0;
        self.level = 0;
        loop {
            match self.parser.next_event()? {
                Ok((Event::StreamEnd, _)) => return None,
                Ok((Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _)) => {}
                Ok((event, span)) => match self.node(event, span) {
                    Ok(node) => return Some(Ok(node)),
                    Err(problem) => return self.skip(problem),
                },
                Err(error) => return self.skip(Problem::of_scan(&error, self.text)),
            }
        }
    }

    fn skip(&mut self, problem: Problem) -> Option<Result<Arc<Node>, Problem>> {
        // Where no further document can be found, the parser is at its end and says so next time.
        let _ = self.parser.proceed_next_document();
        Some(Err(problem))
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(Problem::of_scan(&error, self.text)),
            None => {
                Err(Problem { mark: Mark::default(), message: "the text ends early".to_owned(), help: None })
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span) -> Result<Arc<Node>, Problem> {
        let mark = mark(&span.start);
        let anchor = event.anchor_id().filter(|id| *id != 0);
        if let Some(id) = anchor {
            self.anchors.insert(id, None);
        }
        let mut literal = None;
        let content = match event {
            Event::Alias(id) => {
                return match self.anchors.get(&id) {
                    Some(Some(node)) => Ok(Arc::clone(node)),
                    _ => Err(Problem::new(
                        mark,
                        "an alias inside the value it stands for",
                        "write the value out",
                    )),
                };
            }
            Event::Scalar(text, style, _, tag) => {
                let plain = style == ScalarStyle::Plain;
                if style == ScalarStyle::Literal {
                    literal = origin(mark, &text);
                }
                Content::Scalar(scalar_value(&text, plain, tag.as_deref(), mark)?)
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                self.level += 1;
                if self.level > MAX_DEPTH {
                    return Err(too_deep(mark));
                }
                let is_sequence = matches!(event, Event::SequenceStart(..));
                let content = if is_sequence { self.sequence()? } else { self.mapping()? };
                self.level -= 1;
                content
            }
            other => {
                return Err(Problem {
                    mark,
                    message: format!("unexpected {other:?} in a document"),
                    help: None,
                });
            }
        };
        let inside = match &content {
            Content::Scalar(_) => None,
            Content::Sequence(elements) => elements.iter().map(|element| element.depth).max(),
            Content::Mapping(members) => members.iter().map(|member| member.value.depth).max(),
        };
        let depth = inside.unwrap_or(0) + 1;
        if depth > MAX_DEPTH {
            return Err(too_deep(mark));
        }
        let node = Arc::new(Node { mark, literal, content, depth });
        if let Some(id) = anchor {
            self.anchors.insert(id, Some(Arc::clone(&node)));
        }
        Ok(node)
    }

    fn sequence(&mut self) -> Result<Content, Problem> {
        let mut elements = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::Sequence(elements)),
                (event, span) => elements.push(self.node(event, span)?),
            }
        }
    }

    fn mapping(&mut self) -> Result<Content, Problem> {
        let mut members = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key_mark = mark(&span.start);
            let key = match &event {
                Event::MappingEnd => break,
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<" => None,
                Event::Scalar(text, style, _, tag) => {
                    Some(key_text(text, *style == ScalarStyle::Plain && tag.is_none(), key_mark)?)
                }
                _ => None,
            };
            let is_merge = key.is_none() && matches!(event, Event::Scalar(..));
            // A key may bear an anchor, or be an alias.
            let key_node = self.node(event, span)?;
            let key = match (key, &key_node.content) {
                (Some(key), _) => key,
                (None, Content::Scalar(Value::String(text))) => text.clone(),
                _ => {
                    let help =
                        "put the key in quotes; {{ … }} is a template, to be rendered first (helm template)";
                    return Err(Problem::new(key_mark, "a key must be text", help));
                }
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            if is_merge {
                self.merge(&value, key_mark, &mut merged)?;
            } else {
                members.push(Member { key, key_mark, value });
            }
        }
        // What is written out wins over what is merged, and the first merged over later ones.
        let mut known: HashSet<String> = members.iter().map(|member| member.key.clone()).collect();
        members.extend(merged.into_iter().filter(|member| known.insert(member.key.clone())));
        Ok(Content::Mapping(members))
    }

    /// The members that `<<` brings in: those of a mapping, or of each mapping of a list.
    fn merge(&mut self, value: &Node, key_mark: Mark, into: &mut Vec<Member>) -> Result<(), Problem> {
        match &value.content {
            Content::Mapping(members) => {
                self.merged += members.len();
                if self.merged > MAX_MERGED {
                    return Err(Problem::new(
                        key_mark,
                        "merge keys make the document too large",
                        "write values out",
                    ));
                }
                into.extend(members.iter().map(|member| Member {
                    key: member.key.clone(),
                    key_mark: member.key_mark,
                    value: Arc::clone(&member.value),
                }));
                Ok(())
            }
            Content::Sequence(elements)
                if elements.iter().all(|e| matches!(e.content, Content::Mapping(_))) =>
            {
                elements.iter().try_for_each(|element| self.merge(element, key_mark, into))
            }
            _ => Err(Problem::new(
                key_mark,
                "'<<' merges mappings only",
                "put the key in quotes if it is meant literally",
            )),
        }
    }
}

/// Where a block of literal text begins whose first line with content is at `mark`: its first line, and the column
/// before its text.
fn origin(mark: Mark, value: &str) -> Option<Mark> {
    let (above, first) = (0u32..).zip(value.lines()).find(|(_, line)| !line.trim().is_empty())?;
    let deeper = u32::try_from(first.len() - first.trim_start_matches(' ').len()).ok()?;
    Some(Mark {
        line: mark.line.checked_sub(above)?,
        column: mark.column.checked_sub(1)?.checked_sub(deeper)?,
    })
}

fn too_deep(mark: Mark) -> Problem {
    Problem::new(mark, format!("values are nested deeper than {MAX_DEPTH} levels"), "no object is that deep")
}

fn scalar_value(text: &str, plain: bool, tag: Option<&Tag>, mark: Mark) -> Result<Value, Problem> {
    let resolved = || {
        scalar::resolve(text)
            .map_err(|why| Problem::new(mark, format!("'{text}': {why}"), "put it in quotes"))
    };
    let Some(tag) = tag else {
        return if plain { resolved() } else { Ok(Value::String(text.to_owned())) };
    };
    let fits: fn(&Value) -> bool = match tag.core_suffix() {
        Some("int") => |value| value.is_i64() || value.is_u64(),
        Some("float") => Value::is_number,
        Some("bool") => Value::is_boolean,
        Some("null") => Value::is_null,
        Some("binary") => {
            return Err(Problem::new(mark, "the tag !!binary is not supported", "write the text itself"));
        }
        _ => return Ok(Value::String(text.to_owned())),
    };
    let value = resolved()?;
    if fits(&value) {
        Ok(value)
    } else {
        Err(Problem::new(mark, format!("'{text}' is not what its tag says"), "remove the tag"))
    }
}

/// A key as JSON has it: always text. Numbers are written as YAML understood them.
fn key_text(text: &str, plain: bool, mark: Mark) -> Result<String, Problem> {
    if !plain {
        return Ok(text.to_owned());
    }
    if scalar::is_disguised_boolean(text) {
        return Err(Problem::new(
            mark,
            format!("the key {text} reads as a boolean in YAML"),
            "put the key in quotes",
        ));
    }
    match scalar::resolve(text) {
        Ok(Value::String(text)) => Ok(text),
        Ok(Value::Null) => Err(Problem::new(mark, "a key must not be null", "put the key in quotes")),
        Ok(value) => Ok(value.to_string()),
        Err(why) => Err(Problem::new(mark, why, "put the key in quotes")),
    }
}

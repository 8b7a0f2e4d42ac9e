//! Findings as istioctl prints them.

use anyhow::Result;
use maille_analysis::{Level, Message};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::output::{out, write_out};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Log,
    Json,
    Yaml,
}

impl Form {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "log" => Some(Self::Log),
            "json" => Some(Self::Json),
            "yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

pub(super) fn print(messages: &[&Message], form: Form, colour: Option<bool>) -> Result<()> {
    match form {
        Form::Log => {
            let colour = colour.unwrap_or_else(default_colour);
            messages.iter().for_each(|message| out!("{}", line(message, colour)));
        }
        Form::Json => {
            let mut bytes = Vec::new();
            let indented = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, indented);
            list(messages).serialize(&mut serializer)?;
            out!("{}", String::from_utf8(bytes)?);
        }
        Form::Yaml => write_out(&serde_saphyr::to_string(&list(messages))?),
    }
    Ok(())
}

/// Colour for people only, and not for those who do not want it.
fn default_colour() -> bool {
    crate::output::colour() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn line(message: &Message, colour: bool) -> String {
    let text = printable(&message.to_string());
    let level = message.level.as_str();
    match (message.level, text.strip_prefix(level)) {
        (Level::Error, Some(rest)) if colour => format!("\x1b[1;31m{level}\x1b[0m{rest}"),
        (Level::Warning, Some(rest)) if colour => format!("\x1b[33m{level}\x1b[0m{rest}"),
        _ => text,
    }
}

/// Objects may hold control characters, which do not belong on a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn list(messages: &[&Message]) -> Value {
    messages.iter().map(|message| element(message)).collect()
}

fn element(message: &Message) -> Value {
    let mut members = Map::new();
    members.insert("code".to_owned(), json!(message.code.code));
    members.insert("level".to_owned(), json!(message.level.as_str()));
    members.insert("origin".to_owned(), json!(message.origin.to_string()));
    if let Some(reference) = &message.reference {
        members.insert("reference".to_owned(), json!(reference));
    }
    members.insert("message".to_owned(), json!(message.text));
    if let Some(url) = message.code.documentation_url() {
        members.insert("documentationUrl".to_owned(), json!(url));
    }
    Value::Object(members)
}

use maille_config::FieldError;
use maille_config::yaml::Document;

use crate::code::{Code, Level};
use crate::message::Message;
use crate::resource::Resource;

/// Where analyzers put what they find.
#[derive(Debug, Default)]
pub(crate) struct Report {
    messages: Vec<Message>,
}

impl Report {
    /// A finding about the field at `path` of an object.
    pub(crate) fn add(
        &mut self,
        code: &'static Code,
        resource: &Resource,
        path: &str,
        text: impl Into<String>,
    ) {
        self.add_as(code.level, code, resource, path, text);
    }

    /// The same with another level than the code's.
    pub(crate) fn add_as(
        &mut self,
        level: Level,
        code: &'static Code,
        resource: &Resource,
        path: &str,
        text: impl Into<String>,
    ) {
        let reference = resource.reference(path);
        self.messages.push(Message { code, level, origin: resource.origin(), reference, text: text.into() });
    }

    /// What is wrong with a field.
    pub(crate) fn add_error(
        &mut self,
        level: Level,
        code: &'static Code,
        resource: &Resource,
        error: &FieldError,
    ) {
        let place = |document: &Document| format!("{}:{}", document.file, document.position_of(error).0);
        let reference = resource.document().map(place);
        let text = error.to_string();
        self.messages.push(Message { code, level, origin: resource.origin(), reference, text });
    }

    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.messages
    }
}

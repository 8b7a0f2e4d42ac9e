use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::field_error::{FieldError, FieldErrorKind};
use crate::path::FieldPath;

/// A JSON value with its path: validation looks through it, so that one wrong type does not hide the mistakes beside it.
///
/// A member of another type than asked for counts as absent here; decoding has reported it.
#[derive(Debug, Clone)]
pub(crate) struct View<'v> {
    value: &'v Value,
    path: FieldPath,
}

static NULL: Value = Value::Null;

impl<'v> View<'v> {
    pub(crate) fn new(value: &'v Value) -> Self {
        Self { value, path: FieldPath::root() }
    }

    /// The member `name` (also in Protobuf's snake case); `null` if absent.
    pub(crate) fn get(&self, name: &str) -> View<'v> {
        let members = self.value.as_object();
        let find = |name: &str| members.and_then(|m| m.get(name)).filter(|v| !v.is_null());
        let (value, name) = match find(name) {
            Some(value) => (value, name.to_owned()),
            None => match find(&snake_case(name)) {
                Some(value) => (value, snake_case(name)),
                None => (&NULL, name.to_owned()),
            },
        };
        View { value, path: self.path.key(&name) }
    }

    /// The member with exactly this key: for keys that people choose.
    pub(crate) fn get_exactly(&self, key: &str) -> View<'v> {
        let value = self.value.as_object().and_then(|members| members.get(key)).unwrap_or(&NULL);
        View { value, path: self.path.key(key) }
    }

    /// The value itself; `null` if absent.
    pub(crate) fn value(&self) -> &'v Value {
        self.value
    }

    /// Absent, or `null`.
    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    /// Absent, or without elements or members.
    pub(crate) fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::Array(elements) => elements.is_empty(),
            Value::Object(members) => members.values().all(Value::is_null),
            Value::String(text) => text.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        }
    }

    pub(crate) fn text(&self) -> Option<&'v str> {
        self.value.as_str()
    }

    pub(crate) fn number(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub(crate) fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    pub(crate) fn is_object(&self) -> bool {
        self.value.is_object()
    }

    pub(crate) fn elements(&self) -> impl Iterator<Item = View<'v>> + use<'v> {
        let path = self.path.clone();
        let elements = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        elements.iter().enumerate().map(move |(i, value)| View { value, path: path.index(i) })
    }

    /// The members that are not `null`.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&'v str, View<'v>)> + use<'v> {
        let path = self.path.clone();
        let members = self.value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        members.map(move |(key, value)| (key.as_str(), View { value, path: path.key(key) }))
    }

    pub(crate) fn error(&self, kind: FieldErrorKind, message: impl Into<String>) -> FieldError {
        FieldError::new(self.path.clone(), kind, message)
    }

    pub(crate) fn invalid(&self, message: impl Into<String>) -> FieldError {
        self.error(FieldErrorKind::Invalid, message)
    }

    pub(crate) fn required(&self, message: impl Into<String>) -> FieldError {
        self.error(FieldErrorKind::Required, message)
    }

    /// A finding in the text that this value is.
    pub(crate) fn within(&self, found: &Diagnostic) -> FieldError {
        let mut message = format!("line {}: ", found.line);
        if let Some(field) = &found.field {
            message.push_str(field);
            message.push_str(": ");
        }
        message.push_str(&found.message);
        // The field itself is known and a text: only its content can be unknown, or of another type.
        let not_enforced = found.code == FieldErrorKind::NotEnforced.code();
        let kind = if not_enforced { FieldErrorKind::NotEnforced } else { FieldErrorKind::Invalid };
        self.error(kind, message).maybe_help(found.help.as_ref()).at(found.line, found.column)
    }

    /// `what` is known, but nothing acts upon it.
    pub(crate) fn not_enforced(&self, what: &str, comes_with: &str) -> FieldError {
        self.error(
            FieldErrorKind::NotEnforced,
            format!("{what} is not enforced yet: it comes with {comes_with}"),
        )
        .help("leave it out: what is accepted and ignored would only seem to protect")
    }
}

pub(crate) fn snake_case(name: &str) -> String {
    name.chars().fold(String::new(), |mut snake, c| {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
        snake
    })
}

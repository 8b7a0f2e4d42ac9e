use std::fmt;

use crate::path::FieldPath;

/// One finding in an object, by field path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// As Kubernetes prints it: `spec.rules[0].to[0].operation.ports[1]`; empty for the object itself.
    pub path: String,
    /// The sort of finding.
    pub kind: FieldErrorKind,
    /// What is wrong and, after a semicolon, what would be right.
    pub message: String,
    /// Where in `message` the part begins that says what would be right.
    help_at: Option<usize>,
    /// Line and column, from 1, within the text that is the field's value.
    pub(crate) within: Option<(u32, u32)>,
}

/// What sort of finding it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldErrorKind {
    /// The schema has no such field.
    Unknown,
    /// A value of another type.
    Type,
    /// None of the values of an enumeration.
    Enum,
    /// The right type, but not a value the field may have.
    Invalid,
    /// Something that must be there is not.
    Required,
    /// The same thing twice.
    Duplicate,
    /// Known, but nothing enforces it, so it is refused rather than ignored.
    NotEnforced,
}

impl FieldErrorKind {
    /// The stable code of this sort of finding in a [`crate::Diagnostic`].
    pub fn code(self) -> &'static str {
        match self {
            Self::Duplicate => "ML0102",
            Self::Unknown => "ML0103",
            Self::Type => "ML0104",
            Self::Enum => "ML0105",
            Self::Invalid => "ML0106",
            Self::Required => "ML0107",
            Self::NotEnforced => "ML0108",
        }
    }
}

impl FieldError {
    /// A finding whose message needs no further advice.
    pub(crate) fn new(path: FieldPath, kind: FieldErrorKind, message: impl Into<String>) -> Self {
        Self { path: path.into(), kind, message: message.into(), help_at: None, within: None }
    }

    /// Adds what would be right.
    #[must_use]
    pub(crate) fn help(mut self, help: impl fmt::Display) -> Self {
        self.message.push_str("; ");
        self.help_at = Some(self.message.len());
        self.message.push_str(&help.to_string());
        self
    }

    /// Adds what would be right, if that is known.
    #[must_use]
    pub(crate) fn maybe_help(self, help: Option<impl fmt::Display>) -> Self {
        match help {
            Some(help) => self.help(help),
            None => self,
        }
    }

    /// Adds where in the text that the field's value is.
    #[must_use]
    pub(crate) fn at(mut self, line: u32, column: u32) -> Self {
        self.within = Some((line, column));
        self
    }

    /// The message in two parts: what is wrong, and what would be right.
    pub fn parts(&self) -> (&str, Option<&str>) {
        match self.help_at.and_then(|at| self.message.split_at_checked(at)) {
            Some((problem, help)) => (problem.strip_suffix("; ").unwrap_or(problem), Some(help)),
            None => (&self.message, None),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for FieldError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_and_help_stay_apart() {
        let error =
            FieldError::new(FieldPath::root().key("spec"), FieldErrorKind::Unknown, "a; b").help("write c");
        assert_eq!(error.parts(), ("a; b", Some("write c")));
        assert_eq!(error.to_string(), "spec: a; b; write c");
    }
}

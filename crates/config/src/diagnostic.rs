use std::fmt;

use serde::Serialize;

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Accepted, but seldom meant.
    Warning,
    /// Refused.
    Error,
}

/// A finding in a text, for people (`Display`) and machines (`Serialize`).
///
/// Codes are stable: ML0101 no YAML, ML0102 given twice, ML0103 unknown field, ML0104 wrong type, ML0105 none of an
/// enumeration, ML0106 invalid value, ML0107 missing, ML0108 not enforced, ML0109 no object, ML0110 too large,
/// ML0111 a file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// Stable name of the sort of finding.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The file as the caller named it.
    pub file: String,
    /// From 1; 0 if the whole file is meant.
    pub line: u32,
    /// From 1, in characters; 0 if the whole file is meant.
    pub column: u32,
    /// `PeerAuthentication production/default`, if that much could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `spec.mtls.mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding about a file as a whole (ML0111).
    pub fn of_file(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: "ML0111",
            severity: Severity::Error,
            file: file.into(),
            line: 0,
            column: 0,
            object: None,
            field: None,
            message: message.into(),
            help: None,
        }
    }
}

/// `file:line:column: error[ML0103]: PeerAuthentication production/default: spec.mtls: …`, and the help on a
/// line of its own.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, " {severity}[{}]: ", self.code)?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

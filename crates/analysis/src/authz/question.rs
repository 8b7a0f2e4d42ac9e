//! Questions as the public contract writes them in JSON.

use std::fmt;
use std::net::IpAddr;

use maille_core::{Identity, Labels};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::fields::{self, Address, Headers, Principal};

/// One request to one workload. Any key may be left out: an attribute that is not there is missing, which no positive
/// value of a policy matches and every negative one passes (reference authorization 22).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Who is called.
    #[serde(deserialize_with = "fields::object")]
    pub workload: Workload,
    /// With what.
    #[serde(deserialize_with = "fields::object")]
    pub request: Request,
}

/// The workload called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    #[serde(deserialize_with = "fields::namespace")]
    pub(super) namespace: Option<String>,
    #[serde(deserialize_with = "fields::labels")]
    pub(super) labels: Option<Labels>,
}

/// The request, or the connection it would come on.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    #[serde(deserialize_with = "fields::source_principal")]
    source_principal: Option<Principal>,
    #[serde(deserialize_with = "fields::source_ip")]
    source_ip: Option<Address>,
    #[serde(deserialize_with = "fields::remote_ip")]
    remote_ip: Option<Address>,
    #[serde(deserialize_with = "fields::destination_ip")]
    destination_ip: Option<Address>,
    #[serde(deserialize_with = "fields::destination_port")]
    destination_port: Option<u16>,
    #[serde(deserialize_with = "fields::protocol")]
    protocol: Option<Protocol>,
    #[serde(deserialize_with = "fields::method")]
    method: Option<String>,
    #[serde(deserialize_with = "fields::host")]
    host: Option<String>,
    #[serde(deserialize_with = "fields::path")]
    path: Option<String>,
    #[serde(deserialize_with = "fields::headers")]
    headers: Option<Headers>,
    #[serde(deserialize_with = "fields::sni")]
    sni: Option<String>,
    /// Claims of the caller's token, verified already.
    #[serde(deserialize_with = "fields::jwt")]
    jwt: Option<Map<String, Value>>,
}

/// What travels on the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Requests.
    #[default]
    Http,
    /// Opaque bytes: method, host, path and headers do not exist.
    Tcp,
}

impl Workload {
    /// The namespace; `default` if the question names none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// The labels, if there are any.
    pub fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }
}

impl Request {
    /// The caller's proven identity; `None` for plaintext.
    pub fn identity(&self) -> Option<&Identity> {
        self.source_principal.as_ref().map(|principal| &principal.0)
    }

    /// The caller's address.
    pub fn source_ip(&self) -> Option<IpAddr> {
        self.source_ip.map(|address| address.0)
    }

    /// The address of the client behind proxies, if the question names one.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.remote_ip.map(|address| address.0)
    }

    /// The address called.
    pub fn destination_ip(&self) -> Option<IpAddr> {
        self.destination_ip.map(|address| address.0)
    }

    /// The workload's port.
    pub fn destination_port(&self) -> Option<u16> {
        self.destination_port
    }

    /// HTTP unless the question says otherwise.
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_default()
    }

    /// The method; a `:method` among the headers counts too.
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref().or_else(|| self.header(":method"))
    }

    /// Host or `:authority`; one among the headers counts too.
    pub fn host(&self) -> Option<&str> {
        let header = || self.header(":authority").or_else(|| self.header("host"));
        self.host.as_deref().or_else(header)
    }

    /// The path, with its query; a `:path` among the headers counts too.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref().or_else(|| self.header(":path"))
    }

    /// Header lines in order.
    pub fn headers(&self) -> &[(String, String)] {
        self.headers.as_ref().map_or(&[], |headers| headers.0.as_slice())
    }

    /// The server name of the ClientHello.
    pub fn sni(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// Verified claims of the caller's token.
    pub fn jwt(&self) -> Option<&Map<String, Value>> {
        self.jwt.as_ref()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers().iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Why a text holds no questions, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// `line:column: message`.
impl fmt::Display for QuestionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for QuestionError {}

/// Reads a JSON list of questions, or one question.
pub fn read_questions(text: &str) -> Result<Vec<Question>, QuestionError> {
    let single = text.trim_start().starts_with('{');
    let read = if single {
        serde_json::from_str(text).map(|question| vec![question])
    } else {
        serde_json::from_str(text).map(|List(questions)| questions)
    };
    read.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let place = format!(" at line {line} column {column}");
        let message = message.strip_suffix(&place).unwrap_or(&message).to_owned();
        QuestionError { line, column, message }
    })
}

/// A list whose errors say which element they are about.
struct List(Vec<Question>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = List;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of {\"workload\": …, \"request\": …}, or one such object")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
                let mut questions = Vec::new();
                loop {
                    match seq.next_element() {
                        Ok(Some(question)) => questions.push(question),
                        Ok(None) => return Ok(List(questions)),
                        Err(error) => {
                            return Err(A::Error::custom(format!(
                                "request {}: {error}",
                                questions.len() + 1
                            )));
                        }
                    }
                }
            }
        }
        deserializer.deserialize_any(Elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_may_be_left_out_and_null_is_absent() {
        for text in ["{}", r#"{"workload":null,"request":null}"#, r#"{"request":{"sni":null,"jwt":null}}"#] {
            assert_eq!(read_questions(text), Ok(vec![Question::default()]), "{text}");
        }
        assert_eq!(read_questions(" [ ] "), Ok(Vec::new()));
    }

    #[test]
    fn headers_are_a_text_or_a_list_of_texts() {
        let text = r#"[{"request":{"headers":{"X-A":["1","2"],"x-b":"3","Host":"h"}}}]"#;
        let questions = read_questions(text).expect("reads");
        let request = &questions[0].request;
        let lines: Vec<_> = request.headers().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(lines, [("X-A", "1"), ("X-A", "2"), ("x-b", "3"), ("Host", "h")]);
        assert_eq!(request.host(), Some("h"), "the Host header is the host");
    }

    #[test]
    fn mistakes_are_told_with_key_and_place() {
        let cases = [
            ("[\n {\"request\": {\"methd\": \"GET\"}}]", 2, "request 1: unknown field `methd`"),
            ("[{},\n {\"workload\": {\"labels\": [\"a\"]}}]", 2, "request 2: labels: invalid type: sequence"),
            ("{\"request\": {\"destination_port\": 70000}}", 1, "destination_port: invalid value"),
            ("{\"request\": {\"destination_port\": \"80\"}}", 1, "destination_port: invalid type: string"),
            ("{\"request\": {\"source_ip\": \"10.0.0\"}}", 1, "source_ip: '10.0.0' is no IP address"),
            ("{\"request\": {\"source_principal\": \"web\"}}", 1, "source_principal: 'web' is no principal"),
            ("{\"request\": {\"protocol\": \"udp\"}}", 1, "protocol: unknown variant `udp`"),
            ("{\"request\": {\"headers\": {\"a\": 1}}}", 1, "headers: invalid type: integer"),
            ("{\"request\": {\"jwt\": \"ey\"}}", 1, "jwt: invalid type: string"),
            ("{\"request\": {}, \"request\": {}}", 1, "duplicate field `request`"),
            ("7", 1, "expected a list of"),
            ("", 1, "EOF"),
        ];
        for (text, line, message) in cases {
            let error = read_questions(text).expect_err(text);
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.message.contains(message), "{text}: {error}");
            assert!(!error.message.contains(" at line "), "the place is told once: {error}");
        }
    }
}

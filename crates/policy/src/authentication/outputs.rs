//! Headers that tell the application what a token says.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::input::JwtRule;
use super::token::Payload;

/// Headers whose meaning for the message itself no claim may touch.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The headers of one rule, in the order they are written in.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    payload: Option<Arc<str>>,
    claims: Vec<(Arc<str>, Vec<String>)>,
}

impl Outputs {
    /// Those of a rule, and the field and problem of each that cannot be written.
    pub(super) fn new(rule: &JwtRule) -> (Self, Vec<(String, String)>) {
        let mut problems = Vec::new();
        let mut name = |field: String, name: &str| -> Option<Arc<str>> {
            let name = name.to_ascii_lowercase();
            let problem = if !is_header_name(&name) {
                format!("'{name}' is no legal name of a header")
            } else if RESERVED.contains(&name.as_str()) {
                format!("header '{name}' frames the message, so it can carry no claim; name another one")
            } else {
                return Some(name.into());
            };
            problems.push((field, problem));
            None
        };
        let payload = match rule.output_payload_to_header.as_str() {
            "" => None,
            header => name("outputPayloadToHeader".to_owned(), header),
        };
        let mut claims = Vec::new();
        for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
            if let Some(name) = name(format!("outputClaimToHeaders[{index}].header"), &output.header) {
                claims.push((name, output.claim.split('.').map(str::to_owned).collect()));
            }
        }
        (Self { payload, claims }, problems)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.payload.iter().chain(self.claims.iter().map(|(name, _)| name))
    }

    /// What the token's claims are as headers. A claim that is absent, empty or cannot be in a header has none.
    pub(super) fn of(&self, payload: &Payload<'_>) -> Vec<(Arc<str>, Box<str>)> {
        let mut all = Vec::new();
        if let Some(name) = &self.payload {
            all.push((name.clone(), payload.text.into()));
        }
        for (name, path) in &self.claims {
            let value = find(&payload.claims, path).and_then(text).filter(|value| is_header_value(value));
            all.extend(value.map(|value| (name.clone(), value.into_boxed_str())));
        }
        all
    }
}

fn find<'c>(claims: &'c Map<String, Value>, path: &[String]) -> Option<&'c Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(claims.get(first)?, |found, name| found.as_object()?.get(name))
}

/// Texts, whole numbers and booleans as such; other numbers with six decimals, lists and objects as base64 of their
/// JSON, as Envoy writes them.
fn text(claim: &Value) -> Option<String> {
    match claim {
        Value::Null => None,
        Value::Bool(claim) => Some(claim.to_string()),
        Value::String(claim) => Some(claim.clone()),
        Value::Number(claim) => match (claim.as_u64(), claim.as_f64()) {
            (Some(whole), _) => Some(whole.to_string()),
            (None, Some(float))
                if float >= 0.0 && float.fract() == 0.0 && float < 18_446_744_073_709_551_616.0 =>
            {
                Some((float as u64).to_string())
            }
            (None, Some(float)) => Some(format!("{float:.6}")),
            (None, None) => None,
        },
        Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(claim.to_string())),
    }
}

/// RFC 9110 5.6.2.
pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// RFC 9110 5.5: a claim with a line break must not become a second header.
fn is_header_value(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

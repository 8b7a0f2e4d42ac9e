//! Where a rule's tokens are (Envoy's `Extractor`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::input::JwtRule;
use super::outputs::is_header_name;
use super::request::{Changes, TokenRequest};

/// The locations of one rule, in the order they are searched in.
#[derive(Debug)]
pub(super) struct Locations {
    headers: Vec<Header>,
    params: BTreeSet<String>,
    cookies: BTreeSet<String>,
}

#[derive(Debug)]
struct Header {
    name: Arc<str>,
    prefix: String,
}

/// A token, and where it was found.
#[derive(Debug)]
pub(super) struct Found<'r> {
    pub(super) text: Cow<'r, [u8]>,
    location: Location<'r>,
}

#[derive(Debug, Clone)]
enum Location<'r> {
    Header(Arc<str>),
    Param(&'r str),
    Cookie,
}

impl Locations {
    /// Those of a rule; if it names none, the defaults of RFC 6750. A header that cannot be is left out, since none can
    /// come.
    pub(super) fn new(rule: &JwtRule) -> Self {
        // By name and prefix, which is Envoy's order.
        let mut headers: BTreeMap<String, Header> = BTreeMap::new();
        let mut header = |name: &str, prefix: &str| {
            let name = name.to_ascii_lowercase();
            if is_header_name(&name) {
                let key = format!("{name}{prefix}");
                headers.entry(key).or_insert(Header { name: name.into(), prefix: prefix.to_owned() });
            }
        };
        for from in &rule.from_headers {
            header(&from.name, &from.prefix);
        }
        let mut params: BTreeSet<String> = rule.from_params.iter().cloned().collect();
        if rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty() {
            header("authorization", "Bearer ");
            params.insert("access_token".to_owned());
        }
        Self {
            headers: headers.into_values().collect(),
            params,
            cookies: rule.from_cookies.iter().cloned().collect(),
        }
    }

    /// Forgets the headers of these names: callers' values of them are removed before anything is looked for.
    pub(super) fn forget(&mut self, names: &[Arc<str>]) {
        self.headers.retain(|header| !names.contains(&header.name));
    }

    /// All tokens of a request at these locations: every value of a header, the first parameter and the first cookie of
    /// a name.
    pub(super) fn find<'r>(&'r self, request: &TokenRequest<'r>) -> Vec<Found<'r>> {
        let mut found = Vec::new();
        for header in &self.headers {
            for value in values(request, &header.name) {
                let text = match value {
                    Cow::Borrowed(value) => after_prefix(value, &header.prefix).map(Cow::Borrowed),
                    Cow::Owned(value) => {
                        after_prefix(&value, &header.prefix).map(|text| Cow::Owned(text.to_owned()))
                    }
                };
                let location = || Location::Header(header.name.clone());
                found.extend(text.map(|text| Found { text, location: location() }));
            }
        }
        for name in &self.params {
            let value = parameters(request.path).find(|(key, _)| decoded(key) == name.as_bytes());
            found.extend(
                value.map(|(_, value)| Found { text: decoded(value), location: Location::Param(name) }),
            );
        }
        for name in &self.cookies {
            found.extend(
                cookie(request, name)
                    .map(|text| Found { text: Cow::Borrowed(text), location: Location::Cookie }),
            );
        }
        found
    }
}

impl Found<'_> {
    /// Takes the token out of what is forwarded, as Envoy does: all values of its header, all parameters of its name;
    /// a cookie stays.
    pub(super) fn remove(&self, path: &str, changes: &mut Changes) {
        match &self.location {
            Location::Header(name) => changes.remove.push(name.clone()),
            Location::Param(name) => {
                let path = changes.path.as_deref().unwrap_or(path);
                changes.path = Some(without_parameter(path, name));
            }
            Location::Cookie => {}
        }
    }
}

/// The values of a header. Those of `authorization` are one, joined by commas: a message has one at most (RFC 9110
/// 11.6.2), Envoy joins them on arrival, and so no second one slips past.
fn values<'r>(request: &TokenRequest<'r>, name: &str) -> Vec<Cow<'r, [u8]>> {
    let mut all: Vec<&[u8]> = Vec::new();
    request.headers.values(name, &mut |value| all.push(value));
    if name == "authorization" && all.len() > 1 {
        return vec![Cow::Owned(all.join(&b',').to_vec())];
    }
    all.into_iter().map(Cow::Borrowed).collect()
}

/// The token of a header's value: what follows the first occurrence of the prefix, wherever that is, from the first
/// character on that a token can begin with; without any, the value itself (which is no token then).
fn after_prefix<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    let prefix = prefix.as_bytes();
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|window| window == prefix)?;
    let rest = value.get(at + prefix.len()..).unwrap_or_default();
    let start = rest.iter().position(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    Some(start.and_then(|start| rest.get(start..)).unwrap_or(value))
}

/// Name and value of each parameter, as sent.
fn parameters(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = path.split_once('?').map(|(_, query)| query);
    // An empty last piece is no parameter to Envoy, nor can it be a token.
    query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
}

/// The path without all parameters of this name; the others stay as they are, byte for byte. (Envoy writes them anew,
/// in another order.)
fn without_parameter(path: &str, name: &str) -> String {
    let Some((before, query)) = path.split_once('?') else { return path.to_owned() };
    let is_other =
        |piece: &&str| decoded(piece.split_once('=').map_or(*piece, |(key, _)| key)) != name.as_bytes();
    let rest: Vec<&str> = query.split('&').filter(is_other).collect();
    match rest.is_empty() {
        true => before.to_owned(),
        false => format!("{before}?{}", rest.join("&")),
    }
}

/// With `%XX` decoded; a `%` without two digits is itself, and so is `+`.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut all = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, others)) = rest.split_first() {
        let digit = |at: usize| others.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1), others.get(2..)) {
            (b'%', Some(high), Some(low), Some(after)) => {
                // Two hexadecimal digits are a byte.
                all.push((high * 16 + low) as u8);
                rest = after;
            }
            _ => {
                all.push(first);
                rest = others;
            }
        }
    }
    Cow::Owned(all)
}

/// The first cookie of this name; quotes around its value are none of it.
fn cookie<'r>(request: &TokenRequest<'r>, name: &str) -> Option<&'r [u8]> {
    let mut found = None;
    request.headers.values("cookie", &mut |value| {
        for piece in value.split(|byte| *byte == b';') {
            let start = piece.iter().position(|byte| *byte != b' ').unwrap_or(piece.len());
            let piece = piece.get(start..).unwrap_or_default();
            let Some(equals) = piece.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = piece.split_at(equals);
            if found.is_none() && key == name.as_bytes() {
                let value = value.get(1..).unwrap_or_default();
                found = Some(match value {
                    [b'"', inner @ .., b'"'] => inner,
                    _ => value,
                });
            }
        }
    });
    found
}

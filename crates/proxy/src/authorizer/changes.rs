//! What a provider changes in a request it allows, and in the answer to it.
//!
//! As Envoy 1.40 does it, measured. What Envoy leaves open is closed here: illegal names and values are refused and not
//! written out, framing and hop-by-hop fields are not the provider's to change, and a head that was changed is checked
//! and canonicalised like any other before policy goes on with it.

use std::collections::BTreeMap;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Uri, Version};
use maille_policy::path::Normalization;

use crate::http::body::Body;
use crate::http::head;

/// Header lines of a request that was changed: Envoy's default bound for any request.
const MAX_HEADERS: usize = 100;

/// Fields of one connection, or of its framing; a provider's say nothing of ours.
const OF_THE_CONNECTION: [HeaderName; 13] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-envoy-peer-metadata"),
    HeaderName::from_static("x-envoy-peer-metadata-id"),
];

pub(super) fn is_of_the_connection(name: &HeaderName) -> bool {
    OF_THE_CONNECTION.contains(name)
}

/// How a header of the answer is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Put {
    /// Beside those that are there.
    Add,
    /// In their place.
    Set,
    /// Unless there is one.
    AddIfAbsent,
    /// If there is one.
    SetIfPresent,
}

/// Changes of an answer's headers.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<(Put, HeaderName, HeaderValue)>);

impl Changes {
    /// Checked; illegal ones are an error.
    fn check(given: Vec<(Put, String, Vec<u8>)>) -> Result<Self, String> {
        let mut checked = Vec::with_capacity(given.len());
        for (put, name, value) in given.into_iter().filter(|(_, name, _)| !name.starts_with(':')) {
            let (name, value) = legal(&name, &value)?;
            if !is_of_the_connection(&name) {
                checked.push((put, name, value));
            }
        }
        // Envoy's order: kind by kind.
        checked.sort_by_key(|(put, _, _)| *put);
        Ok(Self(checked))
    }

    /// Changes the headers of an answer.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (put, name, value) in &self.0 {
            let is_there = headers.contains_key(name);
            match put {
                Put::Add => drop(headers.append(name, value.clone())),
                Put::Set => drop(headers.insert(name, value.clone())),
                Put::AddIfAbsent if !is_there => drop(headers.insert(name, value.clone())),
                Put::SetIfPresent if is_there => drop(headers.insert(name, value.clone())),
                Put::AddIfAbsent | Put::SetIfPresent => {}
            }
        }
    }
}

/// What an allowed request is changed by, as the provider gave it.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    /// The last one of a name counts.
    pub(super) set: Vec<(String, Vec<u8>)>,
    /// To the value that is there, with a comma; nothing if there is none.
    pub(super) append: Vec<(String, Vec<u8>)>,
    pub(super) remove: Vec<String>,
    pub(super) set_parameters: Vec<(String, String)>,
    pub(super) remove_parameters: Vec<String>,
    pub(super) for_caller: Vec<(Put, String, Vec<u8>)>,
}

impl Allowed {
    /// Changes a request that has been checked, and checks it again. On an error nothing of it may go on.
    pub(super) fn change(
        self,
        request: &mut Request<Body>,
        normalization: Normalization,
        head_limit: usize,
    ) -> Result<Changes, String> {
        let for_caller = Changes::check(self.for_caller)?;
        let is_untouched = self.set.is_empty()
            && self.append.is_empty()
            && self.remove.is_empty()
            && self.set_parameters.is_empty()
            && self.remove_parameters.is_empty();
        if is_untouched {
            return Ok(for_caller);
        }
        let most = request.headers().len().max(MAX_HEADERS);
        for (name, value) in self.set {
            set(request, &name, &value)?;
        }
        for (name, value) in self.append {
            append(request, &name, &value)?;
        }
        for name in self.remove {
            // A name that cannot be is not there; what a request cannot do without stays (Envoy `isRemovableHeader`).
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
            if name != header::HOST && !is_of_the_connection(&name) {
                request.headers_mut().remove(name);
            }
        }
        if !self.set_parameters.is_empty() || !self.remove_parameters.is_empty() {
            let query = request.uri().query().unwrap_or_default();
            let query = parameters(query, &self.set_parameters, &self.remove_parameters)?;
            let path = request.uri().path();
            let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
            set_path(request, target.as_bytes())?;
        }
        head::check(request, normalization).map_err(|malformed| malformed.to_string())?;
        let bytes = usize::try_from(head::head_bytes(request.headers())).unwrap_or(usize::MAX);
        if request.headers().len() > most || bytes > head_limit {
            return Err("the request's head would be too large".to_owned());
        }
        Ok(for_caller)
    }
}

fn legal(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), String> {
    let illegal = || format!("'{}' is no legal header, or its value is not", name.escape_debug());
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| illegal())?;
    let value = HeaderValue::from_bytes(value).map_err(|_| illegal())?;
    Ok((name, value))
}

fn set(request: &mut Request<Body>, name: &str, value: &[u8]) -> Result<(), String> {
    match name {
        ":path" => return set_path(request, value),
        ":authority" => return set_authority(request, value),
        ":method" => return set_method(request, value),
        // Nothing that is judged or forwarded stands on it.
        ":scheme" => return Ok(()),
        _ => {}
    }
    let (name, value) = legal(name, value)?;
    if name == header::HOST {
        return set_authority(request, value.as_bytes());
    }
    if !is_of_the_connection(&name) {
        request.headers_mut().insert(name, value);
    }
    Ok(())
}

fn append(request: &mut Request<Body>, name: &str, value: &[u8]) -> Result<(), String> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(format!("nothing can be appended to {name}"));
    }
    let (name, value) = legal(name, value)?;
    if is_of_the_connection(&name) {
        return Ok(());
    }
    if let Some(first) = request.headers_mut().get_mut(&name) {
        // Envoy joins cookies with `; ` here, and leaves further lines of the field alone.
        *first = joined(first, &value, if name == header::COOKIE { "; " } else { "," })?;
    }
    Ok(())
}

/// Two values as one; an empty one is none (Envoy `appendToHeader`).
pub(super) fn joined(
    first: &HeaderValue,
    next: &HeaderValue,
    separator: &str,
) -> Result<HeaderValue, String> {
    if first.is_empty() || next.is_empty() {
        return Ok(if first.is_empty() { next } else { first }.clone());
    }
    let joined = [first.as_bytes(), separator.as_bytes(), next.as_bytes()].concat();
    HeaderValue::from_bytes(&joined).map_err(|_| "a value is too long".to_owned())
}

fn set_path(request: &mut Request<Body>, target: &[u8]) -> Result<(), String> {
    let illegal = || "the path it sets cannot be one".to_owned();
    if *request.method() == Method::CONNECT || !target.starts_with(b"/") {
        return Err(illegal());
    }
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| illegal())?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| illegal())?;
    Ok(())
}

fn set_authority(request: &mut Request<Body>, authority: &[u8]) -> Result<(), String> {
    let illegal = || "the host it sets cannot be one".to_owned();
    let authority = Authority::try_from(authority).map_err(|_| illegal())?;
    if request.version() != Version::HTTP_2 {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| illegal())?;
        request.headers_mut().insert(header::HOST, host);
        return Ok(());
    }
    let mut parts = request.uri().clone().into_parts();
    parts.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| illegal())?;
    Ok(())
}

/// HEAD and CONNECT end differently on the wire than what the caller waits for.
fn set_method(request: &mut Request<Body>, method: &[u8]) -> Result<(), String> {
    let method = Method::from_bytes(method).map_err(|_| "the method it sets cannot be one".to_owned())?;
    let ends_differently = |method: &Method| matches!(*method, Method::HEAD | Method::CONNECT);
    if method != *request.method() && (ends_differently(&method) || ends_differently(request.method())) {
        return Err(format!("{} cannot become {method}", request.method()));
    }
    *request.method_mut() = method;
    Ok(())
}

/// The query with parameters set and removed; sorted by name and each with its `=`, as Envoy writes one anew.
fn parameters(query: &str, set: &[(String, String)], remove: &[String]) -> Result<String, String> {
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // An empty pair is one too, except behind the last `&`.
    let pairs = (!query.is_empty()).then(|| query.strip_suffix('&').unwrap_or(query).split('&'));
    for pair in pairs.into_iter().flatten() {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.entry(name).or_default().push(value);
    }
    // Envoy writes what it is given; a blank would end the request line.
    let is_encoded = |text: &str| {
        text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'#' | b'&' | b'<' | b'>'))
    };
    for (name, value) in set {
        if name.is_empty() || name.contains('=') || !is_encoded(name) || !is_encoded(value) {
            return Err(format!("query parameter '{}' is not percent-encoded", name.escape_debug()));
        }
        all.insert(name, vec![value]);
    }
    for name in remove {
        all.remove(name.as_str());
    }
    let pairs =
        all.iter().flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}")));
    Ok(pairs.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;

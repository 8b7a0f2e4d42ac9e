//! The HTTP form of a check: the head of the request, sent as a request of its own.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Version};
use tokio::time::timeout;

use super::ahead::Seen;
use super::attributes::{PARTIAL_BODY, sanitized, separator};
use super::changes::{Allowed, Put, is_of_the_connection};
use super::provider::{HttpSettings, Provider};
use super::reach::{self, Collected};
use super::verdict::{Denial, Verdict};
use crate::http::body::Body;
use crate::http::head;
use crate::worker::Worker;

/// The longest body that is taken over from a provider; what is longer is cut.
const MAX_BODY: usize = 1 << 20;
/// In this header a provider names those that the application is not to see.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

/// Asks, and waits no longer than the provider's timeout.
pub(super) async fn check(
    worker: &Rc<Worker>,
    provider: &Rc<Provider>,
    settings: &HttpSettings,
    request: &Request<Body>,
    body: Option<Seen>,
) -> Verdict {
    let under_way = match provider.enter() {
        Ok(under_way) => under_way,
        Err(why) => return Verdict::failed(why),
    };
    let (head, body) = match question(settings, request, body) {
        Ok(question) => question,
        Err(why) => return Verdict::failed(why),
    };
    let answer = timeout(provider.timeout, call(worker, provider, &head, &body)).await;
    drop(under_way);
    match answer {
        Ok(Ok((status, headers, body))) => verdict(settings, status, &headers, body),
        Ok(Err(why)) => Verdict::failed(why),
        Err(_) => Verdict::failed(format!("it did not answer within {:?}", provider.timeout)),
    }
}

/// Pure: the check that a request leads to, as HTTP/1.1 has it.
fn question(
    settings: &HttpSettings,
    request: &Request<Body>,
    body: Option<Seen>,
) -> Result<(Request<()>, Bytes), String> {
    if *request.method() == Method::CONNECT {
        return Err("CONNECT cannot be asked about over HTTP".to_owned());
    }
    let target = format!("{}{}", settings.path_prefix, head::path(request));
    let target = PathAndQuery::try_from(target).map_err(|_| "the path cannot be asked about".to_owned())?;
    let host = HeaderValue::from_str(head::authority(request)).map_err(|_| "no Host".to_owned())?;
    let mut question = Request::new(());
    *question.method_mut() = request.method().clone();
    *question.uri_mut() = target.into();
    let headers = question.headers_mut();
    headers.insert(header::HOST, host);
    for name in request.headers().keys() {
        let is_said_otherwise = *name == header::HOST || *name == PARTIAL_BODY || is_of_the_connection(name);
        let is_shown = *name == header::AUTHORIZATION || settings.shown.contains(name.as_str());
        if is_said_otherwise || !is_shown {
            continue;
        }
        let all: Vec<_> =
            request.headers().get_all(name).iter().map(|value| sanitized(value.as_bytes())).collect();
        if let Ok(value) = HeaderValue::from_str(&all.join(separator(request.version(), name))) {
            headers.insert(name.clone(), value);
        }
    }
    for (name, value) in settings.additional.iter().filter(|(name, _)| !is_of_the_connection(name)) {
        headers.insert(name.clone(), value.clone());
    }
    let mut bytes = Bytes::new();
    if let Some(body) = body {
        let is_partial = if body.is_partial { "true" } else { "false" };
        headers.insert(PARTIAL_BODY, HeaderValue::from_static(is_partial));
        bytes = body.bytes;
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    Ok((question, bytes))
}

async fn call(
    worker: &Rc<Worker>,
    provider: &Provider,
    question: &Request<()>,
    body: &Bytes,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let make = || {
        let body = if body.is_empty() { Body::empty() } else { Body::full(body.clone()) };
        let mut request = Request::new(body);
        *request.method_mut() = question.method().clone();
        *request.uri_mut() = question.uri().clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = question.headers().clone();
        request
    };
    let answer = reach::send(worker, provider, None, make).await?;
    let (head, body) = answer.response.into_parts();
    if head.status.is_informational() {
        return Err(format!("it answered {}", head.status));
    }
    let Collected { bytes, is_whole, .. } = reach::collect(body, MAX_BODY).await?;
    if is_whole {
        answer.lease.give_back();
    }
    Ok((head.status, head.headers, bytes))
}

/// Pure: what an answer means. Headers as Envoy's client of the HTTP form sorts them, measured with 1.40.
fn verdict(settings: &HttpSettings, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Verdict {
    if status.is_server_error() {
        return Verdict::failed(format!("it answered {status}"));
    }
    // What Connection names concerned our connection to the provider.
    let mut headers = headers.clone();
    head::clean_response(&mut headers, false);
    let to_remove = headers.get_all(TO_REMOVE).iter().filter_map(|value| value.to_str().ok());
    let remove: Vec<String> = to_remove
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    headers.remove(TO_REMOVE);
    let matching = |is_wanted: &dyn Fn(&HeaderName) -> bool| -> Vec<(String, Vec<u8>)> {
        let wanted = headers.iter().filter(|(name, _)| is_wanted(name));
        wanted.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
    };
    if status == StatusCode::OK {
        let for_caller = matching(&|name| settings.to_caller_on_allow.contains(name.as_str()));
        return Verdict::Allowed(Box::new(Allowed {
            set: matching(&|name| settings.to_upstream.contains(name.as_str())),
            remove,
            for_caller: for_caller.into_iter().map(|(name, value)| (Put::Add, name, value)).collect(),
            ..Allowed::default()
        }));
    }
    let listed = &settings.to_caller_on_deny;
    let is_told = |name: &HeaderName| match listed.is_empty() {
        true => *name != header::HOST,
        false => {
            *name == header::WWW_AUTHENTICATE || *name == header::LOCATION || listed.contains(name.as_str())
        }
    };
    Verdict::Denied(Box::new(Denial { status: status.as_u16(), headers: matching(&is_told), body }))
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;

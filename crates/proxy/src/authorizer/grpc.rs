//! `envoy.service.auth.v3.Authorization/Check`: one unary call over the worker's own HTTP/2 connections.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use maille_proto::authorization as wire;
use prost::Message as _;
use tokio::time::timeout;
use wire::check_response::HttpResponse;
use wire::header_value_option::HeaderAppendAction;

use super::changes::{Allowed, Put};
use super::provider::Provider;
use super::reach::{self, Collected};
use super::verdict::{Denial, Verdict};
use crate::http::body::Body;
use crate::http::head;
use crate::worker::Worker;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// gRPC's own default for an answer.
const MAX_ANSWER: usize = 4 << 20;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Asks, and waits no longer than the provider's timeout.
pub(super) async fn check(
    worker: &Rc<Worker>,
    provider: &Rc<Provider>,
    check: wire::CheckRequest,
) -> Verdict {
    let under_way = match provider.enter() {
        Ok(under_way) => under_way,
        Err(why) => return Verdict::failed(why),
    };
    let answer = timeout(provider.timeout, call(worker, provider, &check)).await;
    drop(under_way);
    match answer {
        Ok(Ok(response)) => verdict(response),
        Ok(Err(why)) => Verdict::failed(why),
        Err(_) => Verdict::failed(format!("it did not answer within {:?}", provider.timeout)),
    }
}

async fn call(
    worker: &Rc<Worker>,
    provider: &Provider,
    check: &wire::CheckRequest,
) -> Result<wire::CheckResponse, String> {
    let uri = Uri::builder().scheme("http").authority(&*provider.host).path_and_query(METHOD).build();
    let uri = uri.map_err(|_| format!("'{}' cannot be sent as authority", provider.host))?;
    let milliseconds = provider.timeout.as_millis().min(99_999_999);
    let patience = HeaderValue::try_from(format!("{milliseconds}m")).map_err(|e| e.to_string())?;
    let message = framed(check)?;
    let make = || {
        let mut request = Request::new(Body::full(message.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert("grpc-timeout", patience.clone());
        request
    };
    let answer = reach::send(worker, provider, Some(Version::HTTP_2), make).await?;
    let (head, body) = answer.response.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("it answered {} to a gRPC call", head.status));
    }
    if !head::is_grpc(&head.headers) {
        return Err("its answer is no gRPC: another content type".to_owned());
    }
    if let Some(status) = status_of(&head.headers) {
        // Trailers only: there is no message.
        return Err(refusal(status, &head.headers));
    }
    let Collected { bytes, trailers, is_whole } = reach::collect(body, MAX_ANSWER).await?;
    if !is_whole {
        return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
    }
    match trailers.as_ref().map(|trailers| (status_of(trailers), trailers)) {
        Some((Some("0"), _)) => unframed(&bytes),
        Some((Some(status), trailers)) => Err(refusal(status, trailers)),
        _ => Err("its answer ended without a gRPC status".to_owned()),
    }
}

fn status_of(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status").map(|status| status.to_str().unwrap_or("2"))
}

fn refusal(status: &str, headers: &HeaderMap) -> String {
    let message = headers.get("grpc-message").and_then(|message| message.to_str().ok()).unwrap_or_default();
    let message: String = message.chars().take(200).collect();
    format!("it answered gRPC status {} {message}", status.escape_debug())
}

fn framed(check: &wire::CheckRequest) -> Result<Bytes, String> {
    let length = check.encoded_len();
    let mut message = BytesMut::with_capacity(PREFIX + length);
    message.put_u8(0);
    message.put_u32(u32::try_from(length).map_err(|_| "the check is too long for gRPC".to_owned())?);
    check.encode(&mut message).map_err(|error| error.to_string())?;
    Ok(message.freeze())
}

/// The only message of an answer. It cannot be compressed: no compression was offered.
fn unframed(bytes: &[u8]) -> Result<wire::CheckResponse, String> {
    let unreadable = || "its answer is no gRPC message".to_owned();
    let (prefix, message) = bytes.split_at_checked(PREFIX).ok_or_else(unreadable)?;
    let (compressed, length) = prefix.split_first().ok_or_else(unreadable)?;
    let length = <[u8; 4]>::try_from(length).map(u32::from_be_bytes).map_err(|_| unreadable())?;
    if *compressed != 0 || usize::try_from(length) != Ok(message.len()) {
        return Err(unreadable());
    }
    wire::CheckResponse::decode(message).map_err(|error| format!("its answer cannot be read: {error}"))
}

/// Pure: what an answer means.
fn verdict(response: wire::CheckResponse) -> Verdict {
    let code = response.status.as_ref().map_or(0, |status| status.code);
    match (code, response.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => Verdict::Allowed(Box::new(allowed(ok))),
        (0, _) => Verdict::Allowed(Box::default()),
        (_, Some(HttpResponse::ErrorResponse(error))) => Verdict::Failed {
            why: format!("it says so itself (status code {code})"),
            answer: Some(Box::new(denial(error, true))),
        },
        (_, Some(HttpResponse::DeniedResponse(denied))) => Verdict::Denied(Box::new(denial(denied, false))),
        (_, _) => Verdict::Denied(Box::default()),
    }
}

/// Envoy 1.40 reads `append_action` for answers only.
fn allowed(ok: wire::OkHttpResponse) -> Allowed {
    let mut allowed = Allowed {
        remove: ok.headers_to_remove,
        set_parameters: ok.query_parameters_to_set.into_iter().map(|p| (p.key, p.value)).collect(),
        remove_parameters: ok.query_parameters_to_remove,
        ..Allowed::default()
    };
    for option in ok.headers {
        let appends = option.append.unwrap_or_default();
        let Some((name, value)) = header_of(option) else { continue };
        if appends { allowed.append.push((name, value)) } else { allowed.set.push((name, value)) }
    }
    for option in ok.response_headers_to_add {
        let put = match (option.append, HeaderAppendAction::try_from(option.append_action)) {
            (Some(true), _) => Put::Add,
            (Some(false), _) => Put::Set,
            (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => Put::Add,
            (None, Ok(HeaderAppendAction::AddIfAbsent)) => Put::AddIfAbsent,
            (None, Ok(HeaderAppendAction::OverwriteIfExists)) => Put::SetIfPresent,
            (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => Put::Set,
            // Of a later Envoy; this one leaves it out.
            (None, Err(_)) => continue,
        };
        allowed.for_caller.extend(header_of(option).map(|(name, value)| (put, name, value)));
    }
    allowed
}

/// What is to be appended to a denial has nothing to be appended to and is left out, but comes last in an error (Envoy
/// 1.40, `headers_to_append` of either).
fn denial(denied: wire::DeniedHttpResponse, is_error: bool) -> Denial {
    let (appended, set): (Vec<_>, Vec<_>) =
        denied.headers.into_iter().partition(|option| option.append.unwrap_or_default());
    let appended = appended.into_iter().filter(|_| is_error);
    Denial {
        status: denied.status.and_then(|status| u16::try_from(status.code).ok()).unwrap_or_default(),
        headers: set.into_iter().chain(appended).filter_map(header_of).collect(),
        body: denied.body.into(),
    }
}

fn header_of(option: wire::HeaderValueOption) -> Option<(String, Vec<u8>)> {
    let header = option.header?;
    Some((header.key, header.value.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: i32) -> Option<wire::Status> {
        Some(wire::Status { code, message: String::new() })
    }

    /// Measured with Envoy 1.40.
    #[test]
    fn the_status_alone_decides() {
        let ok = || HttpResponse::OkResponse(wire::OkHttpResponse::default());
        let denied = || HttpResponse::DeniedResponse(wire::DeniedHttpResponse::default());
        let of = |code, http_response| verdict(wire::CheckResponse { status: code, http_response });
        assert!(matches!(of(None, None), Verdict::Allowed(_)));
        assert!(matches!(of(status(0), Some(denied())), Verdict::Allowed(_)));
        assert!(matches!(of(status(7), None), Verdict::Denied(_)));
        assert!(matches!(of(status(7), Some(ok())), Verdict::Denied(_)));
        let error = |code| wire::DeniedHttpResponse {
            status: Some(wire::HttpStatus { code }),
            ..wire::DeniedHttpResponse::default()
        };
        for code in [503, 0] {
            let response = Some(HttpResponse::ErrorResponse(error(code)));
            let Verdict::Failed { answer, .. } = of(status(13), response) else { panic!("not a failure") };
            assert_eq!(i32::from(answer.unwrap().status), code);
        }
    }

    #[test]
    fn an_answer_is_one_uncompressed_message() {
        let message = framed(&wire::CheckRequest::default()).unwrap();
        assert_eq!(&message[..], [0, 0, 0, 0, 0]);
        assert!(unframed(&message).is_ok());
        for broken in
            [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 0], &[0; 10]]
        {
            assert!(unframed(broken).is_err(), "{broken:?}");
        }
        assert!(unframed(&[0, 0, 0, 0, 1, 0xff]).is_err());
    }
}

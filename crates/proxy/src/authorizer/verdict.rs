//! What a provider's answer means, whichever form it came in.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::changes::{Allowed, is_of_the_connection, joined};
use crate::http::body::Body;
use crate::http::reply;

/// A gRPC caller reads the body of a denial in a header, which has less room.
const MESSAGE: usize = 4096;

/// Fields that an answer has once; Envoy joins what it is given more.
const ONCE: [HeaderName; 2] = [header::LOCATION, header::CONTENT_TYPE];

/// The answer.
pub(super) enum Verdict {
    /// With what is to be changed.
    Allowed(Box<Allowed>),
    /// With what the caller is told.
    Denied(Box<Denial>),
    /// Neither.
    Failed {
        /// For logs.
        why: String,
        /// What the provider itself wants the caller to be told of it.
        answer: Option<Box<Denial>>,
    },
}

impl Verdict {
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), answer: None }
    }
}

/// What a caller is told that may not pass.
#[derive(Debug, Default)]
pub(super) struct Denial {
    /// 0 for the default, 403.
    pub(super) status: u16,
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Bytes,
}

impl Denial {
    /// As Envoy's local replies: framing is the proxy's, the content type the provider's if it gave one. An illegal
    /// header is an error; nothing of such an answer is passed on.
    pub(super) fn response(self, is_grpc: bool) -> Result<Response<Body>, String> {
        // What is not final cannot end an exchange.
        let status = StatusCode::from_u16(self.status).ok().filter(|status| status.as_u16() >= 200);
        let status = status.unwrap_or(StatusCode::FORBIDDEN);
        let mut given = HeaderMap::new();
        for (name, value) in self.headers {
            if name.starts_with(':') {
                continue;
            }
            let illegal = || format!("'{}' is no legal header", name.escape_debug());
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| illegal())?;
            let value = HeaderValue::from_bytes(&value).map_err(|_| illegal())?;
            match given.get_mut(&name) {
                _ if is_of_the_connection(&name) => {}
                Some(first) if ONCE.contains(&name) => *first = joined(first, &value, ",")?,
                _ => drop(given.append(name, value)),
            }
        }
        if is_grpc {
            let text = self.body.get(..self.body.len().min(MESSAGE)).unwrap_or_default();
            let mut response = reply::local(true, status, &String::from_utf8_lossy(text));
            if given.contains_key("grpc-status") {
                response.headers_mut().remove("grpc-status");
            }
            let own = std::mem::replace(response.headers_mut(), given);
            for (name, value) in own.iter() {
                response.headers_mut().insert(name.clone(), value.clone());
            }
            if text.is_empty() {
                response.headers_mut().remove("grpc-message");
            }
            return Ok(response);
        }
        let has_body = !self.body.is_empty()
            && !matches!(
                status,
                StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
            );
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        *response.headers_mut() = given;
        if has_body {
            let headers = response.headers_mut();
            // Also for HEAD, whose body the server drops.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
            *response.body_mut() = Body::full(self.body);
        } else {
            response.headers_mut().remove(header::CONTENT_TYPE);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(status: u16, headers: &[(&str, &str)], body: &'static str) -> Denial {
        Denial {
            status,
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect(),
            body: body.into(),
        }
    }

    fn shown(response: &Response<Body>) -> Vec<String> {
        response.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect()
    }

    /// Measured with Envoy 1.40.
    #[test]
    fn a_denial_looks_as_envoy_makes_it() {
        let headers = [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-type", "text/html"),
            ("content-length", "99"),
            ("transfer-encoding", "chunked"),
            ("Connection", "close, x-a"),
            (":status", "200"),
        ];
        let response = denial(401, &headers, "go away").response(false).unwrap();
        assert_eq!(response.status(), 401);
        assert_eq!(
            shown(&response),
            ["set-cookie: a=1", "set-cookie: b=2", "content-type: text/html", "content-length: 7"]
        );
        let response = denial(0, &[], "").response(false).unwrap();
        assert_eq!((response.status(), response.headers().len()), (StatusCode::FORBIDDEN, 0));
        let response = denial(302, &[("location", "https://l/")], "").response(false).unwrap();
        assert_eq!(
            (response.status(), shown(&response)),
            (StatusCode::FOUND, vec!["location: https://l/".into()])
        );
        let response =
            denial(302, &[("location", "/a"), ("location", ""), ("Location", "/b")], "").response(false);
        assert_eq!(shown(&response.unwrap()), ["location: /a,/b"]);
        assert_eq!(denial(429, &[], "slow").response(false).unwrap().headers()["content-type"], "text/plain");
    }

    /// Measured with Envoy 1.40.
    #[test]
    fn a_grpc_caller_gets_trailers_only() {
        let headers = [("x-a", "1"), ("content-type", "text/html")];
        let response = denial(401, &headers, "go away").response(true).unwrap();
        assert_eq!(response.status(), 200);
        let mut shown = shown(&response);
        shown.sort();
        assert_eq!(
            shown,
            ["content-type: application/grpc", "grpc-message: go away", "grpc-status: 16", "x-a: 1"]
        );
        let own = denial(401, &[("grpc-status", "5")], "").response(true).unwrap();
        assert_eq!(own.headers()["grpc-status"], "5");
        assert!(!own.headers().contains_key("grpc-message"));
    }

    #[test]
    fn nothing_is_smuggled_in_a_denial() {
        for (name, value) in
            [("x-a", "a\r\nx-b: c"), ("x a", "b"), ("x-a\r\nx-b", "c"), ("", "a"), ("x-a", "a\0")]
        {
            assert!(denial(401, &[(name, value)], "").response(false).is_err(), "{name:?}: {value:?}");
        }
        for status in [99, 100, 101, 103, 1000] {
            assert_eq!(denial(status, &[], "").response(false).unwrap().status(), 403, "{status}");
        }
    }
}

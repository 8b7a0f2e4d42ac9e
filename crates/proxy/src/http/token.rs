//! Tokens of requests: verified before policy looks, and again while a stream lives that they opened.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, StatusCode, Uri};
use maille_policy::Claims;
use maille_policy::authentication::{Authentication, Changes, TokenRefused, TokenRequest, Verified};
use maille_telemetry::RefusalKind;

use crate::http::head::{self, Headers};
use crate::record::Refused;
use crate::worker::Worker;

/// What frames and routes a message: no claim is written there, whatever a rule says.
const UNTOUCHABLE: [HeaderName; 6] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// What the tokens of an accepted request say.
#[derive(Default)]
pub(crate) struct Token {
    /// `None`: it has none.
    pub(crate) claims: Option<Arc<Claims>>,
    /// Kept if the request may become a stream.
    pub(crate) standing: Option<Box<Standing>>,
}

/// By what a stream was admitted, so that it can be judged again: the request as it came, tokens included.
#[derive(Debug)]
pub(crate) struct Standing {
    method: http::Method,
    /// With its query.
    path: String,
    headers: HeaderMap,
    /// The rules that it was verified by.
    by: Arc<Authentication>,
    /// When the first of its tokens ceases to be good; `None`: never.
    expires: Option<SystemTime>,
}

/// A request whose token is no good.
pub(crate) struct NoGood {
    pub(crate) status: StatusCode,
    /// The body of the answer.
    pub(crate) text: &'static str,
    /// The value of `www-authenticate`.
    pub(crate) challenge: Option<HeaderValue>,
    pub(crate) refused: Refused,
}

/// Verifies a request's tokens and carries out what follows for its headers and its query. Costs nothing if no rule
/// applies; `may_switch` says whether the request asks to become a stream.
pub(crate) fn verify<B>(
    worker: &Worker,
    request: &mut Request<B>,
    is_tls: bool,
    may_switch: bool,
) -> Result<Token, Box<NoGood>> {
    let by = match worker.authentication() {
        Some(by) => by,
        None if !may_switch => return Ok(Token::default()),
        // Rules may come while the stream lives.
        None => worker.snapshot().authentication.clone(),
    };
    let verified = look_at(worker, &by, request.method(), head::path(request), request.headers());
    let Verified { claims, changes, expires } =
        verified.map_err(|refused| no_good(&refused, request, is_tls))?;
    let standing = may_switch.then(|| {
        Box::new(Standing {
            method: request.method().clone(),
            path: head::path(request).to_owned(),
            headers: request.headers().clone(),
            by,
            expires,
        })
    });
    if !changes.is_empty() {
        change(request, changes);
    }
    Ok(Token { claims, standing })
}

impl Standing {
    /// What the tokens say under the rules in force now. `Err`: they are no good any more.
    pub(crate) fn review(
        &mut self,
        worker: &Worker,
        in_force: &Arc<Authentication>,
    ) -> Result<Option<Arc<Claims>>, Refused> {
        let verified = look_at(worker, in_force, &self.method, &self.path, &self.headers);
        let Verified { claims, expires, .. } = verified.map_err(|refused| self::refused(&refused))?;
        self.by = in_force.clone();
        self.expires = expires;
        Ok(claims)
    }

    /// Whether the rules have changed since the tokens were verified.
    pub(crate) fn is_of_other_rules(&self, in_force: &Arc<Authentication>) -> bool {
        !Arc::ptr_eq(&self.by, in_force)
    }

    /// Whether a token has expired, the allowance for clocks included.
    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

fn look_at(
    worker: &Worker,
    rules: &Authentication,
    method: &http::Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Verified, TokenRefused> {
    let request = TokenRequest { method: method.as_str(), path, headers: &Headers(headers) };
    rules.verify(&request, SystemTime::now(), &mut worker.tokens.borrow_mut())
}

fn refused(refused: &TokenRefused) -> Refused {
    Refused::new(RefusalKind::InvalidToken, refused.to_string()).with_details(refused.details())
}

fn no_good<B>(refused: &TokenRefused, request: &Request<B>, is_tls: bool) -> Box<NoGood> {
    let challenge = refused.challenge(scheme(request, is_tls), head::authority(request), head::path(request));
    Box::new(NoGood {
        status: StatusCode::from_u16(refused.status).unwrap_or(StatusCode::UNAUTHORIZED),
        text: refused.reason,
        challenge: HeaderValue::from_str(&challenge).ok(),
        refused: self::refused(refused),
    })
}

/// As Envoy has it for a sidecar: what a proxy before it said, else how the caller came.
fn scheme<B>(request: &Request<B>, is_tls: bool) -> &'static str {
    let said = request.headers().get("x-forwarded-proto").map(HeaderValue::as_bytes);
    match said.or_else(|| request.uri().scheme().map(|scheme| scheme.as_str().as_bytes())) {
        Some(said) if said.eq_ignore_ascii_case(b"https") => "https",
        Some(said) if said.eq_ignore_ascii_case(b"http") => "http",
        _ if is_tls => "https",
        _ => "http",
    }
}

fn change<B>(request: &mut Request<B>, changes: Changes) {
    let headers = request.headers_mut();
    let name = |text: &str| HeaderName::try_from(text).ok().filter(|name| !UNTOUCHABLE.contains(name));
    for removed in changes.remove.iter().filter_map(|text| name(text)) {
        headers.remove(removed);
    }
    for (text, value) in &changes.append {
        if let (Some(name), Ok(value)) = (name(text), HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    }
    if let Some(path) = changes.path
        && let Ok(path) = PathAndQuery::try_from(path)
    {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        if parts.authority.is_some() && parts.scheme.is_none() {
            parts.scheme = Some(Scheme::HTTP);
        }
        parts.path_and_query = Some(path);
        // The other parts were a URI before.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
}

//! What is asked about a request, and the answers.

use std::sync::Arc;
use std::time::SystemTime;

use super::status::Status;
use crate::{Claims, HeaderLookup};

/// The parts of a request that tokens are looked for in.
#[derive(Clone, Copy)]
pub struct TokenRequest<'a> {
    /// As sent.
    pub method: &'a str,
    /// With its query, as it will be forwarded.
    pub path: &'a str,
    /// All headers.
    pub headers: &'a dyn HeaderLookup,
}

/// A request that may go on to authorization.
#[derive(Clone)]
pub struct Verified {
    /// What the token says; `None`: the request has none.
    pub claims: Option<Arc<Claims>>,
    /// What to do to the request before anything else looks at it.
    pub changes: Changes,
    /// When its tokens cease to be good (the first of them, with the allowance for clocks); `None`: never. What was
    /// upgraded with it must not live longer.
    pub expires: Option<SystemTime>,
}

impl std::fmt::Debug for Verified {
    /// Without claims and header values, which may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified")
            .field("has_claims", &self.claims.is_some())
            .field("removes", &self.changes.remove)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// What verification changes of a request. First the removals, then the additions.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Headers to remove with all their values, in lower case: the accepted token's own, unless it is forwarded, and
    /// every header that any rule writes, so that no caller can forge one.
    pub remove: Vec<Arc<str>>,
    /// Headers to append, in lower case; the values are legal as such. One name may occur twice, if the request has
    /// two tokens.
    pub append: Vec<(Arc<str>, Box<str>)>,
    /// The path with the query without the accepted token's parameter; `None`: as it was.
    pub path: Option<String>,
}

impl Changes {
    /// Whether the request stays as it came.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.append.is_empty() && self.path.is_none()
    }
}

impl std::fmt::Debug for Changes {
    /// Without values, which are claims.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let appended: Vec<&str> = self.append.iter().map(|(name, _)| name.as_ref()).collect();
        f.debug_struct("Changes")
            .field("remove", &self.remove)
            .field("append", &appended)
            .field("strips_query", &self.path.is_some())
            .finish()
    }
}

/// A request whose token is no good. What it holds may be logged and shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (issuer '{issuer}' of request authentication {policy})")]
pub struct TokenRefused {
    /// Body of the response; Envoy's words.
    pub reason: &'static str,
    /// 401, or 403 if only the audience is wrong.
    pub status: u16,
    /// `<namespace>/<name>` of the policy whose rule refused.
    pub policy: Arc<str>,
    /// The issuer of that rule.
    pub issuer: Arc<str>,
}

impl TokenRefused {
    pub(super) fn new(status: Status, policy: &Arc<str>, issuer: &Arc<str>) -> Self {
        let code = if status == Status::AudienceNotAllowed { 403 } else { 401 };
        Self { reason: status.text(), status: code, policy: policy.clone(), issuer: issuer.clone() }
    }

    /// The response code details of the access log (reference authorization 16).
    pub fn details(&self) -> String {
        format!("jwt_authn_access_denied{{{}}}", self.reason.replace(' ', "_"))
    }

    /// The value of `www-authenticate` (reference authorization 16). `path` is the one that was asked for, with its
    /// query; like Envoy, this names no more than its first 256 bytes.
    pub fn challenge(&self, scheme: &str, authority: &str, path: &str) -> String {
        let end = path.floor_char_boundary(256);
        let path = path.get(..end).unwrap_or_default();
        format!("Bearer realm=\"{scheme}://{authority}{path}\", error=\"invalid_token\"")
    }
}

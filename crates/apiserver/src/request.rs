//! What a request asks for: path and query, taken apart once.
//!
//! Source: apiserver `endpoints/request.RequestInfo`.

use std::collections::HashMap;

use crate::resources::{self, Resource};
use crate::status::{ApiError, ApiResult};

/// Query parameters; of a repeated one, all values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key, true)).or_default().push(decode(value, true));
        }
        Self(map)
    }

    /// The value of a parameter; absent and empty are the same.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.first().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// All values of a parameter, in their order.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Whether a switch is on.
    pub(crate) fn flag(&self, name: &str) -> bool {
        // A switch without a value is on, as in Go's conversion of `?watch`.
        self.0.get(name).and_then(|v| v.first()).is_some_and(|v| !matches!(v.as_str(), "false" | "0"))
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> ApiResult<Option<i64>> {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::bad_request(format!("parameter {name}: '{text}' is not a number")))
            })
            .transpose()
    }

    /// Whether nothing must be kept (`dryRun=All`).
    pub(crate) fn dry_run(&self) -> ApiResult<bool> {
        match self.text("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
            ))),
        }
    }
}

/// Undoes percent-encoding; what is no valid escape stays, what is no UTF-8 is replaced.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = || {
            let hex = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            u8::from_str_radix(hex, 16).ok()
        };
        match byte {
            b'%' => match escape() {
                Some(decoded) => {
                    out.push(decoded);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus_is_space => out.push(b' '),
            other => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path below a group and version.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: &'static Resource,
    /// The version asked for.
    pub(crate) version: &'static str,
    /// The namespace in the path; `None` for all of them, or for what is in none.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What follows the subresource, for `proxy`; begins with `/` unless empty.
    pub(crate) rest: String,
}

impl Target {
    /// The namespace, or `""`.
    pub(crate) fn ns(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// Where a request leads.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// `/api`, `/apis`, `/apis/g`, `/api/v1`, `/apis/g/v`.
    Discovery(Vec<String>),
    /// `/openapi/v2`, `/openapi/v3`, `/openapi/v3/…`.
    OpenApi(Vec<String>),
    /// Health, version: the name.
    Plain(String),
    /// Objects.
    Objects(Target),
}

/// Reads a path.
pub(crate) fn route(path: &str) -> ApiResult<Route> {
    let raw: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let segments: Vec<String> = raw.iter().map(|s| decode(s, false)).collect();
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["healthz" | "readyz" | "livez", ..] | ["version"] | [] => {
            return Ok(Route::Plain(words.first().copied().unwrap_or_default().to_owned()));
        }
        ["openapi", ..] => return Ok(Route::OpenApi(segments)),
        ["api"] | ["apis"] | ["api", _] | ["apis", _] | ["apis", _, _] => {
            return Ok(Route::Discovery(segments));
        }
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(ApiError::path_not_found()),
    };
    let consumed = words.len() - rest.len();
    let (namespace, rest, consumed) = match rest {
        // The Namespace objects themselves.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => {
            (None, rest, consumed)
        }
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest, consumed + 2),
        rest => (None, rest, consumed),
    };
    let (plural, name, subresource, extra) = match rest {
        [plural] => (*plural, None, None, None),
        [plural, name] => (*plural, Some(*name), None, None),
        [plural, name, sub] => (*plural, Some(*name), Some(*sub), None),
        [plural, name, sub, ..] => (*plural, Some(*name), Some(*sub), Some(consumed + 3)),
        [] => return Err(ApiError::path_not_found()),
    };
    let resource = resources::find(group, version, plural).ok_or_else(ApiError::path_not_found)?;
    let version =
        resource.versions.iter().find(|v| **v == version).copied().ok_or_else(ApiError::path_not_found)?;
    let in_namespace = namespace.is_some();
    if in_namespace && !resource.namespaced || resource.namespaced && !in_namespace && name.is_some() {
        return Err(ApiError::path_not_found());
    }
    // Proxied paths keep their own encoding and slashes.
    let rest = match extra {
        None if subresource == Some("proxy") && path.ends_with('/') => "/".to_owned(),
        None => String::new(),
        Some(skip) => {
            let mut rest: String =
                raw.get(skip..).unwrap_or_default().iter().flat_map(|s| ["/", s]).collect();
            if path.ends_with('/') {
                rest.push('/');
            }
            rest
        }
    };
    if !rest.is_empty() && subresource != Some("proxy") {
        return Err(ApiError::path_not_found());
    }
    Ok(Route::Objects(Target {
        resource,
        version,
        namespace,
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
        rest,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> Target {
        match route(path) {
            Ok(Route::Objects(target)) => target,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        let pod = objects("/api/v1/namespaces/a/pods/b/log");
        assert_eq!(
            (pod.ns(), pod.name.as_deref(), pod.subresource.as_deref()),
            ("a", Some("b"), Some("log"))
        );
        let all = objects("/apis/security.istio.io/v1beta1/peerauthentications");
        assert_eq!((all.version, all.namespace.is_none(), all.name.is_none()), ("v1beta1", true, true));
        let ns = objects("/api/v1/namespaces/a");
        assert_eq!((ns.resource.kind, ns.name.as_deref()), ("Namespace", Some("a")));
        let proxy = objects("/api/v1/namespaces/a/services/http:b:80/proxy/x%2Fy/z/");
        assert_eq!((proxy.name.as_deref(), proxy.rest.as_str()), (Some("http:b:80"), "/x%2Fy/z/"));
    }

    #[test]
    fn unknown_paths_are_not_found() {
        for path in
            ["/x", "/api/v2/pods", "/apis/apps/v1/pods", "/api/v1/pods/x", "/api/v1/namespaces/a/nodes"]
        {
            assert!(route(path).is_err(), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_or_query_panics(path in ".{0,60}", query in ".{0,60}") {
            let _ = route(&path);
            let _ = Query::parse(&query);
        }
    }
}

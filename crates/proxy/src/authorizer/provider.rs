//! Whom CUSTOM rules may ask, checked once per change of the mesh's settings.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use maille_proto::facts::{CheckBody, ExtAuthzHttp, ExtensionProvider, extension_provider};

/// Istio's default where a provider has none.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Checks that a worker lets one provider have under way. A provider that hangs may keep its requests waiting, not the
/// worker's memory growing: beyond it a check counts as failed.
const UNDER_WAY: usize = 1024;

/// All that the settings name.
#[derive(Debug, Default)]
pub(super) struct Providers(Vec<Named>);

/// A provider, or why it cannot be asked.
#[derive(Debug)]
struct Named {
    name: Box<str>,
    provider: Result<Rc<Provider>, Box<str>>,
}

/// Somebody who can be asked.
#[derive(Debug)]
pub(super) struct Provider {
    /// What it was made of, to see whether it changed.
    wire: ExtensionProvider,
    /// In lower case, without final dot.
    pub(super) host: Box<str>,
    pub(super) port: u16,
    pub(super) timeout: Duration,
    pub(super) fail_open: bool,
    pub(super) status_on_error: StatusCode,
    pub(super) body: Option<CheckBody>,
    pub(super) kind: Kind,
    under_way: Cell<usize>,
}

/// How it is asked.
#[derive(Debug)]
pub(super) enum Kind {
    Grpc,
    Http(HttpSettings),
}

/// What the HTTP form can be told.
#[derive(Debug, Default)]
pub(super) struct HttpSettings {
    /// Before the path of the check; may be empty.
    pub(super) path_prefix: Box<str>,
    /// Headers of the request that are shown, beyond those that always are.
    pub(super) shown: Names,
    /// Headers of every check.
    pub(super) additional: Vec<(HeaderName, HeaderValue)>,
    pub(super) to_upstream: Names,
    pub(super) to_caller_on_deny: Names,
    pub(super) to_caller_on_allow: Names,
}

/// Header names as Istio's lists have them: exact, `prefix*` or `*suffix`, without case.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Pattern>);

#[derive(Debug)]
enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

impl Names {
    fn compile(field: &str, patterns: &[String]) -> Result<Self, String> {
        let compile = |pattern: &String| {
            let pattern = pattern.to_ascii_lowercase();
            // In this order, so that `*a*` is the suffix `a*` (Istio `generateHeaders`).
            if let Some(suffix) = pattern.strip_prefix('*') {
                match suffix {
                    "" => Err(format!("{field} has a bare '*', which Istio refuses")),
                    suffix => Ok(Pattern::Suffix(suffix.into())),
                }
            } else if let Some(prefix) = pattern.strip_suffix('*') {
                Ok(Pattern::Prefix(prefix.into()))
            } else {
                Ok(Pattern::Exact(pattern.into()))
            }
        };
        patterns.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name in lower case is among them.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => **exact == *name,
            Pattern::Prefix(prefix) => name.starts_with(&**prefix),
            Pattern::Suffix(suffix) => name.ends_with(&**suffix),
        })
    }
}

impl Providers {
    /// `known` are the providers until now: one that has not changed keeps its account of checks under way.
    pub(super) fn compile(settings: &[ExtensionProvider], known: Option<&Self>) -> Self {
        let compile = |wire: &ExtensionProvider| {
            let same = known.and_then(|known| known.find(&wire.name).ok()).filter(|same| same.wire == *wire);
            let provider = match same {
                Some(same) => Ok(same),
                None => Provider::compile(wire).map(Rc::new).map_err(Into::into),
            };
            Named { name: wire.name.as_str().into(), provider }
        };
        Self(settings.iter().map(compile).collect())
    }

    /// The provider of a name, or why there is none.
    pub(super) fn find(&self, name: &str) -> Result<Rc<Provider>, String> {
        match self.0.iter().find(|named| *named.name == *name).map(|named| &named.provider) {
            Some(Ok(provider)) => Ok(provider.clone()),
            Some(Err(problem)) => Err(problem.to_string()),
            None => Err("the mesh configuration has no extensionProviders entry of this name".to_owned()),
        }
    }
}

impl Provider {
    fn compile(wire: &ExtensionProvider) -> Result<Self, String> {
        if !wire.problem.is_empty() {
            return Err(wire.problem.clone());
        }
        let host = wire.host.trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        let port = u16::try_from(wire.port).ok().filter(|port| *port > 0);
        let status = u16::try_from(wire.status_on_error).ok().filter(|status| *status != 0);
        let status_on_error = match status {
            None => StatusCode::FORBIDDEN,
            Some(status) => StatusCode::from_u16(status)
                .ok()
                .filter(|status| status.as_u16() >= 200)
                .ok_or_else(|| format!("statusOnError {status} cannot answer a request"))?,
        };
        let kind = match &wire.kind {
            Some(extension_provider::Kind::Grpc(_)) => Kind::Grpc,
            Some(extension_provider::Kind::Http(http)) => Kind::Http(HttpSettings::compile(http)?),
            None => return Err("it is of a kind that this proxy does not know".to_owned()),
        };
        Ok(Self {
            host: host.into(),
            port: port.ok_or_else(|| format!("{} is no port", wire.port))?,
            timeout: match wire.timeout_ms {
                0 => TIMEOUT,
                milliseconds => Duration::from_millis(milliseconds.into()),
            },
            fail_open: wire.fail_open,
            status_on_error,
            body: wire.body,
            kind,
            under_way: Cell::new(0),
            wire: wire.clone(),
        })
    }

    /// A place among the checks under way, if there is one.
    pub(super) fn enter(self: &Rc<Self>) -> Result<UnderWay, String> {
        let under_way = self.under_way.get();
        if under_way >= UNDER_WAY {
            return Err(format!("{under_way} checks wait for its answer already"));
        }
        self.under_way.set(under_way + 1);
        Ok(UnderWay(self.clone()))
    }
}

/// A check under way.
pub(super) struct UnderWay(Rc<Provider>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get().saturating_sub(1));
    }
}

impl HttpSettings {
    fn compile(wire: &ExtAuthzHttp) -> Result<Self, String> {
        let prefix = wire.path_prefix.as_str();
        if !prefix.is_empty() && !prefix.starts_with('/') {
            return Err(format!("pathPrefix '{prefix}' does not begin with '/'"));
        }
        let additional = wire.include_additional_headers.iter().map(|(name, value)| {
            let illegal = || format!("includeAdditionalHeadersInCheck: '{name}' is no legal header");
            let name = HeaderName::try_from(name).map_err(|_| illegal())?;
            let value = HeaderValue::try_from(value).map_err(|_| illegal())?;
            Ok((name, value))
        });
        Ok(Self {
            path_prefix: prefix.into(),
            shown: Names::compile("includeRequestHeadersInCheck", &wire.include_request_headers)?,
            additional: additional.collect::<Result<_, String>>()?,
            to_upstream: Names::compile("headersToUpstreamOnAllow", &wire.headers_to_upstream_on_allow)?,
            to_caller_on_deny: Names::compile(
                "headersToDownstreamOnDeny",
                &wire.headers_to_downstream_on_deny,
            )?,
            to_caller_on_allow: Names::compile(
                "headersToDownstreamOnAllow",
                &wire.headers_to_downstream_on_allow,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use maille_proto::facts::ExtAuthzGrpc;

    use super::*;

    fn wire(name: &str) -> ExtensionProvider {
        ExtensionProvider {
            name: name.to_owned(),
            host: "Authz.Example.".to_owned(),
            port: 9000,
            kind: Some(extension_provider::Kind::Grpc(ExtAuthzGrpc {})),
            ..ExtensionProvider::default()
        }
    }

    #[test]
    fn defaults_are_istios() {
        let provider = Provider::compile(&wire("a")).unwrap();
        assert_eq!((&*provider.host, provider.timeout), ("authz.example", Duration::from_secs(600)));
        assert_eq!((provider.status_on_error, provider.fail_open), (StatusCode::FORBIDDEN, false));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let with = |change: fn(&mut ExtensionProvider)| {
            let mut wire = wire("a");
            change(&mut wire);
            Providers::compile(&[wire], None).find("a").unwrap_err()
        };
        assert_eq!(with(|p| p.problem = "unknown service".to_owned()), "unknown service");
        assert!(with(|p| p.host.clear()).contains("no host"));
        assert!(with(|p| p.port = 65_536).contains("65536"));
        assert!(with(|p| p.status_on_error = 100).contains("100"));
        assert!(with(|p| p.kind = None).contains("kind"));
        let http = |change: fn(&mut ExtAuthzHttp)| {
            let mut http = ExtAuthzHttp::default();
            change(&mut http);
            HttpSettings::compile(&http).unwrap_err()
        };
        assert!(http(|h| h.path_prefix = "check".to_owned()).contains("pathPrefix"));
        assert!(http(|h| h.headers_to_upstream_on_allow = vec!["*".to_owned()]).contains("bare '*'"));
        let broken = ("x-a".to_owned(), "a\r\nx-b: c".to_owned());
        assert!(
            HttpSettings::compile(&ExtAuthzHttp {
                include_additional_headers: [broken].into(),
                ..ExtAuthzHttp::default()
            })
            .is_err()
        );
        assert!(Providers::default().find("b").unwrap_err().contains("no extensionProviders entry"));
    }

    #[test]
    fn header_lists_are_exact_prefix_or_suffix_without_case() {
        let names = ["X-Exact", "X-Pre*", "*-Suf", "*a*"].map(str::to_owned);
        let names = Names::compile("f", &names).unwrap();
        for name in ["x-exact", "x-pre", "x-prefix", "x-suf", "ba*"] {
            assert!(names.contains(name), "{name}");
        }
        for name in ["x-exactly", "y-pre", "suf", "a", "ba"] {
            assert!(!names.contains(name), "{name}");
        }
    }

    #[test]
    fn a_hung_provider_holds_a_bounded_number_of_checks_also_when_the_settings_change() {
        let first = Providers::compile(&[wire("a")], None);
        let held: Vec<_> = (0..UNDER_WAY).map(|_| first.find("a").unwrap().enter().unwrap()).collect();
        let next = Providers::compile(&[wire("b"), wire("a")], Some(&first));
        assert!(next.find("a").unwrap().enter().is_err());
        assert!(next.find("b").unwrap().enter().is_ok());
        drop(held);
        assert!(next.find("a").unwrap().enter().is_ok());
    }
}

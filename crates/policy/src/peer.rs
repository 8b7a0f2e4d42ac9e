//! Patterns over the peer's identity (reference authorization 12).

use maille_core::Identity;

use crate::TrustContext;
use crate::index::key::KeyValue;
use crate::text::{TextPattern, TextSet};

const SCHEME: &str = "spiffe://";

/// A `principals` value as a pattern over the full URI (12.1).
pub(crate) fn principal_pattern(value: &str) -> TextPattern {
    match TextPattern::parse(value) {
        TextPattern::Exact(text) => TextPattern::Exact(format!("{SCHEME}{text}")),
        TextPattern::Prefix(text) => TextPattern::Prefix(format!("{SCHEME}{text}")),
        // Every identity begins with the scheme, so that only the end is left to test.
        other => other,
    }
}

/// A `principals` value once per trust domain that it stands for (12.5).
pub(crate) fn expand_principal(value: &str, trust: &TrustContext) -> Vec<String> {
    let parts: Vec<&str> = value.split('/').collect();
    let [domain, rest @ ..] = parts.as_slice() else { return vec![value.to_owned()] };
    let domains = trust.domains();
    let ours = *domain == "cluster.local" || domains.iter().any(|d| overlaps(d, domain));
    if parts.len() != 5 || *domain == "*" || !ours {
        return vec![value.to_owned()];
    }
    let mut expanded = Vec::new();
    for ours in domains {
        let principal = match domain.strip_prefix('*') {
            Some(end) if ours.ends_with(end) => value.to_owned(),
            _ => format!("{ours}/{}", rest.join("/")),
        };
        if !expanded.contains(&principal) {
            expanded.push(principal);
        }
    }
    expanded
}

/// Whether two texts, either of which may have a `*` at an end, are equal or one fits the other.
fn overlaps(a: &str, b: &str) -> bool {
    let fits = |text: &str, pattern: &str| {
        pattern.strip_suffix('*').is_some_and(|start| text.starts_with(start))
            || pattern.strip_prefix('*').is_some_and(|end| text.ends_with(end))
    };
    a == b || fits(a, b) || fits(b, a)
}

/// `trustDomains` values: one that names the mesh's own stands for all of its names (12.5).
pub(crate) fn expand_trust_domains(values: &[String], trust: &TrustContext) -> Vec<String> {
    let own = trust.domains();
    let mut expanded: Vec<String> = Vec::new();
    for value in values {
        let names: Vec<&str> = if own.contains(&value.as_str()) { own.clone() } else { vec![value] };
        for name in names {
            if !expanded.iter().any(|e| e == name) {
                expanded.push(name.to_owned());
            }
        }
    }
    expanded
}

/// Patterns over the trust domain (12.4): one `*`, anywhere, stands for any run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TrustDomainSet {
    ends: TextSet,
    /// `a*b` as its two sides.
    middles: Vec<(String, String)>,
}

impl TrustDomainSet {
    pub(crate) fn parse(values: &[String]) -> Result<Self, String> {
        let (mut ends, mut middles) = (Vec::new(), Vec::new());
        for value in values {
            if value.contains('/') {
                return Err(format!("'{value}' has a '/', which a trust domain cannot have"));
            }
            match value.split_once('*') {
                Some((_, after)) if after.contains('*') => {
                    return Err(format!("'{value}' has more than one '*'"));
                }
                Some((before, after)) if !before.is_empty() && !after.is_empty() => {
                    middles.push((before.to_owned(), after.to_owned()));
                }
                _ => ends.push(TextPattern::parse(value)),
            }
        }
        middles.sort();
        Ok(Self { ends: TextSet::new(&ends, false), middles })
    }

    /// The keys of which a trust domain must hit one to match.
    pub(crate) fn keys(&self) -> Vec<KeyValue> {
        let starts = self.middles.iter().map(|(start, _)| KeyValue::Prefix(start.as_bytes().into()));
        self.ends.keys().into_iter().chain(starts).collect()
    }

    pub(crate) fn matches(&self, domain: &str) -> bool {
        self.ends.matches(domain.as_bytes())
            || self.middles.iter().any(|(start, end)| {
                domain.strip_prefix(start.as_str()).is_some_and(|rest| rest.ends_with(end.as_str()))
            })
    }
}

/// A `namespaces` value: `*` anywhere stands for anything, slashes included (12.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NamespacePattern {
    /// Literal runs that must follow each other in the URI, anything between them.
    runs: Vec<String>,
}

impl NamespacePattern {
    pub(crate) fn parse(value: &str) -> Self {
        Self { runs: format!("/ns/{value}/").split('*').map(str::to_owned).collect() }
    }

    /// `Ok`: the pattern is this one namespace. `Err`: what follows `/ns/` begins with this text.
    pub(crate) fn literal(&self) -> Result<&str, &str> {
        let first = self.runs.first().map_or("", |run| run.strip_prefix("/ns/").unwrap_or_default());
        match first.strip_suffix('/') {
            Some(namespace) if self.runs.len() == 1 && !namespace.contains('/') => Ok(namespace),
            _ => Err(first),
        }
    }

    /// Whether the pattern is found in the full URI.
    pub(crate) fn matches(&self, uri: &str) -> bool {
        // Anything may stand before the first run and after the last, so that taking each run where it
        // first occurs loses no match.
        let mut rest = uri;
        self.runs.iter().all(|run| match rest.find(run.as_str()) {
            Some(at) => {
                rest = rest.get(at + run.len()..).unwrap_or_default();
                true
            }
            None => false,
        })
    }
}

/// A `serviceAccounts` value: `sa` of the policy's own namespace, or `ns/sa` (12.3).
pub(crate) fn service_account(value: &str, policy_namespace: &str) -> Result<(String, String), String> {
    let (namespace, account) = value.split_once('/').unwrap_or((policy_namespace, value));
    if namespace.is_empty()
        || account.is_empty()
        || account.contains('/')
        || value.contains('*')
        || value.len() > 320
    {
        return Err(format!("'{value}' is neither <account> nor <namespace>/<account>, without '*'"));
    }
    Ok((namespace.to_owned(), account.to_owned()))
}

/// Whether the peer is one of the accounts (sorted pairs of namespace and account); the trust domain
/// does not matter.
pub(crate) fn is_one_of(accounts: &[(String, String)], peer: &Identity) -> bool {
    let wanted = (peer.namespace(), peer.service_account());
    accounts
        .binary_search_by(|(namespace, account)| (namespace.as_str(), account.as_str()).cmp(&wanted))
        .is_ok()
}

//! Hosts as DestinationRules and ServiceEntries name them.

use maille_core::Hostname;

/// A host, or all hosts that end in something: `api.example.com`, `*.example.com`, `*`. In lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(String);

impl HostPattern {
    /// A host as it stands in a ServiceEntry.
    pub fn new(text: &str) -> Self {
        Self(text.to_ascii_lowercase())
    }

    /// The host of a DestinationRule: a name without a dot is a Service of the rule's namespace (reference mtls
    /// 2.3, 1).
    pub fn of_rule(host: &str, namespace: &str, cluster_domain: &str) -> Self {
        if host.is_empty() || host == "*" || host.contains('.') || host.contains(':') {
            Self::new(host)
        } else {
            Self::new(&format!("{host}.{namespace}.svc.{cluster_domain}"))
        }
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What hosts end in, if this is a wildcard; empty for `*`.
    pub fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }

    /// Whether every host that `other` means is meant here too.
    pub fn covers(&self, other: &Self) -> bool {
        let Some(suffix) = self.suffix() else { return self.0 == other.0 };
        match other.suffix() {
            Some(longer) => longer.ends_with(suffix),
            // A wildcard stands for at least one character.
            None => other.0.len() > suffix.len() && other.0.ends_with(suffix),
        }
    }

    /// Sorts the more specific first: exact hosts, then wildcards, the longest first.
    pub(crate) fn specificity(&self) -> (bool, usize) {
        (self.suffix().is_none(), self.0.len())
    }
}

/// Why a text names neither a host nor, with `*` in front, all that end in something; `None` if it does.
pub(crate) fn problem(text: &str) -> Option<&'static str> {
    let rest = text.strip_prefix('*').unwrap_or(text);
    if rest.contains('*') {
        return Some("has a '*' that is not its first character");
    }
    if rest.is_empty() {
        return text.is_empty().then_some("is empty");
    }
    // The wildcard stands for the first label, or for its beginning.
    let name = match rest.strip_prefix('.') {
        Some(rest) if text.starts_with('*') => rest.to_owned(),
        _ if text.starts_with('*') => format!("x{rest}"),
        _ => rest.to_owned(),
    };
    let labels_end_well = || name.split('.').all(|l| !l.starts_with('-') && !l.ends_with('-'));
    let valid = Hostname::parse(&name).is_ok() && !name.ends_with('.');
    (!valid || !labels_end_well()).then_some("is no host name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_ends_as_they_do() {
        let covers = |a: &str, b: &str| HostPattern::new(a).covers(&HostPattern::new(b));
        for (pattern, host, expected) in [
            ("a.corp", "A.corp", true),
            ("a.corp", "b.a.corp", false),
            ("*.corp", "a.corp", true),
            ("*.corp", "b.a.corp", true),
            ("*.corp", "corp", false),
            ("*.corp", ".corp", false),
            ("*.corp", "*.a.corp", true),
            ("*.corp", "*.corp", true),
            ("*.a.corp", "*.corp", false),
            ("a.corp", "*.corp", false),
            ("*-a.corp", "x-a.corp", true),
            ("*", "a.corp", true),
            ("*", "*.corp", true),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn short_names_of_rules_are_services_of_their_namespace() {
        let of = |host| HostPattern::of_rule(host, "client", "cluster.local").0;
        assert_eq!(of("web"), "web.client.svc.cluster.local", "DR-15");
        assert_eq!(of("web.shop"), "web.shop");
        assert_eq!(of("*"), "*");
        assert_eq!(of("*.Local"), "*.local");
    }

    #[test]
    fn hosts_are_read_as_istio_does() {
        for good in ["a", "a.b", "*.b", "*-a.b", "*b", "*", "A.b", "10.0.0.1"] {
            assert_eq!(problem(good), None, "{good}");
        }
        for bad in ["", "a..b", "a.*.b", "**", "*.", "a.b.", ".a", "-a.b", "a-", "a b", "a:80", "https://a"] {
            assert!(problem(bad).is_some(), "{bad}");
        }
    }
}

//! What a viewer asked to see, and the links that ask for something else.

use serde::Deserialize;

use crate::conversation::{Conversation, Key, Verdict};

/// Which edges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Show {
    #[default]
    All,
    Refused,
    /// Whatever was not mutual TLS, refused or not.
    Plaintext,
}

impl Show {
    pub(crate) const EVERY: [(Self, &'static str); 3] =
        [(Self::All, "Everything"), (Self::Refused, "Only refused"), (Self::Plaintext, "Only plaintext")];

    fn parameter(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Refused => Some("refused"),
            Self::Plaintext => Some("plaintext"),
        }
    }
}

/// How far back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Window {
    #[default]
    Minutes5,
    Hour,
    Day,
}

impl Window {
    pub(crate) const EVERY: [(Self, &'static str); 3] =
        [(Self::Minutes5, "5 min"), (Self::Hour, "1 h"), (Self::Day, "24 h")];

    fn parameter(self) -> Option<&'static str> {
        match self {
            Self::Minutes5 => None,
            Self::Hour => Some("1h"),
            Self::Day => Some("24h"),
        }
    }

    pub(crate) fn ms(self) -> u64 {
        match self {
            Self::Minutes5 => 300_000,
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Minutes5 => "5 minutes",
            Self::Hour => "hour",
            Self::Day => "24 hours",
        }
    }
}

/// What is looked at closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Focus {
    Edge(Key, Key),
    Node(Key),
}

/// What a viewer asked to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ViewQuery {
    /// Only this namespace and whom it talks with; an empty name is what is outside of all.
    pub(crate) namespace: Option<String>,
    pub(crate) show: Show,
    pub(crate) window: Window,
    pub(crate) focus: Option<Focus>,
}

/// As it stands in the address. Unknown parameters and values count as not given: links of another version work.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Parameters {
    ns: Option<String>,
    show: Option<String>,
    window: Option<String>,
    from: Option<String>,
    to: Option<String>,
    workload: Option<String>,
}

impl From<Parameters> for ViewQuery {
    fn from(p: Parameters) -> Self {
        let key = |text: &Option<String>| text.as_deref().and_then(Key::parse);
        let focus = match (key(&p.from), key(&p.to), key(&p.workload)) {
            (Some(from), Some(to), _) => Some(Focus::Edge(from, to)),
            (_, _, Some(node)) => Some(Focus::Node(node)),
            _ => None,
        };
        Self {
            namespace: p.ns,
            show: match p.show.as_deref() {
                Some("refused") => Show::Refused,
                Some("plaintext") => Show::Plaintext,
                _ => Show::All,
            },
            window: match p.window.as_deref() {
                Some("1h") => Window::Hour,
                Some("24h") => Window::Day,
                _ => Window::Minutes5,
            },
            focus,
        }
    }
}

impl ViewQuery {
    pub(crate) fn with_show(&self, show: Show) -> Self {
        Self { show, ..self.clone() }
    }

    pub(crate) fn with_window(&self, window: Window) -> Self {
        Self { window, ..self.clone() }
    }

    pub(crate) fn with_namespace(&self, namespace: Option<String>) -> Self {
        Self { namespace, ..self.clone() }
    }

    pub(crate) fn with_focus(&self, focus: Option<Focus>) -> Self {
        Self { focus, ..self.clone() }
    }

    /// The query string, without `?`; empty for the plain page.
    pub(crate) fn parameters(&self) -> String {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        if let Some(namespace) = &self.namespace {
            pairs.push(("ns", namespace.clone()));
        }
        pairs.extend(self.show.parameter().map(|show| ("show", show.to_owned())));
        pairs.extend(self.window.parameter().map(|window| ("window", window.to_owned())));
        match &self.focus {
            Some(Focus::Edge(from, to)) => {
                pairs.push(("from", from.parameter()));
                pairs.push(("to", to.parameter()));
            }
            Some(Focus::Node(node)) => pairs.push(("workload", node.parameter())),
            None => {}
        }
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        pairs.join("&")
    }

    /// The link to this view.
    pub(crate) fn link(&self) -> String {
        match self.parameters() {
            empty if empty.is_empty() => "/".to_owned(),
            parameters => format!("/?{parameters}"),
        }
    }

    pub(crate) fn wants(&self, c: &Conversation, now_ms: u64) -> bool {
        let in_namespace = |ns: &String| c.from.namespace == *ns || c.to.namespace == *ns;
        let shown = match self.show {
            Show::All => true,
            Show::Refused => c.verdict == Verdict::Refused,
            Show::Plaintext => !c.mtls && c.verdict != Verdict::Failed,
        };
        shown
            && self.namespace.as_ref().is_none_or(in_namespace)
            && now_ms.saturating_sub(c.last_seen_ms) <= self.window.ms()
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters and `/`, which a query may hold.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_back_to_the_view_that_wrote_it() {
        let odd = Key::new("a&b", "c d=ü\"<>/e");
        for focus in
            [None, Some(Focus::Node(odd.clone())), Some(Focus::Edge(odd.clone(), Key::new("", "10.0.0.1")))]
        {
            let query =
                ViewQuery { namespace: Some("x y".into()), show: Show::Refused, window: Window::Day, focus };
            let uri: http::Uri = query.link().parse().expect("a link");
            let parsed = axum::extract::Query::<Parameters>::try_from_uri(&uri).expect("parameters");
            assert_eq!(ViewQuery::from(parsed.0), query);
        }
        assert_eq!(ViewQuery::default().link(), "/");
    }
}

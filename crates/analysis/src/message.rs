use std::fmt;

use crate::code::{Code, Level};

/// One finding about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What sort of finding.
    pub code: &'static Code,
    /// The code's level, or one that fits the case better.
    pub level: Level,
    /// The object it is about.
    pub origin: Origin,
    /// `file:line`; `None` for an object that is live.
    pub reference: Option<String>,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// Names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// `AuthorizationPolicy`.
    pub kind: String,
    /// `None` for objects of the whole cluster.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Origin {
    /// The namespace that the object lives in, or is.
    pub fn scope(&self) -> Option<&str> {
        match &self.namespace {
            Some(namespace) => Some(namespace),
            None => (self.kind == "Namespace").then_some(self.name.as_str()),
        }
    }
}

/// `AuthorizationPolicy production/deny-all`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Istio's line: `Warning [IST0103] (Pod production/cart-1 cart.yaml:7) …`.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] ({}", self.level, self.code.code, self.origin)?;
        if let Some(reference) = &self.reference {
            write!(f, " {reference}")?;
        }
        write!(f, ") {}", self.text)
    }
}

/// The worst first, then by code, object, place and text; each once.
pub(crate) fn sort(messages: &mut Vec<Message>) {
    messages.sort_by(|a, b| {
        let key = |m: &Message| (m.code.code, m.origin.clone());
        b.level
            .cmp(&a.level)
            .then_with(|| key(a).cmp(&key(b)))
            .then_with(|| by_place(a.reference.as_deref(), b.reference.as_deref()))
            .then_with(|| a.text.cmp(&b.text))
    });
    messages.dedup();
}

/// `a.yaml:9` before `a.yaml:10`.
fn by_place(a: Option<&str>, b: Option<&str>) -> std::cmp::Ordering {
    let split = |reference: Option<&str>| {
        let (file, line) = reference.and_then(|text| text.rsplit_once(':')).unwrap_or_default();
        (file.to_owned(), line.parse::<u32>().unwrap_or(0))
    };
    split(a).cmp(&split(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code;

    fn message(code: &'static Code, name: &str, reference: &str) -> Message {
        let origin = Origin { kind: "Pod".into(), namespace: Some("shop".into()), name: name.into() };
        let reference = Some(reference.to_owned());
        Message { code, level: code.level, origin, reference, text: "no sidecar".into() }
    }

    #[test]
    fn messages_print_as_istioctl_prints_them() {
        let text = message(&code::POD_MISSING_PROXY, "a", "a.yaml:7").to_string();
        assert_eq!(text, "Warning [IST0103] (Pod shop/a a.yaml:7) no sidecar");
    }

    #[test]
    fn the_worst_comes_first_and_nothing_twice() {
        let mut all = vec![
            message(&code::NAMESPACE_NOT_INJECTED, "a", "a:1"),
            message(&code::POD_MISSING_PROXY, "b", "a:10"),
            message(&code::POD_MISSING_PROXY, "b", "a:9"),
            message(&code::POD_MISSING_PROXY, "b", "a:9"),
            message(&code::REFERENCED_RESOURCE_NOT_FOUND, "z", "a:1"),
        ];
        sort(&mut all);
        let order: Vec<_> = all.iter().map(|m| (m.code.code, m.reference.as_deref())).collect();
        let expected = [
            ("IST0101", Some("a:1")),
            ("IST0103", Some("a:9")),
            ("IST0103", Some("a:10")),
            ("IST0102", Some("a:1")),
        ];
        assert_eq!(order, expected);
    }
}

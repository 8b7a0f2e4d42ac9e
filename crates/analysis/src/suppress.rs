//! `--suppress CODE=KIND NAME.NAMESPACE`: findings that nobody wants to see.

use crate::code;
use crate::message::{Message, Origin};

/// One suppression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    code: String,
    resource: String,
}

impl Suppression {
    /// Reads `IST0102=Namespace frod` or `IST0107=Pod *.baz`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((code, resource)) if !code.is_empty() && !resource.is_empty() => {
                Ok(Self { code: code.to_owned(), resource: resource.to_owned() })
            }
            _ => Err(format!("'{text}' is no suppression; write it like IST0103=\"Pod cart-1.production\"")),
        }
    }

    /// The code, if nothing has it.
    pub fn unknown_code(&self) -> Option<&str> {
        code::find(&self.code).is_none().then_some(self.code.as_str())
    }

    /// Whether it silences a finding.
    pub fn covers(&self, message: &Message) -> bool {
        message.code.code.eq_ignore_ascii_case(&self.code) && fits(&self.resource, &written(&message.origin))
    }
}

/// `Pod cart-1.production`, `Namespace legacy`.
fn written(origin: &Origin) -> String {
    match &origin.namespace {
        Some(namespace) => format!("{} {}.{namespace}", origin.kind, origin.name),
        None => format!("{} {}", origin.kind, origin.name),
    }
}

/// `*` stands for anything, any number of times.
fn fits(pattern: &str, text: &str) -> bool {
    let mut runs = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(runs.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for run in runs {
        // The run before the last star may stand anywhere: taking each where it first occurs loses no match.
        if let Some(previous) = last.replace(run) {
            match rest.split_once(previous) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
    match last {
        Some(end) => rest.ends_with(end),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::POD_MISSING_PROXY;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("Pod a.b", "Pod a.b", true),
            ("Pod a.b", "Pod a.bc", false),
            ("Pod *.b", "Pod x.b", true),
            ("Pod *.b", "Pod x.c", false),
            ("*", "Pod x.c", true),
            ("P*d *.c", "Pod x.c", true),
            ("*a*a", "a", false),
            ("*a*a", "xaya", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_suppression_names_code_and_object() {
        let origin = Origin { kind: "Pod".into(), namespace: Some("shop".into()), name: "cart-1".into() };
        let code = &POD_MISSING_PROXY;
        let message = Message { code, level: code.level, origin, reference: None, text: String::new() };
        let covers = |text: &str| Suppression::parse(text).expect("reads").covers(&message);
        assert!(covers("IST0103=Pod cart-1.shop") && covers("ist0103=Pod *.shop"));
        assert!(!covers("IST0102=Pod cart-1.shop") && !covers("IST0103=Pod cart-2.shop"));
        assert!(Suppression::parse("IST0103").is_err());
        assert_eq!(Suppression::parse("XX=a").expect("reads").unknown_code(), Some("XX"));
    }
}

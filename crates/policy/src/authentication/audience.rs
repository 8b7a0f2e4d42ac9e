//! Audiences of tokens, compared as Envoy compares them.

/// The audiences that a rule takes.
#[derive(Debug, Default)]
pub(super) struct Audiences(Vec<String>);

impl Audiences {
    pub(super) fn new(all: &[String]) -> Self {
        Self(all.iter().map(|audience| essence(audience).to_owned()).collect())
    }

    /// Whether a token for `audiences` may come; any may if the rule names none.
    pub(super) fn allow(&self, audiences: &[String]) -> bool {
        self.0.is_empty()
            || audiences.iter().any(|audience| self.0.iter().any(|own| own == essence(audience)))
    }
}

/// Without scheme and one slash at the end (reference authorization 19).
fn essence(audience: &str) -> &str {
    let rest =
        audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

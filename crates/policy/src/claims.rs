//! The claims of a verified token, as policies see them.

use serde_json::{Map, Value};

/// Claims that are lists of words always (reference authorization 19).
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// What a verified token says (reference authorization 20).
#[derive(Clone, PartialEq)]
pub struct Claims {
    claims: Map<String, Value>,
}

impl std::fmt::Debug for Claims {
    /// Without what they say: claims are personal data, and whoever prints a request prints them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("count", &self.claims.len()).finish_non_exhaustive()
    }
}

impl Claims {
    /// Takes the payload of a verified token; `space_delimited` names claims that are lists of words, beside those that
    /// always are. Their texts become lists.
    pub fn new(mut claims: Map<String, Value>, space_delimited: &[String]) -> Self {
        let also = space_delimited.iter().map(String::as_str);
        for name in SPACE_DELIMITED.into_iter().chain(also) {
            if let Some(claim) = claims.get_mut(name)
                && let Value::String(words) = claim
            {
                let words: Vec<_> =
                    words.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
                // A text of blanks stays as it is, as in Envoy.
                if !words.is_empty() {
                    *claim = Value::Array(words);
                }
            }
        }
        Self { claims }
    }

    /// A claim by its path: the first name at the top, each next one inside the object found so far.
    pub fn get(&self, path: &[impl AsRef<str>]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let first = self.claims.get(first.as_ref())?;
        rest.iter().try_fold(first, |found, name| found.as_object()?.get(name.as_ref()))
    }

    /// Issuer and subject, if both are texts.
    pub fn principal(&self) -> Option<(&str, &str)> {
        Some((self.claims.get("iss")?.as_str()?, self.claims.get("sub")?.as_str()?))
    }

    /// Everything, as JSON.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_claims_does_not_show_them() {
        let payload = Map::from_iter([("email".to_owned(), Value::from("ann@example.org"))]);
        assert_eq!(format!("{:?}", Claims::new(payload, &[])), "Claims { count: 1, .. }");
    }
}

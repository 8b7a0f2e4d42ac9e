use std::fmt;

/// Why a text is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// Empty, or longer than 253 bytes.
    #[error("a host name has 1 to 253 characters, this one has {0}")]
    Length(usize),
    /// A label is empty, longer than 63 bytes or holds a character other than letters, digits, `-`, `_`.
    #[error("host name label '{0}' is not 1 to 63 letters, digits, '-' or '_'")]
    Label(String),
}

/// A host name in lower case, without port and without a final dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(String);

impl Hostname {
    /// Reads a host name; upper case is folded, one final dot is dropped. Underscores are
    /// accepted, as SNI values of the mesh carry them (reference mtls 8.1).
    pub fn parse(text: &str) -> Result<Self, HostnameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return Err(HostnameError::Length(text.len()));
        }
        for label in text.split('.') {
            let fits = (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !fits {
                return Err(HostnameError::Label(label.to_owned()));
            }
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_case_and_drops_the_final_dot() {
        assert_eq!(Hostname::parse("Cart.Shop.").map(|h| h.to_string()), Ok("cart.shop".into()));
    }

    #[test]
    fn refuses_what_is_no_name() {
        for bad in ["", ".", "a..b", "a b", "a/b", &"x".repeat(64)] {
            assert!(Hostname::parse(bad).is_err(), "{bad:?}");
        }
    }
}

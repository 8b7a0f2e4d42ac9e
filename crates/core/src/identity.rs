use std::fmt;
use std::sync::Arc;

/// Why a text is no mesh identity or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The scheme is not `spiffe`.
    #[error("'{0}' does not start with spiffe://")]
    Scheme(String),
    /// Longer than 2048 bytes (SPIFFE-ID 2.3).
    #[error("a SPIFFE ID has at most 2048 bytes, this one has {0}")]
    Length(usize),
    /// Not a valid trust domain (SPIFFE-ID 2.1).
    #[error("'{0}' is no trust domain: 1 to 255 lower-case letters, digits, '.', '-' or '_'")]
    TrustDomain(String),
    /// The path is not exactly `/ns/<namespace>/sa/<account>` with valid segments.
    #[error("'{0}' is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Path(String),
}

/// A SPIFFE trust domain, canonical (lower case).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a trust domain; upper case is folded, since trust domains compare without case (SPIFFE-ID 2.1).
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let fits = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !fits {
            return Err(IdentityError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Parsing is strict (reference mtls SN-13, section 6.1): exactly this shape, only the characters
/// SPIFFE allows, nothing percent-encoded. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// An identity from its parts; `namespace` and `service_account` must be SPIFFE path segments.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(IdentityError::Path(format!(
                "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
            )));
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// Reads `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    pub fn parse_uri(uri: &str) -> Result<Self, IdentityError> {
        if uri.len() > 2048 {
            return Err(IdentityError::Length(uri.len()));
        }
        let rest = match uri.split_at_checked(9) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("spiffe://") => rest,
            _ => return Err(IdentityError::Scheme(uri.to_owned())),
        };
        Self::parse_principal(rest).map_err(|e| match e {
            IdentityError::Path(_) => IdentityError::Path(uri.to_owned()),
            other => other,
        })
    }

    /// Reads a principal, the identity as policies write it: without `spiffe://`.
    pub fn parse_principal(principal: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Path(principal.to_owned());
        let mut parts = principal.split('/');
        let trust_domain = TrustDomain::parse(parts.next().unwrap_or_default())?;
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(shape());
        };
        Self::new(trust_domain, namespace, account).map_err(|_| shape())
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The full URI, as it stands in a certificate.
    pub fn uri(&self) -> String {
        format!("spiffe://{self}")
    }
}

/// The principal: the identity as policies and logs write it, without `spiffe://`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference mtls SF-1, SN-13.
    #[test]
    fn sn_13_spiffe_ids_parse_strictly() {
        let id = Identity::parse_uri("spiffe://Cluster.Local/ns/a/sa/b").expect("upper case is folded");
        assert_eq!(id.uri(), "spiffe://cluster.local/ns/a/sa/b");
        for bad in [
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td//a",
            "spiffe://td/a/../b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a%2Fb/sa/c",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td",
            "https://td/ns/a/sa/b",
            "",
        ] {
            assert!(Identity::parse_uri(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parse_and_print_agree(td in "[a-z0-9.]{1,20}", ns in "[a-z0-9-]{1,10}", sa in "[a-zA-Z0-9_-]{1,10}") {
            let id = Identity::new(TrustDomain::parse(&td).expect("valid"), &ns, &sa).expect("valid");
            proptest::prop_assert_eq!(Identity::parse_uri(&id.uri()), Ok(id.clone()));
            proptest::prop_assert_eq!(Identity::parse_principal(&id.to_string()), Ok(id));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = Identity::parse_uri(&text);
            let _ = Identity::parse_principal(&text);
        }
    }
}

//! URLs that key sets are at.

use http::Uri;

const NO_URL: &str = "is no http or https URL";

/// An absolute `http` or `https` URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) is_https: bool,
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As `Host` says it.
    pub(super) authority: String,
    /// Path and query.
    pub(super) target: String,
}

impl Url {
    /// An error says what is wrong with the URL, without repeating it: it may hold a password.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| NO_URL)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(NO_URL),
        };
        let authority = uri.authority().ok_or("names no host")?;
        if authority.as_str().contains('@') {
            return Err(
                "holds a user or password, which key sets need not; whoever reads the policy could see it",
            );
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err("names no host");
        }
        // Not authority.port(), which takes a port that is too large for none.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") if is_https => 443,
            Some("") => 80,
            rest => rest
                .and_then(|rest| rest.strip_prefix(':')?.parse().ok())
                .filter(|port| *port != 0)
                .ok_or("names no port that there is")?,
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { is_https, host: host.to_owned(), port, authority: authority.to_string(), target })
    }

    /// Where a redirect leads: an absolute URL or path, of the same scheme.
    pub(super) fn redirected(&self, location: &str) -> Result<Self, &'static str> {
        if location.starts_with('/') && !location.starts_with("//") {
            let target: http::uri::PathAndQuery =
                location.parse().map_err(|_| "redirects to what is no URL")?;
            return Ok(Self { target: target.to_string(), ..self.clone() });
        }
        let new = Self::parse(location).map_err(|_| "redirects to what is no URL, or holds a password")?;
        match new.is_https == self.is_https {
            true => Ok(new),
            false => Err("redirects to another scheme, which is not followed"),
        }
    }
}

impl std::fmt::Display for Url {
    /// Without the query, which may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.is_https { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, target) in [
            ("https://idp.example/keys?v=1", "idp.example", 443, "/keys?v=1"),
            ("http://idp.example", "idp.example", 80, "/"),
            ("HTTPS://idp.example:8443/", "idp.example", 8443, "/"),
            ("http://[2001:db8::1]:81/a#part", "2001:db8::1", 81, "/a"),
            ("http://idp.example?x", "idp.example", 80, "/?x"),
        ] {
            let url = Url::parse(text).unwrap_or_else(|problem| panic!("{text} {problem}"));
            assert_eq!((url.host.as_str(), url.port, url.target.as_str()), (host, port, target), "{text}");
        }
        assert_eq!(
            Url::parse("https://h/a?secret=1").map(|url| url.to_string()),
            Ok("https://h/a".to_owned())
        );
    }

    #[test]
    fn what_is_no_url_or_holds_a_password_is_refused_without_repeating_it() {
        for text in [
            "",
            "idp.example",
            "testing@secure.istio.io",
            "/keys",
            "ftp://idp.example/",
            "file:///etc/passwd",
            "https://user:password@idp.example/",
            "https://user@idp.example/",
            "https://",
            "https:///keys",
            "https://idp.example:0/",
            "https://idp.example:99999/",
            "https://idp example/",
            "https://idp.example/\r\nx: y",
        ] {
            let problem = Url::parse(text).expect_err(text);
            assert!(!problem.contains("password@"), "{problem}");
        }
    }

    #[test]
    fn redirects_stay_with_their_scheme() {
        let url = Url::parse("https://idp.example/a?b").expect("a URL");
        let to = |location: &str| url.redirected(location).map(|url| url.to_string());
        assert_eq!(to("/c").as_deref(), Ok("https://idp.example/c"));
        assert_eq!(to("https://other.example/c").as_deref(), Ok("https://other.example/c"));
        for location in [
            "http://idp.example/c",
            "//other.example/c",
            "c",
            "",
            "ftp://x/",
            "https://u:p@idp.example/",
            "/\r\n",
        ] {
            assert!(to(location).is_err(), "{location}");
        }
    }
}

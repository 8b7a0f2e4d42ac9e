//! What a decision is made of: facts of a connection and of a request.

use std::net::IpAddr;

use maille_core::Identity;

use crate::Claims;

/// Facts that hold for the whole life of a connection (reference authorization 12 and 13).
#[derive(Debug, Clone, Copy)]
pub struct ConnectionAttributes<'a> {
    /// The identity in the verified client certificate; `None` for plaintext.
    pub identity: Option<&'a Identity>,
    /// The address of the socket's peer. An IPv4 client of a dual-stack listener must come as IPv4.
    pub source_ip: IpAddr,
    /// The logical downstream address: the peer, or what the PROXY protocol says. For HTTP see
    /// [`RequestAttributes::remote_ip`].
    pub remote_ip: IpAddr,
    /// The local address, as dialled (original destination).
    pub destination_ip: IpAddr,
    /// The workload's port (not the Service's).
    pub destination_port: u16,
    /// The server name of the ClientHello, in any case; `None` without TLS or without a server name.
    pub sni: Option<&'a str>,
}

/// Facts of one HTTP request.
#[derive(Clone, Copy)]
pub struct RequestAttributes<'a> {
    /// As sent; methods compare with case.
    pub method: &'a str,
    /// `:authority` (HTTP/1 `Host`) with its port as sent; empty when there is none.
    pub host: &'a str,
    /// `:path` after [`crate::path::normalize`]; query and fragment may be present and are cut off for
    /// path tests. Empty when there is none (CONNECT).
    pub path: &'a str,
    /// The logical client address if the request names one ([`forwarded_for`]); `None`: the connection's.
    pub remote_ip: Option<IpAddr>,
    /// All other headers.
    pub headers: &'a dyn HeaderLookup,
    /// What a verified token says; `None`: the request has none.
    pub claims: Option<&'a Claims>,
}

impl std::fmt::Debug for RequestAttributes<'_> {
    /// Without headers, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestAttributes")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("path", &self.path)
            .field("remote_ip", &self.remote_ip)
            .finish_non_exhaustive()
    }
}

/// Headers by name.
pub trait HeaderLookup {
    /// Calls `visit` with each value of the header, in order of arrival. `name` is in lower case; it may
    /// be no valid header name, which no header has then.
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8]));
}

/// A request without headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl HeaderLookup for NoHeaders {
    fn values<'h>(&'h self, _name: &str, _visit: &mut dyn FnMut(&'h [u8])) {}
}

/// Headers as a list of name and value, for tests and offline checks; names compare without case.
impl HeaderLookup for [(String, String)] {
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        for (key, value) in self {
            if key.eq_ignore_ascii_case(name) {
                visit(value.as_bytes());
            }
        }
    }
}

impl HeaderLookup for Vec<(String, String)> {
    fn values<'h>(&'h self, name: &str, visit: &mut dyn FnMut(&'h [u8])) {
        self.as_slice().values(name, visit);
    }
}

/// The client address that a sidecar takes from `X-Forwarded-For`: the rightmost entry of all its lines,
/// if it is an address (reference authorization 13).
pub fn forwarded_for(headers: &dyn HeaderLookup) -> Option<IpAddr> {
    let mut last: Option<&[u8]> = None;
    headers.values("x-forwarded-for", &mut |value| last = Some(value));
    let text = std::str::from_utf8(last?).ok()?;
    text.rsplit(',').next()?.trim_matches([' ', '\t']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[&str]) -> Vec<(String, String)> {
        values.iter().map(|v| ("X-Forwarded-For".to_owned(), (*v).to_owned())).collect()
    }

    /// Reference authorization 13.
    #[test]
    fn a_sidecar_takes_the_rightmost_forwarded_address() {
        let parse = |text: &str| text.parse::<IpAddr>().ok();
        assert_eq!(forwarded_for(&lines(&["198.51.100.7, 203.0.113.9"])), parse("203.0.113.9"));
        assert_eq!(forwarded_for(&lines(&["198.51.100.7", "203.0.113.9"])), parse("203.0.113.9"));
        assert_eq!(forwarded_for(&lines(&["2001:db8::1"])), parse("2001:db8::1"));
        assert_eq!(forwarded_for(&lines(&["203.0.113.9, unknown"])), None);
        assert_eq!(forwarded_for(&lines(&["203.0.113.9,"])), None);
        assert_eq!(forwarded_for(&NoHeaders), None);
    }
}

//! Protocol names of the mesh's TLS and what each side offers (reference mtls 8.1).

/// Mesh TLS that carries HTTP/1.1.
pub const ISTIO_HTTP_11: &[u8] = b"istio-http/1.1";
/// Mesh TLS that carries HTTP/1.0.
pub const ISTIO_HTTP_10: &[u8] = b"istio-http/1.0";
/// Mesh TLS that carries HTTP/2.
pub const ISTIO_H2: &[u8] = b"istio-h2";
/// Mesh TLS.
pub const ISTIO: &[u8] = b"istio";
/// Mesh TLS with Envoy's TCP metadata exchange, which Maille neither offers nor selects (WR-4).
pub const ISTIO_PEER_EXCHANGE: &[u8] = b"istio-peer-exchange";
/// HTTP/2 (RFC 9113 section 3.1).
pub const H2: &[u8] = b"h2";
/// HTTP/1.1 (RFC 7301 section 6).
pub const HTTP_11: &[u8] = b"http/1.1";

/// Whether a protocol is of the group `mtlsHTTP` (reference mtls 1.3).
pub fn is_mesh_http(protocol: &[u8]) -> bool {
    [ISTIO_HTTP_11, ISTIO_H2, ISTIO_HTTP_10].contains(&protocol)
}

/// Whether a protocol is of the group `mtlsTCP` (reference mtls 1.3).
pub fn is_mesh_tcp(protocol: &[u8]) -> bool {
    [ISTIO, ISTIO_PEER_EXCHANGE].contains(&protocol)
}

/// Whether a protocol says that the client is of the mesh: `allIstio` (reference mtls 1.3).
pub fn is_mesh(protocol: &[u8]) -> bool {
    is_mesh_http(protocol) || is_mesh_tcp(protocol)
}

/// What a client offers, by the traffic it is going to send (reference mtls 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAlpn {
    /// Bytes: `istio`; not `istio-peer-exchange`, which Maille does not speak (WR-4).
    Tcp,
    /// HTTP/1.1: `istio-http/1.1, istio, http/1.1`.
    Http1,
    /// HTTP/2 and gRPC: `istio-h2, istio, h2`.
    Http2,
}

impl ClientAlpn {
    /// The protocols, most preferred first.
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Tcp => &[ISTIO],
            Self::Http1 => &[ISTIO_HTTP_11, ISTIO, HTTP_11],
            Self::Http2 => &[ISTIO_H2, ISTIO, H2],
        }
    }
}

/// What a server selects from.
///
/// HTTP and TCP chains have the same list, `h2, http/1.1`, since `istio-peer-exchange` is not
/// selected (PA-9, WR-4); the names that start with `istio` are matched but never negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerAlpn {
    /// `h2, http/1.1`, server's preference.
    Http,
    /// No protocol is negotiated.
    None,
}

impl ServerAlpn {
    /// The list for a client that offers `offered`: none if nothing overlaps, since TLS would
    /// otherwise abort the handshake, where the field goes on without a protocol.
    pub fn choose(offered: &[Vec<u8>]) -> Self {
        let known = offered.iter().any(|protocol| Self::Http.protocols().contains(&protocol.as_slice()));
        if known { Self::Http } else { Self::None }
    }

    /// The protocols, most preferred first.
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http => &[H2, HTTP_11],
            Self::None => &[],
        }
    }
}

pub(crate) fn owned(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_overlap_means_no_protocol() {
        let offered = |alpn: ClientAlpn| owned(alpn.protocols());
        assert_eq!(ServerAlpn::choose(&offered(ClientAlpn::Tcp)), ServerAlpn::None);
        assert_eq!(ServerAlpn::choose(&[]), ServerAlpn::None);
        assert_eq!(ServerAlpn::choose(&offered(ClientAlpn::Http1)), ServerAlpn::Http);
        assert_eq!(ServerAlpn::choose(&offered(ClientAlpn::Http2)), ServerAlpn::Http);
    }

    #[test]
    fn peer_exchange_is_recognised_but_never_offered_or_selected() {
        assert!(is_mesh(ISTIO_PEER_EXCHANGE) && !is_mesh_http(ISTIO_PEER_EXCHANGE));
        for alpn in [ClientAlpn::Tcp, ClientAlpn::Http1, ClientAlpn::Http2] {
            assert!(!alpn.protocols().contains(&ISTIO_PEER_EXCHANGE));
        }
        assert!(!ServerAlpn::Http.protocols().contains(&ISTIO_PEER_EXCHANGE));
    }
}

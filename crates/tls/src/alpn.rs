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

/// Between Maille proxies: HTTP/2 framing around what would else have been HTTP/1.1 or bytes on a connection each. What
/// the streams carry, the other names of the client's list say; so does the chain of the port (reference mtls 1.3),
/// which does not know this name.
pub const MAILLE_1: &[u8] = b"maille/1";

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
    /// Bytes of several connections, to a Maille proxy: `maille/1, istio`.
    ManyTcp,
    /// HTTP/1.1 of several connections, to a Maille proxy: `maille/1, istio-http/1.1, istio, http/1.1`.
    ManyHttp1,
}

impl ClientAlpn {
    /// The protocols, most preferred first.
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Tcp => &[ISTIO],
            Self::Http1 => &[ISTIO_HTTP_11, ISTIO, HTTP_11],
            Self::Http2 => &[ISTIO_H2, ISTIO, H2],
            Self::ManyTcp => &[MAILLE_1, ISTIO],
            Self::ManyHttp1 => &[MAILLE_1, ISTIO_HTTP_11, ISTIO, HTTP_11],
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
    /// `maille/1`.
    Many,
}

/// What the streams of a `maille/1` connection carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carried {
    /// Bytes.
    Tcp,
    /// HTTP/1.1 requests.
    Http1,
}

/// What a client that offers `maille/1` is going to send over it, if it offers it: the names beside it are those of an
/// ordinary connection for the same traffic, and so the port's chain is the same. Lists of any other shape are nobody's.
pub fn carried(offered: &[Vec<u8>]) -> Option<Carried> {
    let is = |alpn: ClientAlpn| offered.iter().map(Vec::as_slice).eq(alpn.protocols().iter().copied());
    if is(ClientAlpn::ManyTcp) {
        Some(Carried::Tcp)
    } else if is(ClientAlpn::ManyHttp1) {
        Some(Carried::Http1)
    } else {
        None
    }
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
            Self::Many => &[MAILLE_1],
        }
    }
}

pub(crate) fn owned(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ClientAlpn; 5] =
        [ClientAlpn::Tcp, ClientAlpn::Http1, ClientAlpn::Http2, ClientAlpn::ManyTcp, ClientAlpn::ManyHttp1];

    #[test]
    fn a_client_of_many_streams_says_what_they_carry() {
        let carried = |alpn: ClientAlpn| carried(&owned(alpn.protocols()));
        assert_eq!(ALL.map(carried), [None, None, None, Some(Carried::Tcp), Some(Carried::Http1)]);
        assert_eq!(super::carried(&owned(&[MAILLE_1])), None);
        assert_eq!(super::carried(&owned(&[MAILLE_1, ISTIO_H2])), None);
        // Without `maille/1` nothing is left of it, so a server that does not select it serves the same traffic.
        assert_eq!(ClientAlpn::ManyTcp.protocols()[1..], *ClientAlpn::Tcp.protocols());
        assert_eq!(ClientAlpn::ManyHttp1.protocols()[1..], *ClientAlpn::Http1.protocols());
    }

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
        for alpn in ALL {
            assert!(!alpn.protocols().contains(&ISTIO_PEER_EXCHANGE));
        }
        assert!(!ServerAlpn::Http.protocols().contains(&ISTIO_PEER_EXCHANGE));
    }
}

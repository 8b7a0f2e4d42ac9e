//! Which filter chain a new inbound connection gets: the table of reference mtls 1.3, and nothing else.

use maille_core::{MtlsMode, PortProtocol};

/// What listener inspection found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport<'a> {
    /// A ClientHello, with the ALPN values offered, in order.
    Tls(&'a [Vec<u8>]),
    /// Anything else; whether it looks like HTTP/1.1 or HTTP/2.
    Raw { is_http: bool },
}

/// What happens to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chain {
    /// Terminate TLS with a client certificate, then HTTP.
    MutualHttp,
    /// Terminate TLS with a client certificate, then opaque bytes.
    MutualTcp,
    /// HTTP as it came.
    PlainHttp,
    /// Opaque bytes as they came (TLS of the application included).
    PlainTcp,
    /// No chain: closed without an answer.
    Refuse,
}

/// Which inspectors a port needs; each is on only if some chain of the port asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inspectors {
    pub(crate) tls: bool,
    pub(crate) http: bool,
}

/// The inspectors of a port.
pub(crate) fn inspectors(mode: MtlsMode, class: PortProtocol) -> Inspectors {
    Inspectors {
        tls: mode != MtlsMode::Disable,
        // Under STRICT plaintext is refused whatever it looks like.
        http: mode != MtlsMode::Strict && class == PortProtocol::Auto,
    }
}

const MTLS_HTTP: [&[u8]; 3] = [b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"];
const MTLS_TCP: [&[u8]; 2] = [b"istio-peer-exchange", b"istio"];

/// Picks the chain. There is no backtracking: what no chain of the port matches is closed.
pub(crate) fn choose(mode: MtlsMode, class: PortProtocol, transport: Transport<'_>) -> Chain {
    use MtlsMode::{Disable, Permissive, Strict};
    use PortProtocol::{Auto, Http, Http2, Tcp};
    match (mode, class, transport) {
        (Strict, _, Transport::Raw { .. }) => Chain::Refuse,
        (Strict, Http | Http2, Transport::Tls(_)) => Chain::MutualHttp,
        (Strict, Tcp, Transport::Tls(_)) => Chain::MutualTcp,
        (Strict, Auto, Transport::Tls(alpn)) if offers(alpn, &MTLS_HTTP) => Chain::MutualHttp,
        (Strict, Auto, Transport::Tls(_)) => Chain::MutualTcp,

        (Permissive, Http | Http2, Transport::Tls(alpn)) => match is_istio(alpn) {
            true => Chain::MutualHttp,
            false => Chain::Refuse,
        },
        (Permissive, Tcp, Transport::Tls(alpn)) => match is_istio(alpn) {
            true => Chain::MutualTcp,
            false => Chain::PlainTcp,
        },
        (Permissive, Auto, Transport::Tls(alpn)) => first_listed(alpn),

        // Without TLS inspection, TLS bytes are bytes like any other.
        (Disable, Http | Http2, _) => Chain::PlainHttp,
        (Disable, Tcp, _) | (Disable, Auto, Transport::Tls(_)) => Chain::PlainTcp,

        (Permissive, Http | Http2, Transport::Raw { .. }) => Chain::PlainHttp,
        (Permissive, Tcp, Transport::Raw { .. }) => Chain::PlainTcp,
        (Permissive | Disable, Auto, Transport::Raw { is_http: true }) => Chain::PlainHttp,
        (Permissive | Disable, Auto, Transport::Raw { is_http: false }) => Chain::PlainTcp,
    }
}

/// PA-9: the first value offered that some chain lists selects that chain.
fn first_listed(alpn: &[Vec<u8>]) -> Chain {
    for offered in alpn {
        if MTLS_HTTP.contains(&offered.as_slice()) {
            return Chain::MutualHttp;
        }
        if MTLS_TCP.contains(&offered.as_slice()) {
            return Chain::MutualTcp;
        }
    }
    Chain::PlainTcp
}

fn offers(alpn: &[Vec<u8>], list: &[&[u8]]) -> bool {
    alpn.iter().any(|offered| list.contains(&offered.as_slice()))
}

fn is_istio(alpn: &[Vec<u8>]) -> bool {
    offers(alpn, &MTLS_HTTP) || offers(alpn, &MTLS_TCP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use MtlsMode::{Disable, Permissive, Strict};
    use PortProtocol::{Auto, Http, Http2, Tcp};

    fn tls(mode: MtlsMode, class: PortProtocol, alpn: &str) -> Chain {
        let offered: Vec<Vec<u8>> = alpn.split_whitespace().map(|a| a.as_bytes().to_vec()).collect();
        choose(mode, class, Transport::Tls(&offered))
    }

    #[test]
    fn tls_rows_of_the_table() {
        let rows = [
            (Strict, Http, "", Chain::MutualHttp),
            (Strict, Http2, "h2", Chain::MutualHttp),
            (Strict, Tcp, "istio-http/1.1", Chain::MutualTcp),
            (Strict, Auto, "istio-http/1.1 istio http/1.1", Chain::MutualHttp),
            (Strict, Auto, "istio-h2 istio h2", Chain::MutualHttp),
            (Strict, Auto, "istio", Chain::MutualTcp),
            (Strict, Auto, "h2 http/1.1", Chain::MutualTcp),
            (Strict, Auto, "", Chain::MutualTcp),
            (Permissive, Http, "istio", Chain::MutualHttp),
            (Permissive, Http, "istio-h2 istio h2", Chain::MutualHttp),
            (Permissive, Http, "h2 http/1.1", Chain::Refuse),
            (Permissive, Http, "", Chain::Refuse),
            (Permissive, Tcp, "istio-peer-exchange istio", Chain::MutualTcp),
            (Permissive, Tcp, "h2", Chain::PlainTcp),
            (Permissive, Auto, "istio-http/1.0 istio http/1.0", Chain::MutualHttp),
            (Permissive, Auto, "istio istio-http/1.1", Chain::MutualTcp),
            (Permissive, Auto, "h2 istio-http/1.1", Chain::MutualHttp),
            (Permissive, Auto, "http/1.1", Chain::PlainTcp),
            (Permissive, Auto, "", Chain::PlainTcp),
        ];
        for (mode, class, alpn, expected) in rows {
            assert_eq!(tls(mode, class, alpn), expected, "{mode:?} {class:?} [{alpn}]");
        }
    }

    #[test]
    fn raw_rows_of_the_table() {
        let rows = [
            (Strict, Http, true, Chain::Refuse),
            (Strict, Tcp, false, Chain::Refuse),
            (Strict, Auto, true, Chain::Refuse),
            (Permissive, Http, false, Chain::PlainHttp),
            (Permissive, Tcp, true, Chain::PlainTcp),
            (Permissive, Auto, true, Chain::PlainHttp),
            (Permissive, Auto, false, Chain::PlainTcp),
            (Disable, Http, false, Chain::PlainHttp),
            (Disable, Tcp, true, Chain::PlainTcp),
            (Disable, Auto, true, Chain::PlainHttp),
            (Disable, Auto, false, Chain::PlainTcp),
        ];
        for (mode, class, is_http, expected) in rows {
            assert_eq!(
                choose(mode, class, Transport::Raw { is_http }),
                expected,
                "{mode:?} {class:?} {is_http}"
            );
        }
    }

    #[test]
    fn inspectors_run_only_where_a_chain_needs_them() {
        assert_eq!(inspectors(Disable, Tcp), Inspectors { tls: false, http: false });
        assert_eq!(inspectors(Disable, Http), Inspectors { tls: false, http: false });
        assert_eq!(inspectors(Disable, Auto), Inspectors { tls: false, http: true });
        assert_eq!(inspectors(Permissive, Tcp), Inspectors { tls: true, http: false });
        assert_eq!(inspectors(Permissive, Auto), Inspectors { tls: true, http: true });
        assert_eq!(inspectors(Strict, Auto), Inspectors { tls: true, http: false });
    }
}

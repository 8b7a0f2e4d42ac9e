//! Opens connections to upstreams: to the own workload, to endpoints in plaintext, to sidecars over mutual TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use maille_core::Identity;
use maille_telemetry::{RefusalKind, ResponseFlags, TlsReason};
use maille_tls::{ClientAlpn, HandshakeError};
use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::record::tls_reason;
use crate::sniff::Prefixed;
use crate::stream::Stream;
use crate::worker::Worker;

/// Where to connect, and how. Connections with equal upstreams may serve each other's requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) security: Security,
}

/// How an upstream is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// Plaintext to the own workload, from the address that is never captured again.
    Deliver,
    /// As the application sent it.
    Plain,
    /// Mutual TLS: the server name, and the identities of which the server must prove one.
    Mutual { sni: Arc<str>, expected: Arc<[String]> },
}

impl Upstream {
    pub(crate) fn is_mutual(&self) -> bool {
        matches!(self.security, Security::Mutual { .. })
    }
}

/// An open connection, and who is at its other end.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) identity: Option<Identity>,
    /// Of the own certificate and trust that it was opened with.
    pub(crate) generation: u64,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect to {address}: {reason}")]
    Tcp { address: SocketAddr, reason: String },
    #[error("connecting to {address} took longer than {limit:?}; a network policy may block it")]
    Timeout { address: SocketAddr, limit: Duration },
    #[error("TLS with {address} failed: {error}")]
    Tls { address: SocketAddr, error: HandshakeError },
    #[error("no TLS to {address}: {reason}")]
    Setup { address: SocketAddr, reason: String },
}

impl ConnectError {
    /// What Envoy writes behind "transport failure reason:", without saying more than the caller may know.
    pub(crate) fn for_caller(&self) -> String {
        match self {
            Self::Tcp { reason, .. } => format!("delayed connect error: {reason}"),
            Self::Timeout { .. } => "connection timeout".to_owned(),
            Self::Tls { .. } | Self::Setup { .. } => {
                "TLS_error: handshake with the upstream failed".to_owned()
            }
        }
    }

    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            Self::Tls { error: HandshakeError::Refused(_), .. } => RefusalKind::ServerIdentity,
            _ => RefusalKind::UpstreamFailed,
        }
    }

    /// Why there was no TLS, for metrics.
    pub(crate) fn tls(&self) -> Option<TlsReason> {
        match self {
            Self::Tls { error, .. } => Some(tls_reason(error)),
            _ => None,
        }
    }

    pub(crate) fn flags(&self) -> ResponseFlags {
        ResponseFlags::UpstreamConnectFailure
    }
}

/// Connects, with TLS if the upstream wants it; both within their limits.
pub(crate) async fn connect(
    worker: &Worker,
    to: &Upstream,
    alpn: ClientAlpn,
) -> Result<Connected, ConnectError> {
    let address = to.address;
    let limits = &worker.config.limits;
    let from = match to.security {
        Security::Deliver => worker.config.deliver_from.filter(|from| from.is_ipv4() == address.is_ipv4()),
        Security::Plain | Security::Mutual { .. } => None,
    };
    let tcp = match timeout(limits.connect, open(address, from)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(ConnectError::Tcp { address, reason: describe(&error) }),
        Err(_) => return Err(ConnectError::Timeout { address, limit: limits.connect }),
    };
    let Security::Mutual { sni, expected } = &to.security else {
        let stream = Stream::Plain(Prefixed::new(BytesMut::new(), tcp));
        return Ok(Connected { stream, identity: None, generation: 0 });
    };
    let setup = |reason: String| ConnectError::Setup { address, reason };
    let current = worker.shared.tls.current();
    let config = current.client_config(alpn, expected).map_err(|e| setup(e.to_string()))?;
    let name = ServerName::try_from(sni.to_string()).map_err(|e| setup(e.to_string()))?;
    let stream = match timeout(limits.handshake, TlsConnector::from(config).connect(name, tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(ConnectError::Tls { address, error: HandshakeError::from_io(&error) }),
        Err(_) => return Err(ConnectError::Timeout { address, limit: limits.handshake }),
    };
    // A server of DNS names only (SN-5) has no identity; that it may serve was verified all the same.
    let identity = maille_tls::peer_of_client(stream.get_ref().1).ok();
    Ok(Connected { stream: Stream::Connected(Box::new(stream)), identity, generation: current.generation() })
}

async fn open(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "Connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "Connection reset by peer".to_owned(),
        io::ErrorKind::HostUnreachable => "No route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "Network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

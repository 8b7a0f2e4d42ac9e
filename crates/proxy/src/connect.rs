//! Opens connections to upstreams: to the own workload, to endpoints in plaintext, to sidecars over mutual TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use maille_core::Identity;
use maille_core::ports::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6};
use maille_telemetry::{RefusalKind, ResponseFlags, TlsReason};
use maille_tls::{ClientAlpn, HandshakeError, Negotiated, OriginRequest};
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::balance::{Counted, Terms};
use crate::record::tls_reason;
use crate::record::{Proven, Refused};
use crate::server_proof::ServerProof;
use crate::snapshot::{OrderMode, TlsOrder};
use crate::sniff::Prefixed;
use crate::stream::Stream;
use crate::worker::Worker;
use dial::open;

mod dial;

/// Where to connect, and how. Connections with equal upstreams may serve each other's requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    /// The same workload's address of the other family, where the first cannot be connected to.
    pub(crate) other: Option<IpAddr>,
    pub(crate) security: Security,
    /// Bounds of a DestinationRule: services with rules of their own share no connections.
    pub(crate) terms: Option<Arc<Terms>>,
    /// The path of a Unix socket, in place of the address.
    pub(crate) socket: Option<Arc<str>>,
}

impl Upstream {
    /// An address, without bounds.
    pub(crate) fn at(address: SocketAddr, security: Security) -> Self {
        Self { address, other: None, security, terms: None, socket: None }
    }

    /// The same, of a workload whose proxy takes many streams over one connection, or does not.
    pub(crate) fn of_proxy_that_multiplexes(mut self, does: bool) -> Self {
        if let Security::Mutual { multiplexes, .. } = &mut self.security {
            *multiplexes = does;
        }
        self
    }

    /// Where a connection goes that has this end here, as far as that is known.
    pub(crate) fn reached_from(&self, local: Option<SocketAddr>) -> SocketAddr {
        match (local, self.other) {
            (Some(local), Some(other)) if local.is_ipv6() == other.is_ipv6() => {
                SocketAddr::new(other, self.address.port())
            }
            _ => self.address,
        }
    }

    /// How long connecting may take; `default` unless a rule says otherwise.
    pub(crate) fn connect_timeout(&self, default: Duration) -> Duration {
        self.terms.as_ref().and_then(|terms| terms.pool.connect_timeout).unwrap_or(default)
    }
}

/// How an upstream is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Security {
    /// Plaintext to the own workload, from the address that is never captured again.
    Deliver,
    /// As the application sent it.
    Plain,
    /// Mutual TLS: the server name, and the identities of which the server must prove one.
    /// The sidecar there may take many streams over one connection.
    Mutual { sni: Arc<str>, expected: Arc<[String]>, multiplexes: bool },
    /// TLS as a DestinationRule orders it, SIMPLE or MUTUAL, towards the name that the server is told, if it is told one.
    Ordered { order: Arc<TlsOrder>, name: Option<Arc<str>> },
}

impl Security {
    /// Who proves what.
    pub(crate) fn proven(&self) -> Proven {
        match self {
            Self::Deliver | Self::Plain => Proven::Nothing,
            Self::Mutual { .. } => Proven::InMesh,
            Self::Ordered { order, .. } if order.mode == OrderMode::Mutual && !order.insecure_skip_verify => {
                Proven::Outside
            }
            Self::Ordered { .. } => Proven::Nothing,
        }
    }

    /// The generation of what connections are made of now: certificate and trust, or the files of a rule.
    pub(crate) fn generation(&self, of_mesh: impl FnOnce() -> u64) -> u64 {
        match self {
            Self::Deliver | Self::Plain => 0,
            Self::Mutual { .. } => of_mesh(),
            Self::Ordered { order, .. } => order.material.generation(),
        }
    }

    /// The refusal that an error on an open connection is: under TLS 1.3 a server that does not accept our certificate
    /// says so only when it is first read from.
    pub(crate) fn refusal_by_peer(&self, address: SocketAddr, error: &io::Error) -> Option<ConnectError> {
        let Self::Ordered { order, name } = self else { return None };
        match HandshakeError::from_io(error) {
            refused @ HandshakeError::RefusedByPeer(_) => {
                Some(ordered_handshake(order, name.as_deref(), address, &refused))
            }
            _ => None,
        }
    }
}

/// An open connection, and who is at its other end.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    pub(crate) identity: Option<Identity>,
    /// Of the own certificate and trust that it was opened with.
    pub(crate) generation: u64,
    /// What the server has proved; none without TLS, and where nobody wants it verified.
    pub(crate) proof: Option<Rc<ServerProof>>,
    /// Where connections are bounded.
    pub(crate) counted: Option<Counted>,
}

impl Connected {
    /// Of mutual TLS that was opened for it; empty otherwise, and for a stream of a shared connection.
    pub(crate) fn key_exchange(&self) -> &'static str {
        match &self.stream {
            Stream::Connected(io) if self.identity.is_some() => {
                Negotiated::of(io.get_ref().get_ref().1).key_exchange
            }
            _ => "",
        }
    }

    /// The own end, if everything is logged.
    pub(crate) fn local(&self, worker: &Worker) -> Option<SocketAddr> {
        if worker.recorder.logs_everything() { self.stream.local_addr() } else { None }
    }
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
    /// What a DestinationRule orders cannot be done, or the server does not go along with it.
    #[error("DestinationRule {rule}: {reason}")]
    Ordered { rule: Arc<str>, reason: String, kind: RefusalKind },
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
            // The caller is the rule's own workload, and the reason names files, not what is in them.
            Self::Ordered { .. } => format!("TLS_error: {self}"),
        }
    }

    pub(crate) fn kind(&self) -> RefusalKind {
        match self {
            Self::Tls { error: HandshakeError::Refused(_), .. } => RefusalKind::ServerIdentity,
            Self::Ordered { kind, .. } => *kind,
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

    /// As telemetry takes it.
    pub(crate) fn refused(&self) -> Refused {
        Refused::new(self.kind(), self.to_string()).with_flags(self.flags()).with_tls(self.tls())
    }
}

/// The source of a delivery: of the address's family, so that the redirection knows it (reference mtls 7.2, rule 2).
fn delivered_from(from: IpAddr, to: SocketAddr) -> Option<IpAddr> {
    match to {
        SocketAddr::V6(_) if from == INBOUND_SOURCE_V4 => Some(INBOUND_SOURCE_V6.into()),
        _ => Some(from).filter(|from| from.is_ipv4() == to.is_ipv4()),
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
    let limit = to.connect_timeout(limits.connect);
    let from = match &to.security {
        Security::Deliver => worker.config.deliver_from.and_then(|from| delivered_from(from, address)),
        Security::Plain | Security::Mutual { .. } => None,
        Security::Ordered { order, name } => {
            // Boxed, since it is rare, and every connection's future would carry it.
            return Box::pin(connect_as_ordered(worker, to, order, name.as_deref(), alpn)).await;
        }
    };
    let tcp = match timeout(limit, open(to, from)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(ConnectError::Tcp { address, reason: describe(&error) }),
        Err(_) => return Err(ConnectError::Timeout { address, limit }),
    };
    let Security::Mutual { sni, expected, .. } = &to.security else {
        let stream = Stream::Plain(Prefixed::new(BytesMut::new(), tcp));
        return Ok(Connected { stream, identity: None, generation: 0, proof: None, counted: None });
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
    let generation = current.generation();
    let Negotiated { key_exchange, version } = Negotiated::of(stream.get_ref().1);
    worker.recorder.handshake("client", key_exchange, version);
    let proof = ServerProof::of_mesh(stream.get_ref().1, expected, generation);
    if let Some(proof) = &proof {
        worker.servers.enter(proof);
    }
    let stream = Stream::Connected(Box::new(Prefixed::new(BytesMut::new(), stream)));
    Ok(Connected { stream, identity, generation, proof, counted: None })
}

/// Connects with the TLS that a DestinationRule orders. Nothing is dialled unless its files are good.
async fn connect_as_ordered(
    worker: &Worker,
    to: &Upstream,
    order: &TlsOrder,
    name: Option<&str>,
    alpn: ClientAlpn,
) -> Result<Connected, ConnectError> {
    let address = to.address;
    let refuse = |reason: String| ConnectError::Ordered {
        rule: order.rule.clone(),
        reason,
        kind: RefusalKind::TlsHandshake,
    };
    if order.mode == OrderMode::Unknown {
        let reason = "its TLS settings cannot be kept: they are of a mode that this proxy does not know";
        return Err(refuse(reason.to_owned()));
    }
    let material = &order.material;
    let (origin, generation) =
        material.for_connection(&order.files, SystemTime::now()).await.map_err(refuse)?;
    // The name only goes out where there is one; the library wants one all the same.
    let server = match name {
        Some(name) => ServerName::try_from(name.to_owned())
            .map_err(|_| refuse(format!("'{name}' cannot be sent as TLS server name")))?,
        None => ServerName::IpAddress(address.ip().into()),
    };
    let request = OriginRequest {
        proof: order.proof(name),
        http2: alpn == ClientAlpn::Http2,
        sends_name: name.is_some(),
    };
    let config = origin.client_config(&request).map_err(|e| refuse(e.to_string()))?;
    let limits = &worker.config.limits;
    let limit = to.connect_timeout(limits.connect);
    let tcp = match timeout(limit, open(to, None)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(ConnectError::Tcp { address, reason: describe(&error) }),
        Err(_) => return Err(ConnectError::Timeout { address, limit }),
    };
    match timeout(limits.handshake, TlsConnector::from(config).connect(server, tcp)).await {
        Ok(Ok(stream)) => {
            let is_verified = !order.insecure_skip_verify;
            let proof = is_verified.then(|| ServerProof::outside(stream.get_ref().1)).flatten();
            let stream = Stream::Connected(Box::new(Prefixed::new(BytesMut::new(), stream)));
            Ok(Connected { stream, identity: None, generation, proof, counted: None })
        }
        Ok(Err(error)) => Err(ordered_handshake(order, name, address, &HandshakeError::from_io(&error))),
        Err(_) => Err(ConnectError::Timeout { address, limit: limits.handshake }),
    }
}

/// Why a server and a DestinationRule do not go together.
fn ordered_handshake(
    order: &TlsOrder,
    name: Option<&str>,
    address: SocketAddr,
    error: &HandshakeError,
) -> ConnectError {
    let mode = order.mode.as_str();
    let whom = name.unwrap_or("a server without a name");
    let own = order.files.certificate_source();
    let (kind, hint) = match (error, own) {
        (HandshakeError::Certificate(_) | HandshakeError::BadSignature, _) => {
            (RefusalKind::ServerIdentity, String::new())
        }
        (HandshakeError::RefusedByPeer(_), Some(certificate)) => {
            (RefusalKind::TlsHandshake, format!(" ({certificate})"))
        }
        (HandshakeError::RefusedByPeer(_), None) => (
            RefusalKind::TlsHandshake,
            "; mode SIMPLE shows no client certificate, mode MUTUAL does".to_owned(),
        ),
        (HandshakeError::Protocol(_) | HandshakeError::Io(_), _) => {
            (RefusalKind::UpstreamFailed, "; does the server speak TLS on this port?".to_owned())
        }
        _ => (RefusalKind::UpstreamFailed, String::new()),
    };
    let reason = format!("{mode} TLS with {whom} at {address} failed: {error}{hint}");
    ConnectError::Ordered { rule: order.rule.clone(), reason, kind }
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

//! Connections of the discovery port: TLS first, then gRPC that knows whom it talks to.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use maille_core::{Identity, TrustDomain};
use maille_pki::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::world::World;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address; an IPv4 address in IPv6 form is given as IPv4.
    pub address: IpAddr,
    /// The client certificate it showed, verified.
    pub certificate: Option<PeerCertificate>,
}

/// A verified client certificate.
#[derive(Debug, Clone)]
pub struct PeerCertificate {
    /// The identity it proves.
    pub identity: Identity,
    /// When it starts.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// The chain that was shown, leaf first: it is judged again when trust changes.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl PeerCertificate {
    /// Why it is revoked, if it is.
    pub fn revoked(&self, world: &World) -> Option<String> {
        let is_own = |domain: &TrustDomain| world.config().is_own(domain);
        world.revocations().revokes(&self.identity, &self.serial, self.not_before, is_own)
    }
}

/// A TLS connection together with who is at its other end.
#[derive(Debug)]
pub(crate) struct PeerStream {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) info: PeerInfo,
    /// Held while the connection is open.
    pub(crate) _place: crate::places::Place,
}

impl Connected for PeerStream {
    type ConnectInfo = PeerInfo;
    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

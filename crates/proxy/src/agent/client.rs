//! One HTTP/1.1 request to the own application: for its probes and its metrics.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use maille_core::ports::INBOUND_SOURCE_V4;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// What the application answered.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Cut at the bound.
    pub(crate) body: Bytes,
}

/// Connects as the inbound side of the data path does: from 127.0.0.6, so that the kernel's rules do not capture
/// it (reference mtls 7.6).
pub(crate) async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    if address.is_ipv4() {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((INBOUND_SOURCE_V4, 0)))?;
        return socket.connect(address).await;
    }
    let socket = TcpSocket::new_v6()?;
    // `::6` is only there where the rules were made for it.
    let _ = socket.bind(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 6], 0)));
    socket.connect(address).await
}

/// Sends a GET and reads at most `max_body` bytes of the answer. `headers` must hold a Host.
pub(crate) async fn get(
    address: SocketAddr,
    tls: bool,
    path: &str,
    headers: &HeaderMap,
    max_body: usize,
) -> Result<Reply, String> {
    let stream = dial(address).await.map_err(|e| format!("{address}: {e}"))?;
    if !tls {
        return exchange(stream, path, headers, max_body).await;
    }
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(unverified_client()?)
        .connect(name, stream)
        .await
        .map_err(|e| format!("{address}: TLS: {e}"))?;
    exchange(stream, path, headers, max_body).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
    headers: &HeaderMap,
    max_body: usize,
) -> Result<Reply, String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let mut request = Request::get(path).body(Empty::new()).map_err(|e| e.to_string())?;
    *request.headers_mut() = headers.clone();
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, mut body) = response.into_parts();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
            let room = max_body - read.len();
            read.extend_from_slice(data.get(..room).unwrap_or(&data));
            if read.len() >= max_body {
                break;
            }
        }
        Ok(Reply { status: head.status, headers: head.headers, body: read.freeze() })
    };
    // The connection is driven only as long as the exchange lasts.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        reply = &mut exchange => reply,
        _ = &mut connection => exchange.await,
    }
}

/// A kubelet does not verify certificates of HTTPS probes, and so neither does its stand-in (reference mtls 7.6).
fn unverified_client() -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(maille_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        maille_tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

//! A gRPC channel to the control plane: TLS whose roots are read anew for each connection.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use maille_pki::Svid;
use maille_tls::HandshakeError;
use maille_tls::control::{Credential, discovery_client};
use maille_xds::{BoxError, configure_endpoint};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::options::host_of;

/// For the TCP connection alone. A virtual address without endpoints swallows packets, and the kernel would go on
/// knocking after there are some.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest root bundle that is read.
pub(crate) const MAX_ROOTS: u64 = 1 << 20;

/// Connects to `address` (`host:port`), whose certificate must prove `server_name` by a root of `root_file`;
/// `own` is shown, if there is one.
pub(crate) async fn connect(
    address: &str,
    server_name: Option<&str>,
    root_file: &Path,
    own: Option<&Svid>,
) -> Result<Channel, BoxError> {
    let host = host_of(address).ok_or_else(|| format!("'{address}' is not host:port"))?;
    let name = ServerName::try_from(server_name.unwrap_or(host).to_owned())
        .map_err(|e| format!("'{host}' cannot be the name in a certificate: {e}"))?;
    let roots = read_bounded(root_file, MAX_ROOTS).await.map_err(|e| {
        format!("{}: {e}; the control plane writes it as ConfigMap istio-ca-root-cert", root_file.display())
    })?;
    let credential = own.map(Credential::from_svid).transpose()?;
    let config = discovery_client(&String::from_utf8_lossy(&roots), credential.as_ref())?;
    // `Dial` knows where to go and does the TLS; what is said to the server is the name it proves.
    let origin = match (server_name, address.rsplit_once(':')) {
        (Some(name), Some((_, port))) => format!("https://{name}:{port}"),
        _ => format!("https://{address}"),
    };
    let endpoint = configure_endpoint(Endpoint::try_from(format!("http://{address}"))?)
        .origin(Uri::try_from(origin)?)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(512 * 1024);
    let dial = Dial { address: address.to_owned(), name, tls: TlsConnector::from(config) };
    endpoint.connect_with_connector(dial).await.map_err(|e| describe(&e).into())
}

/// The innermost cause says what happened; the outer ones say "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Reads a file of at most `max` bytes.
pub(crate) async fn read_bounded(path: &Path, max: u64) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let mut bytes = Vec::new();
    let read = tokio::fs::File::open(path).await?.take(max + 1).read_to_end(&mut bytes).await?;
    if read as u64 > max {
        return Err(std::io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

#[derive(Clone)]
struct Dial {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { address, name, tls } = self.clone();
        Box::pin(async move {
            let stream = timeout(DIAL_TIMEOUT, TcpStream::connect(&address))
                .await
                .map_err(|_| format!("{address}: no connection within {DIAL_TIMEOUT:?}"))?
                .map_err(|e| format!("{address}: {e}"))?;
            stream.set_nodelay(true)?;
            // Says which clock is wrong, if the control plane's certificate is not good yet or any more.
            let stream = tls
                .connect(name, stream)
                .await
                .map_err(|e| format!("{address}: TLS: {}", HandshakeError::from_io(&e)))?;
            Ok(TokioIo::new(stream))
        })
    }
}

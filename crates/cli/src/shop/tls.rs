//! The shop's service outside of the mesh: TLS with client certificates of its own authority.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use maille_tls::control::{Credential, https_server_for_clients_of};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Files of a server that demands client certificates.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsFiles {
    /// Serve TLS, with the certificate chain of this PEM file; it and the next two are read again when they change.
    #[arg(long = "tls-cert", value_name = "FILE", requires_all = ["key", "client_ca"])]
    cert: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long = "tls-key", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Authorities, one of which must have signed a client's certificate.
    #[arg(long = "tls-client-ca", value_name = "FILE", requires = "cert")]
    client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// What the files hold now; `None` if the service is to serve plaintext.
    pub(super) fn server(&self) -> Result<Option<TlsServer>> {
        let (Some(cert), Some(key), Some(client_ca)) = (&self.cert, &self.key, &self.client_ca) else {
            return Ok(None);
        };
        let files = [cert.clone(), key.clone(), client_ca.clone()];
        let texts = read(&files)?;
        let config = config(&texts)?;
        Ok(Some(TlsServer { files, texts, config }))
    }
}

/// A server's certificate and whom it lets in.
#[derive(Debug)]
pub(super) struct TlsServer {
    files: [PathBuf; 3],
    texts: [String; 3],
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// For one connection, by what the files hold now; if that is not usable, by what they held before.
    pub(super) fn acceptor(&mut self) -> TlsAcceptor {
        if let Err(error) = self.reload() {
            println!("the TLS files are not usable, the last ones stay in use: {error:#}");
        }
        self.config.clone().into()
    }

    fn reload(&mut self) -> Result<()> {
        let texts = read(&self.files)?;
        if texts != self.texts {
            self.config = config(&texts)?;
            self.texts = texts;
            println!("new TLS files are in use");
        }
        Ok(())
    }
}

fn read([cert, key, client_ca]: &[PathBuf; 3]) -> Result<[String; 3]> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok([text(cert)?, text(key)?, text(client_ca)?])
}

fn config([cert, key, client_ca]: &[String; 3]) -> Result<Arc<ServerConfig>> {
    Ok(https_server_for_clients_of(&Credential::from_pem(cert, key)?, client_ca)?)
}

/// The stream inside TLS and who is at its other end, as the certificate's subject says; nothing for a client that
/// cannot prove itself.
pub(super) async fn accept(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Option<(TlsStream<TcpStream>, String)> {
    let from = stream.peer_addr().ok()?;
    match timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let subject = leaf.and_then(|leaf| maille_pki::client_subject(leaf).ok())?;
            let organizations = subject.organizations.iter().map(|name| format!(", O={name}"));
            let caller = format!("CN={}{}", subject.common_name, organizations.collect::<String>());
            Some((stream, caller))
        }
        // Health checks connect and go.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => None,
        Ok(Err(error)) => {
            println!("{from} is refused: {error}");
            None
        }
        Err(_) => None,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::certificates::make;
    use maille_tls::control::https_client;
    use rustls::pki_types::ServerName;
    use serde_json::Value;
    use std::time::SystemTime;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    /// Who the server sees behind a client with this certificate; nothing if it lets none in.
    async fn call(server: &mut TlsServer, callers: &Value, shows_certificate: bool) -> Option<String> {
        let text = |key: &str| callers[key].as_str().expect("text").to_owned();
        let own = Credential::from_pem(&text("cert.pem"), &text("key.pem")).expect("a credential");
        let config = https_client(&text("ca.pem"), shows_certificate.then_some(&own)).expect("a client");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (accepted, _) = listener.accept().await.expect("accept");
        let name = ServerName::try_from("api.external-service.com").expect("a name");
        let client = async {
            if let Ok(mut stream) = tokio_rustls::TlsConnector::from(config).connect(name, stream).await {
                let _ = stream.read(&mut [0]).await;
            }
        };
        let server = async { accept(server.acceptor(), accepted).await.map(|(_, caller)| caller) };
        tokio::join!(client, server).1
    }

    fn write(folder: &std::path::Path, server: &Value) {
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::fs::write(folder.join(name), server[name].as_str().expect("text")).expect("write");
        }
    }

    #[tokio::test]
    async fn only_clients_of_the_authority_are_let_in_and_new_files_count_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (server, callers) = make(SystemTime::now()).expect("certificates");
        write(folder.path(), &server);
        let file = |name: &str| Some(folder.path().join(name));
        let files = TlsFiles { cert: file("tls.crt"), key: file("tls.key"), client_ca: file("ca.crt") };
        let mut tls = files.server().expect("usable").expect("TLS");
        assert_eq!(call(&mut tls, &callers, true).await.as_deref(), Some("CN=shop, O=production"));
        assert_eq!(call(&mut tls, &callers, false).await, None, "without a certificate");

        let (new_server, new_callers) = make(SystemTime::now()).expect("certificates");
        assert_eq!(call(&mut tls, &new_callers, true).await, None, "of another authority");
        write(folder.path(), &new_server);
        assert!(call(&mut tls, &new_callers, true).await.is_some(), "the new files are in use");
        std::fs::remove_file(folder.path().join("tls.key")).expect("remove");
        assert!(call(&mut tls, &new_callers, true).await.is_some(), "the last good ones stay");
    }
}

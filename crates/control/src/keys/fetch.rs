//! One fetch of a key set.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use maille_tls::{Origin, OriginRequest, Proof, ServerRoots};
use rustls::pki_types::ServerName;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::dial::{Connection, Dial, SystemDial};
use super::url::Url;
use crate::facts::public_keys;
use crate::world::KeySource;

/// Longer answers are refused; the largest key sets in use have some ten kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// The head of an answer.
const MAX_HEAD: usize = 64 * 1024;

const MAX_REDIRECTS: usize = 5;

/// Whatever a rule says, nobody waits longer: the places for fetches are shared.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Where operating systems keep their roots; the first that exists is read, unless `SSL_CERT_FILE` names another.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What servers must prove themselves by.
#[derive(Debug, Clone)]
pub enum Roots {
    /// The operating system's, read anew for each fetch.
    System,
    /// These, PEM.
    Pem(Arc<str>),
}

/// Fetches key sets.
#[derive(Clone)]
pub struct Fetcher {
    dial: Arc<dyn Dial>,
    roots: Roots,
    /// Names of which servers must prove one, in place of the one that is dialled.
    names: Option<Arc<[String]>>,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::new(Arc::new(SystemDial), Roots::System)
    }
}

/// Ends what it stands for.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fetcher {
    /// One that reaches servers this way.
    pub fn new(dial: Arc<dyn Dial>, roots: Roots) -> Self {
        Self { dial, roots, names: None }
    }

    /// The same, for servers that prove one of these names whatever they are dialled by; redirects, which would lead to
    /// others, are not followed.
    pub(crate) fn proving(self, names: Arc<[String]>) -> Self {
        Self { names: Some(names), ..self }
    }

    /// What is at a URL.
    pub(crate) async fn document(&self, url: &str, what: &str, limit: Duration) -> Result<Bytes, String> {
        let url = parse(url, what)?;
        let fetched = timeout(limit, self.get(&url)).await;
        fetched.unwrap_or_else(|_| Err(format!("{url} was not answered within {limit:?}")))
    }

    /// The public keys of a source, as a key set of their own; an error says what is wrong, for whoever wrote the policy.
    pub async fn keys(&self, source: &KeySource, limit: Duration) -> Result<String, String> {
        let limit = limit.min(MAX_TIMEOUT);
        let fetched = timeout(limit, self.keys_in_time(source)).await;
        fetched.unwrap_or_else(|_| Err(format!("{} was not answered within {limit:?}", name(source))))
    }

    async fn keys_in_time(&self, source: &KeySource) -> Result<String, String> {
        let url = match source {
            KeySource::Url(url) => parse(url, "jwksUri")?,
            KeySource::Issuer(issuer) => {
                let document = discovery(issuer);
                let document =
                    parse(&document, "the issuer, where keys are looked for without jwks and jwksUri,")?;
                self.discover(&document).await?
            }
        };
        let answer = self.get(&url).await?;
        let text = std::str::from_utf8(&answer).map_err(|_| format!("{url} is no key set: it is no text"))?;
        public_keys(text).map_err(|problem| format!("{url} cannot be used: {problem}"))
    }

    /// The address of the keys in a document of OpenID Connect Discovery 1.0 section 3.
    async fn discover(&self, document: &Url) -> Result<Url, String> {
        let answer = self.get(document).await?;
        let read: serde_json::Value = serde_json::from_slice(&answer)
            .map_err(|_| format!("{document} is no OpenID configuration: it is no JSON"))?;
        let keys = read.get("jwks_uri").and_then(serde_json::Value::as_str);
        let keys =
            keys.ok_or_else(|| format!("{document} is no OpenID configuration: it has no jwks_uri"))?;
        let keys = Url::parse(keys).map_err(|problem| format!("the jwks_uri in {document} {problem}"))?;
        match document.is_https && !keys.is_https {
            true => Err(format!("the jwks_uri in {document} is not https, although the document is")),
            false => Ok(keys),
        }
    }

    async fn get(&self, url: &Url) -> Result<Bytes, String> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (answer, _connection) = self.ask(&at).await?;
            let status = answer.status();
            if status.is_success() {
                return body(answer).await.map_err(|problem| format!("{at} {problem}"));
            }
            if !is_redirect(status) || self.names.is_some() {
                return Err(format!("{at} answered {status}"));
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            at = at.redirected(location.unwrap_or_default()).map_err(|problem| format!("{at} {problem}"))?;
        }
        Err(format!("{url} redirects more than {MAX_REDIRECTS} times"))
    }

    async fn ask(&self, url: &Url) -> Result<(http::Response<Incoming>, AbortOnDrop), String> {
        let stream = self.dial.dial(&url.host, url.port).await.map_err(|why| format!("{url}: {why}"))?;
        let stream: Box<dyn Connection> = match url.is_https {
            false => stream,
            true => Box::new(self.secure(url, stream).await.map_err(|why| format!("{url}: {why}"))?),
        };
        let talk = |error: hyper::Error| format!("{url} gave no answer in HTTP/1.1: {error}");
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(talk)?;
        let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
        let request = Request::get(&url.target)
            .header(HOST, &url.authority)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, "maille")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| format!("{url} is no URL that can be asked for"))?;
        Ok((sender.send_request(request).await.map_err(talk)?, connection))
    }

    async fn secure(
        &self,
        url: &Url,
        stream: Box<dyn Connection>,
    ) -> Result<tokio_rustls::client::TlsStream<Box<dyn Connection>>, String> {
        let roots = self.roots.clone();
        // Some hundred certificates, from a file.
        let roots = tokio::task::spawn_blocking(move || roots.read()).await;
        let roots = roots.map_err(|_| "the roots could not be read".to_owned())??;
        let proof = self.names.clone().map_or(Proof::DialledName, Proof::OneOf);
        let request = OriginRequest { proof, http2: false, sends_name: true };
        let config = Origin::new(None, Some(roots)).client_config(&request).map_err(|e| e.to_string())?;
        let name =
            ServerName::try_from(url.host.clone()).map_err(|_| "its host is no name for TLS".to_owned())?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        connected.map_err(|error| format!("the server's certificate or TLS is not accepted: {error}"))
    }
}

impl Roots {
    fn read(self) -> Result<ServerRoots, String> {
        let pem = match self {
            Self::Pem(pem) => {
                return ServerRoots::from_pem(&pem, "the roots given").map_err(|e| e.to_string());
            }
            Self::System => {
                let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
                let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.is_file());
                let path = named.or_else(|| found.map(Path::to_owned)).ok_or_else(|| {
                    format!("the control plane has no roots for https (none of {})", SYSTEM_ROOTS.join(", "))
                })?;
                let text = std::fs::read_to_string(&path);
                text.map_err(|error| {
                    format!("the control plane's roots in {} cannot be read: {error}", path.display())
                })?
            }
        };
        ServerRoots::of_system(&pem, "the control plane's operating system").map_err(|e| e.to_string())
    }
}

/// Where an issuer's configuration is (OpenID Connect Discovery 1.0 section 4.1).
fn discovery(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer))
}

fn parse(url: &str, what: &str) -> Result<Url, String> {
    Url::parse(url).map_err(|problem| format!("{what} {problem}"))
}

/// What is asked for, as messages name it.
fn name(source: &KeySource) -> String {
    let url = match source {
        KeySource::Url(url) => Url::parse(url),
        KeySource::Issuer(issuer) => Url::parse(&discovery(issuer)),
    };
    url.map_or_else(|_| "the source of the keys".to_owned(), |url| url.to_string())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

async fn body(answer: http::Response<Incoming>) -> Result<Bytes, String> {
    match Limited::new(answer.into_body(), MAX_ANSWER).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(format!("answers with more than {MAX_ANSWER} bytes"))
        }
        Err(_) => Err("ended its answer early".to_owned()),
    }
}

//! Servers as they might be: each connection gets what the script says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maille_control::keys::{Connection, Dial, Dialled, Fetcher, KeySource, Roots};
use maille_testkit::{Credential, TestAuthority};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// More than any test waits for on purpose.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What a path is answered with, byte for byte.
#[derive(Clone)]
pub(crate) enum Reply {
    Raw(Vec<u8>),
    /// Nothing, ever.
    Silence,
}

/// Answers by path; counts what it was asked.
#[derive(Clone, Default)]
pub(crate) struct Script {
    replies: Arc<Mutex<BTreeMap<String, Reply>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub(crate) fn on(&self, path: &str, reply: Reply) -> &Self {
        self.replies.lock().expect("no panic").insert(path.to_owned(), reply);
        self
    }

    pub(crate) fn json(&self, path: &str, value: &Value) -> &Self {
        self.on(path, answer("200 OK", &[], &value.to_string()))
    }

    /// The heads of all requests.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    async fn talk(self, mut stream: impl Connection) {
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(read @ 1..) => head.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        self.asked.lock().expect("no panic").push(head);
        let reply = self.replies.lock().expect("no panic").get(&path).cloned();
        match reply.unwrap_or_else(|| answer("404 Not Found", &[], "nothing here")) {
            Reply::Silence => std::future::pending().await,
            Reply::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            }
        }
    }
}

pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    Reply::Raw(format!("{text}\r\n{body}").into_bytes())
}

/// A server on a real socket, plain or with TLS, and the way to it whatever the name.
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) script: Script,
}

impl Server {
    pub(crate) async fn start(credential: Option<&Credential>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let script = Script::default();
        let acceptor = credential.map(|credential| TlsAcceptor::from(config(credential)));
        let talking = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, acceptor) = (talking.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => script.talk(stream).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                script.talk(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, script }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn fetcher(&self, trusted: &TestAuthority) -> Fetcher {
        self.with_roots(Roots::Pem(trusted.roots_pem().into()))
    }

    pub(crate) fn with_roots(&self, roots: Roots) -> Fetcher {
        Fetcher::new(Arc::new(Only(self.address)), roots)
    }
}

fn config(credential: &Credential) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(maille_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(credential.chain.clone(), credential.key.to_der().clone_key())
        .expect("a pair");
    Arc::new(config)
}

/// Every name is one server's.
struct Only(SocketAddr);

impl Dial for Only {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> Dialled<'a> {
        Box::pin(async move {
            let stream = TcpStream::connect(self.0).await.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// A script in memory, so that time can be the test's.
pub(crate) struct InMemory(pub(crate) Script);

impl Dial for InMemory {
    fn dial<'a>(&'a self, _host: &'a str, _port: u16) -> Dialled<'a> {
        Box::pin(async move {
            let (ours, theirs) = duplex(64 * 1024);
            tokio::spawn(self.0.clone().talk(theirs));
            Ok(Box::new(ours) as Box<dyn Connection>)
        })
    }
}

/// A key set of one key with this id.
pub(crate) fn key_set(id: &str) -> Value {
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": id, "x": "AQ", "y": "AQ" }] })
}

pub(crate) fn url(text: &str) -> KeySource {
    KeySource::Url(text.to_owned())
}

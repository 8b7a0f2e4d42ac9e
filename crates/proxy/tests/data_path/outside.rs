//! What is outside of the mesh: a name server, a server that demands client certificates, and a sidecar that knows both.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use http::Response;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;
use maille_testkit::{Credential, TestAuthority};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::lab::{Lab, PATIENCE};

pub(crate) const API: &str = "api.external-service.com";
pub(crate) const RULE: &str = "DestinationRule production/external-api-mtls";

/// Addresses and TTL by name.
type Zone = HashMap<String, (Vec<Ipv4Addr>, u32)>;

/// A name server on loopback.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    names: Arc<Mutex<Zone>>,
    is_silent: Arc<AtomicU32>,
    pub(crate) questions: Arc<AtomicUsize>,
}

impl NameServer {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: socket.local_addr().expect("bound"),
            names: Arc::default(),
            is_silent: Arc::default(),
            questions: Arc::default(),
        };
        let (names, is_silent) = (server.names.clone(), server.is_silent.clone());
        let questions = server.questions.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                questions.fetch_add(1, Ordering::SeqCst);
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                if is_silent.load(Ordering::SeqCst) == 0
                    && let Ok(bytes) = reply(&query, &names.lock().expect("no panic")).to_vec()
                {
                    let _ = socket.send_to(&bytes, client);
                }
            }
        });
        server
    }

    /// Of the name that everybody here calls.
    pub(crate) fn of_api() -> Self {
        let server = Self::new();
        server.set(API, &[Ipv4Addr::LOCALHOST], 60);
        server
    }

    pub(crate) fn set(&self, name: &str, addresses: &[Ipv4Addr], ttl: u32) {
        self.names.lock().expect("no panic").insert(name.to_owned(), (addresses.to_vec(), ttl));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.names.lock().expect("no panic").remove(name);
    }

    /// Whether to answer nothing at all.
    pub(crate) fn is_away(&self, is_away: bool) {
        self.is_silent.store(is_away.into(), Ordering::SeqCst);
    }
}

fn reply(query: &Message, names: &Zone) -> Message {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.authoritative = true;
    for question in &query.queries {
        response.add_query(question.clone());
        let name = question.name().to_ascii();
        match names.get(name.to_ascii_lowercase().trim_end_matches('.')) {
            Some((addresses, ttl)) if question.query_type() == RecordType::A => {
                for address in addresses {
                    let data = RData::A(A(*address));
                    response.add_answer(Record::from_rdata(question.name().clone(), *ttl, data));
                }
            }
            Some(_) => {}
            None => response.metadata.response_code = ResponseCode::NXDomain,
        }
    }
    response
}

/// An HTTP server over TLS that says whom it sees, and demands client certificates if it is given roots for them.
pub(crate) struct TlsServer {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl TlsServer {
    pub(crate) fn new(own: &Credential, client_roots: Option<&TestAuthority>) -> Self {
        Self::at(IpAddr::from([127, 0, 0, 1]), 0, own, client_roots)
    }

    pub(crate) fn at(ip: IpAddr, port: u16, own: &Credential, client_roots: Option<&TestAuthority>) -> Self {
        let builder = ServerConfig::builder_with_provider(maille_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("known versions");
        let builder = match client_roots {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut store = RootCertStore::empty();
                for root in authority.authority().roots() {
                    store.add(root.clone()).expect("a root");
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(store.into(), maille_tls::provider());
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = own.key.to_der().clone_key();
        let mut config =
            builder.with_single_cert(own.chain.clone(), key).expect("a certificate with its key");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let listener = TcpListener::bind((ip, port)).expect("a port");
        let server = Self { address: listener.local_addr().expect("bound"), connections: Arc::default() };
        let connections = server.connections.clone();
        listener.set_nonblocking(true).expect("a socket");
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(listener, TlsAcceptor::from(Arc::new(config)), connections));
        });
        server
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, connections: Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        tokio::spawn(async move {
            let local = stream.local_addr().map(|a| a.ip().to_string()).unwrap_or_default();
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
            let session = stream.get_ref().1;
            let client = session
                .peer_certificates()
                .and_then(<[_]>::first)
                .and_then(|leaf| maille_pki::client_subject(leaf).ok().map(|subject| subject.common_name));
            let alpn = session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned());
            let text = format!(
                "server={local} sni={} alpn={} client={} connection={number}",
                session.server_name().unwrap_or("none"),
                alpn.as_deref().unwrap_or("none"),
                client.as_deref().unwrap_or("none"),
            );
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let host = request.headers().get("host").and_then(|h| h.to_str().ok()).unwrap_or("-");
                let body = format!("{text} host={host} version={:?}\n", request.version());
                async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body)))) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The external host's authority, and what it gave out.
pub(crate) struct Outside {
    pub(crate) authority: TestAuthority,
    pub(crate) server: Credential,
    folder: PathBuf,
}

impl Outside {
    pub(crate) fn new(lab: &Lab) -> Self {
        let authority = TestAuthority::new();
        let folder = lab.path("certs");
        std::fs::create_dir(&folder).expect("a directory");
        let outside = Self { server: authority.server(&[API], &[]), authority, folder };
        outside.give("payment-service", Duration::from_secs(3600));
        outside
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.file(name);
        let fresh = self.folder.join("fresh");
        std::fs::write(&fresh, text).expect("writable");
        std::fs::rename(fresh, path).expect("replaced");
    }

    /// Writes a client certificate of this authority, its key and the root.
    pub(crate) fn give(&self, client: &str, ttl: Duration) {
        let key = maille_pki::generate_key().expect("a key");
        let public = key.public_key().expect("P-256");
        let now = std::time::SystemTime::now();
        let issued =
            self.authority.authority().issue_client(&public, client, None, ttl, now).expect("signed");
        self.write("cert.pem", &issued.chain_text());
        self.write("key.pem", &key.to_pem());
        self.write("ca.pem", &self.authority.roots_pem());
    }

    /// The `tls` of the guide's DestinationRule.
    pub(crate) fn mutual(&self, more: &str) -> String {
        let path = |name| self.file(name).display().to_string();
        format!(
            "{{mode: MUTUAL, rule: production/external-api-mtls, clientCertificate: {}, privateKey: {}, \
             caCertificates: {}{more}}}",
            path("cert.pem"),
            path("key.pem"),
            path("ca.pem")
        )
    }

    pub(crate) fn simple(&self, more: &str) -> String {
        let ca = self.file("ca.pem");
        format!(
            "{{mode: SIMPLE, rule: production/external-api-mtls, caCertificates: {}{more}}}",
            ca.display()
        )
    }
}

/// A sidecar of `production` that knows the guide's ServiceEntry.
pub(crate) struct Sidecar<'a> {
    /// One entry of `ports`.
    pub(crate) port: String,
    pub(crate) resolution: &'a str,
    /// The entries of `endpoints`.
    pub(crate) endpoints: String,
    pub(crate) dns: Option<SocketAddr>,
    /// What the application dials.
    pub(crate) dialled: SocketAddr,
    /// More facts.
    pub(crate) more: String,
}

impl Sidecar<'_> {
    /// As in the guide: port 443, HTTPS, resolution DNS.
    pub(crate) fn of_guide(tls: &str, server: SocketAddr, dns: &NameServer) -> Self {
        Self {
            port: format!("{{number: 443, name: https, protocol: TLS, tls: {tls}}}"),
            resolution: "DNS",
            endpoints: by_name(443, server.port()),
            dns: Some(dns.address),
            dialled: SocketAddr::from(([192, 0, 2, 7], 443)),
            more: String::new(),
        }
    }

    pub(crate) fn start(&self, lab: &Lab) -> StaticProxy {
        let path = lab.path("external.yaml");
        self.write(lab, &path);
        StaticProxy::start(&path).expect("the outbound proxy starts")
    }

    pub(crate) fn write(&self, lab: &Lab, path: &Path) {
        let Self { port, resolution, endpoints, dns, dialled, more } = self;
        let dns = dns.map(|dns| format!("'{dns}'")).unwrap_or_default();
        let text = format!(
            "{}dnsServers: [{dns}]\n\
             inbound: {{mode: STRICT, workload: {{uid: production/payment-1, namespace: production, \
             workloadName: payment-service}}}}\n\
             destinations:\n  {API}:\n    service: {{namespace: production, name: {API}, hostname: {API}, external: true, \
             resolution: {resolution}, serviceEntry: production/external-api, ports: [{port}], \
             endpoints: [{endpoints}]}}\n{more}\n\
             listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '{dialled}'}}\n",
            lab.header("payment-service"),
        );
        std::fs::write(path, text).expect("writable");
    }
}

/// An endpoint that is the name itself.
pub(crate) fn by_name(service_port: u16, target_port: u16) -> String {
    format!(
        "{{dnsName: {API}, ports: [{{servicePort: {service_port}, targetPort: {target_port}, tls: PLAINTEXT}}]}}"
    )
}

pub(crate) fn by_address(service_port: u16, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "{{address: '{ip}', ports: [{{servicePort: {service_port}, targetPort: {port}, tls: PLAINTEXT}}]}}"
    )
}

/// One request of the guide: `curl http://api.external-service.com:443/`.
pub(crate) fn call(proxy: &StaticProxy) -> String {
    call_host(proxy, &format!("{API}:443"))
}

pub(crate) fn call_host(proxy: &StaticProxy, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    crate::lab::exchange(crate::lab::at(proxy), request.as_bytes())
}

/// Calls until the answer is as wanted.
pub(crate) fn call_until(proxy: &StaticProxy, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = call(proxy);
        if wanted(&answer) || Instant::now() > deadline {
            assert!(wanted(&answer), "not in time; the last answer was {answer}");
            return answer;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Waits for a flow that was refused, and gives its reason.
pub(crate) fn refusal(proxy: &StaticProxy) -> maille_proto::flows::Flow {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(flow) = proxy.take_flows().into_iter().find(|flow| !flow.reason.is_empty()) {
            return flow;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("no refusal was seen");
}

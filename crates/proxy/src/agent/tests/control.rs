//! A scripted control plane: certificate authority, discovery and flows on one TLS port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _, stream};
use maille_core::{Identity, TrustDomain};
use maille_pki::{Authority, CertificateRequest, TrustBundles, generate_key};
use maille_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use maille_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use maille_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use maille_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use maille_proto::flows::flows_server::{Flows, FlowsServer};
use maille_proto::flows::{Flow, FlowReport, FlowReportSummary, ProxyState};
use maille_proto::identity::identity_server::IdentityServer;
use maille_tls::control::{Credential, discovery_server};
use maille_tls::{Trust, peer_of_server};
use maille_xds::{Dirty, Resource, ServerState, View, serve_stream, type_urls};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, Streaming};

use super::minting::{JwtKey, Minter};

pub(super) const SERVER_NAME: &str = "istiod.istio-system.svc";
const TYPES: [&str; 8] = [
    type_urls::REVOCATIONS,
    type_urls::CREDENTIAL,
    type_urls::INBOUND,
    type_urls::DESTINATION,
    type_urls::AUTHORIZATION,
    type_urls::REQUEST_AUTHENTICATION,
    type_urls::TRUST_BUNDLE,
    type_urls::MESH_SETTINGS,
];

type Resources = BTreeMap<(&'static str, String), Arc<Resource>>;

/// What a test sets and reads; shared with the services.
pub(super) struct Script {
    pub(super) authority: Authority,
    /// Signs in the place of `authority`, which stays the root of the control plane's own certificate.
    pub(super) successor: Mutex<Option<Arc<Authority>>>,
    /// Bearer tokens that are accepted, and whom they prove.
    pub(super) tokens: Mutex<BTreeMap<String, Identity>>,
    /// Lifetime of certificates, in place of what is asked for.
    pub(super) ttl: Mutex<Option<Duration>>,
    /// Of the control plane's own certificate.
    pub(super) server_ttl: Mutex<Duration>,
    pub(super) issued: Mutex<Vec<String>>,
    pub(super) nacks: Mutex<Vec<String>>,
    pub(super) flows: Mutex<Vec<Flow>>,
    pub(super) states: Mutex<Vec<ProxyState>>,
    pub(super) jwt: Arc<JwtKey>,
    /// Nothing is issued to anybody, as to who is revoked.
    pub(super) refuses: Arc<AtomicBool>,
    resources: watch::Sender<Resources>,
}

/// The control plane; dropping it closes its port and its connections.
pub(super) struct Control {
    pub(super) address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Script {
    pub(super) fn new() -> Arc<Self> {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let authority = Authority::self_signed(&domain, SystemTime::now(), Duration::from_secs(86_400))
            .expect("authority");
        Arc::new(Self {
            authority,
            successor: Mutex::default(),
            tokens: Mutex::default(),
            ttl: Mutex::default(),
            server_ttl: Mutex::new(Duration::from_secs(3600)),
            issued: Mutex::default(),
            nacks: Mutex::default(),
            flows: Mutex::default(),
            states: Mutex::default(),
            jwt: JwtKey::new(),
            refuses: Arc::default(),
            resources: watch::Sender::default(),
        })
    }

    pub(super) fn set(&self, type_url: &'static str, name: &str, message: &impl Message) {
        self.set_bytes(type_url, name, message.encode_to_vec());
    }

    pub(super) fn set_bytes(&self, type_url: &'static str, name: &str, value: Vec<u8>) {
        self.resources.send_modify(|resources| {
            let version = format!(
                "v{}",
                resources.values().map(|r| r.version.len()).sum::<usize>() + rand::random::<u16>() as usize
            );
            let body = prost_types::Any { type_url: type_url.to_owned(), value };
            let resource = Resource { name: name.to_owned(), version, body };
            resources.insert((type_url, name.to_owned()), Arc::new(resource));
        });
    }

    pub(super) fn remove(&self, type_url: &'static str, name: &str) {
        self.resources.send_modify(|resources| {
            resources.remove(&(type_url, name.to_owned()));
        });
    }

    pub(super) fn write_roots(&self, path: &Path) {
        std::fs::write(path, self.authority.roots_pem()).expect("roots written");
    }
}

impl Control {
    /// Listens on `address` (port 0 for any).
    pub(super) async fn start(script: Arc<Script>, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("listener");
        let address = listener.local_addr().expect("address");
        let key = generate_key().expect("key");
        let issued = script
            .authority
            .issue_server(
                &key.public_key().expect("public key"),
                &[SERVER_NAME],
                &[],
                *script.server_ttl.lock(),
                SystemTime::now(),
            )
            .expect("server certificate");
        let own = Credential::from_pem(&issued.chain_text(), &key.to_pem()).expect("credential");
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let successor = script.successor.lock().as_ref().map(|next| next.roots_pem());
        let roots = script.authority.roots_pem() + &successor.unwrap_or_default();
        let bundles = TrustBundles::from_pem(domain.clone(), &roots).expect("bundle");
        let trust = Trust::of_mesh(bundles, &domain, &[]).expect("trust");
        let acceptor = TlsAcceptor::from(discovery_server(&own, &trust).expect("server config"));
        let accept = tokio::spawn(accept(listener, acceptor, script));
        Self { address, tasks: vec![accept] }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Serves each connection over an in-memory pipe, since that is a stream type that the server takes as it is.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, script: Arc<Script>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let (acceptor, script) = (acceptor.clone(), script.clone());
        connections.spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let peer = peer_of_server(stream.get_ref().1).ok();
            let (mut near, far) = tokio::io::duplex(64 * 1024);
            let services = Services { script, peer };
            let serving = tonic::transport::Server::builder()
                .add_service(IstioCertificateServiceServer::new(services.clone()))
                .add_service(AggregatedDiscoveryServiceServer::new(services.clone()))
                .add_service(IdentityServer::new(Minter {
                    key: services.script.jwt.clone(),
                    peer: services.peer.clone(),
                    refuses: services.script.refuses.clone(),
                }))
                .add_service(FlowsServer::new(services))
                .serve_with_incoming(stream::iter([Ok::<_, std::io::Error>(far)]).chain(stream::pending()));
            tokio::select! {
                _ = serving => {}
                _ = tokio::io::copy_bidirectional(&mut stream, &mut near) => {}
            }
        });
    }
}

#[derive(Clone)]
struct Services {
    script: Arc<Script>,
    peer: Option<Identity>,
}

#[tonic::async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let token = bearer.and_then(|v| v.strip_prefix("Bearer "));
        let proved =
            token.and_then(|t| self.script.tokens.lock().get(t).cloned()).or_else(|| self.peer.clone());
        let identity = proved.ok_or_else(|| Status::unauthenticated("request authenticate failure"))?;
        if self.script.refuses.load(Ordering::Relaxed) {
            return Err(Status::permission_denied("this identity is revoked; nothing is issued to it"));
        }
        let asked = request.into_inner();
        let ttl = Duration::from_secs(asked.validity_duration.try_into().unwrap_or(60));
        let ttl = self.script.ttl.lock().unwrap_or(ttl);
        let csr =
            CertificateRequest::parse_pem(&asked.csr).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let successor = self.script.successor.lock().clone();
        let issued = successor
            .as_deref()
            .unwrap_or(&self.script.authority)
            .issue(&csr, &identity, ttl, SystemTime::now())
            .map_err(|e| Status::internal(e.to_string()))?;
        self.script.issued.lock().push(issued.serial.clone());
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.into_response() }))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Services {
    type DeltaAggregatedResourcesStream = Answers;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        if self.peer.is_none() {
            return Err(Status::unauthenticated("show your certificate"));
        }
        let view = Seen { script: self.script.clone(), resources: self.script.resources.subscribe() };
        Ok(Response::new(Box::pin(serve_stream(request.into_inner(), view))))
    }
}

#[tonic::async_trait]
impl Flows for Services {
    async fn report(
        &self,
        request: Request<Streaming<FlowReport>>,
    ) -> Result<Response<FlowReportSummary>, Status> {
        let mut reports = request.into_inner();
        while let Some(report) = reports.message().await? {
            self.script.flows.lock().extend(report.flows);
            self.script.states.lock().extend(report.state);
        }
        Ok(Response::new(FlowReportSummary::default()))
    }
}

struct Seen {
    script: Arc<Script>,
    resources: watch::Receiver<Resources>,
}

impl View for Seen {
    fn list(&self, type_url: &str) -> Vec<Arc<Resource>> {
        self.resources.borrow().iter().filter(|((t, _), _)| *t == type_url).map(|(_, r)| r.clone()).collect()
    }

    fn resource(&self, type_url: &str, name: &str) -> Option<Arc<Resource>> {
        let resources = self.resources.borrow();
        resources.iter().find(|((t, n), _)| *t == type_url && n == name).map(|(_, r)| r.clone())
    }

    async fn changed(&mut self) -> Result<Vec<Dirty>, Status> {
        self.resources.changed().await.map_err(|_| Status::unavailable("the script ended"))?;
        Ok(TYPES.map(Dirty::Type).to_vec())
    }

    fn requested(&mut self, _: &str, request: &maille_xds::Request, _: &ServerState) {
        self.script.nacks.lock().extend(request.nacked.clone());
    }
}

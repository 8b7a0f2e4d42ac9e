//! The bundle endpoint: what others need to believe this mesh (SPIFFE Federation section 5).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use maille_core::Identity;
use maille_pki::{
    Authority, BundleDocument, CertificateDer, CertificateRequest, create_csr, generate_key, renew_at,
};
use maille_tls::control::{Credential, https_server};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::places::Places;
use crate::server::ControlPlane;

/// The endpoint's identity is this account in the control plane's namespace.
pub const ENDPOINT_ACCOUNT: &str = "istiod";
/// How often consumers are told to look. A rotation of the root gives them time to (`NOTICE`), and waits the longer, the
/// longer this is.
pub const REFRESH_HINT: Duration = Duration::from_secs(60);

/// Life of the endpoint's certificate.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Connections at once, and of one address.
const MAX_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS_PER_ADDRESS: usize = 16;
/// From its first byte to its last, a visit takes no longer.
const VISIT: Duration = Duration::from_secs(30);

/// Serves the document at `/` and `/bundle` until `stop` resolves, to everybody: there is nothing secret in it. The endpoint
/// proves `spiffe://<trust domain>/ns/<control plane's namespace>/sa/istiod` by the mesh's own authority (`https_spiffe`).
pub async fn serve_bundle(
    control: ControlPlane,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
) {
    let endpoint = Arc::new(Endpoint { control, serving: Mutex::default(), told: Mutex::default() });
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::new(MAX_CONNECTIONS_PER_ADDRESS);
    let accept = async {
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok((stream, address)) => (stream, address.ip().to_canonical()),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the bundle endpoint");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = places.take(address) else { continue };
            let endpoint = Arc::clone(&endpoint);
            tokio::spawn(async move {
                if let Ok(Err(reason)) = timeout(VISIT, endpoint.visit(stream, address)).await {
                    tracing::debug!(%address, %reason, "visit of the bundle endpoint");
                }
                drop((permit, place));
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop => {}
    }
}

struct Endpoint {
    control: ControlPlane,
    serving: Mutex<Option<Serving>>,
    told: Mutex<Option<Told>>,
}

/// A certificate in use.
#[derive(Clone)]
struct Serving {
    config: Arc<ServerConfig>,
    identity: Identity,
    signer: String,
    due: SystemTime,
}

/// What was answered last.
struct Told {
    content: BundleDocument,
    sequence: u64,
}

impl Endpoint {
    async fn visit(self: Arc<Self>, stream: TcpStream, address: IpAddr) -> Result<(), String> {
        let config = self.serving()?;
        let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|e: io::Error| e.to_string())?;
        tracing::debug!(%address, "the bundle endpoint is visited");
        let answer = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(this.answer(&request)) }
        });
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().max_buf_size(16 << 10);
        server.http2().max_concurrent_streams(8).max_header_list_size(16 << 10);
        server.serve_connection(TokioIo::new(stream), answer).await.map_err(|e| e.to_string())
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let says = |status, text: &'static str| {
            let mut response = Response::new(Full::from(text));
            *response.status_mut() = status;
            response
        };
        if !matches!(request.uri().path(), "/" | "/bundle") {
            return says(StatusCode::NOT_FOUND, "the trust bundle is at / and /bundle\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = says(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match self.document() {
            Ok(document) => {
                self.control.bundle_fetches.note(self.control.clock.now());
                let mut response = Response::new(Full::from(document));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
                response
            }
            Err(error) => {
                tracing::error!(%error, "the trust bundle cannot be told");
                says(StatusCode::SERVICE_UNAVAILABLE, "the trust bundle cannot be told now\n")
            }
        }
    }

    /// Everything that SVIDs of the own trust domain are verified by.
    fn document(&self) -> Result<Vec<u8>, String> {
        let snapshot = self.control.hub.snapshot();
        let world = &snapshot.world;
        let own = world.config().trust_domain.as_str();
        let roots: Vec<_> =
            world.roots_of(own).into_iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        if roots.is_empty() {
            return Err("the mesh has no root yet".to_owned());
        }
        let mut document = BundleDocument::new(roots, &world.jwks_of(own)).map_err(|e| e.to_string())?;
        document.sequence = Some(self.sequence(&document));
        document.refresh_hint = Some(REFRESH_HINT);
        document.encode().map_err(|e| e.to_string())
    }

    /// Grows with each change, and over restarts: it is the time of the change, or a later one. The control planes of a mesh
    /// count apart, and consumers refuse what is older; so the number is no older than the refresh hint, and one that is
    /// behind is for no longer than that, or than its clock is late.
    fn sequence(&self, content: &BundleDocument) -> u64 {
        let mut told = self.told.lock();
        let since = self.control.clock.now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(0, |since| since.as_secs());
        let is_fresh = |told: &&Told| now < told.sequence.saturating_add(REFRESH_HINT.as_secs());
        if let Some(told) = told.as_ref().filter(|told| told.content == *content).filter(is_fresh) {
            return told.sequence;
        }
        let sequence = told.as_ref().map_or(now, |told| now.max(told.sequence + 1));
        *told = Some(Told { content: content.clone(), sequence });
        sequence
    }

    /// With a certificate of the authority that signs now.
    fn serving(&self) -> Result<Arc<ServerConfig>, String> {
        let authority = self.control.authority.load_full().ok_or("the mesh has no authority yet")?;
        let snapshot = self.control.hub.snapshot();
        let config = snapshot.world.config();
        let identity = Identity::new(config.trust_domain.clone(), &config.system_namespace, ENDPOINT_ACCOUNT)
            .map_err(|e| e.to_string())?;
        let now = self.control.clock.now();
        let mut serving = self.serving.lock();
        if let Some(serving) = serving.as_ref()
            && serving.identity == identity
            && serving.signer == authority.signer()
            && now < serving.due
        {
            return Ok(Arc::clone(&serving.config));
        }
        let (config, due) = certified(&authority, &identity, now).map_err(|e| e.to_string())?;
        let signer = authority.signer().to_owned();
        *serving = Some(Serving { config: Arc::clone(&config), identity, signer, due });
        Ok(config)
    }
}

fn certified(
    authority: &Authority,
    identity: &Identity,
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, SystemTime), Box<dyn std::error::Error>> {
    let key = generate_key()?;
    let request = CertificateRequest::parse_pem(&create_csr(&key, identity)?)?;
    let issued = authority.issue(&request, identity, TTL, now)?;
    let credential = Credential::from_pem(&issued.chain_text(), &key.to_pem())?;
    Ok((https_server(&credential, None)?, renew_at(now, issued.not_after, 0.0)))
}

//! A real control plane on loopback with a scripted world, and callers at addresses of their choice.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use maille_config::istio::{self, AuthorizationPolicy, PeerAuthentication};
use maille_control::world::{
    Change, EndpointSlice, Event, MeshConfig, Pod, Service, ServicePort, SliceEndpoint, TargetPort, World,
};
use maille_control::{ControlPlane, Hub, Readiness, ReviewError, Reviewed, TokenReviewer, serve_monitoring};
use maille_core::{Identity, NamespacedName, PortProtocol, Selector, SystemClock, TrustDomain};
use maille_pki::{Authority, ROOT_TTL, Svid, create_csr, generate_key};
use maille_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use maille_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use maille_tls::control::{Credential, discovery_client};
use maille_xds::{
    Backoff, Client, ClientError, ClientOptions, Handler, Rejection, Update, configure_endpoint, run_client,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Addresses of the pods.
pub(crate) const WEB: &str = "127.0.0.11";
pub(crate) const CART: &str = "127.0.0.12";
/// Nobody's address.
pub(crate) const NOBODY: &str = "127.0.0.99";

/// Tokens read `<namespace>:<account>`, or `<namespace>:<account>:<pod>:<uid>` when bound.
struct Reviewer;

impl TokenReviewer for Reviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        assert_eq!(audience, "istio-ca");
        let parts: Vec<&str> = token.split(':').collect();
        let answer = match parts.as_slice() {
            ["away", ..] => Err(ReviewError::Unavailable("the API server is away".into())),
            [namespace, account] => {
                Ok(Reviewed { namespace: (*namespace).into(), service_account: (*account).into(), pod: None })
            }
            [namespace, account, pod, uid] => Ok(Reviewed {
                namespace: (*namespace).into(),
                service_account: (*account).into(),
                pod: Some(((*pod).into(), (*uid).into())),
            }),
            _ => Err(ReviewError::Rejected("unknown token".into())),
        };
        Box::pin(async move { answer })
    }
}

pub(crate) struct Lab {
    pub(crate) control: ControlPlane,
    pub(crate) address: SocketAddr,
    pub(crate) monitoring: SocketAddr,
    pub(crate) roots_pem: String,
    pub(crate) ready: Readiness,
    pub(crate) stop: tokio::sync::watch::Sender<bool>,
    pub(crate) server: Option<tokio::task::JoinHandle<()>>,
}

impl Lab {
    /// A control plane with two pods, `shop/web-1` and `shop/cart-1`, and a service before the latter.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// The same, changed before it serves.
    pub(crate) async fn with(change: impl FnOnce(&mut ControlPlane)) -> Self {
        let domain = TrustDomain::parse("cluster.local").expect("valid");
        let hub = Hub::new(World::new(MeshConfig::new(domain.clone())));
        let clock = Arc::new(SystemClock);
        let mut control = ControlPlane::new(hub, Arc::new(Reviewer), clock);
        change(&mut control);
        let authority =
            Authority::self_signed(&domain, std::time::SystemTime::now(), ROOT_TTL).expect("root");
        let roots_pem = authority.roots_pem();
        control.set_authority(authority);
        control.hub.apply([
            Event::Pod(Change::Put(pod("web-1", "web", WEB))),
            Event::Pod(Change::Put(pod("cart-1", "cart", CART))),
            Event::Service(Change::Put(cart_service())),
            Event::Slice(Change::Put(cart_slice(true))),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let http = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let monitoring = http.local_addr().expect("address");
        let stop = tokio::sync::watch::Sender::new(false);
        let stopped = |mut receiver: tokio::sync::watch::Receiver<bool>| async move {
            let _ = receiver.wait_for(|s| *s).await;
        };
        let ready = Readiness::default();
        let monitored = serve_monitoring(http, control.clone(), ready.clone(), stopped(stop.subscribe()));
        tokio::spawn(async move { monitored.await.expect("monitoring") });
        let (serving, until) = (control.clone(), stopped(stop.subscribe()));
        let server =
            Some(tokio::spawn(async move { serving.serve(vec![listener], until).await.expect("serve") }));
        Self { control, address, monitoring, roots_pem, ready, stop, server }
    }

    pub(crate) fn apply(&self, event: Event) {
        self.control.hub.apply([event]);
    }

    /// Serves again at the same port, as a new process of the same mesh would.
    pub(crate) async fn restart(&mut self) {
        let mut successor =
            ControlPlane::new(self.control.hub.clone(), Arc::new(Reviewer), Arc::new(SystemClock));
        successor.authority = Arc::clone(&self.control.authority);
        let listener = TcpListener::bind(self.address).await.expect("bind again");
        self.stop = tokio::sync::watch::Sender::new(false);
        let mut stopped = self.stop.subscribe();
        let serving = successor.clone();
        let until = async move {
            let _ = stopped.wait_for(|s| *s).await;
        };
        self.server =
            Some(tokio::spawn(async move { serving.serve(vec![listener], until).await.expect("serve") }));
        self.control = successor;
    }

    /// A connection from an address, showing an SVID if there is one.
    pub(crate) async fn channel(
        &self,
        from: &str,
        svid: Option<&Svid>,
    ) -> Result<Channel, maille_xds::BoxError> {
        channel(self.address, from, &self.roots_pem, svid).await
    }

    /// Asks for a certificate.
    pub(crate) async fn sign(
        &self,
        from: &str,
        token: Option<&str>,
        request: IstioCertificateRequest,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let channel = self.channel(from, None).await.expect("connects");
        let mut request = Request::new(request);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("header");
            request.metadata_mut().insert("authorization", value);
        }
        IstioCertificateServiceClient::new(channel).create_certificate(request).await
    }

    /// An SVID for the pod at an address, as its proxy would get it.
    pub(crate) async fn svid(&self, from: &str, token: &str) -> Svid {
        let key = generate_key().expect("key");
        let csr = create_csr(&key, &identity("shop", "whoever")).expect("csr");
        let request = IstioCertificateRequest { csr, ..Default::default() };
        let answer = self.sign(from, Some(token), request).await.expect("issued").into_inner();
        let (_roots, chain) = answer.cert_chain.split_last().expect("not empty");
        Svid::from_pem(chain, key).expect("an SVID")
    }

    /// A proxy's discovery client at an address.
    pub(crate) async fn proxy(&self, from: &'static str, svid: Svid) -> Proxy {
        let mut options = ClientOptions::new("test");
        options.backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200));
        let (client, driver) = Client::new(&options);
        let seen = Arc::new(Seen::default());
        let (address, roots) = (self.address, self.roots_pem.clone());
        let connect = move || {
            let (roots, svid) = (roots.clone(), svid.clone());
            async move { channel(address, from, &roots, Some(&svid)).await }
        };
        let handler = Collect(Arc::clone(&seen));
        let task = tokio::spawn(run_client(driver, options, connect, handler));
        Proxy { client, seen, task }
    }

    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.monitoring).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("status");
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }
}

pub(crate) async fn channel(
    address: SocketAddr,
    from: &str,
    roots_pem: &str,
    svid: Option<&Svid>,
) -> Result<Channel, maille_xds::BoxError> {
    let own = svid.map(Credential::from_svid).transpose()?;
    let connector = TlsConnector::from(discovery_client(roots_pem, own.as_ref())?);
    let from: IpAddr = from.parse()?;
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            let stream = socket.connect(address).await?;
            let name = "istiod.istio-system.svc".try_into().map_err(std::io::Error::other)?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    });
    let endpoint = configure_endpoint(Endpoint::from_static("http://istiod.istio-system.svc:15012"));
    Ok(endpoint.connect_with_connector(connect).await?)
}

pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new(TrustDomain::parse("cluster.local").expect("valid"), namespace, account).expect("valid")
}

pub(crate) struct Proxy {
    pub(crate) client: Client,
    pub(crate) seen: Arc<Seen>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a proxy has received and holds.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) resources: Mutex<BTreeMap<(String, String), prost_types::Any>>,
    pub(crate) removed: Mutex<Vec<String>>,
    pub(crate) errors: Mutex<Vec<String>>,
    pub(crate) reject: Mutex<Option<String>>,
    /// How many resources were sent.
    pub(crate) received: AtomicUsize,
}

impl Seen {
    pub(crate) fn get<M: prost::Message + Default>(&self, type_url: &str, name: &str) -> Option<M> {
        let resources = self.resources.lock().expect("lock");
        let any = resources.get(&(type_url.to_owned(), name.to_owned()))?;
        Some(M::decode(any.value.as_slice()).expect("decodes"))
    }

    pub(crate) fn names(&self, type_url: &str) -> Vec<String> {
        let resources = self.resources.lock().expect("lock");
        resources.keys().filter(|(t, _)| t == type_url).map(|(_, n)| n.clone()).collect()
    }
}

pub(crate) struct Collect(pub(crate) Arc<Seen>);

impl Handler for Collect {
    fn disconnected(&mut self, error: &ClientError) {
        self.0.errors.lock().expect("lock").push(error.to_string());
    }

    fn apply(&mut self, update: Update) -> Result<(), Vec<Rejection>> {
        let reject = self.0.reject.lock().expect("lock").clone();
        let mut rejections = Vec::new();
        let mut resources = self.0.resources.lock().expect("lock");
        self.0.received.fetch_add(update.resources.len(), Ordering::SeqCst);
        for resource in update.resources {
            if Some(&resource.name) == reject.as_ref() {
                rejections.push(Rejection::new(resource.name, "told to"));
            } else {
                resources.insert((update.type_url.clone(), resource.name), resource.body);
            }
        }
        for name in update.removed {
            resources.remove(&(update.type_url.clone(), name.clone()));
            self.0.removed.lock().expect("lock").push(name);
        }
        if rejections.is_empty() { Ok(()) } else { Err(rejections) }
    }
}

/// Waits until something is so, five seconds at most.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("within five seconds: {what}");
}

pub(crate) fn pod(name: &str, account: &str, address: &str) -> Pod {
    Pod {
        name: NamespacedName::new("shop", name),
        uid: format!("uid-{name}"),
        addresses: vec![address.parse().expect("address")],
        labels: [("app", account), ("security.istio.io/tlsMode", "istio")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        service_account: account.into(),
        workload_name: account.into(),
        meshed: true,
        terminating: false,
        named_ports: Vec::new(),
        scrape: None,
        multiplexes: false,
        node: "node-1".into(),
        ready: true,
    }
}

pub(crate) fn cart_service() -> Service {
    Service {
        name: NamespacedName::new("shop", "cart"),
        addresses: vec!["10.96.0.20".parse().expect("address")],
        headless: false,
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: PortProtocol::Http,
            target: TargetPort::Number(8080),
        }],
        selector: Some(Selector::new([("app".to_owned(), "cart".to_owned())].into())),
        created_s: 1,
        service_accounts: Vec::new(),
        canonical_accounts: Vec::new(),
        external_name: None,
        prefers_ipv6: false,
        export_to: Vec::new(),
    }
}

pub(crate) fn cart_slice(ready: bool) -> EndpointSlice {
    EndpointSlice {
        name: NamespacedName::new("shop", "cart-abc"),
        service: "cart".into(),
        ports: vec![("http".into(), 8080)],
        endpoints: vec![SliceEndpoint {
            addresses: vec![CART.parse().expect("address")],
            ready,
            pod: Some("cart-1".into()),
            hostname: None,
        }],
    }
}

pub(crate) fn policy(
    namespace: &str,
    name: &str,
    app: Option<&str>,
    action: istio::Action,
) -> AuthorizationPolicy {
    let mut policy = AuthorizationPolicy::default();
    policy.metadata.namespace = Some(namespace.into());
    policy.metadata.name = Some(name.into());
    policy.spec.action = action;
    policy.spec.selector =
        app.map(|app| istio::WorkloadSelector { match_labels: [("app".to_owned(), app.to_owned())].into() });
    policy
}

pub(crate) fn peer_authentication(namespace: &str, mode: istio::MutualTlsMode) -> PeerAuthentication {
    let mut policy = PeerAuthentication::default();
    policy.metadata.namespace = Some(namespace.into());
    policy.metadata.name = Some("default".into());
    policy.spec.mtls = Some(istio::MutualTls { mode });
    policy
}

//! A control plane with its bundle endpoint, and what it believes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use maille_control::federation::{BundleFetcher, BundleStore, Federation, Pace, Stored, serve_bundle};
use maille_control::keys::Roots;
use maille_control::revocation::Listed;
use maille_control::world::{Change, Event, MeshConfig, World};
use maille_control::{ControlPlane, Hub, ReviewError, Reviewed, TokenReviewer};
use maille_core::{SystemClock, TrustDomain};
use maille_pki::{Authority, ROOT_TTL};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

struct Nobody;

impl TokenReviewer for Nobody {
    fn review<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Reviewed, ReviewError>> {
        Box::pin(async { Err(ReviewError::Rejected("nobody has a token here".into())) })
    }
}

/// As the control plane's ConfigMap is: outlives it.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Stored>>);

impl BundleStore for Kept {
    fn load(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<Stored, String>> + Send + '_>> {
        Box::pin(async { Ok(self.0.lock().expect("no panic").clone()) })
    }

    fn save(
        &self,
        bundles: Stored,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async {
            *self.0.lock().expect("no panic") = bundles;
            Ok(())
        })
    }
}

pub(crate) struct Mesh {
    pub(crate) control: ControlPlane,
    pub(crate) address: SocketAddr,
    domain: String,
    config: String,
    kept: Kept,
    endpoint: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.endpoint.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn authority(domain: &str) -> Authority {
    let domain = TrustDomain::parse(domain).expect("valid");
    Authority::self_signed(&domain, SystemTime::now(), ROOT_TTL).expect("root")
}

/// The same authority once more.
pub(crate) fn again(authority: &Authority) -> Authority {
    Authority::from_pem(&authority.cert_pem(), &authority.key_pem(), "", &authority.cert_pem())
        .expect("itself")
}

pub(crate) fn der(authority: &Authority) -> Vec<u8> {
    authority.certificate().to_vec()
}

impl Mesh {
    pub(crate) async fn new(domain: &str, authority: Authority) -> Self {
        Self::with(domain, authority, Kept::default(), "[]".into()).await
    }

    async fn with(domain: &str, authority: Authority, kept: Kept, config: String) -> Self {
        let trust_domain = TrustDomain::parse(domain).expect("valid");
        let hub = Hub::new(World::new(MeshConfig::new(trust_domain)));
        let control = ControlPlane::new(hub, Arc::new(Nobody), Arc::new(SystemClock));
        control.set_authority(authority);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let endpoint = tokio::spawn(serve_bundle(control.clone(), listener, std::future::pending()));
        let mut mesh =
            Self { control, address, domain: domain.to_owned(), config, kept, endpoint, tasks: Vec::new() };
        mesh.control.hub.apply([
            Event::Pod(Change::Replace(vec![])),
            Event::Service(Change::Replace(vec![])),
            Event::Slice(Change::Replace(vec![])),
            Event::PeerAuthentication(Change::Replace(vec![])),
            Event::Authorization(Change::Replace(vec![])),
            Event::RequestAuthentication(Change::Replace(vec![])),
            Event::DestinationRule(Change::Replace(vec![])),
            Event::ServiceEntry(Change::Replace(vec![])),
            Event::WorkloadEntry(Change::Replace(vec![])),
            Event::Sidecar(Change::Replace(vec![])),
            Event::Revocations(Listed::default()),
            Event::RevocationLists(vec![], vec![]),
        ]);
        mesh.believe(&mesh.config.clone());
        mesh
    }

    /// `caCertificates`, YAML. The ConfigMap names no trust domain: the control plane was started with it.
    pub(crate) fn believe(&mut self, entries: &str) {
        self.config = entries.to_owned();
        let text = format!(
            "caCertificates: {}",
            if entries == "[]" { entries.to_owned() } else { format!("\n{entries}") }
        );
        let config = maille_config::mesh::check(&text).unwrap_or_else(|found| panic!("{text}\n{found:#?}"));
        self.control.hub.apply([Event::MeshConfig(config)]);
    }

    /// An entry by which others believe this mesh: its endpoint, and a root to begin with.
    pub(crate) fn entry(&self, bootstrap: &Authority, domain: &str) -> String {
        let pem = bootstrap.cert_pem().replace('\n', "\\n");
        format!(
            "- {{pem: \"{pem}\", spiffeBundleUrl: \"https://{}/\", trustDomains: [{domain}]}}",
            self.address
        )
    }

    pub(crate) fn follow(&mut self) {
        let hub = &self.control.hub;
        let (sender, events) = mpsc::channel(16);
        let pace = Pace {
            refresh_at_least: Duration::from_millis(20),
            refresh_at_most: Duration::from_millis(50),
            retry_at_most: Duration::from_millis(100),
            ..Pace::default()
        };
        let fetcher = BundleFetcher::new(Roots::Pem(authority("web").cert_pem().into()));
        let federation = Federation::new(hub.clone(), fetcher, pace, Arc::new(self.kept.clone()), sender);
        self.tasks.push(tokio::spawn(federation.run()));
        let hub = hub.clone();
        self.tasks.push(tokio::spawn(async move { hub.run(events).await }));
    }

    /// The roots of a trust domain as proxies are told them.
    pub(crate) fn told(&self, domain: &str) -> Vec<Vec<u8>> {
        let snapshot = self.control.hub.snapshot();
        let bundle = maille_control::facts::trust_bundle(&snapshot.world, domain);
        bundle.map(|bundle| bundle.roots.iter().map(|root| root.to_vec()).collect()).unwrap_or_default()
    }

    pub(crate) fn jwks(&self, domain: &str) -> Vec<u8> {
        let snapshot = self.control.hub.snapshot();
        let bundle = maille_control::facts::trust_bundle(&snapshot.world, domain);
        bundle.map(|bundle| bundle.jwks.to_vec()).unwrap_or_default()
    }

    pub(crate) fn stored(&self) -> usize {
        self.kept.0.lock().expect("no panic").len()
    }

    /// Makes what is stored newer than all that will ever be told.
    pub(crate) fn store_as_newest(&self) {
        for text in self.kept.0.lock().expect("no panic").values_mut() {
            let mut document: serde_json::Value = serde_json::from_str(text).expect("JSON");
            document["spiffe_sequence"] = u64::MAX.into();
            *text = document.to_string();
        }
    }

    /// The endpoint goes away.
    pub(crate) fn stop(&self) {
        self.endpoint.abort();
    }

    /// A new control plane of the same mesh, which knows what was stored.
    pub(crate) async fn restarted(&self) -> Self {
        let authority = self.control.authority.load_full().expect("there");
        Self::with(&self.domain, again(&authority), self.kept.clone(), self.config.clone()).await
    }
}

/// Waits for a condition, with a bound that only a fault reaches.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

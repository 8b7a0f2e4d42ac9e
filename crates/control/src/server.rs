//! The discovery port: TLS, then discovery, certificates and flows over gRPC.

use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures::stream;
use maille_core::{Clock, TrustDomain};
use maille_pki::{Authority, JwtKeys, TrustBundles, generate_key, leaf_facts, renew_at};
use maille_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use maille_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use maille_proto::flows::flows_server::FlowsServer;
use maille_proto::identity::identity_server::IdentityServer;
use maille_tls::control::{ClientJudge, Credential, discovery_server_by};
use maille_tls::{KeyExchange, Parameters, Revoked, Trust};
use maille_xds::limits::MAX_REQUEST_BYTES;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::attest::TokenReviewer;
use crate::audit::AuditLog;
use crate::authority::Shown;
use crate::ca::{CertificateService, IssueRules, MAX_CSR_REQUEST_BYTES};
use crate::connection::{PeerCertificate, PeerInfo, PeerStream};
use crate::discovery::DiscoveryService;
use crate::federation::Fetches;
use crate::flows::{FlowService, FlowStore, Limits, RefusalLog};
use crate::hub::Hub;
use crate::identity::{IdentityService, MAX_MINT_REQUEST_BYTES};
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::places::{Place, Places};
use crate::proxies::Proxies;
use crate::world::{Event, Key, World};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way at a time, over all addresses.
const MAX_HANDSHAKES: usize = 512;
/// Connections one address may have open: a proxy has one or two, and a restarted one its predecessor's.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 16;
/// Lifetime of the serving certificate; it is renewed at half of it.
const SERVING_TTL: Duration = Duration::from_secs(24 * 3600);
/// How often the time of day is compared with its life: that may be set, and goes on while the machine sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The wait after a failed renewal.
const RETRY: Duration = Duration::from_secs(30);

/// How long streams may take to end when the server stops.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

/// Why the control plane cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No authority was set, so there is no certificate to serve with.
    #[error("the authority is not ready, so there is no certificate to serve with")]
    NoAuthority,
    /// The serving certificate cannot be made.
    #[error("serving certificate: {0}")]
    Certificate(#[from] maille_pki::Error),
    /// The TLS configuration cannot be made.
    #[error("discovery port: {0}")]
    Tls(#[from] maille_tls::SetupError),
    /// The gRPC server failed.
    #[error("discovery port: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A control plane: everything but where objects come from.
#[derive(Clone)]
pub struct ControlPlane {
    /// The world and its subscribers.
    pub hub: Arc<Hub>,
    /// Who is connected.
    pub proxies: Arc<Proxies>,
    /// What proxies saw.
    pub flows: Arc<Mutex<FlowStore>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Signs certificates; none until it is read or made.
    pub authority: Arc<ArcSwapOption<Authority>>,
    /// Reviews tokens.
    pub reviewer: Arc<dyn TokenReviewer>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How certificates are issued.
    pub rules: IssueRules,
    /// What was issued and refused.
    pub audit: Arc<AuditLog>,
    /// Who fetches the mesh's bundle.
    pub(crate) bundle_fetches: Arc<Fetches>,
    /// Sign JWT-SVIDs; none until they are read or made.
    pub jwt_keys: Arc<ArcSwapOption<JwtKeys>>,
    /// What is known of the rotation of the authority.
    pub(crate) rotation: Arc<ArcSwapOption<Shown>>,
    /// What keeps the stored mesh configuration from being in force, if anything does.
    pub(crate) mesh_problem: Arc<ArcSwapOption<String>>,
    /// Judges connections that are open.
    pub(crate) judge: Arc<Judge>,
    /// Becomes true when streams are to end.
    stopping: Arc<watch::Sender<bool>>,
}

impl ControlPlane {
    /// A control plane over a world.
    pub fn new(hub: Arc<Hub>, reviewer: Arc<dyn TokenReviewer>, clock: Arc<dyn Clock>) -> Self {
        Self {
            hub,
            proxies: Arc::default(),
            flows: Arc::new(Mutex::new(FlowStore::new(Limits::default()))),
            metrics: Arc::default(),
            authority: Arc::default(),
            reviewer,
            clock,
            rules: IssueRules::default(),
            audit: Arc::new(AuditLog::in_memory()),
            bundle_fetches: Arc::default(),
            jwt_keys: Arc::default(),
            rotation: Arc::default(),
            mesh_problem: Arc::default(),
            judge: Arc::default(),
            stopping: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Notes what keeps the stored mesh configuration, or a part of it, from being in force; `None`: nothing does.
    pub fn report_mesh_config(&self, problem: Option<String>) {
        if problem.is_some() {
            self.metrics.mesh_configs_rejected.inc();
        }
        self.metrics.mesh_config_rejected.set(problem.is_some().into());
        self.mesh_problem.store(problem.map(Arc::new));
    }

    /// How often the bundle endpoint has told the mesh's bundle.
    pub fn bundle_fetches(&self) -> u64 {
        self.bundle_fetches.count()
    }

    /// Makes this the authority, and its roots the mesh's. The port serves with a certificate of its at once.
    pub fn set_authority(&self, authority: Authority) {
        let signer = authority.signer().to_owned();
        self.set_authority_as(authority, signer);
    }

    /// The same; proxies whose certificate another than `signer` has signed renew it soon, unless it is empty.
    pub(crate) fn set_authority_as(&self, authority: Authority, signer: String) {
        let mut roots: Vec<Vec<u8>> = authority.roots().iter().map(|root| root.to_vec()).collect();
        // In one order, whoever signs: a change of the signer alone is not one of the roots.
        roots.sort();
        self.authority.store(Some(Arc::new(authority)));
        self.hub.apply([Event::OwnRoots(roots), Event::OwnSigner(signer)]);
    }

    /// Makes these the keys of JWT-SVIDs, and tells proxies their public halves.
    pub fn set_jwt_keys(&self, keys: JwtKeys) {
        let jwks = keys.jwks();
        // Whoever verifies learns of a key before it signs (`JWT_KEY_NOTICE`); the first one is told here first.
        self.hub.apply([Event::OwnJwtKeys(jwks)]);
        self.jwt_keys.store(Some(Arc::new(keys)));
    }

    /// Serves the discovery port until `stop` resolves; then new connections are refused and streams end.
    pub async fn serve(
        &self,
        listeners: Vec<TcpListener>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let mut trust = self.hub.subscribe();
        trust.watch(Key::Settings);
        trust.watch(Key::Trust);
        trust.watch(Key::Revocations);
        let mut made_for = self.serves_for();
        let (config, mut good) = self.serving_config()?;
        let config = Arc::new(ArcSwap::new(config));
        let renewing = {
            let (this, config) = (self.clone(), Arc::clone(&config));
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = sleep(LOOK_EVERY) => if good.contains(&this.clock.now()) { continue },
                        _ = trust.changed() => if made_for == this.serves_for() { continue },
                    }
                    made_for = this.serves_for();
                    match this.serving_config() {
                        Ok((renewed, life)) => {
                            config.store(renewed);
                            good = life;
                        }
                        Err(error) => {
                            tracing::error!(%error, "serving certificate cannot be renewed; trying again");
                            let now = this.clock.now();
                            good = now..now + RETRY;
                        }
                    }
                }
            })
        };
        let _renewing = AbortOnDrop(renewing.abort_handle());
        let (sender, receiver) = mpsc::channel(64);
        let acceptor = Acceptor {
            config,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            places: Places::new(MAX_CONNECTIONS_PER_ADDRESS),
            ready: sender,
        };
        let accepting: Vec<_> = listeners
            .into_iter()
            .map(|listener| AbortOnDrop(tokio::spawn(acceptor.clone().run(listener)).abort_handle()))
            .collect();
        drop(acceptor);
        let incoming = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|stream: PeerStream| (Ok::<_, io::Error>(stream), receiver))
        });
        let (stopping, stopped) = oneshot::channel();
        let streams = Arc::clone(&self.stopping);
        let server = self.router().serve_with_incoming_shutdown(incoming, async move {
            stop.await;
            streams.send_replace(true);
            let _ = stopping.send(());
        });
        tokio::select! {
            served = server => served?,
            // A peer that does not read its end is not waited for.
            _ = async { let _ = stopped.await; tokio::time::sleep(STOP_PATIENCE).await } => {}
        }
        drop(accepting);
        Ok(())
    }

    fn router(&self) -> tonic::transport::server::Router {
        let discovery = DiscoveryService {
            hub: Arc::clone(&self.hub),
            reviewer: Arc::clone(&self.reviewer),
            proxies: Arc::clone(&self.proxies),
            clock: Arc::clone(&self.clock),
            stopping: self.stopping.subscribe(),
            metrics: Arc::clone(&self.metrics),
            judge: Arc::clone(&self.judge),
        };
        let flows = FlowService {
            hub: Arc::clone(&self.hub),
            reviewer: Arc::clone(&self.reviewer),
            store: Arc::clone(&self.flows),
            refusals: Arc::new(RefusalLog::new(std::time::Instant::now())),
            clock: Arc::clone(&self.clock),
            stopping: self.stopping.subscribe(),
            metrics: Arc::clone(&self.metrics),
            proxies: Arc::clone(&self.proxies),
            judge: Arc::clone(&self.judge),
        };
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .max_concurrent_streams(16)
            .add_service(
                AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(MAX_REQUEST_BYTES),
            )
            .add_service(
                IstioCertificateServiceServer::new(CertificateService::new(self))
                    .max_decoding_message_size(MAX_CSR_REQUEST_BYTES),
            )
            .add_service(
                IdentityServer::new(IdentityService::new(self))
                    .max_decoding_message_size(MAX_MINT_REQUEST_BYTES),
            )
            .add_service(FlowsServer::new(flows).max_decoding_message_size(crate::flows::MAX_REPORT_BYTES))
    }

    /// The names of the trust domain whose certificates are accepted.
    fn domains(&self) -> Vec<TrustDomain> {
        let snapshot = self.hub.snapshot();
        let config = snapshot.world.config();
        config.own_names().cloned().collect()
    }

    /// What the serving configuration is made of, beside names: whose certificates are accepted, by which roots, and who
    /// signs.
    fn serves_for(&self) -> ServesFor {
        let authority = self.authority.load();
        let authority =
            authority.as_ref().map(|authority| (authority.signer().to_owned(), authority.roots_pem()));
        let snapshot = self.hub.snapshot();
        let revoked = barred(&snapshot.world).ok();
        ServesFor { domains: self.domains(), authority, revoked, parameters: parameters(&snapshot.world) }
    }

    /// A serving configuration with a new certificate, and from when until when it serves; and the judge of clients by the
    /// same trust.
    fn serving_config(&self) -> Result<(Arc<ServerConfig>, Range<SystemTime>), ServeError> {
        let authority = self.authority.load_full().ok_or(ServeError::NoAuthority)?;
        let snapshot = self.hub.snapshot();
        let (world, config) = (&snapshot.world, snapshot.world.config());
        let trust = trust_of(&authority, &config.trust_domain, &config.trust_domain_aliases)?;
        let trust = trust.without(barred(world)?);
        self.judge.set(ClientJudge::new(&trust)?);
        let names = serving_names(&config.system_namespace, &config.cluster_domain);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let key = generate_key()?;
        let now = self.clock.now();
        let issued = authority.issue_server(&key.public_key()?, &names, &[], SERVING_TTL, now)?;
        let credential = Credential::from_pem(&issued.chain_text(), &key.to_pem())?;
        let renewal = renew_at(issued.not_before, issued.not_after, 0.0).max(now + LOOK_EVERY);
        let config = discovery_server_by(&credential, &trust, &parameters(world))?;
        Ok((config, issued.not_before..renewal))
    }
}

/// What a serving configuration is made of, beside names.
#[derive(Debug, PartialEq)]
struct ServesFor {
    /// Whose certificates are accepted.
    domains: Vec<TrustDomain>,
    /// Who signs, and the roots.
    authority: Option<(String, String)>,
    revoked: Option<Arc<Revoked>>,
    parameters: Parameters,
}

/// Who is refused in the handshake: those who get no other certificate either, and whom an authority has revoked. Who has
/// but lost one certificate hears of it instead, and asks for another.
fn barred(world: &World) -> Result<Arc<Revoked>, ServeError> {
    let revocations = world.revocations();
    let for_ever = revocations.identities().iter().filter(|(_, before)| before.is_none());
    let for_ever = for_ever.map(|(identity, before)| (identity.clone(), *before));
    let revoked = Revoked::new(String::new(), [], for_ever, revocations.crls().to_vec())?;
    Ok(Arc::new(revoked.among(world.config().own_names().cloned())))
}

/// What the port negotiates: the same as proxies among each other.
fn parameters(world: &World) -> Parameters {
    let tls = &world.config().mesh_tls;
    let known = tls.key_exchanges.iter().filter_map(|name| KeyExchange::named(name));
    Parameters { key_exchanges: known.collect(), tls13_only: tls.tls13_only }
}

fn trust_of(
    authority: &Authority,
    domain: &TrustDomain,
    aliases: &[TrustDomain],
) -> Result<Trust, ServeError> {
    let bundles = TrustBundles::from_pem(domain.clone(), &authority.roots_pem())?;
    Ok(Trust::of_mesh(bundles, domain, aliases)?)
}

/// The names by which proxies may call the control plane.
fn serving_names(namespace: &str, cluster_domain: &str) -> Vec<String> {
    let service = format!("istiod.{namespace}");
    vec![
        format!("{service}.svc"),
        format!("{service}.svc.{cluster_domain}"),
        service,
        "istiod".to_owned(),
        // Istio's older name for the same service, which its agents may still dial.
        format!("istio-pilot.{namespace}.svc"),
    ]
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Clone)]
struct Acceptor {
    config: Arc<ArcSwap<ServerConfig>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    handshakes: Arc<Semaphore>,
    places: Places,
    ready: mpsc::Sender<PeerStream>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok((stream, address)) => (stream, address.ip().to_canonical()),
                Err(error) => {
                    // Out of file descriptors, mostly: others must close before it can go on.
                    tracing::warn!(%error, "cannot accept on the discovery port");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(place) = self.places.take(address) else {
                tracing::debug!(%address, "connection refused: too many from this address");
                continue;
            };
            let Ok(permit) = Arc::clone(&self.handshakes).acquire_owned().await else { return };
            let this = self.clone();
            tokio::spawn(async move {
                let shaken = timeout(HANDSHAKE_TIMEOUT, this.handshake(stream, address, place)).await;
                drop(permit);
                match shaken {
                    Ok(Ok(stream)) => {
                        // Closed when the server stops.
                        let _ = this.ready.send(stream).await;
                    }
                    Ok(Err(reason)) => {
                        this.metrics.handshake_failures.inc();
                        tracing::warn!(target: "maille::audit", %address, %reason, "handshake failed");
                    }
                    Err(_) => {
                        this.metrics.handshake_failures.inc();
                        tracing::debug!(%address, "handshake took longer than {HANDSHAKE_TIMEOUT:?}");
                    }
                }
            });
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: IpAddr,
        place: Place,
    ) -> Result<PeerStream, String> {
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let stream = acceptor.accept(stream).await.map_err(|e| e.to_string())?;
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = match chain.and_then(<[_]>::first) {
            None => None,
            Some(leaf) => {
                // Verified by the handshake already; read again for what it says.
                let facts = leaf_facts(leaf).map_err(|e| e.to_string())?;
                let identity = facts.identity().map_err(|e| e.to_string())?;
                if facts.not_after <= self.clock.now() {
                    return Err(format!("certificate of {identity} has expired"));
                }
                let (not_before, not_after) = (facts.not_before, facts.not_after);
                let chain = chain.unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
                Some(PeerCertificate { identity, not_before, not_after, serial: facts.serial, chain })
            }
        };
        Ok(PeerStream { stream, info: PeerInfo { address, certificate }, _place: place })
    }
}

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::Client;
use maille_control::authority::Keeper;
use maille_control::federation::{self, BundleFetcher, Federation, serve_bundle};
use maille_control::keys::{Fetcher, KeyStore, Pace};
use maille_control::world::{MeshConfig, World};
use maille_control::{AuditLog, AuditOptions, ControlPlane, Hub, IssueRules, Readiness, serve_monitoring};
use maille_core::{Clock, SystemClock, TrustDomain, ports};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::ca_files::{CaFiles, CaFolder, News, check_ca_folder, is_the_secret};
use crate::federated_bundles::FederatedBundles;
use crate::published::{LISTS, ROOTS, Wanted, publish};
use crate::root::Secrets;
use crate::status::Book;
use crate::token_review::ApiTokenReviewer;
use crate::watch::feed_world;
use crate::{addresses, credentials, jwt, status};

/// How the control plane runs.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    /// What holds for the whole mesh.
    pub mesh: MeshConfig,
    /// Port of discovery and the authority, TLS.
    pub discovery_port: u16,
    /// Port of the bundle endpoint, TLS; `None`: other meshes are told nothing.
    pub bundle_port: Option<u16>,
    /// Port of metrics, health and flows, plain HTTP.
    pub monitoring_port: u16,
    /// Where the files of a plugged-in CA are, if it comes in files.
    pub ca_folder: Option<CaFolder>,
    /// The name of this control plane's own Pod, if it is in one.
    pub pod: Option<String>,
    /// How certificates are issued.
    pub issue_rules: IssueRules,
    /// Where what is issued and refused is written down.
    pub audit: AuditOptions,
}

impl ControlPlaneOptions {
    /// Istio's ports and defaults, in this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            mesh: MeshConfig::new(trust_domain),
            discovery_port: ports::DISCOVERY,
            bundle_port: Some(ports::BUNDLE),
            monitoring_port: ports::CONTROL_MONITORING,
            ca_folder: None,
            pod: None,
            issue_rules: IssueRules::default(),
            audit: AuditOptions::default(),
        }
    }
}

/// Events between the watches and the world.
const EVENT_QUEUE: usize = 1024;

/// How long streams may take to end when the control plane stops.
const STOP_PATIENCE: Duration = Duration::from_millis(300);

/// Between tries to see the own Pod.
const POD_PATIENCE: Duration = Duration::from_secs(1);

/// How long serving waits for the first fetch of every key set, and for the roots to be written: a little longer than a fetch
/// takes by default.
pub(crate) const FIRST_PATIENCE: Duration = Duration::from_secs(6);

/// Runs the control plane of a cluster until SIGTERM or SIGINT.
///
/// The API server is found as every Kubernetes client finds it: the Pod's ServiceAccount, else the kubeconfig. While it
/// cannot be reached at start, this waits for it; when it is lost later, the last world stays in force. Discovery and
/// the authority answer only once the world is complete, since an incomplete one would say with authority
/// that things do not exist.
pub async fn run_control_plane(options: ControlPlaneOptions) -> anyhow::Result<()> {
    let client = crate::bearer::client().await?;
    raise_file_limit();
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        let _ = stop.send(true);
        // Whoever stops us waits for our end, not for our streams.
        stop.closed().await;
    });
    let discovery = listen(options.discovery_port)?;
    let monitoring = listen(options.monitoring_port)?;
    run_with(client, options, Arc::new(SystemClock), discovery, monitoring, stopped).await
}

/// The control plane over any client and listeners.
pub(crate) async fn run_with(
    client: Client,
    options: ControlPlaneOptions,
    clock: Arc<dyn Clock>,
    discovery: TcpListener,
    monitoring: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let hub = Hub::new(World::new(options.mesh.clone()));
    let reviewer = Arc::new(ApiTokenReviewer(client.clone()));
    let mut control = ControlPlane::new(Arc::clone(&hub), reviewer, Arc::clone(&clock));
    control.rules = options.issue_rules.clone();
    control.audit = Arc::new(AuditLog::open(options.audit.clone())?);
    let ready = Readiness::default();
    let stop = |mut stopped: watch::Receiver<bool>| async move {
        // An error is a dropped sender: stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let keys = KeyStore::spawn(Fetcher::default(), Pace::default(), sender.clone());
    let mut tasks = JoinSet::new();
    let monitored = serve_monitoring(monitoring, control.clone(), ready.clone(), stop(stopped.clone()));
    tasks.spawn(async move { monitored.await.context("monitoring port") });
    let sources = hub.key_sources();
    tasks.spawn(async move {
        keys.follow(sources).await;
        Err(anyhow!("key sets are fetched no more"))
    });
    let secrets = credentials::follow(client.clone(), hub.credential_sources(), sender.clone());
    tasks.spawn(async move {
        secrets.await;
        Err(anyhow!("Secrets are watched no more"))
    });
    let federation = Federation::new(
        Arc::clone(&hub),
        BundleFetcher::default(),
        federation::Pace::default(),
        Arc::new(FederatedBundles::new(client.clone(), &options.mesh.system_namespace)),
        sender.clone(),
    );
    tasks.spawn(async move {
        federation.run().await;
        Err(anyhow!("bundles of other trust domains are fetched no more"))
    });
    if let Some(port) = options.bundle_port {
        let told = serve_bundle(control.clone(), listen(port)?, stop(stopped.clone()));
        tasks.spawn(async move {
            told.await;
            Ok(())
        });
    }
    let book = Arc::<Book>::default();
    let (lists, listed) = watch::channel(Wanted::Unknown);
    let feeding = feed_world(client.clone(), sender, control.clone(), Arc::clone(&book), lists);
    tasks.spawn({
        let distributing = publish(client.clone(), LISTS, listed, Wanted::clone, || ());
        async move {
            distributing.await;
            Err(anyhow!("revocation lists are distributed no more"))
        }
    });
    tasks.spawn(async move {
        feeding.await;
        Err(anyhow!("the watches have ended"))
    });
    let world = Arc::clone(&hub);
    tasks.spawn(async move {
        world.run(events).await;
        Err(anyhow!("the world is fed no more"))
    });
    let serving = async {
        // Before the keeper, which would make a CA of its own where there is none.
        let files = mirror_files(&client, &options).await?;
        let secrets = Secrets::new(client.clone(), &options.mesh.root_namespace);
        let watching = secrets.watch();
        let keeper = Keeper::start(control.clone(), Arc::new(secrets)).await?;
        let (told, mut are_told) = watch::channel(false);
        let tell = move || {
            told.send_replace(true);
        };
        let distributing =
            publish(client.clone(), ROOTS, keeper.roots(), |roots| Wanted::Text(roots.clone()), tell);
        let serve = async {
            hub.complete().await;
            // Proxies that have keys, or roots of other trust domains, from before a restart must not be told that there are
            // none while they are fetched or read.
            let deadline = Instant::now() + FIRST_PATIENCE;
            let asked = hub.wait_for(deadline, |world| has_tried_all(world).then_some(())).await;
            if asked.is_none() {
                tracing::warn!(
                    "some key sets of RequestAuthentications, Secrets of DestinationRules, or roots of other trust domains \
                     could not be had in time; serving without them"
                );
            }
            // Who asks for them as soon as this is ready, another mesh for example, must not find none.
            if timeout_at(deadline, are_told.wait_for(|told| *told)).await.is_err() {
                tracing::warn!(
                    "the roots could not be written to every namespace in time; serving before they are"
                );
            }
            ready.set();
            tracing::info!(port = options.discovery_port, "the world is complete; serving");
            control.serve(vec![discovery], stop(stopped.clone())).await
        };
        let statuses = async {
            hub.complete().await;
            status::write(client.clone(), Arc::clone(&hub), book).await;
        };
        let addresses = async {
            hub.complete().await;
            addresses::keep(client.clone(), Arc::clone(&hub)).await;
        };
        let root_namespace = options.mesh.root_namespace.clone();
        let tokens = jwt::keep(client.clone(), control.clone(), root_namespace, Arc::clone(&clock));
        tokio::select! {
            served = serve => Ok(served?),
            () = tokens => Err(anyhow!("the keeper of the keys of JWT-SVIDs has ended")),
            () = addresses => Err(anyhow!("the keeper of addresses has ended")),
            () = statuses => Err(anyhow!("the writer of statuses has ended")),
            () = watching => Err(anyhow!("the watches of the authority's Secrets have ended")),
            () = follow_files(files) => Err(anyhow!("the files of the CA are followed no more")),
            () = keeper.run() => Err(anyhow!("the keeper of the authority has ended")),
            () = distributing => Err(anyhow!("the bundle's watches have ended")),
        }
    };
    tokio::select! {
        served = serving => served,
        // A control plane that goes on without one of its parts would serve an old world for ever.
        failed = first_failure(&mut tasks) => Err(failed),
        () = stop(stopped.clone()) => {
            // Streams get a moment to hear of it.
            tokio::time::sleep(STOP_PATIENCE).await;
            Ok(())
        }
    }
}

/// Mirrors the files of a CA, if there is to be such a folder; what is to go on doing so.
async fn mirror_files(client: &Client, options: &ControlPlaneOptions) -> anyhow::Result<Option<CaFiles>> {
    let Some(CaFolder { path, must_exist }) = &options.ca_folder else { return Ok(None) };
    if !must_exist && !path.exists() {
        return Ok(None);
    }
    if let Some(pod) = &options.pod {
        let namespace = &options.mesh.system_namespace;
        loop {
            match is_the_secret(client, namespace, pod, path).await {
                Ok(true) => {
                    tracing::info!(folder = %path.display(), "this is the Secret cacerts itself, which is read as such");
                    return Ok(None);
                }
                Ok(false) => break,
                Err(error) => {
                    let error = crate::brief(&error);
                    tracing::warn!(
                        error,
                        "cannot see this Pod, and so not what its folders are; trying again"
                    );
                    tokio::time::sleep(POD_PATIENCE).await;
                }
            }
        }
    }
    check_ca_folder(path).map_err(anyhow::Error::msg)?;
    let told = |news| match news {
        News::Done(text) => tracing::info!("{text}"),
        News::Wrong(text) => tracing::warn!("{text}"),
    };
    let mut files = CaFiles::new(client.clone(), &options.mesh.root_namespace, path, told);
    files.begin().await.map_err(anyhow::Error::msg)?;
    Ok(Some(files))
}

async fn follow_files(files: Option<CaFiles>) {
    match files {
        Some(files) => files.keep().await,
        None => std::future::pending().await,
    }
}

/// Whether everything that the world refers to has been fetched or read, or found missing.
fn has_tried_all(world: &World) -> bool {
    world.has_asked_for_keys() && world.has_read_credentials() && world.has_federation()
}

/// Waits until a task fails or panics.
async fn first_failure(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Error {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(panic) => return panic.into(),
        }
    }
    std::future::pending().await
}

/// Each proxy is a file descriptor or two; the usual soft limit of 1024 is meant for programs that use `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Listens on every address, IPv6 and IPv4 with one socket; on IPv4 alone where there is no IPv6.
fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let bind = |domain, address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()))
        .with_context(|| format!("cannot listen on port {port}; is another control plane running here?"))
}

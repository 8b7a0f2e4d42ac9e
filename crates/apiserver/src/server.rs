//! Sockets, TLS and limits.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use maille_inject::InjectSettings;
use maille_pki::Authority;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Settings};
use crate::auth::tokens::Tokens;
use crate::auth::{authn, certificates};
use crate::injection::Injection;
use crate::options::{Options, Ready, ServeError};
use crate::places::Places;
use crate::store::{RingLimits, Store};
use crate::streams::Sessions;
use crate::{bootstrap, collector, handler, kubeconfig};

/// Connections served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// A client that has not finished its handshake by then is cut.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Nor its request's head by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams of one HTTP/2 connection: clients with many watches share one.
const MAX_STREAMS: u32 = 250;
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// Serves until the future is dropped or the process ends; tells `ready` when requests are answered.
///
/// Opens the store first: it fails at once, with a message that says so, when another process has it.
pub async fn serve(options: Options, ready: oneshot::Sender<Ready>) -> Result<(), ServeError> {
    if options.listeners.is_empty() {
        return Err(ServeError::Setup("no address to listen on was given".into()));
    }
    let dir = options.data_dir.clone();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(ServeError::io(format!("cannot make {}", dir.display())))?;
    let path = dir.join("store.redb");
    let store = tokio::task::spawn_blocking(move || Store::open(&path, RingLimits::default()))
        .await
        .map_err(|e| ServeError::Setup(format!("opening the store failed: {e}")))??;
    let store = Arc::new(store);
    let authority = certificates::authority(&store)?;
    let settings = Settings {
        service_cidr: options.service_cidr,
        service_cidr_v6: options.service_cidr_v6,
        node_name: options.node_name.clone(),
        pod_log_dir: options.pod_log_dir.clone(),
    };
    let inject = InjectSettings::new(
        options.image.clone(),
        options.binary.display().to_string(),
        options.trust_domain.clone(),
    );
    let api = Arc::new(Api {
        tokens: Tokens::load(&store)?,
        root_pem: authority.roots_pem(),
        injection: Injection::new(inject),
        settings,
        pods: options.pods.clone(),
        sessions: Sessions::default(),
        store,
    });
    let mut listeners = Vec::new();
    for listener in options.listeners {
        let failed = ServeError::io("cannot listen");
        listeners.push(
            listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).map_err(failed)?,
        );
    }
    let mut addresses = Vec::new();
    for listener in &listeners {
        addresses.push(listener.local_addr().map_err(ServeError::io("cannot listen"))?);
    }
    let mut names: Vec<IpAddr> = addresses.iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).collect();
    names.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    names.push(options.advertise.ip());
    names.extend(options.service_cidr.hosts().next().map(IpAddr::V4));
    names.extend(options.certificate_addresses.iter().copied());
    names.sort();
    names.dedup();
    let (config, good) = certificates::server_config(&authority, &names)?;
    let (tls, acceptors) = watch::channel(TlsAcceptor::from(config));

    let starting = api.clone();
    let advertise = options.advertise;
    tokio::task::spawn_blocking(move || bootstrap::run(&starting, advertise))
        .await
        .map_err(|e| ServeError::Setup(format!("making the first objects failed: {e}")))?
        .map_err(|e| ServeError::Bootstrap(e.to_string()))?;
    if let (Some(path), Some(address)) = (&options.kubeconfig, addresses.first()) {
        let (chain, key) = certificates::admin_credential(&authority)?;
        kubeconfig::write_kubeconfig(path, &format!("https://{address}"), &api.root_pem, &chain, &key)?;
    }
    let renewal = renew(authority, names, good, tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::default();
    // Both end with this future.
    let mut accepting = tokio::task::JoinSet::new();
    accepting.spawn(collector::run(api.clone()));
    for listener in listeners {
        accepting.spawn(accept(api.clone(), listener, acceptors.clone(), slots.clone(), places.clone()));
    }
    tracing::info!(?addresses, store = %api.store.path().display(), "the API is served");
    // Nobody may be waiting.
    let _ = ready.send(Ready { addresses, root_pem: api.root_pem.clone() });
    tokio::select! {
        () = renewal => Ok(()),
        _ = accepting.join_next() => Err(ServeError::Setup("accepting connections ended".into())),
    }
}

/// How often the time of day is compared with the life of the serving certificate: it may be set at any time.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Makes the serving certificate anew in good time, for as long as the server runs.
async fn renew(
    authority: Authority,
    names: Vec<IpAddr>,
    mut good: Range<SystemTime>,
    tls: watch::Sender<TlsAcceptor>,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if good.contains(&SystemTime::now()) {
            continue;
        }
        match certificates::server_config(&authority, &names) {
            Ok((config, life)) => {
                tls.send_replace(TlsAcceptor::from(config));
                good = life;
            }
            Err(error) => {
                tracing::error!(%error, "the API's serving certificate cannot be renewed; trying again")
            }
        }
    }
}

async fn accept(
    api: Arc<Api>,
    listener: TcpListener,
    acceptors: watch::Receiver<TlsAcceptor>,
    slots: Arc<Semaphore>,
    places: Places,
) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = places.take(peer.ip()) else {
                    tracing::debug!(%peer, "too many connections from one address");
                    continue;
                };
                let (api, acceptor) = (api.clone(), acceptors.borrow().clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(api, stream, acceptor).await {
                        tracing::debug!(%peer, error, "connection ended");
                    }
                    drop((slot, place));
                });
            }
            Err(error) => {
                // Out of file descriptors or the like: wait until some are free again.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(api: Arc<Api>, stream: TcpStream, acceptor: TlsAcceptor) -> Result<(), String> {
    // Watch events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| "the handshake took too long".to_owned())?
        .map_err(|e| e.to_string())?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(authn::certificate_user)
        .map(Arc::new);
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, certificate) = (api.clone(), certificate.clone());
        async move { Ok::<_, std::convert::Infallible>(handler::handle(api, certificate, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(256 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        // A peer that vanished without a word gives its connection back.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await.map_err(|e| e.to_string())
}

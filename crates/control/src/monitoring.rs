//! The monitoring port: metrics, health, and the flows, proxies and scrape targets known, over plain HTTP.
//!
//! Metrics and health are for everyone, as Istio's are. Proxies, facts, and what is issued and revoked are shown to callers from
//! the loopback interface alone, which is where `kubectl port-forward` comes from (Istio: debug endpoints without a token).
//! Who talks to whom, what there is to scrape, and which namespaces take plaintext, is shown to the control plane's namespace too
//! (Prometheus), and to what is no Pod (the API server's proxy of Services); not before it is known who is one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use maille_config::mtls;
use maille_core::MtlsMode;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::audit::AuditQuery;
use crate::flows::FlowQuery;
use crate::intent::FactsQuery;
use crate::metrics::Looked;
use crate::places::{Place, Places};
use crate::proxies::millis;
use crate::revocation_status;
use crate::server::ControlPlane;
use crate::world::{Keys, World};

/// Whether the world is complete, so that the control plane may be asked.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says that it is.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Connections one address may have open: people come through the API server, all from one.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 64;
/// Connections in all, so that this port cannot take the file descriptors of the discovery port.
const MAX_CONNECTIONS: usize = 256;

#[derive(Clone)]
struct Shared {
    control: ControlPlane,
    ready: Readiness,
}

/// Serves `/metrics`, `/healthz`, `/ready`, `/flows`, `/proxies`, `/facts`, `/ca/revocations` and `/sd/prometheus` until
/// `stop` resolves.
pub async fn serve_monitoring(
    listener: TcpListener,
    control: ControlPlane,
    ready: Readiness,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/ready", get(readiness))
        .route("/flows", get(flows))
        .route("/proxies", get(proxies))
        .route("/ca", get(authority))
        .route("/facts", get(facts))
        .route("/ca/issued", get(issued))
        .route("/ca/revocations", get(revocations))
        .route("/sd/prometheus", get(scrape_targets))
        .with_state(Shared { control, ready });
    let service = router.into_make_service_with_connect_info::<Caller>();
    let server = std::future::IntoFuture::into_future(axum::serve(Bounded::new(listener), service));
    tokio::select! {
        served = server => served,
        () = stop => Ok(()),
    }
}

async fn metrics(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
) -> impl IntoResponse {
    let control = &shared.control;
    let metrics = &control.metrics;
    let snapshot = control.hub.snapshot();
    let world = &snapshot.world;
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    metrics.services.set(count(world.services().count()));
    metrics.workloads.set(count(world.pods().count()));
    let sources = world.key_sources();
    let missing = sources.keys().filter(|source| !matches!(world.keys_of(source), Keys::Known(_)));
    metrics.key_sets_missing.set(count(missing.count()));
    metrics.key_sets.set(count(sources.len()));
    metrics.meshed.set(count(world.pods().filter(|pod| pod.meshed).count()));
    {
        let flows = control.flows.lock();
        metrics.flows.set(count(flows.len()));
        metrics.flows_forgotten.set(flows.forgotten());
    }
    let authority = control.authority.load();
    let first_root = || {
        let roots = authority.as_ref()?.roots();
        roots.iter().filter_map(|root| Some(maille_pki::leaf_facts(root).ok()?.not_after)).min()
    };
    let rotation = control.authority_status();
    let looked = Looked {
        rotation: rotation.map(|status| {
            let waiting = status.rotation.map_or(0, |rotation| rotation.waiting_count);
            (status.phase, count(waiting), count(status.problems.len()))
        }),
        proxies: control.proxies.by_version(),
        modes: (access(world, caller) >= Access::Traffic).then(|| namespace_modes(world)),
        root_ends: first_root(),
        chain_ends: authority.as_ref().map(|authority| authority.not_after()),
    };
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics.render(&looked, control.clock.now()))
}

/// Namespaces shown with their mode; a mesh with more has other means to look at them all.
const MAX_NAMESPACES: usize = 2000;

/// The mode of each namespace that has sidecars, as a whole: exceptions for workloads and ports are not in it.
fn namespace_modes(world: &World) -> Vec<(String, &'static str)> {
    let namespaces: BTreeSet<&str> =
        world.pods().filter(|pod| pod.meshed).map(|pod| pod.name.namespace.as_str()).collect();
    let root = &world.config().root_namespace;
    let modes = namespaces.into_iter().take(MAX_NAMESPACES).map(|namespace| {
        let policies = world.peer_authentications_for(namespace);
        let mode = match mtls::namespace_mode(&policies, root, namespace) {
            MtlsMode::Disable => "DISABLE",
            MtlsMode::Permissive => "PERMISSIVE",
            MtlsMode::Strict => "STRICT",
        };
        (namespace.to_owned(), mode)
    });
    modes.collect()
}

async fn readiness(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.ready.is_set() {
        return (StatusCode::OK, "ready");
    }
    // What is wrong with it is not every caller's business.
    let text = match shared.control.mesh_problem.load().is_some() {
        true => "the mesh configuration (ConfigMap istio) cannot be used; its events and the log say why",
        false => "the world is not complete yet",
    };
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn flows(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Query(query): Query<FlowQuery>,
) -> Response {
    if let Some(refusal) = refuse(&shared, caller, Access::Traffic) {
        return refusal;
    }
    let now_ms = millis(shared.control.clock.now());
    let answer = query.run(&shared.control.flows.lock(), now_ms);
    match answer {
        Ok(flows) => Json(json!({ "flows": flows })).into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, reason).into_response(),
    }
}

async fn authority(State(shared): State<Shared>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    if let Some(refusal) = refuse(&shared, caller, Access::All) {
        return refusal;
    }
    match shared.control.authority_status() {
        Some(status) => Json(status).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "there is no authority yet").into_response(),
    }
}

async fn proxies(State(shared): State<Shared>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    match refuse(&shared, caller, Access::All) {
        Some(refusal) => refusal,
        None => {
            let proxies = shared.control.proxies.list();
            let problem = shared.control.mesh_problem.load();
            let problem = problem.as_ref().map(|problem| problem.as_str());
            let version = env!("CARGO_PKG_VERSION");
            Json(json!({ "version": version, "meshConfigProblem": problem, "proxies": proxies }))
                .into_response()
        }
    }
}

async fn facts(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Query(query): Query<FactsQuery>,
) -> Response {
    if let Some(refusal) = refuse(&shared, caller, Access::All) {
        return refusal;
    }
    match query.run(&shared.control.hub.snapshot()) {
        Ok(dump) => Json(dump).into_response(),
        Err(reason) => (StatusCode::NOT_FOUND, reason).into_response(),
    }
}

async fn revocations(State(shared): State<Shared>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    match refuse(&shared, caller, Access::All) {
        Some(refusal) => refusal,
        None => {
            let control = &shared.control;
            Json(revocation_status::of(&control.hub.snapshot().world, &control.proxies)).into_response()
        }
    }
}

async fn issued(
    State(shared): State<Shared>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Query(query): Query<AuditQuery>,
) -> Response {
    if let Some(refusal) = refuse(&shared, caller, Access::All) {
        return refusal;
    }
    match query.run(&shared.control.audit) {
        Ok(answer) => Json(answer).into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, reason).into_response(),
    }
}

async fn scrape_targets(State(shared): State<Shared>, ConnectInfo(caller): ConnectInfo<Caller>) -> Response {
    match refuse(&shared, caller, Access::Traffic) {
        Some(refusal) => refusal,
        None => Json(crate::scrape_targets::of(&shared.control.hub.snapshot().world)).into_response(),
    }
}

/// What a caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    /// Metrics and health.
    Public,
    /// Flows, scrape targets and modes, too.
    Traffic,
    /// Everything.
    All,
}

/// A Pod may pass for none as long as not all are known.
fn access(world: &World, Caller(address): Caller) -> Access {
    match world.pod_at(address) {
        Some(pod) if pod.name.namespace == world.config().system_namespace => Access::Traffic,
        Some(_) => Access::Public,
        None if address.is_loopback() => Access::All,
        None if world.is_complete() => Access::Traffic,
        None => Access::Public,
    }
}

/// The answer to who may not see what needs this.
fn refuse(shared: &Shared, caller: Caller, needs: Access) -> Option<Response> {
    let snapshot = shared.control.hub.snapshot();
    let reason = match needs {
        _ if access(&snapshot.world, caller) >= needs => return None,
        Access::All => {
            "identities, certificates, proxies and facts are shown through `kubectl port-forward` only, by which \
             `maille` asks for them"
        }
        _ if snapshot.world.pod_at(caller.0).is_none() => {
            let text = "the world is not complete yet, so that nobody can be told from a workload; try again";
            return Some((StatusCode::SERVICE_UNAVAILABLE, text).into_response());
        }
        _ => "flows and scrape targets are not shown to workloads outside the control plane's namespace",
    };
    Some((StatusCode::FORBIDDEN, reason).into_response())
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Caller(IpAddr);

impl Connected<IncomingStream<'_, Bounded>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// A listener that holds only so many connections.
struct Bounded {
    listener: TcpListener,
    places: Places,
    all: Arc<Semaphore>,
}

impl Bounded {
    fn new(listener: TcpListener) -> Self {
        let all = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { listener, places: Places::new(MAX_CONNECTIONS_PER_ADDRESS), all }
    }
}

impl Listener for Bounded {
    type Io = PlacedStream;
    type Addr = IpAddr;

    async fn accept(&mut self) -> (PlacedStream, IpAddr) {
        loop {
            // TcpListener's own implementation waits errors out.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let address = address.ip().to_canonical();
            let Some(place) = self.places.take(address) else { continue };
            let Ok(permit) = Arc::clone(&self.all).try_acquire_owned() else { continue };
            return (PlacedStream { stream, _place: place, _permit: permit }, address);
        }
    }

    fn local_addr(&self) -> std::io::Result<IpAddr> {
        Ok(self.listener.local_addr()?.ip())
    }
}

/// A connection with its place.
struct PlacedStream {
    stream: TcpStream,
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for PlacedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PlacedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use maille_core::{NamespacedName, TrustDomain};

    use super::*;
    use crate::revocation::Listed;
    use crate::world::{Change, Event, MeshConfig, Pod};

    fn pod(namespace: &str, address: &str) -> Event {
        Event::Pod(Change::Put(Pod {
            name: NamespacedName::new(namespace, "pod"),
            uid: address.to_owned(),
            addresses: vec![address.parse().expect("address")],
            labels: Default::default(),
            service_account: "default".to_owned(),
            workload_name: "pod".to_owned(),
            meshed: false,
            terminating: false,
            named_ports: Vec::new(),
            scrape: None,
            multiplexes: false,
            node: String::new(),
            ready: true,
        }))
    }

    /// A hostNetwork Pod has its node's address, as the API server may have.
    #[test]
    fn only_loopback_sees_all_and_nobody_is_taken_for_no_workload_before_all_are_known() {
        let hub =
            crate::hub::Hub::new(World::new(MeshConfig::new(TrustDomain::parse("mesh").expect("valid"))));
        let sees = |address: &str| access(&hub.snapshot().world, Caller(address.parse().expect("address")));
        let node = "192.0.2.1";
        assert_eq!([sees(node), sees("10.1.1.1"), sees("127.0.0.1"), sees("::1")], {
            [Access::Public, Access::Public, Access::All, Access::All]
        });
        hub.apply([pod("shop", "10.1.1.1"), pod("istio-system", "10.1.1.2")]);
        assert_eq!([sees("10.1.1.1"), sees("10.1.1.2")], [Access::Public, Access::Traffic]);
        hub.apply([
            Event::Service(Change::Replace(vec![])),
            Event::Slice(Change::Replace(vec![])),
            Event::PeerAuthentication(Change::Replace(vec![])),
            Event::Authorization(Change::Replace(vec![])),
            Event::RequestAuthentication(Change::Replace(vec![])),
            Event::DestinationRule(Change::Replace(vec![])),
            Event::ServiceEntry(Change::Replace(vec![])),
            Event::WorkloadEntry(Change::Replace(vec![])),
            Event::Sidecar(Change::Replace(vec![])),
            Event::MeshConfig(Default::default()),
            Event::Revocations(Listed::default()),
            Event::RevocationLists(vec![], vec![]),
        ]);
        assert_eq!(sees(node), Access::Public, "the Pods are not all there yet");
        hub.apply([Event::Pod(Change::Replace(vec![]))]);
        assert_eq!([sees(node), sees("127.0.0.1")], [Access::Traffic, Access::All]);
    }
}

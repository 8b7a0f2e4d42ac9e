//! The road of a connection that the own workload opened.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use maille_core::{Hostname, PortProtocol};
use maille_telemetry::{Marks, Protocol, RefusalKind, Way};
use tokio::net::TcpStream;

use crate::balance::{self, Held, Outcome, Timed, Watched, What, Wish, limits_of_opaque};
use crate::chain::Inspectors;
use crate::connect::{Connected, Security, Upstream};
use crate::http::outbound::OutboundHttp;
use crate::http::serve::serve_http;
use crate::original;
use crate::plan::Plan;
use crate::record::{self, Called, Proven, Refused};
use crate::route::{self, Behind};
use crate::snapshot::{
    DestinationCell, Endpoint, EndpointPort, ListenerSpec, OutboundPolicy, ResolveError, Service,
    ServicePort, Target, TlsOrder,
};
use crate::sniff::{self, Detected, Prefixed};
use crate::stream::Stream;
use crate::tcp::Passage;
use crate::tunnel;
use crate::worker::Worker;
use meant::Meant;

mod meant;

/// Further endpoints tried when one cannot be connected to: nothing was sent then. Envoy's `tcp_proxy` tries one, and
/// lets the application see what another endpoint could have spared it.
const RETRIES: usize = 2;

/// Accept → original destination → what is behind it → protocol → endpoint → upstream TLS → forward → record.
pub(crate) async fn serve(worker: &Rc<Worker>, socket: TcpStream, spec: &ListenerSpec) {
    let Some(dialled) = Dialled::of(&socket, spec) else { return };
    let Meant { known, looks } = Meant::of(worker, &dialled).await;
    let departure = Departure { worker, dialled, known, looks };
    match departure.first(&socket).await {
        First::Caller => {}
        First::Server(opened) => {
            return departure.tcp(Prefixed::new(BytesMut::new(), socket), None, opened).await;
        }
        First::Shed => return,
    }
    let Some((protocol, stream)) = departure.sniff(socket).await else { return };
    match protocol {
        Speaks::Http { is_http2 } => departure.http(stream, is_http2).await,
        Speaks::Tls { server_name } => departure.tls(stream, server_name).await,
        Speaks::Tcp => departure.tcp(stream, None, None).await,
        Speaks::Unknown(refused) => departure.refuse(None, Proven::Nothing, refused),
    }
}

/// What the application dialled.
#[derive(Debug, Clone)]
pub(crate) struct Dialled {
    /// The address, unless a listener stands for a host name.
    pub(crate) address: Option<SocketAddr>,
    /// As the registry is asked for it.
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
    /// Who dialled.
    from: Option<SocketAddr>,
}

impl Dialled {
    fn of(socket: &TcpStream, spec: &ListenerSpec) -> Option<Self> {
        let from = socket.peer_addr().ok();
        if let Target::Host(name, port) = &spec.target {
            return Some(Self { address: None, name: name.clone(), port: *port, from });
        }
        let address = original::destination(socket, spec)?;
        Some(Self {
            address: Some(address),
            name: address.ip().to_string().into(),
            port: address.port(),
            from,
        })
    }

    /// What the log says of it.
    pub(crate) fn way(&self) -> Way<'_> {
        Way { downstream_local: Some(self.somewhere()), downstream_remote: self.from, ..Way::default() }
    }

    /// Who dialled.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        self.from
    }

    /// For telemetry, which wants an address.
    pub(crate) fn somewhere(&self) -> SocketAddr {
        self.address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], self.port)))
    }
}

/// What the application speaks.
#[derive(Debug)]
enum Speaks {
    Http {
        is_http2: bool,
    },
    /// TLS of its own, where that matters: the server name may choose the service (SE-10).
    Tls {
        server_name: Option<String>,
    },
    Tcp,
    /// It names something of which nobody can say now what it is.
    Unknown(Refused),
}

/// An endpoint of opaque bytes, and what hangs on it.
struct Picked {
    upstream: Upstream,
    called: Called,
    /// Where failures count.
    watched: Option<Watched>,
}

impl Picked {
    fn new(upstream: Upstream, called: Called) -> Self {
        Self { upstream, called, watched: None }
    }

    /// One more connection, unless there are as many as there may be.
    fn count(&self) -> Result<Option<Held>, Refused> {
        let Some(terms) = &self.upstream.terms else { return Ok(None) };
        terms.take(What::Connection).map(Some).ok_or_else(|| too_many(&self.called))
    }

    fn note(&self, outcome: Outcome) {
        if let Some(watched) = &self.watched {
            watched.note(outcome);
        }
    }
}

/// An upstream that was opened because it might speak first, and did.
type Opened = Box<(Picked, Connected, Option<Held>)>;

/// Whose bytes come first.
enum First {
    Caller,
    /// The server's, as far as the caller knows; opened already where it had to show that.
    Server(Option<Opened>),
    /// Nobody's: too many wait, and it did longest.
    Shed,
}

struct Departure<'a> {
    worker: &'a Rc<Worker>,
    dialled: Dialled,
    known: Result<Arc<DestinationCell>, ResolveError>,
    looks: Option<Inspectors>,
}

impl Departure<'_> {
    fn plan(&self) -> Plan {
        let number = self.dialled.port;
        let limit = self.worker.snapshot().settings.protocol_detection_timeout;
        match &self.known {
            Ok(cell) => Plan::of(&route::behind(&cell.load(), number), self.looks, number, limit),
            Err(_) => Plan::of(&Behind::Undeclared(None), self.looks, number, limit),
        }
    }

    /// Who speaks first. A caller that does not within its patience may wait for the server; only then is its upstream
    /// opened before its bytes are known.
    async fn first(&self, socket: &TcpStream) -> First {
        let plan = self.plan();
        let Some(patience) = plan.patience else { return First::Caller };
        if tokio::time::timeout(patience, socket.peek(&mut [0])).await.is_ok() {
            return First::Caller;
        }
        // Where the address leads nowhere, the name that a late caller gives may still lead somewhere.
        let Ok(picked) = self.pick(None, &[]) else { return First::Caller };
        // Nothing leaves in plaintext, however late the caller speaks.
        if plan.opaque_if_late && picked.upstream.security != Security::Plain {
            return First::Server(None);
        }
        if !plan.server_first {
            return First::Caller;
        }
        let server = async {
            let counted = picked.count().ok()?;
            // Given up if the caller does speak: a server that waits for it has seen a connection without a byte.
            let mut connected = tunnel::connect(self.worker, &picked.upstream).await.ok()?;
            connected.stream.is_spoken_to().await.then_some((connected, counted))
        };
        let mut byte = [0];
        let who = async {
            tokio::select! {
                biased;
                _ = socket.peek(&mut byte) => None,
                connected = server => connected,
            }
        };
        // As long as it could have been looked at, and on the same budget.
        let longest = plan.limit.map_or(Duration::MAX, |limit| limit.saturating_sub(patience));
        let who = self.worker.undetected.wait(Box::pin(tokio::time::timeout(longest, who))).await;
        match who.map(|who| who.ok().flatten()) {
            Some(Some((connected, counted))) => First::Server(Some(Box::new((picked, connected, counted)))),
            Some(None) => First::Caller,
            None => First::Shed,
        }
    }

    /// By declaration where there is one, else by the first bytes.
    async fn sniff(&self, mut socket: TcpStream) -> Option<(Speaks, Prefixed<TcpStream>)> {
        let plan = self.plan();
        let mut prefix = BytesMut::new();
        let detected = if plan.wanted.tls || plan.wanted.http {
            let detection = sniff::detect(&mut socket, &mut prefix, plan.wanted, plan.limit);
            self.worker.undetected.wait(detection).await?.ok()?
        } else {
            Detected::Raw
        };
        // A forward proxy somewhere outside: its callers speak CONNECT to it, not to us.
        let is_tunnel = !plan.is_declared && prefix.starts_with(b"CONNECT ");
        let is_http = match (plan.class, &detected) {
            (_, Detected::Closed) => return None,
            (_, Detected::Tls { .. }) => false,
            (PortProtocol::Http | PortProtocol::Http2, _) => true,
            (_, Detected::Http) if plan.only_for_entries => {
                match self.names_entry(&mut socket, &mut prefix).await? {
                    Ok(names_entry) => names_entry,
                    Err(error) => {
                        let stream = Prefixed::new(prefix, socket);
                        return Some((Speaks::Unknown(unresolved(&error)), stream));
                    }
                }
            }
            (_, Detected::Http) => !is_tunnel,
            (_, Detected::Raw) => false,
        };
        let speaks = match detected {
            Detected::Tls { sni, .. } => Speaks::Tls { server_name: sni },
            _ if is_http => {
                let version = sniff::is_http2(&mut socket, &mut prefix);
                Speaks::Http { is_http2: self.worker.undetected.wait(version).await?.ok()? }
            }
            _ => Speaks::Tcp,
        };
        Some((speaks, Prefixed::new(prefix, socket)))
    }

    /// Whether a request's `Host` names a service of a ServiceEntry that takes requests on the dialled port. An HTTP/2
    /// connection may carry requests to many: each is judged by its own authority.
    async fn names_entry(
        &self,
        socket: &mut TcpStream,
        prefix: &mut BytesMut,
    ) -> Option<Result<bool, ResolveError>> {
        if prefix.starts_with(sniff::H2_PREFACE) {
            return Some(Ok(true));
        }
        let reading = sniff::host(socket, prefix);
        let Some(authority) = self.worker.undetected.wait(reading).await?.ok()? else {
            return Some(Ok(false));
        };
        let named = self.entry(route::without_port(&authority)).await;
        let takes_http = |cell: Option<Arc<DestinationCell>>| {
            cell.is_some_and(|cell| {
                let known = cell.load();
                matches!(route::behind(&known, self.dialled.port), Behind::Service(_, port) if port.takes_http())
            })
        };
        Some(named.map(takes_http))
    }

    /// The service of a ServiceEntry that is called `name` and has the dialled port.
    async fn entry(&self, name: &str) -> Result<Option<Arc<DestinationCell>>, ResolveError> {
        // What is no host name needs no question.
        let Ok(name) = Hostname::parse(name) else { return Ok(None) };
        if route::host_address(name.as_str()).is_some() {
            return Ok(None);
        }
        let cell = self.worker.destinations.find(name.as_str()).await?;
        let is_entry = match route::behind(&cell.load(), self.dialled.port) {
            Behind::Service(service, _) => service.service_entry.is_some(),
            Behind::Headless(..) | Behind::Undeclared(_) => false,
        };
        Ok(is_entry.then_some(cell))
    }

    /// TLS of the application: the server name chooses among the services of ServiceEntries, else the address counts
    /// (SE-10). Where a DestinationRule would put its own TLS around it, it is refused: nobody means that (DR-6).
    async fn tls(self, stream: Prefixed<TcpStream>, server_name: Option<String>) {
        let by_name = match &server_name {
            Some(name) => self.entry(name).await,
            None => Ok(None),
        };
        let by_name = match by_name {
            Ok(by_name) => by_name,
            // What was dialled is known, and the registry says what it is.
            Err(_) if self.plan().is_declared => None,
            Err(error) => return self.refuse(None, Proven::Nothing, unresolved(&error)),
        };
        let is_tls = |cell: &Arc<DestinationCell>| match route::behind(&cell.load(), self.dialled.port) {
            Behind::Service(_, port) => port.is_tls || port.originates_tls(),
            Behind::Headless(..) | Behind::Undeclared(_) => false,
        };
        let by_name = by_name.filter(is_tls);
        if let Some(cell) = by_name.as_ref().or(self.known.as_ref().ok()) {
            let known = cell.load();
            let behind = route::behind(&known, self.dialled.port);
            if let Some(order) = behind.originates() {
                return self.refuse_twice(&behind, order);
            }
        }
        self.tcp(stream, by_name, None).await;
    }

    async fn http(self, stream: Prefixed<TcpStream>, is_http2: bool) {
        let handler = Rc::new(OutboundHttp::new(self.worker.clone(), self.dialled));
        let stream = Prefixed::new(BytesMut::new(), Stream::Plain(stream));
        serve_http(self.worker, stream, is_http2, None, handler).await;
    }

    /// Forwards opaque bytes, to what the server name chose, or over the connection on which the server spoke first.
    async fn tcp(
        self,
        stream: Prefixed<TcpStream>,
        by_name: Option<Arc<DestinationCell>>,
        opened: Option<Opened>,
    ) {
        let mut tried = Vec::new();
        let (picked, mut connected, _counted) = match opened {
            Some(opened) => *opened,
            None => loop {
                let picked = match self.pick(by_name.as_ref(), &tried) {
                    Ok(picked) => picked,
                    Err(refused) => {
                        let meant = by_name.as_ref().or(self.known.as_ref().ok());
                        let meant = meant.and_then(|cell| self.meant(cell));
                        return self.refuse(meant.as_ref(), Proven::Nothing, refused);
                    }
                };
                let counted = match picked.count() {
                    Ok(counted) => counted,
                    Err(refused) => return self.refuse(Some(&picked.called), Proven::Nothing, refused),
                };
                match tunnel::connect(self.worker, &picked.upstream).await {
                    Ok(connected) => break (picked, connected, counted),
                    Err(error) => {
                        picked.note(Outcome::Lost);
                        let again = tried.len() < RETRIES && !tried.contains(&picked.upstream);
                        let Picked { upstream, called, .. } = picked;
                        tried.push(upstream);
                        if !again || !self.has_others(by_name.as_ref(), &tried) {
                            let proven = tried.last().map_or(Proven::Nothing, |last| last.security.proven());
                            return self.refuse(Some(&called), proven, error.refused());
                        }
                    }
                }
            },
        };
        picked.note(Outcome::Connected);
        let Picked { upstream, called, .. } = &picked;
        let labels = self.labels(called, connected.identity.as_ref(), upstream.security.proven());
        let key_exchange = connected.key_exchange();
        let labels = maille_telemetry::ConnectionLabels { key_exchange, ..labels };
        let connection = self.worker.recorder.connection_opened(&labels);
        let _engaged = self.worker.pools.busy.engage(upstream.address);
        let mut stream = stream;
        let explain = |error: &std::io::Error| {
            let refusal = upstream.security.refusal_by_peer(upstream.address, error)?;
            Some(refusal.refused())
        };
        let upstream_local = connected.local(self.worker);
        let reached = upstream.reached_from(upstream_local);
        let way = Way { upstream: Some(reached), upstream_local, ..self.dialled.way() };
        let server = connected.proof.as_deref();
        if let (Some(server), Stream::Connected(_)) = (server, &connected.stream) {
            server.carries_tcp();
        }
        let passage = Passage { connection, open: None, server, way, marks: None, explain: &explain };
        let (idle, age) = limits_of_opaque(upstream.terms.as_deref());
        let mut timed = Timed::new(&mut connected.stream, idle, age);
        passage.run(self.worker, &mut stream, &mut timed).await;
    }

    /// Whether an attempt at another endpoint makes sense: nothing was sent to those that were tried.
    fn has_others(&self, by_name: Option<&Arc<DestinationCell>>, tried: &[Upstream]) -> bool {
        self.pick(by_name, tried).is_ok_and(|other| !tried.contains(&other.upstream))
    }

    /// The upstream of an opaque connection: a service that was named, else what is behind the address. Those `tried` are
    /// left out if others are left.
    fn pick(&self, by_name: Option<&Arc<DestinationCell>>, tried: &[Upstream]) -> Result<Picked, Refused> {
        let cell = match by_name {
            Some(cell) => cell,
            None => self.known.as_ref().map_err(unresolved)?,
        };
        let known = cell.load();
        match route::behind(&known, self.dialled.port) {
            Behind::Service(service, port) if route::is_dialled(service, port) => {
                let address = self.dialled.address.ok_or_else(|| not_in_registry(&self.dialled))?;
                let upstream = route::to_dialled(service, port, address, None);
                let called = route::called_service(service, upstream.address);
                Ok(Picked::new(upstream, called))
            }
            Behind::Service(service, port) => {
                self.pick_endpoint(service, port, tried).ok_or_else(|| no_endpoint(service, port.number))
            }
            Behind::Headless(workload, port) => {
                let address = self.dialled.address.ok_or_else(|| not_in_registry(&self.dialled))?;
                let upstream = route::to_headless(address.ip(), port, None)
                    .of_proxy_that_multiplexes(workload.multiplexes);
                let service = record::service(&port.service);
                Ok(Picked::new(upstream, Called { workload: workload.clone(), service, address }))
            }
            Behind::Undeclared(workload) => {
                let address = pass_through(self.worker, &self.dialled)?;
                let upstream = Upstream::at(address, Security::Plain);
                Ok(Picked::new(upstream, route::called_passthrough(workload, address)))
            }
        }
    }

    fn pick_endpoint(&self, service: &Service, port: &ServicePort, tried: &[Upstream]) -> Option<Picked> {
        let picked = |endpoint: &Endpoint, at: &EndpointPort| {
            let upstream = route::to_endpoint(service, port, endpoint, at, None);
            let called = route::called_endpoint(service, endpoint, upstream.address);
            Picked::new(upstream, called)
        };
        let busy = |picked: &Picked| self.worker.pools.busy.with(picked.upstream.address);
        let Some(balance) = &port.balance else {
            let found = route::less_busy(self.worker, service, port.number, picked, busy, |picked| {
                tried.contains(&picked.upstream)
            });
            return found;
        };
        let reached = |index: usize| balance.at(service, index).map(|(endpoint, at)| picked(endpoint, at));
        let avoid = |index: usize| reached(index).is_none_or(|picked| tried.contains(&picked.upstream));
        let index = balance.pick(&Wish {
            random: &|bound| self.worker.random_below(bound),
            hash: balance.key().and_then(|key| balance::of_source(key, self.dialled.from)),
            avoid: (!tried.is_empty()).then_some(&avoid),
            active: &|index| reached(index).as_ref().map_or(0, busy),
        })?;
        Some(Picked { watched: balance.watched(index), ..reached(index)? })
    }

    fn labels(
        &self,
        called: &Called,
        identity: Option<&maille_core::Identity>,
        proven: Proven,
    ) -> maille_telemetry::ConnectionLabels {
        let own = self.worker.shared.tls.current();
        let inbound = &self.worker.snapshot().inbound;
        record::outbound_labels(inbound, own.svid().identity(), called, identity, proven, Protocol::Tcp)
    }

    /// Telemetry's names for a service that is not reached.
    fn meant(&self, cell: &DestinationCell) -> Option<Called> {
        match route::behind(&cell.load(), self.dialled.port) {
            Behind::Service(service, _) => Some(route::called_service(service, self.dialled.somewhere())),
            Behind::Headless(..) | Behind::Undeclared(_) => None,
        }
    }

    fn refuse_twice(&self, behind: &Behind<'_>, order: &TlsOrder) {
        let address = self.dialled.somewhere();
        let (called, host) = match behind {
            Behind::Service(service, _) => (route::called_service(service, address), &service.name.hostname),
            Behind::Headless(workload, port) => {
                let service = record::service(&port.service);
                (Called { workload: (*workload).clone(), service, address }, &port.service.hostname)
            }
            Behind::Undeclared(_) => (refused_destination(&self.dialled), &self.dialled.name),
        };
        let refused = encrypted_twice(order, host, self.dialled.port);
        self.refuse(Some(&called), Proven::Nothing, refused);
    }

    fn refuse(&self, called: Option<&Called>, proven: Proven, refused: Refused) {
        let unknown = || refused_destination(&self.dialled);
        let called = called.cloned().unwrap_or_else(unknown);
        let labels = self.labels(&called, None, proven);
        let (refusal, way) = (refused.refusal(), self.dialled.way());
        self.worker.recorder.refused_connection(&labels, &refusal, &Marks::default(), &way);
    }
}

/// DR-6, diagnosed here instead of by whatever the server makes of it.
fn encrypted_twice(order: &TlsOrder, host: &str, port: u16) -> Refused {
    let (rule, mode) = (&order.rule, order.mode.as_str());
    let reason = format!(
        "DestinationRule {rule}: it orders {mode} TLS towards {host} port {port}, and the application speaks TLS itself, \
         so it would be encrypted twice; let the application call http://{host}:{port}, or take the TLS settings out of \
         the rule"
    );
    Refused::new(RefusalKind::TlsHandshake, reason)
}

/// Where an undeclared destination may be dialled as it is (OT-1 to OT-4): nowhere under REGISTRY_ONLY.
pub(crate) fn pass_through(worker: &Worker, dialled: &Dialled) -> Result<SocketAddr, Refused> {
    match (worker.snapshot().settings.outbound_policy, dialled.address) {
        (OutboundPolicy::AllowAny, Some(address)) => Ok(address),
        _ => Err(not_in_registry(dialled)),
    }
}

/// The registry cannot be asked: refused, never sent as plaintext on a guess.
pub(crate) fn unresolved(error: &ResolveError) -> Refused {
    Refused::new(RefusalKind::ControlPlaneUnreachable, error.to_string())
}

pub(crate) fn no_endpoint(service: &Service, port: u16) -> Refused {
    let host = &service.name.hostname;
    let reason = match &service.lookup_failure {
        Some(why) => format!("{host} port {port} has no endpoint: {why}"),
        None => format!("no endpoint of {host} port {port} is ready"),
    };
    Refused::new(RefusalKind::UpstreamFailed, reason)
        .with_flags(maille_telemetry::ResponseFlags::NoHealthyUpstream)
}

/// Envoy's `tcp_proxy` closes such connections, too.
fn too_many(called: &Called) -> Refused {
    let reason = format!("as many connections to {} are open as maxConnections allows", called.service.host);
    Refused::new(RefusalKind::Overload, reason).with_flags(maille_telemetry::ResponseFlags::UpstreamOverflow)
}

fn not_in_registry(dialled: &Dialled) -> Refused {
    let Dialled { name, port, .. } = dialled;
    let reason =
        format!("{name} port {port} is not in the registry and the outbound policy is REGISTRY_ONLY");
    Refused::new(RefusalKind::UnknownDestination, reason)
}

/// Telemetry's names for a destination that nothing was sent to.
pub(crate) fn refused_destination(dialled: &Dialled) -> Called {
    let service = record::pseudo_service("BlackHoleCluster", dialled.name.to_string());
    Called { workload: Arc::default(), service, address: dialled.somewhere() }
}

//! The road of a connection that the own workload opened.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use maille_core::PortProtocol;
use maille_telemetry::{Protocol, RefusalKind};
use maille_tls::ClientAlpn;
use tokio::net::TcpStream;

use crate::chain::Inspectors;
use crate::connect::{Security, Upstream, connect};
use crate::http::outbound::OutboundHttp;
use crate::http::serve::serve_http;
use crate::record::{self, Called, Refused};
use crate::route::{self, Behind};
use crate::snapshot::{DestinationCell, ListenerSpec, OutboundPolicy, ResolveError, Target};
use crate::sniff::{self, Detected, Prefixed};
use crate::stream::Stream;
use crate::worker::Worker;
use crate::{original, tcp};

/// How long a caller of an unknown address is given to show that it speaks HTTP. Istio does not inspect ports
/// that no service declares (OT-1), and servers there may speak first; waiting longer would only hold them up.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(300);

/// Accept → original destination → what is behind it → protocol → endpoint → upstream TLS → forward → record.
pub(crate) async fn serve(worker: &Rc<Worker>, socket: TcpStream, spec: &ListenerSpec) {
    let Some(dialled) = Dialled::of(&socket, spec) else { return };
    let known = worker.destinations.find(&dialled.name).await;
    let departure = Departure { worker, dialled, known };
    let Some((protocol, stream)) = departure.sniff(socket).await else { return };
    match protocol {
        Speaks::Http { is_http2 } => departure.http(stream, is_http2).await,
        Speaks::Tcp => departure.tcp(stream).await,
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
}

impl Dialled {
    fn of(socket: &TcpStream, spec: &ListenerSpec) -> Option<Self> {
        if let Target::Host(name, port) = &spec.target {
            return Some(Self { address: None, name: name.clone(), port: *port });
        }
        let address = original::destination(socket, spec)?;
        Some(Self { address: Some(address), name: address.ip().to_string().into(), port: address.port() })
    }
}

/// What the application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http { is_http2: bool },
    Tcp,
}

struct Departure<'a> {
    worker: &'a Rc<Worker>,
    dialled: Dialled,
    known: Result<Arc<DestinationCell>, ResolveError>,
}

impl Departure<'_> {
    /// By declaration where there is one, else by the first bytes.
    async fn sniff(&self, mut socket: TcpStream) -> Option<(Speaks, Prefixed<TcpStream>)> {
        let (class, is_declared) = match &self.known {
            Ok(cell) => {
                let known = cell.load();
                let behind = route::behind(&known, self.dialled.port);
                (behind.protocol(), !matches!(behind, Behind::Undeclared(_)))
            }
            Err(_) => (PortProtocol::Auto, false),
        };
        let mut prefix = BytesMut::new();
        let limit = match is_declared {
            true => self.worker.snapshot().settings.protocol_detection_timeout,
            false => Some(UNKNOWN_PATIENCE),
        };
        let detected = match class {
            PortProtocol::Tcp => Detected::Raw,
            PortProtocol::Http | PortProtocol::Http2 => Detected::Http,
            PortProtocol::Auto => {
                let wanted = Inspectors { tls: false, http: true };
                let detection = sniff::detect(&mut socket, &mut prefix, wanted, limit);
                self.worker.undetected.wait(detection).await?.ok()?
            }
        };
        // A forward proxy somewhere outside: its callers speak CONNECT to it, not to us.
        let is_tunnel = !is_declared && prefix.starts_with(b"CONNECT ");
        let speaks = match detected {
            Detected::Closed => return None,
            Detected::Http if !is_tunnel => {
                let version = sniff::is_http2(&mut socket, &mut prefix);
                Speaks::Http { is_http2: self.worker.undetected.wait(version).await?.ok()? }
            }
            _ => Speaks::Tcp,
        };
        Some((speaks, Prefixed::new(prefix, socket)))
    }

    async fn http(self, stream: Prefixed<TcpStream>, is_http2: bool) {
        let handler = Rc::new(OutboundHttp::new(self.worker.clone(), self.dialled));
        let stream = Prefixed::new(BytesMut::new(), Stream::Plain(stream));
        serve_http(self.worker, stream, is_http2, None, handler).await;
    }

    async fn tcp(self, stream: Prefixed<TcpStream>) {
        let (upstream, called) = match self.pick() {
            Ok(picked) => picked,
            Err(refused) => return self.refuse(None, false, refused),
        };
        match connect(self.worker, &upstream, ClientAlpn::Tcp).await {
            Ok(mut connected) => {
                let labels = self.labels(&called, connected.identity.as_ref(), upstream.is_mutual());
                let connection = self.worker.recorder.connection_opened(&labels);
                let mut stream = stream;
                tcp::run(self.worker, &mut stream, &mut connected.stream, connection, None).await;
            }
            Err(error) => {
                let refused = Refused::new(error.kind(), error.to_string()).with_flags(error.flags()).with_tls(error.tls());
                self.refuse(Some(&called), upstream.is_mutual(), refused);
            }
        }
    }

    /// The upstream of an opaque connection.
    fn pick(&self) -> Result<(Upstream, Called), Refused> {
        let cell = self.known.as_ref().map_err(unresolved)?;
        let known = cell.load();
        match route::behind(&known, self.dialled.port) {
            Behind::Service(service, port) => {
                let count = route::candidates(service, port.number).count();
                let (endpoint, at) = route::candidates(service, port.number)
                    .nth(self.worker.random_below(count))
                    .ok_or_else(|| no_endpoint(&service.name.hostname, port.number))?;
                let upstream = route::to_endpoint(service, port, endpoint, at);
                let called = route::called_endpoint(service, endpoint, upstream.address);
                Ok((upstream, called))
            }
            Behind::Headless(workload, port) => {
                let address = self.dialled.address.ok_or_else(|| not_in_registry(&self.dialled))?;
                let upstream = route::to_headless(address.ip(), port);
                let service = record::service(&port.service);
                Ok((upstream, Called { workload: workload.clone(), service, address }))
            }
            Behind::Undeclared(workload) => {
                let address = pass_through(self.worker, &self.dialled)?;
                let upstream = Upstream { address, security: Security::Plain };
                Ok((upstream, route::called_passthrough(workload, address)))
            }
        }
    }

    fn labels(
        &self,
        called: &Called,
        identity: Option<&maille_core::Identity>,
        is_mutual: bool,
    ) -> maille_telemetry::ConnectionLabels {
        let own = self.worker.shared.tls.current();
        let inbound = &self.worker.snapshot().inbound;
        record::outbound_labels(inbound, own.svid().identity(), called, identity, is_mutual, Protocol::Tcp)
    }

    fn refuse(&self, called: Option<&Called>, is_mutual: bool, refused: Refused) {
        let unknown = || refused_destination(&self.dialled);
        let called = called.cloned().unwrap_or_else(unknown);
        self.worker.recorder.refused_connection(&self.labels(&called, None, is_mutual), &refused.refusal());
    }
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

pub(crate) fn no_endpoint(host: &str, port: u16) -> Refused {
    let reason = format!("no endpoint of {host} port {port} is ready");
    Refused::new(RefusalKind::UpstreamFailed, reason)
        .with_flags(maille_telemetry::ResponseFlags::NoHealthyUpstream)
}

fn not_in_registry(dialled: &Dialled) -> Refused {
    let Dialled { name, port, .. } = dialled;
    let reason =
        format!("{name} port {port} is not in the registry and the outbound policy is REGISTRY_ONLY");
    Refused::new(RefusalKind::UnknownDestination, reason)
}

/// Telemetry's names for a destination that nothing was sent to.
pub(crate) fn refused_destination(dialled: &Dialled) -> Called {
    let address = dialled.address.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], dialled.port)));
    let service = record::pseudo_service("BlackHoleCluster", dialled.name.to_string());
    Called { workload: Arc::default(), service, address }
}

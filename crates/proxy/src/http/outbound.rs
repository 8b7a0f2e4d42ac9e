//! Requests of the own workload.

use std::rc::Rc;
use std::time::Instant;

use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use maille_core::PortProtocol;
use maille_telemetry::{Edge, Protocol, RefusalKind, Way};

use crate::connect::{Security, Upstream};
use crate::http::body::Body;
use crate::http::exchange::Exchange;
use crate::http::forward::{self, Failed};
use crate::http::head;
use crate::http::line::Origin;
use crate::http::serve::Handler;
use crate::http::upgrade::Switching;
use crate::http::xfcc::XFCC;
use crate::outbound::{Dialled, no_endpoint, pass_through, refused_destination, unresolved};
use crate::pool::Pool;
use crate::record::{self, Called, Proven, Refused};
use crate::route::{self, Behind};
use crate::snapshot::{Destination, Resolution, ResolveError, Service, ServicePort};
use crate::worker::Worker;

/// Further endpoints tried when one cannot be connected to; nothing was sent then (Istio's default: 2 retries).
const RETRIES: usize = 2;

/// One outbound connection that carries HTTP.
pub(crate) struct OutboundHttp {
    worker: Rc<Worker>,
    dialled: Dialled,
    /// Counts what never reached anybody.
    nowhere: std::cell::OnceCell<Rc<Edge>>,
}

/// A request that goes nowhere.
struct Refusal {
    refused: Refused,
    /// Where it would have gone.
    meant: Option<Box<Called>>,
    status: StatusCode,
    text: &'static str,
}

impl OutboundHttp {
    pub(crate) fn new(worker: Rc<Worker>, dialled: Dialled) -> Self {
        Self { worker, dialled, nowhere: std::cell::OnceCell::new() }
    }

    /// The pool that a request with this authority goes to; `tried` endpoints are avoided if others are left.
    ///
    /// The Host chooses the service if it is one with this port, else the address that was dialled (SE-9).
    async fn pool(&self, authority: &str, version: Version, tried: &[Upstream]) -> Result<Rc<Pool>, Refusal> {
        let host = route::without_port(authority);
        // Asked for with every request, which keeps the agent from forgetting it while the connection lives.
        let known = self.worker.destinations.find(&self.dialled.name).await;
        let by_address = known.as_ref().ok().map(|cell| cell.load());
        if let Some(Destination::Service(service)) = by_address.as_deref().map(|d| &**d)
            && let Some(port) = service.port(self.dialled.port)
            && (self.dialled.address.is_none() || self.is_named(service, host))
        {
            return self.to_service(service, port, host, version, tried);
        }
        let is_dialled = self.dialled.address.map(|a| a.ip()) == route::host_address(host) || host.is_empty();
        if !is_dialled {
            let asked = match route::host_address(host) {
                Some(address) => address.to_string(),
                None => host.to_ascii_lowercase(),
            };
            let asked = asked.trim_end_matches('.');
            let cell = self.worker.destinations.find(asked).await.map_err(|e| cannot_be_asked(&e))?;
            let by_host = cell.load();
            if let Destination::Service(service) = &**by_host
                && !service.headless
                && !self.is_stolen(service, by_address.as_deref().map(|d| &**d))
                && let Some(port) = service.port(self.dialled.port)
                && port.takes_http()
            {
                return self.to_service(service, port, host, version, tried);
            }
        }
        let cell = known.as_ref().map_err(cannot_be_asked)?;
        let by_address = cell.load();
        match route::behind(&by_address, self.dialled.port) {
            Behind::Service(service, port) => self.to_service(service, port, host, version, tried),
            Behind::Headless(workload, port) => {
                let Some(address) = self.dialled.address else { return Err(self.unknown()) };
                let upstream = route::to_headless(address.ip(), port, Some(host))
                    .of_proxy_that_multiplexes(workload.multiplexes);
                let called = || Called {
                    workload: workload.clone(),
                    service: record::service(&port.service),
                    address,
                };
                Ok(self.worker.pools.pool(upstream, spoken(port.protocol, version), || Some(called())))
            }
            Behind::Undeclared(workload) => {
                let address = pass_through(&self.worker, &self.dialled).map_err(|_| self.unknown())?;
                let upstream = Upstream { address, security: Security::Plain };
                let called = || route::called_passthrough(workload, address);
                Ok(self.worker.pools.pool(upstream, version, || Some(called())))
            }
        }
    }

    /// Whether a ServiceEntry claims a name of the cluster that was dialled at a workload of the mesh: what that
    /// workload is, nobody's entry says.
    fn is_stolen(&self, service: &Service, dialled: Option<&Destination>) -> bool {
        let snapshot = self.worker.snapshot();
        let own_names = format!(".svc.{}", snapshot.settings.cluster_domain);
        service.service_entry.is_some()
            && matches!(dialled, Some(Destination::Workload(direct)) if direct.workload.meshed)
            && service.name.hostname.ends_with(&own_names)
    }

    fn is_named(&self, service: &Service, host: &str) -> bool {
        let snapshot = self.worker.snapshot();
        let own = &snapshot.inbound.workload.namespace;
        route::is_named(service, own, &snapshot.settings.cluster_domain, host)
    }

    /// The less busy of two endpoints chosen at random (Istio's default, LEAST_REQUEST).
    fn to_service(
        &self,
        service: &Service,
        port: &ServicePort,
        host: &str,
        version: Version,
        tried: &[Upstream],
    ) -> Result<Rc<Pool>, Refusal> {
        let version = spoken(port.protocol, version);
        if service.resolution == Resolution::Dialled {
            let Some(address) = self.dialled.address else { return Err(self.unknown()) };
            let upstream = route::to_dialled(service, port, address, Some(host));
            let address = upstream.address;
            let called = || Some(route::called_service(service, address));
            return Ok(self.worker.pools.pool(upstream, version, called));
        }
        let count = route::candidates(service, port.number).count();
        let pool_at = |index: usize| {
            let (endpoint, at) = route::candidates(service, port.number).nth(index)?;
            let upstream = route::to_endpoint(service, port, endpoint, at, Some(host));
            let address = upstream.address;
            let called = || Some(route::called_endpoint(service, endpoint, address));
            Some(self.worker.pools.pool(upstream, version, called))
        };
        let first = self.worker.random_below(count);
        let second = match count {
            0 | 1 => None,
            count => pool_at((first + 1 + self.worker.random_below(count - 1)) % count),
        };
        let untried = |pool: &Rc<Pool>| !tried.contains(&pool.upstream);
        let chosen = match (pool_at(first), second) {
            (Some(a), Some(b)) if untried(&a) && untried(&b) => {
                Some(if a.active() <= b.active() { a } else { b })
            }
            (Some(a), Some(b)) => Some(if untried(&a) { a } else { b }),
            (one, _) => one,
        };
        chosen.ok_or_else(|| Refusal {
            refused: no_endpoint(service, port.number),
            meant: Some(Box::new(route::called_service(service, self.dialled.somewhere()))),
            status: StatusCode::SERVICE_UNAVAILABLE,
            text: "no healthy upstream",
        })
    }

    /// OT-2 under REGISTRY_ONLY.
    fn unknown(&self) -> Refusal {
        let Dialled { name, port, .. } = &self.dialled;
        let reason =
            format!("{name} port {port} is not in the registry and the outbound policy is REGISTRY_ONLY");
        Refusal {
            refused: Refused::new(RefusalKind::UnknownDestination, reason),
            meant: None,
            status: StatusCode::BAD_GATEWAY,
            text: "",
        }
    }

    /// The account of requests that reach nobody.
    fn nowhere(&self, meant: Option<&Called>) -> Rc<Edge> {
        let edge = |called: &Called| {
            let own = self.worker.shared.tls.current();
            let inbound = &self.worker.snapshot().inbound;
            let own = own.svid().identity();
            let labels = record::outbound_labels(inbound, own, called, None, Proven::Nothing, Protocol::Http);
            Rc::new(self.worker.recorder.edge(&labels))
        };
        match meant {
            Some(called) => edge(called),
            None => self.nowhere.get_or_init(|| edge(&refused_destination(&self.dialled))).clone(),
        }
    }

    fn refuse(&self, refusal: &Refusal, mut exchange: Exchange) -> Response<Body> {
        if exchange.edge().is_none() {
            exchange.set_edge(self.nowhere(refusal.meant.as_deref()));
        }
        let Refusal { refused, status, text, .. } = refusal;
        forward::refuse(refused, exchange, *status, text)
    }

    fn malformed(&self, malformed: head::Malformed, exchange: Exchange) -> Response<Body> {
        let refused = Refused::new(RefusalKind::BadRequest, malformed.to_string());
        let refusal = Refusal { refused, meant: None, status: malformed.status(), text: "" };
        self.refuse(&refusal, exchange)
    }
}

impl Origin for OutboundHttp {
    fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    fn way(&self) -> Way<'_> {
        self.dialled.way()
    }
}

impl Handler for OutboundHttp {
    /// Head → service by Host → endpoint → upstream → record.
    async fn call(self: Rc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let (started, head_bytes) = (Instant::now(), head::head_bytes(request.headers()));
        let checked = head::check(&mut request, self.worker.path_normalization());
        // On nobody's account yet.
        let mut exchange = Exchange::new(self.clone(), None, &request, started, head_bytes);
        let upgrade = match checked {
            Ok(upgrade) => upgrade,
            Err(malformed) => return self.malformed(malformed, exchange),
        };
        if *request.method() == Method::CONNECT {
            let reason = "CONNECT to a service of the mesh: services are called, not tunnelled through";
            let refused = Refused::new(RefusalKind::BadRequest, reason.to_owned());
            let refusal = Refusal { refused, meant: None, status: StatusCode::NOT_FOUND, text: "" };
            return self.refuse(&refusal, exchange);
        }
        // XF-3: the application cannot vouch for anybody.
        request.headers_mut().remove(&XFCC);
        let downstream = request.version();
        let mut pool = match self.pool(head::authority(&request), downstream, &[]).await {
            Ok(pool) => pool,
            Err(refusal) => return self.refuse(&refusal, exchange),
        };
        let mut switching = upgrade.map(|_| Switching {
            downstream: hyper::upgrade::on(&mut request),
            judged_by: None,
            keep: self.clone(),
        });
        let mut request = match forward::prepare(request, &mut exchange, pool.version) {
            Ok(request) => request,
            Err(malformed) => return self.malformed(malformed, exchange),
        };
        let mut tried = Vec::new();
        loop {
            if let Some(edge) = pool.edge(&self.worker) {
                exchange.set_edge(edge);
            }
            let sent = forward::send(&self.worker, &pool, request, exchange, switching, downstream);
            let Failed { error, exchange: same, request: unsent, switching: unswitched } = match sent.await {
                Ok(response) => return response,
                Err(failed) => *failed,
            };
            exchange = same;
            tried.push(pool.upstream.clone());
            let other = self.pool(exchange.authority(), downstream, &tried).await;
            match (unsent, other) {
                (Some(unsent), Ok(other)) if tried.len() <= RETRIES && !tried.contains(&other.upstream) => {
                    request = unsent;
                    switching = unswitched;
                    pool = other;
                }
                _ => return forward::fail(&error, exchange),
            }
        }
    }
}

/// HTTP/2 where the port is declared so, else as the application speaks (WR-3).
fn spoken(protocol: PortProtocol, downstream: Version) -> Version {
    if protocol == PortProtocol::Http2 { Version::HTTP_2 } else { downstream }
}

fn cannot_be_asked(error: &ResolveError) -> Refusal {
    Refusal {
        refused: unresolved(error),
        meant: None,
        status: StatusCode::SERVICE_UNAVAILABLE,
        text: "destination cannot be looked up: the control plane does not answer",
    }
}

//! Requests of the own workload.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use maille_telemetry::{Edge, Protocol, RefusalKind, Way};

use crate::balance::What;
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
use crate::pool::SendError;
use crate::record::{self, Called, Proven, Refused};
use crate::route::{self, Behind};
use crate::snapshot::{Destination, ResolveError, Service, ServicePort};
use crate::worker::Worker;
use toward::{Asked, Toward, spoken};

mod toward;

/// Attempts beyond the first, where nothing was sent or the upstream says that it did nothing (Istio's default: 2).
///
/// Istio's default policy also repeats requests that were answered with gRPC's UNAVAILABLE or CANCELLED. Whoever answers
/// so may have done half of the work, so that only the caller knows whether to ask again; it is not done here.
const RETRIES: usize = 2;
/// The first pause before the same endpoint is tried again is below this (Envoy's `base_interval`).
const PAUSE: Duration = Duration::from_millis(25);

/// One outbound connection that carries HTTP.
pub(crate) struct OutboundHttp {
    worker: Rc<Worker>,
    dialled: Dialled,
    /// Counts what never reached anybody.
    nowhere: std::cell::OnceCell<Rc<Edge>>,
    fresh: std::cell::OnceCell<u64>,
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
        Self { worker, dialled, nowhere: std::cell::OnceCell::new(), fresh: std::cell::OnceCell::new() }
    }

    /// The endpoint that a request goes to; those tried before are avoided if others are left.
    ///
    /// The Host chooses the service if it is one with this port, else the address that was dialled (SE-9).
    async fn toward(&self, asked: &Asked<'_>) -> Result<Toward, Refusal> {
        let host = route::without_port(asked.authority);
        // Asked for with every request, which keeps the agent from forgetting it while the connection lives.
        let known = self.worker.destinations.find(&self.dialled.name).await;
        let by_address = known.as_ref().ok().map(|cell| cell.load());
        if let Some(Destination::Service(service)) = by_address.as_deref().map(|d| &**d)
            && let Some(port) = service.port(self.dialled.port)
            && (self.dialled.address.is_none() || self.is_named(service, host))
        {
            return self.to_service(service, port, host, asked);
        }
        let is_dialled = self.dialled.address.map(|a| a.ip()) == route::host_address(host) || host.is_empty();
        if !is_dialled {
            let name = match route::host_address(host) {
                Some(address) => address.to_string(),
                None => host.to_ascii_lowercase(),
            };
            let name = name.trim_end_matches('.');
            let cell = self.worker.destinations.find(name).await.map_err(|e| cannot_be_asked(&e))?;
            let by_host = cell.load();
            if let Destination::Service(service) = &**by_host
                && !service.headless
                && !self.is_stolen(service, by_address.as_deref().map(|d| &**d))
                && let Some(port) = service.port(self.dialled.port)
                && port.takes_http()
            {
                return self.to_service(service, port, host, asked);
            }
        }
        let cell = known.as_ref().map_err(cannot_be_asked)?;
        let by_address = cell.load();
        match route::behind(&by_address, self.dialled.port) {
            Behind::Service(service, port) => self.to_service(service, port, host, asked),
            Behind::Headless(workload, port) => {
                let Some(address) = self.dialled.address else { return Err(self.unknown()) };
                let upstream = route::to_headless(address.ip(), port, Some(host))
                    .of_proxy_that_multiplexes(workload.multiplexes);
                let called = || Called {
                    workload: workload.clone(),
                    service: record::service(&port.service),
                    address,
                };
                let version = spoken(port.protocol, asked, port.terms.as_deref());
                Ok(Toward::new(self.worker.pools.pool(upstream, version, || Some(called()))))
            }
            Behind::Undeclared(workload) => {
                self.worker.destinations.keep_any_address(self.dialled.port);
                let address = pass_through(&self.worker, &self.dialled).map_err(|_| self.unknown())?;
                let upstream = Upstream::at(address, Security::Plain);
                let called = || route::called_passthrough(workload, address);
                Ok(Toward::new(self.worker.pools.pool(upstream, asked.version, || Some(called()))))
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

    fn no_endpoint(&self, service: &Service, port: &ServicePort) -> Refusal {
        Refusal {
            refused: no_endpoint(service, port.number),
            meant: Some(Box::new(route::called_service(service, self.dialled.somewhere()))),
            status: StatusCode::SERVICE_UNAVAILABLE,
            text: "no healthy upstream",
        }
    }

    /// A number of this connection's own, the same for all its requests.
    fn fresh(&self) -> u64 {
        *self.fresh.get_or_init(rand::random)
    }

    /// Before the same endpoint is asked again for the `attempt`-th time: drawn at random, from a range that doubles.
    fn pause(&self, attempt: usize) -> Duration {
        let most = usize::try_from(PAUSE.as_millis()).unwrap_or(25) * ((1 << attempt) - 1);
        Duration::from_millis(self.worker.random_below(most + 1) as u64)
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

    fn refuse(&self, refusal: &Refusal, mut exchange: Box<Exchange>) -> Response<Body> {
        if exchange.edge().is_none() {
            exchange.set_edge(self.nowhere(refusal.meant.as_deref()));
        }
        let Refusal { refused, status, text, .. } = refusal;
        forward::refuse(refused, exchange, *status, text)
    }

    fn malformed(&self, malformed: head::Malformed, exchange: Box<Exchange>) -> Response<Body> {
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
        let is_upgrade = upgrade.is_some();
        let mut toward = {
            let (authority, request) = (head::authority(&request), Some(&request));
            let asked = Asked { authority, version: downstream, is_upgrade, request, hash: None, tried: &[] };
            match self.toward(&asked).await {
                Ok(toward) => toward,
                Err(refusal) => return self.refuse(&refusal, exchange),
            }
        };
        let mut switching = upgrade.map(|_| Switching {
            downstream: hyper::upgrade::on(&mut request),
            judged_by: None,
            keep: self.clone(),
        });
        let mut request = Box::new(request.map(Body::from));
        if let Err(malformed) = forward::prepare(&mut request, &mut exchange, toward.pool.version) {
            return self.malformed(malformed, exchange);
        }
        let mut tried: Vec<Upstream> = Vec::new();
        let mut _repeated = None;
        loop {
            if let Some(edge) = toward.pool.edge(&self.worker) {
                exchange.set_edge(edge);
            }
            let sent = forward::send(&self.worker, &toward.pool, request, exchange, switching, downstream);
            let Failed { error, exchange: same, request: unsent, switching: unswitched } = match sent.await {
                Ok(mut response) => {
                    toward.note(Ok(&response));
                    toward.set_cookie(&mut response);
                    return response;
                }
                Err(failed) => *failed,
            };
            exchange = same;
            toward.note::<Body>(Err(&error));
            let Some(unsent) = unsent.filter(|_| tried.len() < RETRIES && is_worth_repeating(&error)) else {
                return forward::fail(&error, exchange);
            };
            tried.push(toward.pool.upstream.clone());
            let hash = toward.keyed.hash;
            let authority = exchange.authority();
            let asked =
                Asked { authority, version: downstream, is_upgrade, request: None, hash, tried: &tried };
            let Ok(mut other) = self.toward(&asked).await else { return forward::fail(&error, exchange) };
            // A request has been made ready for one version.
            if other.pool.version != toward.pool.version {
                return forward::fail(&error, exchange);
            }
            if tried.contains(&other.pool.upstream) {
                if !error.is_quick() {
                    return forward::fail(&error, exchange);
                }
                tokio::time::sleep(self.pause(tried.len())).await;
            }
            _repeated = match other.pool.upstream.terms.as_ref().map(|terms| terms.take(What::Retry)) {
                Some(None) => return forward::fail(&error, exchange),
                held => held.flatten(),
            };
            other.keyed.cookie = toward.keyed.cookie.take();
            request = unsent;
            switching = unswitched;
            toward = other;
        }
    }
}

/// Not where a bound was reached: repeating it would be more of what is too much.
fn is_worth_repeating(error: &SendError) -> bool {
    !matches!(error, SendError::Overflow(_))
}

fn cannot_be_asked(error: &ResolveError) -> Refusal {
    Refusal {
        refused: unresolved(error),
        meant: None,
        status: StatusCode::SERVICE_UNAVAILABLE,
        text: "destination cannot be looked up: the control plane does not answer",
    }
}

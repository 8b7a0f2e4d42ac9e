//! How a provider is reached: as the registry says, over the worker's own connections.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Version};
use http_body_util::BodyExt as _;
use maille_core::PortProtocol;

use super::provider::Provider;
use crate::connect::{Security, Upstream};
use crate::http::body::Body;
use crate::http::head;
use crate::http::received::Received;
use crate::pool::{Answer, NotSent, SendError};
use crate::record::Called;
use crate::route::{self, Behind};
use crate::snapshot::{OutboundPolicy, Resolution};
use crate::upkeep::{LookUp, Servers, dns};
use crate::worker::Worker;

/// Attempts where nothing came back: the endpoint could not be connected to, or had closed the connection just then. A
/// check has no effect that it would have twice.
const ATTEMPTS: usize = 3;
/// Names outside the registry of which a worker keeps the addresses; as many as there are providers, usually one.
const MAX_NAMES: usize = 64;
/// An answer of DNS is kept no shorter, and no longer.
const GOOD_FOR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Addresses of providers that the registry does not know.
#[derive(Default)]
pub(super) struct Addresses {
    dns: OnceCell<Arc<dyn LookUp>>,
    known: RefCell<HashMap<Box<str>, Found>>,
}

/// An answer of DNS.
struct Found {
    until: Instant,
    addresses: Vec<IpAddr>,
}

impl Addresses {
    async fn of(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(address) = route::host_address(host) {
            return Ok(vec![address]);
        }
        if let Some(found) = self.known.borrow().get(host)
            && found.until > Instant::now()
        {
            return Ok(found.addresses.clone());
        }
        let servers = self.dns.get_or_init(|| dns(Servers::System)).clone();
        let found = servers
            .look_up(host)
            .await
            .map_err(|error| format!("the registry does not know {host}, and DNS: {error}"))?;
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_NAMES {
            known.clear();
        }
        let until = Instant::now() + found.good_for.clamp(GOOD_FOR.0, GOOD_FOR.1);
        known.insert(host.into(), Found { until, addresses: found.addresses.clone() });
        Ok(found.addresses)
    }
}

/// One way to a provider.
struct Way {
    upstream: Upstream,
    /// Whether its port is declared to speak HTTP/2.
    is_http2: bool,
    called: Called,
}

/// The way that attempt `attempt` takes; `first` is a number drawn once per check.
async fn way(worker: &Worker, provider: &Provider, first: usize, attempt: usize) -> Result<Way, String> {
    let Provider { host, port, .. } = provider;
    let cell = worker.destinations.find(host).await.map_err(|error| error.to_string())?;
    {
        let known = cell.load();
        match route::behind(&known, *port) {
            Behind::Service(service, declared) => {
                if service.resolution == Resolution::Dialled {
                    return Err(format!(
                        "{host} is a ServiceEntry with resolution NONE: nobody has dialled it"
                    ));
                }
                let count = route::candidates(service, *port).count();
                let index = first.wrapping_add(attempt) % count.max(1);
                let Some((endpoint, at)) = route::candidates(service, *port).nth(index) else {
                    let why = service.lookup_failure.as_deref().unwrap_or("none is ready");
                    return Err(format!("{host} port {port} has no endpoint: {why}"));
                };
                let upstream = route::to_endpoint(service, declared, endpoint, at, Some(host));
                let called = route::called_endpoint(service, endpoint, upstream.address);
                return Ok(Way { upstream, is_http2: declared.protocol == PortProtocol::Http2, called });
            }
            Behind::Headless(workload, declared) => {
                let address = route::host_address(host).ok_or_else(|| format!("{host} is no service"))?;
                let upstream = route::to_headless(address, declared, Some(host));
                let called = route::called_passthrough(Some(workload), upstream.address);
                return Ok(Way { upstream, is_http2: declared.protocol == PortProtocol::Http2, called });
            }
            Behind::Undeclared(_) if matches!(**known, crate::snapshot::Destination::Service(_)) => {
                return Err(format!("{host} does not declare port {port}"));
            }
            Behind::Undeclared(_) => {}
        }
    }
    if worker.snapshot().settings.outbound_policy == OutboundPolicy::RegistryOnly {
        return Err(format!("{host} is not in the registry and the outbound policy is REGISTRY_ONLY"));
    }
    let addresses = worker.authorizers.addresses.of(host).await?;
    let index = first.wrapping_add(attempt) % addresses.len().max(1);
    let address = addresses.get(index).ok_or_else(|| format!("{host} has no address"))?;
    let upstream = Upstream::at(SocketAddr::new(*address, *port), Security::Plain);
    let called = route::called_passthrough(None, upstream.address);
    Ok(Way { upstream, is_http2: false, called })
}

/// Sends what `make` makes, with HTTP/2 if the port speaks it or `version` says so.
pub(super) async fn send(
    worker: &Rc<Worker>,
    provider: &Provider,
    version: Option<Version>,
    make: impl Fn() -> Request<Body>,
) -> Result<Answer, String> {
    let first = worker.random_below(usize::MAX);
    let mut attempt = 0;
    loop {
        let Way { upstream, is_http2, called } = way(worker, provider, first, attempt).await?;
        let spoken = version.unwrap_or(if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 });
        let mut request = make();
        head::adapt(&mut request, spoken).map_err(|malformed| malformed.to_string())?;
        let pool = worker.pools.pool(upstream, spoken, || Some(called));
        attempt += 1;
        match pool.send(worker, Box::new(request)).await {
            Ok(answer) => return Ok(answer),
            Err(NotSent {
                error: SendError::Connect(_) | SendError::Reset(_) | SendError::StreamReset(_),
                ..
            }) if attempt < ATTEMPTS => {}
            Err(NotSent { error, .. }) => return Err(error.to_string()),
        }
    }
}

/// The body of an answer, and what follows it.
pub(super) struct Collected {
    pub(super) bytes: Bytes,
    pub(super) trailers: Option<HeaderMap>,
    /// Not cut at the limit.
    pub(super) is_whole: bool,
}

/// Reads a body, but no more of it than `limit`.
pub(super) async fn collect(mut body: Received, limit: usize) -> Result<Collected, String> {
    let (mut bytes, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("its answer broke off: {error}"))?;
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if bytes.len() > limit {
            bytes.truncate(limit);
            return Ok(Collected { bytes: bytes.freeze(), trailers, is_whole: false });
        }
    }
    Ok(Collected { bytes: bytes.freeze(), trailers, is_whole: true })
}
